"""A small broker built on code that flatc generates from blip.fbs, so that the client and the wire code are tested
against an independent implementation.

It runs in its own thread: `with FakeBroker() as broker: connect(broker.address)`. Invariant: this file uses no encoder,
decoder or matcher of blipmq.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import schema

ACTIONS = {number: name for name, number in schema.ENUMS["Action"][1].items()}


def read_command(body: bytes) -> dict[str, Any]:
    """A ClientCommand, decoded by generated code; absent bytes and text fields are b"" and ""."""
    command = schema.decode("ClientCommand", body)
    for name, field in schema.fields("ClientCommand").items():
        if field.type == "string":
            command[name] = (command[name] or b"").decode()
    command["payload"] = command["payload"] or b""
    command["action"] = ACTIONS[command["action"]]
    return command


def frame(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def suback(topic: str, info: str, seq: int, code: int = 0) -> bytes:
    return frame(0, schema.encode("SubAck", {"topic": topic, "info": info, "seq": seq, "code": code}))


def message(
    id_: int,
    payload: bytes,
    topic: str | None,
    timestamp: int = 1_760_000_000_123,
    ttl_ms: int = 0,
    qos: int = 0,
    redelivered: bool = False,
    properties: bytes | None = None,
) -> bytes:
    values = {"id": id_, "payload": payload, "timestamp": timestamp, "ttl_ms": ttl_ms, "topic": topic}
    values |= {"qos": qos, "redelivered": redelivered, "properties": properties}
    return frame(1, schema.encode("Message", values))


def reply(seq: int, code: int = 0, text: str | None = "", id_: int = 0, payload: bytes | None = None) -> bytes:
    values = {"seq": seq, "code": code, "message": text, "id": id_, "payload": payload}
    return frame(2, schema.encode("Reply", values))


def matches(filter_: str, topic: str) -> bool:
    """The matching rules of the protocol page as a regular expression."""
    if re.search(r"[*>+#]", filter_) and topic.startswith("$") and not filter_.startswith("$"):
        return False
    level = r"[^/]*" if re.search(r"[+#]", filter_) else r"[^.]*"
    pattern = re.escape(filter_).replace(r"\*", level).replace(r"\+", level)
    pattern = re.sub(r"(^|\\\.)>$", r"\1.*", pattern)
    pattern = re.sub(r"/\\#$", r"(/.*)?", pattern)
    pattern = re.sub(r"^\\#$", r".*", pattern)
    return re.fullmatch(pattern, topic, re.DOTALL) is not None


class Session:
    """A QoS 1 subscription, or a group of them: each message is kept until it is acknowledged."""

    def __init__(self, filter_: str, durable: bool) -> None:
        self.filter, self.durable = filter_, durable
        self.members: list[_Connection] = []
        self.waiting: dict[int, tuple[str, bytes]] = {}
        self.sent: dict[int, _Connection] = {}
        self.sent_before: set[int] = set()

    def offer(self, id_: int, topic: str, payload: bytes) -> None:
        self.waiting[id_] = (topic, payload)
        self.pump()

    def pump(self) -> None:
        """Send the undelivered messages to the members in turn."""
        for id_, (topic, payload) in self.waiting.items():
            if id_ not in self.sent and self.members:
                member = self.sent[id_] = self.members[id_ % len(self.members)]
                again = id_ in self.sent_before
                member.transport.write(message(id_, payload, topic, qos=1, redelivered=again))
                self.sent_before.add(id_)

    def leave(self, connection: _Connection) -> None:
        if connection in self.members:
            self.members.remove(connection)
        self.sent = {id_: member for id_, member in self.sent.items() if member is not connection}
        self.pump()


class _Connection(asyncio.Protocol):
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.filters: list[str] = []
        self.client_id = ""
        self.buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.broker.connections.append(self)
        if self.broker.greeting:
            transport.write(self.broker.greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        self.broker.connections.remove(self)
        for session in self.broker.sessions.values():
            session.leave(self)

    def data_received(self, data: bytes) -> None:
        self.broker.reads += 1
        self.buffer += data
        at = 0
        while len(self.buffer) - at >= 4:
            size = struct.unpack_from(">I", self.buffer, at)[0]
            if len(self.buffer) - at < 4 + size:
                break
            self.handle(read_command(self.buffer[at + 4 : at + 4 + size]))
            at += 4 + size
        self.buffer = self.buffer[at:]

    def handle(self, command: dict[str, Any]) -> None:
        broker, action, seq = self.broker, command["action"], command["seq"]
        broker.commands.append(command)
        if action in broker.silent:
            return
        if action in broker.refusals:
            code, text = broker.refusals[action]
            self.transport.write(reply(seq, code, text))
            if code in (401, 413, 426):
                self.transport.close()
            return
        getattr(self, f"on_{action.lower()}")(command, seq)

    def on_hello(self, command: dict[str, Any], seq: int) -> None:
        if self.broker.api_key is not None and command["api_key"] != self.broker.api_key:
            self.transport.write(reply(seq, 401, "unknown API key"))
            self.transport.close()
            return
        self.client_id = command["client_id"]
        self.transport.write(reply(seq, 0, "welcome"))

    def on_sub(self, command: dict[str, Any], seq: int) -> None:
        if command["qos"] or command["durable"] or command["group"]:
            if not self.broker.has_log:
                self.transport.write(reply(seq, 503, "QoS 1 needs the WAL, which this broker does not have"))
                return
            self.transport.write(suback(command["topic"], "subscribed", seq))
            self.broker.join(self, command)
            return
        if command["topic"] not in self.filters:
            self.filters.append(command["topic"])
        self.transport.write(suback(command["topic"], "subscribed", seq))

    def on_unsub(self, command: dict[str, Any], seq: int) -> None:
        durable, keeps = (self.client_id, command["topic"]), command["keep_durable"]
        known = command["topic"] in self.filters or (durable in self.broker.durables and not keeps)
        self.filters = [filter_ for filter_ in self.filters if filter_ != command["topic"]]
        if not keeps:
            self.broker.durables.discard(durable)
        for key, session in list(self.broker.sessions.items()):
            its_own = key[0] == self.client_id
            if session.filter == command["topic"] and (self in session.members or (its_own and not keeps)):
                known = True
                session.leave(self)
                if not session.members and not (its_own and keeps):
                    del self.broker.sessions[key]
        self.transport.write(reply(seq, 0 if known else 404, "" if known else "no such subscription"))

    def on_pub(self, command: dict[str, Any], seq: int) -> None:
        broker = self.broker
        if command["qos"] and not broker.has_log:
            self.transport.write(reply(seq, 503, "QoS 1 needs the WAL, which this broker does not have"))
            return
        broker.publish(command["topic"], command["payload"], command["ttl_ms"], command["qos"])
        if command["qos"] and not broker.loses_answers:
            self.transport.write(reply(seq, id_=broker.next_id - 1))

    def on_ping(self, command: dict[str, Any], seq: int) -> None:
        self.transport.write(reply(seq))

    def on_info(self, command: dict[str, Any], seq: int) -> None:
        self.transport.write(reply(seq, payload=json.dumps(self.broker.info).encode()))

    def on_ack(self, command: dict[str, Any], seq: int) -> None:
        for session in self.broker.sessions.values():
            if session.sent.get(seq) is self:
                del session.sent[seq], session.waiting[seq]

    def on_quit(self, command: dict[str, Any], seq: int) -> None:
        self.transport.close()


class FakeBroker:
    """Options: `refusals` {action: (code, text)}, `silent` actions without an answer, `api_key`, `info`, `greeting`
    bytes, `durables` {(client_id, filter)} that UNSUB may end, `has_log` (QoS 1 works), `loses_answers` (a QoS 1
    publish is stored, but its answer is not sent). Records: `commands` in order, `reads` (number of reads with
    data)."""

    def __init__(self, *, api_key: str | None = None, host: str = "127.0.0.1") -> None:
        self.api_key, self.host, self.port = api_key, host, 0
        self.refusals: dict[str, tuple[int, str]] = {}
        self.silent: set[str] = set()
        self.greeting = b""
        self.durables: set[tuple[str, str]] = set()
        self.has_log = self.loses_answers = False
        self.sessions: dict[tuple[Any, str], Session] = {}
        self.kept: list[tuple[str, bytes]] = []
        """All that was published with QoS 1, in order."""
        self.info: dict[str, Any] = {"version": "fake", "state": "ok"}
        self.commands: list[dict[str, Any]] = []
        self.connections: list[_Connection] = []
        self.reads = 0
        self.next_id = 1
        self._loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __enter__(self) -> FakeBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a stop on the same port."""
        ready = threading.Event()

        async def listen() -> None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self), self.host, self.port, reuse_address=True
            )
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(listen())
            self._loop.run_forever()
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        if self._thread is None:
            return

        async def end() -> None:
            self._server.close()
            for connection in self.connections:
                connection.transport.abort()
            for _ in range(100):
                if not self.connections:
                    break
                await asyncio.sleep(0)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10)
        self._thread = None

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in the thread of the broker and wait for it."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def kick(self) -> None:
        """Close every connection, as a crash would, and continue to listen."""
        self.call(lambda: [connection.transport.abort() for connection in self.connections] and None)

    def join(self, connection: _Connection, command: dict[str, Any]) -> None:
        """A QoS 1 subscription: a durable one is identified by the client id, a group by its name."""
        durable, group = bool(command["durable"]), command["group"]
        owner = f"group {group}" if group else connection.client_id if durable else connection
        session = self.sessions.setdefault((owner, command["topic"]), Session(command["topic"], durable))
        if connection not in session.members:
            session.members.append(connection)
        session.pump()

    def redeliver(self) -> None:
        """The acknowledgement timeout: send everything again."""

        def run() -> None:
            for session in self.sessions.values():
                session.sent.clear()
                session.pump()

        self.call(run)

    def unacknowledged(self) -> list[int]:
        """Ids that some consumer has not acknowledged yet."""
        return sorted({id_ for session in self.sessions.values() for id_ in session.waiting})

    def publish(self, topic: str, payload: bytes, ttl_ms: int = 0, qos: int = 0) -> None:
        """Deliver once to each connection with a matching filter, and to each consumer. Call it only in the thread of
        the broker."""
        id_, self.next_id = self.next_id, self.next_id + 1
        data = message(id_, payload, topic, ttl_ms=ttl_ms)
        if qos:
            self.kept.append((topic, payload))
        for session in list(self.sessions.values()):
            if matches(session.filter, topic):
                if qos:
                    session.offer(id_, topic, payload)
                else:
                    for member in session.members[:1]:
                        member.transport.write(data)
        for connection in self.connections:
            if any(matches(filter_, topic) for filter_ in connection.filters):
                connection.transport.write(data)

    def send(self, data: bytes) -> None:
        """Send these bytes to every connection."""
        self.call(lambda: [connection.transport.write(data) for connection in self.connections] and None)

    def wait_for(self, action: str, count: int = 1, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Wait for `count` commands with this action; returns them."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = [command for command in self.commands if command["action"] == action]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline_s, f"{len(found)} of {count} {action} came: {self.commands}"
            time.sleep(0.002)


def free_port() -> int:
    """A port without a listener at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
