"""Connections refused before admission: at most one log line a minute, and the part of INFO about them.

Invariant: unauthenticated clients cannot fill the log. One line reports all that the core counted since the last line,
and the counters include every refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blipmq.base.logs import Log

Counters = Mapping[str, int]

LINE_SECONDS = 60.0
REFUSED = {
    "max_connections": "refused",
    "max_pending": "refused_pending",
    "max_pending_per_address": "refused_pending_address",
    "descriptors": "refused_descriptors",
}
"""The causes of refused connections, with the core's counters."""


class AdmissionLog:
    """Watches the core's counters. `clock` returns monotonic seconds."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._told = dict.fromkeys([*REFUSED.values(), "hello_timeouts"], 0)
        self._told_at = clock() - LINE_SECONDS

    def __repr__(self) -> str:
        return f"<AdmissionLog told={self._told}>"

    def observe(self, counters: Counters) -> None:
        """Log refused connections since the last line, at most once in LINE_SECONDS. Called once a second."""
        new = {name: counters[name] - told for name, told in self._told.items()}
        if not any(new[name] for name in REFUSED.values()) or self._clock() - self._told_at < LINE_SECONDS:
            return
        self._told = {name: counters[name] for name in self._told}
        self._told_at = self._clock()
        causes = {cause: new[name] for cause, name in REFUSED.items() if new[name]}
        self._log.warning(
            "connections_refused",
            **causes,
            hello_timeouts=new["hello_timeouts"],
            pending=counters["pending"],
            hint="see Connections in docs/SECURITY.md",
        )


def facts(counters: Counters) -> dict[str, Any]:
    """The part of INFO about admission: pending connections, and those refused since the start, by cause."""
    return {
        "pending": counters["pending"],
        "refused": {cause: counters[name] for cause, name in REFUSED.items()},
        "hello_timeouts": counters["hello_timeouts"],
        "accept_rests": counters["accept_rests"],
        "lost": {"vanished": counters["closed_vanished"], "silent": counters["closed_silent"]},
    }


def reasons(counters: Counters, old: Counters, seconds: int) -> list[str]:
    """Why the broker is degraded: connections were refused since `old`, `seconds` ago."""
    new = {cause: counters[name] - old[name] for cause, name in REFUSED.items()}
    told = []
    if new["max_connections"]:
        told.append(
            f"{new['max_connections']} connections were refused in the last {seconds} s: server.max_connections was reached"
        )
    pending = new["max_pending"] + new["max_pending_per_address"]
    if pending:
        told.append(
            f"{pending} connections without a valid HELLO were closed in the last {seconds} s: limits.max_pending or "
            f"limits.max_pending_per_address was reached; {counters['pending']} connections are pending"
        )
    return told
