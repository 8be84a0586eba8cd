"""Stands in the place of mosquitto: translates its configuration into one of BlipMQ, and runs BlipMQ with it.

    adapter.py [-v] [-p PORT | -c FILE]

SIGHUP translates the file again before BlipMQ reads it again; SIGTERM and SIGINT are passed on.

Invariant: a setting that BlipMQ cannot express is an error with its name, never ignored. Only settings that cannot change an
answer are left out.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blipmq.config.settings import Mqtt

PR_SET_PDEATHSIG = 1
REFUSED = 3
SALT = bytes(32)
# What mosquitto has without a setting, and its scripts go beyond.
LEVELS = 201
ALIASES = 10
# The common name in the certificate of the scripts' clients.
CLIENT = "test client"
IDENTITY = ("use_identity_as_username", "use_subject_as_username")
# They concern logs, mosquitto's own process, or listeners that have the same settings in all scripts.
WITHOUT_EFFECT = {"log_type", "log_dest", "per_listener_settings", "user", "autosave_interval", "set_tcp_nodelay"}
# BlipMQ has no such settings. The answers in which that shows are differences in exceptions_blipmq.toml.
IN_DIFFERENCES = {"maximum_qos"}
# Values with which BlipMQ does what mosquitto does with them, and limits that no script reaches.
SAME = {
    "max_inflight_bytes": "1000000",
    "max_queued_bytes": "1000000",
    "allow_zero_length_clientid": "true",
    "upgrade_outgoing_qos": "false",
    "check_retain_source": "false",
    "retain_available": "true",
}
# One setting of BlipMQ each, with a number.
NUMBERS = {
    "max_keepalive": ("mqtt.max_keepalive_s",),
    "max_inflight_messages": ("mqtt.receive_maximum", "qos1.max_in_flight"),
    "max_connections": ("server.max_connections",),
    "message_size_limit": ("server.max_message_size_bytes",),
    "max_packet_size": ("mqtt.max_packet_bytes",),
    "max_queued_messages": ("queues.subscriber_capacity",),
}


class NotSupportedError(Exception):
    """BlipMQ has no such setting."""


@dataclass
class Listener:
    port: int
    files: dict[str, str] = field(default_factory=dict)
    require_certificate: bool = False


@dataclass
class Translation:
    """`settings` of BlipMQ by their full names; `keys`: passwords by user, "" for a client with a certificate; None: no
    keys are needed."""

    settings: dict[str, Any]
    keys: dict[str, str] | None
    persistence: str  # the file of mosquitto that scripts delete to begin anew; "": nothing is kept


def translate(text: str, passwords: list[str], directory: Path) -> Translation:
    """The configuration `text`, with the files that it names found in `directory`. `passwords` may occur in scripts."""
    settings: dict[str, Any] = {}
    listeners: list[Listener] = []
    words: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if not name or name.startswith("#") or name in WITHOUT_EFFECT | IN_DIFFERENCES or SAME.get(name) == value:
            continue
        if name in ("listener", "port"):
            listeners.append(Listener(int(value.split()[0])))
        elif name in ("certfile", "keyfile", "cafile"):
            listeners[-1].files[name] = value
        elif name == "require_certificate":
            listeners[-1].require_certificate = value == "true"
        elif name in NUMBERS:
            settings.update(dict.fromkeys(NUMBERS[name], int(value)))
        elif (name, value) == ("retain_available", "false"):
            settings["mqtt.max_retained"] = 0
        elif name in ("allow_anonymous", "password_file", "persistence", "persistence_file", *IDENTITY):
            words[name] = value
        else:
            raise NotSupportedError(f"BlipMQ has no setting for `{line.strip()}`")
    _listen(listeners, settings)
    kept = words.get("persistence") == "true"
    return Translation(
        settings, _keys(words, passwords, directory), words.get("persistence_file", "mosquitto.db") if kept else ""
    )


def _listen(listeners: list[Listener], settings: dict[str, Any]) -> None:
    for listener in listeners:
        name = "mqtt.tls_bind_addr" if listener.files else "mqtt.bind_addr"
        if name in settings:
            raise NotSupportedError("BlipMQ listens for MQTT at one address without TLS and at one with it")
        settings[name] = f"127.0.0.1:{listener.port}"
        if listener.files:
            settings["tls.cert_file"] = [listener.files["certfile"], listener.files["cafile"]]
            settings["tls.key_file"] = listener.files["keyfile"]
            settings["tls.client_ca_file"] = listener.files["cafile"]
            settings["tls.require_client_cert"] = listener.require_certificate


def _keys(words: dict[str, str], passwords: list[str], directory: Path) -> dict[str, str] | None:
    anonymous = words.get("allow_anonymous", "false") == "true"
    if any(words.get(name) == "true" for name in IDENTITY):
        return {CLIENT: ""}
    if "password_file" not in words:
        return None if anonymous else {}
    if anonymous:
        raise NotSupportedError("BlipMQ with keys admits no client without one")
    lines = (directory / words["password_file"]).read_text(encoding="utf-8").splitlines()
    return dict(pair for line in lines for pair in [_password(line, passwords)] if pair is not None)


def _password(line: str, passwords: list[str]) -> tuple[str, str] | None:
    """User and password of a line such as `user:$6$SALT$HASH`; None if it is none, or if the password is not known."""
    user, _, stored = line.partition(":")
    parts = stored.split("$")
    if not user or line.startswith("#") or len(parts) != 4 or parts[1] != "6":
        return None
    try:
        salt, wanted = base64.b64decode(parts[2], validate=True), base64.b64decode(parts[3], validate=True)
    except ValueError:
        return None
    for password in passwords:
        if password and hashlib.sha512(password.encode() + salt).digest() == wanted:
            return user, password
    return None


def key_file(keys: dict[str, str]) -> str:
    """The text of BlipMQ's key file, with a password as each key. mosquitto's passwords are too short for `blipmq keys`."""
    lines: list[dict[str, Any]] = [{"format": 1, "salt": SALT.hex()}]
    for user, password in keys.items():
        text = password or f"no password: {user} has a certificate"
        digest = hashlib.blake2b(text.encode(), digest_size=32, key=SALT).hexdigest()
        key = {"name": user, "hash": digest, "created": "2026-01-01"}
        lines.append(key if password else {**key, "certificate": user})
    return "".join(json.dumps(line) + "\n" for line in lines)


def write(translation: Translation, place: Path, directory: Path) -> Path:
    """Write the files into `place`; the configuration's path."""
    settings = {
        "server.bind_addr": "",
        "metrics.bind_addr": "",
        "wal.enabled": True,
        "wal.directory": str(place / "wal"),
        "wal.reserve_bytes": 0,
        "limits.max_topic_levels": LEVELS,
        "logging.level": "debug",
        **translation.settings,
    }
    if "topic_alias_maximum" in Mqtt.declared:
        settings["mqtt.topic_alias_maximum"] = ALIASES
    if translation.keys is not None:
        (place / "keys").write_text(key_file(translation.keys), encoding="utf-8")
        (place / "keys").chmod(0o600)
        settings["auth.keys_file"] = str(place / "keys")
    if "tls.cert_file" in settings:
        chain = "".join((directory / name).read_text(encoding="utf-8") for name in settings["tls.cert_file"])
        (place / "chain.crt").write_text(chain, encoding="utf-8")
        settings["tls.cert_file"] = str(place / "chain.crt")
        for name in ("tls.key_file", "tls.client_ca_file"):
            settings[name] = str(directory / settings[name])
    sections: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}\n")
    text = "".join(f"[{section}]\n{''.join(lines)}" for section, lines in sections.items())
    (place / "blipmq.toml").write_text(text, encoding="utf-8")
    return place / "blipmq.toml"


def passwords_of(directory: Path) -> list[str]:
    """The passwords that the scripts in the directory use: hashes cannot be turned back."""
    found: set[str] = set()
    for script in directory.glob("*.py"):
        found.update(re.findall(r"password=[\"']([^\"']*)[\"']", script.read_text(encoding="utf-8")))
    return sorted(found)


def main() -> int:
    directory = Path.cwd()
    passwords = passwords_of(directory)
    words = [word for word in sys.argv[1:] if word != "-v"]
    options = dict(zip(words[::2], words[1::2], strict=True))

    def text() -> str:
        if "-c" in options:
            return (directory / options["-c"]).read_text(encoding="utf-8")
        return f"listener {options.get('-p', '1883')}\nallow_anonymous true\n"

    try:
        translation = translate(text(), passwords, directory)
    except NotSupportedError as error:
        print(f"adapter: {error}", file=sys.stderr)
        return REFUSED
    place = directory / f"blipmq-{options.get('-p') or options['-c']}"
    marker = directory / translation.persistence
    if not translation.persistence or not marker.exists():
        shutil.rmtree(place / "wal", ignore_errors=True)
    place.mkdir(exist_ok=True)
    if translation.persistence:
        marker.touch()
    config = write(translation, place, directory)
    libc = ctypes.CDLL(None)
    broker = subprocess.Popen(
        [sys.executable, "-m", "blipmq", "start", "--config", str(config)],
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )

    def pass_on(number: int, _frame: object) -> None:
        broker.send_signal(number)

    def reload(number: int, frame: object) -> None:
        write(translate(text(), passwords, directory), place, directory)
        pass_on(number, frame)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGHUP, reload)
    return broker.wait()


if __name__ == "__main__":
    sys.exit(main())
