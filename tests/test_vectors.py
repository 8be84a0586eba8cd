"""Every frame of vectors.json through the C core: decoded at once, and sent to a core whole, byte by byte and in odd
pieces.
"""

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
    """A view as a `wire.Command`."""
    fields = view._asdict()
    for name in ("topic", "client_id", "api_key", "group"):
        fields[name] = fields[name].decode()
    return fields


@pytest.mark.parametrize("vector", UP, ids=by_name)
def test_a_valid_command_is_decoded_as_expected(vector: dict[str, Any]) -> None:
    assert fields_of(decode(bytes.fromhex(vector["frame"])[4:])) == command_of(vector["expect"])._asdict()


@pytest.mark.parametrize("vector", BROKEN, ids=by_name)
def test_both_decoders_refuse_a_broken_frame_or_decode_it_alike(vector: dict[str, Any]) -> None:
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
def test_a_truncated_frame_is_refused_or_decoded_from_its_remaining_bytes(vector: dict[str, Any]) -> None:
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
    """The observations of a client and of a subscriber of everything when the frame arrives, followed by a publish."""
    reader = bench.attach().subscribe(">", "$s.>")
    sender = bench.attach(hello=hello)
    for piece in pieces(frame + wire.encode_command(wire.PUB, "next", b"behind it"), size):
        sender.send_bytes(piece)
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
def test_a_frame_has_the_same_result_in_pieces_of_any_size(vector: dict[str, Any], hello: bool) -> None:
    frame = bytes.fromhex(vector["frame"])
    with Bench() as bench:
        whole, *others = [outcome(bench, frame, size, hello) for size in PIECES]
        assert others == [whole] * len(others)


@pytest.mark.parametrize("vector", [v for v in UP if v["expect"]["action"] == "PUB"], ids=by_name)
def test_valid_publishes_of_a_legacy_client_reach_the_subscriber(vector: dict[str, Any]) -> None:
    expect = command_of(vector["expect"])
    with Bench(max_ttl_ms=(1 << 63) - 1) as bench:
        messages, (_, replies, _, closed) = outcome(bench, bytes.fromhex(vector["frame"]), None, False)
    assert messages == [(expect.topic, expect.payload, expect.ttl_ms), ("next", b"behind it", 0)]
    assert replies == [] and closed is None


@pytest.mark.parametrize("vector", [v for v in BROKEN if not v["name"].startswith(MAY_BE_VALID)], ids=by_name)
def test_a_broken_frame_closes_a_legacy_connection_and_later_frames_are_ignored(vector: dict[str, Any]) -> None:
    with Bench() as bench:
        messages, (_, replies, _, closed) = outcome(bench, bytes.fromhex(vector["frame"]), None, False)
        assert messages == [] and replies == []
        assert closed is not None and closed[0] in (CloseReason.FRAME, CloseReason.TOO_LARGE) and closed[1]
        assert bench.stats()["frames_bad"] == 1
