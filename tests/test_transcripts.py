"""Transcripts: client requests and broker answers, frame by frame over real sockets.

Each test is one sentence of the protocol, run with hand-written clients against a broker in a separate process. To show
that a request is not answered, a test checks the answer to a later request.
"""

import signal
import socket
import struct

import pytest
from broker_process import parse_line, until
from hand_client import (
    ACK,
    HELLO,
    INFO,
    PING,
    PUB,
    QUIT,
    SUB,
    UNSUB,
    LegacyClient,
    Reply,
    SubAck,
    command,
    v1_command,
)

pytestmark = pytest.mark.blackbox

BAD_TOPICS = ["", "t" * 257, "a\0b", "a\nb", "a\x7fb", "a\x85b", "logs.*", "logs.>", "site/+", "site/#"]
BAD_FILTERS = ["", "f" * 257, "a\nb", "a.b*", "a.>.b", "a/b+", "a/#/b", "a.*/+", "site/#.>"]
UNVERIFIABLE = struct.pack(">I", 8) + b"\xff" * 8


def closed_lines(broker, client):
    """The log lines with the reason of a close."""
    return broker.lines("closed", peer=client.peer)


def why_closed(broker, client):
    """The reason in its only log line, read after the broker has ended."""
    broker.stop()
    lines = closed_lines(broker, client)
    assert len(lines) == 1, broker.log
    return lines[0]


# ---- legacy clients --------------------------------------------------------------------------------------------------


def test_a_v1_client_receives_messages_of_another_v1_client(broker, connect):
    reader, writer = connect(broker), connect(broker)
    reader.send(v1_command(SUB, "chat"))
    assert reader.next() == SubAck("chat", "subscribed")
    writer.send(v1_command(PUB, "chat", b"Hello", ttl_ms=5000))
    message = reader.next()
    assert (message.payload, message.ttl_ms, message.topic, message.qos) == (b"Hello", 5000, "chat", 0)
    assert not message.redelivered
    assert 1_700_000_000_000 < message.timestamp_ms < 1 << 45


def test_a_v1_client_receives_its_own_messages(broker, connect):
    client = connect(broker).subscribe("echo")
    client.publish("echo", b"me")
    assert client.next().payload == b"me"


def test_payloads_of_every_size_arrive_unchanged(broker, connect):
    reader, writer = connect(broker).subscribe("bytes"), connect(broker)
    for payload in (b"", b"\0", bytes(range(256)), b"\xff" * 1023, bytes(range(256)) * 4096):
        writer.publish("bytes", payload)
        assert reader.next().payload == payload


def test_a_legacy_client_gets_only_subacks_and_messages(broker, connect):
    client = connect(broker)
    client.publish("nobody", b"listens")
    client.send(command(PING, seq=1), command(INFO, seq=2), command(ACK, seq=3), v1_command(UNSUB, "never"))
    client.subscribe("still here")


def test_a_legacy_client_gets_no_messages_after_unsub(broker, connect):
    client = connect(broker).subscribe("news", "marker")
    client.send(v1_command(UNSUB, "news"))
    client.publish("news", b"too late")
    client.publish("marker", b"next")
    assert client.next().payload == b"next"


def test_a_topic_subscribed_twice_is_acknowledged_twice_and_delivered_once(broker, connect):
    client = connect(broker).subscribe("twice", "twice")
    client.publish("twice", b"one")
    client.publish("twice", b"two")
    assert [client.next().payload, client.next().payload] == [b"one", b"two"]


@pytest.mark.parametrize("broker", [{"logging.level": "debug"}], indirect=True)
def test_a_client_that_sends_quit_is_closed_without_a_warning(broker, connect):
    client = connect(broker).subscribe("t")
    client.send(v1_command(QUIT))
    assert client.is_closed()
    line = why_closed(broker, client)
    assert (line["level"], line["reason"]) == ("debug", "quit")


def test_messages_published_before_quit_are_delivered(broker, connect):
    reader, writer = connect(broker).subscribe("last"), connect(broker)
    writer.send(*[v1_command(PUB, "last", b"%d" % n) for n in range(100)], v1_command(QUIT))
    assert [reader.next().payload for _ in range(100)] == [b"%d" % n for n in range(100)]
    assert writer.is_closed()


@pytest.mark.parametrize(
    "frame",
    [
        UNVERIFIABLE,
        struct.pack(">I", 0),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        command(99),
        command(PUB, "logs.*", b"x"),
        command(SUB, "a.*/+"),
        command(SUB, "jobs", group="work\ners"),
        command(SUB, "orders", qos=1, durable=True),
    ],
    ids=["no table", "length 0", "HTTP", "no such action", "bad topic", "bad filter", "bad group", "durable"],
)
def test_a_refused_request_of_a_legacy_client_closes_it_with_one_log_line(broker, connect, frame):
    client = connect(broker)
    client.send(frame)
    assert client.is_closed()
    broker.stop()
    (line,) = [line for line in map(parse_line, broker.log) if line.get("peer") == client.peer]
    assert line["level"] == "warning"
    assert len(line.get("detail", "") + line.get("reason", "")) > 20, line


# ---- HELLO -----------------------------------------------------------------------------------------------------------


def test_hello_is_answered_with_its_seq_and_the_version(broker, connect):
    client = connect(broker)
    client.send(command(HELLO, client_id="gateway-17", protocol=1, seq=7))
    seq, code, text, id_, payload = client.next()
    assert (seq, code, id_, payload) == (7, 0, 0, b"")
    assert text.startswith("BlipMQ ")


def test_the_largest_request_number_is_returned_complete(broker, connect):
    client = connect(broker, hello=True)
    client.send(command(PING, seq=2**64 - 1))
    assert client.next() == Reply(2**64 - 1, 0, "", 0, b"")


def test_a_qos_0_publish_is_not_answered(broker, connect):
    client = connect(broker, hello=True)
    client.send(command(PUB, "quiet", b"x", seq=50))
    assert client.is_open()


def test_unsub_is_answered_0_once_and_404_afterwards(broker, connect):
    client = connect(broker, hello=True).subscribe("a")
    assert client.ask(UNSUB, "a").code == 0
    assert client.ask(UNSUB, "a").code == 404
    assert client.ask(UNSUB, "never.*").code == 404
    assert client.is_open()


def test_info_is_json_with_the_state_of_the_broker(broker, connect):
    client = connect(broker, hello=True, client_id="asker").subscribe("a", "b.>")
    info = client.info()
    assert info["address"] == broker.address
    assert info["state"] == "ok" and info["reasons"] == []
    assert info["clients"] == 1
    assert info["subscriptions_total"] == 2
    (row,) = info["subscriptions"]
    assert (row["client"], row["peer"], row["filters"]) == ("asker", client.peer, ["a", "b.>"])
    assert info["messages"]["dropped"] == {"ttl": 0, "queue_full": 0, "disconnect": 0, "session_log_bytes": 0}
    assert {"version", "uptime_s", "topics", "rates", "memory"} <= info.keys()


def test_another_protocol_version_is_answered_426_and_closed(broker, connect):
    client = connect(broker)
    client.send(command(HELLO, protocol=2, seq=1), command(PING, seq=2))
    answer = client.next()
    assert (answer.seq, answer.code) == (1, 426)
    assert "protocol 1" in answer.message
    assert client.is_closed()


def test_a_second_hello_is_answered_400_and_the_connection_stays_open(broker, connect):
    client = connect(broker, hello=True, client_id="first").subscribe("t")
    assert client.ask(HELLO, client_id="second", protocol=1).code == 400
    client.publish("t", b"still subscribed")
    assert client.next().payload == b"still subscribed"
    assert client.info()["subscriptions"][0]["client"] == "first"


def test_a_newer_connection_takes_over_its_client_id_and_the_older_gets_409(broker, connect):
    older = connect(broker, hello=True, client_id="pump").subscribe("t")
    newer = connect(broker, hello=True, client_id="pump").subscribe("t")
    assert older.next()[:2] == (0, 409)
    assert older.is_closed()
    newer.publish("t", b"mine now")
    assert newer.next().payload == b"mine now"
    assert newer.is_open()


def test_clients_without_a_client_id_do_not_take_over_each_other(broker, connect):
    first, second = connect(broker, hello=True), connect(broker, hello=True)
    assert first.is_open() and second.is_open()


def test_a_bad_topic_is_answered_400_and_the_connection_kept(broker, connect):
    client = connect(broker, hello=True)
    for topic in BAD_TOPICS:
        answer = client.ask(PUB, topic, b"x")
        assert (answer.code, bool(answer.message)) == (400, True), topic
    assert client.ask(PUB, None, b"no topic at all").code == 400
    assert client.is_open()


def test_a_bad_filter_is_answered_400_and_the_connection_kept(broker, connect):
    client = connect(broker, hello=True)
    for filter_ in BAD_FILTERS:
        for action in (SUB, UNSUB):
            answer = client.ask(action, filter_)
            assert (answer.code, bool(answer.message)) == (400, True), filter_
    assert client.is_open()


def test_unknown_actions_and_qos_are_answered_400_and_the_connection_kept(broker, connect):
    client = connect(broker, hello=True)
    assert client.ask(99).code == 400
    assert client.ask(PUB, "t", b"x", qos=2).code == 400
    assert client.ask(SUB, "t", qos=2).code == 400
    assert client.is_open()


def test_a_frame_that_cannot_be_verified_is_answered_400_and_closed(broker, connect):
    client = connect(broker, hello=True)
    client.send(UNVERIFIABLE, command(PING, seq=9))
    answer = client.next()
    assert (answer.seq, answer.code) == (0, 400)
    assert client.is_closed()
    line = why_closed(broker, client)
    assert (line["reason"], line["detail"]) == ("frame", answer.message)


def test_a_topic_that_is_not_utf_8_cannot_be_verified(broker, connect):
    client = connect(broker, hello=True)
    client.send(command(PUB, "\udcff\udcfe", b"x", seq=2))
    assert client.next()[:2] == (0, 400)
    assert client.is_closed()


@pytest.mark.parametrize("broker", [{"server.max_message_size_bytes": 1000}], indirect=True)
def test_an_oversized_frame_is_answered_413_before_it_is_complete(broker, connect):
    client = connect(broker, hello=True)
    size = 8 << 20
    client.send(struct.pack(">I", size))
    try:
        client.send(bytes(size))  # the broker discards the input, so that a reset does not lose the Reply
    except ConnectionError:
        pytest.fail("the broker reset the connection before its Reply could be read")
    answer = client.next()
    assert (answer.seq, answer.code) == (0, 413)
    assert "max_message_size_bytes" in answer.message
    assert client.is_closed()
    assert why_closed(broker, client)["reason"] == "too_large"


@pytest.mark.parametrize("broker", [{"server.max_message_size_bytes": 1000}], indirect=True)
def test_a_payload_at_the_limit_is_accepted_with_the_longest_topic(broker, connect):
    topic = "t" * 256
    client = connect(broker, hello=True).subscribe(topic)
    client.send(command(PUB, topic, bytes(1000), seq=2**63, ttl_ms=2**40))
    assert len(client.next().payload) == 1000


def test_answers_come_before_the_close_that_quit_asks_for(broker, connect):
    client = connect(broker, hello=True).subscribe("t")
    client.send(command(PING, seq=100), command(PUB, "t", b"own"), command(PING, seq=101), command(QUIT))
    assert client.next() == Reply(100, 0, "", 0, b"")
    assert client.next().payload == b"own"
    assert client.next() == Reply(101, 0, "", 0, b"")
    assert client.is_closed()


def test_many_requests_sent_at_once_are_answered_in_their_order(broker, connect):
    client = connect(broker, hello=True)
    requests = []
    for n in range(10, 1010, 5):
        requests += [command(SUB, f"t{n}", seq=n), command(PING, seq=n + 1), command(PUB, f"t{n}", b"%d" % n)]
        requests += [command(UNSUB, f"t{n}", seq=n + 2), command(PUB, f"t{n}", b"unheard"), command(INFO, seq=n + 3)]
    client.send(*requests)
    for n in range(10, 1010, 5):
        assert client.next() == SubAck(f"t{n}", "subscribed", n)
        assert client.next()[:2] == (n + 1, 0)
        assert client.next().payload == b"%d" % n
        assert client.next()[:2] == (n + 2, 0)
        assert client.next()[:2] == (n + 3, 0)


# ---- half-closed connections -------------------------------------------------------------------------------------------


def test_a_half_closed_client_is_answered_and_closed(broker, connect):
    reader, writer = connect(broker).subscribe("pipe"), connect(broker)
    writer.publish("pipe", b"from a pipe")
    writer.socket.shutdown(socket.SHUT_WR)
    assert reader.next().payload == b"from a pipe"
    assert writer.is_closed()


def test_an_incomplete_frame_delays_no_other_client(broker, connect):
    slow, reader, writer = connect(broker), connect(broker).subscribe("half", "other"), connect(broker)
    frame = v1_command(PUB, "half", b"whole" * 1000)
    slow.send(frame[:100])
    writer.publish("other", b"meanwhile")
    assert reader.next().payload == b"meanwhile"
    slow.send(frame[100:])
    assert reader.next().payload == b"whole" * 1000


def test_an_incomplete_frame_is_discarded_with_its_connection(broker, connect):
    half, reader = connect(broker), connect(broker, hello=True).subscribe("half")
    half.send(v1_command(PUB, "half", b"never")[:-1])
    half.socket.shutdown(socket.SHUT_WR)
    assert half.is_closed()
    assert reader.is_open()


def test_a_reset_subscriber_loses_no_message_of_others(broker, connect):
    gone, reader, writer = connect(broker).subscribe("r"), connect(broker).subscribe("r"), connect(broker)
    gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    for n in range(1000):
        writer.publish("r", b"%d" % n)
    assert [reader.next().payload for _ in range(1000)] == [b"%d" % n for n in range(1000)]


# ---- topics and filters ----------------------------------------------------------------------------------------------

TOPICS = [
    "user", "user.1", "user.1.name", "user.", ".user", "user..name", "logs.a", "logs.a.b", "site", "site/1", "site/1/temp",
    "site/1/temp/raw", "site/", "/site", "site//temp", "user.1/temp", "site/1.temp", "$sys", "$sys.load", "$sys/load",
]  # fmt: skip
FILTERS = {
    "user.1": ["user.1"],
    "user.*": ["user.1", "user.", "user.1/temp"],
    "*.user": [".user"],
    "user.*.name": ["user.1.name", "user..name"],
    "*": ["user", "site", "site/1", "site/1/temp", "site/1/temp/raw", "site/", "/site", "site//temp"],
    "*.*": ["user.1", "user.", ".user", "logs.a", "user.1/temp", "site/1.temp"],
    "logs.>": ["logs.a", "logs.a.b"],
    "user.>": ["user.1", "user.1.name", "user.", "user..name", "user.1/temp"],
    ">": [topic for topic in TOPICS if not topic.startswith("$")],
    "site/+": ["site/1", "site/", "site/1.temp"],
    "site/+/temp": ["site/1/temp", "site//temp"],
    "site/#": ["site", "site/1", "site/1/temp", "site/1/temp/raw", "site/", "site//temp", "site/1.temp"],
    "+/site": ["/site"],
    "#": [topic for topic in TOPICS if not topic.startswith("$")],
    "$sys": ["$sys"],
    "$sys.>": ["$sys.load"],
    "$sys.*": ["$sys.load"],
    "$sys/#": ["$sys", "$sys/load"],
    "$sys/+": ["$sys/load"],
}


def test_each_filter_matches_by_its_wildcard_syntax(broker, connect):
    readers = {filter_: connect(broker).subscribe(filter_, "the end") for filter_ in FILTERS}
    writer = connect(broker)
    for topic in TOPICS:
        writer.publish(topic, topic.encode())
    writer.publish("the end", b"")
    for filter_, reader in readers.items():
        got = [message.topic for message in iter(reader.next, None) if not ends(message, reader)]
        wanted = FILTERS[filter_]
        assert got == wanted, filter_


def ends(message, reader):
    """Whether this is the last message; then the stream is closed, so that further reading finds its end."""
    if message.topic == "the end":
        reader.send(v1_command(QUIT))
        return True
    assert message.payload == message.topic.encode()
    return False


def test_overlapping_filters_deliver_a_message_once(broker, connect):
    client = connect(broker, hello=True).subscribe("a.b", "a.*", "a.>", ">", "#", "+")
    client.publish("a.b", b"once")
    assert client.next().payload == b"once"
    assert client.is_open()
    client.ask(UNSUB, "a.b")
    client.publish("a.b", b"once more")
    assert client.next().payload == b"once more"
    assert client.is_open()


def test_filter_changes_take_effect_on_a_topic_in_use(broker, connect):
    early, late, writer = (
        connect(broker, hello=True).subscribe("a.b"),
        connect(broker, hello=True),
        connect(broker, hello=True),
    )
    writer.publish("a.b", b"1")
    assert early.next().payload == b"1"
    late.subscribe("a.*")
    writer.publish("a.b", b"2")
    assert early.next().payload == late.next().payload == b"2"
    assert late.ask(UNSUB, "a.*").code == 0
    writer.publish("a.b", b"3")
    assert early.next().payload == b"3"
    assert late.is_open()


# ---- order, ids, expiry -----------------------------------------------------------------------------------------------


def test_the_order_of_each_publisher_is_kept(broker, connect):
    reader, writers = connect(broker).subscribe("order.>"), [connect(broker) for _ in range(4)]
    for start in range(0, 2000, 50):
        for number, writer in enumerate(writers):
            frames = [v1_command(PUB, f"order.{n % 3}", b"%d %d" % (number, n)) for n in range(start, start + 50)]
            writer.send(*frames)
    got = [tuple(map(int, reader.next().payload.split())) for _ in range(8000)]
    for number in range(4):
        assert [n for writer, n in got if writer == number] == list(range(2000))


def test_message_ids_increase_by_one_for_each_publish(broker, connect):
    client = connect(broker, hello=True).subscribe("heard")
    client.publish("heard", b"")
    first = client.next().id
    client.publish("unheard", b"")
    client.ask(PUB, "heard.*", b"refused")
    client.publish("heard", b"")
    client.publish("heard", b"")
    assert [client.next().id, client.next().id] == [first + 2, first + 3]


def test_message_ids_do_not_go_back_over_a_restart(start_broker):
    last = 0
    for _ in range(3):
        broker = start_broker()
        with LegacyClient(broker.address) as client:
            client.subscribe("t")
            for _ in range(100):
                client.publish("t", b"")
            ids = [client.next().id for _ in range(100)]
        assert ids == list(range(ids[0], ids[0] + 100))
        assert ids[0] > last
        last = ids[-1]
        broker.stop()


@pytest.mark.parametrize("broker", [{"performance.network_optimizations.send_buffer_size": 65536}], indirect=True)
def test_messages_that_expire_for_a_slow_reader_are_counted_and_not_sent(broker, connect):
    slow, writer = connect(broker, receive_buffer_bytes=4096).subscribe("slow"), connect(broker, hello=True)
    sent = 0

    def stuck():
        nonlocal sent
        writer.publish("slow", bytes(10_000))
        sent += 1
        row = next(row for row in writer.info()["subscriptions"] if row["peer"] == slow.peer)
        return row["blocked"] and row["queued_messages"] > 10

    until(stuck, "the reader's queue fills")
    for _ in range(25):
        writer.publish("slow", b"gone in a moment", ttl_ms=1)
    writer.publish("slow", b"stays", ttl_ms=600_000)
    until(lambda: writer.info()["messages"]["dropped"]["ttl"] == 25, "25 messages have expired")
    payloads = [slow.next().payload for _ in range(sent + 1)]
    assert payloads == [bytes(10_000)] * sent + [b"stays"]
    messages = writer.info()["messages"]
    assert messages["enqueued"] == messages["delivered"] + 25
    assert messages["queued"] == 0


@pytest.mark.parametrize("broker", [{"delivery.default_ttl_ms": 777_000}], indirect=True)
def test_a_message_without_a_ttl_gets_the_default(broker, connect):
    client = connect(broker).subscribe("t")
    client.publish("t", b"")
    client.publish("t", b"", ttl_ms=600_000)
    assert [client.next().ttl_ms, client.next().ttl_ms] == [777_000, 600_000]


# ---- shutdown ----------------------------------------------------------------------------------------------------------


def test_at_shutdown_clients_get_queued_messages_and_503(broker, connect):
    plain, greeted = connect(broker).subscribe("t"), connect(broker, hello=True).subscribe("t")
    plain.publish("t", b"last words")
    assert greeted.next().payload == b"last words"
    broker.signal(signal.SIGTERM)
    assert greeted.next()[:2] == (0, 503)
    assert greeted.is_closed()
    assert plain.next().payload == b"last words"
    assert plain.is_closed()
    assert broker.wait() == 0
    assert broker.lines("stopped", unflushed=0)


def test_at_shutdown_new_connections_are_refused(broker):
    host, _, port = broker.address.rpartition(":")
    broker.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


@pytest.mark.parametrize("broker", [{"limits.shutdown_timeout_ms": 600_000}], indirect=True)
def test_a_second_signal_stops_the_broker_at_once(broker, connect):
    stuck, writer = connect(broker, receive_buffer_bytes=4096).subscribe("t"), connect(broker, hello=True)

    def is_stuck():
        writer.send(*[v1_command(PUB, "t", bytes(10_000))] * 50)
        return any(row["blocked"] and row["peer"] == stuck.peer for row in writer.info()["subscriptions"])

    until(is_stuck, "the subscriber takes no more")
    broker.signal(signal.SIGTERM)
    broker.wait_for("stopping")
    # One key press may send the same signal twice, so a signal directly after the first does not count as the second.
    until(lambda: broker.signal(signal.SIGTERM) or broker.child.poll() is not None, "it ends")
    assert broker.wait() == 128 + signal.SIGTERM
