"""Reads a mosquitto.conf: which of its settings have another name here, and which have no effect here.

Invariant: each line with a setting gets one fate, in the order of the file. The broker that results is not more open than the
one before: where mosquitto asked for a user or a certificate, clients need a key here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from blipmq.config.convert import Fate, fate_of
from blipmq.config.settings import KEYS
from blipmq.errors import ConfigError

KEYS_FILE = "data/keys"
DEFAULT_ADDR = "127.0.0.1:1883"
_ANY = "0.0.0.0"
_USERS = "its passwords cannot be converted. For each user: `blipmq keys add USER`; the key is the password, USER the user name"
_RIGHTS = "rights belong to keys: `blipmq keys add USER --allow pub:TOPIC --allow sub:FILTER`"
_BRIDGE = "bridges are not converted"
_MANAGER = "the service manager does this"
_DISK = "a QoS 1 message is on disk before it is confirmed"
_NOT_YET = "this version does not serve it"
_ALL_LISTENERS = "settings hold for all listeners"
_OTHER_LISTENER = "left out: its listener is left out"
_NO_LIMIT = "0 was no limit"


class _Rule(NamedTuple):
    """`key`: its name here, "" if none; `why`: the reason for the message; `unlimited`: 0 meant no limit, and here it is the
    highest value."""

    key: str = ""
    why: str = ""
    unlimited: bool = False


_RULES = {
    "max_inflight_messages": _Rule("qos1.max_in_flight", unlimited=True),
    "max_queued_messages": _Rule(
        "queues.subscriber_capacity", "for connected clients; absent ones are limited by qos1.session_log_bytes", True
    ),
    "max_queued_bytes": _Rule("queues.subscriber_bytes", "for connected clients", True),
    "message_size_limit": _Rule("server.max_message_size_bytes", unlimited=True),
    "max_packet_size": _Rule("server.max_message_size_bytes", unlimited=True),
    "memory_limit": _Rule("limits.memory_bytes"),
    "max_connections": _Rule("server.max_connections"),
    "max_keepalive": _Rule("mqtt.max_keepalive_s"),
    "set_tcp_nodelay": _Rule("performance.network_optimizations.tcp_nodelay"),
    "persistence": _Rule(why=_DISK),
    "persistence_location": _Rule(why="wal.directory is the place of the stored messages; mosquitto.db cannot be read"),
    "persistence_file": _Rule(why="mosquitto.db cannot be read"),
    "autosave_interval": _Rule(why=_DISK),
    "autosave_on_changes": _Rule(why=_DISK),
    "user": _Rule(why=_MANAGER),
    "pid_file": _Rule(why=_MANAGER),
    "log_dest": _Rule(why="the log goes to standard error; the service manager can store it in a file"),
    "log_facility": _Rule(why="the log goes to standard error"),
    "log_timestamp": _Rule(why="each line has its time"),
    "log_timestamp_format": _Rule(why="the time has one format"),
    "connection_messages": _Rule(why="connections with a client identifier are logged at level info"),
    "store_clean_interval": _Rule(why="expired messages need no cleaning"),
    "auto_id_prefix": _Rule(why="the prefix is fixed"),
    "websockets_log_level": _Rule(why="logging.level holds for all parts"),
    "websockets_headers_size": _Rule(why="the limit is 8 KiB"),
}
# Settings that this version cannot follow, with the reason.
_LEFT_OUT = {
    "acl_file": _RIGHTS,
    "use_identity_as_username": "give the certificate to a key: `blipmq keys add NAME --certificate CN`",
    "use_subject_as_username": "give the certificate to a key by its common name: `blipmq keys add NAME --certificate CN`",
    "use_username_as_clientid": "clients of different keys may have the same client identifier",
    "clientid_prefixes": "rights belong to keys",
    "per_listener_settings": _ALL_LISTENERS,
    "bind_interface": "set an address in mqtt.bind_addr",
    "socket_domain": "set an address in mqtt.bind_addr",
    "include_dir": "convert the files in it one by one",
    "crlfile": "revocation lists are not supported; remove the certificate from its key",
    "capath": "put the certificates into one file: tls.client_ca_file",
    "ciphers": "the ciphers are fixed",
    "ciphers_tls1.3": "the ciphers are fixed",
    "dhparamfile": "only elliptic curves are used",
    "psk_hint": "keys replace pre-shared keys of TLS",
    "psk_file": "keys replace pre-shared keys of TLS",
    "mount_point": "a key has rights on topics instead",
    "http_dir": "no web pages are served",
    "allow_zero_length_clientid": "a client without a client identifier always gets one",
    "check_retain_source": _NOT_YET,
    "retain_available": _NOT_YET,
    "persistent_client_expiration": _NOT_YET,
    "queue_qos0_messages": _NOT_YET,
    "upgrade_outgoing_qos": _NOT_YET,
    "max_inflight_bytes": "the number of messages in flight is limited: qos1.max_in_flight",
    "max_topic_alias": _NOT_YET,
    "max_qos": _NOT_YET,
    "maximum_qos": _NOT_YET,
    "sys_interval": _NOT_YET,
    "tls_engine": "keys are read from files",
    "tls_keyform": "keys are read from files",
    "tls_engine_kpass_sha1": "keys are read from files",
}
_PLUGINS = ("auth_plugin", "plugin", "global_plugin")
_LEVELS = {
    "error": "error",
    "warning": "warning",
    "notice": "info",
    "information": "info",
    "all": "debug",
    "debug": "debug",
}
_LEVEL_ORDER = ("debug", "info", "warning", "error")
_OF_LISTENER = {
    "listener", "port", "bind_address", "protocol", "certfile", "keyfile", "cafile", "require_certificate", "tls_version",
}  # fmt: skip
_OF_BRIDGE = re.compile(
    r"connection|address(es)?|topic|(remote|local|bridge)_\w+|cleansession|clientid|notification\w*|start_type|threshold"
    r"|(idle|restart)_timeout|keepalive_interval|round_robin|try_private|username|password"
)
_SECRET = re.compile(r".*(password|psk|kpass).*")
KNOWN = {*_RULES, *_LEFT_OUT, *_PLUGINS, *_OF_LISTENER, "allow_anonymous", "password_file", "log_type"}


class _Line(NamedTuple):
    number: int
    word: str
    value: str
    listener: int  # index of the listener that it belongs to; 0 is that of `port`
    in_bridge: bool

    @property
    def old(self) -> str:
        hidden = _SECRET.fullmatch(self.word) and self.word != "password_file"
        return f"{self.word} (not shown)" if hidden else f"{self.word} {self.value}".rstrip()


class _Listener(NamedTuple):
    """A listener of the old broker. `problem`: why it is left out; "" if it is not."""

    key: str
    address: str
    problem: str


def is_mosquitto(text: str) -> bool:
    """Whether this looks like a mosquitto.conf: words and values, and at least one known word."""
    lines = [(line.word, line.value) for line in _lines(text)]
    return any(word in KNOWN or _OF_BRIDGE.fullmatch(word) for word, _ in lines) and all(
        re.fullmatch(r"[a-z][a-z0-9_.]*", word) and not value.startswith("=") for word, value in lines
    )


def read_mosquitto(text: str, name: str) -> list[Fate]:
    """Return the fate of each setting of the file. Raises `ConfigError` if it has none."""
    lines = list(_lines(text))
    if not lines:
        raise ConfigError(f"{name}: the file has no settings, so there is nothing to convert.")
    return _Reading(lines).fates()


def _lines(text: str) -> Iterator[_Line]:
    listener, in_bridge = 0, False
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        word, _, value = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        if word == "listener":
            listener, in_bridge = listener + 1, False
        in_bridge = in_bridge or word == "connection"
        yield _Line(number, word, value.strip(), listener, in_bridge)


class _Reading:
    """One file. What a line becomes may depend on the others."""

    def __init__(self, lines: Sequence[_Line]) -> None:
        self._lines = [line for line in lines if not line.in_bridge]
        self._all = lines
        self._listeners = self._find_listeners()
        self._keys_line = next((line.number for line in self._lines if line.word in ("password_file", *_PLUGINS)), 0)
        self._is_anonymous = self._serves_anyone()
        self._needs_keys = bool(self._keys_line) or (bool(self._listeners) and not self._is_anonymous)
        self._level = self._lowest_level()
        self._seen: set[str] = set()

    def fates(self) -> list[Fate]:
        found = [self._fate(line) for line in self._all]
        if not self._listeners:
            found.append(Fate(0, "", "added: mosquitto listens there by default", "mqtt.bind_addr", DEFAULT_ADDR))
        if self._needs_keys and not any(fate.key == "auth.keys_file" for fate in found):
            why = "mosquitto refused clients without a user. Create keys: `blipmq keys add USER`"
            found.append(Fate(0, "", f"added: {why}", "auth.keys_file", KEYS_FILE))
        return found

    # -- facts of the whole file

    def _values(self, word: str) -> list[str]:
        return [line.value for line in self._lines if line.word == word]

    def _serves_anyone(self) -> bool:
        """Whether every listener served clients without a user."""
        given = self._values("allow_anonymous")
        each = "true" in self._values("per_listener_settings")
        return bool(given) and set(given) == {"true"} and (not each or len(given) >= len(self._listeners))

    def _lowest_level(self) -> str:
        levels = {_LEVELS[value] for value in self._values("log_type") if value in _LEVELS}
        return next((level for level in _LEVEL_ORDER if level in levels), "")

    def _find_listeners(self) -> dict[int, _Listener]:
        """The listeners of the file. One without TLS and one with it can be kept."""
        found: dict[int, _Listener] = {}
        for number in dict.fromkeys(line.listener for line in self._lines if line.word in ("listener", "port")):
            own = {line.word: line.value for line in self._lines if line.listener == number}
            port, _, host = (own["listener"] if number else f"{own['port']} {own.get('bind_address', '')}").partition(
                " "
            )
            key = "mqtt.tls_bind_addr" if "certfile" in own or "psk_hint" in own else "mqtt.bind_addr"
            host = host.strip() or _ANY
            problem = ""
            if own.get("protocol", "mqtt") != "mqtt":
                problem = "MQTT over WebSocket is not served yet"
            elif host.startswith("/") or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
                problem = "only TCP ports are served"
            elif re.search(r"\s", host):
                problem = f"{host!r} is not an address"
            elif any(listener.key == key and not listener.problem for listener in found.values()):
                problem = f"{key} is one address; 0.0.0.0 and [::] stand for all of this machine"
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            found[number] = _Listener(key, address, problem)
        return found

    # -- one line

    def _fate(self, line: _Line) -> Fate:
        number, old, word = line.number, line.old, line.word
        if line.in_bridge:
            known = word in KNOWN or _OF_BRIDGE.fullmatch(word)
            return Fate(
                number, old, f"left out: {_BRIDGE}" if known else "left out: it is not a setting of mosquitto 2.0"
            )
        if word in _OF_LISTENER:
            return self._listener_fate(line)
        if word in ("allow_anonymous", "password_file", *_PLUGINS):
            return self._access_fate(line)
        if word.startswith(("auth_opt_", "plugin_opt_")):
            return Fate(number, old, "left out: plugins are not converted")
        if word == "log_type":
            return self._log_fate(line)
        if word in _LEFT_OUT:
            return Fate(number, old, f"left out: {_LEFT_OUT[word]}")
        rule = _RULES.get(word)
        if rule is None:
            return Fate(number, old, "left out: it is not a setting of mosquitto 2.0")
        if not rule.key:
            return Fate(number, old, f"no effect: {rule.why}")
        return _ruled(line, rule)

    def _listener_fate(self, line: _Line) -> Fate:
        number, old, word = line.number, line.old, line.word
        listener = self._listeners.get(line.listener)
        if listener is None:
            return Fate(number, old, "left out: it belongs to no listener")
        if word in ("listener", "port"):
            if listener.problem:
                return Fate(number, old, f"left out: {listener.problem}")
            return fate_of(number, old, listener.key, line.value, listener.address, renamed=True)
        if listener.problem:
            return Fate(number, old, _OTHER_LISTENER)
        if word in ("bind_address", "protocol"):
            return Fate(number, old, f"kept: it is part of {listener.key}")
        if listener.key != "mqtt.tls_bind_addr":
            return Fate(number, old, "left out: its listener has no certificate")
        return self._tls_fate(line)

    def _tls_fate(self, line: _Line) -> Fate:
        number, old, word = line.number, line.old, line.word
        own = {other.word: other.value for other in self._lines if other.listener == line.listener}
        required = own.get("require_certificate") == "true"
        if word == "cafile" and not required:
            return Fate(number, old, "left out: clients need no certificate (require_certificate)")
        if word == "require_certificate":
            return fate_of(number, old, "tls.require_client_cert", line.value, required, renamed=True)
        if word == "tls_version":
            version = {"tlsv1.3": "1.3", "tlsv1.2": "1.2"}.get(line.value, "1.2")
            return fate_of(number, old, "tls.min_version", line.value, version, renamed=True)
        key = {"certfile": "tls.cert_file", "keyfile": "tls.key_file", "cafile": "tls.client_ca_file"}[word]
        return fate_of(number, old, key, line.value, line.value, renamed=True)

    def _access_fate(self, line: _Line) -> Fate:
        number, old = line.number, line.old
        if number == self._keys_line:
            why = (
                _USERS
                if line.word == "password_file"
                else "plugins are not converted. Create keys: `blipmq keys add USER`"
            )
            return Fate(number, old, f"replaced by auth.keys_file: {why}", "auth.keys_file", KEYS_FILE)
        if line.word != "allow_anonymous":
            return Fate(number, old, "left out: keys replace it (auth.keys_file)")
        if self._needs_keys and line.value == "true":
            return Fate(number, old, "left out: with keys every client needs one (auth.keys_file)")
        if line.value != "true":
            return Fate(number, old, "kept: every client needs a key (auth.keys_file)" if self._needs_keys else
                        "left out: without a listener only this machine can connect")  # fmt: skip
        return fate_of(number, old, "auth.allow_anonymous", line.value, True, renamed=True)

    def _log_fate(self, line: _Line) -> Fate:
        if "log_type" in self._seen or not self._level:
            said = (
                "kept: logging.level has the lowest of them" if self._level else "no effect: logging.level is the rule"
            )
            return Fate(line.number, line.old, said)
        self._seen.add("log_type")
        return fate_of(line.number, line.old, "logging.level", line.value, self._level, renamed=True)


def _ruled(line: _Line, rule: _Rule) -> Fate:
    wanted = KEYS[rule.key]
    value: Any = _CONVERT[wanted.type](line.value)
    why = rule.why
    if value == 0 and rule.unlimited:
        value, why = wanted.high, "; ".join(filter(None, (_NO_LIMIT, rule.why)))
    if line.word == "max_connections" and value == -1:
        return Fate(line.number, line.old, "left out: -1 was no limit; the default of server.max_connections holds")
    return fate_of(line.number, line.old, rule.key, line.value, value, renamed=True, why=why)


def _whole(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _truth(text: str) -> bool | str:
    return {"true": True, "1": True, "false": False, "0": False}.get(text, text)


_CONVERT: dict[str, Callable[[str], Any]] = {"int": _whole, "bool": _truth}
