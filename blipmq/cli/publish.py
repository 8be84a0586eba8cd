"""blipmq-cli pub: one message, a file, or every line of standard input.

Invariant: it reports "sent" only for messages that the broker has read (QoS 0) or has on disk (QoS 1). A line of a live
pipe is sent before the next one is read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping

from blipmq.base.stdio import StreamError, read_in
from blipmq.cli import render
from blipmq.cli.access import open_client
from blipmq.cli.terminal import Terminal
from blipmq.client.blocking import BlockingClient
from blipmq.client.protocol import Published
from blipmq.errors import BlipMQError, Disconnected, UsageError
from blipmq.wire.topics import check_topic

READ_BYTES = 256 << 10
LINE_BYTES_MAX = 64 << 20


def publish(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    check_topic(arguments.topic)
    if (arguments.message is None) == (arguments.file is None):
        raise UsageError("Give one message source: MESSAGE, - for standard input, or --file FILE.")
    payload: bytes | None = None
    if arguments.file is not None:
        payload = read_file(arguments.file)
    elif arguments.message != "-":
        payload = os.fsencode(arguments.message)
    # With QoS 1 unanswered messages are sent again after an outage; with QoS 0 the loss would be unknown
    client = open_client(arguments, environment, terminal, reconnect=arguments.qos > 0)
    try:
        if payload is not None:
            receipt = client.publish(arguments.topic, payload, ttl_ms=arguments.ttl, qos=arguments.qos)
            client.flush()
            as_id = f" as {receipt}" if receipt else ""
            stored = stored_for(receipt.subscriptions)
            terminal.done("📤", f"Sent {render.bytes_text(len(payload))} to {arguments.topic}{as_id}{stored}.")
        else:
            sent = publish_lines(client, arguments, read_lines(read_in))
            lost = not_kept(sent, sent.unrouted)
            terminal.done("📤", f"Sent {render.count(sent, 'message')} to {arguments.topic}{lost}.")
        client.close()
    finally:
        client.abort()
    return 0


def stored_for(subscriptions: int | None) -> str:
    """The end of the report on one message; "" if the broker, of an earlier version, does not report it."""
    if subscriptions is None:
        return ""
    if not subscriptions:
        return ". No QoS 1 subscription took it, so the broker did not keep it"
    return f", stored for {render.count(subscriptions, 'subscription')}"


def not_kept(sent: int, unrouted: int | None) -> str:
    """The end of the report on many messages, of which `unrouted` were not stored."""
    if not unrouted:
        return ""
    it = "it" if unrouted == 1 else "them"
    which = f"{unrouted:,} of them" if unrouted != sent else "it" if sent == 1 else "any"
    return f". No QoS 1 subscription took {which}, so the broker did not keep {it}"


def publish_lines(client: BlockingClient, arguments: argparse.Namespace, batches: Iterator[list[bytes]]) -> Published:
    """Publish the lines of each read before the next read. Returns their number, once the broker has read them all (QoS
    0) or has them on disk (QoS 1)."""
    sent, unrouted = 0, 0
    try:
        for lines in batches:
            published = client.publish_many(arguments.topic, lines, ttl_ms=arguments.ttl, qos=arguments.qos)
            sent, unrouted = sent + published, unrouted + (published.unrouted or 0)
            if not arguments.qos:
                client.poll()
                if client.refusals:
                    break
        client.flush()
    except BlipMQError as error:
        if arguments.qos or isinstance(error, (Disconnected, StreamError)):
            error.args = (f"{error} {how_far(sent, arguments.qos)}",)
        raise
    return Published(sent, unrouted)


def how_far(sent: int, qos: int) -> str:
    if qos:
        return f"{render.count(sent, 'line')} confirmed; later lines may be lost."
    return f"{render.count(sent, 'line')} were sent. Some or all of them may be lost."


def read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}. Check the path and its permissions.") from None


def read_lines(read: Callable[[int], bytes]) -> Iterator[list[bytes]]:
    """Yield the lines that each read completes, without their newline; also the last one if it has no newline."""
    begun: list[bytes] = []
    begun_bytes = 0
    while data := read(READ_BYTES):
        head, newline, rest = data.partition(b"\n") if begun else (b"", b"", data)
        if begun:
            begun.append(head)
            begun_bytes += len(head)
            if begun_bytes > LINE_BYTES_MAX:
                raise UsageError(f"A line is longer than {LINE_BYTES_MAX} bytes; use --file for one large message.")
            if not newline:
                continue
            rest = b"".join(begun) + b"\n" + rest
        lines = rest.split(b"\n")
        last = lines.pop()
        begun, begun_bytes = ([last], len(last)) if last else ([], 0)
        if lines:
            yield lines
    if begun:
        yield [b"".join(begun)]
