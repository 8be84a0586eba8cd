"""blipmq-cli sessions: list the QoS 1 subscriptions and queue groups of a broker, largest lag first, or end one.

Invariant: a row is shown as the broker sent it; a missing or unexpected key is left out or shown as unknown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from blipmq.cli import session_rows
from blipmq.cli.access import open_client
from blipmq.cli.render import count
from blipmq.cli.terminal import Terminal
from blipmq.errors import UsageError

NOT_FOUND = 1  # as in grep


def show(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    client = open_client(arguments, environment, terminal, reconnect=False)
    try:
        listed = client.sessions(arguments.find, arguments.limit)
        client.close()
    finally:
        client.abort()
    rows = [row for row in listed["list"] if isinstance(row, Mapping)]
    if not rows and arguments.find:
        terminal.notice("🔎", f"No QoS 1 subscription has {arguments.find!r} in its filter, client_id or group.")
        return NOT_FOUND
    terminal.write(_json_lines(rows) if arguments.format == "json" else _text(listed, rows))
    return 0


def end(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    if not (arguments.client_id or arguments.group):
        raise UsageError(
            "Name the owner of the subscription: --client-id ID or --group GROUP. `blipmq-cli sessions` lists them."
        )
    if arguments.group and arguments.key is not None and not arguments.client_id:
        raise UsageError("--key with --group also needs --client-id, the member to remove from the group.")
    client = open_client(arguments, environment, terminal, reconnect=False)
    try:
        row = client.end_session(
            arguments.filter, client_id=arguments.client_id, group=arguments.group, key=arguments.key
        )
        client.close()
    finally:
        client.abort()
    terminal.done("✅", ended_text(row, arguments))
    return 0


def ended_text(row: Mapping[str, Any], asked: argparse.Namespace) -> str:
    """The report of what was done. `row` is the last state of the subscription."""
    if asked.group and asked.client_id:
        total = row.get("members_total")
        left = f" Durable members left: {total - 1:,}." if isinstance(total, int) and total else ""
        return f"Removed {asked.client_id} from group {asked.group} on {asked.filter}.{left}"
    lag = row.get("lag_messages")
    discarded = f" Discarded {count(lag, 'message')} stored for it." if isinstance(lag, int) and lag else ""
    return f"Ended the subscription of {session_rows.who(row)} to {asked.filter}.{discarded}"


def _json_lines(rows: list[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def _text(listed: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> bytes:
    lines = session_rows.table_lines(rows)
    total = listed.get("total")
    if isinstance(total, int) and total > len(rows):
        lines.append(f"… and {total - len(rows):,} more with less lag: --limit NUMBER shows more, --find TEXT others")
    if not rows:
        lines = ["There are no QoS 1 subscriptions."]
    return "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")
