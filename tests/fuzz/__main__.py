"""`make fuzz`, `make fuzz-long`, `make fuzz-keep`: run every target for its share of the time and report the results.

Invariant: if a target failed or was not run, the exit status is 1 and the command to repeat it is printed.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from fuzz import kept, mutation, native, python

BUILD = native.ROOT / "build" / "fuzz"
INPUT_SECONDS_MAX = 25


def row(name: str, inputs: int, seconds: float, reached: str) -> None:
    print(f"    {name:12} {inputs:>12,} inputs {inputs / max(seconds, 1e-9):>10,.0f} a second   {reached}", flush=True)


def finding(name: str, artifact: Path, how: str, text: str) -> None:
    print(f"{text}\nfuzz: {name}: FINDING\n    the input: {artifact}\n    again:     {how}", file=sys.stderr)
    print(f"    once fixed, keep it: cp {artifact} {kept.KEPT / name}/WHAT_IT_IS.bin", file=sys.stderr)


def run_native(directory: Path, name: str, seconds: int) -> bool:
    again = native.replay(directory, name)
    if again.returncode:
        said = again.stderr.splitlines()
        artifact = next((Path(line) for line in reversed(said) if line.startswith("Running: ")), Path("see above"))
        finding(name, artifact, f"{directory}/fuzz_{name} INPUT", "\n".join(said[-60:]))
        return False
    outcome = native.run(directory, name, seconds)
    row(
        name, outcome.inputs, seconds, f"{outcome.edges:,} of {outcome.edges_all:,} branches of the core and the target"
    )
    if outcome.artifact is None:
        return True
    finding(name, outcome.artifact, f"{directory}/fuzz_{name} {outcome.artifact}", outcome.text)
    return False


def too_slow(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took more than {INPUT_SECONDS_MAX} s")


def run_python(directory: Path, name: str, seconds: int, seed: int) -> bool:
    target = python.TARGETS[name]

    def limited(data: bytes) -> None:
        signal.alarm(INPUT_SECONDS_MAX)
        target.run(data)
        signal.alarm(0)

    signal.signal(signal.SIGALRM, too_slow)
    first = [*target.first(), *kept.corpus(name), *kept.findings(name).values()]
    outcome = mutation.fuzz(limited, first, target.words, python.watched_files(target), seconds, seed)
    signal.alarm(0)
    row(name, outcome.inputs, seconds, f"{outcome.lines:,} lines")
    gathered = directory / "corpus" / name
    gathered.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(outcome.corpus):
        (gathered / f"{number:05}").write_bytes(data)
    if outcome.broken is None:
        return True
    data, error = outcome.broken
    artifact = directory / f"{name}-broken"
    artifact.write_bytes(data)
    finding(name, artifact, f"PYTHONPATH=tests {sys.executable} -m fuzz --input {artifact} {name}", "".join(
        traceback.format_exception(error)
    ))  # fmt: skip
    return False


def run(directory: Path, name: str, seconds: int, seed: int) -> bool:
    if name in native.TARGETS:
        return run_native(directory, name, seconds)
    return run_python(directory, name, seconds, seed)


def keep(directory: Path, name: str) -> None:
    """Save the minimal corpus of the gathered inputs in the source tree."""
    if name in native.TARGETS:
        inputs = native.minimize(directory, name)
    else:
        target = python.TARGETS[name]
        gathered = sorted((directory / "corpus" / name).glob("*"), key=lambda path: path.stat().st_size)
        inputs = mutation.minimal(target.run, [path.read_bytes() for path in gathered], python.watched_files(target))
    archive = kept.pack(name, inputs)
    print(f"    {name:12} {len(inputs):>6,} inputs in {archive.stat().st_size:>8,} bytes", flush=True)


def main() -> int:
    every = [*native.TARGETS, *python.TARGETS]
    parser = argparse.ArgumentParser(
        prog="fuzz", description="Fuzz every parser of BlipMQ; the targets: " + " ".join(every)
    )
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--minutes", type=int, help="for all targets together, instead")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--built", action="store_true", help="the programs in --directory are what is in the tree")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="of the Python targets' changes")
    parser.add_argument(
        "--keep", action="store_true", help="fuzz nothing; put what earlier runs gathered into tests/kept/fuzz"
    )
    parser.add_argument("--input", type=Path, help="run this file through the one target that is named")
    parser.add_argument("--directory", type=Path, default=BUILD, help="where programs, new inputs and findings go")
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=[])
    chosen = parser.parse_args()
    targets = chosen.targets or every
    if unknown := set(targets) - set(every):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {' '.join(every)}")
    if chosen.input and targets[0] in python.TARGETS:
        python.TARGETS[targets[0]].run(chosen.input.read_bytes())
        return 0
    directory: Path = chosen.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if not chosen.built and (built := [name for name in targets if name in native.TARGETS]):
        print("==> building the targets", flush=True)
        native.build(directory, fuzzer=True, targets=built)
    if chosen.keep:
        for name in targets:
            keep(directory, name)
        return 0
    seconds = max(1, chosen.minutes * 60 // len(targets)) if chosen.minutes else chosen.seconds
    seconds_each = ["--seconds", str(seconds), "--seed", str(chosen.seed), "--directory", str(directory), "--built"]

    def one(name: str) -> bool:  # in its own process, because the alarm and the trace are per process
        return subprocess.run([sys.executable, "-m", "fuzz", *seconds_each, name], check=False).returncode == 0

    if chosen.built:
        broken = [name for name in targets if not run(directory, name, seconds, chosen.seed)]
        return 1 if broken else 0
    print(f"==> {len(targets)} targets, {seconds} s each, {chosen.jobs} at a time, seed {chosen.seed}", flush=True)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        return 0 if all(list(pool.map(one, targets))) else 1


if __name__ == "__main__":
    sys.exit(main())
