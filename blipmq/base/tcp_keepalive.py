"""Noticing that the far end of a TCP connection is gone without a word: a power cut, a cable, a network that forgot it.

    nothing is on its way    the system probes the far end (keep_alive)
    output is on its way     the owner of the socket looks whether the far end's system acknowledges it (Owed)

The rules are those of net/keepalive.c, for the sockets that Python owns. Invariant: a far end whose system answers is never
taken for gone, however slowly it reads; that is why TCP_USER_TIMEOUT is not used.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

LOOKS = 4
"""At a connection whose output is not acknowledged, in each interval."""
LOST_MS = 60_000
"""Within this a client notices that its broker is gone; `server.keepalive_ms` is the broker's."""
_LOST = frozenset(
    getattr(errno, name)
    for name in ("ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN", "ENETDOWN")
    if hasattr(errno, name)
)
_SECONDS_LEAST = 2
_RTO_MAX_MS_LINUX = 44  # an option of Linux 6.15: how far retransmissions and probes of a closed window back off
_RTO_MAX_MS_RANGE = (1000, 120_000)
_DATA_UNACKED, _LAST_DATA_SENT, _LAST_ACK_RECV = (
    4,
    9,
    12,
)  # among the numbers of Linux's tcp_info, which follow eight bytes
_TCP_INFO = struct.Struct("<3xB4x13I")


def keep_alive(sock: Any, within_ms: int) -> None:
    """Have the system probe a quiet far end: first after about half of `within_ms`, then three times at most. 0: do not."""
    if not within_ms:
        return
    seconds = max(within_ms // 1000, _SECONDS_LEAST)
    seconds -= seconds // 10  # the system's timers may be late by that much
    idle = seconds // 2
    interval = max((seconds - idle) // 3, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), idle),  # the second is macOS's name
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
        except OSError:  # an older one
            pass


def is_lost_peer(error: BaseException) -> bool:
    """Whether a socket failed because its far end does not answer."""
    return isinstance(error, TimeoutError) or getattr(error, "errno", None) in _LOST


class Owed:
    """Whether the far end of one socket has stopped acknowledging what it is sent. Ask `is_lost` LOOKS times in each interval."""

    __slots__ = ("_doubt_s",)

    def __init__(self) -> None:
        self._doubt_s = 0.0

    def is_lost(self, sock: Any, now_s: float, within_s: float) -> bool:
        """Doubt begins when the last transmission is found unanswered, ends with any acknowledgement, and has to outlast most of
        `within_s` and a transmission that began later: one may be lost on its way."""
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
    """If the last transmission is unanswered: how many seconds ago the far end acknowledged anything, and something was sent.
    None: it is answered, or this system does not say."""
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
