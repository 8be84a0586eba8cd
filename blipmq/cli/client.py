"""blipmq-cli: publish, subscribe, end durable subscriptions, show broker status, run a load test.

Invariant: standard output has only the requested data; remarks go to standard error. Exit status: 0 done, 1 refused, 2
usage, 69 unreachable, 74 input or output failed, 77 not allowed, 78 bad configuration, 130 interrupted, 141 the reader
of the output has gone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping

from blipmq.base.argument_parser import ArgumentParser
from blipmq.base.stdio import READER_GONE, StreamError, say, take_descriptors
from blipmq.cli import quantities
from blipmq.cli.access import DEFAULT_ADDR, check_variables
from blipmq.cli.terminal import Terminal
from blipmq.errors import BlipMQError
from blipmq.version import __version__

INTERRUPTED = 130

# Options that may stand before or after the command.
UNSET = dict.fromkeys(("addr", "ca_file", "cert", "cert_key", "key_file", "wait", "timeout")) | dict.fromkeys(
    ("tls", "quiet", "verbose"), False
)

Run = Callable[[argparse.Namespace, Mapping[str, str], Terminal], int]

EXAMPLES = """\
examples:
  blipmq-cli sub 'site/+/temp'                       print messages as TOPIC, tab, payload
  blipmq-cli pub site/1/temp 21.5 --ttl 60s          it expires after a minute
  tail -f log | blipmq-cli pub logs.web - --qos 1    one message a line; the broker saves each to disk
  blipmq-cli sub 'logs.>' --qos 1 --durable --client-id archive >> archive.log
                                                     the broker keeps messages while this is not running
  blipmq-cli unsub 'logs.>' --client-id archive      end the durable subscription
  blipmq-cli info --watch                            broker status, refreshed in place
  blipmq-cli sessions --find archive                 QoS 1 subscriptions with stored messages and their age
  blipmq-cli sessions end 'logs.>' --client-id archive
                                                     for operators: end a subscription of any client
  blipmq-cli bench --rate 1000 --seconds 30          load test at 1,000 messages a second

environment:
  BLIPMQ_ADDR      HOST:PORT of the broker, tls://HOST:PORT, or ws:// and wss:// for WebSocket
  BLIPMQ_API_KEY   the API key
  BLIPMQ_TLS_CA, BLIPMQ_TLS_CERT, BLIPMQ_TLS_KEY
                   files as for --ca-file, --cert and --cert-key; one of them turns TLS on unless the address begins
                   with tcp:// or ws://
  NO_COLOR         plain text, without emoji

exit status:
  0 done, 1 refused, 2 usage, 69 unreachable, 74 input or output failed, 77 not allowed, 78 bad configuration,
  130 interrupted, 141 the reader of the output has gone
"""


# ---- arguments -------------------------------------------------------------------------------------------------------


def whole_number(least: int, most: int = (1 << 64) - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            up_to = f" and at most {most}" if most < 1 << 63 else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}{up_to}")
        return int(text)

    return parse


def make_parser() -> argparse.ArgumentParser:
    common = ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    common.add_argument(
        "--addr", metavar="HOST:PORT", help=f"where the broker is; else $BLIPMQ_ADDR, else {DEFAULT_ADDR}"
    )
    common.add_argument("--tls", action="store_true", help="use TLS, as an address tls://HOST:PORT does")
    common.add_argument(
        "--ca-file", metavar="FILE", help="authorities to trust, in PEM; else $BLIPMQ_TLS_CA, else the system's"
    )
    common.add_argument("--cert", metavar="FILE", help="this client's certificate; else $BLIPMQ_TLS_CERT")
    common.add_argument("--cert-key", metavar="FILE", help="its key; else $BLIPMQ_TLS_KEY, else in the same file")
    common.add_argument("--key-file", metavar="FILE", help="file that holds the API key; else $BLIPMQ_API_KEY")
    common.add_argument(
        "--wait",
        metavar="TIME",
        type=quantities.seconds(),
        help="keep trying to connect for this long, such as 30s or 5m; 0 (default): one attempt",
    )
    common.add_argument(
        "--timeout",
        metavar="TIME",
        type=quantities.seconds(0, 86_400),
        help="how long each answer of the broker may take (10s)",
    )
    loudness = common.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print messages only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print each step")

    parser = ArgumentParser(
        prog="blipmq-cli",
        description="Talk to a BlipMQ broker.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"blipmq-cli {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, aliases: list[str], run: Run, help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, aliases=aliases, parents=[common], help=help_, description=help_, allow_abbrev=False
        )
        sub.set_defaults(run=run)
        return sub

    _add_pub(command("pub", ["p"], _publish, "publish a message, or one for each line of standard input"))
    _add_sub(command("sub", ["s"], _subscribe, "print the messages of a topic or filter"))
    unsub = command("unsub", ["u"], _unsubscribe, "end a durable subscription")
    unsub.add_argument("topic", metavar="TOPIC", help="the topic or filter of the subscription")
    unsub.add_argument("--client-id", metavar="ID", required=True, help="the client_id of the subscription")
    unsub.add_argument(
        "--group",
        metavar="GROUP",
        default="",
        help="the queue group to leave; without it, all subscriptions to that filter end",
    )
    wait = command("wait", [], _wait, "end when a filter is subscribed to, so that a script publishes no sooner")
    wait.add_argument("filter", metavar="FILTER", help="exactly as the subscriber writes it")
    wait.add_argument(
        "--seconds",
        metavar="TIME",
        type=quantities.seconds(),
        default=60,
        help="end with status 1 after this long (60s)",
    )
    info = command("info", ["stats"], _info, "show broker status")
    info.add_argument("-f", "--format", choices=("text", "json"), default="text", help="text (default) or JSON")
    info.add_argument("--watch", action="store_true", help="refresh every 2 seconds until Ctrl-C")
    _add_sessions(command("sessions", [], _sessions, "list QoS 1 subscriptions and queue groups, or end one"), common)
    _add_bench(command("bench", [], _bench, "run a load test"))
    return parser


def _add_pub(pub: argparse.ArgumentParser) -> None:
    pub.add_argument("topic", metavar="TOPIC", help="up to 256 bytes, without * > + #")
    pub.add_argument("message", metavar="MESSAGE", nargs="?", help="the payload; - reads lines from standard input")
    pub.add_argument("--file", metavar="FILE", help="publish this whole file as one message")
    pub.add_argument(
        "--ttl",
        metavar="TIME",
        type=quantities.milliseconds(),
        default=0,
        help="time until the message expires, such as 500ms, 60s or 24h; a plain number: milliseconds; 0: the broker's default",
    )
    pub.add_argument(
        "--qos",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: wait until the broker has saved the message to disk; after an outage it is sent again and may arrive twice",
    )


def _add_sub(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("topic", metavar="TOPIC", help="topic, or filter with * > (dots) or + # (slashes)")
    sub.add_argument("-n", "--count", metavar="N", type=whole_number(0), help="end after N messages; 0: subscribe only")
    sub.add_argument("-f", "--format", choices=("text", "json"), default="text", help="text (default) or JSON")
    sub.add_argument(
        "--qos",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: each message is acknowledged after its line is written; the broker repeats unacknowledged messages",
    )
    sub.add_argument("--durable", action="store_true", help="keep messages while away; needs --client-id and --qos 1")
    sub.add_argument(
        "--client-id", metavar="ID", default="", help="the name under which the broker keeps durable subscriptions"
    )
    sub.add_argument(
        "--group", metavar="GROUP", default="", help="share the messages with the other members of this group"
    )


def _add_sessions(sessions: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    sessions.add_argument(
        "--find",
        metavar="TEXT",
        default="",
        help="only those with TEXT in filter, client_id or group; exit status 1 if there are none",
    )
    sessions.add_argument(
        "--limit",
        metavar="N",
        type=whole_number(1, 1000),
        default=100,
        help="number of rows, largest lag first (100)",
    )
    sessions.add_argument("-f", "--format", choices=("text", "json"), default="text", help="text, or JSON lines")
    actions = sessions.add_subparsers(dest="action", metavar="ACTION")
    end_help = "end a durable subscription or a queue group and discard its stored messages; needs the right admin"
    end = actions.add_parser("end", parents=[common], help=end_help, description=end_help, allow_abbrev=False)
    end.add_argument("filter", metavar="FILTER", help="the topic or filter of the subscription")
    end.add_argument("--client-id", metavar="ID", default="", help="the client_id of the subscription")
    end.add_argument(
        "--group",
        metavar="GROUP",
        default="",
        help="the queue group; with --client-id, remove only that client",
    )
    end.add_argument("--key", metavar="NAME", help="the key's name, if clients of several keys have this client_id")


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "--publishers", metavar="N", type=whole_number(1, 1000), default=1, help="connections that publish (1)"
    )
    bench.add_argument(
        "--subscribers",
        metavar="N",
        type=whole_number(0, 1000),
        default=1,
        help="connections that subscribe, each to all topics (1)",
    )
    bench.add_argument(
        "--topics", metavar="N", type=whole_number(1, 65_536), default=1, help="topics, used in turn (1)"
    )
    bench.add_argument(
        "--size",
        metavar="SIZE",
        type=quantities.size(24, 64 << 20),
        default=256,
        help="payload size, such as 512 or 64KB (256)",
    )
    length = bench.add_mutually_exclusive_group()
    length.add_argument(
        "--messages", metavar="N", type=whole_number(1, 10**12), help="end after this many messages in total"
    )
    length.add_argument(
        "--seconds", metavar="S", type=whole_number(1, 86_400), default=10, help="end after this long (10)"
    )
    bench.add_argument(
        "--rate",
        metavar="N",
        type=whole_number(1, 10**9),
        help="messages a second in total; latency counts from the planned time of each. Without it: as fast as possible",
    )
    bench.add_argument("--qos", type=int, choices=(0, 1), default=0, help="1: confirm each message after saving it")
    bench.add_argument(
        "--window",
        metavar="N",
        type=whole_number(1, 256),
        default=64,
        help="with --qos 1: unconfirmed messages of each publisher (64)",
    )
    bench.add_argument("-f", "--format", choices=("text", "json"), default="text", help="text (default) or JSON")


# ---- commands: each is imported when it is used, so that all start fast ----------------------------------------------


def _publish(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    from blipmq.cli import publish

    return publish.publish(arguments, environment, terminal)


def _subscribe(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    from blipmq.cli import subscribe

    return subscribe.subscribe(arguments, environment, terminal)


def _unsubscribe(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    from blipmq.cli import subscribe

    return subscribe.unsubscribe(arguments, environment, terminal)


def _wait(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    from blipmq.cli import await_filter

    return await_filter.wait(arguments, environment, terminal)


def _info(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    from blipmq.cli import info

    return info.show_info(arguments, environment, terminal)


def _sessions(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    from blipmq.cli import sessions

    run = sessions.end if arguments.action == "end" else sessions.show
    return run(arguments, environment, terminal)


def _bench(arguments: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    from blipmq.cli import bench

    return bench.run(arguments, environment, terminal)


def main(argv: list[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run one command; returns the exit status. For wrong usage argparse ends the process with status 2."""
    take_descriptors()
    environment = os.environ if environment is None else environment
    try:
        unset = argparse.Namespace(**UNSET)
        arguments = make_parser().parse_args(argv, unset)
        terminal = Terminal(arguments, environment)
        try:
            check_variables(environment)
            return int(arguments.run(arguments, environment, terminal))
        except BlipMQError as error:
            terminal.error(error)
            return error.exit_status
    except StreamError as error:  # for example --help into a full disk
        say(f"blipmq-cli: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return READER_GONE


if __name__ == "__main__":
    sys.exit(main())
