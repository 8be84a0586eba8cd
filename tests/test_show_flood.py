"""Acceptance: the profile for 256 MB devices, flooded in 256 MB of memory: nothing is killed, and a reading client gets
everything.

BLIPMQ_FLOOD_SECONDS=600 runs it for ten minutes.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from broker_process import ROOT, BrokerProcess, broker_command, until
from hand_client import PUB, v1_command

pytestmark = [pytest.mark.blackbox, pytest.mark.slow]

SECONDS = float(os.environ.get("BLIPMQ_FLOOD_SECONDS", "20"))
PROFILE = ROOT / "config/blipmq-edge-256m.toml"
DEVICE_BYTES = 256 << 20
PROMISED_BYTES = 128 << 20  # in the first lines of the profile
BUDGET_BYTES = 48 << 20  # its limits.memory_bytes
STUCK = 50
PUBLISHERS = 2
WINDOW = 100
SIZES = [64] * 400 + [1000] * 30 + [20_000]
FLOOD = b"".join(v1_command(PUB, "flood", bytes(size)) for size in SIZES)
GROUPS = Path("/sys/fs/cgroup/memory")


@contextlib.contextmanager
def device_memory():
    """A command prefix that limits a program to the memory of the device: with a control group if this user may create
    one, else with a limit on mapped memory."""
    group = GROUPS / f"blipmq-flood-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        bytes_max = str(DEVICE_BYTES)
        yield ["prlimit", f"--data={bytes_max}:{bytes_max}", "--"]
        return
    try:
        (group / "memory.limit_in_bytes").write_text(str(DEVICE_BYTES))
        yield ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group)]
    finally:
        group.rmdir()


class ProfiledBroker(BrokerProcess):
    """A broker with the shipped profile."""

    def configure(self, settings):
        self.config.write_bytes(PROFILE.read_bytes())


@pytest.fixture
def device(tmp_path):
    """The broker on its device."""
    with device_memory() as limited:
        broker = ProfiledBroker(tmp_path, {}, [*limited, *broker_command()], BLIPMQ_SERVER__BIND_ADDR="127.0.0.1:0")
        try:
            yield broker.get_ready()
            broker.stop()
        finally:
            broker.kill()


class Flood:
    """Publishers that send at full speed until they are stopped."""

    def __init__(self, connect, broker):
        self._ending = threading.Event()
        self._sent = [0] * PUBLISHERS
        self._threads = [
            threading.Thread(target=self._send, args=(connect(broker), which), daemon=True)
            for which in range(PUBLISHERS)
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, publisher, which):
        while not self._ending.is_set():
            publisher.send(FLOOD)
            self._sent[which] += len(SIZES)

    def stop(self):
        """Stop them; returns the number of sent messages."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        return sum(self._sent)


def exchange(reader, writer, first):
    """Send and receive a window of numbered messages; returns the next number."""
    writer.send(*[v1_command(PUB, "vital", b"%d" % number) for number in range(first, first + WINDOW)])
    for number in range(first, first + WINDOW):
        assert reader.next().payload == b"%d" % number
    return first + WINDOW


def test_a_small_device_survives_a_flood_and_a_reading_subscriber_loses_nothing(device, connect):
    stuck = [connect(device, receive_buffer_bytes=4096).subscribe("flood") for _ in range(STUCK)]
    reader, writer, asker = connect(device).subscribe("vital"), connect(device), connect(device, hello=True)
    flood, number, rss_bytes, used_bytes = Flood(connect, device), 0, 0, 0
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        number = exchange(reader, writer, number)
        rss_bytes = max(rss_bytes, device.rss_bytes())
        used_bytes = max(used_bytes, asker.info()["memory"]["used_bytes"])
    sent = flood.stop()

    until(lambda: asker.info()["messages"]["published"] == sent + number, "all that was sent has been taken")
    messages = asker.info()["messages"]
    print(
        f"\n{SECONDS:.0f} s: {messages['published']} published, {number} of them vital, dropped {messages['dropped']},"
    )
    print(f"its own memory at most {rss_bytes >> 10} KiB, the core's {used_bytes >> 10} KiB")
    assert rss_bytes <= PROMISED_BYTES
    assert used_bytes <= BUDGET_BYTES
    assert messages["dropped"]["queue_full"] > STUCK
    rows = {row["peer"]: row for row in asker.info()["subscriptions"]}
    vital = rows.pop(reader.peer)
    assert (vital["delivered"], vital["dropped_queue_full"]) == (number, 0)
    for client in stuck:
        row = rows[client.peer]
        assert row["enqueued"] == sent
        assert row["enqueued"] == row["delivered"] + row["dropped_queue_full"] + row["queued_messages"]
        assert row["dropped_queue_full"] > 0
