"""Message properties in the MQTT 5 format: decoding, and that arbitrary bytes are harmless."""

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import blipmq
from blipmq.cli.render import message_renderer
from blipmq.wire import frames as wire
from blipmq.wire.properties import user_properties

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def written(name: str, value: str) -> bytes:
    texts = [part.encode() for part in (name, value)]
    return b"\x26" + b"".join(len(part).to_bytes(2, "big") + part for part in texts)


@given(st.dictionaries(text, text, max_size=5))
def test_user_properties_are_decoded_as_written(properties: dict[str, str]) -> None:
    data = b"".join(written(name, value) for name, value in properties.items())
    assert user_properties(data) == properties
    for cut in range(len(data)):
        assert user_properties(data[:cut]).items() <= properties.items()


def test_other_mqtt_5_properties_are_skipped() -> None:
    others = [
        b"\x01\x01",  # payload format indicator: a byte
        b"\x02\0\0\0\x3c",  # message expiry interval: four
        b"\x23\0\x07",  # topic alias: two
        b"\x03\0\x0aimage/jpeg",  # content type: a text
        b"\x09\0\x02\xff\xfe",  # correlation data: bytes
        b"\x0b\x80\x01",  # subscription identifier: as many bytes as it needs
    ]
    assert user_properties(b"".join(other + written(str(i), "x") for i, other in enumerate(others))) == dict.fromkeys(
        map(str, range(len(others))), "x"
    )


@given(st.binary(max_size=60))
def test_arbitrary_property_bytes_are_harmless(data: bytes) -> None:
    assert all(isinstance(value, str) for pair in user_properties(data).items() for value in pair)


def test_invalid_properties_are_ignored_and_the_message_is_delivered() -> None:
    message = wire.Message(1, "a", b"x", 2, 0, 1, False, written("a", "b") + b"\xff" + written("c", "d"))
    assert message.headers == {"a": "b"}


def test_the_command_line_shows_headers_if_present() -> None:
    letter = wire.Message(1, "$dlq/a", b"x", 2, 0, 1, False, written("reason", "max_deliveries"))
    plain = letter._replace(topic="a", properties=b"")
    lines = message_renderer(quiet=False, json=True, fancy=False)([letter, plain]).decode().splitlines()
    assert '"headers": {"reason": "max_deliveries"}' in lines[0] and "headers" not in lines[1]
    shown = message_renderer(quiet=False, json=False, fancy=True)([letter, plain]).decode().splitlines()
    assert "[reason: max_deliveries]" in shown[0] and "[" not in shown[1]


def test_both_clients_show_the_properties_of_a_large_dead_letter(tmp_path: Path) -> None:
    """For a message of the maximum size: its dead letter is larger than any client frame."""
    payload = bytes(range(256)) * 4096
    config = {
        "server": {"bind_addr": "127.0.0.1:0"},
        "metrics": {"bind_addr": ""},
        "wal": {"directory": str(tmp_path / "log"), "reserve_bytes": 0},
        "qos1": {"ack_timeout_ms": 100, "max_deliveries": 1},
    }

    async def asyncio_letter(address: str) -> blipmq.Message:
        async with (
            blipmq.connect(address, client_id="one") as client,
            client.subscribe("$dlq/#", qos=1, durable=True) as stored,
        ):
            return await stored.next(timeout_s=30)

    with blipmq.Broker(config) as broker, blipmq.connect_blocking(broker.address, client_id="two") as client:
        address = broker.address

        async def subscribe_first() -> None:
            async with (
                blipmq.connect(address, client_id="one") as first,
                first.subscribe("$dlq/#", qos=1, durable=True),
            ):
                pass

        asyncio.run(subscribe_first())
        letters = client.subscribe("$dlq/#", qos=1)
        with client.subscribe("t" * 256, qos=1, auto_ack=False) as poisoned:
            id_ = client.publish("t" * 256, payload, qos=1)
            assert poisoned.next(timeout_s=30).headers == {}
            for letter in (letters.next(timeout_s=30), asyncio.run(asyncio_letter(address))):
                about = {"reason": "max_deliveries", "topic": "t" * 256, "id": str(id_), "deliveries": "1"}
                assert (letter.payload, letter.headers) == (payload, about)
