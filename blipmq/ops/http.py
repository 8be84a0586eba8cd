"""One HTTP/1.1 exchange: a request read under strict limits, an answer, the end of the connection.

Invariant: a connection holds at most HEAD_BYTES_MAX of input and one answer, each for at most EXCHANGE_SECONDS. It
serves one request, GET or HEAD, which is enough for probes and Prometheus and cannot be held open. Further pipelined
requests are not answered, as `Connection: close` announces (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

from blipmq.base.peer import host_port

HEAD_BYTES_MAX = 8 * 1024
# For the request to arrive, and for the answer to be sent.
EXCHANGE_SECONDS = 5.0, 10.0
# Input read and discarded after a request. Closing with unread input would reset the connection and could lose the
# answer.
EXCESS_BYTES_MAX = 64 * 1024
GZIP_BYTES_MIN = 1024

PLAIN = "text/plain; charset=utf-8"
JSON = "application/json"

PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Request(NamedTuple):
    """A request: its path without the query, and its header fields by lower-case names."""

    method: str
    path: str
    fields: Mapping[str, str]


class Answer(NamedTuple):
    """A response. `extra`: header fields in addition to the common ones."""

    status: int
    body: bytes
    type: str = PLAIN
    extra: tuple[tuple[str, str], ...] = ()


class BadRequest(Exception):
    """The request is invalid or not supported; `answer` is the response."""

    def __init__(self, status: int, sentence: str, *extra: tuple[str, str]) -> None:
        super().__init__(sentence)
        self.answer = Answer(status, (sentence + "\n").encode(), extra=extra)


def read_request(head: bytes) -> Request:
    """Parse a request's head, without the empty line. Raises `BadRequest`."""
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise BadRequest(400, "the request is not HTTP; try: curl http://ADDRESS/metrics")
    method, target, version = words
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    fields = _read_fields(rest)
    if version == "HTTP/1.1" and "host" not in fields:
        raise BadRequest(400, "an HTTP/1.1 request needs the header field Host")
    if method not in ("GET", "HEAD"):
        raise BadRequest(405, "only GET and HEAD are supported", ("Allow", "GET, HEAD"))
    if target.startswith("http://"):  # the form for a proxy
        target = "/" + target[len("http://") :].partition("/")[2]
    return Request(method, target.partition("?")[0], fields)


def _read_fields(lines: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        # also a folded line, which is obsolete and used for request smuggling
        if not colon or not name or name != name.strip():
            raise BadRequest(400, "a header field does not have the form NAME: VALUE")
        name, value = name.lower(), value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def quality(field: str, wanted: str) -> float:
    """The quality of `wanted`, 0 to 1, in an Accept or Accept-Encoding field; a `*` does not match."""
    best = 0.0
    for item in field.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name == wanted:
            text = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            with contextlib.suppress(ValueError):
                best = max(best, min(float(text), 1.0))
    return best


def render(request: Request | None, answer: Answer, now: float) -> bytes:
    """Return a response as bytes. `request` is None if it was invalid; `now` is seconds since 1970."""
    body, extra = answer.body, list(answer.extra)
    if (
        request is not None
        and len(body) >= GZIP_BYTES_MIN
        and quality(request.fields.get("accept-encoding", ""), "gzip")
    ):
        import zlib  # imported here because a broker without scrapes does not need it

        packer = zlib.compressobj(1, wbits=31)
        body = packer.compress(body) + packer.flush()
        extra.append(("Content-Encoding", "gzip"))
    fields = [
        ("Date", _date(now)),
        ("Content-Type", answer.type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Vary", "Accept, Accept-Encoding"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *extra,
    ]
    head = (
        f"HTTP/1.1 {answer.status} {PHRASES[answer.status]}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields) + "\r\n"
    )
    return head.encode("latin-1") + (b"" if request is not None and request.method == "HEAD" else body)


_DAYS = "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"
_MONTHS = "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"


def _date(now: float) -> str:
    """A date in HTTP's format, in English whatever the embedding program's locale is."""
    t = time.gmtime(now)
    day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
    return f"{day}, {t.tm_mday:02d} {month} {t.tm_year} {t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT"


class Host(Protocol):
    """The owner of exchanges, which answers them. `answer` never raises; `cut` closes an exchange early."""

    def opened(self, exchange: Exchange) -> None: ...

    def closed(self, exchange: Exchange) -> None: ...

    def cut(self, exchange: Exchange, why: str) -> None: ...

    def refused(self, exchange: Exchange, why: str) -> None: ...

    async def answer(self, request: Request) -> Answer: ...


class Exchange(asyncio.Protocol):
    """One connection: a request, an answer, the end."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._transport: asyncio.Transport
        self._head = bytearray()
        self._excess = 0
        self._task: asyncio.Task[None] | None = None
        self._answered = False
        self._half_closed = False
        self._over_tls = False
        self._timer: asyncio.TimerHandle | None = None
        self.peer = ""

    def __repr__(self) -> str:
        state = "answered" if self._answered else "reading" if self.reading else "answering"
        return f"<Exchange {state} peer={self.peer} head={len(self._head)}>"

    @property
    def reading(self) -> bool:
        """Whether the request is incomplete."""
        return self._task is None and not self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is not a subclass of asyncio.Transport
        self._transport = cast("asyncio.Transport", transport)
        address, port = (transport.get_extra_info("peername") or ("?", 0))[:2]
        self.peer = host_port(address, port)
        self._over_tls = transport.get_extra_info("sslcontext") is not None
        self._end_in(EXCHANGE_SECONDS[0])
        self._host.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self.reading:
            self._excess += len(data)
            if self._excess > EXCESS_BYTES_MAX:
                self.abort()
            return
        searched = max(0, len(self._head) - 3)
        self._head += data
        end = self._head.find(b"\r\n\r\n", searched, HEAD_BYTES_MAX)
        if end >= 0:
            self._take(bytes(self._head[:end]))
        elif len(self._head) >= HEAD_BYTES_MAX:
            self._refuse(BadRequest(431, f"the request line and header fields may have at most {HEAD_BYTES_MAX} bytes"))

    def eof_received(self) -> bool:
        self._half_closed = True
        if self._over_tls:
            return False  # asyncio ends both directions of TLS at once
        return (
            self._task is not None and not self._answered
        )  # the client may have ended its output and still wait for the answer

    def connection_lost(self, error: Exception | None) -> None:
        self._forget_timer()
        if self._task is not None:
            self._task.cancel()
        self._host.closed(self)

    def abort(self) -> None:
        """Close at once, without sending the rest."""
        self._transport.abort()

    def _take(self, head: bytes) -> None:
        self._head.clear()
        try:
            request = read_request(head)
        except BadRequest as error:
            self._refuse(error)
            return
        self._end_in(EXCHANGE_SECONDS[1])
        self._task = self._loop.create_task(self._serve(request))

    async def _serve(self, request: Request) -> None:
        self._send(request, await self._host.answer(request))

    def _refuse(self, error: BadRequest) -> None:
        self._head.clear()
        self._host.refused(self, str(error))
        self._end_in(EXCHANGE_SECONDS[1])
        self._send(None, error.answer)

    def _send(self, request: Request | None, answer: Answer) -> None:
        self._answered = True
        if self._transport.is_closing():
            return
        self._transport.write(render(request, answer, time.time()))
        if self._half_closed or self._over_tls:
            self._transport.close()
        else:  # the client closes; until then the timer and EXCESS_BYTES_MAX bound the time and the input
            with contextlib.suppress(OSError):  # the client may have reset the connection
                self._transport.write_eof()

    def _end_in(self, seconds: float) -> None:
        self._forget_timer()
        self._timer = self._loop.call_later(seconds, self._too_slow)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _too_slow(self) -> None:
        self._host.cut(self, "too slow")
