"""CONNECT and SUBSCRIBE of MQTT clients: who is admitted, under which client_id, and with which subscriptions.

Invariant: each CONNECT is answered exactly once, by `mqtt_admit` or `mqtt_refuse`, and each SUBSCRIBE by `mqtt_subscribe`.
Until then the core does not read that connection's input. The core has checked the packet, and answers all others itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import IntEnum
from typing import Protocol

from blipmq.errors import BAD_REQUEST, NOT_ALLOWED, NOT_AUTHENTICATED, NOT_NOW, TOO_MANY
from blipmq.native.events import MqttConnect, MqttSubscribe
from blipmq.protocols.clients import ClientRules, Refusal
from blipmq.sessions.connections import Connection, Connections

QOS_BITS = 3  # of the options of a filter
ASSIGNED_BYTES = 12  # random bytes in a client_id that the broker chooses
TAKEN_OVER = "another connection uses this client_id now"


class Reason(IntEnum):
    """Reason codes of MQTT 5. For older clients the core uses the nearest code of their version, or only closes."""

    CLIENT_ID_NOT_VALID = 0x85
    NOT_AUTHORIZED = 0x87
    SESSION_TAKEN_OVER = 0x8E
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98


REASONS = {
    BAD_REQUEST: Reason.CLIENT_ID_NOT_VALID,
    NOT_AUTHENTICATED: Reason.NOT_AUTHORIZED,
    NOT_ALLOWED: Reason.NOT_AUTHORIZED,
    NOT_NOW: Reason.QUOTA_EXCEEDED,
    TOO_MANY: Reason.QUOTA_EXCEEDED,
}
LEVELS = {3: "MQTT 3.1", 4: "MQTT 3.1.1", 5: "MQTT 5"}


class MqttCore(Protocol):
    """The part of `Core` that answers MQTT clients."""

    def mqtt_admit(
        self, conn: int, identity: str, acl: int = 0, *, assigned: str = "", keepalive_s: int | None = None
    ) -> None: ...

    def mqtt_subscribe(self, conn: int, packet_id: int, rows: Iterable[tuple[str, int, int]]) -> None: ...

    def mqtt_refuse(self, conn: int, reason: int, text: str, *, discard: bool = False) -> None: ...


class MqttProtocol:
    """Answers the events of MQTT connections."""

    def __init__(self, core: MqttCore, connections: Connections, rules: ClientRules) -> None:
        self._core = core
        self._connections = connections
        self._rules = rules

    def __repr__(self) -> str:
        return f"<MqttProtocol {self._rules!r}>"

    # -- CONNECT

    def connect(self, event: MqttConnect) -> None:
        """Admit a client, or refuse it with the reason. It takes over an older connection with the same client_id,
        which is closed."""
        connection = self._connections.open(event.conn, event.peer)
        if connection.closing:
            return
        connection.level = event.level
        client_id = event.client_id or _new_client_id()
        refusal = self._rules.refusal_of(connection, client_id, event.password or b"")
        if refusal is None and not _is_name_of_key(event.user_name, connection):
            refusal = self._rules.unknown()
        if refusal is not None:
            self._refuse(connection, refusal)
            return
        older = self._rules.admitted(connection, client_id)
        if older is not None:
            self._core.mqtt_refuse(older.conn, Reason.SESSION_TAKEN_OVER, TAKEN_OVER)
            self._rules.log_taken_over(older, event.peer, _shown(Reason.SESSION_TAKEN_OVER))
        self._core.mqtt_admit(
            event.conn,
            connection.core_name,
            self._rules.acl_of(connection),
            assigned="" if event.client_id else client_id,
            keepalive_s=self._keepalive_s(event),
        )
        self._rules.log_admitted(connection, protocol=LEVELS[event.level])

    def _refuse(self, connection: Connection, refusal: Refusal) -> None:
        connection.closing = True
        reason = REASONS[refusal.code]
        self._core.mqtt_refuse(connection.conn, reason, refusal.text)
        self._rules.log_refused(connection, "connect", _shown(reason), refusal.text)

    def _keepalive_s(self, event: MqttConnect) -> int | None:
        """The keep-alive that the client is told to use; None: the one that it asked for. Only MQTT 5 can tell it."""
        longest = self._rules.config.mqtt.max_keepalive_s
        if event.level < 5 or not longest or 0 < event.keepalive_s <= longest:
            return None
        return longest

    # -- SUBSCRIBE

    def subscribe(self, event: MqttSubscribe) -> None:
        """Grant each filter the QoS that it asks for, or refuse it with the reason."""
        connection = self._connections.find(event.conn)
        if connection is None or connection.closing:
            return
        rows = [(filter_, options, self._granted(connection, filter_, options)) for filter_, options in event.filters]
        self._core.mqtt_subscribe(event.conn, event.packet_id, rows)

    def _granted(self, connection: Connection, filter_: str, options: int) -> int:
        """A QoS, which the core may lower, or a reason code. If the core refuses the subscription, or ends it later,
        `ClientRules.unsubscribed` removes it."""
        refusal = self._rules.may_not_subscribe(connection, filter_, mqtt=True)
        refusal = refusal or self._rules.no_room(connection, filter_)
        if refusal is None:
            connection.subscriptions[filter_, ""] = None
            return options & QOS_BITS
        reason = REASONS[refusal.code]
        self._rules.log_refused(connection, "subscribe", _shown(reason), refusal.text, filter_)
        return reason

    # -- the end

    def end(self, connection: Connection, refusal: Refusal) -> None:
        """Close the connection, because its key has changed. Its queued messages are discarded."""
        connection.closing = True
        reason = Reason.ADMINISTRATIVE_ACTION
        self._core.mqtt_refuse(connection.conn, reason, refusal.text, discard=True)
        self._rules.log_ended(connection, _shown(reason), refusal.text)


def _is_name_of_key(user_name: str | None, connection: Connection) -> bool:
    """Whether the user name fits the key: it is the key's name, or empty. A key without a name fits any."""
    owner = connection.key.owner if connection.key is not None else ""
    return not user_name or not owner or user_name == owner


def _new_client_id() -> str:
    return "auto-" + os.urandom(ASSIGNED_BYTES).hex()


def _shown(reason: Reason) -> str:
    return f"0x{reason:02x}"
