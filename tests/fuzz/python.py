"""The fuzz targets in Python: bytes from a hostile broker, from clients of the admin port, and from configuration and
key files. A target returns for every input, or raises for a finding.

Invariant: only errors that the tested function documents are accepted. To add a target, write a function of bytes and
add a line to TARGETS.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fake_broker

from blipmq.auth import keys
from blipmq.base import logs
from blipmq.config import convert, convert_v1, schema_reader
from blipmq.config import reader as config_reader
from blipmq.device import settings_reader
from blipmq.errors import BlipMQError, ConfigError, ProtocolError
from blipmq.native.pure import decode
from blipmq.ops import http
from blipmq.wire import command, flatbuffer, framer
from blipmq.wire import frames as wire

TESTS = Path(__file__).resolve().parent.parent
FRAME_BYTES_MAX = 1 << 16


class Target(NamedTuple):
    """The function, its first inputs, the dictionary words, and the files whose lines count as coverage."""

    run: Callable[[bytes], object]
    first: Callable[[], list[bytes]]
    words: list[bytes]
    watched: list[Any]


def pieces(data: bytes) -> list[bytes]:
    """Split the rest of `data` into pieces of the size in its first byte; 0 means one piece."""
    size, rest = (data[0], data[1:]) if data else (0, b"")
    return [rest[at : at + size] for at in range(0, len(rest), size)] if size else [rest]


def vectors(direction: str) -> list[bytes]:
    text = json.loads((TESTS / "vectors.json").read_text(encoding="utf-8"))
    known = text["valid"] + text["broken"]
    return [bytes.fromhex(vector["frame"]) for vector in known if vector.get("direction", "up") == direction]


# ---- broker to client -------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """The frame reader of the client: any split gives the same frames, then the same refusal."""

    def read(parts: list[bytes]) -> tuple[list[wire.Frame], str]:
        reader = wire.FrameReader(FRAME_BYTES_MAX)
        got: list[wire.Frame] = []
        try:
            for part in parts:
                got += reader.feed(part)
        except ProtocolError as error:
            return got, str(error)
        return got, "" if reader.broken is None else str(reader.broken)

    parts = pieces(data)
    assert read(parts) == read([b"".join(parts)])


def frames_first() -> list[bytes]:
    down = vectors("down")
    made = [
        fake_broker.message(7, b"payload", "a/b") * 4,
        fake_broker.suback("a.*", "subscribed", 3) + fake_broker.reply(4, 0, "ok", 9, b"{}"),
        fake_broker.message(1, b"", "a", qos=1, redelivered=True) + fake_broker.message(2, bytes(300), "ab", ttl_ms=5),
    ]
    return [bytes([size]) + frame for frame in down + made for size in (0, 1, 9)]


# ---- client to broker: Python model against the core ------------------------------------------------------------------


def commands(data: bytes) -> None:
    """The Python model and the C decoder of the core agree on every body, as the reference package decodes it."""
    try:
        twin: wire.Command | None = wire.decode_command(data)
    except ProtocolError:
        twin = None
    try:
        view: dict[str, Any] | None = decode(data)._asdict()
    except BlipMQError:
        view = None
    assert (twin is None) == (view is None), "one of the two refuses it"
    if twin is None or view is None:
        return
    names = ("topic", "client_id", "api_key", "group")
    read = {name: view[name].decode(errors="surrogateescape") if name in names else view[name] for name in view}
    assert read == twin._asdict()
    # any bytes, but the reference requires UTF-8
    if not any("\ud800" <= character <= "\udfff" for character in twin.api_key):
        reference = fake_broker.read_command(data)
        assert {**twin._asdict(), "action": wire.ACTIONS[twin.action]} == {
            **reference,
            "durable": bool(reference["durable"]),
        }


def command_stream(data: bytes) -> None:
    """The command stream of the Python model: any split gives the same result."""

    def read(parts: list[bytes]) -> tuple[list[wire.Command], str]:
        reader = wire.CommandReader(FRAME_BYTES_MAX)
        got: list[wire.Command] = []
        try:
            for part in parts:
                got += reader.feed(part)
        except ProtocolError as error:
            return got, str(error)
        return got, ""

    parts = pieces(data)
    assert read(parts) == read([b"".join(parts)])


# ---- admin port -------------------------------------------------------------------------------------------------------


class Transport(asyncio.Transport):
    """Records the output of an exchange."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5)})
        self.written = b""
        self.ended = False

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    close = abort = write_eof


class Loop:
    """The part of an event loop that an exchange uses: no timer fires, and a task runs at once."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        return asyncio.TimerHandle(0.0, function, (), self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: Any) -> None: ...

    def create_task(self, work: Any) -> Any:
        try:
            work.send(None)
        except StopIteration:
            return self
        raise AssertionError("the answer waits for something")

    def cancel(self) -> None: ...


class Host:
    def __init__(self) -> None:
        self.requests: list[http.Request] = []

    def opened(self, exchange: http.Exchange) -> None: ...
    def closed(self, exchange: http.Exchange) -> None: ...
    def cut(self, exchange: http.Exchange, why: str) -> None: ...
    def refused(self, exchange: http.Exchange, why: str) -> None: ...

    async def answer(self, request: http.Request) -> http.Answer:
        self.requests.append(request)
        accepted = http.quality(request.fields.get("accept", ""), "text/plain")
        assert 0.0 <= accepted <= 1.0
        return http.Answer(200, b"x" * http.GZIP_BYTES_MIN)


def requests(data: bytes) -> None:
    """One exchange: at most one complete answer, and a bounded amount of stored input."""
    host, transport = Host(), Transport()
    exchange = http.Exchange(host, Loop())  # type: ignore[arg-type]
    exchange.connection_made(transport)
    for part in pieces(data):
        exchange.data_received(part)
        assert len(exchange._head) < http.HEAD_BYTES_MAX
        if transport.ended:
            break
    else:
        exchange.eof_received()
    exchange.connection_lost(None)
    assert len(host.requests) <= 1
    if transport.written:
        head, _, _ = transport.written.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 ") and int(lines[0].split()[1]) in http.PHRASES
        assert all(": " in line for line in lines[1:]), "an answer's field that the request wrote"


def requests_first() -> list[bytes]:
    asked = [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;q=0.5, */*\r\nAccept-Encoding: gzip;q=1.0, br\r\n\r\n",
        b"HEAD http://x:1/livez?a=b HTTP/1.0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX: 1\r\nX: 2\r\n folded\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
        b"GET /" + b"a" * 4000,
    ]
    return [bytes([size]) + text for text in asked for size in (0, 1, 200)]


# ---- files -------------------------------------------------------------------------------------------------------------


def configuration(data: bytes) -> None:
    """A configuration file: accepted, or refused with the file name and without a Python traceback. As a 1.0.0 file it
    is converted, if it is valid TOML."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            text = schema_reader.read_text(file.name)
            schema_reader.parse_toml(text, "old.toml")
            made = convert.convert(text, "old.toml", convert_v1.read_v1)
            assert all(fate.line or fate.key for fate in made.fates)
        except ConfigError as error:
            assert any(
                words in str(error) for words in (file.name, "old.toml:", "old.toml: lists", "has no settings")
            ), str(error)
        try:
            loaded = config_reader.load(file.name, {})
        except ConfigError as error:
            assert file.name in str(error) or "settings" in str(error), str(error)
            assert "Traceback" not in str(error)
            return
        assert loaded.config == config_reader.load(file.name, {}).config


def configuration_first() -> list[bytes]:
    shipped = [path.read_bytes()[:3500] for path in sorted((TESTS.parent / "config").glob("*.toml"))]
    return [
        *shipped,
        b'[server]\nbind_addr = "127.0.0.1:7878"\n[limits]\nmax_connections = 10\n[delivery]\nx = {y = 1}\n',
    ]


def device_settings(data: bytes) -> None:
    """A device.toml: accepted, or refused with a line for each problem."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            text = schema_reader.read_text(file.name)
            device = settings_reader.read_device(text)
        except ConfigError as error:
            assert "device.toml" in str(error) or file.name in str(error), str(error)
            assert "Traceback" not in str(error)
            return
        assert device == settings_reader.read_device(text)


def device_settings_first() -> list[bytes]:
    sample = (TESTS.parent / "images/boot/device.toml").read_bytes()
    settings = b'hostname = "gate-7"\n[network]\naddress = "192.0.2.7/24"\ngateway = "192.0.2.1"\ndns = ["192.0.2.1"]\n'
    rest = b'[wifi]\nssid = "x"\n[time]\nservers = ["ntp.example"]\n[[keys]]\nname = "a"\nallow = ["pub:a/#"]\n'
    return [sample[:3500], settings, rest, b"\xef\xbb\xbf" + settings.replace(b"\n", b"\r\n") + rest]


def key_file(data: bytes) -> None:
    """A key file: all of its keys, or none and the line number; never a key with more permissions than its line."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            found = keys.list_keys(file.name)
        except ConfigError as error:
            assert file.name in str(error), str(error)
            return
        ring = keys.read_keyring(file.name)
        assert len(ring) == len(found) and ring.find(data) is None
        for key in found:
            keys.check_name(key.name)
            assert (b"allow" in data or not key.allow) and key.allow == keys.check_allow(key.allow)


def key_file_first() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys"
        keys.add_key(path, "boiler", ["pub:site/1/temp", "sub:site/#"], "0123456789abcdef")
        keys.add_key(path, "board", (), "fedcba9876543210")
        whole = path.read_bytes()
    return [whole, b"# comment\n\n" + whole, whole.split(b"\n")[0] + b"\n", b""]


def log_lines(data: bytes) -> None:
    """A log line that quotes untrusted bytes is one line and contains no terminal control characters."""
    text = data.decode("utf-8", "surrogateescape")
    for form in ("text", "json"):
        with tempfile.TemporaryFile() as file:
            log = logs.Log(file.fileno(), "debug", form, clock=lambda: 1.0)
            log.info("event", client=text, raw=data)
            log.finish()
            file.seek(0)
            line = file.read().decode()
        assert line.endswith("\n") and line[:-1].isprintable(), line
        assert form == "text" or json.loads(line)["event"] == "event"


TARGETS = {
    "py-frames": Target(frames, frames_first, [], [wire, framer, flatbuffer]),
    "py-commands": Target(commands, lambda: [frame[4:] for frame in vectors("up")], [], [command, flatbuffer]),
    "py-stream": Target(
        command_stream,
        lambda: [b"\0" + frame * 2 for frame in vectors("up")],
        [],
        [wire, command, framer, flatbuffer],
    ),
    "py-http": Target(
        requests,
        requests_first,
        [b"\r\n", b"\r\n\r\n", b": ", b"HTTP/1.1", b"GET ", b"gzip", b";q=", b"nan", b"http://", b"Host: ", b"\0"],
        [http],
    ),
    "py-config": Target(
        configuration,
        configuration_first,
        [b"[", b"]", b"=", b'"', b"'''", b"\n", b"{", b"}", b"true", b"1e999", b"nan", b"-1", b"9" * 30, b"\xff"],
        [config_reader, schema_reader, convert, convert_v1],
    ),
    "py-device": Target(
        device_settings,
        device_settings_first,
        [b"[[keys]]", b"[", b"]", b"=", b'"', b"\n", b"\r\n", b"allow", b"pub:", b"/24", b"::1", b"9" * 30, b"\xff"],
        [settings_reader, schema_reader],
    ),
    "py-keys": Target(
        key_file,
        key_file_first,
        [
            b"{",
            b"}",
            b'"',
            b": ",
            b", ",
            b"\n",
            b'"allow"',
            b"pub:",
            b"sub:",
            b"null",
            b"[]",
            b"0" * 64,
            b"1e999",
            b"\xff",
        ],
        [keys],
    ),
    "py-logs": Target(
        log_lines, lambda: [b"a name", "é\u2028\x1b[31m\n".encode(), b"\xff" * 600], [b"\x1b", b"\n", b'"'], [logs]
    ),
}


def watched_files(target: Target) -> list[str]:
    return [str(module.__file__) for module in target.watched]
