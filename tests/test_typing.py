"""The package as type checkers see it: installed from the wheel, under mypy --strict.

The wheel is built only from the files of the project, so a forgotten file is missing here too.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(__file__).parent / "typed"
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
TIMEOUT_S = 300


def tracked(folder):
    """The files of `folder` under version control; without version control (a source archive), all files except build
    products."""
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [p.relative_to(ROOT).as_posix() for p in files if p.suffix != ".so" and p.parent.name != "__pycache__"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel without the core, which has no types."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in [*tracked("blipmq"), "native/proto/blip.fbs", "pyproject.toml", "setup.py", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(place)],
        cwd=source,
        env={**os.environ, "BLIPMQ_WITHOUT_CORE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def checked(wheel, tmp_path_factory):
    """The mypy output for the programs of a user who has installed the wheel: lines of "file:line: error: …"."""
    place = tmp_path_factory.mktemp("user")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    for program in PROGRAMS.glob("*.py"):
        shutil.copy(program, place)
    options = ["--strict", "--no-error-summary", "--cache-dir", str(place / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py", "mistakes.py"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place / "site")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_wheel_contains_every_module_and_its_type_markers(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"blipmq/py.typed", "blipmq/_native.pyi"} <= names
    assert {name for name in tracked("blipmq") if name.endswith((".py", ".pyi"))} <= names


def test_a_program_that_uses_every_method_passes_strict_type_checks(checked):
    assert [line for line in checked if not line.startswith("mistakes.py:")] == []


def test_a_type_error_in_a_program_is_reported_at_its_line(checked):
    lines = (PROGRAMS / "mistakes.py").read_text().splitlines()
    wanted = {number for number, line in enumerate(lines, 1) if line.endswith("# a mistake")}
    found = {int(m[1]) for line in checked if (m := re.match(r"mistakes\.py:(\d+): error:", line))}
    assert found == wanted
