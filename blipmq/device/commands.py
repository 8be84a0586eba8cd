"""The `blipmq-device` command, called by an appliance's units and by a technician who has logged in.

Invariant: each error is one message on standard error and an exit status: 0 done, 1 not healthy, 2 usage, 78 settings
refused.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence

from blipmq.base.argument_parser import ArgumentParser
from blipmq.base.stdio import READER_GONE, StreamError, print_out, say, take_descriptors
from blipmq.device.paths import Paths
from blipmq.device.system import System
from blipmq.errors import BlipMQError
from blipmq.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    take_descriptors()
    try:
        arguments = make_parser().parse_args(argv)
        paths = Paths(arguments.root)
        system = System(live=os.path.realpath(arguments.root) == "/")
        return int(arguments.run(paths, system, arguments))
    except BlipMQError as error:
        say(f"blipmq-device: {error}")
        return error.exit_status
    except BrokenPipeError:
        return READER_GONE
    except OSError as error:
        say(f"blipmq-device: {error.filename or ''}: {error.strerror or error}. Are you root?")
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="blipmq-device", description="Settings, status and health of a BlipMQ appliance.")
    parser.add_argument("--version", action="version", version=f"blipmq-device {__version__}")
    parser.add_argument("--root", metavar="DIR", default="/", help="directory of the device's files; default: /")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    apply = verbs.add_parser("apply", help="read device.toml and blipmq.toml and put them into effect")
    apply.add_argument("--boot", action="store_true", help="during boot: no service has to be restarted")
    apply.set_defaults(run=_apply)
    status = verbs.add_parser(
        "status", help="print the status and write it to blipmq-status.txt; exit status 1: degraded"
    )
    status.set_defaults(run=_status)
    refresh = verbs.add_parser("refresh", help="update blipmq-status.txt, the consoles and the LED")
    refresh.set_defaults(run=_refresh)
    test = verbs.add_parser("selftest", help="publish and subscribe through the running broker")
    test.set_defaults(run=_selftest)
    healthy = verbs.add_parser("healthy", help="wait until the broker passes its test, then mark the slot good")
    healthy.add_argument("--patience", metavar="SECONDS", type=float, default=240.0, help="how long; default: 240")
    healthy.set_defaults(run=_healthy)
    reset = verbs.add_parser(
        "factory-reset", help="erase the data partition, if a file on the settings partition asks for it"
    )
    reset.set_defaults(run=_factory_reset)
    floor = verbs.add_parser("time-floor", help="save or restore the time, for a restart")
    floor.add_argument("action", choices=("save", "restore"))
    floor.set_defaults(run=_time_floor)
    led = verbs.add_parser("led", help="set the LED: on, or blinking for degraded")
    led.add_argument("state", nargs="?", choices=("ok", "degraded"), help="default: the result of `status`")
    led.set_defaults(run=_led)
    banner = verbs.add_parser("banner", help="print the text of the consoles")
    banner.set_defaults(run=_banner)
    return parser


# Imported where they are used, because most runs need few of them and imports are slow on a small board.


def _apply(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device.apply import apply
    from blipmq.device.report import readable

    result = apply(paths, system, arguments.boot)
    # At boot the rest of the system must start whatever the files contain, and even if nothing reads this output; the
    # status has the problems.
    with contextlib.suppress(*((StreamError, BrokenPipeError) if arguments.boot else ())):
        for sentence in (*result.problems, *result.notes):
            print_out(readable(sentence))
    return 78 if result.problems and not arguments.boot else 0


def _status(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import report

    found = report.look(paths, system)
    report.write(paths, system, found)
    print_out(found.text.rstrip("\n"))
    return int(bool(found.problems))


def _refresh(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import console, led, report

    found = report.look(paths, system)
    led.show(paths, bool(found.problems))
    console.show(paths, found)
    try:
        report.write(paths, system, found)
    except OSError as error:  # the consoles report that the settings partition is missing
        say(f"blipmq-device: {paths.status} cannot be written: {error.strerror}")
    return 0


def _selftest(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import health

    why = health.test(paths, strictly=True)
    _tell(why, "passed")
    return int(bool(why))


def _healthy(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import health

    why = health.become_healthy(paths, system, arguments.patience)
    _tell(why, "healthy")
    return int(bool(why))


def _factory_reset(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import reset

    made = reset.carry_out(paths, system)
    print_out("the data partition has been created again" if made else "no file requests a reset")
    return 0


def _time_floor(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import clock

    (clock.save if arguments.action == "save" else clock.restore)(paths, system)
    return 0


def _led(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import led, report

    degraded = arguments.state == "degraded" if arguments.state else bool(report.look(paths, system).problems)
    print_out(led.show(paths, degraded) or "no known LED")
    return 0


def _banner(paths: Paths, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import console, report

    print_out(console.banner(report.look(paths, system)).rstrip("\n"))
    return 0


def _tell(why: str, well: str) -> None:
    if why:
        say(why)
    else:
        print_out(well)
