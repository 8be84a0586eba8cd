"""Admission: limits, rate, deadline and descriptors of the core, stepped by hand.

Invariant: time is an argument, addresses are given, and every slot, token and millisecond is counted.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections import Counter

import pytest
from admission_model import AdmissionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped import Bench, Client, SocketClient

from blipmq.native.events import CloseReason, Hello
from blipmq.wire import frames as wire

TICK_MS = 10
HELLO_MS = 5000
REMOTE_ADDRESS = "198.51.100.7"


def guarded(**limits: int) -> Bench:
    """A core that requires HELLO. Python does not answer automatically."""
    bench = Bench(**{"require_hello": 1, "max_pending": 4, "max_pending_per_address": 4, **limits})
    bench.answering = False
    return bench


def say_hello(client: Client, **fields: object) -> None:
    client.send(wire.HELLO, **{"seq": 1, "client_id": "c", "protocol": wire.PROTOCOL, **fields})
    client.bench.settle()


def admit(bench: Bench) -> None:
    """Admit every client that has sent HELLO."""
    while bench.asked:
        event = bench.asked.pop()
        assert isinstance(event, Hello)
        bench.core.admit(event.conn, event.seq, "welcome")
    bench.settle()


# ---- pending slots ---------------------------------------------------------------------------------------------------


def test_at_max_pending_a_new_connection_closes_the_longest_silent_one() -> None:
    with guarded() as bench:
        first, second, third, fourth = (bench.attach() for _ in range(4))
        say_hello(first)
        fifth = bench.attach()
        assert fifth.conn
        bench.settle()
        assert [client.closed is None for client in (first, second, third, fourth)] == [True, False, True, True]
        assert second.closed and second.closed.reason is CloseReason.CROWDED
        counters = bench.stats()
        assert (counters["pending"], counters["refused_pending"], counters["connections"]) == (4, 1, 4)


def test_when_all_have_sent_hello_the_new_connection_is_refused() -> None:
    with guarded() as bench:
        clients = [bench.attach() for _ in range(4)]
        for client in clients:
            say_hello(client)
        assert bench.attach().conn == 0
        assert (bench.stats()["pending"], bench.stats()["refused_pending"]) == (4, 1)
        admit(bench)
        assert bench.stats()["pending"] == 0
        assert bench.attach().conn
        assert all(client.closed is None and client.replies[-1].code == 0 for client in clients)


def test_an_answered_but_unadmitted_connection_is_closed_first() -> None:
    with guarded() as bench:
        silent, refused, *_ = (bench.attach() for _ in range(4))
        say_hello(refused)
        event = bench.asked.pop()
        bench.core.reply(event.conn, event.seq, 400, "not like this")
        bench.settle()
        assert refused.closed is None and refused.replies[-1].code == 400
        bench.attach()
        bench.settle()
        assert refused.closed and silent.closed is None


def test_the_limit_of_one_address_does_not_affect_others() -> None:
    with guarded(max_pending=10, max_pending_per_address=2) as bench:
        assert all(bench.attach(address=REMOTE_ADDRESS).conn for _ in range(2))
        assert bench.attach(address=REMOTE_ADDRESS).conn == 0
        assert all(bench.attach(address=f"198.51.100.{n}").conn for n in (6, 8))
        counters = bench.stats()
        assert (counters["pending"], counters["refused_pending_address"], counters["refused_pending"]) == (4, 1, 0)


def test_an_ipv6_network_of_64_bits_counts_as_one_address() -> None:
    with guarded(max_pending=10, max_pending_per_address=2) as bench:
        assert bench.attach(address="2001:db8:0:1::1").conn
        assert bench.attach(address="2001:db8:0:1:ffff:ffff:ffff:ffff").conn
        assert bench.attach(address="2001:db8:0:1::2").conn == 0
        assert bench.attach(address="2001:db8:0:2::1").conn


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.0.9", "::1", ""])
def test_loopback_clients_are_bounded_only_in_total(address: str) -> None:
    with guarded(max_pending=10, max_pending_per_address=1) as bench:
        assert all(bench.attach(address=address).conn for _ in range(10))
        assert bench.stats()["refused_pending_address"] == 0


def test_a_pending_slot_is_freed_by_admission_close_and_deadline() -> None:
    with guarded(max_pending_per_address=1) as bench:
        for end in ("admitted", "closed", "late", "frame"):
            client = bench.attach(address=REMOTE_ADDRESS)
            assert client.conn, f"before: {end}"
            assert bench.attach(address=REMOTE_ADDRESS).conn == 0
            if end == "admitted":
                say_hello(client)
                admit(bench)
            elif end == "closed":
                bench.close(client)
            elif end == "late":
                bench.settle(HELLO_MS + TICK_MS)
            else:
                client.send_bytes(b"\0\0\0\0")
                bench.settle()
            assert bench.stats()["pending"] == 0
        assert bench.stats()["refused_pending_address"] == 4


def test_without_authentication_no_connection_is_pending() -> None:
    with Bench(max_pending=1, max_pending_per_address=1) as bench:
        clients = [bench.attach(address=REMOTE_ADDRESS) for _ in range(10)]
        bench.settle(10 * HELLO_MS)
        assert all(client.conn and client.closed is None for client in clients)
        assert bench.stats()["pending"] == 0


def test_a_trusted_connection_needs_no_pending_slot() -> None:
    with guarded(max_pending=1) as bench:
        bench.attach()
        assert all(bench.attach(trusted=True).conn for _ in range(3))
        assert bench.stats()["pending"] == 1


def test_the_slots_of_a_thousand_addresses_are_counted_and_freed() -> None:
    with guarded(max_pending=1000, max_pending_per_address=1) as bench:
        addresses = [f"2001:db8:{n:x}::1" if n % 2 else f"198.51.{n // 250}.{n % 250 + 1}" for n in range(1000)]
        for step in (1, 3, 7):
            clients = {address: bench.attach(address=address) for address in addresses}
            assert all(client.conn for client in clients.values())
            for address in addresses[::step]:
                bench.close(clients[address])
            for address in addresses:
                again = bench.attach(address=address)
                assert bool(again.conn) == (address in addresses[::step])
                bench.close(again)
            for client in clients.values():
                bench.close(client)
            assert bench.stats()["pending"] == 0


def test_displaced_pending_connections_cause_no_python_event() -> None:
    with guarded(max_pending=8) as bench:
        bench.listen()
        pending_clients = [bench.connect() for _ in range(100)]
        bench.settle()
        counters = bench.stats()
        assert (counters["accepted"], counters["closed"], counters["refused_pending"]) == (100, 92, 92)
        assert not bench.closed, "they are counted, not told one by one"
        for client in pending_clients:
            client.receive()
        assert [client.eof for client in pending_clients] == [True] * 92 + [False] * 8


# ---- the deadline ----------------------------------------------------------------------------------------------------


def test_slowly_sent_bytes_do_not_extend_the_deadline() -> None:
    with guarded() as bench:
        client = bench.attach(address=REMOTE_ADDRESS)
        for second in range(HELLO_MS // 1000):
            assert client.closed is None
            client.send_bytes(b"\0\0\1\0\4"[second : second + 1])
            bench.settle(1000)
        bench.settle(TICK_MS)
        assert client.closed and (client.closed.reason, client.closed.detail) == (
            CloseReason.UNAUTH,
            "no HELLO in time",
        )
        assert bench.stats()["hello_timeouts"] == 1


def test_the_hello_deadline_includes_the_wait_for_python() -> None:
    with guarded() as bench:
        client = bench.attach()
        bench.settle(HELLO_MS - 1000)
        say_hello(client)
        bench.settle(1000 + TICK_MS)
        assert client.closed and client.closed.detail == "no HELLO in time"
        admit(bench)
        assert bench.stats()["connections"] == 0


def test_an_admitted_connection_has_no_hello_deadline() -> None:
    with guarded() as bench:
        client = bench.attach()
        say_hello(client)
        admit(bench)
        bench.settle(100 * HELLO_MS)
        assert client.closed is None


def test_a_refusal_must_be_read_before_the_hello_deadline() -> None:
    """A wrong key at the last moment: the connection stays open for the Reply to be read, but not past the deadline."""
    with guarded() as bench:
        bench.listen()
        client = bench.connect()
        bench.settle(HELLO_MS - 100)
        say_hello(client)
        event = bench.asked.pop()
        bench.core.reply(event.conn, event.seq, 401, "no", close=True)
        bench.settle()
        client.receive()
        assert client.replies[-1].code == 401
        bench.settle(100 + TICK_MS)
        assert bench.stats()["connections"] == 0


def test_the_hello_timeout_can_be_changed_while_running() -> None:
    with guarded() as bench:
        bench.core.limits(bench.config._replace(hello_timeout_ms=200))
        client = bench.attach()
        bench.settle(190)
        assert client.closed is None
        bench.settle(20)
        assert client.closed


def test_many_expired_pending_connections_close_over_several_turns() -> None:
    with guarded(max_pending=1000) as bench:
        reader, writer = bench.attach(trusted=True), bench.attach(trusted=True)
        reader.send(wire.SUB, "t")
        bench.settle()
        bench.answer(bench.asked.pop())
        bench.settle()
        for _ in range(1000):
            bench.attach()
        bench.settle(HELLO_MS - 100)
        assert not bench.closed
        turns = 0
        bench.now_ms += 100 + TICK_MS
        while len(bench.closed) < 1000:
            writer.publish("t", b"%d" % turns)
            bench.turn()
            turns += 1
        assert 4 <= turns <= 10
        bench.settle()
        assert reader.payloads == [b"%d" % n for n in range(turns)]


# ---- cost of an unauthenticated connection ---------------------------------------------------------------------------


def test_only_one_frame_is_read_before_admission() -> None:
    with guarded() as bench:
        bench.listen()
        client = bench.connect()
        in_use = bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"]
        hello = wire.encode_command(wire.HELLO, seq=1, client_id="c", protocol=wire.PROTOCOL)
        client.offer(hello + wire.encode_command(wire.PUB, "t", bytes(100_000)))
        bench.settle()
        grown = bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"] - in_use
        assert grown <= 2048, "what follows HELLO stays with the kernel"
        assert bench.stats()["frames_in"] == 1
        admit(bench)
        bench.settle()
        assert bench.stats()["published"] == 1, "and is served once it is admitted"


def test_a_slow_pending_connection_uses_few_bytes() -> None:
    with guarded(max_pending=1000, max_pending_per_address=1000) as bench:
        clients = [bench.attach(address=REMOTE_ADDRESS) for _ in range(1000)]
        bench.settle()
        before = bench.stats()["memory_used_bytes"]
        for client in clients:
            client.send_bytes(b"\0\0\4")
        bench.settle()
        assert bench.stats()["memory_used_bytes"] - before <= 64 * 1000


def test_a_length_over_1_kib_closes_a_pending_connection_before_allocation() -> None:
    with guarded() as bench:
        for size in (1025, 1 << 20, 0xFFFFFFFF):
            client = bench.attach()
            client.send_bytes(size.to_bytes(4, "big"))
            bench.settle()
            assert client.closed and client.closed.reason is CloseReason.TOO_LARGE


# ---- accept rate -----------------------------------------------------------------------------------------------------


def crowd(bench: Bench, count: int) -> list[SocketClient]:
    """Open this many connections at once, without core turns meanwhile."""
    clients = []
    for _ in range(count):
        client = SocketClient(bench, socket.create_connection(bench.address))
        bench._sockets.append(client)
        clients.append(client)
    return clients


def test_connections_beyond_the_burst_are_accepted_at_the_rate() -> None:
    with Bench(accept_rate=100, accept_burst=5) as bench:
        bench.listen()
        crowd(bench, 30)
        bench.settle()
        assert bench.stats()["accepted"] == 5
        for passed_ms, taken in ((10, 6), (10, 7), (50, 12), (500, 17), *((10, n) for n in range(18, 31)), (1000, 30)):
            bench.settle(passed_ms)
            assert bench.stats()["accepted"] == taken, f"after {passed_ms} ms more"
        crowd(bench, 6)
        bench.settle()
        assert bench.stats()["accepted"] == 35, "a quiet second fills the bucket to the burst and no further"


def test_a_paused_listener_causes_no_work() -> None:
    with Bench(accept_rate=1, accept_burst=1) as bench:
        bench.listen()
        crowd(bench, 10)
        bench.settle()
        assert not bench.turn(), "no work although nine wait"
        assert 0 < bench.core.next_timer_ms() <= 1000
        assert bench.core.wait(0) == 0
        assert bench.stats()["accept_rests"] == 1


def test_clients_are_served_while_the_listener_is_paused() -> None:
    with Bench(accept_rate=1, accept_burst=1) as bench:
        bench.listen()
        reader, writer = bench.attach().subscribe("t"), bench.attach()
        crowd(bench, 50)
        for n in range(50):
            writer.publish("t", b"%d" % n)
            bench.settle()
        assert reader.payloads == [b"%d" % n for n in range(50)]
        assert bench.stats()["accepted"] == 3


def test_accept_rate_0_disables_the_rate_limit() -> None:
    with Bench(accept_rate=0, accept_burst=1) as bench:
        bench.listen()
        crowd(bench, 100)
        bench.settle()
        assert bench.stats()["accepted"] == 100 and bench.stats()["accept_rests"] == 0


def test_a_refused_connection_uses_no_token() -> None:
    with guarded(accept_rate=100, accept_burst=10, max_connections=2, max_pending=2) as bench:
        bench.listen()
        crowd(bench, 100)
        bench.settle()
        counters = bench.stats()
        assert (counters["accepted"], counters["refused"], counters["accept_rests"]) == (2, 98, 0)


def test_the_accept_rate_can_be_changed_while_the_listener_is_paused() -> None:
    with Bench(accept_rate=1, accept_burst=1) as bench:
        bench.listen()
        crowd(bench, 20)
        bench.settle()
        bench.core.limits(bench.config._replace(accept_rate=0))
        bench.settle(1000)
        assert bench.stats()["accepted"] == 20


def test_two_listeners_share_the_rate_fairly() -> None:
    with Bench(accept_rate=100, accept_burst=1) as bench:
        bench.listen()
        one = bench.address
        bench.listen()
        peers = Counter[int]()
        clients = crowd(bench, 20)
        bench.address = one
        clients += crowd(bench, 20)
        for _ in range(20):
            bench.settle(10)
        assert bench.stats()["accepted"] == 20
        for client in clients:
            client.offer(wire.encode_command(wire.HELLO, seq=1, client_id="c", protocol=wire.PROTOCOL))
        bench.settle()
        for client in clients:
            client.receive()
            peers[client.socket.getpeername()[1]] += bool(client.replies)
        assert sorted(peers.values()) == [10, 10]


# ---- descriptors -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def descriptors_left(count: int):
    """Limit the descriptors that this process may still open."""
    probe = os.dup(0)
    os.close(probe)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd")) - 1
    assert probe <= open_now, "there are gaps among the descriptors: the count would not be what it says"
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_reserved_descriptors_stay_free_and_the_backlog_waits_without_spinning() -> None:
    with Bench() as bench:
        bench.listen()
        clients = crowd(bench, 40)
        with descriptors_left(40):
            bench.settle()
            counters = bench.stats()
            room = counters["accepted"]
            assert 0 < room < 40 and counters["refused_descriptors"] == 1
            assert [event.paused for event in bench.accepting] == [True]
            with open("/dev/null"):  # one descriptor is reserved for the broker itself
                pass
            for _ in range(50):
                bench.settle(10)
                assert not bench.turn(), "it waits, it does not spin"
            assert bench.stats()["accepted"] == room, "and nobody is taken to be sent away"
            assert [event.paused for event in bench.accepting] == [True], "told once"
            clients[0].socket.shutdown(socket.SHUT_RDWR)
            bench.settle()
            assert bench.stats()["accepted"] == room + 1, "the freed one is used at once"
        bench.settle(100)
        assert bench.stats()["accepted"] == 39
        assert [event.paused for event in bench.accepting] == [True, False]


def test_without_descriptors_accepting_pauses_and_recovers() -> None:
    with Bench() as bench:
        bench.listen()
        crowd(bench, 10)
        with descriptors_left(0):
            for _ in range(20):
                bench.settle(50)
                assert not bench.turn()
            assert bench.stats()["accepted"] == 0 and len(bench.accepting) == 1
        bench.settle(100)
        assert bench.stats()["accepted"] >= 9
        assert [event.paused for event in bench.accepting] == [True, False]


def test_a_listener_added_after_all_were_removed_is_served() -> None:
    with Bench(accept_rate=1, accept_burst=1) as bench:
        bench.listen()
        crowd(bench, 3)
        bench.settle()
        bench.core.unlisten()
        bench.settle()
        bench.listen()
        crowd(bench, 1)
        bench.settle(1000)
        assert bench.stats()["accepted"] == 2


# ---- comparison with the reference model -----------------------------------------------------------------------------

ADDRESSES = ["", "127.0.0.1", REMOTE_ADDRESS, "198.51.100.8", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(ADDRESSES)),
        st.tuples(st.sampled_from(["hello", "leave", "nonsense"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(["admit", "refuse", "turn away"]), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([10, 100, 400])),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(steps=STEPS, total=st.integers(1, 5), each=st.integers(1, 3), most=st.integers(3, 8))
def test_admission_matches_reference_model(steps: list, total: int, each: int, most: int) -> None:
    with guarded(max_pending=total, max_pending_per_address=each, max_connections=most, hello_timeout_ms=500) as bench:
        twin, clients = AdmissionModel(total, each, most, 500, bench.now_ms), {}
        for step, (what, value) in enumerate(steps):
            standing = sorted(twin.pending)
            if what == "arrive":
                client = bench.attach(address=value)
                assert bool(client.conn) == twin.arrive(step, value), f"step {step}"
                if client.conn:
                    clients[step] = client
            elif what == "wait":
                twin.wait(value)
                bench.settle(value)
            elif what in ("hello", "leave", "nonsense") and standing:
                name = standing[value % len(standing)]
                if what == "hello" and name not in twin.heard:
                    twin.hello(name)
                    say_hello(clients[name])
                elif what == "leave":
                    twin.leave(name)
                    bench.close(clients[name])
                elif what == "nonsense" and name not in twin.heard:
                    twin.leave(name)
                    clients[name].send_bytes(b"\0\0\0\0")
            elif what in ("admit", "refuse", "turn away") and twin.heard:
                name = twin.heard[value % len(twin.heard)]
                event = next(event for event in bench.asked if event.conn == clients[name].conn)
                bench.asked.remove(event)
                if what == "admit":
                    twin.admit(name)
                    bench.core.admit(event.conn, event.seq, "")
                else:
                    twin.answer(name)
                    bench.core.reply(event.conn, event.seq, 400, "no")
                    if what == "turn away":
                        twin.leave(name)
                        bench.core.close(event.conn)
            bench.settle()
            bench.asked = [
                event for event in bench.asked if event.conn in {c.conn for c in clients.values() if not c.closed}
            ]
            inside = {name for name, client in clients.items() if client.closed is None}
            assert inside == twin.inside, f"step {step}: {what} {value}"
            counters = bench.stats()
            assert {name: counters[name] for name in twin.counts} == twin.counts, f"step {step}: {what} {value}"
