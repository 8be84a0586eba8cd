"""blipmq-cli info: show the broker's status once or repeatedly.

Invariant: on a terminal the status is refreshed in place and the last state stays; a pipe gets one complete answer
after another, and with --format json one object a line.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from blipmq.base.stdio import write_out
from blipmq.cli import report
from blipmq.cli.access import open_client
from blipmq.cli.terminal import Repaint, Terminal, repaints
from blipmq.client.blocking import BlockingClient
from blipmq.errors import Disconnected, TimedOut

WATCH_INTERVAL_S = 2.0
TIMEOUT_S = 10.0
WATCH_TIMEOUT_S = 4.0  # a screen that is not refreshed for longer shows the cause


def show_info(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    in_place = arguments.watch and arguments.format == "text" and repaints(sys.stdout, environment)
    client = open_client(
        arguments,
        environment,
        terminal,
        reconnect=arguments.watch,
        announce=not in_place,
        timeout_s=WATCH_TIMEOUT_S if in_place else TIMEOUT_S,
    )
    try:
        if in_place:
            watch_in_place(client, terminal)
        elif arguments.watch:
            watch_lines(client, arguments, terminal)
        terminal.write(render_answer(client.info(), arguments, terminal))
        client.close()
    finally:
        client.abort()
    return 0


def watch_in_place(client: BlockingClient, terminal: Terminal) -> NoReturn:
    """Run until Ctrl-C. An outage is shown above the last state and does not end it; a refusal does."""
    rates, text = report.SubscriptionRates(time.monotonic), ""
    with Repaint(sys.stdout, write_out) as screen:
        while True:
            try:
                info = client.info()
                rates.take(info)
                shown = text = report.render_info(info, fancy=terminal.fancy_out, rates=rates)
            except (Disconnected, TimedOut) as error:
                if client.state == "closed":
                    raise
                shown = f"{error}\n\n{text}"
            paint_for(WATCH_INTERVAL_S, screen, shown)


def watch_lines(client: BlockingClient, arguments: argparse.Namespace, terminal: Terminal) -> NoReturn:
    rates = report.SubscriptionRates(time.monotonic)
    while True:
        info = client.info()
        rates.take(info)
        terminal.write(render_answer(info, arguments, terminal, rates))
        time.sleep(WATCH_INTERVAL_S)


def render_answer(
    info: Mapping[str, Any],
    arguments: argparse.Namespace,
    terminal: Terminal,
    rates: report.SubscriptionRates | None = None,
) -> bytes:
    if arguments.format == "json":
        import json

        return (json.dumps(info, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    text = report.render_info(info, fancy=terminal.fancy_out, rates=rates)
    return (text if rates is None else f"{text}\n").encode("utf-8", "backslashreplace")


def paint_for(seconds: float, screen: Repaint, text: str) -> None:
    """Show the text for this long, and again when the terminal changes its size."""
    due_s = time.monotonic() + seconds
    screen.paint(text)
    while resized_within(due_s - time.monotonic()):
        screen.paint(text)


def resized_within(seconds: float) -> bool:
    """Wait; returns True as soon as the terminal has changed its size, on systems that report it."""
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(max(seconds, 0.0))
        return False
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    try:
        return seconds > 0 and signal.sigtimedwait({signal.SIGWINCH}, seconds) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
