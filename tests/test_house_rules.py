"""The house rules that a machine can check. Each rule is a function over text, and each is tested with a violation.

Invariant: every rule has a test with an offending text.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "blipmq"
NATIVE = ROOT / "native"
C_MODULES = {"_native", "_tls"}
PRODUCTS = {"build", "dist", "__pycache__", "node_modules", "results"}
TEXT = {".py", ".pyi", ".c", ".h", ".md", ".toml", ".sh", ".cfg", ".yml", ".yaml", ".service", ".json", ".env", ""}


# ---- layers ----------------------------------------------------------------------------------------------------------


def read_map(text: str) -> dict[str, tuple[int, set[str]]]:
    """The map of docs/ARCHITECTURE.md: the row of each package and its modules. Lines have the form `row package/ name
    · name`; a line without a row continues the previous one. Modules outside packages have the package "", and the row
    of their line."""
    block = re.search(r"## Map of the package.*?```\n(.*?)```", text, re.DOTALL)
    assert block, "docs/ARCHITECTURE.md has no block below `## Map of the package`"
    places: dict[str, tuple[int, set[str]]] = {}
    names: set[str] = set()
    for line in block.group(1).splitlines():
        row, package, rest = line[:4].strip(), line[4:16].strip(), line[16:]
        found = set(re.findall(r"\w+", rest))
        if row and package:
            names = found
            places[package] = int(row), names
        elif row:
            places.update({name: (int(row), {name}) for name in found})
        else:
            names |= found
    return places


def noun(module: str) -> str:
    """The name of a module on the map: `cli.client` is in `cli/`, `errors` is itself."""
    head, _, rest = module.partition(".")
    return f"{head}/" if rest or (PACKAGE / head).is_dir() else head


def imported(source: str, module: str) -> Iterator[str]:
    """Modules of the package imported by a source text, without the package name; `__init__` for the package itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "blipmq":
                    yield alias.name.partition(".")[2] or "__init__"
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level] if node.level else []
                base = ".".join(["blipmq", *above, *([base] if base else [])])
            if base == "blipmq":
                for alias in node.names:
                    known = (PACKAGE / f"{alias.name}.py").exists() or (PACKAGE / alias.name).is_dir()
                    yield alias.name if known or alias.name in C_MODULES else "__init__"
            elif base.startswith("blipmq."):
                yield base.removeprefix("blipmq.")


def upward_imports(module: str, source: str, rows: dict[str, int]) -> list[str]:
    """Imports that do not point to a lower row: upwards, or to another package of the same row. `__init__` is above all
    rows."""
    rows = rows | {"__init__": 0, **dict.fromkeys(C_MODULES, max(rows.values()) + 1)}
    own = noun(module)
    outside = [name for name in imported(source, module) if noun(name) != own]
    return [name for name in outside if rows[noun(name)] <= rows[own]]


def find_circle(arrows: dict[str, set[str]]) -> list[str]:
    """The names of an import cycle, the first one repeated at the end; [] without a cycle."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(arrows.get(name, ())):
            if circle := walk(target, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(arrows) if (circle := walk(name, []))), [])


def modules() -> Iterator[tuple[str, str]]:
    """Every module by its dotted name below the package, with its text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        yield name, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def places() -> dict[str, tuple[int, set[str]]]:
    return read_map((ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def test_the_documented_map_names_exactly_the_existing_modules(places: dict[str, tuple[int, set[str]]]) -> None:
    on_disk: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        package = path.parent.relative_to(PACKAGE).as_posix()
        if path.name == "__init__.py" or (package != "." and path.name == "__main__.py"):
            continue
        on_disk.setdefault(path.stem if package == "." else f"{package}/", set()).add(path.stem)
    on_map = {name: found for name, (_, found) in places.items()}
    assert on_disk == on_map, "the map of docs/ARCHITECTURE.md and the modules of blipmq/ differ"


def files_that_are_not_there(page: str) -> list[str]:
    """Files between backticks, relative to the project root or to native/, that do not exist; `NAME` is a
    placeholder."""
    named = re.findall(r"`((?:[a-z][\w.-]*/)+[\w.-]+\.(?:c|h|py|md|fbs))`", page)
    return [name for name in named if "NAME" not in name and not ((ROOT / name).exists() or (NATIVE / name).exists())]


def test_every_file_that_the_architecture_page_names_exists() -> None:
    assert files_that_are_not_there((ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")) == []


def test_a_missing_file_named_in_the_page_is_found() -> None:
    page = "`native/core.c` and `net/input.c`, but `net/inputs.c` and `blipmq/here.py`; `native/proto/NAME.c`"
    assert files_that_are_not_there(page) == ["net/inputs.c", "blipmq/here.py"]


def test_the_core_map_names_exactly_the_existing_c_files() -> None:
    table = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Map of the core")[1]
    named = {name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"[\w/]+\.c", line)}
    assert named == {core_name(path) for path in native_files() if path.suffix == ".c"}


def test_every_import_points_to_a_lower_row(places: dict[str, tuple[int, set[str]]]) -> None:
    rows = {name: row for name, (row, _) in places.items()}
    listed = [(name, source) for name, source in modules() if name != "__init__"]
    assert {name: found for name, source in listed if (found := upward_imports(name, source, rows))} == {}


def test_packages_have_no_import_cycle() -> None:
    arrows: dict[str, set[str]] = {}
    for name, source in modules():
        targets = {noun(target) for target in imported(source, name)} - {noun(name), "__init__"}
        arrows.setdefault(noun(name), set()).update(targets)
    assert find_circle(arrows) == []


def test_an_upward_import_is_found_in_every_form() -> None:
    rows = {"service/": 1, "auth/": 2, "net/": 2, "wire/": 3, "errors": 4}
    up, side, down = "service.server", "net.listener", "errors"
    for line in (f"import blipmq.{up}", f"from blipmq.{up} import start", "from ..service.server import start"):
        assert upward_imports("wire.topics", line, rows) == [up]
        assert upward_imports("wire.topics", f"def late():\n    {line}", rows) == [up]
        assert upward_imports("wire.topics", f"if TYPE_CHECKING:\n    {line}", rows) == [up]
    assert upward_imports("auth.keys", f"from blipmq.{side} import open_listener", rows) == [side]
    assert upward_imports("net.tls", f"from blipmq.{side} import open_listener", rows) == []
    assert upward_imports("net.tls", f"from blipmq.{down} import ConfigError", rows) == []
    assert upward_imports("wire.topics", "from blipmq import __version__", rows) == ["__init__"]
    assert upward_imports("service.server", "from ..wire.topics import match\nfrom .. import _native", rows) == []


def test_an_import_cycle_between_packages_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def imports_the_core(source: str) -> bool:
    tree = ast.walk(ast.parse(source))
    names = [alias.name for node in tree if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    bases = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return any(name.split(".")[-1] in C_MODULES or name.split(".")[0] == "cffi" for name in [*names, *bases])


def test_only_the_package_native_imports_the_c_modules() -> None:
    assert {noun(name) for name, source in modules() if imports_the_core(source)} == {"native/"}


def test_an_import_of_the_c_module_is_found_in_every_form() -> None:
    for line in (
        "from blipmq import _native",
        "from blipmq._native import ffi",
        "from blipmq._tls import lib",
        "from . import _native",
        "import cffi",
    ):
        assert imports_the_core(line)
    assert not imports_the_core("from blipmq.native.core import Core\nfrom blipmq import native")


# ---- names and texts -------------------------------------------------------------------------------------------------


def is_product(folder: str) -> bool:
    return folder in PRODUCTS or folder.startswith(".") or folder.endswith(".egg-info")


def project_files() -> Iterator[Path]:
    """Files of the project, without build products, installed and hidden files, except .ci."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name == ".ci" or not is_product(name)]
        # in a linked work tree .git is a file
        yield from (Path(folder) / name for name in sorted(names) if name != ".git")


def project_texts() -> Iterator[tuple[str, str]]:
    for path in project_files():
        # A symbolic link of the appliance may point to a file that only the image has.
        if path.suffix in TEXT and path.is_file() and path.stat().st_size < 1 << 20:
            try:
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


STANDARD_FOLDERS = set("bin boot dev etc lib lib64 media mnt opt proc run sbin srv sys tmp usr var".split())


def is_named_for_no_noun(path: Path) -> bool:
    return path.stem.strip("_") in {"util", "utils", "helper", "helpers", "manager", "common", "misc"}


def test_no_file_is_named_utils_helpers_or_manager() -> None:
    assert [str(path) for path in project_files() if is_named_for_no_noun(path)] == []


def test_a_file_with_a_vague_name_is_found() -> None:
    assert is_named_for_no_noun(Path("blipmq/utils.py")) and is_named_for_no_noun(Path("native/helpers.c"))
    assert not is_named_for_no_noun(Path("blipmq/wire/topics.py"))


def machine_paths(text: str, exists: Callable[[str], bool] = os.path.exists) -> list[str]:
    """Machine-specific paths: in a home folder, or existing here and outside the standard hierarchy."""
    found = re.findall(r"(?<![\w.}$*-])(/(?:root|home|Users)/[\w.]+)", text)
    for path in re.findall(r"(?<![\w.}$:/*-])(/\w[\w.-]*/\w[\w.-]*)", text):
        if path.split("/")[1] not in STANDARD_FOLDERS and exists(path):
            found.append(path)
    return sorted({*found, *re.findall(re.escape(str(ROOT)) + r"\b", text if len(ROOT.parts) > 2 else "")})


def test_no_file_contains_a_machine_specific_path() -> None:
    assert {name: found for name, text in project_texts() if (found := machine_paths(text))} == {}


def test_a_machine_specific_path_is_found() -> None:
    for path in ("root/.cache/x", "home/someone/blipmq", "Users/someone/blipmq"):
        assert machine_paths(f"see '/{path}'")
    assert machine_paths("cp /depot/tree/x .", lambda path: path == "/depot/tree") == ["/depot/tree"]
    assert not machine_paths("cp /depot/tree/x .", lambda path: False)
    assert not machine_paths("/usr/bin/env, $DIR/home/x, docs/home/x, http://depot/tree, /../..", lambda path: True)


# The words are split in two parts so that this file does not contain them.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
SKIPPED = re.compile(r"pytest\.(mark\.)?(" + "|".join(("sk" + "ip", "xf" + "ail")) + ")")


HALF_MERGED = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)


def test_no_file_contains_merge_conflict_markers() -> None:
    assert [name for name, text in project_texts() if HALF_MERGED.search(text)] == []
    assert HALF_MERGED.search("a\n" + "<" * 7 + " HEAD\n") and not HALF_MERGED.search("a <<<<<<< b\n")


def test_no_file_has_a_todo_mark_and_no_test_is_skipped() -> None:
    assert [name for name, text in project_texts() if UNFINISHED.search(text)] == []
    assert [name for name, text in project_texts() if name.startswith("tests/") and SKIPPED.search(text)] == []


def test_a_todo_mark_is_found() -> None:
    assert UNFINISHED.search("# TO" + "DO: later") and SKIPPED.search("@pytest.mark.sk" + "ip")


def names_no_sentence(text: str) -> list[str]:
    """Test names with fewer than three words, which do not state a behaviour."""
    return re.findall(r"^ *(?:async )?def (test_[^_\W]+(?:_[^_\W]+)?)\(", text, re.MULTILINE)


def test_every_test_is_named_by_a_sentence() -> None:
    tests = [(name, text) for name, text in project_texts() if name.startswith("tests/")]
    assert {name: found for name, text in tests if (found := names_no_sentence(text))} == {}


def test_a_test_name_of_one_or_two_words_is_found() -> None:
    indented = "    async def test_the_wheel(self): ..."
    assert names_no_sentence(f"def test_wheel():\n    pass\n{indented}") == ["test_wheel", "test_the_wheel"]
    assert names_no_sentence("def test_the_wheel_turns(): ...\ndef check_wheel(): ...") == []


def test_the_makefile_uses_the_build_requirements_of_pyproject() -> None:
    required = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    installed = re.search(r"^BUILD_REQUIRES := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert required and installed
    assert re.findall(r'"(.*?)"', required.group(1)) == re.findall(r'"(.*?)"', installed.group(1))


def test_the_generated_core_settings_match_their_declarations() -> None:
    done = subprocess.run(
        [sys.executable, NATIVE / "generate_settings.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_filter_of_test_names_in_a_test_matches_a_test() -> None:
    """A renamed test would be run where it was meant to be left out."""
    text = (ROOT / "tests" / "test_frozen.py").read_text(encoding="utf-8")
    filters = re.findall(r'"not (\w+)"', text)
    names = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    assert len(filters) >= 2
    assert [chosen for chosen in filters if chosen != "slow" and not any(chosen in name for name in names)] == []


# ---- the C core ------------------------------------------------------------------------------------------------------

BANNED = re.compile(r"\b(strcpy|strcat|sprintf|vsprintf|gets|alloca)\s*\(")
ONE_SYSTEM = re.compile(r"#\s*include\s*<(sys/(?:epoll|eventfd|timerfd|signalfd|event|inotify)|linux/\w+)\.h>")


def strip_comments(text: str) -> str:
    """C without comments and string contents; sufficient for code without quotes in character constants."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', " ", text, flags=re.DOTALL)


def native_files() -> list[Path]:
    """The files of the core, without the fuzz targets, which are separate programs."""
    files = [*NATIVE.rglob("*.c"), *NATIVE.rglob("*.h")]
    return sorted(path for path in files if NATIVE / "fuzz" not in path.parents)


def core_name(path: Path) -> str:
    return path.relative_to(NATIVE).as_posix()


def test_no_two_files_of_the_core_share_a_name() -> None:
    """Object files, profiles and review comments use only the base name."""
    names = [path.name for path in native_files()]
    assert sorted({name for name in names if names.count(name) > 1}) == []


# A file may include headers of its own level and of lower levels.
# tls/ is a module of its own, which shares one header with the core.
CORE_LEVELS = {"api": 0, "base": 1, "wal": 2, "proto": 2, "broker": 3, "net": 4, "": 5, "tls": 5}
# A protocol implements a table of operations and uses connections and the broker; its encoding is below the broker.
CORE_TOP = {
    "proto/blip.c",
    "proto/blip_fast.c",
    "proto/mqtt.c",
    "proto/mqtt.h",
    "proto/mqtt_publish.c",
    "proto/mqtt_subscribe.c",
}


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def upward_includes(name: str, text: str) -> set[str]:
    """Headers of a folder above that of `name`, and of another folder at the same level."""
    own = folder_of(name)
    found = set(re.findall(r'^#include "([^"]+)"', text, re.MULTILINE))
    others = {header for header in found if folder_of(header) != own}
    level = CORE_LEVELS[""] if name in CORE_TOP else CORE_LEVELS[own]
    return {header for header in others if CORE_LEVELS[folder_of(header)] >= level}


def test_no_folder_of_the_core_includes_one_above_it() -> None:
    texts = {core_name(path): path.read_text(encoding="utf-8") for path in native_files()}
    assert {name: found for name, text in texts.items() if (found := upward_includes(name, text))} == {}


def test_an_upward_include_is_found() -> None:
    assert upward_includes("base/pool.c", '#include "base/pool.h"\n#include "wal/wal.h"\n') == {"wal/wal.h"}
    assert upward_includes("wal/reader.c", '#include "proto/blip_codec.h"\n') == {"proto/blip_codec.h"}
    assert upward_includes("net/admission.c", '#include <time.h>\n#include "broker/trie.h"\n#include "core.h"') == {
        "core.h"
    }
    assert upward_includes("broker/publish.c", '#include "net/connection.h"\n') == {"net/connection.h"}
    assert upward_includes("proto/blip.c", '#include "net/net.h"\n#include "core.h"\n') == {"core.h"}


def test_every_include_names_its_folder_from_the_root_of_the_core() -> None:
    wrong = {
        core_name(path): bad
        for path in native_files()
        if (bad := [h for h in re.findall(r'#include "([^"]+)"', path.read_text("utf-8")) if not (NATIVE / h).exists()])
    }
    assert wrong == {}


def test_the_core_calls_no_unbounded_function() -> None:
    found = {
        core_name(path): BANNED.findall(strip_comments(path.read_text(encoding="utf-8"))) for path in native_files()
    }
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_a_banned_call_is_found_and_a_comment_is_not() -> None:
    assert BANNED.findall(strip_comments('sprintf (out, "%d", n); strcpy(a, b);')) == ["sprintf", "strcpy"]
    assert not BANNED.search(strip_comments('/* strcpy(a, b) */ snprintf(out, n, "gets(x)"); // alloca(3)'))


def test_only_poll_c_includes_system_specific_headers() -> None:
    found = {core_name(path): ONE_SYSTEM.findall(path.read_text(encoding="utf-8")) for path in native_files()}
    assert {name for name, headers in found.items() if headers} <= {"base/poll.c"}
    assert found["base/poll.c"], (
        "base/poll.c no longer includes what this rule is about: the rule looks in the wrong place"
    )


# Headers that hide the operating system, and the files behind them. crc32.c asks each system for the processor's instructions.
SYSTEM_CONDITION = re.compile(
    r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*\b(_WIN32|WIN32|_WIN64|__APPLE__|__linux__|__linux|__unix__|__\w+BSD__|__CYGWIN__|__MINGW\w+)\b",
    re.MULTILINE,
)
TWINS = {"base/poll.c", "base/monitor.c", "base/monitor.h", "base/socket.h", "base/entropy.h", "wal/storage_posix.c"}
ASKS_FOR_THE_PROCESSOR = {"base/crc32.c"}


def may_name_a_system(name: str) -> bool:
    return name in TWINS | ASKS_FOR_THE_PROCESSOR or name.endswith("_windows.c")


def test_only_the_twins_name_an_operating_system() -> None:
    found = {core_name(path): SYSTEM_CONDITION.findall(path.read_text(encoding="utf-8")) for path in native_files()}
    assert {name: names for name, names in found.items() if names and not may_name_a_system(name)} == {}
    assert all(found[name] for name in TWINS), "a file no longer names a system: take it out of TWINS"


def test_a_condition_on_the_operating_system_is_found_in_every_form() -> None:
    for line in ("#ifdef _WIN32", "#if !defined(_WIN32)", "  # elif defined(__APPLE__) && X", "#ifndef __linux__"):
        assert SYSTEM_CONDITION.findall(f"int a;\n{line}\n")
    assert not SYSTEM_CONDITION.findall("#if defined(__x86_64__)\n/* on _WIN32 */\n#define X __linux__\n")
    assert not may_name_a_system("net/net.c") and may_name_a_system("base/poll_windows.c")


def test_every_windows_file_is_empty_on_other_systems() -> None:
    """Every build compiles all files; only this condition chooses."""
    files = [path for path in native_files() if path.name.endswith("_windows.c")]
    assert len(files) >= 4
    for path in files:
        code = strip_comments(path.read_text(encoding="utf-8")).strip()
        assert code.startswith("#if defined(_WIN32)") and code.endswith("#endif"), path


def compile_core(source: Path, target: Path) -> None:
    """Without position independence constant tables are in .rodata, so symbols that nm shows in .data or .bss are
    mutable."""
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: packaging/setup.sh installs one"
    flags = ["-std=gnu11", "-O1", "-fno-pic", "-fno-common", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
    subprocess.run([compiler, *flags, "-c", "-o", target, source], check=True, timeout=120)


def mutable_symbols(object_file: Path) -> list[str]:
    """Symbols in .data, .bss and common, including static ones and those inside functions."""
    listing = subprocess.run(["nm", object_file], check=True, capture_output=True, text=True, timeout=60).stdout
    return [line.split()[-1] for line in listing.splitlines() if line.split()[-2] in "BbCDdGgSs"]


def test_the_core_compiles_without_a_warning_and_has_no_mutable_globals(tmp_path: Path) -> None:
    found = {}
    for source in (path for path in native_files() if path.suffix == ".c"):
        compile_core(source, tmp_path / "object.o")
        if symbols := mutable_symbols(tmp_path / "object.o"):
            found[core_name(source)] = symbols
    assert found == {}


def exported_for_nobody(listings: dict[str, str], other: str) -> list[str]:
    """Functions that one object file defines without `static` and no other uses. `listings`: the output of nm of each
    object file; `other`: the text of programs that are not part of the core. The functions of the boundaries begin
    with bq."""
    defined: dict[str, str] = {}
    used: dict[str, set[str]] = {}
    for name, listing in listings.items():
        for line in listing.splitlines():
            kind, symbol = line.split()[-2:]
            if kind == "T":
                defined[symbol] = name
            elif kind == "U":
                used.setdefault(symbol, set()).add(name)
    words = set(re.findall(r"\w+", other))
    return sorted(s for s in defined if not s.startswith(("bq_", "bqtls_")) and not used.get(s) and s not in words)


def test_a_function_that_only_its_own_file_uses_is_static(tmp_path: Path) -> None:
    listings = {}
    for source in (path for path in native_files() if path.suffix == ".c"):
        target = tmp_path / f"{source.stem}.o"
        compile_core(source, target)
        listings[source.stem] = subprocess.run(["nm", target], check=True, capture_output=True, text=True).stdout
    programs = [*(NATIVE / "fuzz").iterdir(), *(ROOT / "tests").rglob("*.[chp]*"), *(ROOT / "bench").glob("*.[ch]")]
    other = "".join(path.read_text(encoding="utf-8") for path in programs if path.suffix in {".c", ".h", ".py"})
    assert exported_for_nobody(listings, other) == []


def test_a_function_exported_for_nobody_is_found() -> None:
    listings = {"a": "0 T alone\n0 T shared\n0 t local\n0 T bq_turn\n0 T tried", "b": "  U shared\n0 T main_of_b"}
    assert exported_for_nobody(listings, "int main(void) { tried(main_of_b); }") == ["alone"]


PROGRAMS = [*sorted((NATIVE / "fuzz").glob("*.c")), *sorted((ROOT / "bench").glob("*.c"))]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_fuzz_targets_and_benchmarks_compile_with_the_core_headers(program: Path, tmp_path: Path) -> None:
    stub = (
        tmp_path / "valgrind" / "callgrind.h"
    )  # only `make guard` needs the real one; the compiler prefers it where it exists
    stub.parent.mkdir()
    macros = set(re.findall(r"\bCALLGRIND_\w+\(?", program.read_text("utf-8")))
    stub.write_text("".join(f"#define {macro.replace('(', '(...)')}\n" for macro in macros))
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: packaging/setup.sh installs one"
    includes = [f"-I{place}" for place in (NATIVE, ROOT / "tests" / "native", ROOT / "bench")]
    command = [
        compiler,
        "-std=gnu11",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        *includes,
        "-idirafter",
        tmp_path,
        program,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_mutable_global_is_found_in_every_form(tmp_path: Path) -> None:
    source = tmp_path / "globals.c"
    source.write_text(
        'int zeroed; static int set = 3; static const char *const names[] = {"a", "b"};\n'
        "int f(int i) { static int calls; return ++calls + ++set + names[i & 1][0] + zeroed; }\n",
        encoding="utf-8",
    )
    compile_core(source, tmp_path / "globals.o")
    assert [name.split(".")[0] for name in sorted(mutable_symbols(tmp_path / "globals.o"))] == [
        "calls",
        "set",
        "zeroed",
    ]
