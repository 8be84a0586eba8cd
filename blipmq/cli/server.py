"""The `blipmq` command: start, check, health, connect, keys, wal, version.

Invariant: `check` and `version` open no socket and write no file. Each error is one message on standard error and an
exit status for its kind.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from blipmq.base.stdio import READER_GONE, print_out, say, take_descriptors
from blipmq.errors import BlipMQError, ConfigError, UsageError
from blipmq.version import __version__

if TYPE_CHECKING:
    import argparse

    from blipmq.config.reader import Loaded
    from blipmq.config.settings import Config


INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    take_descriptors()
    try:
        return _command(sys.argv[1:] if argv is None else list(argv))()
    except BlipMQError as error:
        say(f"blipmq: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `blipmq check | head`
        return READER_GONE


def _command(words: list[str]) -> Callable[[], int]:
    """Select the command. `start` in the form used by services, and `version`, need no parser, which would take a tenth
    of a start. The parser handles all other words, including mistakes."""
    if words == ["version"]:
        return _version
    if words == ["start"]:
        return partial(_start, None)
    if words[:2] == ["start", "--config"] and len(words) == 3 and not words[2].startswith("-"):
        return partial(_start, words[2])
    arguments = _parser().parse_args(words)
    return partial(arguments.run, arguments)


_WAL_ACTIONS = {
    "verify": "read the whole WAL and report damage; changes nothing",
    "export": "write every record as a line of JSON; changes nothing",
    "repair": "set damaged parts aside and keep the rest, as a starting broker does",
}


def _parser() -> argparse.ArgumentParser:
    from blipmq.base.argument_parser import ArgumentParser
    from blipmq.cli import quantities

    parser = ArgumentParser(prog="blipmq", description="An edge message broker.")
    parser.add_argument("--version", action="version", version=f"BlipMQ {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    start = commands.add_parser("start", help="run the broker in the foreground")
    check = commands.add_parser(
        "check", help="validate the configuration; prints the settings and the memory they need"
    )
    health = commands.add_parser(
        "health", help="check that a running broker is alive; needs metrics.bind_addr and no key"
    )
    health.add_argument("--ready", action="store_true", help="check that it accepts clients, instead")
    for command, run in ((start, lambda arguments: _start(arguments.config)), (check, _check), (health, _health)):
        command.add_argument(
            "--config", metavar="FILE", help="TOML file; else $BLIPMQ_CONFIG, else ./blipmq.toml, else the defaults"
        )
        command.set_defaults(run=run)
    check.add_argument(
        "--convert",
        metavar="OLD",
        help="convert OLD, a configuration of BlipMQ 1.0.0 or a mosquitto.conf, to one for this version",
    )
    check.add_argument("--output", metavar="FILE", help="with --convert: write here instead of to standard output")

    connect = commands.add_parser("connect", help="talk to a broker in an interactive shell")
    connect.add_argument(
        "addr", metavar="HOST:PORT", help="where the broker is; tls://HOST:PORT for TLS, ws:// and wss:// for WebSocket"
    )
    connect.add_argument("--key-file", metavar="FILE", help="file that holds the API key; else $BLIPMQ_API_KEY")
    connect.add_argument("--tls", action="store_true", help="use TLS, as an address tls://HOST:PORT does")
    connect.add_argument(
        "--ca-file", metavar="FILE", help="authorities to trust, in PEM; else $BLIPMQ_TLS_CA, else the system's"
    )
    connect.add_argument("--cert", metavar="FILE", help="this client's certificate; else $BLIPMQ_TLS_CERT")
    connect.add_argument("--cert-key", metavar="FILE", help="its key; else $BLIPMQ_TLS_KEY, else in the same file")
    connect.add_argument(
        "--wait",
        metavar="TIME",
        type=quantities.seconds(),
        default=0,
        help="keep trying to connect for this long, such as 30s or 5m",
    )
    connect.set_defaults(run=_connect)

    _add_keys(commands)
    wal = commands.add_parser("wal", help="verify, export or repair the WAL of a stopped broker")
    actions = wal.add_subparsers(metavar="ACTION", required=True, dest="action")
    for action, help_ in _WAL_ACTIONS.items():
        command = actions.add_parser(action, help=help_)
        place = command.add_mutually_exclusive_group()
        place.add_argument("--directory", metavar="DIR", help="the WAL; else wal.directory of the configuration")
        place.add_argument("--config", metavar="FILE", help="configuration that names it, found as `blipmq start` does")
        if action != "export":
            command.add_argument("--format", choices=("text", "json"), default="text", help="json: one object a line")
        command.set_defaults(run=_wal)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=lambda _: _version())
    return parser


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="create, list, rotate and revoke API keys")
    actions = keys.add_subparsers(metavar="ACTION", required=True, dest="action")
    add = actions.add_parser("add", help="create a key and print it once; the file keeps only its hash")
    add.add_argument("name", metavar="NAME", help="the name of the key in logs and in `keys list`")
    add.add_argument(
        "--allow",
        metavar="RIGHT",
        action="append",
        default=[],
        help="pub:TOPIC, sub:FILTER or admin, as often as needed; with one given, nothing else is allowed",
    )
    add.add_argument(
        "--certificate",
        metavar="CN",
        help="a TLS client whose certificate of tls.client_ca_file has this common name needs no key",
    )
    list_ = actions.add_parser("list", help="show names, dates and rights")
    list_.add_argument("--format", choices=("text", "json"), default="text", help="json: one object a line")
    revoke = actions.add_parser("revoke", help="revoke a key; its clients are disconnected within a second")
    revoke.add_argument("name", metavar="NAME")
    rotate = actions.add_parser("rotate", help="create a new key for a name; the old one stays valid for a while")
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument(
        "--overlap",
        metavar="TIME",
        help="how long the old key stays valid: 90s, 30m, 24h (default), 7d; 0s ends it now",
    )
    rotate.add_argument("--finish", action="store_true", help="end the old key now, instead")
    for action in (add, list_, rotate, revoke):
        place = action.add_mutually_exclusive_group()
        place.add_argument("--file", metavar="FILE", help="the key file; else auth.keys_file of the configuration")
        place.add_argument("--config", metavar="FILE", help="configuration that names it, found as `blipmq start` does")
        action.set_defaults(run=_keys)


def _load(argument: str | None, environ: Mapping[str, str], wait: bool = True) -> Loaded:
    # imported here because `version` and `connect` have no configuration
    from blipmq.config import reader as config_reader

    return config_reader.load(config_reader.locate(argument, environ), environ, wait)


def _start(path: str | None) -> int:
    gc.disable()  # loaded objects stay in use; scanning them repeatedly would take a fifteenth of a start
    try:
        loaded = _load(path, os.environ)
        from blipmq.base.loop import load_asyncio

        load_asyncio(https=loaded.config.metrics.tls)
        from blipmq.service import server  # imported here because `check` and `version` need no event loop and no core

        return server.run(loaded, lambda: _load(path, os.environ, wait=False))
    finally:
        gc.enable()


def _check(arguments: argparse.Namespace) -> int:
    if arguments.convert is not None:
        from blipmq.cli import convert

        return convert.run(arguments.convert, arguments.output)
    if arguments.output is not None:
        raise UsageError("--output needs --convert. To store the output of `blipmq check`, redirect standard output.")
    loaded = _load(arguments.config, os.environ)
    from blipmq.config import memory
    from blipmq.config import reader as config_reader
    from blipmq.config.settings import KEYS, shown

    lines, section = [f"configuration: {loaded.source}\n"], ""
    for path in KEYS:
        head, name = path.rsplit(".", 1)
        if head != section:
            lines.append(f"[{head}]")
            section = head
        lines.append(f"  {name + ' = ' + shown(loaded.config, path):<48} {loaded.origins[path]}")
    print_out("\n".join([*lines, "\nmemory:", memory.table(loaded.config)]))
    if loaded.config.auth.required:
        connections, sessions = loaded.config.connections_per_key, loaded.config.sessions_per_key
        print_out(f"\none key may have:\n  {connections} connections, {sessions} QoS 1 subscriptions and queue groups")
    if loaded.config.tls.cert_file:
        _check_certificate(loaded.config)
    for warning in [*config_reader.warnings(loaded), *_key_file_problems(loaded.config.auth.keys_file)]:
        say(f"blipmq: warning: {warning}")
    return 0


def _health(arguments: argparse.Namespace) -> int:
    from blipmq.cli import health

    return health.run(_load(arguments.config, os.environ).config, arguments.ready)


def _key_file_problems(path: str) -> list[str]:
    if not path:
        return []
    from blipmq.auth.keys import list_keys

    try:
        return (
            []
            if list_keys(path)
            else [f"{path} holds no key, so every client will be refused. Create one: blipmq keys add NAME"]
        )
    except ConfigError as error:
        return [f"every client will be refused: {error}"]


def _check_certificate(config: Config) -> None:
    """Load the files of [tls] as a starting broker does. Raises ConfigError."""
    from blipmq.net.certificate import Certificates, date  # imported here because loading `ssl` takes time

    files = Certificates(config.tls)
    print_out(
        f"\ncertificate:\n  {files.certificate.subject or '(no common name)'}, until {date(files.certificate.not_after)}"
    )
    for warning in files.warnings:
        print_out(f"  warning: {warning}")


def _connect(arguments: argparse.Namespace) -> int:
    from blipmq.cli import shell

    return int(shell.main([arguments.addr], options=arguments))


def _keys(arguments: argparse.Namespace) -> int:
    from blipmq.cli import keys

    path = arguments.file or _load(arguments.config, os.environ).config.auth.keys_file
    if not path:
        raise ConfigError(
            "No key file is set. Set auth.keys_file in the configuration (for example /var/lib/blipmq/keys), or name the "
            "configuration with --config or the key file with --file."
        )
    if arguments.action == "add":
        return keys.add(path, arguments.name, arguments.allow, arguments.certificate)
    if arguments.action == "list":
        return keys.list_all(path, arguments.format)
    if arguments.action == "rotate":
        return keys.rotate(path, arguments.name, arguments.overlap, arguments.finish)
    return keys.revoke(path, arguments.name)


def _wal(arguments: argparse.Namespace) -> int:
    from blipmq.cli import wal  # imported here because `check` and `version` need no core

    directory = arguments.directory or _load(arguments.config, os.environ).config.wal.directory
    return wal.run(arguments.action, directory, getattr(arguments, "format", "json"))


def _version() -> int:
    print_out(f"BlipMQ {__version__}")
    return 0
