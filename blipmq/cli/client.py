"""blipmq-cli: publish, subscribe, end durable subscriptions, ask a broker how it is.

Invariant: standard output carries what was asked for and nothing else; what there is to say about it goes to standard
error. Exit status: 0 done, 1 refused, 2 usage, 69 unreachable, 77 not allowed, 78 bad configuration, 130 interrupted,
141 the reader of the output has gone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from blipmq.address import parse_address
from blipmq.blocking import BlockingClient, BlockingSubscription
from blipmq.cli import render
from blipmq.errors import BlipMQError, ConfigError, Disconnected, UsageError
from blipmq.topics import check_filter, check_topic
from blipmq.version import __version__
from blipmq.wire import Message

DEFAULT_ADDR = "127.0.0.1:7878"
READ_BYTES = 256 << 10
LINE_BYTES_MAX = 64 << 20
WATCH_INTERVAL_S = 2.0
INTERRUPTED = 130
READER_GONE = 141


class Terminal:
    """The three streams, and what kind of feedback is wanted on them."""

    def __init__(self, arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self.quiet: bool = arguments.quiet
        self.verbose: bool = arguments.verbose
        self.fancy_out = render.is_fancy(sys.stdout, environment)
        self.fancy_err = render.is_fancy(sys.stderr, environment)

    def write(self, data: bytes) -> None:
        """To standard output, now: a pipe is live. Raises BrokenPipeError."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def done(self, emoji: str, text: str) -> None:
        """The result of a command that has no other output."""
        if not self.quiet:
            self.write((f"{emoji} {text}\n" if self.fancy_out else f"{text}\n").encode("utf-8", "backslashreplace"))

    def notice(self, emoji: str, text: str) -> None:
        print(f"{emoji} {text}" if self.fancy_err else text, file=sys.stderr, flush=True)

    def detail(self, emoji: str, text: str) -> None:
        if self.verbose:
            self.notice(emoji, text)

    def error(self, error: BlipMQError) -> None:
        text = render.printable(str(error).encode("utf-8", "backslashreplace"))
        self.notice("❌", text if self.fancy_err else f"blipmq-cli: {text}")


# ---- arguments -------------------------------------------------------------------------------------------------------


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) < 1 << 64):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    common.add_argument(
        "--addr", metavar="HOST:PORT", help=f"where the broker is; else $BLIPMQ_ADDR, else {DEFAULT_ADDR}"
    )
    common.add_argument("--key-file", metavar="FILE", help="file that holds the API key; else $BLIPMQ_API_KEY")
    loudness = common.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print messages only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="say what is being done")

    parser = argparse.ArgumentParser(
        prog="blipmq-cli", description="Talk to a BlipMQ broker.", parents=[common], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"blipmq-cli {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, alias: str, run: Callable[..., int], help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, aliases=[alias], parents=[common], help=help_, description=help_, allow_abbrev=False
        )
        sub.set_defaults(run=run)
        return sub

    pub = command("pub", "p", publish, "publish a message, or one for each line of standard input")
    pub.add_argument("topic", metavar="TOPIC")
    pub.add_argument("message", metavar="MESSAGE", nargs="?", help="the payload; - reads lines from standard input")
    pub.add_argument("--file", metavar="F", help="publish this whole file as one message")
    pub.add_argument(
        "--ttl",
        metavar="MS",
        type=_whole_number(0),
        default=0,
        help="milliseconds until it expires; 0: broker's default",
    )
    pub.add_argument("--qos", type=int, choices=(0, 1), default=0, help="1: return when the broker has it on disk")

    sub = command("sub", "s", subscribe, "print the messages of a topic or filter as they come")
    sub.add_argument("topic", metavar="TOPIC", help="topic, or filter with * > (dots) or + # (slashes)")
    sub.add_argument("-n", "--count", metavar="N", type=_whole_number(1), help="end after this many messages")
    sub.add_argument("-f", "--format", choices=("text", "json"), default="text")
    sub.add_argument("--qos", type=int, choices=(0, 1), default=0)
    sub.add_argument("--durable", action="store_true", help="collect while away; needs --client-id and --qos 1")
    sub.add_argument("--client-id", metavar="ID", default="")
    sub.add_argument("--group", metavar="G", default="", help="share the messages with others of this group")

    unsub = command("unsub", "u", unsubscribe, "end a durable subscription")
    unsub.add_argument("topic", metavar="TOPIC")
    unsub.add_argument("--client-id", metavar="ID", required=True)

    info = command("info", "stats", show_info, "show how the broker is")
    info.add_argument("-f", "--format", choices=("text", "json"), default="text")
    info.add_argument("--watch", action="store_true", help=f"again every {WATCH_INTERVAL_S:.0f} seconds")
    return parser


def read_key(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """The API key from --key-file, else $BLIPMQ_API_KEY, else none. Raises ConfigError if the file is of no use."""
    path = arguments.key_file
    if path is None:
        return environment.get("BLIPMQ_API_KEY", "").strip()
    try:
        with open(path, encoding="utf-8") as file:
            key = file.read(64 << 10).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"Cannot read the key file {path}: {why}. Check the path and its permissions.") from None
    if not key or len(key.split()) > 1:
        raise ConfigError(f"The key file {path} must hold one key and nothing else; it holds {len(key.split())} words.")
    return key


def open_client(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    terminal: Terminal,
    *,
    reconnect: bool,
    client_id: str = "",
) -> BlockingClient:
    address = arguments.addr
    if address is None:
        address = environment.get("BLIPMQ_ADDR") or DEFAULT_ADDR
        try:
            parse_address(address)
        except UsageError as error:
            raise ConfigError(f"$BLIPMQ_ADDR is not usable. {error}") from None

    client = BlockingClient(
        address,
        api_key=read_key(arguments, environment),
        client_id=client_id,
        reconnect=reconnect,
        on_state=None if terminal.quiet else render.OutageNotices(terminal.notice),
    ).open()
    terminal.detail("✅", f"Connected to {client.address}.")
    return client


# ---- pub -------------------------------------------------------------------------------------------------------------


def publish(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    check_topic(arguments.topic)
    if (arguments.message is None) == (arguments.file is None):
        raise UsageError("Give one of MESSAGE, - for standard input, or --file F.")
    payload: bytes | None = None
    if arguments.file is not None:
        payload = read_file(arguments.file)
    elif arguments.message != "-":
        payload = os.fsencode(arguments.message)
    client = open_client(arguments, environment, terminal, reconnect=False)
    try:
        if payload is not None:
            id_ = client.publish(arguments.topic, payload, ttl_ms=arguments.ttl, qos=arguments.qos)
            client.flush()
            as_id = f" as {id_}" if id_ else ""
            terminal.done("📤", f"Sent {render.bytes_text(len(payload))} to {arguments.topic}{as_id}.")
        else:
            sent = publish_lines(client, arguments, read_lines(sys.stdin.fileno()))
            terminal.done("📤", f"Sent {render.count(sent, 'message')} to {arguments.topic}.")
        client.close()
    finally:
        client.abort()
    return 0


def publish_lines(client: BlockingClient, arguments: argparse.Namespace, batches: Iterator[list[bytes]]) -> int:
    """Publish each line as it comes; returns how many, once the broker has read them all."""
    sent = 0
    try:
        for lines in batches:
            if arguments.qos:
                for line in lines:
                    client.publish(arguments.topic, line, ttl_ms=arguments.ttl, qos=1)
                    sent += 1
            else:
                sent += client.publish_many(arguments.topic, lines, ttl_ms=arguments.ttl)
                client.poll()
                if client.refusals:
                    break
        client.flush()
    except Disconnected as error:
        raise Disconnected(f"{error} Of {render.count(sent, 'line')} sent, it is not known how many arrived.") from None
    return sent


def read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}. Check the path and its permissions.") from None


def read_lines(descriptor: int) -> Iterator[list[bytes]]:
    """The lines that each read completes, without their newline; the last one also where it has none."""
    begun: list[bytes] = []
    begun_bytes = 0
    while data := os.read(descriptor, READ_BYTES):
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


# ---- sub, unsub ------------------------------------------------------------------------------------------------------


def subscribe(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    check_filter(arguments.topic)
    if arguments.durable and not (arguments.client_id and arguments.qos):
        raise UsageError("A durable subscription needs a name to come back to and QoS 1: add --client-id ID --qos 1.")
    renderer = render.message_renderer(quiet=terminal.quiet, json=arguments.format == "json", fancy=terminal.fancy_out)
    client = open_client(arguments, environment, terminal, reconnect=True, client_id=arguments.client_id)
    began_s, counted = time.monotonic(), [0]
    try:
        subscription = client.subscribe(
            arguments.topic, qos=arguments.qos, durable=arguments.durable, group=arguments.group
        )
        terminal.detail("✅", f"Subscribed to {arguments.topic}.")
        print_messages(client, subscription, arguments.count, renderer, terminal, counted)
        client.close()
    finally:
        client.abort()
        elapsed_s = max(time.monotonic() - began_s, 0.001)
        rate = f"{counted[0] / elapsed_s:,.0f} a second"
        terminal.detail("📊", f"{render.count(counted[0], 'message')} in {elapsed_s:.1f} seconds, {rate}.")
    return 0


def print_messages(
    client: BlockingClient,
    subscription: BlockingSubscription,
    limit: int | None,
    renderer: render.Renderer,
    terminal: Terminal,
    counted: list[int],
) -> None:
    """Print each batch as it was read, up to `limit` messages; acknowledge QoS 1 once they are written."""
    while limit is None or counted[0] < limit:
        messages: list[Message] = subscription.batch()
        if limit is not None:
            messages = messages[: limit - counted[0]]
        counted[0] += len(messages)
        terminal.write(renderer(messages))
        if subscription.options[0]:
            client.ack(*(message for message in messages if message.qos))


def unsubscribe(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    client = open_client(arguments, environment, terminal, reconnect=False, client_id=arguments.client_id)
    try:
        client.unsubscribe(arguments.topic)
        terminal.done("✅", f"Ended the subscription of {arguments.client_id} to {arguments.topic}.")
        client.close()
    finally:
        client.abort()
    return 0


# ---- info ------------------------------------------------------------------------------------------------------------


def show_info(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    client = open_client(arguments, environment, terminal, reconnect=arguments.watch)
    try:
        while True:
            terminal.write(render_answer(client.info(), arguments, terminal))
            if not arguments.watch:
                break
            time.sleep(WATCH_INTERVAL_S)
        client.close()
    finally:
        client.abort()
    return 0


def render_answer(info: Mapping[str, Any], arguments: argparse.Namespace, terminal: Terminal) -> bytes:
    if arguments.format == "json":
        import json

        return (json.dumps(info, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    text = render.render_info(info, fancy=terminal.fancy_out)
    if arguments.watch:
        # From the top of a cleared screen for a person; a blank line between for a pipe
        text = f"\x1b[H\x1b[2J{text}" if terminal.fancy_out else f"{text}\n"
    return text.encode("utf-8", "backslashreplace")


# ---- main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run one command; returns the exit status. argparse ends the process itself, with 2, where the usage is wrong."""
    environment = os.environ if environment is None else environment
    try:
        unset = argparse.Namespace(addr=None, key_file=None, quiet=False, verbose=False)
        arguments = make_parser().parse_args(argv, unset)
        terminal = Terminal(arguments, environment)
        try:
            return int(arguments.run(arguments, environment, terminal))
        except BlipMQError as error:
            terminal.error(error)
            return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit; let that go nowhere instead of into the broken pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


if __name__ == "__main__":
    sys.exit(main())
