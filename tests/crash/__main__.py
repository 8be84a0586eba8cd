"""`make crash`: the long form of tests/test_crash.py. It writes its figures into docs/DURABILITY.md.

Invariant: the figures are written only if every guarantee held and the control run, which does not sync, lost data.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from broker_process import ROOT, BrokerProcess

from crash import behind, disk, lease, storm

PAGE = ROOT / "docs" / "DURABILITY.md"
SECTION = "## Figures\n"  # the last section of the page
MIB = 1024 * 1024
ROWS = (
    ("crashes", lambda figures: sum(figures["crashes"].values())),
    ("of them during a start or recovery", lambda figures: figures["crashes"]["while it started"]),
    ("of them with a power cut", lambda figures: figures["cuts"]),
    ("published with QoS 1", lambda figures: figures["sent"]),
    ("refused, because the WAL was full", lambda figures: figures["refused"]),
    ("acknowledged", lambda figures: figures["acknowledged"]),
    ("delivered to all subscriptions", lambda figures: figures["delivered"]),
    ("subscriptions that ended", lambda figures: figures.get("expired", 0)),
    ("of them reported before a kill", lambda figures: figures.get("expired_told", 0)),
    ("over the quota: dead letters, or dropped", lambda figures: figures.get("over_quota", 0)),
    ("acknowledged and lost", lambda figures: figures["lost"]),
    ("never published, changed, reordered, late, unmarked or too often", lambda figures: figures["faults"]),
    ("most duplicates of one subscription after one crash", lambda figures: max(figures["duplicates_most"].values())),
    ("unsynced bytes lost in cuts", lambda figures: (figures["cut"] or {"bytes": 0})["bytes"]),
    ("unsynced changes of names lost in cuts", lambda figures: (figures["cut"] or {"names": 0})["names"]),
    ("seconds", lambda figures: figures["seconds"]),
    ("seed", lambda figures: figures["seed"]),
)


def shown(value):
    return f"{value:,}" if isinstance(value, int) else str(value)


def progress_of(title, until):
    def progress(run, cycle):
        """True: start no more cycles."""
        ledger = run.ledger
        if cycle % 50 == 49:
            print(
                f"    {title}: {cycle + 1} crashes, {ledger.acknowledged:,} acknowledged, {ledger.faults_count} faults",
                flush=True,
            )
        return time.monotonic() > until

    return progress


def in_directory(work):
    """Run `work(directory)` in a new directory, which is deleted after success and kept after a failure."""
    directory = Path(tempfile.mkdtemp(prefix="blipmq-crash-"))
    try:
        result = work(directory)
    except BaseException:
        print(f"what is left of it: {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)
    return result


def storm_of(title, until, control=False, **options):
    """Run one storm; returns its figures. Exits if a guarantee was violated or, in the control run, if none was."""
    print(f"==> {title}, seed {options['seed']}", flush=True)
    figures, ledger = in_directory(lambda directory: storm.run(directory, progress_of(title, until), **options))
    lost = ledger.lost()
    if control and not lost and not ledger.faults:
        sys.exit("the control run lost nothing: the checker proves nothing")
    if not control and (lost or ledger.faults):
        told = "\n".join([f"{title}: a promise was broken: {figures}", *ledger.faults, str(lost)[:2000]])
        print(told, flush=True)  # at once, because other storms are running
        sys.exit(told)
    print(f"    {title}: {figures}", flush=True)
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


def section(runs, behind_figures):
    lines = [
        "Written by `make crash`. tests/crash/ defines the rows and the storm.",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.system()} {platform.machine()}, {os.cpu_count()} processors, "
        "two storms at a time.",
        "",
        "The storm has subscribers with different behaviour, a group whose members differ in their flags, and payloads of",
        "all sizes up to a limit that changes between two starts. Messages with a time to live must not come late.",
        "The storm with poison has messages that nobody acknowledges. They fill a WAL of 2 MiB, and each must become a",
        "dead letter. In the storms with a quota `qos1.session_log_bytes` is 3 MiB and `qos1.session_expiry_ms` is 1,000. A",
        "subscription may end only if nobody was connected to it for that long. Then either all its messages end with it, or",
        "none. A message may become a dead letter, or be dropped, only if the WAL grew by the quota since it was stored.",
        "",
        f"| | {' | '.join(runs)} |",
        f"|---|{'---:|' * len(runs)}",
    ]
    lines += [f"| {name} | {' | '.join(shown(value(figures)) for figures in runs.values())} |" for name, value in ROWS]
    lines += [
        "",
        f"A durable subscriber that was away for {behind_figures['messages']:,} messages of 200 bytes, with",
        f"`limits.memory_bytes` of 64 MiB: all messages came, in order, in {behind_figures['catch_up_seconds']} s; "
        f"the broker had {behind_figures['rss_bytes_most'] // MIB} MiB of its own resident memory at most.",
        f"A restart after a kill -9 with all of them pending was ready after {behind_figures['ready_seconds']} s.",
    ]
    return "\n".join(lines) + "\n"


def all_storms(seed, cycles, until, shim):
    """{title: figures} of all storms, two at a time, the short ones first."""
    some = max(1, cycles // 10)
    storms = {
        "kill -9": {"seed": seed + 2, "cycles": cycles},
        "power cuts": {"seed": seed + 1, "cycles": cycles, "shim": shim},
        "power cuts, poison in a full log": {
            "seed": seed + 3, "cycles": 2 * some, "shim": shim, "kind": storm.PoisonStorm,
        },
        "power cuts, quota to dead letters": {
            "seed": seed + 4, "cycles": some, "shim": shim, "kind": lease.LeaseStorm,
        },
        "kill -9, quota drops": {"seed": seed + 5, "cycles": some, "kind": lease.DroppingStorm},
    }  # fmt: skip
    with ProcessPoolExecutor(2) as pool:
        began = {title: pool.submit(storm_of, title, until=until, **storms[title]) for title in reversed(storms)}
        return {title: began[title].result() for title in storms}


def main():
    options = argparse.ArgumentParser(prog="make crash", description="Kill a broker, and look what it kept.")
    options.add_argument("--cycles", type=int, default=1000)
    options.add_argument("--behind", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options.add_argument("--minutes", type=float, default=600, help="then no storm begins another cycle")
    chosen = options.parse_args()
    until = time.monotonic() + 60 * chosen.minutes
    tools = Path(tempfile.mkdtemp(prefix="blipmq-shim-"))
    shim = disk.build(tools)
    control = storm_of(
        "the control run: power cuts, no syncs", until, True, seed=chosen.seed, cycles=10, shim=shim, no_sync=True
    )
    figures = far_behind(chosen.behind)
    runs = all_storms(chosen.seed, chosen.cycles, until, shim)
    runs["power cuts, no syncs (control)"] = control
    shutil.rmtree(tools)
    before = PAGE.read_text(encoding="utf-8").split(SECTION)[0]
    PAGE.write_text(f"{before}{SECTION}\n{section(runs, figures)}", encoding="utf-8")
    print(f"==> {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
