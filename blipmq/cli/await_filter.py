"""blipmq-cli wait: wait until a filter is subscribed to, so that a script publishes afterwards.

Invariant: the exit status is 0 only after the broker has listed such a subscription.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from blipmq.cli.access import open_client
from blipmq.cli.terminal import Terminal
from blipmq.errors import BlipMQError
from blipmq.wire.topics import check_filter

INTERVAL_S = 0.1


class NotSubscribed(BlipMQError):
    """No client subscribed in time."""


def wait(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    check_filter(arguments.filter)
    client = open_client(arguments, environment, terminal, reconnect=False)
    try:
        end_s = time.monotonic() + arguments.seconds
        while not is_subscribed(info := client.info(), arguments.filter):
            if time.monotonic() >= end_s:
                raise NotSubscribed(_too_late(info, arguments))
            time.sleep(INTERVAL_S)
        client.close()
    finally:
        client.abort()
    terminal.detail("✅", f"{arguments.filter} is subscribed to.")
    return 0


def is_subscribed(info: Mapping[str, Any], filter_: str) -> bool:
    """Whether the answer to INFO has a subscription with exactly this filter; a durable one may belong to an absent
    client."""
    return any(filter_ in _list(row.get("filters")) for row in _rows(info.get("subscriptions"))) or any(
        row.get("filter") == filter_ for row in _rows(_map(info.get("sessions")).get("list"))
    )


def _too_late(info: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    text = f"No client has subscribed to {arguments.filter} in {arguments.seconds:,} s."
    shown, total = len(_list(info.get("subscriptions"))), _map(info.get("subscribers")).get("total")
    if isinstance(total, int) and total > shown:
        return f"{text} The broker told of {shown:,} of its {total:,} connected subscribers only, so there may be one."
    return f"{text} The filter must be exactly that of the subscriber; `blipmq-cli info` shows those there are."


def _rows(value: object) -> Iterator[Mapping[str, Any]]:
    return (row for row in _list(value) if isinstance(row, Mapping))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
