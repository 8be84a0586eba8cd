"""The micro benchmarks: builds micro.c as the core is built, runs it, and writes a table and JSON to bench/results/.

    make bench-micro                            or: python -m bench.micro

Invariant: a slow result is never a failure. The output says whether the goal for the timer wheel is met.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from bench import report
from native.build_native import compile_flags, core_files

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
WHEEL_GOAL_M = 10.0
DOCUMENTED = "20–45"


def build() -> Path:
    """Raises SystemExit with the package to install if there is no compiler."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "micro"
    sources = [ROOT / "bench" / "micro.c", *core_files("*.c")]
    command = [*shlex.split(os.environ.get("CC", "cc")), *compile_flags(False), f"-I{ROOT / 'native'}"]
    try:
        subprocess.run([*command, "-o", str(program), *map(str, sources)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"bench: cannot build micro: {error}; a C compiler is needed (apt-get install gcc libc6-dev)"
        ) from None
    return program


def rate(unit: str, ns: float) -> str:
    """Units a second: GB for bytes, otherwise millions."""
    return f"{1 / ns:.2f} GB/s" if unit == "byte" else f"{report.number(1000 / ns)} M/s"


def markdown(rows: list[tuple[str, str, float]], host: dict[str, object], load: float) -> str:
    wheel = [1000 / ns for name, _, ns in rows if name.startswith("wheel: insert and expire")]
    met = "met" if min(wheel) >= WHEEL_GOAL_M else "**not met**"
    lines = [
        f"# BlipMQ micro benchmarks, {datetime.date.today().isoformat()}",
        "",
        f"{host['processor']}, {host['cores']} cores, {host['system']}; load when it began: {load:.1f}.",
        "Each figure is the best of seven rounds in one thread: what the processor does when it is left alone.",
        "",
        "| operation | ns | a second |",
        "|---|---|---|",
        *(f"| {name} | {report.number(ns)} for each {unit} | {rate(unit, ns)} |" for name, unit, ns in rows),
        "",
        f"Timer wheel, insert and expire counted as one: {report.number(min(wheel))} to {report.number(max(wheel))}"
        f" million a second. Documented: {DOCUMENTED}. Goal: {WHEEL_GOAL_M:.0f}, {met}.",
    ]
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="(bench/results)"
    )
    arguments = parser.parse_args(words)
    program, host, load = build(), report.machine(), os.getloadavg()[0]
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    rows = [(name, unit, float(ns)) for name, unit, ns in (line.split("\t") for line in printed.splitlines())]
    page = markdown(rows, host, load)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{datetime.date.today().isoformat()}-micro"
    operations = [{"name": name, "unit": unit, "ns": ns} for name, unit, ns in rows]
    facts = {"date": datetime.datetime.now().isoformat(" ", "minutes"), "machine": host, "load": load}
    path.with_suffix(".json").write_text(
        json.dumps({**facts, "operations": operations}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
