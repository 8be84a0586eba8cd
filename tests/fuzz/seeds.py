"""The seed inputs of the C fuzzers: from tests/vectors.json, the saved WALs, and several step programs in this file.

Invariant: a seed is named by its position, so writing twice gives the same files. native/fuzz/stepped.h and the file of
each target define the meaning of the bytes.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from mqtt_rows import ROWS

from blipmq.wire import frames as wire

TESTS = Path(__file__).resolve().parent.parent
FILTERS = [
    "user.*", "logs.>", "*.b.*", ">", "site/+/temp", "site/#", "+/+", "#", "$SYS/#", "a.*/+", "a*", "#/a", "plain",
]  # fmt: skip
TOPICS = ["user.ann", "logs", "logs.a.b", "a.b.c", "site/1/temp", "site", "$SYS/load", "", "température/küche/温度"]


def frames() -> list[bytes]:
    vectors = json.loads((TESTS / "vectors.json").read_text(encoding="utf-8"))
    return [bytes.fromhex(vector["frame"])[4:] for vector in vectors["valid"] + vectors["broken"]]


def pairs() -> list[bytes]:
    return [f"{pattern}\0{topic}".encode() for pattern in FILTERS for topic in TOPICS]


def logs() -> list[bytes]:
    """Each saved file with each first byte of fuzz_log, which selects the repair and the split."""
    files = [path.read_bytes() for path in sorted((TESTS / "kept").glob("log-*/*.*"))]
    return [bytes([mend]) + file for file in files for mend in range(64)]


# ---- step programs: see `step` in native/fuzz/stepped.h ---------------------------------------------------------------

ATTACH, COMMAND, RAW, ANSWER, TAKE, READ, TURN, SETTLE, CLOSE, ANSWERING, AWAY, LIMITS, RECORD = (
    0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
)  # fmt: skip
RESTART, HARM = 240, 248
PUB, SUB, UNSUB, QUIT, HELLO, ACK, PING, INFO = range(8)
QOS1, DURABLE, TIMES_6 = 8, 16, 32 | 64
CONFIGS = [
    bytes(4),
    bytes([8, 0, 0, 7]),  # with HELLO
    bytes([2 | 64, 4, 1 << 5 | 3, 2]),  # small queues, drop_oldest, lazy expiry
    bytes([2 | 8, 4, 2 << 5 | 2, 3]),  # drop_new
    bytes([4, 1, 3 << 5 | 1, 128 | 2]),  # block
    bytes([1 | 4 | 16, 0, 20, 64 | 7]),  # a budget, an interval
]


def command(who: int, action: int, name: int = 0, size: int = 5, how: int = 0, extra: bytes = b"") -> bytes:
    """A command of client `who`: an index into the name tables, a payload size; `how` says which fields are in
    `extra`."""
    return bytes([COMMAND, who, action, how, size, 7, name]) + extra


def steps() -> list[bytes]:
    """Ordinary exchanges under each configuration."""
    both = bytes([ATTACH, 0, 0, ATTACH, 1, 0])
    hello = command(0, HELLO) + command(1, HELLO) + bytes([TURN, 0, 0])
    turn, second = bytes([TURN, 0, 0]), bytes([TURN, 0, 6])
    flows = [
        both + hello + command(0, SUB, 2) + turn + command(1, PUB, 1) + turn + command(0, UNSUB, 2) + turn,
        both + command(0, SUB, 3) + turn + command(1, PUB | TIMES_6, 4, 250) * 4 + turn + bytes([READ, 0]) + turn,
        both + bytes([READ, 0]) + hello + command(0, SUB, 3) + turn + command(1, PUB | TIMES_6, 1, 255) * 8 + turn * 3
        + bytes([TAKE, 0, 255]) * 9 + turn + bytes([LIMITS, 0, 3, 40, 1]) + turn + command(1, PUB, 1) * 3 + second,
        both + hello + command(0, SUB, 5, how=1, extra=b"\1") + command(1, SUB, 5, how=1, extra=b"\1") + turn
        + command(1, PUB, 4) * 5 + command(0, PING) + command(0, INFO) + turn + bytes([CLOSE, 1, AWAY, 1]) + second,
        both + bytes([ANSWERING, 0]) + command(0, HELLO) + turn + bytes([ANSWER, 0, 2]) + turn + command(1, HELLO)
        + bytes([TURN, 0, 9]) + bytes([RAW, 0, 1, 9]) + bytes(9) + turn,
        both + hello + command(0, SUB, 3, how=8, extra=b"\3") + turn + command(1, PUB, 1, how=8, extra=b"\4") * 3
        + bytes([READ, 0]) + command(1, PUB, 1, how=8, extra=b"\4") * 3 + bytes([TURN, 0, 6]) + command(0, QUIT) + turn,
    ]  # fmt: skip
    return [config + flow for config in CONFIGS for flow in flows]


def durable_steps() -> list[bytes]:
    """QoS 1: acknowledged and unacknowledged messages, restarts, a full disk."""
    both = bytes([ATTACH, 0, 0, ATTACH, 1, 0]) + command(0, HELLO) + command(1, HELLO) + bytes([TURN, 0, 0])
    settle, later = bytes([SETTLE, 0, 3, 5]), bytes([SETTLE, 0, 7, 5])
    durable = command(0, SUB | QOS1 | DURABLE, 3) + settle
    publish, ack = command(1, PUB | QOS1, 1), command(0, ACK)
    flows = [
        both + durable + publish * 3 + settle + (ack + settle) * 3,
        both + durable + publish * 3 + settle + later * 4 + ack + settle,
        both + durable + bytes([CLOSE, 0]) + publish * 9 + settle + bytes([ATTACH, 0, 0]) + command(0, HELLO) + durable
        + (ack + settle) * 4 + command(0, UNSUB, 3) + settle,
        *(
            both + durable + publish * 4 + settle + ack + settle + bytes([RESTART, how]) + both + durable
            + publish + settle * 2 + (ack + settle) * 4
            for how in (0, 1, 2, 4, 5, 7, 8)
        ),
        both + durable + bytes([HARM, 1, 5]) + publish * 9 + settle * 2 + bytes([HARM, 0, 0]) + settle + publish + settle,
        both + durable + publish + bytes([HARM, 4, 9]) + publish * 3 + settle * 2 + bytes([RESTART, 2]) + both + settle,
        both + command(0, SUB | QOS1, 3, how=1, extra=b"\1") + command(1, SUB | QOS1, 3, how=1, extra=b"\1") + settle
        + publish * 4 + settle + ack + command(1, ACK) + settle + bytes([CLOSE, 0]) + settle + later * 3,
        both + durable + command(1, PUB | QOS1 | TIMES_6, 1, 210) * 20 + settle * 3 + (ack + settle) * 6,
    ]  # fmt: skip
    return [config + flow for config in CONFIGS for flow in flows] + steps()


# ---- step programs of native/fuzz/fuzz_websocket.c ---------------------------------------------------------------------

WEB_COMMAND, WEB_PUBLISH, WEB_RAW, WEB_PING, WEB_READ, WEB_TIME, WEB_END, WEB_CLOSE = 0, 2, 3, 4, 5, 6, 15, 12


def websockets() -> list[bytes]:
    """Requests, frames, and sessions of a client that reads slowly, under each configuration."""
    request = (
        b"GET /blipmq HTTP/1.1\r\nHost: h\r\nOrigin: http://h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, blipmq\r\n\r\n"
    )
    mask = bytes(4)
    frames = [
        bytes([0x82, 0x80 | 5]) + mask + b"hello",
        b"\x02\x81" + mask + b"x\x89\x82" + mask + b"yz\x80\x80" + mask,
    ]
    frames += [b"\x82\xfe\x00\x7e" + mask + bytes(126), b"\x88\x82" + mask + b"\x03\xe8", b"\x81\x80" + mask]
    hello, sub = bytes([WEB_COMMAND, HELLO, 0, 1]), bytes([WEB_COMMAND, SUB, 0, 2])
    read, publish = bytes([WEB_READ, 20]), bytes([WEB_PUBLISH, 15, 150])
    flows = [
        hello + sub + publish + read * 3 + bytes([WEB_CLOSE, 2]) + b"\x03\xe8" + read,
        hello + sub + (publish + read) * 20 + bytes([WEB_COMMAND, QUIT, 0, 0]),
        hello + sub + bytes([WEB_PUBLISH, 3, 255]) + (read + publish) * 9 + bytes([WEB_PING, 3]) + b"abc" + read * 9,
        bytes([WEB_COMMAND, HELLO, 1 | 2 | 8, 1, 9, 3]) + bytes([WEB_COMMAND, SUB, 1, 1, 30]) + bytes([WEB_TIME, 4]) + read,
        hello + sub + bytes([WEB_PUBLISH, 64 | 32 | 15, 200]) * 4 + bytes([WEB_TIME, 6]) + read * 4 + bytes([WEB_END]) + read,
        hello + bytes([WEB_COMMAND, PUB, 4 | 32, 5, 1]) + read,
        bytes([WEB_RAW, 6]) + frames[0][:6] + bytes([WEB_RAW, 5]) + frames[0][6:] + bytes([WEB_TIME, 8]),
    ]  # fmt: skip
    raw = bytes([WEB_RAW, 100]) + request[:100] + bytes([WEB_RAW, len(request) - 100]) + request[100:]
    return [
        request,
        *frames,
        b"".join(frames[:3]),
        *(b"\1" + config + flow for config in CONFIGS for flow in flows),
        *(b"\0" + config + raw + hello + sub + publish + read for config in CONFIGS[:2]),
    ]


# ---- step programs of native/fuzz/fuzz_promise.c -----------------------------------------------------------------------

LIVES = 100
COME, SUBSCRIBE, GO, PUBLISH, ACKNOWLEDGE, ACKNOWLEDGE_ALL, READS, WAIT, UNSUBSCRIBE, AGAIN, ROOM, SETTLE_SOME = (
    0, 1, 3, 4, 7, 9, 10, 11, 12, 13, 14, 15,
)  # fmt: skip
OFTEN = {
    COME: 3, SUBSCRIBE: 16, GO: 7, PUBLISH: 26, ACKNOWLEDGE: 18, ACKNOWLEDGE_ALL: 3, READS: 4, WAIT: 8, UNSUBSCRIBE: 3,
    AGAIN: 3, ROOM: 2, SETTLE_SOME: 7,
}  # fmt: skip
IN_ORDER_KILLED_CUT = (0, 3, 6, 9, 1, 4, 7, 2, 5, 8)


def life(seed: int) -> bytes:
    """Three clients connect, then random steps follow with their usual frequencies, most of them for one filter."""
    dice = random.Random(seed)
    program = [dice.choice((0, 0, 16, 32, 2)), dice.randrange(256), dice.randrange(256), dice.choice((4, 132, 12, 140))]
    program += [COME, 0, COME, 1, COME, 2]
    favourite, quota = dice.randrange(3), program[2] & 32
    often = {**OFTEN, PUBLISH: 60, GO: 12} if quota else OFTEN  # enough to exceed the quota of one consumer
    for what in dice.choices([*often], [*often.values()], k=dice.randrange(60, 150)):
        filter_ = favourite if dice.random() < 0.7 else dice.randrange(3)
        if what == AGAIN:
            program += [what, dice.choice(IN_ORDER_KILLED_CUT)]
        elif what == ROOM:
            program += [what, dice.choice((1, 1, 1, 2 * dice.randrange(128)))]
        elif what in (SUBSCRIBE, UNSUBSCRIBE):
            program += [what, dice.choice([more for more in range(256) if (more >> 2) % 3 == filter_])]
        elif what == PUBLISH:
            time_to_live = dice.choice((0, 0, 0, 0, 0, 0, 3, 4, 5))
            sizes = range(128 if quota else 0, 256)
            program += [what, dice.choice([more for more in sizes if more % 3 == filter_]), time_to_live]
        else:
            program += [what, dice.randrange(256)]
        if what == WAIT:
            program.append(dice.choice((0, 1, 2, 3, 4, 5, 6, 7, 7, 8)))
    return bytes(program)


def lives() -> list[bytes]:
    return [life(seed) for seed in range(LIVES)]


# ---- step programs of native/fuzz/fuzz_secure.c ------------------------------------------------------------------------

DIAL, SHAKE, SAY, END, ASKS, ANYTHING, HALF, LEAVE, HEAR, SEND, CUT, CONTEXT, BUSY, SCARCE, ON = range(15)


def said(what: int, client: int, content: bytes = b"") -> bytes:
    return bytes((what, client, len(content))) + content


def handshakes() -> list[bytes]:
    """Handshakes, requests and ends, whole and cut, with slow readers."""
    on, hear = bytes((ON, 0, 2)), bytes((HEAR, 0, 255))
    shake = bytes((DIAL, 0)) + on + said(SHAKE, 0) + on + said(SHAKE, 0, b"Cname") + on
    requests = [
        wire.encode_command(wire.HELLO, seq=1, client_id="c", protocol=1),
        wire.encode_command(wire.SUB, "t", seq=2),
    ]
    asks, publish = wire.encode_command(wire.INFO, seq=3), wire.encode_command(wire.PUB, "t", b"payload")
    served = shake + b"".join(said(SAY, 0, frame) + on for frame in requests)
    flows = [
        served + (said(SAY, 0, publish) + on) * 3 + hear + bytes((END, 0)) + on + hear * 2,
        served + (said(SAY, 0, asks) + on) * 4 + hear * 3 + on + bytes((HALF, 0)) + on + hear * 9,
        served + bytes((ASKS, 0, 255)) * 4 + on + bytes((ASKS, 0, 255)) * 4 + on + hear * 3 + on,
        served + said(ANYTHING, 0, b"\xff" * 9) + bytes((SEND, 0, 255)) + on + hear + bytes((ON, 0, 4)),
        bytes((DIAL, 0)) + on + said(SHAKE, 0, b"Fno") + on + hear + bytes((ON, 0, 4)),
        bytes((DIAL, 0, DIAL, 1, DIAL, 2, DIAL, 3)) + on + said(SHAKE, 2) + on + bytes((LEAVE, 2)) + bytes((ON, 0, 5)),
        bytes((CUT, 0)) + shake + (bytes((SEND, 0, 2)) + on) * 9 + bytes((CONTEXT, 0, 1, 200)) + shake + hear * 9,
        bytes((BUSY, 0)) + served + bytes((END, 0)) + on + bytes((SCARCE, 0, 1)) + shake,
    ]  # fmt: skip
    return [bytes((flags, 2, size)) + flow for flow in flows for flags, size in ((0, 1), (1, 250), (8, 250), (23, 3))]


# ---- records: see broker/consumer_store.c and broker/commit.h --------------------------------------------------------


def consumer_record(number: int, filter_: bytes, client: bytes, group: bytes = b"", floor: int = 0) -> bytes:
    head = struct.pack("<QQIIIBBxx", number, floor, len(filter_), len(client), len(group), 1, bool(group))
    return head + filter_ + client + group


def publish_record(number: int, topic: bytes, payload: bytes, ttl_ms: int = 0) -> bytes:
    return struct.pack("<QQQQQII", number, 0, ttl_ms, 0, 0, len(topic), 0) + topic + payload


def checkpoint_record(consumers: list[bytes], next_id: int = 9) -> bytes:
    return struct.pack("<IIQQQ", 1, len(consumers), next_id, 0, 5) + b"".join(consumers)


def program(how: int, *records: tuple[int, bytes]) -> bytes:
    return bytes([how]) + b"".join(bytes([kind, len(record)]) + record for kind, record in records)


def records() -> list[bytes]:
    publishes = [(1, publish_record(number, b"a.b", b"payload", number % 2)) for number in range(1, 6)]
    consumer = consumer_record(1, b"a.*", b"c0")
    group = consumer_record(2, b">", b"", b"workers")
    flows = [
        [(3, consumer), *publishes],
        [(3, consumer), *publishes, (2, struct.pack("<QQ", 1, 3)), (4, struct.pack("<Q", 1))],
        [(0, checkpoint_record([consumer, group])), *publishes],
        [(3, group), *publishes, (5, struct.pack("<Q", 1 << 40)), (0, checkpoint_record([consumer]))],
        [(6, b"of a later version"), (3, consumer), *publishes],
    ]
    return [program(how, *flow) for flow in flows for how in (0, 1)]


def routes() -> list[bytes]:
    everyone = bytes(chain.from_iterable((connection * 8, name) for connection in range(5) for name in range(15)))
    look = bytes(chain.from_iterable((5, name) for name in range(12)))
    return [
        bytes([size]) + everyone[:60] + look + bytes([4, 11, 3]) + look + everyone[60:] + look for size in (0, 3, 99)
    ]


def retained() -> list[bytes]:
    """See `step` in native/fuzz/fuzz_retained.c."""
    put, later, replay, go_on, end = 0x42, 0x00, 0x0B, 0x1C, 0x0E
    values = bytes(chain.from_iterable((put, topic, 0xE4 if topic % 2 else 2, topic) for topic in range(12)))
    expiring = bytes(chain.from_iterable((put, topic, 1, topic, 3) for topic in range(6)))
    several = bytes([later, 1, 2, 3, later, 1, 4, 5, 0x44, 0x06, 0x04])
    ends = bytes([replay, 0]) + bytes([go_on] * 5) + values[:16] + bytes([end] * 14)
    flows = [
        values + ends,
        values + several + ends,
        expiring + ends + bytes([0x38, 9]),
        values + bytes([0x0A] * 9) + ends,
    ]
    flows.append(values * 12 + bytes([7, 1, 7, 2, 0x0F, 1, 3]) + values + ends)
    flows.append(bytes(chain.from_iterable((3, topic, how, 1) for topic in range(12) for how in range(4))) + ends)
    return [limits + flow for flow in flows for limits in (b"\xff\xff", b"\2\4", b"\5\x0a")]


def rings() -> list[bytes]:
    return [bytes([size]) + bytes([9, 201, 3, 255, 0, 2] * 20) + bytes(range(256)) for size in range(14)]


def streams() -> list[bytes]:
    """Each packet of the tables alone, and all accepted packets of a version one behind the other."""
    alone = {bytes([row.version - 3]) + row.packet for row in ROWS if len(row.packet) < 200}
    good = [
        [row.packet for row in ROWS if row.version == version and isinstance(row.expected, dict)] for version in (4, 5)
    ]
    return [*sorted(alone), *(bytes([place + 1]) + b"".join(packets)[:4000] for place, packets in enumerate(good))]


# ---- connections: see `step` in native/fuzz/fuzz_tls.c -----------------------------------------------------------------


def connections() -> list[bytes]:
    """A handshake with each kind of client, then data, new keys, damage and ends, in whole flights and in pieces."""
    client, all_of_it, bend, take, write, answer, room, update, end = 0, 3, 4, 5, 7, 8, 9, 10, 11
    whole = bytes([client, all_of_it, take, 0])
    pieces = bytes([client, *[2, 40, take, 0] * 8, all_of_it, take, 0])
    data = bytes([write, 0, 50, write, 64, 0, all_of_it, take, 255, answer, 127, 0, answer, 0, 9, client])
    tails = [
        data,
        bytes([update, update]) + data,
        bytes([room, 2]) + data + bytes([room, 4]) + data,
        bytes([write, 0, 50, bend, 0, 9, 0, 3, all_of_it, take, 9]),
        bytes([end, 0, client, end, 1, all_of_it, take, 9, take, 9]),
    ]
    flows = [step * 4 + tail for step in (whole, pieces) for tail in tails]
    flows += [
        bytes([client, bend, at >> 8, at & 255, how, 7, all_of_it, take, 0]) for at in (0, 5, 80) for how in range(4)
    ]
    flows += [
        bytes([bend, 0, 0, len(text)]) + text + bytes([all_of_it, take, 0])
        for text in (b"GET / HTTP/1.1", b"\x15\3\3\0\2\1\0")
    ]
    return [bytes([kind]) + flow for flow in flows for kind in range(6)]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "frame": frames, "filter": pairs, "log": logs, "wal": logs, "core": steps, "consumer": durable_steps, "restore": records,
    "route": routes, "ring": rings, "promise": lives, "secure": handshakes, "mqtt_codec": streams, "retained": retained,
    "tls": connections, "websocket": websockets,
}  # fmt: skip


def write(target: str, directory: Path) -> None:
    """Write the seed inputs of a target; a target without seeds starts with none."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS.get(target, list)()):
        (directory / f"{number:04}").write_bytes(seed)
