"""MQTT clients of a stepped core. Packets are written and read by `mqtt_packets`, never by the codec of the core.

Invariant: `packets` holds only whole packets of the core, in their order.
"""

from __future__ import annotations

import socket
from typing import Any

import mqtt_packets as mqtt
from stepped import STALL_FRAMES, WINDOW_BYTES, Bench, Client, SocketClient

from blipmq.native.events import Event, MqttConnect, MqttSubscribe

FILLER = "filler"


class Packets:
    """Cuts what a server sends into packets, and reads them."""

    def __init__(self, version: int) -> None:
        self.version = version
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        self._buffer += data
        found = []
        while (size := self._whole()) and size <= len(self._buffer):
            found.append(mqtt.read(bytes(self._buffer[:size]), self.version))
            del self._buffer[:size]
        return found

    def _whole(self) -> int:
        """The size of the packet in front; 0: not known yet."""
        value = 0
        for at, byte in enumerate(self._buffer[1:5]):
            value |= (byte & 0x7F) << 7 * at
            if byte < 0x80:
                return 2 + at + value
        return 0


class MqttClient(Client):
    """One MQTT connection as seen by its peer."""

    def __init__(self, bench: Bench, conn: int, version: int) -> None:
        super().__init__(bench, conn)
        self.version = version
        self.packets: list[dict[str, Any]] = []
        self._packets = Packets(version)

    def arrived(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.packets += self._packets.feed(data)

    def say(self, *packets: bytes) -> list[dict[str, Any]]:
        """Send packets in one piece. Returns what came since the last call."""
        self.send_bytes(b"".join(packets))
        self.bench.settle()
        return self.take_packets()

    def take_packets(self) -> list[dict[str, Any]]:
        found, self.packets = self.packets, []
        return found

    def connect(self, **fields: Any) -> list[dict[str, Any]]:
        name = b"MQIsdp" if self.version == 3 else b"MQTT"
        return self.say(mqtt.connect(self.version, **{"name": name, **fields}))

    def stall(self, room_bytes: int = 0) -> None:
        """Stop reading at the end of a packet, with no credit of this client left. It is subscribed to FILLER from now on."""
        assert self.untaken == 0 and not room_bytes
        self.say(mqtt.subscribe([(FILLER, 0)], 1, {} if self.version == 5 else None))
        self.reading = False
        publisher = self.bench.attach()
        head = len(mqtt.publish(FILLER, bytes(200), values={} if self.version == 5 else None)) - 200
        for size in STALL_FRAMES:
            publisher.publish(FILLER, bytes(size - head))
            self.bench.settle()
        assert self.untaken == WINDOW_BYTES
        self.take_packets()
        self.bench.close(publisher)


class MqttSocketClient(SocketClient):
    """The same over a socket."""

    def __init__(self, bench: Bench, ours: socket.socket) -> None:
        super().__init__(bench, ours)
        self.packets: list[dict[str, Any]] = []
        self._packets = Packets(5)

    def arrived(self, data: bytes) -> None:
        self.packets += self._packets.feed(data)


class MqttBench(Bench):
    """Admits every MQTT client, unless `answering` is False."""

    def dial(self, version: int = 5, trusted: bool = False, address: str = "") -> MqttClient:
        """A client that has sent nothing yet."""
        self._seq += 1
        self.core.attach(self._seq, trusted, (address, 4711) if address else None, mqtt=True)
        conn = self._await(self._seq).conn
        client = MqttClient(self, conn, version)
        if conn:
            self._clients[conn] = client
        return client

    def mqtt(self, version: int = 5, **fields: Any) -> MqttClient:
        """A client after its CONNACK."""
        client = self.dial(version)
        (connack,) = client.connect(**fields)
        assert (connack["first"], connack["reason"]) == (0x20, 0)
        return client

    def answer(self, event: Event) -> None:
        if isinstance(event, MqttConnect):
            self.core.mqtt_admit(event.conn, event.client_id)
        elif isinstance(event, MqttSubscribe):
            self.core.mqtt_subscribe(event.conn, event.packet_id, [(*each, each[1] & 3) for each in event.filters])
        else:
            super().answer(event)


def values(packet: dict[str, Any]) -> dict[str, Any]:
    """The properties of a packet by their names; user properties are left out."""
    return {mqtt.PROPERTIES[identifier][0]: value for identifier, value in packet["properties"]}
