"""Connect to a host with several addresses without asyncio: the first that connects is used (RFC 8305).

Invariant: one socket is returned, non-blocking; all others are closed. Everything ends at its deadline, except the
look-up of a name: the system's resolver has its own time limits.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from blipmq.client.address import Address, unreachable
from blipmq.client.address_order import ATTEMPT_DELAY_S, Candidate, Tried, in_order

if TYPE_CHECKING:
    import ssl

_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS))


def look_up(address: Address) -> list[Candidate]:
    """Return the addresses of the host. Raises Unreachable."""
    try:
        return in_order(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:  # a label of the host name can be too long for IDNA
        raise unreachable(address, error) from error


def dial(
    candidates: list[Candidate], deadline_s: float, clock: Callable[[], float], tried: Tried
) -> tuple[socket.socket, Candidate]:
    """Return the first connection made before `deadline_s`. Removes the failed candidates and the connected one from
    `candidates`.
    Raises the error of `tried` if all fail."""
    waiting, attempts = list(candidates), dict[socket.socket, Candidate]()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or attempts:
                if waiting:
                    candidate = waiting.pop(0)
                    try:
                        sock = _begin(candidate)
                    except OSError as error:
                        candidates.remove(candidate)
                        tried.add(candidate, error)
                        continue
                    attempts[sock] = candidate
                    selector.register(sock, selectors.EVENT_WRITE)
                left_s = max(deadline_s - clock(), 0.0)
                pause_s = min(left_s, ATTEMPT_DELAY_S) if waiting else left_s
                ready = selector.select(pause_s)
                for key, _ in ready:
                    sock = key.fileobj  # type: ignore[assignment]
                    selector.unregister(sock)
                    candidate = attempts.pop(sock)
                    candidates.remove(candidate)
                    if not (number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                        return sock, candidate
                    sock.close()
                    tried.add(candidate, OSError(number, os.strerror(number)))
                if not ready and left_s <= pause_s:
                    break
            for candidate in attempts.values():
                candidates.remove(candidate)
                tried.add(candidate, TimeoutError())
            raise tried.error()
        finally:
            for sock in attempts:
                sock.close()


def _begin(candidate: Candidate) -> socket.socket:
    sock = socket.socket(candidate.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        number = sock.connect_ex(candidate.place)
        if number and number not in _UNDER_WAY:
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock


def shake_hands(
    tls: ssl.SSLContext, sock: socket.socket, address: Address, deadline_s: float, clock: Callable[[], float]
) -> ssl.SSLSocket:
    """Return the socket with TLS on top, its handshake done before `deadline_s`. Raises Unreachable or NotTrusted after
    closing the socket."""
    import ssl

    secure: ssl.SSLSocket | None = None
    try:
        secure = tls.wrap_socket(sock, server_hostname=address.host, do_handshake_on_connect=False)
        with selectors.DefaultSelector() as selector:
            selector.register(secure, selectors.EVENT_READ)
            while True:
                try:
                    secure.do_handshake()
                    return secure
                except ssl.SSLWantReadError:
                    selector.modify(secure, selectors.EVENT_READ)
                except ssl.SSLWantWriteError:
                    selector.modify(secure, selectors.EVENT_WRITE)
                if not selector.select(max(deadline_s - clock(), 0.0)):
                    raise TimeoutError
    except BaseException as error:
        (secure or sock).close()
        if isinstance(error, (OSError, ValueError)):
            raise unreachable(address, error) from error
        raise
