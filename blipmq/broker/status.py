"""The broker's state, for INFO and for operators.

Invariant: gathering never blocks, and only one round runs at a time. Counters arrive as `Stats` events, subscribers as
`Listed` pages. Requests that arrive during a round share its result, so a thousand INFO requests cost as much as one.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from blipmq.auth.auth import Auth
from blipmq.base.hardware import Hardware, read_hardware
from blipmq.broker.wal import Wal
from blipmq.native.core import Core
from blipmq.native.events import Accepting, Listed, Stats, Subscriber
from blipmq.net import admission_log
from blipmq.net.admission_log import AdmissionLog
from blipmq.sessions import listing as session_list
from blipmq.sessions.connections import Connections
from blipmq.sessions.listing import Listing, SessionLists, Wanted
from blipmq.version import __version__

SUBSCRIBERS_MAX = 100
FILTERS_MAX = 16
INFO_BYTES_MAX = 256 * 1024
RATE_SECONDS = 5
REASON_CHARS_MAX = 500
EVERYTHING = Wanted()
KEY_FILE_REASON = "the key file is not valid, and the old keys stay in effect"
HOLDER_REASON = "WAL: nearly full, and one subscription keeps most of it; a key with the right admin sees which one"
WAL_FILLING = 0.75  # share of wal.max_bytes; above it, a reason names the subscription that keeps most of the WAL
NEARLY_FULL = 0.9  # share of the memory budget; above it, the broker is degraded


class Tls(Protocol):
    """The part of `blipmq.net.tls` that the status needs."""

    @property
    def addresses(self) -> Mapping[str, str]: ...

    def facts(self, counters: Counters) -> dict[str, Any]: ...

    def reasons(self) -> list[str]: ...


Counters = dict[str, int]
Report = dict[str, Any]


class Status:
    """Gathers the state of one broker. `clock` returns monotonic seconds; `tick` is called once a second."""

    def __init__(
        self,
        core: Core,
        connections: Connections,
        clock: Callable[[], float],
        budget_bytes: int,
        wal: Wal | None = None,
        auth: Auth | None = None,
        admission: AdmissionLog | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.addresses: dict[str, str] = {}  # where the core listens without TLS, by setting
        self.bind_problems: Callable[[], dict[str, str]] = (
            dict  # sentences about addresses that are not available yet, by setting
        )
        self.budget_bytes = budget_bytes  # 0: none
        self.reloads_applied = self.reloads_refused = 0
        self.reload_error = ""  # why the last reload changed nothing; "" after a successful one
        self.session_lists = SessionLists(core)
        self.sampled: Callable[[Counters], None] | None = None  # called with each second's counters
        self._core = core
        self._connections = connections
        self._wal = wal
        self._auth = auth
        self._admission = admission
        self._tls = tls
        self._clock = clock
        self._started = clock()
        self._accept_errno = 0
        self._history: deque[tuple[float, Counters]] = deque(maxlen=RATE_SECONDS + 1)
        self._seq = 0
        self._counters_for: dict[int, Callable[[Counters], None]] = {}
        self._reports_for: list[Callable[[Report], None]] = []
        self._round = 0  # seq of the current round, 0: none
        self._counters: Counters = {}
        self._deepest: list[Subscriber] = []
        self._listed = self._stuck = 0
        self._unnamed: dict[str, str] = {}  # of the last report: reasons with names in them, and the same without names

    def __repr__(self) -> str:
        return f"<Status waiting={len(self._reports_for)} round={self._round} history={len(self._history)}>"

    @property
    def accept_problem(self) -> str:
        """Why new connections are not accepted at the moment; "" if they are."""
        return f"new connections are not accepted: {os.strerror(self._accept_errno)}" if self._accept_errno else ""

    @property
    def memory_is_short(self) -> bool:
        """Whether the core was over its memory budget at the last sample, at most a second ago."""
        return bool(self.budget_bytes and self._history and _in_use(self._history[-1][1]) > self.budget_bytes)

    # -- requests

    def tick(self) -> None:
        """Take one sample, for the rates and for the log lines."""
        self.ask_counters(self._sampled)

    def ask_counters(self, answer: Callable[[Counters], None]) -> None:
        """Call `answer` with the core's counters, by their names in `bq_stats_t`."""
        self._seq += 1
        self._counters_for[self._seq] = answer
        self._core.stats(self._seq)

    def ask_reasons(self, answer: Callable[[list[str]], None]) -> None:
        """Call `answer` with the reasons why the broker is degraded, one sentence each; empty if all is well."""

        def counted(counters: Counters) -> None:
            if self._wal_is_filling(counters):  # the holder has to be looked up
                self.session_lists.ask(lambda listing: answer(self._all_reasons(counters, read_hardware(), listing)))
            else:
                answer(self._all_reasons(counters, read_hardware()))

        self.ask_counters(counted)

    def ask_report(self, answer: Callable[[Report], None]) -> None:
        """Call `answer` with the report that INFO returns as JSON."""
        self._reports_for.append(answer)
        if not self._round:
            self.ask_counters(self._begin_round)
            self._round = self._seq

    def ask_json(self, answer: Callable[[bytes], None], key: str | None = None, own: Wanted = EVERYTHING) -> None:
        """Call `answer` with the report as JSON of at most INFO_BYTES_MAX bytes. `key`: only with the subscribers that
        use the key of that name, and the sessions selected by `own`."""
        if key is None:
            self.ask_report(lambda report: answer(_bounded_json(report)))
            return

        def listed(listing: Listing) -> None:
            sessions = self._listed_facts(listing, own)
            self.ask_report(lambda report: answer(_bounded_json(_only(report, key, sessions, self._unnamed))))

        self.session_lists.ask(listed, own)

    def ask_filter(self, answer: Callable[[bytes], None], filter_: str, key: str | None, own: Wanted) -> None:
        """Call `answer` with JSON: whether exactly this filter has a subscription, of a connected client or a durable one.
        `key`: only subscriptions of that key count."""

        def found(is_subscribed: bool) -> None:
            answer(_bounded_json({"filter": filter_, "subscribed": is_subscribed}))

        # Groups and durable subscriptions are in the core's list, the others in that of the connections.
        connections = (c for c in self._connections if key is None or (c.key is not None and c.key.name == key))
        if any((filter_, "") in connection.subscriptions for connection in connections):
            found(True)
        else:
            wanted = own._replace(find=filter_, filter=filter_, limit=1)
            self.session_lists.ask(lambda listing: found(bool(listing.rows)), wanted)

    def ask_sessions(self, answer: Callable[[bytes], None], wanted: Wanted) -> None:
        """Call `answer` with the selected sessions, as JSON of at most INFO_BYTES_MAX bytes."""
        self.list_sessions(lambda listed: answer(_bounded_json({"sessions": listed})), wanted)

    def list_sessions(self, answer: Callable[[Report], None], wanted: Wanted) -> None:
        """Call `answer` with totals over the selected sessions, and in `list` the rows with the largest lag."""
        self.session_lists.ask(lambda listing: answer(self._listed_facts(listing, wanted)), wanted)

    # -- answers of the core

    def stats(self, event: Stats) -> None:
        answer = self._counters_for.pop(event.seq, None)
        if answer is not None:
            answer(event.counters)

    def listed(self, event: Listed) -> None:
        if event.seq != self._round:
            return
        self._listed += len(event.subscribers)
        self._stuck += sum(row.blocked for row in event.subscribers)
        rows = event.subscribers
        if len(self._deepest) == SUBSCRIBERS_MAX:  # the list is full: discard most rows early
            least = _depth(self._deepest[-1])
            rows = [row for row in rows if _depth(row) > least]
        if rows:
            self._deepest = heapq.nlargest(SUBSCRIBERS_MAX, [*self._deepest, *rows], key=_depth)
        if event.next_slot:
            self._core.list(self._round, event.next_slot)
        else:
            self.session_lists.ask(self._end_round)

    def accepting(self, event: Accepting) -> None:
        self._accept_errno = event.errno if event.paused else 0

    def _sampled(self, counters: Counters) -> None:
        self._history.append((self._clock(), counters))
        if self._wal is not None:
            self._wal.observe(counters)
        if self._admission is not None:
            self._admission.observe(counters)
        if self.sampled is not None:
            self.sampled(counters)

    # -- the report

    def _begin_round(self, counters: Counters) -> None:
        self._counters, self._deepest, self._listed, self._stuck = counters, [], 0, 0
        self._core.list(self._round, 0)

    def _end_round(self, listing: Listing) -> None:
        report = self._report(self._counters, self._deepest, listing)
        answers, self._reports_for = self._reports_for, []
        self._round, self._deepest = 0, []
        for answer in answers:
            answer(report)

    def _report(self, counters: Counters, subscribers: list[Subscriber], listing: Listing) -> Report:
        rates, _ = self._rates(counters)
        hardware = read_hardware()
        reasons = self._all_reasons(counters, hardware, listing)
        self._unnamed = dict.fromkeys(self._who_fills_the_wal(counters, listing), HOLDER_REASON)
        self._unnamed |= dict.fromkeys(self._key_file_reasons(), KEY_FILE_REASON)
        return {
            "version": __version__,
            "uptime_s": int(self._clock() - self._started),
            "address": self.addresses.get("server.bind_addr", ""),
            "state": "degraded" if reasons else "ok",
            "reasons": reasons,
            "clients": counters["connections"],
            "connections": admission_log.facts(counters),
            "topics": counters["cached_topics"],  # the routing cache; the name is kept for compatibility
            "filters": counters["filters"],
            "subscriptions": [self._subscriber(row) for row in subscribers],
            "subscriptions_total": counters["subscriptions"],
            "subscribers": {"total": self._listed, "blocked": self._stuck},
            "messages": {
                "published": counters["published"],
                "enqueued": counters["enqueued"],
                "delivered": counters["delivered"],
                "queued": counters["queued_messages"],
                "unrouted": counters["unrouted"],
                "dropped": {
                    "ttl": counters["dropped_ttl"],
                    "queue_full": counters["dropped_queue_full"],
                    "disconnect": counters["dropped_disconnect"],
                    "session_log_bytes": counters["dropped_session_log"],
                },
            },
            "rates": rates,
            "memory": {"used_bytes": counters["memory_used_bytes"], "budget_bytes": self.budget_bytes},
            "sessions": {
                "total": counters["sessions"],
                "behind": counters["sessions_behind"],
                "in_flight": counters["in_flight"],
                "acked": counters["acked"],
                "redelivered": counters["redelivered"],
                "dead_lettered": counters["dead_lettered"],
                "expired": counters["sessions_expired"],
                "over_quota": counters["over_session_log"],
                "refused": {
                    "max_sessions": counters["sessions_refused"],
                    "max_sessions_per_key": counters["sessions_refused_key"],
                },
                **self._listed_facts(listing),
            },
            "auth": self._auth_facts(),
            "log": self._wal.facts(counters) if self._wal else None,
            "tls": self._tls.facts(counters) if self._tls else None,
            "websocket": self._websocket_facts(counters),
            "mqtt": self._mqtt_facts(),
            "disk_free_bytes": counters["log_free_bytes"] if self._wal else _disk_free_bytes(),
            "hardware": hardware,
        }

    def _listed_facts(self, listing: Listing, wanted: Wanted = EVERYTHING) -> Report:
        return {
            "total": listing.sums["sessions"],
            "durable": listing.sums["durable"],
            "absent": listing.sums["absent"],
            "lag_messages": listing.sums["lag_messages"],
            "lag_bytes": listing.sums["lag_bytes"],
            "list": [session_list.facts(row, self._connections, wanted.key) for row in listing.rows],
        }

    def _auth_facts(self) -> Report | None:
        if self._auth is None or not self._auth.required:
            return None
        return {**self._auth.facts, "file_ok": not self._auth.problem}

    def _websocket_facts(self, counters: Counters) -> Report | None:
        address = self.addresses.get("server.ws_bind_addr", "")
        if not address and not self._tls_address("server.tls_bind_addr"):
            return None
        return {"address": address, "connections": counters["websockets"], "refused": counters["websocket_refused"]}

    def _mqtt_facts(self) -> Report | None:
        addresses = {
            "address": self.addresses.get("mqtt.bind_addr", ""),
            "tls_address": self._tls_address("mqtt.tls_bind_addr"),
            "websocket_address": self.addresses.get("mqtt.ws_bind_addr", ""),
        }
        return addresses if any(addresses.values()) else None

    def _tls_address(self, setting: str) -> str:
        return self._tls.addresses.get(setting, "") if self._tls else ""

    def _subscriber(self, row: Subscriber) -> Report:
        connection = self._connections.find(row.conn)
        filters = list(connection.filters) if connection else []
        return {
            "client": connection.client_id if connection else "",
            "key": connection.key.name if connection and connection.key else "",
            "peer": row.peer or "in-process",
            "filters": filters[:FILTERS_MAX],
            "filters_total": len(filters),
            "queued_messages": row.queued_messages,
            "queued_bytes": row.queued_bytes,
            "enqueued": row.enqueued,
            "delivered": row.delivered,
            "dropped_ttl": row.dropped_ttl,
            "dropped_queue_full": row.dropped_queue_full,
            "blocked": row.blocked,
            "websocket": row.websocket,
        }

    def _rates(self, counters: Counters) -> tuple[dict[str, float], int]:
        """Messages per second in and out over the last seconds, and the number of messages that full queues dropped in
        that time."""
        if not self._history:
            return {"in_per_s": 0.0, "out_per_s": 0.0}, 0
        then, old = self._history[0]
        seconds = max(self._clock() - then, 0.001)
        came, went = counters["published"] - old["published"], counters["delivered"] - old["delivered"]
        dropping = counters["dropped_queue_full"] - old["dropped_queue_full"]
        return {"in_per_s": round(came / seconds, 1), "out_per_s": round(went / seconds, 1)}, dropping

    def _wal_is_filling(self, counters: Counters) -> bool:
        return bool(self._wal and counters["log_bytes"] >= self._wal.max_bytes * WAL_FILLING)

    def _who_fills_the_wal(self, counters: Counters, listing: Listing | None) -> list[str]:
        """Name the subscription that keeps most of a WAL that is nearly full, and how to end it."""
        holder = listing.holder if listing is not None else None
        if holder is None or not self._wal_is_filling(counters) or holder.log_bytes < counters["log_bytes"] / 2:
            return []
        fact = session_list.facts(holder, self._connections)
        whose = f"--group {fact['group']}" if fact["group"] else f"--client-id {fact['client_id']}"
        key = f" --key {fact['key']}" if fact["key"] and not fact["group"] else ""
        return [
            f"WAL: the subscription to {fact['filter']} ({whose}{key}) keeps {holder.log_bytes} of {counters['log_bytes']} bytes "
            f"from being deleted; bring its client back, or end it: blipmq-cli sessions end '{fact['filter']}' {whose}{key}"
        ]

    def _all_reasons(self, counters: Counters, hardware: Hardware | None, listing: Listing | None = None) -> list[str]:
        reasons = list(self.bind_problems().values())
        reasons += self._wal.reasons(counters) if self._wal else []
        reasons += self._who_fills_the_wal(counters, listing)
        reasons += self._tls.reasons() if self._tls else []
        reasons += self._reasons(self._rates(counters)[1], _in_use(counters))
        if self._history:
            reasons += admission_log.reasons(counters, self._history[0][1], RATE_SECONDS)
        if self.reload_error:
            why = "; ".join(self.reload_error.splitlines())
            reasons.append(
                f"the new configuration is not valid, and the old one stays in effect: {why[:REASON_CHARS_MAX]}"
            )
        reasons += self._key_file_reasons()
        if hardware and hardware["undervoltage"]:
            reasons.append("under-voltage: use a stronger power supply or a better cable")
        if hardware and hardware["throttled"]:
            reasons.append("throttled: the processor is too hot, or its power supply is too weak")
        return reasons

    def _key_file_reasons(self) -> list[str]:
        problem = self._auth.problem if self._auth else ""
        return [f"{KEY_FILE_REASON}: {problem[:REASON_CHARS_MAX]}"] if problem else []

    def _reasons(self, dropping: int, in_use: int) -> list[str]:
        reasons = []
        if self.budget_bytes and in_use > self.budget_bytes * NEARLY_FULL:
            reasons.append(
                f"memory: {in_use} of {self.budget_bytes} bytes in use; slow subscribers lose messages first: see subscriptions"
            )
        if self._accept_errno:
            reasons.append(f"{self.accept_problem}; raise the limit on open files or lower server.max_connections")
        if dropping > 0:
            reasons.append(f"full queues dropped {dropping} messages in the last {RATE_SECONDS} s: see subscriptions")
        return reasons


def _in_use(counters: Counters) -> int:
    """Bytes in use in the core, without the free blocks of its pool, which it releases first."""
    return counters["memory_used_bytes"] - counters["pool_free_bytes"]


def _depth(row: Subscriber) -> tuple[int, int]:
    return row.queued_messages, row.dropped_queue_full


def _only(report: Report, key: str, sessions: Report, unnamed: dict[str, str]) -> Report:
    """The report for a client of one key: with its subscribers only, with `sessions`, the key's own (totals, and rows in
    `list`), and without names in the reasons (`unnamed`). The other totals are those of the whole broker."""
    rows = [row for row in report["subscriptions"] if row["key"] == key]
    reasons = [unnamed.get(reason, reason) for reason in report["reasons"]]
    return {**report, "reasons": reasons, "subscriptions": rows, "sessions": {**report["sessions"], **sessions}}


def _bounded_json(report: Report) -> bytes:
    """The report as JSON. Rows are removed from the end, of the longer list first, until it fits."""
    import json  # imported here because a broker without INFO requests does not need it

    while True:
        text = json.dumps(report, ensure_ascii=False, separators=(",", ":")).encode()
        rows, listed = report.get("subscriptions", []), report.get("sessions", {}).get("list", [])
        if len(text) <= INFO_BYTES_MAX or not (rows or listed):
            return text
        if len(rows) >= len(listed):
            report = {**report, "subscriptions": rows[: len(rows) // 2]}
        else:
            report = {**report, "sessions": {**report["sessions"], "list": listed[: len(listed) // 2]}}


def _disk_free_bytes() -> int | None:
    """Free bytes on the file system of the working directory; None if unknown."""
    try:
        about = os.statvfs(".")
    except (OSError, AttributeError):
        return None
    return about.f_bavail * about.f_frsize
