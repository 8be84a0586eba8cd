"""The output of the command line: messages, answers, errors, and the broker's status.

Invariant: nothing here does I/O. Bytes from the network reach a terminal only with control characters escaped; a pipe
gets a payload exactly as it was published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from blipmq.base.stdio import is_terminal
from blipmq.errors import BlipMQError
from blipmq.wire.frames import Message

Renderer = Callable[[list[Message]], bytes]


class Stream(Protocol):
    @property
    def encoding(self) -> str: ...
    def isatty(self) -> bool: ...


def is_fancy(stream: Stream, environment: Mapping[str, str]) -> bool:
    """Whether this stream is a terminal that can show more than plain text (https://no-color.org)."""
    utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return utf8 and is_terminal(stream) and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def printable(data: bytes) -> str:
    """Text without control characters, so that it cannot move the cursor, change colours or ring the bell of a
    terminal."""
    return data.decode("utf-8", "backslashreplace").translate(_ESCAPES)


class ReconnectNotices:
    """A client's on_state that reports the begin and the end of an outage, but not each attempt in between."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say = say
        self._out = False
        self._again = ""

    def __call__(self, state: str, error: BlipMQError | None) -> None:
        if state == "disconnected" and not self._out:
            self._out = True
            self._say("❌", f"{error} Reconnecting…")
        elif state == "connected":
            if self._out:
                self._say("✅", f"Connected{self._again}.")
            self._out, self._again = False, " again"


# ---- messages --------------------------------------------------------------------------------------------------------


def render_payloads(messages: list[Message]) -> bytes:
    """-q: the payloads, a newline after each."""
    payloads = [message.payload for message in messages]
    payloads.append(b"")
    return b"\n".join(payloads)


def render_plain(messages: list[Message]) -> bytes:
    """Topic, tab, payload unchanged. A topic has no tab, so the first one always ends it."""
    return b"".join([b"%s\t%s\n" % (message.topic.encode(), message.payload) for message in messages])


def render_fancy(messages: list[Message]) -> bytes:
    """For a terminal."""
    lines = []
    for message in messages:
        again = " (again)" if message.redelivered else ""
        about = "".join([f" [{name}: {value}]" for name, value in message.headers.items()])
        lines.append(f"📥 {message.topic}{again}{printable(about.encode())}  {printable(message.payload)}\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


class JsonRenderer:
    """One object a line. `sequence` counts the messages of this run from 1."""

    def __init__(self) -> None:
        import json  # imported here because only JSON output needs it, and the command line must start fast

        self._encode = json.JSONEncoder(ensure_ascii=False).encode
        self._sequence = 0

    def __call__(self, messages: list[Message]) -> bytes:
        return "".join([self._line(message) for message in messages]).encode()

    def _line(self, message: Message) -> str:
        self._sequence += 1
        try:
            payload = {"payload": message.payload.decode("utf-8")}
        except UnicodeDecodeError:
            import base64

            payload = {"payload_base64": base64.b64encode(message.payload).decode("ascii")}
        fields = {
            "id": message.id,
            "topic": message.topic,
            **payload,
            "timestamp": message.timestamp_ms,
            "ttl_ms": message.ttl_ms,
            "qos": message.qos,
            "redelivered": message.redelivered,
            "sequence": self._sequence,
        }
        if message.properties:
            fields["headers"] = message.headers
        return self._encode(fields) + "\n"


def message_renderer(*, quiet: bool, json: bool, fancy: bool) -> Renderer:
    if json:
        return JsonRenderer()
    if quiet:
        return render_payloads
    return render_fancy if fancy else render_plain


# ---- quantities ------------------------------------------------------------------------------------------------------


def count(number: int, noun: str) -> str:
    """1 message, 2 messages, 1,200 messages."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bytes_text(size_bytes: float) -> str:
    """A size as text: 512 bytes, 1.5 KiB, 64 MiB."""
    if size_bytes < 1024:
        return count(int(size_bytes), "byte")
    units = ["TiB", "GiB", "MiB", "KiB"]
    amount = size_bytes / 1024
    while amount >= 1023.95 and len(units) > 1:
        amount /= 1024
        units.pop()
    digits = 0 if amount >= 100 or amount == int(amount) else 1
    return f"{amount:.{digits}f} {units[-1]}"


def duration_text(seconds: float) -> str:
    """The two largest units that are not zero: 3 days 4 hours, 12 minutes 5 seconds."""
    rest, parts = int(seconds), []
    for unit_s, noun in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        amount, rest = divmod(rest, unit_s)
        if amount:
            parts.append(count(amount, noun))
    return " ".join(parts[:2]) or "less than a second"


def rate_text(per_s: float) -> str:
    """A rate in few figures: 0, 0.5, 950, 12.3 k, 1.2 M."""
    if per_s < 10 and per_s != int(per_s):
        return f"{per_s:.1f}"
    if per_s < 9_999.5:
        return f"{per_s:,.0f}"
    return f"{per_s / 1e3:.1f} k" if per_s < 999_950 else f"{per_s / 1e6:.1f} M"


def table(rows: list[tuple[str, ...]], aligned: str) -> list[str]:
    """Rows in columns as wide as their widest cell, two spaces between; `aligned` has < or > for each column."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(aligned))]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(aligned, widths, strict=True))
    return [form.format(*row).rstrip() for row in rows]
