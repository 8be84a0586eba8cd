"""Connect to a host with several addresses with asyncio: the first that connects is used (RFC 8305).

Invariant: one socket is returned; all others are closed.
"""

from __future__ import annotations

import asyncio
import socket

from blipmq.client.address import Address, not_found_in_time, unreachable
from blipmq.client.address_order import ATTEMPT_DELAY_S, Candidate, Tried, in_order


async def look_up(address: Address, timeout_s: float) -> list[Candidate]:
    """Return the addresses of the host. Raises Unreachable."""
    loop = asyncio.get_running_loop()
    looking = loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    try:
        return in_order(await asyncio.wait_for(looking, timeout_s))
    except asyncio.TimeoutError:
        raise not_found_in_time(address) from None
    except (OSError, UnicodeError) as error:  # a label of the host name can be too long for IDNA
        raise unreachable(address, error) from error


async def dial(candidates: list[Candidate], deadline_s: float, tried: Tried) -> tuple[socket.socket, Candidate]:
    """Return the first connection made before `deadline_s` on the loop's clock. Removes the failed candidates and the
    connected one from `candidates`. Raises the error of `tried` if all fail."""
    loop = asyncio.get_running_loop()
    waiting = list(candidates)
    attempts: dict[asyncio.Task[socket.socket], Candidate] = {}
    try:
        while waiting or attempts:
            if waiting:
                candidate = waiting.pop(0)
                attempts[loop.create_task(_connect(candidate))] = candidate
            left_s = max(deadline_s - loop.time(), 0.0)
            pause_s = min(left_s, ATTEMPT_DELAY_S) if waiting else left_s
            done, _ = await asyncio.wait(attempts, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                candidate = attempts[task]
                candidates.remove(candidate)
                if (error := task.exception()) is None:
                    del attempts[task]
                    return task.result(), candidate
                del attempts[task]
                tried.add(candidate, error)
            if not done and left_s <= pause_s:
                break
        for candidate in attempts.values():
            candidates.remove(candidate)
            tried.add(candidate, TimeoutError())
        raise tried.error()
    finally:
        for task in attempts:
            task.cancel()
        for result in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(result, socket.socket):  # it connected at the same moment
                result.close()


async def _connect(candidate: Candidate) -> socket.socket:
    sock = socket.socket(candidate.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, candidate.place)
    except BaseException:
        sock.close()
        raise
    return sock
