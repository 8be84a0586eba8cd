"""Detecting that the peer of a TCP connection has vanished, for example after a power cut or a network failure.

    no output in flight      the system probes the peer (keep_alive)
    output in flight         the owner of the socket checks whether the peer's system acknowledges it (Owed)

The rules are those of net/keepalive.c, for the sockets that Python owns. Invariant: a peer whose system answers is
never considered lost, however slowly it reads; TCP_USER_TIMEOUT is not used because it would break this.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

LOOKS = 4
"""Checks in each interval of a connection whose output is not acknowledged."""
LOST_MS = 60_000
"""The time in which a client detects that its broker has vanished; the broker uses `server.keepalive_ms`."""
_SECONDS_LEAST = 2
_RTO_MAX_MS_LINUX = 44  # an option of Linux 6.15: the maximum interval of retransmissions and window probes
_RTO_MAX_MS_RANGE = (1000, 120_000)
_DATA_UNACKED, _LAST_DATA_SENT, _LAST_ACK_RECV = (
    4,
    9,
    12,
)  # indexes of the numbers in Linux's tcp_info, which follow eight bytes
_TCP_INFO = struct.Struct("<3xB4x13I")


def keep_alive(sock: Any, within_ms: int) -> None:
    """Let the system probe an idle peer: first after about half of `within_ms`, then at most three times. 0: no probes."""
    if not within_ms:
        return
    seconds = max(within_ms // 1000, _SECONDS_LEAST)
    seconds -= seconds // 10  # the system's timers may be late by that much
    idle = seconds // 2
    interval = max((seconds - idle) // 3, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), idle),  # macOS uses the second name
        (("TCP_KEEPINTVL",), interval),
        (("TCP_KEEPCNT",), (seconds - idle) // interval),
    ):
        option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        least, most = _RTO_MAX_MS_RANGE
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _RTO_MAX_MS_LINUX, min(max(within_ms // 6, least), most))
        except OSError:  # an older Linux
            pass


class Owed:
    """Detects that the peer of one socket no longer acknowledges output. Call `is_lost` LOOKS times in each interval."""

    __slots__ = ("_doubt_s",)

    def __init__(self) -> None:
        self._doubt_s = 0.0

    def is_lost(self, sock: Any, now_s: float, within_s: float) -> bool:
        """Return whether the peer is lost. A suspicion begins when the last transmission is unanswered, and ends with
        any acknowledgement. The peer is lost if the suspicion lasts for most of `within_s` and something was sent after
        it began, because a single transmission may be lost on its way."""
        owed = _unanswered(sock)
        if owed is None:
            self._doubt_s = 0.0
            return False
        quiet_s, sent_s = owed
        doubted_s = now_s - self._doubt_s
        if not self._doubt_s or quiet_s < doubted_s:
            self._doubt_s = now_s
            return False
        return doubted_s >= within_s * (LOOKS - 1) / LOOKS and sent_s < doubted_s


def _unanswered(sock: Any) -> tuple[float, float] | None:
    """If the last transmission is unanswered, return the seconds since the peer's last acknowledgement and since the
    last transmission. None: it is answered, or this system does not provide the figures."""
    if not hasattr(socket, "TCP_INFO") or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return None
    if len(data) < _TCP_INFO.size:
        return None
    probes, *numbers = _TCP_INFO.unpack(data)
    unacked, sent_ms, quiet_ms = (numbers[at] for at in (_DATA_UNACKED, _LAST_DATA_SENT, _LAST_ACK_RECV))
    if unacked and quiet_ms > sent_ms:
        return quiet_ms / 1000, sent_ms / 1000
    return (quiet_ms / 1000, 0.0) if probes >= 2 else None
