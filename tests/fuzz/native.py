"""The fuzz targets in C: native/fuzz/fuzz_NAME.c, built with clang's libFuzzer, or with any compiler to replay inputs.

Invariant: the program of a target takes input files as its arguments; without libFuzzer it only runs them (replay.c).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fuzz import kept, seeds

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
SOURCES = NATIVE / "fuzz"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in SOURCES.glob("fuzz_*.c"))
FLAGS = [
    "-std=gnu11",
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=all",
    "-DBQ_CHECK",
    f"-I{NATIVE}",
    "-pthread",
]
# The module with OpenSSL: its objects and libraries are only in its own target.
TLS = NATIVE / "tls"
TLS_LIBRARIES = ["-lssl", "-lcrypto"]
# A target that replaces functions (the disk, the allocator) defines the symbols that the linker redirects calls to.
WRAPPED = re.compile(r"__wrap_(\w+)")
INPUT_SECONDS_MAX = 25
INPUT_BYTES_MAX = 4096
RSS_MB_MAX = 2048


class Outcome(NamedTuple):
    """The result of a target run. `artifact` is the failing input, None if none failed."""

    inputs: int
    edges: int
    edges_all: int
    artifact: Path | None
    text: str


def build(directory: Path, fuzzer: bool, targets: list[str] | None = None) -> None:
    """Build the programs DIRECTORY/fuzz_NAME; with `fuzzer` they contain libFuzzer (clang), else only a replay (CC)."""
    compiler = ["clang"] if fuzzer else os.environ.get("CC", "cc").split()
    objects = directory / "objects"
    shutil.rmtree(objects, ignore_errors=True)
    (objects / "tls").mkdir(parents=True)
    core = "-fsanitize=address,undefined" + (",fuzzer-no-link" if fuzzer else "")
    whole = "-fsanitize=address,undefined" + (",fuzzer" if fuzzer else "")

    def compile_one(source: Path) -> None:
        place = objects / "tls" if source.parent == TLS else objects
        subprocess.run([*compiler, *FLAGS, core, "-c", str(source), "-o", str(place / f"{source.stem}.o")], check=True)

    def link_one(target: str) -> None:
        source = SOURCES / f"fuzz_{target}.c"
        replay = [] if fuzzer else [str(SOURCES / "replay.c")]
        secure = [*map(str, sorted((objects / "tls").glob("*.o"))), *TLS_LIBRARIES] if target == "tls" else []
        files = [str(source), *replay, *map(str, sorted(objects.glob("*.o"))), *secure]
        subprocess.run(
            [*compiler, *FLAGS, whole, *files, *wrapped(target), "-o", str(directory / f"fuzz_{target}")], check=True
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, (path for path in sorted(NATIVE.rglob("*.c")) if path.parent != SOURCES)))
        list(pool.map(link_one, TARGETS if targets is None else targets))


def wrapped(target: str) -> list[str]:
    """Linker options for the functions that a target replaces."""
    names = sorted(set(WRAPPED.findall(_with_includes(SOURCES / f"fuzz_{target}.c"))))
    return [f"-Wl,--wrap={name}" for name in names]


def _with_includes(source: Path) -> str:
    """The source of a target with the headers next to it."""
    text = source.read_text(encoding="utf-8")
    beside = [SOURCES / name for name in re.findall(r'#include "(\w+\.h)"', text)]
    return text + "".join(_with_includes(header) for header in beside if header.exists())


def replay(directory: Path, target: str) -> subprocess.CompletedProcess[str]:
    """Run all saved inputs of a target through its program."""
    program = str(directory / f"fuzz_{target}")
    files = kept.unpack(target, directory / "kept" / target)
    return subprocess.run([program, *map(str, files)], capture_output=True, text=True, check=False, timeout=900)


def run(directory: Path, target: str, seconds: int) -> Outcome:
    """Fuzz one target, starting with its saved inputs and seeds. New inputs are collected in DIRECTORY/corpus/NAME."""
    corpus, first = directory / "corpus" / target, directory / "seeds" / target
    corpus.mkdir(parents=True, exist_ok=True)
    seeds.write(target, first)
    kept.unpack(target, directory / "kept" / target)
    prefix = directory / f"{target}-"
    command = [
        str(directory / f"fuzz_{target}"), f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={RSS_MB_MAX}", f"-max_len={INPUT_BYTES_MAX}", "-print_final_stats=1", f"-artifact_prefix={prefix}",
        str(corpus), str(first), str(directory / "kept" / target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    (directory / f"{target}.log").write_text(done.stderr, encoding="utf-8")
    written = re.findall(r"Test unit written to (\S+)", done.stderr)
    broken = done.returncode != 0
    return Outcome(
        inputs=int(_last(r"stat::number_of_executed_units: *(\d+)", done.stderr)),
        edges=int(_last(r"cov: (\d+)", done.stderr)),
        edges_all=int(_last(r"Loaded 1 PC tables \((\d+) PCs\)", done.stderr)),
        artifact=(Path(written[-1]) if written else directory / f"{target}.log") if broken else None,
        text="\n".join(done.stderr.splitlines()[-60:]) if broken else "",
    )


def minimize(directory: Path, target: str) -> list[bytes]:
    """The smallest set of collected, seed and saved inputs with the same coverage."""
    merged = directory / "minimal" / target
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    sources = [directory / part / target for part in ("corpus", "seeds", "kept")]
    command = [
        str(directory / f"fuzz_{target}"),
        "-merge=1",
        "-use_counters=0",
        f"-max_len={INPUT_BYTES_MAX}",
        str(merged),
    ]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise SystemExit(f"fuzz: {target}: its corpus cannot be merged:\n{done.stderr[-3000:]}")
    return [path.read_bytes() for path in sorted(merged.iterdir())]


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return found[-1] if found else "0"
