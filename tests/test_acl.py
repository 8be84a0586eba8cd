"""ACLs in a stepped core: permitted publishes, and the effect of a change on open connections.

The tests act as the Python side: they answer HELLO with ADMIT and define the ACL with a given id.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped import Bench, conserved

from blipmq.native.events import CloseReason, Hello
from blipmq.wire import frames as wire
from blipmq.wire.topics import match

TEXT = "this key may not publish to this topic"


def packed(*filters):
    return b"".join(struct.pack("<H", len(text.encode())) + text.encode() for text in filters)


class KeyBench(Bench):
    """Admits each HELLO with the ACL id that its api_key spells."""

    def answer(self, event):
        if isinstance(event, Hello):
            self.core.admit(event.conn, event.seq, "welcome", int(event.api_key or b"0"))
        else:
            super().answer(event)

    def set_acl(self, number, *filters):
        self.core.set_acl(number, packed(*filters))
        self.settle()

    def enter(self, number, client_id="c"):
        client = self.attach()
        client.send(wire.HELLO, seq=1, client_id=client_id, api_key=str(number), protocol=wire.PROTOCOL)
        self.settle()
        if client.replies:
            assert client.replies.pop().code == 0
        return client


@pytest.fixture
def bench():
    with KeyBench(require_hello=1) as bench:
        bench.everyone = bench.attach(trusted=True).subscribe("#", "$own/#")
        yield bench


def publish(bench, client, *topics, seq=0):
    for topic in topics:
        client.send(wire.PUB, topic, b"x", seq=seq)
    bench.settle()


def heard(bench):
    topics = [message.topic for message in bench.everyone.messages]
    bench.everyone.messages.clear()
    return topics


# ---- before HELLO


@pytest.mark.parametrize(
    "frame",
    [
        wire.encode_command(wire.PUB, "a", b"x"),
        wire.encode_command(wire.PUB, "a", b"x", qos=1, seq=1),
        wire.encode_command(wire.SUB, "a"),
        wire.encode_command(wire.UNSUB, "a"),
        wire.encode_command(wire.ACK, seq=1),
        wire.encode_command(wire.PING, seq=1),
        wire.encode_command(wire.INFO, seq=1),
    ],
    ids=["pub", "qos 1 pub", "sub", "unsub", "ack", "ping", "info"],
)
def test_no_command_before_hello_has_any_effect(bench, frame):
    bench.answering = False
    client = bench.attach()
    client.send_bytes(frame)
    bench.settle()
    assert client.closed.reason == CloseReason.UNAUTH
    assert (client.replies, client.subacks, bench.asked, heard(bench)) == ([], [], [], [])
    assert bench.stats()["published"] == 0


def test_frames_after_hello_wait_for_its_answer_and_a_refusal_discards_them(bench):
    bench.answering = False
    client = bench.attach()
    client.send_bytes(wire.encode_command(wire.HELLO, protocol=1) + wire.encode_command(wire.PUB, "a", b"x"))
    bench.settle()
    (hello,) = bench.asked
    assert heard(bench) == []
    bench.core.reply(client.conn, hello.seq, 401, "no", close=True)
    bench.settle()
    assert [reply.code for reply in client.replies] == [401] and client.closed is not None
    assert heard(bench) == [] and bench.stats()["published"] == 0


# ---- publishing


def test_a_key_without_an_acl_may_publish_everything(bench):
    publish(bench, bench.enter(0), "a", "b/c", "$own/x")
    assert heard(bench) == ["a", "b/c", "$own/x"]


def test_a_key_publishes_only_to_its_topics_and_filters(bench):
    bench.set_acl(1, "exact", "site/+/temp", "logs.>")
    client = bench.enter(1)
    publish(bench, client, "exact", "site/1/temp", "logs.a.b", seq=5)
    assert heard(bench) == ["exact", "site/1/temp", "logs.a.b"] and client.replies == []
    publish(bench, client, "exactly", "site/1", "site/1/temp/x", "logs", "$own/x", seq=6)
    assert heard(bench) == []
    assert [(reply.seq, reply.code, reply.message) for reply in client.replies] == [(6, 403, TEXT)] * 5
    stats = bench.stats()
    assert (stats["publishes_not_allowed"], stats["published"]) == (5, 3)
    assert client.closed is None and conserved(stats)


def test_a_refused_publish_without_seq_is_answered_with_seq_0(bench):
    bench.set_acl(1, "a")
    client = bench.enter(1)
    publish(bench, client, "b")
    assert [(reply.seq, reply.code) for reply in client.replies] == [(0, 403)]


def test_internal_topics_need_an_explicit_filter(bench):
    bench.set_acl(1, "#")
    bench.set_acl(2, "#", "$own/x")
    publish(bench, bench.enter(1), "$own/x", "a")
    publish(bench, bench.enter(2), "$own/x", "$own/y")
    assert heard(bench) == ["a", "$own/x"]


def test_an_empty_acl_allows_nothing(bench):
    bench.core.set_acl(1, b"")
    client = bench.enter(1)
    publish(bench, client, "a")
    assert heard(bench) == [] and client.replies[0].code == 403


def test_qos_1_publishes_are_checked_by_the_acl_too(bench):
    bench.set_acl(1, "a")
    client = bench.enter(1)
    client.send(wire.PUB, "b", b"x", qos=1, seq=9)
    client.send(wire.PUB, "a", b"x", qos=1, seq=10)
    bench.settle()
    assert [(reply.seq, reply.code) for reply in client.replies] == [(9, 403), (10, 503)]  # 503: the bench has no WAL


def test_cached_acl_results_belong_to_the_topic_and_not_to_its_cache_slot():
    """The topic cache has 64 slots: names come and go in the same slots, and publishers keep a hint to theirs."""
    with KeyBench(require_hello=1, route_cache_entries=64) as bench:
        bench.everyone = bench.attach(trusted=True).subscribe("#")
        bench.set_acl(1, "may/+")
        limited, other = bench.enter(1), bench.enter(0)
        for number in range(300):
            publish(bench, limited, f"may/{number % 7}")
            publish(bench, other, *[f"not/{number}/{spare}" for spare in range(5)])
            heard(bench)
            publish(bench, limited, f"not/{number}/{number % 5}", f"not/{(number + 150) % 300}/0")
            assert heard(bench) == []
        assert bench.stats()["publishes_not_allowed"] == 600


def test_many_connections_of_one_key_share_its_acl():
    with KeyBench(require_hello=1, max_connections=300) as bench:
        bench.set_acl(1, *[f"topic/{number}/{'x' * 200}" for number in range(64)])
        clients = [bench.enter(1, f"c{number}") for number in range(60)]
        before = bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"]
        more = [bench.enter(1, f"d{number}") for number in range(60, 64)]
        after = bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"]
        assert after - before < 4 * 200, "of the filters alone there are 13 KB"
        for client in clients + more:
            bench.close(client)
        bench.core.end_acl(1)
        bench.settle()


# ---- changes


def test_a_changed_acl_applies_to_open_connections(bench):
    bench.set_acl(1, "a")
    clients = [bench.enter(1, name) for name in "xyz"]
    for client in clients:
        publish(bench, client, "a", "b")
    assert heard(bench) == ["a"] * 3
    bench.set_acl(1, "b")
    for client in clients:
        publish(bench, client, "a", "b")
    assert heard(bench) == ["b"] * 3
    bench.core.set_acl(1, None)
    for client in clients:
        publish(bench, client, "a", "$own/b")
    assert heard(bench) == ["a", "$own/b"] * 3
    bench.core.set_acl(1, b"")
    for client in clients:
        publish(bench, client, "a", "$own/b")
    assert heard(bench) == []


def test_a_removed_acl_allows_nothing_and_its_id_can_be_reused(bench):
    bench.set_acl(1, "a")
    old = bench.enter(1, "old")
    publish(bench, old, "a")
    bench.core.end_acl(1)
    bench.set_acl(1, "a", "b")
    new = bench.enter(1, "new")
    publish(bench, old, "a", "b")
    assert heard(bench) == ["a"]
    publish(bench, new, "a", "b")
    assert heard(bench) == ["a", "b"]
    bench.close(old)
    publish(bench, new, "a")
    assert heard(bench) == ["a"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        b"\x01\x00",
        b"\x05\x00a",
        packed("a") + b"\x02",
        packed("a", "b/*#"),
        packed("") + packed("a"),
        packed("a\n"),
    ],
    ids=["half a size", "no text", "short text", "trailing", "no filter", "empty filter", "control"],
)
def test_an_invalid_acl_allows_nothing(bench, data):
    bench.set_acl(1, "a")
    client = bench.enter(1)
    bench.core.set_acl(1, data)
    publish(bench, client, "a")
    assert heard(bench) == []


@pytest.mark.parametrize("number", [7, 1 << 20, 1 << 40])
def test_an_unknown_acl_admits_no_connection(bench, number):
    bench.core.set_acl(1 << 40, packed("a"))
    client = bench.enter(number)
    assert client.closed.reason == CloseReason.MEMORY and client.replies == []


def test_a_revoked_subscriber_gets_the_error_and_no_queued_message(bench):
    client = bench.enter(0).subscribe("a", "b.*")
    client.stall()
    for number in range(50):
        bench.everyone.publish("a", b"%d" % number)
    bench.settle()
    bench.core.reply(client.conn, 0, 401, "gone", close=True, unasked=True, discard=True)
    bench.everyone.publish("a", b"later")
    bench.everyone.publish("b.c", b"later")
    bench.settle()
    client.read()
    bench.settle()
    assert client.messages == [] and [reply.code for reply in client.replies] == [401]
    assert client.closed is not None
    stats = bench.stats()
    assert (stats["dropped_disconnect"], stats["queued_messages"]) == (50, 0) and conserved(stats)


def test_a_partly_sent_frame_is_completed_before_the_answer(bench):
    client = bench.adopt()
    client.send_bytes(wire.encode_command(wire.HELLO, seq=1, protocol=1, api_key="0"))
    client.send_bytes(wire.encode_command(wire.SUB, "a"))
    client.drain()
    for number in range(20):
        bench.everyone.publish("a", bytes([number]) * 9000)
    bench.settle()
    (conn,) = bench.subscribers().keys() - {bench.everyone.conn}
    bench.core.reply(conn, 0, 401, "gone", close=True, unasked=True, discard=True)
    bench.settle()
    client.drain()
    assert client.eof and [reply.code for reply in client.replies] == [0, 401]
    assert 0 < len(client.messages) < 20
    assert [message.payload[:1] for message in client.messages] == [bytes([n]) for n in range(len(client.messages))]
    assert conserved(bench.stats())


# ---- enabling authentication ----


def test_enabling_authentication_closes_only_unauthenticated_connections():
    with KeyBench() as bench:
        inside = bench.attach(trusted=True).subscribe("a")
        legacy = bench.attach().subscribe("a")
        said_hello = bench.enter(0).subscribe("a")
        bench.set_acl(1, "a")
        keyed = bench.enter(1).subscribe("a")
        bench.core.limits(bench.config._replace(require_hello=1))
        inside.publish("a", b"x")
        bench.settle()
        assert legacy.closed.reason == said_hello.closed.reason == CloseReason.UNAUTH
        assert [reply.code for reply in said_hello.replies] == [401] and legacy.messages == said_hello.messages == []
        assert keyed.payloads == inside.payloads == [b"x"] and keyed.closed is inside.closed is None
        late = bench.attach()
        publish(bench, late, "a")
        assert late.closed.reason == CloseReason.UNAUTH
        bench.core.limits(bench.config)
        bench.settle()
        publish(bench, bench.attach(), "a")
        assert keyed.payloads == [b"x", b"x"]


TOPICS = st.sampled_from(["a", "b", "a/b", "a/b/c", "a.b", "$a", "a/", "b.c.d"])
FILTERS = st.sampled_from(["a", "b", "a/+", "a/#", "#", ">", "*", "a.*", "$a", "b.>", "+/b"])
STEPS = st.one_of(
    st.tuples(st.just("set"), st.integers(1, 2), st.lists(FILTERS, max_size=3)),
    st.tuples(st.just("all"), st.integers(1, 2), st.none()),
    st.tuples(st.just("publish"), st.integers(1, 2), st.lists(TOPICS, max_size=5)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=15))
def test_published_topics_match_the_acl_model_after_any_changes(steps):
    with KeyBench(require_hello=1) as bench:
        bench.everyone = bench.attach(trusted=True).subscribe("#", "$a")
        bench.set_acl(1)
        bench.set_acl(2)
        clients = {number: bench.enter(number, f"c{number}") for number in (1, 2)}
        allowed = {1: [], 2: []}
        for step, number, what in steps:
            if step == "publish":
                publish(bench, clients[number], *what)
                assert heard(bench) == [topic for topic in what if any(match(f, topic) for f in allowed[number])]
            elif step == "set":
                bench.set_acl(number, *what)
                allowed[number] = what
            else:
                bench.core.set_acl(number, None)
                allowed[number] = ["#", "$a"]
