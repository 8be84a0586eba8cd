"""The core with one planted bug: as a program that replays fuzz inputs, and as the C module of the package.

Invariant: every source is compiled once for all bugs, without optimization; a bug costs one compilation and one link.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import planted
from fuzz import native

CC = os.environ.get("CC", "cc").split()
CHECKED = [flag for flag in native.FLAGS if flag.startswith(("-I", "-D"))]  # with core_check
FLAGS = ["-std=gnu11", "-O0", "-fPIC", "-fno-strict-aliasing", "-UNDEBUG", "-pthread", *CHECKED]
TEST_SECONDS = 120
LIVES_SECONDS = 60  # the unchanged core needs two or three


def compiled(source: Path, object_: Path, *flags: str) -> Path:
    subprocess.run([*CC, *FLAGS, *flags, "-c", str(source), "-o", str(object_)], check=True)
    return object_


class Builds:
    """The objects of the unchanged core in `directory`, and programs linked from them with one file replaced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        sources = sorted(
            path for path in planted.NATIVE.rglob("*.c") if path.parent not in (native.SOURCES, native.TLS)
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = pool.map(lambda source: compiled(source, directory / f"{source.stem}.o"), sources)
            self.objects = dict(zip((source.name for source in sources), objects, strict=True))
        self.glue = self._glue()

    def with_bug(self, name: str) -> list[str]:
        """All objects of the core, one of them with the bug."""
        place = self.directory / name
        place.mkdir()
        bad = compiled(planted.source_with(name, place), place / "planted.o")
        return [str(bad if file == planted.BUGS[name].file else good) for file, good in self.objects.items()]

    def replayer(self, name: str, target: str, objects: list[str]) -> Path:
        """The program of a fuzz target, DIRECTORY/NAME-TARGET."""
        program = self.directory / f"{name}-{target}"
        files = [str(native.SOURCES / f"fuzz_{target}.c"), str(native.SOURCES / "replay.c"), *objects]
        subprocess.run([*CC, *FLAGS, *files, *native.wrapped(target), "-o", str(program)], check=True)
        return program

    def package(self, name: str, objects: list[str]) -> Path:
        """A source tree whose blipmq has that core; its tests are the real ones."""
        tree = self.directory / f"{name}-tree"
        shutil.copytree(
            planted.ROOT / "blipmq", tree / "blipmq", ignore=shutil.ignore_patterns("_native*.so", "__pycache__")
        )
        for part in ("tests", "native", "pyproject.toml"):
            (tree / part).symlink_to(planted.ROOT / part)
        module = tree / "blipmq" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        subprocess.run([*CC, "-shared", "-pthread", str(self.glue), *objects, "-o", str(module)], check=True)
        return tree

    def _glue(self) -> Path:
        """The cffi output for bq_api.h."""
        source = self.directory / "_native.c"
        builder = runpy.run_path(str(planted.NATIVE / "build_native.py"))["ffibuilder"]
        builder.emit_c_code(str(source))
        return compiled(source, self.directory / "_native.o", f"-I{sysconfig.get_path('include')}")


def breaks(program: Path, inputs: list[str]) -> bool:
    """Whether the program of a target reports a violated invariant for one of the inputs, crashes, or hangs."""
    try:
        done = subprocess.run(
            [str(program), *inputs], capture_output=True, text=True, timeout=LIVES_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    assert done.returncode <= 0, done.stderr[-3000:]
    return done.returncode != 0


def fails(tree: Path, file: str, test: str) -> bool:
    """Whether a test of that file whose name starts with `test` fails in that tree. A test that cannot run raises."""
    variables = {**os.environ, "PYTHONPATH": str(tree)}
    check = [sys.executable, "-c", "import blipmq._native as m; print(m.__file__)"]
    where = subprocess.run(check, cwd=tree, env=variables, capture_output=True, text=True, check=True).stdout
    assert Path(where.strip()).is_relative_to(tree), where
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", test, file]
    done = subprocess.run(
        command, cwd=tree, env=variables, capture_output=True, text=True, timeout=TEST_SECONDS, check=False
    )
    assert done.returncode <= 1, done.stdout[-3000:] + done.stderr[-3000:]
    return done.returncode != 0
