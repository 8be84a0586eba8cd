"""Reference model of admission: which connections are pending, displaced and admitted.

A connection may need steps before its protocol: records of a TLS handshake, the request of a WebSocket. Without keys the last
of them admits it, and a connection that needs none is admitted at once.

Invariant: `pending` contains the open connections that are not admitted. `silent` contains those of them whose HELLO
was not passed to Python, in the order of displacement. Time is an argument.
"""

from __future__ import annotations

import ipaddress


def place(address: str) -> str:
    """The limited address: an IPv4 address or an IPv6 /64; "" for an address without a limit."""
    if not address or ipaddress.ip_address(address).is_loopback:
        return ""
    host = ipaddress.ip_address(address)
    return str(host) if host.version == 4 else str(ipaddress.ip_network((host, 64), strict=False))


class AdmissionModel:
    def __init__(self, total: int, each: int, most: int, hello_ms: int, now_ms: int, keys: bool = True) -> None:
        self.total, self.each, self.most, self.hello_ms, self.now_ms = total, each, most, hello_ms, now_ms
        self.keys = keys
        self.inside: set[int] = set()
        self.steps: dict[int, int] = {}  # left before the protocol
        self.pending: dict[int, tuple[str, int]] = {}  # limited address, deadline
        self.silent: list[int] = []
        self.counts = dict.fromkeys(
            ["pending", "refused_pending", "refused_pending_address", "hello_timeouts", "accepted"], 0
        )

    @property
    def heard(self) -> list[int]:
        """Connections whose HELLO was passed to Python."""
        return [name for name in self.pending if name not in self.silent]

    def arrive(self, name: int, address: str, steps: int = 0) -> bool:
        """Whether the connection is accepted."""
        taken = [whose for whose, _ in self.pending.values()]
        if len(self.inside) >= self.most:
            return False
        if not self.keys and not steps:
            self.steps[name] = 0
            self.inside.add(name)
            self.counts["accepted"] += 1
            return True
        if place(address) and taken.count(place(address)) >= self.each:
            self.counts["refused_pending_address"] += 1
            return False
        if len(taken) >= self.total:
            self.counts["refused_pending"] += 1
            if not self.silent:
                return False
            self.leave(self.silent[0])
        self.inside.add(name)
        self.steps[name] = steps
        self.pending[name] = place(address), self.now_ms + self.hello_ms
        self.silent.append(name)
        self.counts["accepted"] += 1
        self._count()
        return True

    def step(self, name: int) -> None:
        """One step of its handshakes is done."""
        self.steps[name] -= 1
        if not self.steps[name] and not self.keys:
            self.admit(name)
            self.silent.remove(name)

    def hello(self, name: int) -> None:
        self.silent.remove(name)

    def answer(self, name: int) -> None:
        """Python has answered without admitting it."""
        self.silent.insert(0, name)

    def admit(self, name: int) -> None:
        del self.pending[name]
        self._count()

    def leave(self, name: int) -> None:
        self.inside.discard(name)
        self.pending.pop(name, None)
        if name in self.silent:
            self.silent.remove(name)
        self._count()

    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        for name, (_, deadline_ms) in list(self.pending.items()):
            if deadline_ms <= self.now_ms:
                self.counts["hello_timeouts"] += 1
                self.leave(name)

    def _count(self) -> None:
        self.counts["pending"] = len(self.pending)
