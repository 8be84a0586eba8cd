"""QoS 1 subscriptions and queue groups as text: lines for `info`, a table for `sessions`.

Invariant: nothing here does I/O, and no answer of the broker makes it fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from blipmq.cli.render import bytes_text, count, duration_text, printable, table

IN_INFO = 5  # number of lines
_COLUMNS = ("CLIENT", "KEY", "FILTER", "GROUP", "STATE", "LAG", "SIZE", "OLDEST", "KEEPS OF WAL", "IN FLIGHT")


def info_lines(sessions: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines for subscriptions without a connection, or with stored messages that have not been sent yet."""
    listed = sessions.get("list")
    rows = [row for row in listed if isinstance(row, Mapping) and row] if isinstance(listed, list) else []
    shown = [row for row in rows if _is_away(row) or _is_late(row)]
    if not shown:
        return
    yield "QoS 1 subscriptions that are away or late (all of them: blipmq-cli sessions):"
    for row in shown[:IN_INFO]:
        yield f"  {who(row)}  {_text(row.get('filter'))}: {', '.join(_facts(row))}"
    # The list has only the rows with the largest lag; the number of absent ones counts all.
    unlisted_away = max(int(_number(sessions.get("absent"))) - sum(map(_is_away, rows)), 0)
    more = len(shown[IN_INFO:]) + unlisted_away
    if more:
        least = "at least " if _number(sessions.get("total")) > len(rows) else ""
        yield f"  … and {least}{more:,} more"


def table_lines(rows: list[Mapping[str, Any]]) -> list[str]:
    """A title line and one line for each row."""
    return table([_COLUMNS, *map(_cells, rows)], "<<<<<>>>>>") if rows else []


def who(row: Mapping[str, Any]) -> str:
    """The client, or the group and its clients, that own the subscription."""
    if not row.get("group"):
        return _text(row.get("client_id") or "(no client_id)")
    members = row.get("members")
    names = ", ".join(_text(name) for name in members) if isinstance(members, list) else ""
    return f"group {_text(row['group'])}" + (f" of {names}" if names else "")


def state(row: Mapping[str, Any]) -> str:
    """Whether clients are connected, or since when none is."""
    connected = row.get("connected")
    if _number(connected):
        return "connected" if connected == 1 else f"{connected:,} connected"
    seen = row.get("away_ms")
    return f"away for {duration_text(seen / 1000)}" if _is_number(seen) else "away"


def _is_away(row: Mapping[str, Any]) -> bool:
    return not row.get("connected")


def _is_late(row: Mapping[str, Any]) -> bool:
    return _number(row.get("lag_messages")) > _number(row.get("in_flight"))


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    most = "" if row.get("lag_exact", True) else "at most "
    size = _number(row.get("lag_bytes"))
    yield most + count(int(_number(row.get("lag_messages"))), "message") + (f" ({bytes_text(size)})" if size else "")
    if _is_number(row.get("oldest_ms")):
        yield f"the oldest {duration_text(row['oldest_ms'] / 1000)} old"
    yield state(row)
    if _number(row.get("log_bytes")):
        yield f"keeps {bytes_text(row['log_bytes'])} of the WAL"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    oldest, lag, size, log = (row.get(name) for name in ("oldest_ms", "lag_messages", "lag_bytes", "log_bytes"))
    members = row.get("members")
    clients = ", ".join(_text(name) for name in members) if row.get("group") and isinstance(members, list) else ""
    return (
        clients or _text(row.get("client_id", "")),
        _text(row.get("key", "")),
        _text(row.get("filter")),
        _text(row.get("group", "")),
        state(row) + ("" if row.get("durable", True) else ", not durable"),
        ("" if row.get("lag_exact", True) else "up to ") + (f"{lag:,}" if _is_number(lag) else ""),
        bytes_text(size) if _is_number(size) and size else "",
        duration_text(oldest / 1000) if _is_number(oldest) else "",
        bytes_text(log) if _is_number(log) and log else "",
        f"{row['in_flight']:,}" if _is_number(row.get("in_flight")) else "",
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object) -> float:
    return value if _is_number(value) else 0


def _text(value: object) -> str:
    return "unknown" if value is None else printable(str(value).encode("utf-8", "replace")).replace("\n", " ")
