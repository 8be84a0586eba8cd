"""blipmq-cli sessions: list, or end, the QoS 1 subscriptions and queue groups of a broker, those with the largest lag first.

Invariant: what is shown of a row is what the broker sent; a key that is missing or odd is left out or shown as unknown.
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


def show(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    client = open_client(arguments, environment, terminal, reconnect=False)
    try:
        listed = client.sessions(arguments.find, arguments.limit)
        client.close()
    finally:
        client.abort()
    rows = [row for row in listed["list"] if isinstance(row, Mapping)]
    terminal.write(_json_lines(rows) if arguments.format == "json" else _text(listed, rows))
    return 0


def end(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    if not (arguments.client_id or arguments.group):
        raise UsageError("Say whose it is: --client-id ID, or --group GROUP. `blipmq-cli sessions` lists them.")
    client = open_client(arguments, environment, terminal, reconnect=False)
    try:
        row = client.end_session(
            arguments.filter, client_id=arguments.client_id, group=arguments.group, key=arguments.key
        )
        client.close()
    finally:
        client.abort()
    lag = row.get("lag_messages")
    waited = f"; {count(lag, 'message')} had waited for it" if isinstance(lag, int) else ""
    terminal.done("✅", f"Ended the subscription of {session_rows.who(row)} to {arguments.filter}{waited}.")
    return 0


def _json_lines(rows: list[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def _text(listed: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> bytes:
    lines = session_rows.table_lines(rows)
    total = listed.get("total")
    if isinstance(total, int) and total > len(rows):
        lines.append(f"… and {total - len(rows):,} more with less lag: --limit NUMBER shows more, --find TEXT others")
    if not rows:
        lines = ["There is no such subscription."]
    return "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")
