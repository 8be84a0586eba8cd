"""blipmq-cli wait: wait until a filter is subscribed to, so that a script publishes afterwards.

Invariant: the exit status is 0 only after the broker has reported such a subscription.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

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
        while not client.has_subscriber(arguments.filter):
            if time.monotonic() >= end_s:
                raise NotSubscribed(
                    f"No client has subscribed to {arguments.filter} in {arguments.seconds:,} s. The filter must be exactly that "
                    "of the subscriber; `blipmq-cli info` shows filters in use."
                )
            time.sleep(INTERVAL_S)
        client.close()
    finally:
        client.abort()
    terminal.detail("✅", f"{arguments.filter} is subscribed to.")
    return 0
