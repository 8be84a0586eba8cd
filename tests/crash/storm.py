"""The storm: a broker under load is killed repeatedly, and its clients verify the guarantees.

Invariant: the broker is a real process, killed with SIGKILL at unpredictable moments, also during start and recovery.
With `power` each kill is a power cut that loses some or all unsynced data.
"""

import asyncio
import random
import signal
import socket
import sys
import time
from pathlib import Path

from broker_process import BrokerProcess

from crash.clients import Publisher, Subscriber
from crash.disk import Disk, Faults
from crash.ledger import DeadLetters, Impatient, Ledger, Unacknowledging

TOPICS = ("site/a/temp", "site/a/state", "site/b/temp", "site/b/state", "command/valve", "job/poison")
SITE, COMMAND, POISON = range(4), 4, 5
TTL_MS = {COMMAND: 1000}
BYTES_MAX = (16 * 1024, 16 * 1024, 4 * 1024)  # the possible limits at a start
DRAIN_SECONDS = 40  # without any new message
MAX_IN_FLIGHT = 64
SETTINGS = {
    "metrics.bind_addr": "",
    "server.max_message_size_bytes": BYTES_MAX[0],
    "wal.segment_size_bytes": 512 * 1024,
    "wal.max_bytes": 512 * 1024 * 1024,
    "wal.reserve_bytes": 0,
    "qos1.max_in_flight": MAX_IN_FLIGHT,
    "qos1.ack_timeout_ms": 3_600_000,  # redeliveries come only from crashes or reconnects
    "logging.level": "info",
}
WITHOUT_SYNC = Path(__file__).with_name("without_sync.py")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Storm:
    """One run. `shim`: the library of power.c for power cuts, None for plain kills. `no_sync`: the control run."""

    def __init__(self, directory, seed, cycles, shim=None, no_sync=False, settings=None, publishers=4, pace=0.03):
        self.directory, self.cycles, self.shim, self.no_sync, self.pace = Path(directory), cycles, shim, no_sync, pace
        self.seed, self.dice = seed, random.Random(seed)
        self.settings = {**SETTINGS, **(settings or {})}
        self.host, self.port = "127.0.0.1", free_port()
        self.over = self.publishing_over = self.absent_may_come = False
        self.ledger = Ledger(TOPICS, publishers, b"%016x" % self.dice.getrandbits(64), MAX_IN_FLIGHT, TTL_MS)
        self.bytes_max = self.settings["server.max_message_size_bytes"]
        self.broker = None
        self.crashes = {"while it started": 0, "under load": 0, "at a write or sync": 0}
        self.lost_ranges = self.cuts = 0
        self.start_seconds_most = 0.0
        wal = self.directory / "wal"
        self.disk = Disk(wal, self.directory / "journal") if shim else None
        self.faults = Faults(self.directory / "faults") if shim else None
        if self.faults:
            self.faults.page.sync_us = 3000
        self.settings["wal.directory"] = str(wal)
        self.settings["server.bind_addr"] = f"127.0.0.1:{self.port}"
        self.clients = [Publisher(self, number, self.publishes, 32) for number in range(publishers)]
        self._add_subscribers()

    publishes = (*SITE, COMMAND)
    limits = BYTES_MAX
    large_share = 0.02  # the share of payloads with any size

    def _add_subscribers(self):
        every, view = SITE, self.ledger.view
        self.subscribers = [
            Subscriber(self, view("prompt", every), "site/#"),
            Subscriber(self, view("slow", [3]), "site/b/state", ack_seconds=0.002),
            Subscriber(self, view("late", [0, 2]), "site/+/temp", away_seconds=1.5),
            Subscriber(self, view("restless", [0, 1]), "site/a/#", leaves_after=400),
            Subscriber(self, view("absent", [2, 3]), "site/b/#", absent=True),
            Subscriber(self, view("commanded", [COMMAND]), "command/#", away_seconds=6.0, leaves_after=100),
        ]
        shared = view("group", [1, 3], members=3)
        self.subscribers += [
            Subscriber(self, shared, "site/+/state", client_id=f"worker-{number}", group="workers", leaves_after=leaves)
            for number, leaves in enumerate((0, 300, 700))
        ]
        # The first member creates the group, durable or not; messages sent to it must arrive in both cases.
        mixed = view("mixed group", every, members=3)
        self.subscribers += [
            Subscriber(self, mixed, "site/#", f"mixed-{number}", "mixed", leaves_after=leaves, durable=durable)
            for number, (leaves, durable) in enumerate(((0, False), (500, True), (300, False)))
        ]
        self.clients += self.subscribers

    def newest_segment(self):
        """The number of the newest WAL file, for storms that need it."""
        return 0

    # ---- the broker ----

    def _start(self):
        command, variables = None, {}
        self.bytes_max = self.settings["server.max_message_size_bytes"] = self.dice.choice(self.limits)
        if self.no_sync:
            command = [sys.executable, str(WITHOUT_SYNC)]
        if self.shim:
            variables = {
                "LD_PRELOAD": str(self.shim),
                "CRASH_DIRECTORY": self.settings["wal.directory"],
                "CRASH_JOURNAL": str(self.disk.journal),
                "CRASH_FAULTS": str(self.faults.path),
            }
        self.broker = BrokerProcess(self.directory, self.settings, command, **variables)

    async def _ready(self):
        began = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(None, self.broker.get_ready)
        self.start_seconds_most = max(self.start_seconds_most, time.monotonic() - began)
        self.lost_ranges += len(self.broker.lines("log_damaged"))

    async def _dies_at_a_change(self):
        """Wait until it is killed directly after a write, a sync or a name change. False: there was none."""
        self.faults.page.die_after = self.dice.randint(1, 150)
        for _ in range(200):
            await asyncio.sleep(0.01)
            if self.broker.child.poll() is not None:
                return True
        self.faults.page.die_after = 0
        return False

    def life_seconds(self, starting):
        return self.dice.uniform(0.0, 0.35 if starting else 0.5)

    def life_ended(self):
        """The log of the killed broker is complete."""

    async def _crash(self):
        """Kill it at a random moment, sometimes with a power cut."""
        starting, exact = self.dice.random() < 0.25, bool(self.shim) and self.dice.random() < 0.5
        if not starting:
            await self._ready()
        kind = "while it started" if starting else "under load"
        if exact and await self._dies_at_a_change():
            kind = "at a write or sync"
        else:
            await asyncio.sleep(self.life_seconds(starting))
        self.broker.signal(signal.SIGKILL)
        status = await asyncio.get_running_loop().run_in_executor(None, self.broker.wait)
        if status != -signal.SIGKILL:
            self.ledger.fault(f"the broker ended by itself, {status}: " + "\n".join(self.broker.log[-30:]))
        self.crashes[kind] += 1
        # The page cache survives a process kill, so some of the kills also cut the power.
        if self.disk and (kind != "at a write or sync" or self.dice.random() < 0.6):
            self.disk.cut(self.dice)
            self.cuts += 1
        await asyncio.sleep(
            0.002
        )  # the clients see the end of their connections: earlier events are recorded before the crash
        self.ledger.crash()
        self.life_ended()

    # ---- the run ----

    async def run(self, progress=lambda storm, cycle: False):
        """`progress` is called after each cycle and returns true to end the storm. Returns the figures. `lost` and the
        faults of the ledger show whether all guarantees held."""
        began = time.monotonic()
        self._start()
        try:
            await self._ready()
            tasks = [asyncio.ensure_future(subscriber.run()) for subscriber in self.subscribers]
            await asyncio.wait_for(asyncio.gather(*(each.subscribed.wait() for each in self.subscribers)), 60)
            tasks += [asyncio.ensure_future(client.run()) for client in self.clients if client not in self.subscribers]
            for cycle in range(self.cycles):
                self.absent_may_come = cycle % 25 > 18
                await self._crash()
                self._start()
                if progress(self, cycle):
                    break
            await self._ready()
            await self._drain()
            self.over = True
            for client in self.clients:
                client.leave()
            await asyncio.wait_for(asyncio.gather(*tasks), 60)
            await asyncio.get_running_loop().run_in_executor(None, self.afterwards)
            await asyncio.get_running_loop().run_in_executor(None, self.broker.stop)
        finally:
            self.over = True
            self.broker.kill()
        return self.figures(time.monotonic() - began)

    async def _drain(self):
        """Wait until every subscriber has all acknowledged messages, or no new message arrives."""
        await asyncio.sleep(0.3)
        self.publishing_over = self.absent_may_come = True
        delivered, waited = -1, 0.0
        while waited < (20 if self.no_sync else DRAIN_SECONDS):
            await asyncio.sleep(0.5)
            unanswered = any(client.outstanding for client in self.clients if isinstance(client, Publisher))
            now = sum(view.delivered for view in self.ledger.views)
            if not unanswered and now == delivered and self.is_drained() and not self.ledger.lost():
                break
            waited = waited + 0.5 if now == delivered else 0.0
            delivered = now
        await asyncio.sleep(0.3)
        self.ledger.crash()
        if not self.ledger.ids_are_unique():
            self.ledger.fault("two messages have the same id")

    def is_drained(self):
        return True

    def afterwards(self):
        """All clients have disconnected from a running broker."""

    def figures(self, seconds):
        ledger = self.ledger
        return {
            "seed": self.seed,
            "cycles": sum(self.crashes.values()),
            "crashes": self.crashes,
            "cuts": self.cuts,
            "seconds": round(seconds),
            "sent": ledger.sent,
            "acknowledged": ledger.acknowledged,
            "refused": ledger.refused,
            "delivered": sum(view.delivered for view in ledger.views),
            "lost": sum(map(len, ledger.lost().values())),
            "faults": ledger.faults_count,
            "duplicates": {view.name: view.duplicates for view in ledger.views},
            "duplicates_most": {view.name: view.duplicates_most for view in ledger.views},
            "start_seconds_most": round(self.start_seconds_most, 2),
            "log_damaged": self.lost_ranges,
            "cut": {"bytes": self.disk.lost_bytes, "names": self.disk.lost_names} if self.disk else None,
        }


class PoisonStorm(Storm):
    """Messages that are never acknowledged fill the WAL: they become dead letters, and publishing continues."""

    publishes = (SITE[0], POISON)
    limits = (8 * 1024,)

    def __init__(self, directory, **options):
        settings = {
            "qos1.ack_timeout_ms": 100,
            "qos1.max_deliveries": 3,
            "qos1.max_in_flight": 256,
            "server.max_message_size_bytes": self.limits[0],
            "wal.max_bytes": 2 * 1024 * 1024,
        }
        super().__init__(directory, settings=settings, **options)

    def _add_subscribers(self):
        view = self.ledger.view
        self.ledger.dead = view("dead letters", [SITE[0], POISON], kind=DeadLetters)
        self.subscribers = [
            Subscriber(self, view("prompt", [SITE[0]], kind=Impatient), "site/#", leaves_after=500),
            Subscriber(
                self, view("poisoned", [POISON], kind=Unacknowledging), "job/#", ack_seconds=None, leaves_after=300
            ),
            Subscriber(self, self.ledger.dead, "$dlq/#"),
        ]
        self.clients += self.subscribers


def run(directory, progress=lambda storm, cycle: False, kind=Storm, **options):
    """One complete storm: (figures, ledger)."""
    storm = kind(directory, **options)
    return asyncio.run(storm.run(progress)), storm.ledger
