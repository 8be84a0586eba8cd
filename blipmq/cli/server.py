"""The `blipmq` command: start, check, connect, wal, version.

Invariant: `check` and `version` open no socket and write no file; whatever goes wrong is one message on standard error
and an exit status that says which kind of thing it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from blipmq import config_reader, memory
from blipmq.config import KEYS, Config, literal, value_of
from blipmq.config_reader import Loaded
from blipmq.errors import BlipMQError
from blipmq.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except BlipMQError as error:
        print(f"blipmq: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # `blipmq check | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


_WAL_ACTIONS = {
    "verify": "read all of it and say what is damaged; changes nothing",
    "export": "write every record as a line of JSON; changes nothing",
    "repair": "do what a starting broker does: set aside what is damaged, keep the rest",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="blipmq", description="An edge message broker.")
    parser.add_argument("--version", action="version", version=f"BlipMQ {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    start = commands.add_parser("start", help="run the broker in the foreground")
    check = commands.add_parser(
        "check", help="validate the configuration; prints the settings and the memory they need"
    )
    for command, run in ((start, _start), (check, _check)):
        command.add_argument(
            "--config", metavar="FILE", help="TOML file; else $BLIPMQ_CONFIG, else ./blipmq.toml, else the defaults"
        )
        command.set_defaults(run=run)

    connect = commands.add_parser("connect", help="talk to a broker in an interactive shell")
    connect.add_argument("addr", metavar="HOST:PORT", help="where the broker is; tls://HOST:PORT for TLS")
    connect.add_argument("--tls", action="store_true", help="use TLS, as an address tls://HOST:PORT does")
    connect.add_argument(
        "--ca-file", metavar="FILE", help="authorities to trust, in PEM; else $BLIPMQ_TLS_CA, else the system's"
    )
    connect.add_argument("--cert", metavar="FILE", help="this client's certificate; else $BLIPMQ_TLS_CERT")
    connect.add_argument("--cert-key", metavar="FILE", help="its key; else $BLIPMQ_TLS_KEY, else in the same file")
    connect.set_defaults(run=_connect)

    wal = commands.add_parser("wal", help="look at the log of a broker that does not run: verify, export, repair")
    actions = wal.add_subparsers(metavar="ACTION", required=True, dest="action")
    for action, help_ in _WAL_ACTIONS.items():
        command = actions.add_parser(action, help=help_)
        place = command.add_mutually_exclusive_group()
        place.add_argument("--directory", metavar="DIR", help="the log; else wal.directory of the configuration")
        place.add_argument("--config", metavar="FILE", help="configuration that names it, found as `blipmq start` does")
        if action != "export":
            command.add_argument("--format", choices=("text", "json"), default="text", help="json: one object a line")
        command.set_defaults(run=_wal)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    return parser


def _load(argument: str | None, environ: Mapping[str, str]) -> Loaded:
    return config_reader.load(config_reader.locate(argument, environ), environ)


def _start(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments.config, os.environ)
    from blipmq import server  # here, because `check` and `version` need no event loop and no core

    return server.run(loaded, lambda: _load(arguments.config, os.environ))


def _check(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments.config, os.environ)
    print(f"configuration: {loaded.source}\n")
    section = ""
    for path in KEYS:
        head, name = path.rsplit(".", 1)
        if head != section:
            print(f"[{head}]")
            section = head
        print(f"  {name + ' = ' + literal(value_of(loaded.config, path)):<48} {loaded.origins[path]}")
    print("\nmemory:")
    print(memory.table(loaded.config))
    if loaded.config.tls.cert_file:
        _check_certificate(loaded.config)
    return 0


def _check_certificate(config: Config) -> None:
    """Load the files of [tls] as a starting broker does. Raises ConfigError."""
    from blipmq.certificate import Certificates, date  # here, because `ssl` takes its time

    files = Certificates(config.tls)
    print(
        f"\ncertificate:\n  {files.certificate.subject or '(no common name)'}, until {date(files.certificate.not_after)}"
    )
    for warning in files.warnings:
        print(f"  warning: {warning}")


def _connect(arguments: argparse.Namespace) -> int:
    from blipmq.cli import shell

    return int(shell.main([arguments.addr], options=arguments))


def _wal(arguments: argparse.Namespace) -> int:
    from blipmq.cli import wal  # here, because `check` and `version` need no core

    directory = arguments.directory or _load(arguments.config, os.environ).config.wal.directory
    return wal.run(arguments.action, directory, getattr(arguments, "format", "json"))


def _version(arguments: argparse.Namespace) -> int:
    print(f"BlipMQ {__version__}")
    return 0
