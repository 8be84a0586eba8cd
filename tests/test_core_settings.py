"""From a declared setting to the C core: the structs, their defaults and the effect of a reload are generated from the
declaration.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blipmq._native import ffi, lib
from blipmq.config.core_settings import CORE, WAL
from blipmq.config.settings import KEYS, Config
from blipmq.native.config import CoreConfig, WalConfig

ROOT = Path(__file__).resolve().parent.parent
STRUCTS = [("bq_config", CoreConfig, CORE), ("bq_wal_config", WalConfig, WAL)]


def struct_of(name, values=None):
    struct = ffi.new(f"{name}_t *")
    for field, value in (values or {}).items():
        setattr(struct, field, value)
    return struct


def fields_of(struct):
    return {name: getattr(struct, name) for name, _ in ffi.typeof(struct[0]).fields}


@pytest.mark.parametrize(("name", "given", "fields"), STRUCTS)
def test_the_core_has_the_declared_fields_with_the_declared_defaults(name, given, fields):
    struct = struct_of(name)
    getattr(lib, f"{name}_default")(struct)
    assert fields_of(struct) == given()._asdict() == given.of(Config())._asdict()
    assert tuple(fields_of(struct)) == tuple(field.name for field in fields)


@pytest.mark.parametrize(("name", "given", "fields"), STRUCTS)
def test_the_largest_value_of_each_setting_fits_its_field(name, given, fields):
    struct = struct_of(name, {field.name: field.high for field in fields if field.low >= 0})
    assert fields_of(struct) == {field.name: field.high if field.low >= 0 else 0 for field in fields}


def test_each_setting_reaches_only_its_core_field():
    for path, key in KEYS.items():
        for name, fields in ((key.core, CORE), (key.wal, WAL)):
            assert not name or [field.help.startswith(f"{path}: ") for field in fields if field.name == name] == [True]


def test_a_reload_applies_only_settings_declared_reloadable():
    before, changed = struct_of("bq_config"), struct_of("bq_config", {field.name: 7 for field in CORE})
    lib.bq_config_reload(before, changed)
    assert fields_of(before) == {field.name: 7 * field.reload for field in CORE}
    by_key = {key.core: key.reload for key in KEYS.values() if key.core}
    assert by_key.items() <= {field.name: field.reload for field in CORE}.items()


def test_a_value_invalid_for_the_core_is_refused():
    defaults = CoreConfig()._asdict()
    assert lib.bq_config_valid(struct_of("bq_config", defaults))
    for field in CORE:
        if field.low:
            assert not lib.bq_config_valid(struct_of("bq_config", {**defaults, field.name: field.low - 1})), field.name
        if field.choices:
            too_far = {**defaults, field.name: len(field.choices)}
            assert not lib.bq_config_valid(struct_of("bq_config", too_far)), field.name


MADE_UP = """class Queues(Section):
    made_up: int = key(3, "A setting of a test.", "things", 1, 1 << 33, reload=True, core="made_up")
"""
REFUSED = """bq_t *bq_new(const bq_config_t *config, uint64_t first_message_id) {
    if (config->made_up == 77) return NULL;
"""
TRIED = """
from blipmq.config.reader import from_dict
from blipmq.native.config import CoreConfig
from blipmq.native.core import Core
from blipmq.native.errors import CoreError
from blipmq import _native
assert _native.__file__.startswith({root!r}), _native.__file__
assert CoreConfig().made_up == 3
Core(CoreConfig.of(from_dict({{"queues": {{"made_up": 1 << 33}}}}))).free()
try:
    Core(CoreConfig.of(from_dict({{"queues": {{"made_up": 77}}}})))
except CoreError:
    print("the core has read it")
"""


def with_line_replaced(path, line, text):
    before = path.read_text(encoding="utf-8")
    assert before.count(line) == 1
    path.write_text(before.replace(line, text), encoding="utf-8")


def run_in(tree, *command):
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_setting_needs_one_declaration_and_its_use_in_the_core(tmp_path):
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("blipmq", "native"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    with_line_replaced(tmp_path / "blipmq" / "config" / "settings.py", "class Queues(Section):\n", MADE_UP)
    with_line_replaced(tmp_path / "native" / "core.c", REFUSED.splitlines()[0] + "\n", REFUSED)
    check = [sys.executable, "native/generate_settings.py", "--check"]
    stale = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert stale.returncode == 1 and "run `make settings`" in stale.stderr
    run_in(tmp_path, "native/generate_settings.py")
    run_in(tmp_path, "setup.py", "--quiet", "build_ext", "--inplace")
    assert run_in(tmp_path, "-c", TRIED.format(root=str(tmp_path))) == "the core has read it\n"
