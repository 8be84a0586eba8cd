"""blipmq-cli sub and unsub: print messages as they arrive; end a durable subscription.

Invariant: a QoS 1 message is acknowledged only after its whole line has been written to standard output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from blipmq.base.stdio import StreamError
from blipmq.cli import render
from blipmq.cli.access import open_client
from blipmq.cli.terminal import Terminal
from blipmq.client.blocking import BlockingSubscription
from blipmq.errors import UsageError
from blipmq.wire.frames import Message
from blipmq.wire.topics import check_filter


def subscribe(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    check_filter(arguments.topic)
    if arguments.durable and not (arguments.client_id and arguments.qos):
        raise UsageError("A durable subscription needs a client_id and QoS 1: add --client-id ID --qos 1.")
    terminal.check_output()
    renderer = render.message_renderer(quiet=terminal.quiet, json=arguments.format == "json", fancy=terminal.fancy_out)
    client = open_client(arguments, environment, terminal, reconnect=True, client_id=arguments.client_id)
    began_s, counted = time.monotonic(), [0]
    try:
        subscription = client.subscribe(
            arguments.topic,
            qos=arguments.qos,
            durable=arguments.durable,
            group=arguments.group,
            auto_ack=False,
        )
        terminal.detail("✅", f"Subscribed to {arguments.topic}.")
        print_messages(subscription, arguments.count, renderer, terminal, counted)
        client.close()
    finally:
        client.abort()
        elapsed_s = max(time.monotonic() - began_s, 0.001)
        rate = f"{counted[0] / elapsed_s:,.0f} a second"
        terminal.detail("📊", f"{render.count(counted[0], 'message')} in {elapsed_s:.1f} seconds, {rate}.")
    return 0


def print_messages(
    subscription: BlockingSubscription,
    limit: int | None,
    renderer: render.Renderer,
    terminal: Terminal,
    counted: list[int],
) -> None:
    """Print each batch as it was read, up to `limit` messages, then acknowledge QoS 1 messages. If the write fails,
    they are not acknowledged and are delivered again."""
    while limit is None or counted[0] < limit:
        messages: list[Message] = subscription.batch()
        if limit is not None:
            messages = messages[: limit - counted[0]]
        counted[0] += len(messages)  # before the write, because an interrupt may follow it at once
        try:
            terminal.write(renderer(messages))
        except (StreamError, BrokenPipeError) as error:
            counted[0] -= len(messages)
            if isinstance(error, StreamError) and any(message.qos for message in messages):
                error.args = (f"{error} What was not written is not acknowledged; the broker sends it again.",)
            raise
        subscription.ack(*messages)


def unsubscribe(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    client = open_client(arguments, environment, terminal, reconnect=False, client_id=arguments.client_id)
    try:
        client.unsubscribe(arguments.topic, group=arguments.group)
        group = f" in the group {arguments.group}" if arguments.group else ""
        terminal.done("✅", f"Ended the subscription of {arguments.client_id} to {arguments.topic}{group}.")
        client.close()
    finally:
        client.abort()
    return 0
