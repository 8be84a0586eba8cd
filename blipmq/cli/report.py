"""The broker's status as text: a list, and a table of its subscribers that can be refreshed.

Invariant: nothing here does I/O, and no answer of the broker makes it fail: a missing or unexpected key is left out or
shown as unknown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from blipmq.cli import session_rows
from blipmq.cli.render import bytes_text, count, duration_text, printable, rate_text, table

_YEAR_10000 = 253_402_300_800  # in seconds since 1970


def render_info(info: Mapping[str, Any], *, fancy: bool, rates: SubscriptionRates | None = None) -> str:
    """The status as text. A key that the broker does not send is left out, or shown as unknown. With `rates`,
    subscriptions are a table, for a screen that is refreshed."""
    title = f"BlipMQ {_text(info.get('version'))} at {_text(info.get('address'))}"
    rows = [(label, value) for label, value in _info_rows(info) if value]
    width = max(len(label) for label, _ in rows)
    lines = [f"📊 {title}" if fancy else title, *(f"{label:<{width}}  {value}" for label, value in rows)]
    subscriptions = _subscription_lines(info) if rates is None else _subscription_table(info, rates)
    sessions = session_rows.info_lines(_map(info, "sessions"))
    return "\n".join([*lines, *subscriptions, *sessions]) + "\n"


def _info_rows(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    messages, rates, memory = _map(info, "messages"), _map(info, "rates"), _map(info, "memory")
    yield "State", _state(info)
    yield "Up for", duration_text(info["uptime_s"]) if _is_number(info.get("uptime_s")) else ""
    yield "Clients", _number(info.get("clients"))
    yield "Topic cache", _topics(info)
    yield "Messages in", _flow(messages.get("published"), rates.get("in_per_s"))
    yield "Messages out", _flow(messages.get("delivered"), rates.get("out_per_s"))
    yield "Waiting", _number(messages.get("queued"))
    yield "Dropped", _dropped(_map(messages, "dropped"))
    yield "Turned away", _refused(_map(_map(info, "connections"), "refused"))
    unrouted = messages.get("unrouted")
    yield "No subscriber", count(int(unrouted), "message") if _is_number(unrouted) else ""
    yield "Memory", _share(memory.get("used_bytes"), memory.get("budget_bytes"))
    yield "QoS 1", _sessions(_map(info, "sessions"))
    if "log" in info:
        yield "WAL", _log(info["log"])
    yield "TLS", _tls(_map(info, "tls"))
    yield "WebSocket", _websocket(_map(info, "websocket"))
    yield "Disk free", bytes_text(info["disk_free_bytes"]) if _is_number(info.get("disk_free_bytes")) else ""
    yield from _hardware_rows(_map(info, "hardware"))
    yield "Filters", _number(info.get("filters"))
    yield "Subscriptions", _number(info.get("subscriptions_total", len(_list(info, "subscriptions"))))


def _topics(info: Mapping[str, Any]) -> str:
    """The number of topics in the routing cache; a broker keeps no list of topics."""
    return count(int(info["topics"]), "topic") if _is_number(info.get("topics")) else ""


def _state(info: Mapping[str, Any]) -> str:
    reasons = ", ".join(_text(reason) for reason in _list(info, "reasons"))
    return _text(info.get("state")) + (f", because: {reasons}" if reasons else "")


def _dropped(dropped: Mapping[str, Any]) -> str:
    names = (
        ("ttl", "expired"),
        ("queue_full", "queue full"),
        ("disconnect", "disconnected"),
        ("session_log_bytes", "over its quota of the WAL"),
    )
    known = [(text, dropped[key]) for key, text in names if _is_number(dropped.get(key))]
    total = sum(number for _, number in known)
    detail = ", ".join(f"{text} {number:,}" for text, number in known)
    return f"{total:,} ({detail})" if total else "none" if known else ""


def _refused(refused: Mapping[str, Any]) -> str:
    known = [(_text(cause), number) for cause, number in refused.items() if _is_number(number) and number]
    return ", ".join(f"{number:,} ({cause})" for cause, number in known)


def _tls(tls: Mapping[str, Any]) -> str:
    ends = _map(tls, "certificate").get("not_after")
    if not _is_number(ends) or not 0 <= ends < _YEAR_10000:
        return ""
    until = time.strftime("%Y-%m-%d", time.gmtime(ends))
    served = f"{_number(tls.get('connections'))} clients at {_text(tls['address'])}, " if tls.get("address") else ""
    return f"{served}certificate until {until}"


def _websocket(websocket: Mapping[str, Any]) -> str:
    if not websocket.get("address"):
        return ""
    return f"{_number(websocket.get('connections'))} clients at {_text(websocket['address'])}"


def _log(log: object) -> str:
    if not isinstance(log, Mapping):
        return "off"
    parts = [_text(log.get("state", "on"))]
    if _is_number(log.get("bytes")):
        segments = log.get("segments")
        parts.append(
            bytes_text(log["bytes"]) + (f" in {count(int(segments), 'segment')}" if _is_number(segments) else "")
        )
    if _is_number(log.get("last_fsync_ms")):
        parts.append(f"last sync {log['last_fsync_ms']:,.1f} ms")
    if _is_number(log.get("durable_id")):
        parts.append(f"durable id {log['durable_id']:,}")
    if _is_number(log.get("unsynced")):
        parts.append(f"{log['unsynced']:,} unsynced")
    lost = _map(log, "lost")
    if lost:
        parts.append(f"LOST records {_text(lost.get('first_lsn'))} to {_text(lost.get('last_lsn'))}")
    return ", ".join(parts)


def _sessions(sessions: Mapping[str, Any]) -> str:
    """QoS 1 subscriptions and groups, including absent ones."""
    if not _is_number(sessions.get("total")):
        return ""
    names = (
        ("absent", "{:,} away"),
        ("behind", "{:,} with stored messages not collected (away or slow)"),
        ("in_flight", "{} waiting for acknowledgement"),
        ("redelivered", "{} sent again"),
        ("dead_lettered", "{:,} dead-lettered"),
    )
    known = []
    for key, form in names:
        number = sessions.get(key)
        if _is_number(number) and number:
            known.append(form.format(count(int(number), "message") if form.startswith("{}") else int(number)))
    return ", ".join([count(int(sessions["total"]), "subscription"), *known])


def _hardware_rows(hardware: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if _is_number(hardware.get("temperature_c")):
        yield "Temperature", f"{hardware['temperature_c']:.0f} °C"
    if "throttled" in hardware:
        yield "Processor", "slowed down, too hot or too little power" if hardware["throttled"] else "full speed"
    if "undervoltage" in hardware:
        yield "Power", "UNDER-VOLTAGE: use a stronger supply or a shorter cable" if hardware["undervoltage"] else "good"


def _subscription_lines(info: Mapping[str, Any]) -> Iterator[str]:
    for entry in _list(info, "subscriptions"):
        if not isinstance(entry, Mapping):
            continue
        name = _text(entry.get("client") or entry.get("peer"))
        filters = ", ".join(_text(filter_) for filter_ in _list(entry, "filters"))
        expired, full = (entry.get(key, 0) for key in ("dropped_ttl", "dropped_queue_full"))
        queued_bytes = entry.get("queued_bytes")
        size = f" ({bytes_text(queued_bytes)})" if _is_number(queued_bytes) and queued_bytes else ""
        parts = [
            f"{_number(entry.get('queued_messages', 0))} waiting{size}",
            f"{_number(entry.get('delivered', 0))} delivered",
        ]
        if _is_number(expired) and _is_number(full) and expired + full:
            parts.append(f"{expired + full:,} dropped (expired {expired:,}, queue full {full:,})")
        if entry.get("blocked"):
            parts.append("not reading")
        yield f"  {name}  {filters}: {', '.join(parts)}"
    yield from _left_out(info)


def _left_out(info: Mapping[str, Any]) -> Iterator[str]:
    """The number of connected subscribers without a row; absent ones have their own lines."""
    shown, total = len(_list(info, "subscriptions")), _map(info, "subscribers").get("total")
    if _is_number(total) and 0 < shown < total:
        yield f"  … and {count(int(total - shown), 'more connected subscriber')}"


class SubscriptionRates:
    """Messages per second delivered to and dropped for each subscriber, between two answers. `clock` returns seconds.

    Subscribers are identified by client id and address. Only those of the last answer are kept.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_s = 0.0
        self._before: dict[tuple[str, str], tuple[float, float]] = {}
        self._rates: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, info: Mapping[str, Any]) -> None:
        """Process the next answer."""
        now_s = self._clock()
        counted = {_who(entry): _counts(entry) for entry in _list(info, "subscriptions") if isinstance(entry, Mapping)}
        elapsed_s = max(now_s - self._at_s, 0.001)
        self._rates = {
            who: (max(sent - self._before[who][0], 0) / elapsed_s, max(lost - self._before[who][1], 0) / elapsed_s)
            for who, (sent, lost) in counted.items()
            if who in self._before
        }
        self._at_s, self._before = now_s, counted

    def of(self, entry: Mapping[str, Any]) -> tuple[float, float] | None:
        """Messages delivered and dropped per second; None at the first answer."""
        return self._rates.get(_who(entry))


def _who(entry: Mapping[str, Any]) -> tuple[str, str]:
    return str(entry.get("client")), str(entry.get("peer"))


def _counts(entry: Mapping[str, Any]) -> tuple[float, float]:
    sent, expired, full = (entry.get(key, 0) for key in ("delivered", "dropped_ttl", "dropped_queue_full"))
    return (sent if _is_number(sent) else 0), sum(number for number in (expired, full) if _is_number(number))


_COLUMNS = ("SUBSCRIBER", "WAITING", "SIZE", "DELIVERED", "/s", "DROPPED", "/s", "TOPICS")


def _subscription_table(info: Mapping[str, Any], rates: SubscriptionRates) -> list[str]:
    """One line for each subscriber. The topics come last, because they may be long and a terminal truncates lines."""
    entries = [entry for entry in _list(info, "subscriptions") if isinstance(entry, Mapping)]
    if not entries:
        return []
    rows = [_subscription_row(entry, rates.of(entry)) for entry in entries]
    return ["", *table([_COLUMNS, *rows], "<>>>>>><"), *_left_out(info)]


def _subscription_row(entry: Mapping[str, Any], per_s: tuple[float, float] | None) -> tuple[str, ...]:
    queued_bytes = entry.get("queued_bytes")
    return (
        _text(entry.get("client") or entry.get("peer")) + (" (blocked)" if entry.get("blocked") else ""),
        _number(entry.get("queued_messages", 0)),
        bytes_text(queued_bytes) if _is_number(queued_bytes) else "",
        _number(entry.get("delivered", 0)),
        rate_text(per_s[0]) if per_s else "",
        _number(_counts(entry)[1]),
        rate_text(per_s[1]) if per_s else "",
        ", ".join(_text(filter_) for filter_ in _list(entry, "filters")),
    )


def _map(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = info.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(info: Mapping[str, Any], key: str) -> list[Any]:
    value = info.get(key)
    return value if isinstance(value, list) else []


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return "unknown" if value is None else printable(str(value).encode("utf-8", "replace")).replace("\n", " ")


def _number(value: Any) -> str:
    return f"{value:,}" if _is_number(value) else ""


def _flow(total: Any, per_s: Any) -> str:
    rate = f", {per_s:,.0f} a second now" if _is_number(per_s) else ""
    return _number(total) + rate if _is_number(total) else ""


def _share(used_bytes: Any, budget_bytes: Any) -> str:
    if not _is_number(used_bytes):
        return ""
    if not _is_number(budget_bytes) or not budget_bytes:
        return bytes_text(used_bytes)
    return f"{bytes_text(used_bytes)} of {bytes_text(budget_bytes)} ({100 * used_bytes / budget_bytes:.0f} %)"
