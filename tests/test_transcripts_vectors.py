"""Every frame of vectors.json through a running broker: byte by byte, in odd splits, and in one piece."""

import json
import random
from pathlib import Path

import pytest
from broker_process import parse_line
from hand_client import PING, PUB, QUIT, SUB, Reply, SubAck, command, v1_command

pytestmark = pytest.mark.blackbox

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
COMMANDS = [vector for vector in VECTORS["valid"] if vector["direction"] == "up"]
BROKEN = [vector for vector in VECTORS["broken"] if not vector["name"].startswith("bit flips")]
FLIPPED = [vector for vector in VECTORS["broken"] if vector["name"].startswith("bit flips")]
PUBLISHED = [vector["expect"] for vector in COMMANDS if vector["expect"]["action"] == "PUB"]

# Verified but not a valid request: a client that sent HELLO gets an error and stays connected.
REFUSED_AND_KEPT = {
    "topic empty",
    "topic missing",
    "topic of 257 bytes",
    "topic with a NUL",
    "topic with a newline",
    "publish to a wildcard",
    "unknown action",
    "negative action",
    "qos 2",
}


def byte_by_byte(frame):
    return [frame[at : at + 1] for at in range(len(frame))]


def in_odd_splits(frame):
    """Pieces of 1 to 7, 1 to 64 or 1 to 1,000 bytes, the same in every run."""
    dice, pieces, at = random.Random(frame), [], 0
    while at < len(frame):
        size = dice.randint(1, dice.choice([7, 64, 1000]))
        pieces.append(frame[at : at + size])
        at += size
    return pieces


def in_one_piece(frame):
    return [frame]


splits = pytest.mark.parametrize("split", [byte_by_byte, in_odd_splits, in_one_piece], ids=lambda split: split.__name__)


def send(client, vector, split):
    for piece in split(bytes.fromhex(vector["frame"])):
        client.send(piece)


def expected_answer(expect):
    """The specified answer to a client that sent HELLO: (seq, code), a SubAck, or None for no answer."""
    action, seq = expect["action"], expect.get("seq", 0)
    if action == "PUB":
        return (seq, 0) if expect.get("qos") else None
    if action == "SUB":
        return SubAck(expect["topic"], "subscribed", seq)
    if action == "UNSUB":
        return (seq, 0)  # the previous vector subscribed to the same topic
    return {"HELLO": (seq, 400), "PING": (seq, 0), "INFO": (seq, 0), "ADMIN": (seq, 404), "ACK": None}[action]


@splits
def test_each_valid_command_takes_effect_and_keeps_the_connection(broker, connect, split):
    client = connect(broker, hello=True, client_id="vectors")
    for vector in COMMANDS:
        expect = vector["expect"]
        if expect["action"] == "QUIT":
            continue
        send(client, vector, split)
        wanted = expected_answer(expect)
        if wanted is not None:
            got = client.next()
            assert got == wanted or got[:2] == wanted, vector["name"]
        assert client.is_open(), vector["name"]


# Some of the vectors have a time to live of a millisecond. Without a WAL no message waits for a disk first.
without_log = pytest.mark.parametrize("broker", [{"wal.enabled": False}], indirect=True)
SHORT_LIFE_MS = 60_000


def expect_all(published, reader, writer, broker):
    """All published messages arrive, in order and unchanged. On a slow machine a message with a short time to live may
    be missing; then the broker has counted it as expired."""
    writer.send(command(PUB, "end"))
    message, expired = reader.next(), 0
    for expect in published:
        if (message.topic, message.payload.hex()) == (expect["topic"], expect["payload_hex"]):
            assert message.qos == 0
            message = reader.next()
        else:
            assert 0 < (expect.get("ttl_ms") or 0) < SHORT_LIFE_MS, (expect, message)
            expired += 1
    assert message.topic == "end"
    assert broker.info()["messages"]["dropped"]["ttl"] == expired


@splits
@without_log
def test_each_valid_publish_reaches_a_subscriber_with_identical_bytes(broker, connect, split):
    reader, writer = connect(broker).subscribe("#"), connect(broker)
    for vector in COMMANDS:
        if vector["expect"]["action"] == "PUB":
            send(writer, vector, split)
    expect_all(PUBLISHED, reader, writer, broker)


@without_log
def test_all_commands_in_one_stream_work_like_single_commands(broker, connect):
    """Frames concatenated and split at unfavourable positions."""
    reader, writer = connect(broker).subscribe("#"), connect(broker)
    stream = b"".join(bytes.fromhex(v["frame"]) for v in COMMANDS if v["expect"]["action"] == "PUB") * 20
    for piece in in_odd_splits(stream):
        writer.send(piece)
    expect_all(PUBLISHED * 20, reader, writer, broker)


@splits
def test_the_quit_vector_closes_the_connection(broker, connect, split):
    (vector,) = [vector for vector in COMMANDS if vector["expect"]["action"] == "QUIT"]
    client = connect(broker, hello=True)
    send(client, vector, split)
    assert client.is_closed()


def send_broken(client, vector, split):
    """The broker may refuse from the length alone and close before the rest is sent."""
    try:
        send(client, vector, split)
    except ConnectionError:
        assert split is not in_one_piece, vector["name"]


@splits
def test_each_broken_command_closes_a_legacy_client_with_one_log_line(broker, connect, split):
    clients = {}
    for vector in BROKEN:
        client = clients[vector["name"]] = connect(broker)
        send_broken(client, vector, split)
        assert client.is_closed(), vector["name"]
    broker.stop()
    assert not broker.lines("logs_suppressed")
    for name, client in clients.items():
        lines = [line for line in map(parse_line, broker.log) if line.get("peer") == client.peer]
        assert [line["event"] for line in lines] == ["closed"], name
        assert lines[0]["level"] == "warning" and lines[0]["detail"], name


@splits
def test_each_broken_command_after_hello_is_answered(broker, connect, split):
    for vector in BROKEN:
        client = connect(broker, hello=True)
        send_broken(client, vector, split)
        answer = client.next()
        too_large = vector["why"].endswith("limit") or vector["why"].startswith("refused from the length")
        kept = vector["name"] in REFUSED_AND_KEPT
        assert answer.code == (413 if too_large and not kept else 400), vector["name"]
        assert answer.message, vector["name"]
        if kept:
            assert client.is_open(), vector["name"]
        else:
            assert client.is_closed(), vector["name"]


@splits
def test_a_flipped_bit_is_refused_or_decoded_and_affects_no_other_client(broker, connect, split):
    witness = connect(broker, hello=True)
    for vector in FLIPPED:
        client = connect(broker)
        send_broken(client, vector, split)
        try:
            client.send(v1_command(SUB, "after"), v1_command(QUIT))
            frames = list(iter(client.next, None))
        except ConnectionError:  # closed at the frame, before everything was sent
            frames = []
        assert frames == [] or SubAck("after", "subscribed") in frames, vector["name"]
        assert witness.is_open()


def test_request_numbers_of_all_sizes_are_returned(broker, connect):
    client = connect(broker, hello=True)
    for bits in range(64):
        client.send(command(PING, seq=1 << bits))
        assert client.next() == Reply(1 << bits, 0, "", 0, b"")
