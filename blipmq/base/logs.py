"""Log lines: one event each, `event key=value` or JSON, written to a descriptor.

Invariant: logging never raises, never waits for the reader, and a value never starts a new line. Lines that the reader
does not take in time wait in a bounded buffer; beyond it they are dropped and counted, and the count is the next line.
Lines of an event that clients cause too often in one second are counted instead of written.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
BUFFER_BYTES_MAX = 256 * 1024
VALUE_CHARS_MAX = 512
LINES_PER_EVENT_MAX = 50  # in one second

# A pipe that polls writable accepts this many bytes without blocking (PIPE_BUF).
WRITE_BYTES_MAX: int = getattr(select, "PIPE_BUF", 512)

_BARE = re.compile(r"[\w.:/@%+,*>#$\[\]()-]+", re.ASCII)
_ESCAPES = {ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


def _escape(text: str) -> str:
    """`text` on one line, with control characters escaped."""
    text = text.translate(_ESCAPES)
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text
    )


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = text[:VALUE_CHARS_MAX] + "…"
    return text if _BARE.fullmatch(text) else f'"{_escape(text)}"'


class Log:
    """Writes lines of at least `level` to `fd`. `clock` returns seconds since 1970."""

    def __init__(
        self,
        fd: int = 2,
        level: str = "info",
        format: str = "text",
        clock: Callable[[], float] = time.time,
        lines_per_event_max: int = LINES_PER_EVENT_MAX,
    ) -> None:
        self._fd = fd
        self._clock = clock
        self._lines_per_event_max = lines_per_event_max
        self._second = 0
        # in this second, by event; events are constants in the code, so there are few
        self._counts: dict[str, int] = {}
        self._buffer: deque[bytes] = deque()
        self._buffer_bytes = 0
        self.dropped = 0
        self.set(level, format)

    def __repr__(self) -> str:
        return f"<Log fd={self._fd} level={self.level} waiting={len(self._buffer)} dropped={self.dropped}>"

    def set(self, level: str, format: str) -> None:
        """Change level and format from the next line on."""
        self.level = level
        self._threshold = LEVELS[level]
        self._render = _json_line if format == "json" else _text_line

    def debug(self, event: str, **facts: Any) -> None:
        self._line("debug", event, facts)

    def info(self, event: str, **facts: Any) -> None:
        self._line("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._line("warning", event, facts)

    def error(self, event: str, **facts: Any) -> None:
        self._line("error", event, facts)

    def settle(self) -> None:
        """Write the waiting lines, and report the lines suppressed in the last second. To be called once a second."""
        self._turn_second(int(self._clock()))
        self.flush()

    def finish(self) -> None:
        """Write the waiting lines at the end, and report the lines suppressed in the current second, so that none is
        missing."""
        self._turn_second(self._second + 1)
        self.flush()

    def flush(self) -> bool:
        """Write the waiting lines, as far as the descriptor accepts them. Returns True if none waits any more."""
        while self._buffer and self._writable():
            line = self._buffer[0]
            try:
                written = os.write(self._fd, line[:WRITE_BYTES_MAX])
            except BlockingIOError:
                return False
            except OSError:  # closed, or its disk is full: the error cannot be logged
                self._forget()
                return True
            self._buffer_bytes -= written
            if written < len(line):
                self._buffer[0] = line[written:]  # finish this line first, or lines mix
            else:
                self._buffer.popleft()
        return not self._buffer

    def _line(self, level: str, event: str, facts: dict[str, Any]) -> None:
        if LEVELS[level] < self._threshold:
            return
        now = self._clock()
        if int(now) != self._second:
            self._turn_second(int(now))
        self._counts[event] = self._counts.get(event, 0) + 1
        if self._counts[event] > self._lines_per_event_max:
            return
        try:
            line = self._render(now, level, event, facts)
        except Exception as error:  # a failing __str__ must not stop the broker
            line = _text_line(now, "error", "log_failed", {"event": event, "error": type(error).__name__})
        self._put(line)

    def _turn_second(self, second: int) -> None:
        if second == self._second:
            return
        counts, self._counts, self._second = self._counts, {}, second
        for event, count in counts.items():
            if count > self._lines_per_event_max:
                facts = {"of": event, "count": count - self._lines_per_event_max}
                self._put(self._render(self._clock(), "warning", "logs_suppressed", facts))

    def _put(self, line: bytes) -> None:
        self.flush()
        if self.dropped and self._room(line):
            count, self.dropped = self.dropped, 0
            self._keep(self._render(self._clock(), "warning", "logs_dropped", {"count": count}))
        if self._room(line):
            self._keep(line)
            self.flush()
        else:
            self.dropped += 1

    def _room(self, line: bytes) -> bool:
        # 256: room for the logs_dropped line in front
        return self._buffer_bytes + len(line) + 256 <= BUFFER_BYTES_MAX

    def _keep(self, line: bytes) -> None:
        self._buffer.append(line)
        self._buffer_bytes += len(line)

    def _forget(self) -> None:
        self.dropped += len(self._buffer)
        self._buffer.clear()
        self._buffer_bytes = 0

    def _writable(self) -> bool:
        """Whether a write will not block. The descriptor is shared with the shell, so it is not made non-blocking."""
        try:
            if hasattr(select, "poll"):
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                return bool(poller.poll(0))
            return True
        except (OSError, ValueError):
            return True  # the write reports the error


def _stamp(now: float) -> str:
    millis = int(now * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000)) + f".{millis % 1000:03d}Z"


def _text_line(now: float, level: str, event: str, facts: dict[str, Any]) -> bytes:
    words = [_stamp(now), level, event, *(f"{name}={_value(value)}" for name, value in facts.items())]
    return (" ".join(words) + "\n").encode("utf-8", "backslashreplace")


def _json_line(now: float, level: str, event: str, facts: dict[str, Any]) -> bytes:
    import json  # imported here because most brokers write text, and start faster without it

    short = {
        name: v[:VALUE_CHARS_MAX] + "…" if isinstance(v, str) and len(v) > VALUE_CHARS_MAX else v
        for name, v in facts.items()
    }
    record = {"time": _stamp(now), "level": level, "event": event, **short}
    return (json.dumps(record, ensure_ascii=True, default=str, separators=(",", ":")) + "\n").encode()
