"""The broker's address and the API key of a command: from the command line, else from the environment.

Invariant: a secret is never read from the command line, which every user of the machine can see.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from blipmq.cli import render
from blipmq.cli.terminal import Terminal
from blipmq.client.address import parse_address
from blipmq.client.blocking import BlockingClient
from blipmq.client.trust import Tls, client_context
from blipmq.errors import ConfigError, UsageError

DEFAULT_ADDR = "127.0.0.1:7878"
TLS_VARIABLES = ("BLIPMQ_TLS_CA", "BLIPMQ_TLS_CERT", "BLIPMQ_TLS_KEY")


def find_address(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """--addr, else $BLIPMQ_ADDR, else the default. Raises ConfigError if the variable is invalid."""
    if arguments.addr is not None:
        return str(arguments.addr)
    address = environment.get("BLIPMQ_ADDR") or DEFAULT_ADDR
    try:
        parse_address(address)
    except UsageError as error:
        raise ConfigError(f"$BLIPMQ_ADDR is not usable. {error}") from None
    return address


def check_variables(environment: Mapping[str, str]) -> None:
    """Raise ConfigError for a misspelt variable of this program. The broker's settings are ignored."""
    known = ("BLIPMQ_ADDR", "BLIPMQ_API_KEY", *TLS_VARIABLES)
    for name in environment:
        if name.startswith("BLIPMQ_") and "__" not in name and name not in known:
            import difflib  # imported here because it is rarely needed, and the command line must start fast

            words = [variable.removeprefix("BLIPMQ_") for variable in known]
            near = difflib.get_close_matches(name.removeprefix("BLIPMQ_"), words, 1, cutoff=0.7)
            if near:
                raise ConfigError(
                    f"There is no variable ${name}. Did you mean $BLIPMQ_{near[0]}? Rename it, or unset it."
                )


def find_tls(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Tls:
    """The TLS option from --tls, --ca-file, --cert, --cert-key and the BLIPMQ_TLS_ variables; None: the address
    decides. The variables do not apply to an address that begins with tcp:// or
    ws://. Raises ConfigError if a file is invalid."""
    options = [getattr(arguments, name) for name in ("ca_file", "cert", "cert_key")]
    files = [
        option if option is not None else environment.get(variable, "")
        for option, variable in zip(options, TLS_VARIABLES, strict=True)
    ]
    wanted = arguments.tls or any(option is not None for option in options)
    if not wanted and (not any(files) or find_address(arguments, environment).startswith(("tcp://", "ws://"))):
        return None
    return client_context(*files)


def read_key(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """The API key from --key-file, else $BLIPMQ_API_KEY, else "". Raises ConfigError if the file is invalid."""
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
        raise ConfigError(
            f"The key file {path} must hold one key and nothing else, but it holds {len(key.split())} words."
        )
    return key


def open_client(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    terminal: Terminal,
    *,
    reconnect: bool,
    client_id: str = "",
    announce: bool = True,
    timeout_s: float = 10.0,
) -> BlockingClient:
    """Return a connected client. `announce`: report on standard error when an outage begins and ends."""
    client = BlockingClient(
        find_address(arguments, environment),
        api_key=read_key(arguments, environment),
        tls=find_tls(arguments, environment),
        client_id=client_id,
        reconnect=reconnect,
        timeout_s=timeout_s if getattr(arguments, "timeout", None) is None else arguments.timeout,
        on_state=None if terminal.quiet or not announce else render.ReconnectNotices(terminal.notice),
    ).open(wait=arguments.wait or 0)
    terminal.detail("✅", f"Connected to {client.address}.")
    return client
