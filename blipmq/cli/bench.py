"""blipmq-cli bench: a load test with publishers and subscribers in one process, against one broker.

    payload   8 bytes: planned send time (ns of the monotonic clock) | 8: its number | 2: its publisher | zeros

Publishers connect, subscribers subscribe, then each publisher sends its share. With --rate, message i is planned for
start + i/rate. Its latency counts from that time even if it was sent later, so a stall shows in every message that it
delayed. Topics contain a random name, so that two runs do not see each other.
Invariant: it always ends: publishing ends at the given time or number; waiting for messages on their way ends after
QUIET_S without a message, or after DRAIN_S.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from struct import Struct
from typing import Any

from blipmq.base.stdio import put_error, say
from blipmq.cli.access import find_address, find_tls, read_key
from blipmq.cli.bench_result import Result, render_progress, render_result
from blipmq.cli.terminal import Repaint, Terminal, repaints
from blipmq.client.client import Client, connect
from blipmq.errors import BlipMQError, Disconnected, Refused, TimedOut
from blipmq.wire.frames import Message

HEADER = Struct("<QQH")
CHUNK_MESSAGES = 64
CHUNK_BYTES = 256 << 10
QUIET_S = 2.0
DRAIN_S = 30.0
REPAINT_S = 0.25
LINE_S = 1.0
INTERRUPTED = 130


class Load:
    """The messages to send and their counters, which are totals over all clients."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        name = f"bench.{os.urandom(4).hex()}"
        self.topics = [f"{name}.{index}" for index in range(arguments.topics)]
        self.filter = f"{name}.*"
        self.filler = bytes(arguments.size - HEADER.size)
        self.start_ns = self.stop_ns = 0
        self.stopped = asyncio.Event()
        self.result = Result(arguments)
        self.published = [0] * arguments.publishers

    def numbers(self, publisher: int) -> Iterator[int]:
        """Yield the numbers of a publisher's messages until it must stop."""
        total, count = self.arguments.messages, self.arguments.publishers
        share = None if total is None else total // count + (publisher < total % count)
        for number in itertools.count():
            if number == share or self.stopped.is_set() or (self.stop_ns and time.monotonic_ns() >= self.stop_ns):
                return
            yield number

    def due_ns(self, publisher: int, number: int) -> int:
        """The planned send time of this message; without a rate, now."""
        rate = self.arguments.rate
        if rate is None:
            return time.monotonic_ns()
        place = number * int(self.arguments.publishers) + publisher
        return self.start_ns + place * 1_000_000_000 // int(rate)

    def payload(self, publisher: int, number: int, due_ns: int) -> bytes:
        return HEADER.pack(due_ns, number, publisher) + self.filler


# ---- publishers ------------------------------------------------------------------------------------------------------


async def publish_fast(client: Client, load: Load, publisher: int) -> None:
    """Publish QoS 0 as fast as the broker accepts it, in chunks of one topic."""
    size = max(1, min(CHUNK_MESSAGES, CHUNK_BYTES // load.arguments.size))
    numbers, topics = load.numbers(publisher), itertools.cycle(load.topics)
    while chunk := list(itertools.islice(numbers, size)):
        now_ns = time.monotonic_ns()
        await client.publish_many(next(topics), [load.payload(publisher, number, now_ns) for number in chunk])
        load.published[publisher] += len(chunk)


async def publish_paced(client: Client, load: Load, publisher: int) -> None:
    """Publish QoS 0, each message at its planned time."""
    for number in load.numbers(publisher):
        due_ns = load.due_ns(publisher, number)
        if not await wait_until(due_ns, load):
            return
        await client.publish(load.topics[number % len(load.topics)], load.payload(publisher, number, due_ns))
        load.published[publisher] += 1


async def publish_answered(client: Client, load: Load, publisher: int) -> None:
    """Publish QoS 1 with a window of unanswered publishes, each in its own task; they are sent in order."""
    room = asyncio.Semaphore(load.arguments.window)
    tasks = set[asyncio.Task[None]]()
    failures: list[BlipMQError] = []

    async def one(number: int, due_ns: int) -> None:
        try:
            payload = load.payload(publisher, number, due_ns)
            await client.publish(load.topics[number % len(load.topics)], payload, qos=1)
            load.result.answered.add_ns(time.monotonic_ns() - due_ns)
            load.published[publisher] += 1
        except Refused as error:
            load.result.refuse(error)
        except BlipMQError as error:
            failures.append(error)
        finally:
            room.release()

    try:
        for number in load.numbers(publisher):
            due_ns = load.due_ns(publisher, number)
            if not await wait_until(due_ns, load):
                break
            await room.acquire()
            if load.arguments.rate is None:
                due_ns = time.monotonic_ns()
            task = asyncio.create_task(one(number, due_ns))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if failures:
                break
    finally:
        await asyncio.gather(*tasks)
    if failures:
        raise failures[0]


async def wait_until(due_ns: int, load: Load) -> bool:
    """Sleep until `due_ns`. Returns False if that is after the end of the run, or if the run was stopped."""
    if load.stop_ns and due_ns >= load.stop_ns:
        return False
    delay_s = (due_ns - time.monotonic_ns()) / 1e9
    if delay_s > 0:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(load.stopped.wait(), delay_s)
    return not load.stopped.is_set()


# ---- subscribers -----------------------------------------------------------------------------------------------------


async def subscribe(client: Client, load: Load, subscribed: Callable[[], None]) -> None:
    """Count messages until cancelled. Each publisher numbers its messages, so repeated ones are recognized."""
    result, next_number = load.result, [0] * load.arguments.publishers
    async with client.subscribe(load.filter, qos=load.arguments.qos) as messages:
        subscribed()
        while batch := await messages.batch():
            take(batch, time.monotonic_ns(), next_number, result)


def take(batch: list[Message], now_ns: int, next_number: list[int], result: Result) -> None:
    add, unpack = result.latency.add_ns, HEADER.unpack_from
    again = 0
    for message in batch:
        due_ns, number, publisher = unpack(message.payload)
        add(now_ns - due_ns)
        if number < next_number[publisher]:
            again += 1
        else:
            next_number[publisher] = number + 1
    result.received += len(batch)
    result.again += again


# ---- the run ---------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> None:
        self._arguments, self._environment, self._terminal = arguments, environment, terminal
        self._address, self._key = find_address(arguments, environment), read_key(arguments, environment)
        self._tls = find_tls(arguments, environment)
        self._clients: list[Client] = []
        self._load: Load

    async def run(self) -> int:
        load = self._load = Load(self._arguments)
        readers: list[asyncio.Task[None]] = []
        try:
            control = await self._connect()
            await self._begin_subscribers(readers)
            publishers = [await self._connect() for _ in range(self._arguments.publishers)]
            before = await control.info()
            self._stop_on_interrupt(load)
            async with reporting(self._report()):
                await self._publish(publishers, readers)
                await self._drain(readers)
            load.result.compare(before, await control.info())
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await asyncio.gather(*(client.close() for client in self._clients), return_exceptions=True)
        self._terminal.write(
            render_result(load.result, json=self._arguments.format == "json", fancy=self._terminal.fancy_out)
        )
        if load.result.refused and not load.result.published:
            return 1
        return INTERRUPTED if load.stopped.is_set() else 0

    async def _connect(self) -> Client:
        client = await connect(
            self._address,
            api_key=self._key,
            tls=self._tls,
            reconnect=False,
            on_refusal=self._load.result.refuse,
            timeout_s=DRAIN_S if self._arguments.timeout is None else self._arguments.timeout,
            wait=self._arguments.wait or 0,
        )
        self._clients.append(client)
        return client

    async def _begin_subscribers(self, readers: list[asyncio.Task[None]]) -> None:
        ready = asyncio.Event()
        for _ in range(self._arguments.subscribers):
            ready.clear()
            reader = asyncio.create_task(subscribe(await self._connect(), self._load, ready.set))
            readers.append(reader)
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({reader, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if reader.done():
                await reader

    async def _publish(self, publishers: list[Client], readers: list[asyncio.Task[None]]) -> None:
        load, arguments = self._load, self._arguments
        way = publish_answered if arguments.qos else publish_fast if arguments.rate is None else publish_paced
        load.start_ns = time.monotonic_ns()
        if arguments.messages is None:
            load.stop_ns = load.start_ns + arguments.seconds * 1_000_000_000
        cpu_s = time.process_time()
        try:
            await asyncio.gather(*(way(client, load, index) for index, client in enumerate(publishers)))
            for client in publishers:
                with contextlib.suppress(Refused):  # already counted by on_refusal
                    await client.flush()
        finally:
            load.stop_ns = load.stop_ns or time.monotonic_ns()
            load.result.published = sum(load.published)
            load.result.publish_s = (time.monotonic_ns() - load.start_ns) / 1e9
            load.result.cpu_share = (time.process_time() - cpu_s) / max(load.result.publish_s, 1e-9)

    async def _drain(self, readers: list[asyncio.Task[None]]) -> None:
        """Wait for messages on their way, as long as some arrive."""
        result, last_ns = self._load.result, time.monotonic_ns()
        wanted = result.published * len(readers)
        received, end_ns = result.received, last_ns + int(DRAIN_S * 1e9)
        while result.received - result.again < wanted and not any(reader.done() for reader in readers):
            await asyncio.sleep(0.01)
            now_ns = time.monotonic_ns()
            if result.received != received:
                received, last_ns = result.received, now_ns
            elif now_ns - last_ns > QUIET_S * 1e9 or now_ns > end_ns:
                break
            if now_ns > end_ns:
                break
        result.deliver_s = (last_ns - self._load.start_ns) / 1e9
        for reader in readers:
            if reader.done() and not reader.cancelled() and (error := reader.exception()) is not None:
                raise error

    def _stop_on_interrupt(self, load: Load) -> None:
        """The first Ctrl-C stops publishing and shows the result; the second ends the process."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            load.stopped.set()
            loop.remove_signal_handler(signal.SIGINT)

        with contextlib.suppress(NotImplementedError):  # Windows: the first Ctrl-C ends the process
            loop.add_signal_handler(signal.SIGINT, stop)

    async def _report(self) -> None:
        """Show the progress on standard error until cancelled."""
        if self._terminal.quiet:
            return
        load = self._load
        if repaints(sys.stderr, self._environment):
            with Repaint(sys.stderr, put_error) as screen:
                while True:
                    screen.paint(self._progress())
                    await asyncio.sleep(REPAINT_S)
        while True:
            await asyncio.sleep(LINE_S)
            if load.start_ns:
                say(self._progress())

    def _progress(self) -> str:
        load = self._load
        load.result.published = sum(load.published)
        elapsed_s = (time.monotonic_ns() - load.start_ns) / 1e9 if load.start_ns else 0.0
        return render_progress(load.result, elapsed_s, fancy=self._terminal.fancy_err)


@contextlib.asynccontextmanager
async def reporting(report: Coroutine[Any, Any, None]) -> Any:
    """Run a report during the body, and cancel it afterwards."""
    task = asyncio.create_task(report)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def run(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    loop: asyncio.AbstractEventLoop
    terminal.check_output()
    try:
        import uvloop

        loop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(Bench(arguments, environment, terminal).run())
    except (Disconnected, TimedOut) as error:
        error.args = (f"{error} The load test did not finish; there is no result.",)
        raise
    finally:
        loop.close()
