"""The wire against the reference: vectors, the flatbuffers package, and bytes that no one would send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blipmq import wire
from blipmq.errors import ProtocolError, UsageError

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text("utf-8"))
UP = [vector for vector in VECTORS["valid"] if vector["direction"] == "up"]
DOWN = [vector for vector in VECTORS["valid"] if vector["direction"] == "down"]
BROKEN = VECTORS["broken"]


def command_of(expect: dict[str, Any]) -> wire.Command:
    fields = dict(expect)
    fields["action"] = wire.ACTIONS.index(fields["action"])
    fields["payload"] = bytes.fromhex(fields.pop("payload_hex", ""))
    return wire.Command(**fields)


def frame_of(expect: dict[str, Any]) -> wire.Frame:
    fields = dict(expect)
    kind = fields.pop("type")
    if kind == wire.SUBACK:
        return wire.SubAck(**{"topic": "", "info": "", "seq": 0, "code": 0, **fields})
    fields["payload"] = bytes.fromhex(fields.pop("payload_hex", ""))
    if kind == wire.REPLY:
        return wire.Reply(**{"seq": 0, "code": 0, "message": "", "id": 0, **fields})
    fields["timestamp_ms"] = fields.pop("timestamp", 0)
    return wire.Message(**{"id": 0, "topic": "", "ttl_ms": 0, "qos": 0, "redelivered": False, **fields})


def by_name(vector: dict[str, Any]) -> str:
    return str(vector["name"])


@pytest.mark.parametrize("vector", UP, ids=by_name)
def test_every_valid_command_decodes_to_what_the_vector_expects(vector: dict[str, Any]) -> None:
    assert list(wire.CommandReader().feed(bytes.fromhex(vector["frame"]))) == [command_of(vector["expect"])]


@pytest.mark.parametrize("vector", UP, ids=by_name)
def test_every_command_encoded_here_decodes_to_the_same(vector: dict[str, Any]) -> None:
    command = command_of(vector["expect"])
    frame = wire.encode_command(**command._asdict())
    assert list(wire.CommandReader().feed(frame)) == [command]


@pytest.mark.parametrize("vector", DOWN, ids=by_name)
def test_every_valid_frame_from_the_broker_decodes_to_what_the_vector_expects(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    expected = frame_of(vector["expect"])
    assert wire.FrameReader().feed(frame) == [expected]
    assert wire.FrameReader().feed(frame * 3) == [expected] * 3


@pytest.mark.parametrize("vector", BROKEN, ids=by_name)
def test_every_broken_command_is_refused(vector: dict[str, Any]) -> None:
    reader = wire.CommandReader(frame_bytes_max=1 << 20)
    frame = bytes.fromhex(vector["frame"])
    if vector["name"].startswith("bit flips"):
        try:
            commands = list(reader.feed(frame))
        except ProtocolError:
            return
        assert all(command.action <= wire.INFO for command in commands)
    else:
        with pytest.raises(ProtocolError):
            list(reader.feed(frame))


@pytest.mark.parametrize("action", [-1, 8])
def test_an_action_that_does_not_exist_is_not_encoded(action: int) -> None:
    with pytest.raises(UsageError, match="action"):
        wire.encode_command(action)
