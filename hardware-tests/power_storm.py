"""Publishers and subscribers of a device whose power is cut repeatedly; tests/crash keeps the records.

Invariant: a client notices a cut only by the end of its connection. No client connects before the broker has answered:
QEMU accepts connections for a guest that cannot answer yet.
"""

import asyncio
import random
import time

from crash.clients import Publisher, Subscriber
from crash.ledger import Ledger
from device import BROKER

TOPICS = ("site/a/temp", "site/a/state", "site/b/temp", "site/b/state")
MAX_IN_FLIGHT = 64
# Redeliveries must come from cuts, never from slow acknowledgements.
SETTINGS = b"[auth]\nallow_anonymous = true\n[qos1]\nmax_in_flight = 64\nack_timeout_ms = 3600000\n"
LOAD_SECONDS = (0.5, 4.0)
LOAD_SECONDS_MAX = 300
ACKNOWLEDGED_MIN = 20  # before each cut, so that data is at risk
DRAIN_SECONDS = 60  # without any new message
CONNECTED_SECONDS_MAX = 120


def tell(storm, cut):
    """Progress, for `pytest -s` and for the report of a failure."""
    known = f"{storm.ledger.acknowledged} acknowledged, ready again after {storm.boot_seconds[-1]} s"
    print(f"power cut {cut + 1} of {storm.cuts}: {known}", flush=True)


class Waits:
    """A client that connects only while the broker is known to answer, with longer timeouts for an emulated disk."""

    answer_seconds = 300

    async def connect(self):
        await self.storm.powered.wait()
        return await super().connect()


class PatientPublisher(Waits, Publisher):
    pass


class PatientSubscriber(Waits, Subscriber):
    pass


class PowerStorm:
    """`between(device)`: called each time the broker is ready again, before the load. `starting_share`: the share of
    cuts that happen during a start."""

    bytes_max, large_share = 4096, 0.0  # of the payloads: an emulated disk is slow

    def __init__(self, device, seed, cuts, starting_share=0.0, between=lambda device: None, publishers=2):
        self.device, self.cuts, self.starting_share, self.between = device, cuts, starting_share, between
        self.seed, self.dice, self.pace = seed, random.Random(seed), 0.05
        self.host, self.port = device.host, device.ports[BROKER]
        self.over = self.publishing_over = False
        self.absent_may_come = True
        self.ledger = Ledger(TOPICS, publishers, b"%016x" % self.dice.getrandbits(64), MAX_IN_FLIGHT)
        self.boot_seconds = []
        every, view = range(len(TOPICS)), self.ledger.view
        self.subscribers = [
            PatientSubscriber(self, view("prompt", every), "site/#"),
            PatientSubscriber(self, view("late", [0, 2]), "site/+/temp", away_seconds=2.0),
            PatientSubscriber(self, view("absent", [2, 3]), "site/b/#", absent=True),
        ]
        self.publishers = [PatientPublisher(self, number, every, 16) for number in range(publishers)]

    def newest_segment(self):
        """The WAL of a device is not looked at."""
        return 0

    async def _in_thread(self, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    async def _ready(self):
        """Power is on: wait for the broker, then allow the clients to connect."""
        await self._in_thread(self.device.wait_until_ready)
        self.boot_seconds.append(round(time.monotonic() - self.on_since, 1))
        await self._in_thread(self.between, self.device)
        self.powered.set()

    async def _load(self):
        """Run the load for a while, until some messages are acknowledged."""
        before, deadline = self.ledger.acknowledged, time.monotonic() + LOAD_SECONDS_MAX
        await asyncio.sleep(self.dice.uniform(*LOAD_SECONDS))
        while self.ledger.acknowledged < before + ACKNOWLEDGED_MIN:
            self.device.check_alive()
            for task in self.tasks:
                if task.done():
                    task.result()  # a client that failed says why
            assert time.monotonic() < deadline, f"nothing was acknowledged in {LOAD_SECONDS_MAX} s"
            await asyncio.sleep(0.05)

    async def _cut(self):
        """Wait until the clients have seen the end of their connections, then record the crash: earlier events must be
        recorded first."""
        self.powered.clear()
        self.device.cut_power()
        for client in (*self.publishers, *self.subscribers):
            if client.link is not None:
                if not self.device.ends_connections:
                    client.leave()
                await asyncio.wait_for(client.link.closed.wait(), CONNECTED_SECONDS_MAX)
        self.ledger.crash()

    def _power_on(self):
        self.on_since = time.monotonic()
        self.device.power_on()

    async def _cut_while_it_starts(self):
        await asyncio.sleep(self.dice.uniform(0.1, 1.0) * min(self.boot_seconds))
        self.device.cut_power()
        self._power_on()

    async def run(self, progress=tell):
        """From power-on to the last message. The ledger shows whether all guarantees were kept."""
        self.powered = asyncio.Event()
        self._power_on()
        self.tasks = tasks = []
        try:
            await self._ready()
            tasks += [asyncio.ensure_future(subscriber.run()) for subscriber in self.subscribers]
            subscribed = asyncio.gather(*(each.subscribed.wait() for each in self.subscribers))
            await asyncio.wait_for(subscribed, CONNECTED_SECONDS_MAX)
            tasks += [asyncio.ensure_future(publisher.run()) for publisher in self.publishers]
            for cut in range(self.cuts):
                self.absent_may_come = cut % 5 == 4
                await self._load()
                await self._cut()
                self._power_on()
                if self.dice.random() < self.starting_share:
                    await self._cut_while_it_starts()
                await self._ready()
                progress(self, cut)
            await self._drain()
        finally:
            self.over = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in (*self.publishers, *self.subscribers):
                client.leave()
        return self

    async def _drain(self):
        """Wait until every subscriber has all acknowledged messages, or no new message arrives."""
        self.publishing_over = self.absent_may_come = True
        delivered, quiet_since = -1, time.monotonic()
        while time.monotonic() < quiet_since + DRAIN_SECONDS:
            await asyncio.sleep(0.5)
            if not any(publisher.outstanding for publisher in self.publishers) and not self.ledger.lost():
                break
            now = sum(view.delivered for view in self.ledger.views)
            if now != delivered:
                delivered, quiet_since = now, time.monotonic()
        self.ledger.crash()

    def lost(self):
        return sum(map(len, self.ledger.lost().values()))


def run(device, seed, cuts, **options):
    return asyncio.run(PowerStorm(device, seed, cuts, **options).run())
