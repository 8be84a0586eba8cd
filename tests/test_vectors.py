"""Every frame of vectors.json through the C core: decoded at once, and fed to a core whole, byte by byte and in odd pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from stepped import Bench, Client
from test_wire import BROKEN, UP, by_name, command_of

from blipmq.errors import ProtocolError
from blipmq.native.errors import CoreError
from blipmq.native.events import CloseReason
from blipmq.native.pure import View, decode
from blipmq.wire import frames as wire

PIECES = [None, 1, 3, 7, 64]
MAY_BE_VALID = "bit flips"


def fields_of(view: View) -> dict[str, Any]:
    """A view as `wire.Command` has it."""
    fields = view._asdict()
    for name in ("topic", "client_id", "api_key", "group"):
        fields[name] = fields[name].decode()
    return fields


@pytest.mark.parametrize("vector", UP, ids=by_name)
def test_a_valid_command_is_read_as_expected(vector: dict[str, Any]) -> None:
    assert fields_of(decode(bytes.fromhex(vector["frame"])[4:])) == command_of(vector["expect"])._asdict()


@pytest.mark.parametrize("vector", BROKEN, ids=by_name)
def test_a_broken_frame_is_refused_with_a_reason_by_both_readers_or_read_alike(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["frame"])[4:]
    try:
        expected = wire.decode_command(body)
    except ProtocolError:
        with pytest.raises(CoreError, match=r"bad frame: .*\(.{10,}\)"):
            decode(body)
    else:
        assert vector["name"].startswith(MAY_BE_VALID)
        assert fields_of(decode(body)) == expected._asdict()


@pytest.mark.parametrize("vector", [*UP, *BROKEN], ids=by_name)
def test_a_frame_that_is_cut_short_is_refused_or_reads_what_is_there(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["frame"])[4:]
    for size in range(len(body)):
        try:
            expected = wire.decode_command(body[:size])
        except ProtocolError:
            with pytest.raises(CoreError):
                decode(body[:size])
        else:
            assert fields_of(decode(body[:size])) == expected._asdict()


def pieces(data: bytes, size: int | None) -> Iterator[bytes]:
    for at in range(0, len(data), size or len(data)):
        yield data[at : at + (size or len(data))]


def outcome(bench: Bench, frame: bytes, size: int | None, hello: bool) -> tuple[Any, ...]:
    """What a client and a subscriber of everything see when the frame comes, and a publish behind it."""
    reader = bench.attach().subscribe(">", "$s.>")
    sender = bench.attach(hello=hello)
    for piece in pieces(frame + wire.encode_command(wire.PUB, "next", b"behind it"), size):
        sender.feed(piece)
        bench.settle()
    messages = [(message.topic, message.payload, message.ttl_ms) for message in reader.messages]
    seen = (messages, seen_by(sender))
    for client in (reader, sender):
        if client.closed is None:
            bench.close(client)
    return seen


def seen_by(client: Client) -> tuple[Any, ...]:
    closed = None if client.closed is None else (client.closed.reason, client.closed.detail)
    messages = [(message.topic, message.payload) for message in client.messages]
    return messages, client.replies, client.subacks, closed


@pytest.mark.parametrize("hello", [False, True], ids=["plain", "hello"])
@pytest.mark.parametrize("vector", [*UP, *BROKEN], ids=by_name)
def test_a_frame_has_the_same_outcome_in_whatever_pieces_it_comes(vector: dict[str, Any], hello: bool) -> None:
    frame = bytes.fromhex(vector["frame"])
    with Bench() as bench:
        whole, *others = [outcome(bench, frame, size, hello) for size in PIECES]
        assert others == [whole] * len(others)


@pytest.mark.parametrize("vector", [v for v in UP if v["expect"]["action"] == "PUB"], ids=by_name)
def test_a_valid_publish_of_a_plain_client_reaches_the_subscriber_and_the_next_one_too(vector: dict[str, Any]) -> None:
    expect = command_of(vector["expect"])
    with Bench(max_ttl_ms=(1 << 63) - 1) as bench:
        messages, (_, replies, _, closed) = outcome(bench, bytes.fromhex(vector["frame"]), None, False)
    assert messages == [(expect.topic, expect.payload, expect.ttl_ms), ("next", b"behind it", 0)]
    assert replies == [] and closed is None


@pytest.mark.parametrize("vector", [v for v in BROKEN if not v["name"].startswith(MAY_BE_VALID)], ids=by_name)
def test_a_broken_frame_ends_a_plain_connection_and_nothing_behind_it_is_read(vector: dict[str, Any]) -> None:
    with Bench() as bench:
        messages, (_, replies, _, closed) = outcome(bench, bytes.fromhex(vector["frame"]), None, False)
        assert messages == [] and replies == []
        assert closed is not None and closed[0] in (CloseReason.FRAME, CloseReason.TOO_LARGE) and closed[1]
        assert bench.stats()["frames_bad"] == 1
