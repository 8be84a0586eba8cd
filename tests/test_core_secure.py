"""TLS in the core, stepped by hand, with the toy module of tests/toy.py: records cut anywhere, every result of the module,
limits, ends.

Invariant: the module fails at a lost, repeated or reordered record, and the process ends if two threads use a state.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepped import Bench, conserved
from toy import ALERT, ASK, CC, CLOSE, DATA, HANDSHAKE, TESTS, Toy, ToyBench, ToyClient

from blipmq.native.errors import CoreError
from blipmq.native.events import CloseReason, Handshake, Secured
from blipmq.wire import frames as wire

NATIVE = TESTS.parent / "native"
HELLO_MS = 5000
LINGER_MS = 1000
UNSENT_BYTES = 176 << 10


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def begin(toy: Toy) -> Iterator[Callable[..., ToyBench]]:
    """Start benches, and check that they leave nothing in the module."""
    benches = []

    def new(**limits: int) -> ToyBench:
        benches.append(ToyBench(toy, **limits))
        return benches[-1]

    yield new
    for bench in benches:
        bench.present = True
        sums = conserved(bench.stats())
        bench.__exit__(None, None, None)
        assert sums
    assert toy.alive == 0


Begin = Callable[..., ToyBench]


def secure_counts(bench: Bench) -> tuple[int, ...]:
    counters = bench.stats()
    return tuple(counters[f"secure_{name}"] for name in ("done", "failed", "refused", "open", "pending"))


# ---- the thread --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_handshakes_in_their_thread_have_no_race_and_leave_nothing(tmp_path: Path, sanitizers: str) -> None:
    program = tmp_path / "test_secure"
    apart = {NATIVE / "fuzz", NATIVE / "tls"}
    sources = [path for path in sorted(NATIVE.rglob("*.c")) if apart.isdisjoint(path.parents)]
    sources += [TESTS / "native" / "test_secure.c", TESTS / "native" / "toy_secure.c"]
    flags = [
        "-std=gnu11",
        "-O1",
        "-g",
        "-DBQ_CHECK",
        "-pthread",
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all",
    ]
    subprocess.run([*CC, *flags, f"-I{NATIVE}", *map(str, sources), "-o", str(program)], check=True)
    for _ in range(3):
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr


# ---- handshakes ------------------------------------------------------------------------------------------------------


def test_a_client_is_served_after_its_handshake(begin: Begin) -> None:
    bench = begin()
    client = bench.dial()
    assert secure_counts(bench) == (0, 0, 0, 0, 1)
    client.shake(b"", b"")
    assert client.kinds == [HANDSHAKE, HANDSHAKE]
    assert secure_counts(bench) == (1, 0, 0, 1, 0)
    client.hello_over().subscribe("t")
    client.publish("t", b"one")
    client.pump()
    assert client.payloads == [b"one"]
    client.socket.close()
    bench.settle()
    assert secure_counts(bench) == (1, 0, 0, 0, 0)


def test_frames_directly_behind_the_last_handshake_record_are_served(begin: Begin) -> None:
    bench = begin()
    reader = bench.secure_client().subscribe("t")
    client = bench.dial()
    frames = wire.encode_command(wire.PUB, "t", b"early")
    first, last = client.records.seal(HANDSHAKE), client.records.seal(HANDSHAKE)
    client.raw(first + last + client.records.data(frames))
    bench.settle()
    reader.pump()
    assert reader.payloads == [b"early"]


def test_a_handshake_cut_into_single_bytes_is_completed(begin: Begin) -> None:
    bench = begin()
    client = bench.dial()
    for byte in client.records.seal(HANDSHAKE, b"a longer content") + client.records.seal(HANDSHAKE):
        client.raw(bytes((byte,)))
        bench.settle()
    assert secure_counts(bench)[0] == 1


def test_an_answer_longer_than_a_record_is_sent_completely(begin: Begin) -> None:
    bench = begin(steps=1, answer_bytes=90_000)
    client = bench.dial(buffer_bytes=4096)
    client.shake(b"")
    assert client.kinds == [HANDSHAKE] * 6
    assert secure_counts(bench) == (1, 0, 0, 1, 0)


def test_a_certificate_is_reported_before_the_first_request(begin: Begin) -> None:
    bench = begin()
    bench.answering = False
    client = bench.dial()
    bench.present = False  # Python is busy until all events have come
    client.shake(b"Csensor-12", b"")
    client.send(wire.HELLO, seq=1, client_id="c", protocol=wire.PROTOCOL)
    bench.settle()
    events = list(bench.core.events())
    assert isinstance(events[0], Secured)
    assert (events[0].result, events[0].certificate, events[0].version) == (Handshake.DONE, "sensor-12", "toy")
    assert events[1].conn == events[0].conn


def test_no_request_is_parsed_while_the_certificate_has_no_room_in_the_event_ring(begin: Begin) -> None:
    bench = begin(ring_bytes=65536)
    client = bench.dial()
    bench.answering, bench.present = False, False
    for seq in range(1000, 2000):  # short answers that nobody takes fill the ring completely
        bench.core.list(seq)
        bench.turn()
    for content in b"Csensor-12", b"":
        client.raw(client.records.seal(HANDSHAKE, content))
        bench.turn()
    client.raw(client.records.data(wire.encode_command(wire.HELLO, seq=1, client_id="c", protocol=wire.PROTOCOL)))
    bench.turn()
    bench.present = True
    for _ in range(50):
        bench.turn(5)
    assert [event.certificate for event in bench.secured] == ["sensor-12"]
    assert len(bench.asked) == 1 and bench.asked[0].conn == bench.secured[0].conn


def test_handshakes_without_certificate_are_reported_only_on_request(begin: Begin) -> None:
    quiet = begin()
    quiet.secure_client()
    assert quiet.secured == []
    telling = begin(tell=True)
    telling.secure_client()
    assert [(event.result, event.certificate) for event in telling.secured] == [(Handshake.DONE, None)]


def test_a_failed_handshake_sends_its_alert_and_has_no_effect(begin: Begin) -> None:
    bench = begin()
    client = bench.dial()
    frames = wire.encode_command(wire.PUB, "t", b"x")
    client.raw(client.records.seal(HANDSHAKE, b"Fthe reason") + client.records.data(frames))
    client.pump()
    assert client.kinds == [ALERT] and client.eof
    assert [(e.result, e.reason) for e in bench.secured] == [(Handshake.FAILED, "the reason")]
    assert bench.stats()["published"] == 0
    assert secure_counts(bench) == (0, 1, 0, 0, 1)
    bench.settle(LINGER_MS + 100)
    assert secure_counts(bench) == (0, 1, 0, 0, 0) and bench.stats()["connections"] == 0
    assert bench.closed == []


def test_bytes_that_are_not_tls_never_reach_the_parser(begin: Begin) -> None:
    bench = begin()
    client = bench.dial()
    client.raw(wire.encode_command(wire.PUB, "t", b"x" * 500))
    client.pump()
    assert bench.stats()["published"] == 0 and bench.stats()["frames_bad"] == 0
    assert bench.secured[0].reason == "not a handshake"


def test_a_handshake_is_ended_at_its_deadline(begin: Begin) -> None:
    bench = begin(hello_timeout_ms=HELLO_MS)
    silent, slow = bench.dial(), bench.dial()
    slow.shake(b"")
    bench.settle(HELLO_MS + 100)
    assert [(event.result, event.limit_ms) for event in bench.secured] == [(Handshake.LATE, HELLO_MS)] * 2
    silent.pump()
    assert silent.eof
    assert secure_counts(bench) == (0, 2, 0, 0, 0)


def test_one_deadline_holds_for_handshake_and_hello(begin: Begin) -> None:
    bench = begin(require_hello=1, hello_timeout_ms=HELLO_MS)
    client = bench.dial()
    bench.settle(HELLO_MS // 2)
    client.shake(b"", b"")
    bench.settle(HELLO_MS // 2 + 100)
    assert [event.detail for event in bench.closed] == ["no HELLO in time"]


def test_a_client_without_hello_stays_if_none_is_required(begin: Begin) -> None:
    bench = begin(hello_timeout_ms=HELLO_MS)
    client = bench.secure_client()
    bench.settle(10 * HELLO_MS)
    client.subscribe("t")
    assert bench.stats()["subscriptions"] == 1


def test_at_max_pending_the_slowest_handshake_is_displaced(begin: Begin) -> None:
    bench = begin(max_pending=3)
    clients = [bench.dial() for _ in range(5)]
    assert secure_counts(bench) == (0, 0, 2, 0, 3)
    assert [event.result for event in bench.secured] == [Handshake.DISPLACED] * 2
    for client in clients[:2]:
        client.pump()
        assert client.eof
    clients[2].shake(b"", b"")
    assert secure_counts(bench) == (1, 0, 2, 1, 2)


def test_plain_connections_are_not_limited_by_handshakes_if_no_hello_is_required(begin: Begin) -> None:
    bench = begin(max_pending=1)
    bench.dial()
    plain = bench.adopt()
    plain.publish("t")
    bench.settle()
    assert bench.stats()["published"] == 1 and secure_counts(bench)[4] == 1


def test_over_max_connections_hello_over_tls_is_answered_with_429(begin: Begin) -> None:
    bench = begin(max_connections=1)
    bench.listen(secure=True)
    first = bench.dial_tcp().shake(b"", b"")
    second = bench.dial_tcp().shake(b"", b"")
    second.send(wire.HELLO, seq=7, client_id="c", protocol=wire.PROTOCOL)
    second.pump()
    assert [(reply.seq, reply.code) for reply in second.replies] == [(7, 429)]
    assert second.kinds[-1] == CLOSE and second.eof
    assert not first.eof


def test_at_most_50_failures_a_second_are_reported(begin: Begin) -> None:
    bench = begin(max_pending=200, max_connections=300)
    for _ in range(70):
        client = bench.dial()
        client.raw(b"\xff" * 10)
        bench.settle()
    assert len(bench.secured) == 50
    assert bench.stats()["secure_failed"] == 70
    bench.settle(1000)
    bench.dial().raw(b"\xff" * 10)
    bench.settle()
    assert len(bench.secured) == 51


def test_a_secure_listener_without_a_context_is_closed() -> None:
    with Bench() as bench:
        ours = bench.adopted(secure=True)
        bench.settle()
        ours.setblocking(True)
        assert ours.recv(1) == b""
        ours.close()
        bench.listen(secure=True)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bench.address)


def test_a_module_of_another_version_is_refused(toy: Toy) -> None:
    table = (ctypes.c_uint32 * 64)(7)
    with Bench() as bench, pytest.raises(CoreError, match="another version"):
        bench.core.secure(ctypes.addressof(table), 0)


def test_open_connections_keep_their_context_when_it_is_replaced(begin: Begin, toy: Toy) -> None:
    bench = begin()
    client = bench.secure_client()
    half = bench.dial().shake(b"")
    before = toy.alive
    bench.core.secure(toy.table, toy.context(steps=1))
    bench.settle()
    assert toy.alive == before + 1, "the old one lives as long as a connection uses it"
    half.shake(b"")
    bench.dial().shake(b"")
    assert secure_counts(bench)[0] == 3
    client.subscribe("t")
    client.socket.close()
    half.socket.close()
    bench.settle()
    assert toy.alive == 2, "the new context and the connection that uses it"


def test_a_context_in_an_unread_command_is_freed_with_the_core(toy: Toy) -> None:
    with Bench() as bench:
        bench.core.secure(toy.table, toy.context())
    assert toy.alive == 0


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_close_notify_is_answered_after_all_replies(begin: Begin) -> None:
    bench = begin()
    client = bench.secure_client().hello_over()
    frames = b"".join(wire.encode_command(wire.PING, seq=seq) for seq in range(10, 15))
    client.raw(client.records.data(frames) + client.records.seal(CLOSE))
    client.pump()
    assert [reply.seq for reply in client.replies[1:]] == list(range(10, 15))
    assert client.kinds[-1] == CLOSE and client.eof
    assert bench.stats()["connections"] == 0


def test_close_notify_while_a_request_waits_for_python(begin: Begin) -> None:
    bench = begin()
    client = bench.secure_client().hello_over()
    bench.answering = False
    frames = wire.encode_command(wire.SUB, "t", seq=3) + wire.encode_command(wire.PING, seq=4)
    client.raw(client.records.data(frames) + client.records.seal(CLOSE))
    client.pump()
    assert not client.eof and len(bench.asked) == 1
    bench.answer(bench.asked.pop())
    client.pump()
    assert [ack.seq for ack in client.subacks] == [3] and client.replies[-1].seq == 4
    assert client.kinds[-1] == CLOSE and client.eof


def test_end_of_file_without_close_notify_is_an_end_of_file(begin: Begin) -> None:
    bench = begin()
    client = bench.secure_client().hello_over()
    client.raw(client.records.data(wire.encode_command(wire.PING, seq=4)))
    client.socket.shutdown(socket.SHUT_WR)
    client.pump()
    assert client.replies[-1].seq == 4 and client.eof and client.kinds[-1] == CLOSE


def test_quit_is_followed_by_close_notify_and_a_linger(begin: Begin) -> None:
    bench = begin()
    client = bench.secure_client()
    client.send(wire.QUIT)
    client.pump()
    assert client.kinds[-1] == CLOSE and client.eof


def test_a_connection_that_python_closes_gets_close_notify(begin: Begin) -> None:
    bench = begin()
    bench.answering = False
    client = bench.secure_client()
    client.send(wire.HELLO, seq=1, client_id="c", protocol=wire.PROTOCOL)
    bench.settle()
    bench.core.close(bench.asked[0].conn, CloseReason.BROKER)
    client.pump()
    assert client.kinds[-1] == CLOSE and client.eof


def test_an_invalid_record_ends_the_connection_after_the_frames_before_it(begin: Begin) -> None:
    bench = begin()
    reader = bench.secure_client().subscribe("t")
    client = bench.secure_client().hello_over()
    frames = client.records.data(wire.encode_command(wire.PUB, "t", b"before"))
    client.raw(frames + b"\x09\x00\x01x" + client.records.data(wire.encode_command(wire.PUB, "t", b"after")))
    client.pump()
    reader.pump()
    assert reader.payloads == [b"before"]
    assert client.kinds[-1] == ALERT and client.eof
    assert bench.secured[-1].reason == "a record of an unknown type"
    assert bench.stats()["secure_failed"] == 0, "its handshake had succeeded"


def test_stopping_sends_queued_messages_and_close_notify(begin: Begin) -> None:
    bench = begin()
    client = bench.secure_client().subscribe("t")
    half = bench.dial().shake(b"")
    bench.adopt().publish("t", b"last")
    bench.settle()
    bench.core.stop(1000)
    bench.settle()
    bench.settle(2000)
    client.pump()
    assert client.payloads == [b"last"] and client.kinds[-1] == CLOSE and client.eof
    half.pump()
    assert half.eof and bench.stopped is not None


# ---- output ----------------------------------------------------------------------------------------------------------


def test_a_message_larger_than_all_buffers_arrives_unchanged(begin: Begin) -> None:
    bench = begin(max_frame_bytes=4 << 20)
    reader = bench.dial(buffer_bytes=4096).shake(b"", b"").subscribe("t")
    payload = bytes(range(251)) * 4000
    bench.adopt(1 << 20).publish("t", payload)
    bench.settle()
    reader.pump()
    assert reader.payloads == [payload]


def test_nothing_more_is_encrypted_while_ciphertext_waits(begin: Begin) -> None:
    bench = begin(subscriber_messages=10, subscriber_bytes=1 << 20)
    reader = bench.dial(buffer_bytes=4096).shake(b"", b"").subscribe("t")
    writer = bench.adopt(1 << 16)
    for number in range(3000):
        writer.publish("t", b"%04d" % number)
        bench.settle()
    counters = bench.stats()
    assert counters["dropped_queue_full"] > 1000, (
        "a reader that does not read loses messages by the policy of its queue"
    )
    reader.pump()
    assert reader.payloads[-1] == b"2999"
    assert reader.payloads == sorted(reader.payloads)
    assert len(reader.payloads) == bench.stats()["delivered"]


def test_little_more_is_encrypted_than_a_slow_reader_takes(begin: Begin) -> None:
    bench = begin(subscriber_messages=10_000, subscriber_bytes=16 << 20)
    reader = bench.dial(buffer_bytes=4096).shake(b"", b"").subscribe("t")
    writer = bench.adopt(1 << 18)
    for _ in range(400):
        writer.publish("t", bytes(10_000))
    for _ in range(300):
        bench.settle()
        reader.receive(2048)
    assert bench.stats()["delivered_bytes"] - reader.received_bytes < 300 << 10


def test_a_client_that_does_not_read_its_messages_can_still_publish(begin: Begin) -> None:
    bench = begin(subscriber_bytes=1 << 20)
    client = bench.dial(buffer_bytes=4096).shake(b"", b"").subscribe("t")
    for number in range(1, 101):
        rest = client.records.data(wire.encode_command(wire.PUB, "t", bytes(90_000)))
        while rest:
            taken = client.offer(rest)
            assert taken, "the core reads"
            rest = rest[taken:]
            bench.settle()
        assert bench.stats()["published"] == number


def test_input_stops_while_answers_of_tls_itself_wait(begin: Begin) -> None:
    bench = begin()
    client = bench.dial(buffer_bytes=4096).shake(b"", b"")
    asks = 0
    for _ in range(2000):
        records = b"".join(client.records.seal(ASK) for _ in range(100))
        if client.offer(records) != len(records):
            break
        asks += 100
        bench.settle()
    else:
        raise AssertionError("the core reads without end")
    assert asks * 3 > UNSENT_BYTES / 2
    assert asks * 3 < 2 * UNSENT_BYTES, "what the socket holds, and UNSENT_BYTES in the core"


def test_after_the_answers_are_read_input_continues(begin: Begin) -> None:
    bench = begin()
    client = bench.dial(buffer_bytes=4096).shake(b"", b"")
    for _ in range(300):
        client.raw(b"".join(client.records.seal(ASK) for _ in range(100)))
        client.pump()
    client.send_bytes(wire.encode_command(wire.PUB, "t", b"x"))
    client.pump()
    assert client.kinds.count(ASK) == 30_000
    assert bench.stats()["published"] == 1


def test_output_waits_while_half_a_message_of_tls_itself_has_come(begin: Begin) -> None:
    bench = begin()
    client = bench.secure_client().hello_over()
    replies = len(client.replies)
    client.raw(client.records.seal(ASK, b"H"))
    client.send(wire.PING, seq=4)
    client.send(wire.PING, seq=5)
    client.pump()
    assert len(client.replies) == replies and not client.eof
    client.raw(client.records.seal(ASK))
    client.pump()
    assert [reply.seq for reply in client.replies[replies:]] == [4, 5] and not client.eof


def test_memory_is_returned_when_a_slow_reader_has_read(begin: Begin) -> None:
    bench = begin()
    reader = bench.dial(buffer_bytes=4096).shake(b"", b"").subscribe("t")
    before = bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"]
    bench.adopt(1 << 18).publish("t", bytes(90_000))
    bench.settle()
    reader.pump()
    bench.settle()
    after = bench.stats()
    assert after["memory_used_bytes"] - after["pool_free_bytes"] <= before + (16 << 10)


# ---- input of all kinds, cut anywhere --------------------------------------------------------------------------------

OPERATION = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(["t", "u"]), st.integers(0, 70_000)),
    st.tuples(st.just("subscribe"), st.sampled_from(["t", "u", ">"])),
    st.tuples(st.just("ping")),
    st.tuples(st.just("bad")),
)


def frames_of(operations: list[tuple[object, ...]]) -> bytes:
    frames = wire.encode_command(wire.HELLO, seq=1, client_id="c", protocol=wire.PROTOCOL)
    for seq, (kind, *arguments) in enumerate(operations, 2):
        if kind == "publish":
            topic, size = arguments
            frames += wire.encode_command(wire.PUB, str(topic), bytes([seq]) * int(str(size)))
        elif kind == "subscribe":
            frames += wire.encode_command(wire.SUB, str(arguments[0]), seq=seq)
        elif kind == "ping":
            frames += wire.encode_command(wire.PING, seq=seq)
        else:
            frames += wire.encode_command(wire.PUB, "a..b", b"", seq=seq)
    return frames


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(OPERATION, max_size=12),
    st.lists(st.integers(1, 40_000), max_size=12),
    st.integers(1, 16 << 10),
    st.booleans(),
)
def test_the_same_frames_over_tcp_and_tls_have_the_same_effects(
    toy: Toy, operations: list[tuple[object, ...]], cuts: list[int], record_max: int, ends: bool
) -> None:
    frames = frames_of(operations)
    results = []
    for secure in (False, True):
        with ToyBench(toy) as bench:
            client = bench.secure_client() if secure else bench.use(ToyPlain(bench, bench.adopted(1 << 16)))
            bytes_ = client.records.data(frames, max(record_max, 200)) if secure else frames
            at = 0
            for cut in [*cuts, len(bytes_)]:
                client.raw(bytes_[at : at + cut])
                client.pump()
                at += cut
            if ends:
                if secure:
                    client.raw(client.records.seal(CLOSE))
                client.socket.shutdown(socket.SHUT_WR)
            client.pump()
            counters = bench.stats()
            names = ("published", "published_bytes", "enqueued", "delivered", "frames_in", "frames_bad", "connections")
            messages = [(message.topic, message.payload) for message in client.messages]
            results.append((client.eof, client.replies, client.subacks, messages, [counters[name] for name in names]))
    assert results[0] == results[1]
    assert toy.alive == 0


class ToyPlain(ToyClient):
    """A client without TLS, with the same methods."""

    def arrived(self, data: bytes) -> None:
        super(ToyClient, self).arrived(data)


DATA_KINDS = {DATA, HANDSHAKE, CLOSE, ASK, ALERT}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(DATA_KINDS)), st.binary(max_size=300)), max_size=30), st.data())
def test_any_records_cut_anywhere_leave_the_core_whole(
    toy: Toy, records: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    with ToyBench(toy, answer_bytes=40_000, require_hello=1, max_pending=2) as bench:
        client = bench.dial(buffer_bytes=4096)
        bytes_ = b"".join(client.records.seal(kind, content) for kind, content in records)
        while bytes_ and not client.eof:
            size = data.draw(st.integers(1, len(bytes_)))
            try:
                client.raw(bytes_[:size])
            except OSError:  # the core has closed
                break
            if data.draw(st.booleans()):
                client.pump()
            bench.settle(data.draw(st.sampled_from([0, 10, 700])))
            bytes_ = bytes_[size:]
        client.pump()
        counters = bench.stats()
        assert counters["secure_open"] + counters["secure_pending"] == counters["connections"]
        assert conserved(counters)
        bench.settle(20_000)
        assert bench.stats()["connections"] == 0, "a client without HELLO is not kept"
    assert toy.alive == 0
