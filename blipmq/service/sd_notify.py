"""What the service manager is told: datagrams on $NOTIFY_SOCKET, as systemd's sd_notify(3) describes them.

Invariant: nothing here waits or raises. Without $NOTIFY_SOCKET, which is how everything but systemd starts a broker, all
of it does nothing; what the manager does not take is lost, never the broker's trouble.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

STATUS_BYTES_MAX = 512


class Notifier:
    """Tells the service manager named by `environ` how the broker does. `watchdog_s` is how often it wants to hear from a
    broker that is well, in seconds; 0: it does not ask."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self._status = ""
        self.watchdog_s = _watchdog_s(environ)
        path = environ.get("NOTIFY_SOCKET", "")
        if path[:1] not in ("/", "@") or not hasattr(socket, "AF_UNIX"):
            return
        with contextlib.suppress(OSError):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.connect("\0" + path[1:] if path[0] == "@" else path)  # @: the abstract name space

    def __repr__(self) -> str:
        return f"<Notifier {'on' if self._socket else 'off'} watchdog_s={self.watchdog_s} status={self._status!r}>"

    def __bool__(self) -> bool:
        return self._socket is not None

    def ready(self, status: str) -> None:
        """The broker serves; also ends what `reloading` began."""
        self._status = status
        self._send("READY=1", _status_line(status))

    def reloading(self) -> None:
        """The settings are being read again. The time is what tells this reload from one before it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, within_s: float) -> None:
        """The end has begun, and takes at most `within_s`."""
        self._send("STOPPING=1", _status_line("sending what is queued"), _extension(within_s))

    def starting(self, status: str, within_s: float) -> None:
        """Not ready yet; it will say so again, or be ready, within `within_s`."""
        self._status = status
        self._send(_status_line(status), _extension(within_s))

    def well(self, status: str) -> None:
        """Whoever calls this has just seen that the broker works."""
        lines = ["WATCHDOG=1"]
        if status != self._status:
            lines.append(_status_line(status))
        self._status = status
        self._send(*lines)

    def close(self) -> None:
        """Nothing more is said. Closing twice is harmless."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send("\n".join(lines).encode())


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """$WATCHDOG_USEC, if it is meant for this process."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0
    return int(microseconds) / 1_000_000


def _status_line(text: str) -> str:
    """One line: a line end inside would begin another assignment."""
    return "STATUS=" + " ".join(text.split()).encode()[:STATUS_BYTES_MAX].decode(errors="ignore")


def _extension(within_s: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(within_s * 1_000_000)}"
