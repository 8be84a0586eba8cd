"""The guard: the core's instructions for one delivered message, compared with the record.

    make guard                                  or: python -m bench.guard
    make guard ARGS=--record                    write the measured figures as the record of this compiler
    make guard ARGS='--functions 1x1/64'        show the instructions of a shape by function

guard.c drives the core and callgrind counts. Other programs, caches and clocks do not change the figures. Counted are the code
of native/ and the memory functions called from there (as plain loops, see plain_memory.c), not the driver, the C library and
the kernel. One property of the processor matters: without carry-less multiplication QoS 1 takes 9 % more.

Invariant: figures are compared with those of the same architecture, compiler and major version. A compiler without a record is
compared with the nearest one, and fails only with more than 50 % above it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from native.build_native import compile_flags, core_files

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "guard"
RECORD = ROOT / "bench" / "guard.json"
PAGE = ROOT / "docs" / "PERFORMANCE.md"
PAGE_TABLE = re.compile(r"(?<=<!-- guard -->\n).*?(?=<!-- /guard -->)", re.DOTALL)
TOLERANCE = 0.10
TOLERANCE_OTHER_COMPILER = 0.5  # gcc 11 and clang 14 are within a sixth of gcc 12
NOT_COMPILED = {"storage_posix.c"}  # guard.c has a disk in memory instead
MEMORY_FUNCTIONS = {"memcpy", "memmove", "memset", "memcmp"}
OF_THE_CORE = re.compile(r"(?<!tests)/native/(?:\w+/)?\w+\.[ch]$")


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or ("gcc" if shutil.which("gcc") else "cc"))


def compiler_name(command: list[str]) -> str:
    """Architecture, compiler and its major version: `x86_64, gcc 12`."""
    macros = run([*command, "-dM", "-E", "-x", "c", os.devnull])
    versions = dict(re.findall(r"^#define (__clang_major__|__GNUC__) (\d+)$", macros, re.MULTILINE))
    clang = versions.get("__clang_major__")
    return f"{platform.machine()}, {f'clang {clang}' if clang else 'gcc ' + versions.get('__GNUC__', '?')}"


def build(command: list[str]) -> None:
    """Compiles the driver and the core as setup.py does, without the library's checked copies, which hide plain_memory.c."""
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = [flag for flag in compile_flags(False) if "FORTIFY" not in flag] + ["-U_FORTIFY_SOURCE", "-gdwarf-4"]
    includes = [f"-I{ROOT / place}" for place in ("native", "tests/native", "bench")]
    memory = BUILD / "plain_memory.o"
    plain = [
        "-fno-builtin",
        "-fno-tree-vectorize",
    ]  # otherwise gcc turns its loops into calls of memcpy, which call themselves
    plain += [] if "clang" in compiler_name(command) else ["-fno-tree-loop-distribute-patterns"]
    sources = [ROOT / "bench" / "guard.c", ROOT / "bench" / "wire.c", ROOT / "tests" / "native" / "sim_disk.c"]
    sources += [path for path in core_files("*.c") if path.name not in NOT_COMPILED]
    run([*command, *flags, *plain, "-c", "-o", str(memory), str(ROOT / "bench" / "plain_memory.c")])
    run([*command, *flags, *includes, "-o", str(BUILD / "guard"), *map(str, sources), str(memory)])


def run(command: list[str]) -> str:
    """Its output. Raises SystemExit with the end of its error text on failure."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"guard: cannot run {command[0]}: {error.strerror}; packaging/setup.sh valgrind") from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise SystemExit(f"guard: {' '.join(command[:2])} ... ended with code {done.returncode}:\n{said}")
    return done.stdout


@dataclasses.dataclass(frozen=True)
class Count:
    """One shape: delivered messages, and the instructions for all of them by function of the core."""

    delivered: int
    functions: Counter[str]

    @property
    def each(self) -> float:
        return sum(self.functions.values()) / self.delivered


def count() -> dict[str, Count]:
    """Runs the driver under callgrind, which writes one profile for each shape."""
    profile = BUILD / "profile"
    for old in BUILD.glob("profile*"):
        old.unlink()
    options = [f"--callgrind-out-file={profile}", "--compress-strings=no", "--compress-pos=no"]
    printed = run(["valgrind", "--quiet", "--tool=callgrind", *options, str(BUILD / "guard")])
    counts = {}
    for number, line in enumerate(printed.splitlines(), 1):
        shape, _, delivered = line.partition("\t")
        counts[shape] = Count(int(delivered), instructions(Path(f"{profile}.{number}").read_text(encoding="utf-8")))
    return counts


def instructions(profile: str) -> Counter[str]:
    """Instructions by function: lines of the core's files, and calls from there to the memory functions.

    `fl=`, `fi=` and `fe=` name the file of the following lines: of a function, or of lines inlined into it. The line after
    `calls=` has the cost of the callee.
    """
    costs: Counter[str] = Counter()
    file, core, function, callee = "", False, "", ""
    lines = iter(profile.splitlines())
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            if core and line[:1].isdigit():
                costs[function] += int(line.split()[1])
        elif key in ("fl", "fi", "fe"):
            file = value
        elif key == "fn":
            core, function = bool(OF_THE_CORE.search(file)), value
        elif key == "cfn":
            callee = value
        elif key == "calls":
            cost = int(next(lines).split()[1])
            if core and callee in MEMORY_FUNCTIONS:
                costs[f"{callee}, for {function}"] += cost
    return costs


def compare(counts: dict[str, Count], name: str, records: dict[str, dict[str, float]]) -> tuple[list[str], bool]:
    """The lines to print, and whether all figures are within the limits."""
    record = name if name in records else nearest(name, records)
    known = records.get(record or "", {})
    limit = 1 + (TOLERANCE if record == name else TOLERANCE_OTHER_COMPILER)
    lines = [f"Instructions of the core per delivered message, {name}:", ""]
    worse, better = [], []
    for shape, counted in counts.items():
        was = known.get(shape)
        lines.append(
            f"  {shape:<34} {counted.each:9.1f}" + (f"  {counted.each / was - 1:+7.1%}" if was else "      new")
        )
        if was and counted.each > was * limit:
            worse.append(shape)
        elif record == name and (was is None or counted.each < was * (1 - TOLERANCE)):
            better.append(shape)
    lines += ["", *remarks(name, record, worse, better, [shape for shape in known if shape not in counts])]
    return lines, not worse


def remarks(name: str, record: str | None, worse: list[str], better: list[str], gone: list[str]) -> list[str]:
    to_record = "make guard ARGS=--record"
    lines = []
    if record is None:
        lines.append(f"There is no record for this architecture, so nothing was compared. To make one: {to_record}")
    elif record != name:
        lines.append(f"There is no record for this compiler: compared with {record}; only half as much again fails.")
    if worse:
        lines.append(f"FAILED: more instructions than on record in {', '.join(worse)}.")
        lines.append(f"See where they go: make guard ARGS='--functions {worse[0]}'. If they are worth it: {to_record}")
    if better or (gone and record == name):
        what = ", ".join(better + [f"{shape} (gone)" for shape in gone])
        lines.append(f"The record is out of date for {what}: {to_record}, and commit what it changes.")
    return lines or [f"All within {TOLERANCE:.0%} of the record."]


def nearest(name: str, records: dict[str, dict[str, float]]) -> str | None:
    """A record of the same architecture, if possible of the same compiler."""
    machine, _, brand = name.partition(", ")
    same = [other for other in records if other.partition(", ")[0] == machine]
    return max(same, key=lambda other: other.split()[1] == brand.split()[0], default=None)


def write_record(counts: dict[str, Count], name: str, records: dict[str, dict[str, float]]) -> None:
    records[name] = {shape: round(counted.each, 2) for shape, counted in counts.items()}
    RECORD.write_text(json.dumps(dict(sorted(records.items())), indent=2) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PAGE_TABLE.sub(lambda _: table(records), page), encoding="utf-8")


def table(records: dict[str, dict[str, float]]) -> str:
    """The record as a table of docs/PERFORMANCE.md, with a column for each compiler."""
    names = sorted(records)
    shapes = list(dict.fromkeys(shape for name in names for shape in records[name]))
    cells = [[shape, *(f"{records[name].get(shape, 0):,.1f}" for name in names)] for shape in shapes]
    rows = [["shape", *names], ["---"] * (len(names) + 1), *cells]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--record", action="store_true", help="write what is measured to bench/guard.json and docs/PERFORMANCE.md"
    )
    parser.add_argument(
        "--functions", metavar="SHAPE", help="show where the instructions of a shape go, compare nothing"
    )
    arguments = parser.parse_args(words)
    command = compiler()
    build(command)
    name, counts = compiler_name(command), count()
    if arguments.functions:
        if arguments.functions not in counts:
            raise SystemExit(f"guard: no shape {arguments.functions!r}; there are: {'; '.join(counts)}")
        counted = counts[arguments.functions]
        for function, cost in counted.functions.most_common(30):
            print(f"{cost / counted.delivered:9.1f}  {function}")
        return 0
    records = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if arguments.record:
        write_record(counts, name, records)
    lines, well = compare(counts, name, records)
    print("\n".join(lines))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
