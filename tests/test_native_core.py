"""The C boundary as Python uses it: a stepped core, waiting commands, and declared structs."""

import pytest

from blipmq._native import ffi
from blipmq.base.peer import peer_name
from blipmq.native.config import CoreConfig, WalConfig
from blipmq.native.core import Core
from blipmq.native.errors import CoreBusy, CoreError
from blipmq.native.events import (
    _READERS,
    _SUBSCRIBER_LAYOUT,
    STATS_FIELDS,
    Attached,
    Closed,
    CloseReason,
    Consumed,
    Hello,
    Out,
    Stats,
    Sub,
    Subscriber,
)
from blipmq.native.wal import WalReport
from blipmq.wire import frames as wire

SMALL = CoreConfig(ring_bytes=1 << 16)


@pytest.fixture
def core():
    core = Core(SMALL)
    core.now_ms = 0
    yield core
    core.free()


def step(core, advance_ms=1):
    """One turn, then all events."""
    core.now_ms += advance_ms
    core.wait(0)
    core.turn(core.now_ms, 1_700_000_000_000 + core.now_ms)
    events = list(core.events())
    core.retry()
    return events


def events_until(core, wanted):
    """Run turns until `wanted` events have arrived; the test fails if they do not."""
    got = []
    for _ in range(10_000):
        got += step(core)
        if len(got) >= wanted:
            return got
    raise AssertionError(f"{len(got)} events of {wanted}: {got[-3:]}")


def attach(core, seq=1):
    core.attach(seq, trusted=True)
    (event,) = events_until(core, 1)
    assert isinstance(event, Attached) and event.seq == seq
    return event.conn


def test_the_settings_have_the_declared_fields_in_order():
    assert CoreConfig._fields == tuple(name for name, _ in ffi.typeof("bq_config_t").fields)


def test_the_counters_are_unsigned_64_bit_without_gaps():
    fields = ffi.typeof("bq_stats_t").fields
    assert {field.type.cname for _, field in fields} == {"uint64_t"}
    assert ffi.sizeof("bq_stats_t") == 8 * len(STATS_FIELDS)


def test_wal_settings_and_reports_have_the_declared_fields_in_order():
    for declared, ours in (("bq_wal_config_t", WalConfig), ("bq_wal_report_t", WalReport)):
        assert ours._fields == tuple(name for name, _ in ffi.typeof(declared).fields)


def test_every_declared_event_has_a_decoder():
    assert set(ffi.typeof("enum bq_event_type").elements) == set(_READERS)


def test_settings_out_of_range_raise_and_create_no_core():
    with pytest.raises(CoreError, match="did not start"):
        Core(CoreConfig(tick_ms=0))


def test_a_core_stepped_by_hand_serves_a_connection_without_a_socket(core):
    conn = attach(core)
    core.input(conn, wire.encode_command(wire.SUB, "t", seq=5))
    events = events_until(core, 2)
    assert Sub(conn, 5, "t", "", 0, False, True, "", trusted=True) in events
    core.subscribe(conn, 5, "t")
    core.input(conn, wire.encode_command(wire.PUB, "t", b"payload"))
    out = b"".join(event.data for event in events_until(core, 2) if isinstance(event, Out))
    ack, message = wire.FrameReader().feed(out)
    assert ack == wire.SubAck("t", "subscribed", 5, 0)
    assert (message.id, message.payload, message.timestamp_ms // 1000) == (1, b"payload", 1_700_000_000)


def test_commands_for_a_full_ring_wait_and_arrive_in_order(core):
    count = 5000
    for seq in range(1, count + 1):
        core.stats(seq)
    assert core._backlog, "the ring held everything: the test needs more commands"
    assert [event.seq for event in events_until(core, count)] == list(range(1, count + 1))
    assert not core._backlog


def test_commands_do_not_overtake_waiting_ones(core):
    seqs = []
    for seq in range(1, 4001):
        core.stats(seq)
        if seq % 7 == 0:
            seqs += [event.seq for event in step(core)]
    seqs += [event.seq for event in events_until(core, 4000 - len(seqs))]
    assert seqs == list(range(1, 4001))


def test_the_owner_is_notified_once_of_waiting_commands():
    calls = []
    core = Core(SMALL, on_backlog=lambda: calls.append(1))
    core.now_ms = 0
    for seq in range(5000):
        core.stats(seq)
    assert calls == [1]
    while not core.retry():
        step(core)
    core.free()


def test_waiting_input_bytes_are_limited_and_answers_are_not(core, monkeypatch):
    monkeypatch.setattr("blipmq.native.core.BACKLOG_COMMANDS_MAX", 10)
    conn = attach(core)
    with pytest.raises(CoreBusy):
        for _ in range(10_000):
            core.input(conn, b"\0" * 1000)
    assert core._backlog_count == 10
    core.close(conn)
    core.stats(1)
    events = []
    while not any(isinstance(event, Stats) for event in events):
        events += step(core)
    assert core._backlog_count == core._backlog_bytes == 0


def test_a_command_that_can_never_fit_does_not_block_later_ones(core):
    conn = attach(core)
    while not core._backlog:
        core.stats(0)
    core.reply(conn, 1, 0, "", bytes(64 << 20))
    core.stats(7)
    seqs, errors = [], 0
    while 7 not in seqs:
        try:
            seqs += [event.seq for event in step(core)]
        except CoreError as error:
            assert "larger than the core accepts" in str(error)
            errors += 1
    assert (errors, len(core._backlog)) == (1, 0)


def test_a_closed_connection_is_reported_and_its_handle_is_invalid(core):
    conn = attach(core)
    core.close(conn)
    (closed,) = events_until(core, 1)
    assert closed == Closed(conn, CloseReason.BROKER, "", "")
    core.input(conn, b"x")
    core.reply(conn, 1, 0, "hello?")
    core.stats(9)
    assert [type(event) for event in events_until(core, 1)] == [Stats]


def test_in_memory_input_is_reported_as_consumed_per_frame(core):
    conn = attach(core)
    frame = wire.encode_command(wire.PUB, "t", bytes(5000))
    core.input(conn, frame[:3000])
    core.stats(1)
    assert not any(isinstance(event, Consumed) for event in events_until(core, 1))
    core.input(conn, frame[3000:])
    assert events_until(core, 1) == [Consumed(conn, len(frame))]


def test_a_bytearray_and_a_memoryview_are_copied_before_the_call_returns(core):
    conn = attach(core)
    data = bytearray(wire.encode_command(wire.PUB, "t", b"x"))
    core.input(conn, memoryview(data))
    size, data[:] = len(data), bytes(len(data))
    assert events_until(core, 1) == [Consumed(conn, size)]


def test_events_can_be_taken_a_few_at_a_time(core):
    for seq in range(10):
        core.stats(seq)
    core.wait(0)
    core.turn(1, 1)
    assert [event.seq for event in core.events(4)] == [0, 1, 2, 3]
    assert [event.seq for event in core.events(4)] == [4, 5, 6, 7]
    assert [event.seq for event in core.events()] == [8, 9]


# ---- time to live, by advancing time ----


def stuck_subscriber(core):
    """A subscriber with a used-up window, so later messages wait in its queue. Returns it and a publisher."""
    subscriber, publisher = attach(core, 1), attach(core, 2)
    core.input(subscriber, wire.encode_command(wire.SUB, "t"))
    step(core)
    core.subscribe(subscriber, 0, "t")
    for _ in range(8):
        core.input(publisher, wire.encode_command(wire.PUB, "t", bytes(60_000)))
        step(core, advance_ms=0)
    return subscriber, publisher


def counters(core):
    core.stats(99)
    return next(event.counters for event in events_until(core, 1) if isinstance(event, Stats))


@pytest.mark.parametrize("lazy", [0, 1], ids=["timers", "lazily"])
def test_a_message_expires_after_its_ttl_and_is_counted(lazy):
    core = Core(SMALL._replace(tick_ms=10, lazy_expiry=lazy))
    core.now_ms = 1000
    subscriber, publisher = stuck_subscriber(core)
    before = counters(core)["queued_messages"]
    for ttl_ms in (50, 200, 0):
        core.input(publisher, wire.encode_command(wire.PUB, "t", b"ttl %d" % ttl_ms, ttl_ms=ttl_ms))
    step(core, advance_ms=0)
    assert counters(core)["queued_messages"] == before + 3
    step(core, advance_ms=100)
    if not lazy:  # the timers do not wait until the message is at the head of the queue
        assert (counters(core)["queued_messages"], counters(core)["dropped_ttl"]) == (before + 2, 1)
    received = bytearray()
    for _ in range(200):  # the subscriber continues to read
        core.credit(subscriber, 1 << 20)
        for event in step(core, advance_ms=0):
            if isinstance(event, Out):
                received += event.data
    after = counters(core)
    assert (after["queued_messages"], after["dropped_ttl"]) == (0, 1)
    assert b"ttl 50" not in received and b"ttl 200" in received and b"ttl 0" in received
    core.free()


def test_the_default_and_the_longest_time_to_live_come_from_the_settings():
    core = Core(SMALL._replace(tick_ms=10, default_ttl_ms=100, max_ttl_ms=1000))
    core.now_ms = 1000
    _, publisher = stuck_subscriber(core)
    core.input(publisher, wire.encode_command(wire.PUB, "t", b"a week, it wishes", ttl_ms=7 * 86_400_000))
    step(core, advance_ms=0)
    queued = counters(core)["queued_messages"]
    step(core, advance_ms=200)
    # Messages with the default time to live are removed, except a partly sent one: it is completed.
    assert counters(core)["queued_messages"] == 2 < queued
    step(core, advance_ms=1000)
    assert counters(core)["queued_messages"] == 1
    core.free()


def test_peer_addresses_are_formatted_as_usual():
    assert peer_name(bytes(16), 0) == ""
    assert peer_name(bytes(10) + b"\xff\xff\x7f\0\0\x01", 80) == "127.0.0.1:80"
    assert peer_name(bytes(15) + b"\x01", 443) == "[::1]:443"


def test_freeing_twice_is_harmless(core):
    core.free()
    assert list(core.events()) == []
    assert "freed" in repr(core)


def test_a_subscriber_record_is_decoded_as_declared():
    fields = dict(ffi.typeof("bq_subscriber_t").fields)
    names = [name for name in fields if not name.startswith("reserved")]
    assert [{"peer_address": "peer"}.get(name, name) for name in Subscriber._fields] == names
    row = ffi.new("bq_subscriber_t *", {name: number for number, name in enumerate(names, 1) if name != "peer"})
    row.peer = bytes(range(16))
    (unpacked,) = _SUBSCRIBER_LAYOUT.iter_unpack(bytes(ffi.buffer(row)))
    expected = [bytes(range(16)) if name == "peer" else number for number, name in enumerate(names, 1)]
    assert list(unpacked) == expected


def test_the_repr_of_hello_does_not_show_its_key():
    assert "s3cret" not in repr(Hello(1, 2, 1, "me", b"s3cret", ""))
