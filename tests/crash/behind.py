"""A subscriber that is away while very many messages are published, and a broker that may not keep them in memory.

Invariant: the broker is observed from outside only; its memory is read from /proc.
"""

import signal
import struct
import time

from hand_client import HELLO, PING, PUB, SUB, LegacyClient, Reader, SubAck, command

from crash.clients import ack_frame

FILTER, TOPIC, CLIENT = "far/behind", "far/behind", "traveller"
WINDOW = 4096
SETTINGS = {
    "limits.memory_bytes": 64 * 1024 * 1024,
    "queues.subscriber_bytes": 8 * 1024 * 1024,
    "server.max_message_size_bytes": 16 * 1024,
    "metrics.bind_addr": "",
    "qos1.max_in_flight": 1024,
    "wal.segment_size_bytes": 8 * 1024 * 1024,
    "wal.max_bytes": 1 << 30,
}
MARK = 0x1122334455667788
MARK_BYTES = struct.pack("<Q", MARK)


class Frames:
    """Many whole frames of a client at a time, starting with its buffer, which may contain bytes behind its last
    answer."""

    def __init__(self, client):
        self.stream, self.held = client.stream, b""

    def some(self):
        data = self.held + self.stream.read1(1 << 18)
        bodies, at = [], 0
        while at + 4 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if at + 4 + size > len(data):
                break
            bodies.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        assert len(data) > len(self.held), "the broker closed the connection"
        self.held = data[at:]
        return bodies


def connect(broker, client_id):
    client = LegacyClient(broker.address)
    client.send(command(HELLO, client_id=client_id, protocol=1, seq=1))
    assert client.next().code == 0
    return client


def subscribe(broker):
    client = connect(broker, CLIENT)
    client.send(command(SUB, FILTER, qos=1, durable=True, seq=2))
    assert client.next() == SubAck(FILTER, "subscribed", 2)
    return client


def publish(broker, count, payload_bytes):
    """Publish `count` numbered QoS 1 messages; all must be acknowledged. Returns the peak memory of the broker in
    bytes."""
    frame = command(PUB, TOPIC, MARK_BYTES + bytes(payload_bytes - 8), qos=1, seq=MARK)
    first, second = frame.index(MARK_BYTES), frame.rindex(MARK_BYTES)
    assert first != second
    sent = answered = rss_most = 0
    with connect(broker, "publisher") as client:
        frames = Frames(client)
        while answered < count:
            batch = bytearray()
            for number in range(sent, min(count, answered + WINDOW)):
                at = len(batch)
                batch += frame
                struct.pack_into("<Q", batch, at + first, number)
                struct.pack_into("<Q", batch, at + second, number)
                sent += 1
            if batch:
                client.socket.sendall(batch)
            for body in frames.some():
                code = Reader(memoryview(body)[1:]).number(1, "<H")
                assert code == 0, f"publish {answered} was refused with {code}"
                answered += 1
            rss_most = max(rss_most, broker.rss_bytes())
    return rss_most


def catch_up(broker, count):
    """Receive and acknowledge all messages in order. Returns the peak memory of the broker in bytes."""
    expected = rss_most = 0
    with subscribe(broker) as client:
        frames = Frames(client)
        while expected < count:
            acks = bytearray()
            for body in frames.some():
                message = Reader(memoryview(body)[1:])
                place = message.place(1)
                start = place + struct.unpack_from("<I", message.data, place)[0] + 4
                (number,) = struct.unpack_from("<Q", message.data, start)
                assert number == expected, f"{number} came where {expected} was due"
                acks += ack_frame(message.number(0, "<Q"))
                expected += 1
            client.socket.sendall(acks)
            rss_most = max(rss_most, broker.rss_bytes())
        assert client_is_quiet(client), "more came than was sent"
    return rss_most


def client_is_quiet(client):
    """True if the next frame of the broker is the answer to a PING."""
    client.send(command(PING, seq=99))
    answer = client.next()
    return getattr(answer, "seq", None) == 99


def fall_behind(start, settings, count, payload_bytes):
    """Be absent for `count` messages and for a kill -9 of the broker. Returns figures in seconds and bytes."""
    broker = start(settings)
    subscribe(broker).close()
    began = time.monotonic()
    rss = publish(broker, count, payload_bytes)
    published = time.monotonic()
    broker.signal(signal.SIGKILL)
    broker.wait()
    began_again = time.monotonic()
    broker = start(settings)
    ready = time.monotonic()
    rss = max(rss, catch_up(broker, count))
    return {
        "messages": count,
        "publish_seconds": round(published - began, 1),
        "ready_seconds": round(ready - began_again, 2),
        "catch_up_seconds": round(time.monotonic() - ready, 1),
        "rss_bytes_most": rss,
    }
