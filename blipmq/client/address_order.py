"""The addresses of a host name in the order in which they are tried (RFC 8305), and the error of each.

Invariant: address families alternate, starting with the one that the system prefers. A family without a route therefore
costs at most ATTEMPT_DELAY_S. One attempt to connect tries at most CANDIDATES_MAX addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from blipmq.client.address import Address, unreachable
from blipmq.errors import BlipMQError, Disconnected, NotTrusted, ProtocolError, TimedOut, Unreachable

ATTEMPT_DELAY_S = 0.25
"""The head start of one address before the next one is tried in parallel."""
CANDIDATES_MAX = 16

# Errors after which another address of the same host may succeed, the most informative first. Refusals by a broker are
# not among them.
_ANOTHER_MAY_DO = (NotTrusted, ProtocolError, Disconnected, TimedOut, Unreachable)


class Candidate(NamedTuple):
    """One address: its family, and the socket address as the system expects it."""

    family: int
    place: Any

    @property
    def where(self) -> str:
        return str(self.place[0])


def in_order(found: Iterable[tuple[Any, ...]]) -> list[Candidate]:
    """Return the results of getaddrinfo in the order in which to try them."""
    candidates = list(dict.fromkeys(Candidate(int(family), place) for family, _, _, _, place in found))
    if not candidates:
        return []
    first = [candidate for candidate in candidates if candidate.family == candidates[0].family]
    others = [candidate for candidate in candidates if candidate.family != candidates[0].family]
    alternating = chain.from_iterable(zip_longest(first, others))
    return [candidate for candidate in alternating if candidate is not None][:CANDIDATES_MAX]


class Tried:
    """The errors of the addresses that one attempt to connect has tried."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._errors: list[tuple[str, BlipMQError]] = []

    def __repr__(self) -> str:
        return f"Tried({self._address}, {self._errors!r})"

    def add(self, candidate: Candidate, error: BaseException) -> None:
        known = error if isinstance(error, BlipMQError) else unreachable(self._address, error)
        self._errors.append((candidate.where, known))

    def error(self) -> BlipMQError:
        """Return one error for all addresses. It lists each address with its error if the errors differ."""
        errors = [error for _, error in self._errors]
        if len({str(error) for error in errors}) == 1:
            return errors[0]
        telling = next((e for kind in _ANOTHER_MAY_DO for e in errors if isinstance(e, kind)), errors[-1])
        head = f"Cannot reach a broker at {self._address}"
        parts = [f"{where}: {str(error).removeprefix(f'{head}: ')}" for where, error in self._errors]
        return type(telling)(f"{head}: {len(errors)} addresses were tried. {' '.join(parts)}", code=telling.code)


def another_may_do(error: BaseException) -> bool:
    """Whether another address of the same host may succeed after this error."""
    return isinstance(error, _ANOTHER_MAY_DO)


def share_s(now_s: float, deadline_s: float, others: int) -> float:
    """Return the deadline for TLS and HELLO on one connection, in seconds on the caller's clock. `others` is the number
    of addresses left to try; if there are any, they keep half of the time."""
    return now_s + (deadline_s - now_s) / 2 if others else deadline_s
