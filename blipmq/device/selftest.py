"""Publish and subscribe through the running broker, as a client would.

Invariant: if it passes, a message with a payload made for this run came back over a socket. With a WAL, so did a second
one of QoS 1, which was on the medium before it was acknowledged.
"""

from __future__ import annotations

import secrets

from blipmq.base.bind_address import split_address
from blipmq.client.address import Address
from blipmq.client.blocking import BlockingClient
from blipmq.config.settings import Config
from blipmq.device.keyring import OWN_TOPIC
from blipmq.errors import BlipMQError, TimedOut

TIMEOUT_SECONDS = 15.0
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def address_of(bind_addr: str) -> str:
    """The address at which this machine reaches a broker that listens at `bind_addr`."""
    host, port = split_address(bind_addr)
    return str(Address(ANY.get(host, host), port))


def run(config: Config, api_key: str = "", qos1: bool | None = None, timeout_s: float = TIMEOUT_SECONDS) -> None:
    """Run the test. Raises `BlipMQError` with the failed step. `qos1`: also test QoS 1; None: if the broker has a WAL."""
    if not config.server.bind_addr:
        raise BlipMQError("server.bind_addr is empty, so no client can connect. Set an address.")
    client = BlockingClient(address_of(config.server.bind_addr), api_key=api_key, reconnect=False, timeout_s=timeout_s)
    with client.open():
        _pass_one(client, 0, timeout_s)
        if config.wal.enabled if qos1 is None else qos1:
            _pass_one(client, 1, timeout_s)


def _pass_one(client: BlockingClient, qos: int, timeout_s: float) -> None:
    payload = secrets.token_bytes(16)
    with client.subscribe(OWN_TOPIC, qos=qos) as subscription:
        client.publish(OWN_TOPIC, payload, qos=qos)
        for _ in range(1000):  # other clients may publish there
            if bytes(subscription.next(timeout_s).payload) == payload:
                return
    raise TimedOut(f"The broker accepted a QoS {qos} message but did not deliver it.")
