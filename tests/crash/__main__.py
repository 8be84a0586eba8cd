"""`make crash`: the long form of tests/test_crash.py, and its figures into docs/DURABILITY.md.

Invariant: the figures are written only if every promise was kept and the control run, which syncs nothing, lost data.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

from broker_process import ROOT, BrokerProcess

from crash import behind, disk, storm

PAGE = ROOT / "docs" / "DURABILITY.md"
SECTION = "## Figures\n"  # the page's last one
MIB = 1024 * 1024
ROWS = (
    ("crashes", lambda figures: sum(figures["crashes"].values())),
    ("of them while it started or recovered", lambda figures: figures["crashes"]["while it started"]),
    ("of them with a power cut", lambda figures: figures["cuts"]),
    ("published with QoS 1", lambda figures: figures["sent"]),
    ("refused, because the log was full", lambda figures: figures["refused"]),
    ("acknowledged", lambda figures: figures["acknowledged"]),
    ("delivered to all subscriptions", lambda figures: figures["delivered"]),
    ("acknowledged and lost", lambda figures: figures["lost"]),
    ("invented, changed, reordered, late, unmarked or too often", lambda figures: figures["faults"]),
    ("most duplicates of one subscription after one crash", lambda figures: max(figures["duplicates_most"].values())),
    ("bytes written, not synced and cut", lambda figures: (figures["cut"] or {"bytes": 0})["bytes"]),
    ("names changed, not synced and cut", lambda figures: (figures["cut"] or {"names": 0})["names"]),
    ("seconds", lambda figures: figures["seconds"]),
    ("seed", lambda figures: figures["seed"]),
)


def shown(value):
    return f"{value:,}" if isinstance(value, int) else str(value)


def progress(run, cycle):
    if cycle % 50 == 49:
        ledger = run.ledger
        print(
            f"    {cycle + 1} crashes, {ledger.acknowledged:,} acknowledged, {ledger.faults_count} faults", flush=True
        )


def in_directory(work):
    """`work(directory)` in a directory that goes when it is done, and stays if it fails, for a look."""
    directory = Path(tempfile.mkdtemp(prefix="blipmq-crash-"))
    try:
        result = work(directory)
    except BaseException:
        print(f"what is left of it: {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)
    return result


def storm_of(title, control=False, **options):
    """Run one; its figures. Exits if a promise was broken, or, for the control run, if none was."""
    print(f"==> {title}, seed {options['seed']}", flush=True)
    figures, ledger = in_directory(lambda directory: storm.run(directory, progress, **options))
    lost = ledger.lost()
    if control and not lost and not ledger.faults:
        sys.exit("the control run lost nothing: the checker proves nothing")
    if not control and (lost or ledger.faults):
        sys.exit("\n".join([f"a promise was broken: {figures}", *ledger.faults, str(lost)[:2000]]))
    return figures


def far_behind(count):
    print(f"==> {count:,} messages behind", flush=True)
    brokers = []

    def work(directory):
        def start(settings):
            place = directory / f"broker{len(brokers)}"
            place.mkdir()
            brokers.append(BrokerProcess(place, settings))
            return brokers[-1].get_ready()

        try:
            figures = behind.fall_behind(
                start, {**behind.SETTINGS, "wal.directory": str(directory / "wal")}, count, 200
            )
            brokers[-1].stop()
            return figures
        finally:
            for broker in brokers:
                broker.kill()

    return in_directory(work)


def section(kills, cuts, poison, control, behind_figures):
    lines = [
        "Written by `make crash`. What the rows mean and how the storm works: tests/crash/.",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.system()} {platform.machine()}, {os.cpu_count()} processors.",
        "",
        "The storm has subscribers of several habits, a group whose members differ in their flags, and payloads of every size",
        "up to a limit that changes between two starts. Messages with a time to live must not come late. The storm with poison",
        "has messages that nobody acknowledges. They fill a log of 2 MiB, and each must come as a dead letter.",
        "",
        "| | kill -9 | power cuts | power cuts, poison in a full log | power cuts, no syncs (control) |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {' | '.join(shown(value(run)) for run in (kills, cuts, poison, control))} |"
        for name, value in ROWS
    ]
    lines += [
        "",
        f"A durable subscriber that was away for {behind_figures['messages']:,} messages of 200 bytes, with",
        f"`limits.memory_bytes` of 64 MiB: all came, in order, in {behind_figures['catch_up_seconds']} s; the broker had "
        f"{behind_figures['rss_bytes_most'] // MIB} MiB of its own resident at most.",
        f"A restart after a kill -9 with all of them pending was ready after {behind_figures['ready_seconds']} s.",
    ]
    return "\n".join(lines) + "\n"


def main():
    options = argparse.ArgumentParser(prog="make crash", description="Kill a broker, and look what it kept.")
    options.add_argument("--cycles", type=int, default=1000)
    options.add_argument("--behind", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    chosen = options.parse_args()
    tools = Path(tempfile.mkdtemp(prefix="blipmq-shim-"))
    shim = disk.build(tools)
    seed, cycles = chosen.seed, chosen.cycles
    control = storm_of("the control run: power cuts, no syncs", True, seed=seed, cycles=10, shim=shim, no_sync=True)
    figures = far_behind(chosen.behind)
    cuts = storm_of("power cuts", seed=seed + 1, cycles=cycles, shim=shim)
    poison = storm_of(
        "power cuts, poison in a full log", seed=seed + 3, cycles=cycles // 5, shim=shim, kind=storm.PoisonStorm
    )
    kills = storm_of("kill -9", seed=seed + 2, cycles=cycles)
    shutil.rmtree(tools)
    before = PAGE.read_text(encoding="utf-8").split(SECTION)[0]
    PAGE.write_text(f"{before}{SECTION}\n{section(kills, cuts, poison, control, figures)}", encoding="utf-8")
    print(f"==> {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
