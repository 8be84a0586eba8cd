"""The `blipmq-device` command, which an appliance's units call, and a technician who has logged in.

Invariant: what goes wrong is one message on standard error and an exit status; 0 done, 1 not well, 2 usage, 78 settings refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from blipmq.device.places import Places
from blipmq.device.system import System
from blipmq.errors import BlipMQError
from blipmq.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    places = Places(arguments.root)
    system = System(live=os.path.realpath(arguments.root) == "/")
    try:
        return int(arguments.run(places, system, arguments))
    except BlipMQError as error:
        print(f"blipmq-device: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"blipmq-device: {error.filename or ''}: {error.strerror or error}. Are you root?", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blipmq-device", description="Settings, status and health of a BlipMQ appliance."
    )
    parser.add_argument("--version", action="version", version=f"blipmq-device {__version__}")
    parser.add_argument("--root", metavar="DIR", default="/", help="where the device's files are; default: /")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    apply = verbs.add_parser("apply", help="read device.toml and blipmq.toml and put them into effect")
    apply.add_argument("--boot", action="store_true", help="nothing runs yet that would have to be told")
    apply.set_defaults(run=_apply)
    status = verbs.add_parser("status", help="print how the device is, and write it to blipmq-status.txt; 1: degraded")
    status.set_defaults(run=_status)
    refresh = verbs.add_parser("refresh", help="bring blipmq-status.txt, the consoles and the LED up to date")
    refresh.set_defaults(run=_refresh)
    test = verbs.add_parser("selftest", help="publish and subscribe through the broker that runs")
    test.set_defaults(run=_selftest)
    healthy = verbs.add_parser("healthy", help="wait until the broker passes its test, then mark the slot good")
    healthy.add_argument("--patience", metavar="SECONDS", type=float, default=240.0, help="how long; default: 240")
    healthy.set_defaults(run=_healthy)
    reset = verbs.add_parser(
        "factory-reset", help="erase the data partition, if a file on the settings partition asks for it"
    )
    reset.set_defaults(run=_factory_reset)
    floor = verbs.add_parser("time-floor", help="keep the time over a restart: save it, or restore it")
    floor.add_argument("action", choices=("save", "restore"))
    floor.set_defaults(run=_time_floor)
    led = verbs.add_parser("led", help="set the light: on, or blinking for degraded")
    led.add_argument("state", nargs="?", choices=("ok", "degraded"), help="else what `status` finds")
    led.set_defaults(run=_led)
    banner = verbs.add_parser("banner", help="print what the consoles show")
    banner.set_defaults(run=_banner)
    return parser


# Imported where they are used, because most runs use little and a slow board waits for each.


def _apply(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device.apply import apply
    from blipmq.device.report import readable

    outcome = apply(places, system, arguments.boot)
    for sentence in (*outcome.problems, *outcome.notes):
        print(readable(sentence))
    # At boot the rest of the system must start whatever the files hold; the status tells what is wrong.
    return 78 if outcome.problems and not arguments.boot else 0


def _status(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import report

    found = report.look(places, system)
    print(found.text, end="")
    report.write(places, system, found)
    return int(bool(found.problems))


def _refresh(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import console, led, report

    found = report.look(places, system)
    led.show(places, bool(found.problems))
    console.show(places, found)
    try:
        report.write(places, system, found)
    except OSError as error:  # the consoles say that the settings partition is not there
        print(f"blipmq-device: {places.status} cannot be written: {error.strerror}", file=sys.stderr)
    return 0


def _selftest(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import health

    why = health.test(places, strictly=True)
    print(why or "passed", file=sys.stderr if why else sys.stdout)
    return int(bool(why))


def _healthy(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import health

    why = health.become_healthy(places, system, arguments.patience)
    print(why or "healthy", file=sys.stderr if why else sys.stdout)
    return int(bool(why))


def _factory_reset(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import reset

    print("the data partition has been made anew" if reset.carry_out(places, system) else "no file asks for a reset")
    return 0


def _time_floor(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import clock

    (clock.save if arguments.action == "save" else clock.restore)(places, system)
    return 0


def _led(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import led, report

    degraded = arguments.state == "degraded" if arguments.state else bool(report.look(places, system).problems)
    print(led.show(places, degraded) or "no light that this program knows")
    return 0


def _banner(places: Places, system: System, arguments: argparse.Namespace) -> int:
    from blipmq.device import console, report

    print(console.banner(report.look(places, system)), end="")
    return 0
