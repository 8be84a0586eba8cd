"""The programs run without the modules of Python that the frozen ones leave out: packaging/freeze/blipmq.spec lists them.

Invariant: the modules are loaded in a process of their own, in which an import of those fails as in the frozen program.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOAD = """
import importlib, importlib.abc, sys
left_out, modules = (set(words.split()) for words in sys.argv[1:])

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in left_out or name.partition(".")[0] in left_out:
            raise ModuleNotFoundError(f"the frozen program leaves out {name}")

sys.meta_path.insert(0, Missing())
for name in sorted(modules):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error)
"""


def load(left_out: set[str], modules: set[str]) -> list[str]:
    """What the loading of these modules says, one line for each that fails."""
    command = [sys.executable, "-c", LOAD, " ".join(left_out), " ".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_module_of_the_programs_needs_one_that_the_frozen_program_leaves_out() -> None:
    spec = (ROOT / "packaging" / "freeze" / "blipmq.spec").read_text(encoding="utf-8")
    left_out = set(re.findall(r'^    "([\w.]+)": "', spec, re.MULTILINE))
    assert "fractions" in left_out and "unittest" in left_out
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "blipmq").rglob("*.py")]
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"}
    assert len(modules) > 100
    assert load(left_out, modules - {"blipmq.testing"}) == []  # that one is for the tests of users


def test_a_module_that_needs_one_is_found() -> None:
    assert load({"json"}, {"blipmq.config.schema", "json.decoder"}) == [
        "json.decoder the frozen program leaves out json"
    ]
