"""Reads settings from a TOML file, from the environment, from a dict.

Invariant: the result is complete and valid, and the origin of each value is known. Otherwise one `ConfigError` lists
all problems, each with file, line and correction. Reading has no side effects.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from blipmq.base.bind_address import is_loopback, split_address
from blipmq.base.files import read_file
from blipmq.base.process import memory_limit_bytes
from blipmq.base.validation import API_KEY_BYTES_MIN
from blipmq.config import memory
from blipmq.config.schema import Key
from blipmq.config.schema_reader import Lines, Reading, Source, nearest, parse_toml, read_text
from blipmq.config.settings import KEYS, SCHEMA, Config, value_of, variable
from blipmq.errors import ConfigError

SECRET_BYTES_MAX = 1 << 20
KEEPALIVE_MIN_MS = 2000
# Variables that begin with BLIPMQ_ but are not settings: those of the command lines, the build, the images and the
# tests.
COMMAND_VARIABLES = tuple(f"BLIPMQ_{name}" for name in ("CONFIG", "ADDR", "API_KEY", "TLS_CA", "TLS_CERT", "TLS_KEY"))
BUILD_VARIABLES = tuple(
    "BLIPMQ_" + name
    for name in (
        *("AGAIN", "BUILD_CACHE", "BUNDLE_CERT", "BUNDLE_KEY", "BUNDLE_KEYRING", "DIST", "IMAGE", "IMAGE_URL"),
        *("IMAGE_VERSION", "MIRROR", "MIRROR_SECURITY", "OPENSSL", "SANITIZE", "SIGNING_KEY"),
        *("WITHOUT_CORE", "WITHOUT_TLS", "XZ_LEVEL"),
        *("BINARY", "CLI", "FLOOD_SECONDS", "ROOT", "SYS"),
    )
)
# Kubernetes sets these in every container for a service whose name begins with blipmq; Docker did so for links.
_SERVICE_VARIABLE = (
    r"BLIPMQ_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
    r"|BLIPMQ_[A-Z0-9_]+_PORT|BLIPMQ_(NAME|ENV_\w+)"
)


class Loaded(NamedTuple):
    """A configuration and its source. `origins`: from section.key to default, FILE:LINE or a variable's name."""

    config: Config
    source: str
    origins: Mapping[str, str]


def locate(argument: str | None, environ: Mapping[str, str]) -> str | None:
    """The file to read: `--config`, else $BLIPMQ_CONFIG, else ./blipmq.toml if it exists, else None."""
    if argument is not None:
        return argument
    return environ.get("BLIPMQ_CONFIG") or ("blipmq.toml" if os.path.exists("blipmq.toml") else None)


def load(path: str | os.PathLike[str] | None, environ: Mapping[str, str], wait: bool = True) -> Loaded:
    """Read `path` (None: defaults only), then the environment over it. Raises `ConfigError` with all problems. `wait`: a file
    may be a named pipe, whose writer is waited for."""
    return load_texts([] if path is None else [(str(path), read_text(path, wait=wait))], environ, wait)


def load_texts(files: Sequence[tuple[str, str]], environ: Mapping[str, str], wait: bool = True) -> Loaded:
    """Read files given as (name, text); a later one overrides those before it. Raises `ConfigError` with all problems."""
    reading = _Reading(wait)
    for name, text in files:
        reading.take_table(parse_toml(text, name), Source(name, Lines(text)))
    reading.take_environment(environ)
    return reading.finish(files[-1][0] if files else "built-in defaults")


def from_dict(settings: Mapping[str, Any]) -> Config:
    """Return a `Config` from nested dicts shaped like the file: `{"server": {"bind_addr": "127.0.0.1:0"}}`. Raises
    `ConfigError`."""
    reading = _Reading()
    reading.take_table(settings, Source("settings"))
    return reading.finish("settings").config


class _Reading(Reading):
    """A broker's configuration while it is read."""

    def __init__(self, wait: bool = True) -> None:
        super().__init__(SCHEMA)
        self._wait = wait
        self.origins = dict.fromkeys(KEYS, "default")

    def take_environment(self, environ: Mapping[str, str]) -> None:
        by_variable = {variable(k): k for k in KEYS.values()}
        by_file_variable = {variable(k) + "_FILE": k for k in KEYS.values() if k.secret}
        for name in sorted(environ):
            if not name.startswith("BLIPMQ_") or _is_for_others(name, environ[name]):
                continue
            if name in by_variable:
                self.take(by_variable[name], _from_text(by_variable[name], environ[name]), name)
            elif name in by_file_variable:
                self._take_file(by_file_variable[name], environ, name)
            else:
                self.problems.append(f"{name}: {_unknown_variable(name, [*by_variable, *by_file_variable])}")

    def _take_file(self, k: Key, environ: Mapping[str, str], name: str) -> None:
        """Read a secret from the file that a variable names."""
        if variable(k) in environ:
            self.problems.append(f"{name}: {variable(k)} is set too, and only one of them can count; unset one")
            return
        try:
            text = read_file(environ[name], SECRET_BYTES_MAX, self._wait).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            self.problems.append(f"{name}: the file it names cannot be read: {why}")
            return
        self.take(k, _from_text(k, text), name)

    def finish(self, source: str) -> Loaded:
        config: Config = self.build()
        if not self.problems:  # relations between settings are checked only if each is valid by itself
            self._check_together(config)
        if self.problems:
            count = len(self.problems)
            raise ConfigError("\n".join([f"{count} problem{'s'[: count != 1]} in the configuration:", *self.problems]))
        return Loaded(config, source, self.origins)

    def _check_together(self, config: Config) -> None:
        self._check_exposure(config)
        if 0 < config.server.keepalive_ms < KEEPALIVE_MIN_MS:
            self._clash(
                "server.keepalive_ms",
                f"{config.server.keepalive_ms} is less than {KEEPALIVE_MIN_MS}, the shortest time that systems can probe in; "
                "raise it, or set 0 to turn keep-alive off",
            )
        self._check_tls(config)
        self._check_websocket(config)
        self._check_mqtt(config)
        if len(set(config.auth.api_keys)) != len(config.auth.api_keys):
            self._clash("auth.api_keys", "contains a key twice; remove one")
        addr = config.server.bind_addr
        if config.auth.allow_anonymous and config.auth.required:
            self._clash(
                "auth.allow_anonymous",
                "true, but keys are configured; remove either this setting or auth.api_keys and auth.keys_file",
            )
        if addr and addr == config.metrics.bind_addr and split_address(addr)[1]:
            self._clash(
                "metrics.bind_addr",
                f'"{addr}" is also server.bind_addr; set another port, or "" to turn metrics off',
            )
        if config.queues.subscriber_bytes < config.server.max_message_size_bytes:
            self._clash(
                "queues.subscriber_bytes",
                f"{config.queues.subscriber_bytes} is less than server.max_message_size_bytes "
                f"({config.server.max_message_size_bytes}), so the largest message would not fit; "
                "raise one or lower the other",
            )
        budget, frame = config.limits.memory_bytes, memory.max_frame_bytes(config)
        if budget and budget < 4 * frame:
            self._clash(
                "limits.memory_bytes",
                f"{budget} is less than four frames of server.max_message_size_bytes ({4 * frame} bytes), and "
                "incoming messages may use a quarter of it; raise one or lower the other",
            )
        if config.delivery.default_ttl_ms > config.performance.timer_config.max_timeout_ms:
            self._clash(
                "delivery.default_ttl_ms",
                f"{config.delivery.default_ttl_ms} is over performance.timer_config.max_timeout_ms "
                f"({config.performance.timer_config.max_timeout_ms}), the maximum; raise one or lower the other",
            )

        if config.wal.enabled:
            self._check_wal(config)

    def _check_exposure(self, config: Config) -> None:
        """Without authentication only this machine may reach the broker, unless allow_anonymous is set."""
        if config.auth.required or config.auth.allow_anonymous:
            return
        server, mqtt, keys = (
            config.server,
            config.mqtt,
            "Set auth.keys_file and create a key (`blipmq keys add NAME`), or ",
        )
        anyone = ", or set auth.allow_anonymous = true to serve everyone who can reach it"
        for path, addr, otherwise in (
            ("server.bind_addr", server.bind_addr, "listen on 127.0.0.1"),
            ("server.tls_bind_addr", server.tls_bind_addr, "set tls.require_client_cert = true"),
            ("server.ws_bind_addr", server.ws_bind_addr, "listen on 127.0.0.1"),
            ("mqtt.bind_addr", mqtt.bind_addr, "listen on 127.0.0.1"),
            ("mqtt.tls_bind_addr", mqtt.tls_bind_addr, "set tls.require_client_cert = true"),
            ("mqtt.ws_bind_addr", mqtt.ws_bind_addr, "listen on 127.0.0.1"),
        ):
            certified = path.endswith(".tls_bind_addr") and config.tls.require_client_cert
            if addr and not certified and not is_loopback(split_address(addr)[0]):
                self._clash(
                    path,
                    f'"{addr}" can be reached from other machines, but no key is configured. {keys}{otherwise}{anyone}',
                )

    def _check_websocket(self, config: Config) -> None:
        server = config.server
        addr, others = server.ws_bind_addr, (server.bind_addr, server.tls_bind_addr, config.metrics.bind_addr)
        if addr and addr in others and split_address(addr)[1]:
            self._clash(
                "server.ws_bind_addr", f'"{addr}" is used by another setting too; set another port for WebSocket'
            )

    def _check_mqtt(self, config: Config) -> None:
        server, mqtt = config.server, config.mqtt
        used = [server.bind_addr, server.tls_bind_addr, server.ws_bind_addr, config.metrics.bind_addr]
        for path, addr in (
            ("mqtt.bind_addr", mqtt.bind_addr),
            ("mqtt.tls_bind_addr", mqtt.tls_bind_addr),
            ("mqtt.ws_bind_addr", mqtt.ws_bind_addr),
        ):
            if addr and addr in used and split_address(addr)[1]:
                self._clash(path, f'"{addr}" is used by another setting too; set another port for MQTT')
            used.append(addr)

    def _check_tls(self, config: Config) -> None:
        """Check the TLS settings together. `blipmq.net.certificate` checks the files."""
        tls, addr = config.tls, config.server.tls_bind_addr
        if addr and addr in (config.server.bind_addr, config.metrics.bind_addr) and split_address(addr)[1]:
            self._clash("server.tls_bind_addr", f'"{addr}" is used by another setting too; set another port for TLS')
        if tls.require_client_cert and not tls.client_ca_file:
            self._clash(
                "tls.require_client_cert", "tls.client_ca_file is empty, so no certificate can be verified; set it"
            )
        for this, other in ("cert_file", "key_file"), ("key_file", "cert_file"):
            if getattr(tls, this) and not getattr(tls, other):
                self._clash(f"tls.{this}", f"is set, but tls.{other} is not; TLS needs both")
        uses = {
            "server.tls_bind_addr": bool(addr),
            "mqtt.tls_bind_addr": bool(config.mqtt.tls_bind_addr),
            "metrics.tls": config.metrics.tls,
        }
        for path, used in uses.items():
            if used and not tls.cert_file and not tls.key_file:
                self._clash(path, "TLS needs a certificate; set tls.cert_file and tls.key_file")
        if not any(uses.values()):
            for name in ("cert_file", "key_file", "client_ca_file"):
                if getattr(tls, name):
                    self._clash(f"tls.{name}", f"is set, but TLS is not used; set {', '.join(uses)}")

    def _check_wal(self, config: Config) -> None:
        wal, segment = config.wal, config.wal.segment_size_bytes
        if not wal.directory:
            self._clash("wal.directory", "empty, but the WAL needs a directory; set one, or set wal.enabled = false")
        if segment % 4096:
            self._clash(
                "wal.segment_size_bytes", f"{segment} is not a multiple of 4096, the block size of disks; round it up"
            )
        if wal.block_bytes & (wal.block_bytes - 1):
            self._clash("wal.block_bytes", f"{wal.block_bytes} is not a power of two, such as 4096; round it up")
        if segment > wal.max_bytes // 4:
            self._clash(
                "wal.segment_size_bytes",
                f"{segment} is over a quarter of wal.max_bytes ({wal.max_bytes}), so the WAL could rarely shrink; "
                "raise one or lower the other",
            )
        batch = memory.wal_batch_bytes(config)
        if segment < 2 * batch:
            self._clash(
                "wal.segment_size_bytes",
                f"{segment} is less than {2 * batch}, which messages of server.max_message_size_bytes "
                f"({config.server.max_message_size_bytes}) need; raise one or lower the other",
            )
        if wal.block_bytes > segment // 8:
            self._clash(
                "wal.block_bytes",
                f"{wal.block_bytes} is over an eighth of wal.segment_size_bytes ({segment}); raise one or lower the other",
            )

    def _clash(self, path: str, what: str) -> None:
        """Report a problem where the setting was made; of a default, where another setting that the text names was made."""
        named = [path, *re.findall(r"[a-z_]+(?:\.[a-z_]+)+", what)]
        origins = [origin for name in named if (origin := self.origins.get(name, "default")) != "default"]
        self.problems.append(f"{origins[0] if origins else 'default'}: {path}: {what}")


def _from_text(k: Key, text: str) -> Any:
    """Convert an environment variable's text to the key's type. Text that does not convert stays text and is refused
    later."""
    if k.type == "bool":
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    if k.type == "list":
        return (
            re.split(r"[,\s]+", text.strip(", \t\r\n")) if text.strip(", \t\r\n") else text
        )  # an empty text is not an empty list
    if k.type == "int" and re.fullmatch(r"-?[0-9]{1,19}", text.replace("_", "")):
        return int(text.replace("_", ""))
    return text


def _is_for_others(name: str, value: str) -> bool:
    """Whether a variable belongs to the command lines or the build, or is set by a container engine for a service
    called blipmq."""
    if name in COMMAND_VARIABLES or name in BUILD_VARIABLES or re.fullmatch(_SERVICE_VARIABLE, name):
        return True
    return name == "BLIPMQ_PORT" and "://" in value


def _unknown_variable(name: str, settings: Sequence[str]) -> str:
    path = name[len("BLIPMQ_") :].lower().replace("__", ".")
    near = next((variable(k) for k in KEYS.values() if k.path.rpartition(".")[2] == path.rpartition(".")[2]), "")
    near = nearest(name, [*settings, *COMMAND_VARIABLES], cutoff=0.8) or near
    return f"there is no setting {path}" + (
        f"; did you mean {near}?" if near else "; unset it, or give it another name"
    )


def warnings(loaded: Loaded) -> list[str]:
    """Warnings about settings that are allowed but unwise, a sentence each."""
    found: list[str] = []
    limit, worst = memory_limit_bytes(), memory.worst_bytes(loaded.config)
    if limit is not None and worst > limit:
        found.append(
            f"this process may have {memory.size(limit)} of memory (its control group), and the settings can come to "
            f"{memory.size(worst)}: the system would end the broker there. Lower limits.memory_bytes, or raise the limit"
        )
    wal, quota = loaded.config.wal, loaded.config.qos1.session_log_bytes
    if wal.enabled and quota > wal.max_bytes - 4 * wal.segment_size_bytes:
        found.append(
            f"qos1.session_log_bytes = {quota} leaves a log of wal.max_bytes = {wal.max_bytes} no room: one subscription can "
            "still fill it. Set it to half of wal.max_bytes or less, and at least four segments below it"
        )
    origin, keys = loaded.origins.get("auth.api_keys", ""), loaded.config.auth.api_keys
    if not keys:
        return found
    if origin.startswith(loaded.source + ":") and os.name == "posix":
        with contextlib.suppress(OSError):
            if os.stat(loaded.source).st_mode & 0o004:
                found.append(
                    f"{loaded.source} holds keys (auth.api_keys), and every user of this machine can read it: chmod 640, or "
                    "keep the keys in auth.keys_file"
                )
    if any(len(key) < API_KEY_BYTES_MIN for key in keys):
        found.append(
            f"auth.api_keys holds a key of fewer than {API_KEY_BYTES_MIN} characters, which can be guessed: `blipmq keys add`"
        )
    return found


def reloaded(old: Config, new: Config) -> tuple[Config, list[Key], list[Key]]:
    """Apply a changed configuration to a running broker. Returns the configuration in effect, the keys that took
    effect, and the keys that need a restart. Raises `ConfigError` if the old and new values contradict each other."""
    changed = [k for path, k in KEYS.items() if value_of(old, path) != value_of(new, path)]
    reading = _Reading()
    reading.origins = dict.fromkeys(KEYS, "with the settings that need a restart")
    for path, k in KEYS.items():
        reading.values[path] = value_of(new if k.reload else old, path)
    applied = [k for k in changed if k.reload]
    return reading.finish("reload").config, applied, [k for k in changed if not k.reload]
