"""Frames over WebSocket (RFC 6455) in a stepped core: every opcode, size class, mask and cut; what is refused and with which
close code; how a connection ends; output while the client does not read."""

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped import Bench, Overflow
from websocket_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WebSocketClient, close, frame, masked, request

from blipmq.native.events import CloseReason
from blipmq.wire import frames as wire

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 124, 125, 126, 127, 1000, 65_535, 65_536, 65_537, 200_000]
HELLO = wire.encode_command(wire.HELLO, client_id="c", protocol=wire.PROTOCOL, seq=1)


def adopt(bench, buffer_bytes=1 << 20):
    return bench.adopt(buffer_bytes, WebSocketClient, websocket=True)


def ready(bench, *filters, buffer_bytes=1 << 20):
    """A client that has said HELLO and subscribed."""
    client = adopt(bench, buffer_bytes).upgrade().hello().subscribe(*filters)
    client.reader.frames.clear()
    return client


def publish(topic, payload=b"", **fields):
    return wire.encode_command(wire.PUB, topic, payload, **fields)


def refused(sent):
    """Close code and reason that the broker answers these bytes with."""
    with Bench() as bench:
        client = ready(bench)
        client.feed_raw(sent)
        assert client.eof
        assert client.close_code
        return client.close_code


# ---- what is accepted ----


@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_any_size_goes_there_and_back(size):
    with Bench() as bench:
        client = ready(bench, "a")
        payload = os.urandom(size)
        client.send_bytes(publish("a", payload))
        assert client.payloads == [payload]
        assert not client.reader.rest


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x02\x03\x04", b"\x80\x00\x7f\xfe"])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 21, 64, 300])
def test_any_mask_is_undone(mask, size):
    with Bench() as bench:
        client = ready(bench, "a")
        payload = bytes(range(256))[:size] * (1 + size // 256)
        client.feed_raw(frame(publish("a", payload), mask=mask))
        assert client.payloads == [payload]


@pytest.mark.parametrize("size", [0, 1, 60, 125, 126, 400])
def test_a_frame_may_be_cut_at_every_byte(size):
    with Bench() as bench:
        client = ready(bench, "a")
        payload = os.urandom(size)
        sent = frame(publish("a", payload))
        for at in range(1, len(sent)):
            client.feed_raw(sent[:at])
            client.feed_raw(sent[at:])
        assert client.payloads == [payload] * (len(sent) - 1)


@pytest.mark.parametrize("form", [1, 2, 8])
def test_a_long_header_may_come_byte_by_byte(form):
    with Bench() as bench:
        client = ready(bench, "a")
        payload = bytes({1: 0, 2: 200, 8: 1 << 16}[form])
        sent = frame(publish("a", payload))
        for byte in sent[:20]:
            client.feed_raw(bytes([byte]))
        client.feed_raw(sent[20:])
        assert client.payloads == [payload]


@pytest.mark.parametrize("piece", [1, 2, 3, 50])
def test_fragments_and_frames_need_not_be_whole_commands(piece):
    with Bench() as bench:
        client = ready(bench, "a")
        stream = b"".join(publish("a", b"%d" % i) for i in range(20))
        parts = [stream[at : at + piece] for at in range(0, len(stream), piece)]
        sent = b"".join(
            frame(part, BINARY if not i else CONTINUATION, fin=i == len(parts) - 1, mask=os.urandom(4))
            for i, part in enumerate(parts)
        )
        client.feed_raw(sent)
        client.feed_raw(b"".join(frame(part) for part in parts))
        assert client.payloads == [b"%d" % i for i in range(20)] * 2


def test_control_frames_may_stand_between_fragments():
    with Bench() as bench:
        client = ready(bench, "a")
        sent = publish("a", b"payload")
        client.feed_raw(frame(sent[:9], fin=False) + frame(b"one", PING))
        client.feed_raw(frame(sent[9:20], CONTINUATION, fin=False) + frame(b"", PONG) + frame(b"two", PING))
        assert client.messages == []
        client.feed_raw(frame(sent[20:], CONTINUATION))
        assert client.payloads == [b"payload"]
        assert [f for f in client.reader.frames if f[0] == PONG] == [(PONG, b"one"), (PONG, b"two")]


def test_empty_fragments_and_empty_messages_are_nothing():
    with Bench() as bench:
        client = ready(bench, "a")
        client.feed_raw(frame() + frame(fin=False) + frame(b"", CONTINUATION, fin=False) + frame(b"", CONTINUATION))
        client.send_bytes(publish("a", b"x"))
        assert client.payloads == [b"x"]


@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_a_ping_is_answered_with_its_payload(size):
    with Bench() as bench:
        client = ready(bench)
        payload = os.urandom(size)
        client.feed_raw(frame(payload, PING))
        assert client.reader.frames == [(PONG, payload)]


def test_a_ping_cut_at_every_byte_is_answered():
    with Bench() as bench:
        client = ready(bench)
        sent = frame(b"0123456789", PING)
        for at in range(1, len(sent)):
            client.feed_raw(sent[:at])
            client.feed_raw(sent[at:])
        assert client.reader.frames == [(PONG, b"0123456789")] * (len(sent) - 1)


def test_of_pings_that_come_together_the_last_one_is_answered():
    with Bench() as bench:
        client = ready(bench)
        client.feed_raw(b"".join(frame(b"%d" % i, PING) for i in range(1000)))
        assert client.reader.frames[-1] == (PONG, b"999")
        assert len(client.reader.frames) <= 10


def test_an_unasked_pong_is_ignored():
    with Bench() as bench:
        client = ready(bench, "a")
        client.feed_raw(frame(b"x" * 125, PONG) + frame(publish("a", b"y")))
        assert client.payloads == [b"y"]
        assert [opcode for opcode, _ in client.reader.frames] == [BINARY]


# ---- what is refused ----


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_reserved_opcodes_are_refused(opcode):
    assert refused(frame(b"", opcode)) == (1002, "WebSocket: a reserved opcode")


@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("rsv", [1, 2, 3, 4, 7])
def test_reserved_bits_are_refused(rsv, opcode):
    code, reason = refused(frame(b"", opcode, rsv=rsv))
    assert (code, "reserved bit" in reason) == (1002, True)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_a_frame_without_a_mask_is_refused(opcode):
    code, reason = refused(frame(b"", opcode, mask=None))
    assert (code, "mask" in reason) == (1002, True)


@pytest.mark.parametrize("payload", [b"", b"text", b"\xff"])
@pytest.mark.parametrize("fin", [True, False])
def test_text_is_refused(payload, fin):
    code, reason = refused(frame(payload, TEXT, fin=fin))
    assert (code, "binary" in reason) == (1003, True)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"x", CONTINUATION), 1002),
        (frame(b"", CONTINUATION, fin=False), 1002),
        (frame(b"", fin=False) + frame(b""), 1002),
        (frame(b"", fin=False) + frame(b"", TEXT), 1002),
        (frame(b"", fin=False) + frame(b"", CONTINUATION) + frame(b"", CONTINUATION), 1002),
        (frame(b"", PING, fin=False), 1002),
        (frame(b"", PONG, fin=False), 1002),
        (frame(b"", CLOSE, fin=False), 1002),
        (frame(bytes(126), PING), 1002),
        (frame(bytes(126), CLOSE), 1002),
        (frame(b"", PING, form=2), 1002),
        (frame(b"", PONG, form=8), 1002),
        (frame(bytes(125), form=2), 1002),  # not the shortest form
        (frame(bytes(10), form=8), 1002),
        (frame(b"", form=8, length=65_535), 1002),
        (frame(b"", form=8, length=1 << 63), 1002),
        (frame(b"", form=8, length=(1 << 63) - 1), 1009),
        (frame(b"", form=8, length=2 << 20), 1009),
    ],
)
def test_frames_against_the_rules_are_refused(sent, code):
    assert refused(sent)[0] == code


def test_a_frame_is_refused_at_its_second_byte():
    assert refused(b"\x81\x80")[0] == 1003
    assert refused(b"\x82\x05")[0] == 1002


def test_commands_before_the_bad_frame_take_effect():
    with Bench() as bench:
        client, other = ready(bench), ready(bench, "a")
        client.feed_raw(frame(publish("a", b"before")) + frame(b"", 3) + frame(publish("a", b"after")))
        other.read_all()
        assert other.payloads == [b"before"]
        assert client.close_code[0] == 1002
        assert bench.stats()["frames_bad"] == 1


@pytest.mark.parametrize("cut", [False, True])
def test_a_bad_frame_behind_a_request_that_waits_is_refused_after_the_answer(cut):
    """As over TCP: what came before it takes effect, although the client's input is paused when it comes."""
    with Bench() as bench:
        client, other = ready(bench), ready(bench, "a")
        bench.answering = False
        before = frame(wire.encode_command(wire.SUB, "b", seq=9)) + frame(publish("a", b"before"))
        client.feed_raw(before[:20] if cut else before + frame(b"", 3) + frame(publish("a", b"after")))
        if cut:
            client.feed_raw(before[20:] + frame(b"", 3) + frame(publish("a", b"after")))
        assert client.close_code is None
        (asked,) = bench.asked
        bench.core.subscribe(asked.conn, asked.seq, asked.filter)
        bench.settle()
        client.read_all()
        other.read_all()
        assert [ack.seq for ack in client.subacks] == [9]
        assert other.payloads == [b"before"]
        assert client.close_code[0] == 1002
        assert client.eof
        assert bench.stats()["frames_bad"] == 1
        assert bench.closed == []
        client.socket.close()
        bench.settle()
        assert bench.closed[-1].reason is CloseReason.FRAME


def test_a_connection_whose_bad_frame_waits_may_be_reset():
    with Bench() as bench:
        client = ready(bench)
        bench.answering = False
        client.feed_raw(frame(wire.encode_command(wire.SUB, "b", seq=9)) + frame(b"", 3))
        client.socket.close()
        bench.settle()
        (asked,) = bench.asked
        bench.core.subscribe(asked.conn, asked.seq, asked.filter)
        bench.settle(2000)
        assert bench.stats()["connections"] == 0
        assert bench.stats()["websockets"] == 0


# ---- Close ----


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_a_close_is_answered_with_its_code(code):
    with Bench() as bench:
        client = ready(bench)
        client.feed_raw(close(code, "größer".encode()))
        assert client.close_code == (code, "")
        assert client.eof
        assert bench.closed == [] or bench.closed[-1].reason in (CloseReason.EOF, CloseReason.QUIT)


def test_a_close_without_a_code_is_answered_without_one():
    with Bench() as bench:
        client = ready(bench)
        client.feed_raw(frame(b"", CLOSE))
        assert client.close_code == (None, "")


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_a_close_with_a_code_that_nobody_may_send_is_a_protocol_error(code):
    with Bench() as bench:
        client = ready(bench)
        client.feed_raw(close(code))
        assert client.close_code[0] == 1002


def test_a_close_of_one_byte_is_a_protocol_error():
    with Bench() as bench:
        client = ready(bench)
        client.feed_raw(frame(b"\x03", CLOSE))
        assert client.close_code[0] == 1002


@pytest.mark.parametrize(
    ("reason", "valid"),
    [
        (b"plain", True),
        ("κόσμε €𐍈".encode(), True),
        (b"\xef\xbf\xbf", True),
        (b"\xf4\x8f\xbf\xbf", True),
        (b"x" * 123, True),
        (b"\x80", False),
        (b"\xc0\xaf", False),  # overlong
        (b"\xc1\x80", False),
        (b"\xe0\x80\xaf", False),
        (b"\xf0\x80\x80\xaf", False),
        (b"\xed\xa0\x80", False),  # a surrogate
        (b"\xf4\x90\x80\x80", False),  # over U+10FFFF
        (b"\xf5\x80\x80\x80", False),
        (b"cut \xe2\x82", False),
        (b"cut \xf0\x9f\x98", False),
        (b"\xe2\x28\xa1", False),
    ],
)
def test_the_reason_of_a_close_is_utf_8(reason, valid):
    with Bench() as bench:
        client = ready(bench)
        client.feed_raw(close(1000, reason))
        assert client.close_code[0] == (1000 if valid else 1007)


def test_a_close_cut_at_every_byte_is_a_close():
    sent = close(1001, b"bye")
    for at in range(1, len(sent)):
        with Bench() as bench:
            client = ready(bench)
            client.feed_raw(sent[:at])
            assert not client.eof
            client.feed_raw(sent[at:])
            assert client.close_code == (1001, "")


def test_commands_before_a_close_are_answered_and_those_after_it_ignored():
    with Bench() as bench:
        client, other = ready(bench), ready(bench, "a")
        ping = wire.encode_command(wire.PING, seq=7)
        client.feed_raw(frame(publish("a", b"1") + ping) + close() + frame(publish("a", b"2")) + b"\xff\xff")
        other.read_all()
        assert other.payloads == [b"1"]
        assert [reply.seq for reply in client.replies] == [7]
        assert client.close_code == (1000, "")


def test_a_close_while_a_request_waits_for_its_answer_comes_after_the_answer():
    with Bench() as bench:
        client = ready(bench)
        bench.answering = False
        client.feed_raw(frame(wire.encode_command(wire.SUB, "a", seq=9)) + close())
        assert client.close_code is None
        assert not client.eof
        (asked,) = bench.asked
        bench.core.subscribe(asked.conn, asked.seq, asked.filter)
        bench.settle()
        client.read_all()
        assert [ack.seq for ack in client.subacks] == [9]
        assert client.close_code == (1000, "")
        assert client.eof


def test_the_end_of_the_socket_without_a_close_ends_the_client():
    with Bench() as bench:
        client = ready(bench, "a")
        client.socket.close()
        bench.settle(2000)
        assert bench.stats()["connections"] == 0


def test_quit_is_answered_with_a_close():
    with Bench() as bench:
        client = ready(bench)
        client.send_bytes(wire.encode_command(wire.QUIT))
        assert client.close_code == (1000, "")
        assert client.eof


# ---- ends that the broker decides ----


def test_a_broken_command_is_answered_and_closed_with_1007():
    with Bench() as bench:
        client = ready(bench)
        client.send_bytes(struct.pack(">I", 8) + b"nonsense")
        assert client.replies[-1].code == 400
        assert client.close_code[0] == 1007


def test_a_command_that_is_too_long_is_answered_and_closed_with_1009():
    with Bench(max_frame_bytes=1000) as bench:
        client = ready(bench)
        client.send_bytes(struct.pack(">I", 1001) + bytes(100))
        assert client.replies[-1].code == 413
        assert client.close_code[0] == 1009


def test_a_command_before_hello_is_closed_with_1008_where_keys_are_required():
    with Bench(require_hello=1) as bench:
        client = adopt(bench).upgrade()
        client.send_bytes(publish("a", b"x"))
        code, reason = client.close_code
        assert (code, "before HELLO" in reason) == (1008, True)


def test_a_client_that_python_closes_gets_1008():
    with Bench() as bench:
        client = ready(bench, "a")
        (conn,) = bench.subscribers()
        bench.core.close(conn)
        bench.settle()
        client.read_all()
        assert client.close_code == (1008, "")
        assert client.eof


def test_a_stopping_broker_sends_1001():
    with Bench() as bench:
        client = ready(bench, "a")
        bench.core.stop(1000)
        bench.settle()
        client.read_all()
        assert client.replies[-1].code == 503
        assert client.close_code[0] == 1001
        assert client.eof


def test_a_client_that_breaks_its_keep_alive_promise_gets_1008():
    with Bench(keepalive_ms=4000) as bench:
        client = adopt(bench).upgrade()
        client.send(wire.HELLO, seq=1, client_id="c", protocol=wire.PROTOCOL, keepalive_ms=2000)
        bench.settle(2900)
        client.feed_raw(frame(b"still here", PING))
        bench.settle(2900)
        client.read_all()
        assert not client.eof
        bench.settle(200)
        client.read_all()
        code, reason = client.close_code
        assert (code, "PING" in reason) == (1008, True)


# ---- output ----


def fill(bench, sender, topic, count, size=300):
    for i in range(count):
        sender.send_bytes(publish(topic, b"%06d" % i + bytes(size)))
    bench.settle()


@pytest.mark.parametrize("policy", [Overflow.DROP_OLDEST, Overflow.DROP_NEW])
def test_a_frame_that_was_begun_keeps_its_length_while_the_queue_drops(policy):
    with Bench(overflow_policy=policy, subscriber_messages=50) as bench:
        slow, sender = ready(bench, "a", buffer_bytes=4096), bench.attach()
        for _ in range(6):
            fill(bench, sender, "a", 150)
            slow.receive(700)
            bench.settle()
        assert bench.stats()["dropped_queue_full"] > 0
        slow.drain()
        numbers = [payload[:6] for payload in slow.payloads]
        assert numbers
        assert not slow.reader.rest  # every announced length came true
        stats = bench.stats()
        assert stats["enqueued"] == stats["delivered"] + stats["dropped_queue_full"] + stats["queued_messages"]
        assert len(slow.payloads) == stats["delivered"]


def test_messages_that_expire_behind_a_begun_frame_are_dropped_whole():
    with Bench() as bench:
        slow, sender = ready(bench, "a", buffer_bytes=4096), bench.attach()
        for i in range(2000):
            sender.send_bytes(publish("a", b"%06d" % i + bytes(300), ttl_ms=500))
        bench.settle()
        bench.settle(1000)
        assert bench.stats()["dropped_ttl"] > 0
        slow.drain()
        assert not slow.reader.rest
        sender.send_bytes(publish("a", b"last"))
        slow.drain()
        assert slow.payloads[-1] == b"last"


@pytest.mark.parametrize("size", [70_000, 300_000, 1_000_000])
def test_a_message_longer_than_a_frame_is_continued_although_messages_behind_it_drop(size):
    with Bench(subscriber_messages=4) as bench:
        slow, sender = ready(bench, "a", buffer_bytes=4096), bench.attach()
        payload = os.urandom(size)
        sender.send_bytes(publish("a", payload))
        bench.settle()
        for _ in range(20):
            slow.receive(9000)
            fill(bench, sender, "a", 3, 10)
        slow.drain()
        assert slow.payloads[0] == payload
        assert all(len(data) <= 65_536 for _, data in slow.reader.frames)
        assert not slow.reader.rest


def test_a_long_answer_that_was_begun_is_completed_when_the_queue_is_emptied():
    """A frame has 64 KiB at most, so the answer is sent in part although the socket takes more."""
    with Bench() as bench:
        client, sender = ready(bench, "a"), bench.attach()
        (conn,) = bench.subscribers()
        bench.core.reply(conn, 0, 999, "", payload=bytes(200_000))
        bench.turn()
        sender.send_bytes(publish("a", b"dropped"))
        bench.core.reply(conn, 0, 403, "the key lost its rights", discard=True, close=True)
        client.drain()
        assert [(reply.code, len(reply.payload)) for reply in client.replies] == [(999, 200_000), (403, 0)]
        assert client.payloads in ([], [b"dropped"])
        assert client.close_code[0] == 1008
        assert not client.reader.rest


def test_a_pong_waits_behind_the_rest_of_a_frame():
    with Bench() as bench:
        slow, sender = ready(bench, "a", buffer_bytes=4096), bench.attach()
        fill(bench, sender, "a", 200)
        for i in range(50):
            slow.feed_unread(frame(b"%d" % i, PING))
        slow.drain()
        assert len(slow.payloads) == 200
        pongs = [payload for opcode, payload in slow.reader.frames if opcode == PONG]
        assert pongs[-1] == b"49"


def test_what_is_kept_of_a_begun_frame_is_at_most_one_frame():
    with Bench(subscriber_messages=100_000, subscriber_bytes=64 << 20) as bench:
        slow, sender = ready(bench, "a", buffer_bytes=4096), bench.attach()
        fill(bench, sender, "a", 100, 10_000)
        before = bench.stats()
        assert before["queued_bytes"] >= 100 * 10_000 - 140_000
        delivered = before["delivered"]
        slow.receive(2000)
        bench.settle()
        assert bench.stats()["delivered"] == delivered  # the socket takes a bit of the same frame


def test_batches_share_frames():
    with Bench() as bench:
        client, sender = ready(bench, "a"), bench.attach()
        sender.send_bytes(b"".join(publish("a", b"x") for _ in range(500)))
        bench.settle()
        client.read_all()
        assert len(client.payloads) == 500
        assert len([f for f in client.reader.frames if f[0] == BINARY]) < 50


# ---- the same as over TCP ----

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("pub"), st.sampled_from(["a", "a.b", "c"]), st.binary(max_size=300)),
        st.tuples(st.just("sub"), st.sampled_from(["a", "a.*", ">", "c"])),
        st.tuples(st.just("unsub"), st.sampled_from(["a", "a.*", ">", "c"])),
        st.tuples(st.just("ping")),
        st.tuples(st.just("bad")),
    ),
    max_size=12,
)


def encoded(actions):
    stream = HELLO
    for seq, (what, *arguments) in enumerate(actions, 2):
        if what == "pub":
            stream += publish(arguments[0], arguments[1])
        elif what == "bad":
            stream += wire.encode_command(wire.PUB, "a..b", b"", seq=seq)
        elif what == "ping":
            stream += wire.encode_command(wire.PING, seq=seq)
        else:
            stream += wire.encode_command(wire.SUB if what == "sub" else wire.UNSUB, arguments[0], seq=seq)
    return stream


def seen(client):
    return (
        [(reply.seq, reply.code, reply.message) for reply in client.replies],
        [(ack.seq, ack.topic, ack.code) for ack in client.subacks],
        [(message.topic, message.payload) for message in client.messages],
    )


@settings(max_examples=150, deadline=None)
@given(
    ACTIONS, st.lists(st.integers(1, 200), min_size=1, max_size=8), st.lists(st.integers(1, 60), min_size=1), st.data()
)
def test_the_same_commands_have_the_same_effect_as_over_tcp(actions, frame_sizes, piece_sizes, data):
    stream = encoded(actions)
    with Bench() as bench:
        plain = bench.adopt(1 << 20)
        plain.send_bytes(stream)
        plain.drain()
        expected = seen(plain)
    sent, at = b"", 0
    for i in range(10_000):
        if at >= len(stream):
            break
        part = stream[at : at + frame_sizes[i % len(frame_sizes)]]
        at += len(part)
        sent += frame(part, mask=struct.pack("<I", (i * 2_654_435_761) & 0xFFFF_FFFF))
        if data.draw(st.integers(0, 9)) == 0:
            sent += frame(b"ping", PING)
    with Bench() as bench:
        client = adopt(bench).upgrade()
        at = 0
        for i in range(100_000):
            if at >= len(sent):
                break
            client.feed_raw(sent[at : at + piece_sizes[i % len(piece_sizes)]])
            at += piece_sizes[i % len(piece_sizes)]
        assert seen(client) == expected


# ---- random bytes ----


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_after_the_upgrade_never_reach_the_protocol_unmasked(sent, as_frame):
    with Bench() as bench:
        client = adopt(bench).upgrade()
        client.feed_raw(frame(sent) if as_frame else sent)
        bench.settle(60_000)
        assert bench.stats()["published"] == 0 or as_frame


def test_masked_is_its_own_inverse():
    assert masked(masked(b"abcdefg", b"1234"), b"1234") == b"abcdefg"


def test_the_handshake_needs_its_answer_before_frames_are_sent():
    with Bench() as bench:
        client = adopt(bench)
        client.feed_raw(request())
        assert client.head.endswith(b"\r\n\r\n")
        assert client.reader.frames == []
