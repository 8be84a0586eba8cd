"""Messages to the service manager: datagrams on $NOTIFY_SOCKET, as in systemd's sd_notify(3).

Invariant: nothing here waits or raises. Without $NOTIFY_SOCKET, which only systemd sets, it does nothing. Datagrams
that the manager does not receive are lost, and the broker does not notice.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

STATUS_BYTES_MAX = 512


class Notifier:
    """Reports the broker's state to the service manager given in `environ`. `watchdog_s`: the watchdog interval in
    seconds; 0: no watchdog."""

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
        """The broker serves; this also ends a reload."""
        self._status = status
        self._send("READY=1", _status_line(status))

    def reloading(self) -> None:
        """The settings are being read again. The time distinguishes this reload from earlier ones."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, within_s: float) -> None:
        """The broker is stopping, which takes at most `within_s` seconds."""
        self._send("STOPPING=1", _status_line("sending queued messages"), _extension(within_s))

    def starting(self, status: str, within_s: float) -> None:
        """The broker is not ready yet. It repeats this, or is ready, within `within_s` seconds."""
        self._status = status
        self._send(_status_line(status), _extension(within_s))

    def well(self, status: str) -> None:
        """Reset the watchdog. Called only after the broker has proved that it works."""
        lines = ["WATCHDOG=1"]
        if status != self._status:
            lines.append(_status_line(status))
        self._status = status
        self._send(*lines)

    def close(self) -> None:
        """Close the socket. Closing twice is harmless."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send("\n".join(lines).encode())


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """$WATCHDOG_USEC in seconds, if it is for this process; else 0."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0
    return int(microseconds) / 1_000_000


def _status_line(text: str) -> str:
    """The STATUS line without line ends, which would start another assignment."""
    return "STATUS=" + " ".join(text.split()).encode()[:STATUS_BYTES_MAX].decode(errors="ignore")


def _extension(within_s: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(within_s * 1_000_000)}"
