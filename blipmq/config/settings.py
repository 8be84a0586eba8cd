"""The settings of a broker, each declared once.

Invariant: every key below changes the broker's behaviour, or allows one value and gives the reason. The file reader,
the BLIPMQ_SECTION__KEY variables, `blipmq check` and docs/CONFIGURATION.md are all derived from these classes. A
`Config` never changes after it is created.
"""

from __future__ import annotations

from typing import Any

from blipmq.base.affinity import processor_numbers
from blipmq.base.bind_address import split_address
from blipmq.base.validation import API_KEY_BYTES_MAX, check_origin
from blipmq.config.schema import Key, Schema, Section, key, literal, section

KIB, MIB = 1 << 10, 1 << 20
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS


def check_api_key(text: str) -> None:
    size_bytes = len(text.encode("utf-8", "surrogateescape"))
    if not 1 <= size_bytes <= API_KEY_BYTES_MAX or not text.isprintable() or len(text.split()) != 1:
        raise ValueError(f"a key has 1 to {API_KEY_BYTES_MAX} printable bytes and no spaces")


class Server(Section):
    bind_addr: str = key(
        "127.0.0.1:7878",
        "Where to listen: ADDRESS:PORT, [IPv6]:PORT or NAME:PORT; port 0 takes a free one. "
        "Empty: no listener, for an embedded broker.",
        check=split_address,
    )
    tls_bind_addr: str = key(
        "",
        "Where to listen for TLS, beside or instead of `bind_addr`, with the certificate of `[tls]`. Empty: no TLS listener.",
        check=split_address,
    )
    ws_bind_addr: str = key(
        "",
        "Where to listen for WebSocket connections (ws://ADDRESS:PORT/blipmq), for browsers and behind web proxies. "
        "Empty: no such listener; `tls_bind_addr` accepts wss:// in any case.",
        check=split_address,
    )
    ws_origins: tuple[str, ...] = key(
        (),
        "Origins of the web pages that may connect over WebSocket, as a browser sends them: `https://panel.example`. `*`: any. "
        "Empty: if clients need keys, any page may connect and needs a key; without keys, none may. Programs that are no "
        "browsers send no origin and are not affected.",
        "origins",
        0,
        64,
        reload=True,
        check=check_origin,
    )
    max_connections: int = key(
        10_000,
        "Most connections at the same time. One more is refused.",
        "connections",
        1,
        1_000_000,
        core="max_connections",
    )
    max_message_size_bytes: int = key(
        1 * MIB,
        "Largest message. A longer frame is refused before it is read.",
        "bytes",
        64,
        16 * MIB,
    )

    keepalive_ms: int = key(
        60_000,
        "Close a connection within this time after its client has vanished, for example in a power cut. The broker uses TCP "
        "keep-alive, checks that the client acknowledges output, and lets clients promise to send something this often. A client "
        "that only reads slowly stays. 0: off; otherwise at least 2000. New connections use a changed value.",
        "ms",
        0,
        HOUR_MS,
        reload=True,
        core="keepalive_ms",
    )


class Tls(Section):
    cert_file: str = key(
        "",
        "The broker's certificate in PEM, then its intermediate certificates. The broker reads it again when it changes.",
        reload=True,
    )
    key_file: str = key(
        "",
        "The certificate's private key in PEM, not encrypted. Only the broker's user should be able to read it.",
        reload=True,
    )
    client_ca_file: str = key(
        "",
        "Certificates in PEM of the authorities that sign clients' certificates. Empty: clients need no certificate.",
        reload=True,
    )
    require_client_cert: bool = key(False, "Refuse clients without a certificate from `client_ca_file`.", reload=True)
    min_version: str = key(
        "1.2", "The oldest TLS version that the broker accepts.", choices=("1.2", "1.3"), reload=True
    )


class Mqtt(Section):
    bind_addr: str = key(
        "",
        "Where to listen for MQTT 3.1, 3.1.1 and 5: ADDRESS:PORT, [IPv6]:PORT or NAME:PORT. The usual port is 1883. "
        "Empty: no such listener.",
        check=split_address,
    )
    tls_bind_addr: str = key(
        "",
        "Where to listen for MQTT over TLS, with the certificate of `[tls]`. The usual port is 8883. Empty: no such listener.",
        check=split_address,
    )
    ws_bind_addr: str = key(
        "",
        "Where to listen for MQTT over WebSocket (ws://ADDRESS:PORT/mqtt), for browsers and behind web proxies. Empty: no such "
        "listener; `mqtt.tls_bind_addr` accepts wss:// in any case.",
        check=split_address,
    )
    max_keepalive_s: int = key(
        0,
        "Longest keep-alive of an MQTT 5 client. A client that asks for a longer one, or for none, is told to use this one. "
        "0: as the client asks.",
        "s",
        0,
        65_535,
        reload=True,
    )
    sys_interval_s: int = key(
        10,
        "If there is an MQTT listener: how often the broker publishes its state to the topics `$SYS/broker/…`. 0: never.",
        "s",
        0,
        86_400,
        reload=True,
    )


class Metrics(Section):
    bind_addr: str = key(
        "127.0.0.1:9090",
        "Where `blipmq start` serves /metrics, /livez, /readyz and /healthz over HTTP: ADDRESS:PORT, [IPv6]:PORT or "
        "NAME:PORT. Empty: not served. If the default address is in use, the broker warns and runs without it.",
        check=split_address,
    )
    tls: bool = key(
        False, "Serve them over HTTPS, with the certificate of `[tls]` and its rules for client certificates."
    )


class Auth(Section):
    api_keys: tuple[str, ...] = key(
        (),
        "Plain API keys; each may do everything. If there is one, every client needs a key. Only the broker should be able to "
        "read the file that holds them. Prefer `keys_file`, which holds no secrets.",
        "keys",
        0,
        1000,
        reload=True,
        secret=True,
        check=check_api_key,
    )
    keys_file: str = key(
        "",
        "File of API keys with names and rights, written by `blipmq keys`. It holds hashes only. If it is set, every client "
        "needs a key. A change of the file takes effect within a second.",
        reload=True,
    )
    allow_anonymous: bool = key(
        False,
        "If there are no keys: serve clients on an address that other machines can reach. Loopback needs no permission.",
    )

    @property
    def required(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_keys or self.keys_file)


class Queues(Section):
    topic_capacity: int = key(
        65_536,
        "Messages of one topic that are put into subscribers' queues together. They never wait for more messages. A small "
        "number costs more processor time.",
        "messages",
        1,
        1_000_000,
        reload=True,
    )
    subscriber_capacity: int = key(
        262_144,
        "Most messages in the queue of one subscriber.",
        "messages",
        1,
        100_000_000,
        reload=True,
        core="subscriber_messages",
    )
    subscriber_bytes: int = key(
        64 * MIB,
        "Most encoded bytes in the queue of one subscriber.",
        "bytes",
        4 * KIB,
        1 << 40,
        reload=True,
        core="subscriber_bytes",
    )
    overflow_policy: str = key(
        "drop_oldest",
        "If a queue is full: drop its oldest message, drop the new message, or hold the publisher back.",
        choices=("drop_oldest", "drop_new", "block"),
        reload=True,
        core="overflow_policy",
    )


class Wal(Section):
    enabled: bool = key(
        True,
        "Keep a write-ahead log (WAL) on disk. QoS 1 needs it. An embedded broker keeps one only if `wal.directory` is set.",
    )
    directory: str = key(
        "data/wal",
        "Directory of the WAL; the broker creates it. Not on a RAM disk, and not shared with another broker. Without a WAL, a "
        "file in it keeps message ids from going back.",
    )
    segment_size_bytes: int = key(
        32 * MIB,
        "Size of one file of the WAL, allocated in advance. The WAL shrinks by whole files.",
        "bytes",
        64 * KIB,
        512 * MIB,
        wal="segment_bytes",
    )
    flush_interval_ms: int = key(
        0,
        "How long a QoS 1 publish may wait for others, so that they share one sync. 0: no wait; publishes that arrive during a "
        "sync share the next one.",
        "ms",
        0,
        1000,
        wal="flush_interval_ms",
    )
    max_bytes: int = key(
        1024 * MIB,
        "Size limit of the whole WAL. When it is full, QoS 1 publishes are refused (503) until subscribers have caught up.",
        "bytes",
        256 * KIB,
        1 << 44,
        wal="max_bytes",
    )
    reserve_bytes: int = key(
        64 * MIB,
        "Free space on the file system that publishes do not use. It is kept for acknowledgements and other programs.",
        "bytes",
        0,
        1 << 44,
        wal="reserve_bytes",
    )
    block_bytes: int = key(
        0,
        "Pad each write to a multiple of this, so that no flash page is written twice: 4096 for SD cards. 0: pad to 8 bytes.",
        "bytes",
        0,
        64 * KIB,
        wal="block_bytes",
    )


class Qos1(Section):
    ack_timeout_ms: int = key(
        30_000,
        "Send a message again if it is not acknowledged within this time. The time doubles with each try, up to 32 times.",
        "ms",
        100,
        HOUR_MS,
        reload=True,
        core="ack_timeout_ms",
    )
    max_in_flight: int = key(
        256,
        "Most messages sent to one QoS 1 subscriber and not acknowledged yet.",
        "messages",
        1,
        65_536,
        reload=True,
        core="max_in_flight",
    )
    max_deliveries: int = key(
        16,
        "After this many deliveries without an acknowledgement a message goes to `$dlq/<topic>`.",
        "deliveries",
        1,
        10_000,
        reload=True,
        core="max_deliveries",
    )
    session_log_bytes: int = key(
        0,
        "Most bytes of the WAL that one durable subscription or queue group may keep from being deleted, counted from its oldest "
        "message to the end of the WAL. `session_overflow` applies to older messages, so one forgotten subscriber "
        "cannot fill the WAL. Set at most half of `wal.max_bytes`. 0: no limit.",
        "bytes",
        0,
        1 << 44,
        reload=True,
        core="session_log_bytes",
    )
    session_overflow: str = key(
        "dead_letter",
        "Messages over `session_log_bytes` become dead letters (`$dlq/<topic>`, reason `session_log_bytes`) or are dropped. If "
        "the WAL has no room for the dead letter, the message is dropped.",
        choices=("dead_letter", "drop"),
        reload=True,
        core="session_overflow",
    )
    session_expiry_ms: int = key(
        0,
        "End a durable subscription or queue group after it has had no connected client for this long, and discard its stored "
        "messages. Time while the broker was off counts as far as it is known. 0: never.",
        "ms",
        0,
        365 * DAY_MS,
        reload=True,
        core="session_expiry_ms",
    )


class Delivery(Section):
    max_batch: int = key(
        65_536,
        "Most messages sent to one subscriber before the next one is served.",
        "messages",
        1,
        1_000_000,
        reload=True,
    )
    max_batch_bytes: int = key(
        1 * MIB,
        "Most bytes sent to one subscriber before the next one is served.",
        "bytes",
        4 * KIB,
        64 * MIB,
        reload=True,
        core="max_batch_bytes",
    )
    flush_interval_ms: int = key(
        0,
        "How long a delivery may wait for others. 0: send at once. A few milliseconds save processor time.",
        "ms",
        0,
        1000,
        reload=True,
    )
    fanout_shards: int = key(
        1,
        "I/O threads. Only one is supported; 0 and 1 are equivalent. docs/PERFORMANCE.md shows why.",
        "threads",
        0,
        1,
        reason=": only one I/O thread is supported; more would save no processor time per message "
        "(docs/PERFORMANCE.md). To use more cores, run a second broker for other topics",
    )
    default_ttl_ms: int = key(
        0,
        "Time to live of messages without their own. 0: they never expire.",
        "ms",
        0,
        365 * DAY_MS,
        reload=True,
        core="default_ttl_ms",
    )


class TimerConfig(Section):
    resolution_ms: int = key(
        10, "Precision of the time to live: the tick of the timer wheel.", "ms", 1, 1000, core="tick_ms"
    )
    max_timeout_ms: int = key(
        7 * DAY_MS,
        "Longest time to live. A longer one is reduced to this.",
        "ms",
        1000,
        365 * DAY_MS,
        reload=True,
        core="max_ttl_ms",
    )


class PoolConfig(Section):
    buffer_small_count: int = key(1024, "Free blocks of up to 1 KiB kept for reuse.", "blocks", 0, 1_000_000)
    buffer_medium_count: int = key(256, "Free blocks of up to 16 KiB kept for reuse.", "blocks", 0, 100_000)
    buffer_large_count: int = key(
        32, "Free larger blocks (shared buffers of messages) kept for reuse.", "blocks", 0, 10_000
    )
    message_batch_count: int = key(
        4096,
        "Queue entries, each for a batch of messages, that `warm_up_pools` allocates at start.",
        "entries",
        0,
        1_000_000,
    )


class BatchConfig(Section):
    ttl_max_batch_size: int = key(
        65_536,
        "Most expired entries removed before other work continues.",
        "entries",
        1,
        10_000_000,
        reload=True,
        core="expire_batch",
    )
    fanout_max_batch_size: int = key(
        1024,
        "Most subscribers served before the broker reads input again.",
        "subscribers",
        1,
        1_000_000,
        reload=True,
        core="flush_subscribers",
    )
    channel_capacity: int = key(
        4096,
        "Size of the two rings between Python and the core, in records of 256 bytes, rounded up to a power of two. If a ring is "
        "full, the sender waits.",
        "records",
        256,
        1_000_000,
    )


class NetworkOptimizations(Section):
    tcp_nodelay: bool = key(
        True, "Send small messages at once instead of waiting to fill a packet.", core="tcp_nodelay"
    )
    send_buffer_size: int = key(
        0, "SO_SNDBUF of each connection. 0: the system decides.", "bytes", 0, 64 * MIB, core="send_buffer_bytes"
    )
    recv_buffer_size: int = key(
        0, "SO_RCVBUF of each connection. 0: the system decides.", "bytes", 0, 64 * MIB, core="recv_buffer_bytes"
    )
    cpu_affinity: str = key(
        "",
        "Processors to use: `auto`, or numbers such as `0,2`, the first for the I/O thread and the others for the rest. "
        "Empty: the system decides.",
        check=processor_numbers,
    )


class Performance(Section):
    enable_timer_wheel: bool = key(
        True,
        "Drop messages when they expire. false: drop them when they would be sent, which saves timers but keeps expired "
        "messages in the queue.",
    )
    enable_memory_pools: bool = key(
        True, "Keep free memory blocks for reuse. false: return each block to the system at once."
    )
    enable_batch_processing: bool = key(
        True, "Send the waiting messages of a subscriber together. false: one message a system call, for comparison."
    )
    warm_up_pools: bool = key(False, "Allocate memory pools at start instead of on first use.")
    timer_config: TimerConfig = section(TimerConfig)
    pool_config: PoolConfig = section(PoolConfig)
    batch_config: BatchConfig = section(BatchConfig)
    network_optimizations: NetworkOptimizations = section(NetworkOptimizations)


class Limits(Section):
    memory_bytes: int = key(
        512 * MIB,
        "Memory limit of the core. At the limit, queues of slow subscribers shrink by `queues.overflow_policy`, and new "
        "subscriptions are refused. 0: no limit.",
        "bytes",
        0,
        1 << 40,
        reload=True,
        core="memory_bytes",
    )
    max_subscriptions_per_connection: int = key(
        1024, "Most filters that one connection may subscribe to.", "filters", 1, 100_000, reload=True
    )
    max_topic_levels: int = key(
        64,
        "Most levels of a topic or filter, counted at dots or at slashes, whichever are more.",
        "levels",
        1,
        257,
        core="max_topic_levels",
    )
    hello_timeout_ms: int = key(
        5000,
        "If keys are required: time until a new connection must have sent a valid HELLO, the TLS handshake included. Without "
        "keys: time for the TLS handshake. Slow input does not extend it.",
        "ms",
        100,
        60_000,
        reload=True,
        core="hello_timeout_ms",
    )
    max_pending: int = key(
        1024,
        "Most connections that are not admitted yet: those in a TLS handshake and, if keys are required, those that have not "
        "sent a valid HELLO. At the limit, a new connection closes the longest-idle one.",
        "connections",
        1,
        100_000,
        core="max_pending",
    )
    max_pending_per_address: int = key(
        64,
        "The same limit for one IPv4 address or one IPv6 /64; one more is closed. It does not apply to 127.0.0.0/8 and ::1.",
        "connections",
        1,
        100_000,
        reload=True,
        core="max_pending_per_address",
    )
    accept_rate: int = key(
        1000,
        "Connections accepted per second; others wait in the system's backlog. 0: no limit.",
        "connections",
        0,
        1_000_000,
        reload=True,
        core="accept_rate",
    )
    accept_burst: int = key(
        1000,
        "Connections accepted at once after a quiet time.",
        "connections",
        1,
        1_000_000,
        reload=True,
        core="accept_burst",
    )
    max_sessions: int = key(
        10_000,
        "Most QoS 1 subscriptions and queue groups, those of absent durable clients included.",
        "subscriptions",
        1,
        1_000_000,
        reload=True,
        core="max_sessions",
    )
    max_connections_per_key: int = key(
        0,
        "If keys are required: most connections of one key. One more is refused (429), unless it replaces one with the same "
        "client_id. 0: three quarters of `server.max_connections`.",
        "connections",
        0,
        1_000_000,
        reload=True,
    )
    max_sessions_per_key: int = key(
        0,
        "If keys are required: most QoS 1 subscriptions of one key. One more is refused (429). All keys of `auth.api_keys` count "
        "as one. 0: three quarters of `max_sessions`.",
        "subscriptions",
        0,
        1_000_000,
        reload=True,
    )
    route_cache_entries: int = key(
        4096,
        "Topics whose subscribers are cached. Each topic beyond this costs a search.",
        "topics",
        16,
        1_000_000,
        core="route_cache_entries",
    )
    shutdown_timeout_ms: int = key(
        5000,
        "At shutdown: time to send queued messages before connections are closed.",
        "ms",
        0,
        600_000,
        reload=True,
    )


class Logging(Section):
    level: str = key(
        "info", "The lowest level that is logged.", choices=("debug", "info", "warning", "error"), reload=True
    )
    format: str = key(
        "text", "Format of a log line: `event key=value`, or JSON.", choices=("text", "json"), reload=True
    )


class Config(Section):
    """All settings of one broker. `Config()` has the defaults; `reader` creates one from a file or a dict."""

    server: Server = section(Server)
    tls: Tls = section(Tls)
    mqtt: Mqtt = section(Mqtt)
    metrics: Metrics = section(Metrics)
    auth: Auth = section(Auth)
    queues: Queues = section(Queues)
    wal: Wal = section(Wal)
    delivery: Delivery = section(Delivery)
    qos1: Qos1 = section(Qos1)
    performance: Performance = section(Performance)
    limits: Limits = section(Limits)
    logging: Logging = section(Logging)

    @property
    def connections_per_key(self) -> int:
        """The maximum number of connections of one key."""
        return self.limits.max_connections_per_key or most_of(self.server.max_connections)

    @property
    def sessions_per_key(self) -> int:
        """The maximum number of QoS 1 subscriptions and queue groups of one key."""
        return self.limits.max_sessions_per_key or most_of(self.limits.max_sessions)


def most_of(limit: int) -> int:
    """Three quarters of a limit, so that others find room; at least one."""
    return max(1, limit * 3 // 4)


SCHEMA = Schema(Config)
KEYS: dict[str, Key] = SCHEMA.keys


def variable(k: Key) -> str:
    """The environment variable that sets `k`."""
    return "BLIPMQ_" + k.path.upper().replace(".", "__")


def value_of(config: Config, path: str) -> Any:
    """The value of `section.key`."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def shown(config: Config, path: str) -> str:
    """The value of `section.key` as text; for a secret, only its length."""
    value = value_of(config, path)
    return f"({len(value)}, not shown)" if KEYS[path].secret and value else literal(value)


def reference() -> str:
    """The whole text of docs/CONFIGURATION.md."""
    lines = [_REFERENCE_HEAD]
    for head, keys in SCHEMA.groups():
        lines += [
            "",
            f"## `[{head}]`",
            "",
            "| key | default | allowed | reload | meaning |",
            "|---|---|---|---|---|",
        ]
        for k in keys:
            name, allowed = k.path.rpartition(".")[2], k.expected.replace('"', "`")
            lines.append(
                f"| `{name}` | `{literal(k.default)}` | {allowed} | {'yes' if k.reload else 'no'} | {k.help} |"
            )
    return "\n".join([*lines, ""])


_REFERENCE_HEAD = """\
# Configuration

<!-- Made from blipmq/config/settings.py: change it there, then `make settings`. -->

All settings of the broker. See what is in effect, where each value comes from, and how much memory it may need:

```sh
blipmq check
```

The broker reads the first of these that is given:

1. the file after `blipmq start --config`
2. the file that `$BLIPMQ_CONFIG` names
3. `./blipmq.toml`, if there is one

Without any of them it runs on the defaults below.

The first log line says which. A wrong file is refused with exit status 78: an unknown key, a value of the wrong type or out of
range is an error that names the line. All errors of a file are listed at once.

## Environment variables

A variable overrides the file. Its name is `BLIPMQ_`, the section, two underscores, the key, in capitals:

| setting | variable |
|---|---|
| `server.bind_addr` | `BLIPMQ_SERVER__BIND_ADDR=127.0.0.1:7979` |
| `performance.timer_config.resolution_ms` | `BLIPMQ_PERFORMANCE__TIMER_CONFIG__RESOLUTION_MS=5` |
| a list | `BLIPMQ_AUTH__API_KEYS=first,second` |
| a value from a file, one item a line | `BLIPMQ_AUTH__API_KEYS_FILE=/run/secrets/blipmq_keys` |

Do not put secrets into the environment: use the `_FILE` form. No command shows a secret, and no error does.

A variable that begins with `BLIPMQ_` and names no setting is an error. Exceptions are the variables of the command lines
(`BLIPMQ_ADDR`, `BLIPMQ_API_KEY`, `BLIPMQ_TLS_CA` and so on), of the build, and those that Kubernetes sets for a service.

## From 1.0.0

`blipmq check --convert OLD` reads a configuration of BlipMQ 1.0.0 and prints one for this version. `--output FILE` writes it to a
new file and never overwrites one. The result always passes `blipmq check`. Comments of kept lines stay. Standard error says for
each old line: kept, renamed, replaced (with the reason), no effect, or left out. Check three things:

| setting | change | reason |
|---|---|---|
| `wal.directory` | the WAL gets a new directory | files of 1.0.0 have the same names and cannot be read |
| `auth.allow_anonymous` | `true` is added if the old broker served everyone | it goes on serving everyone; keys are safer |
| `auth.api_keys` | clients of 1.0.0 are refused if there are keys | their protocol cannot send a key |

## From mosquitto

`blipmq check --convert mosquitto.conf` converts the common settings of mosquitto 2.0 in the same way: listeners, certificates,
limits, log level. Three parts need work by hand, and standard error says so for each line:

| setting | here |
|---|---|
| `password_file` | passwords cannot be converted. Create a key for each user in `auth.keys_file`: `blipmq keys add USER` |
| `acl_file` | a key has rights: `blipmq keys add USER --allow pub:TOPIC --allow sub:FILTER` |
| `connection` and the lines below it | bridges are not converted |

A broker that asked for a user asks for a key. It serves everyone only if every listener of mosquitto did.

## Reloading

On SIGHUP the broker reads the file again. Keys marked *reload* take effect at once. Changes to other keys are logged and take
effect at the next start. A file with an error changes nothing."""

if __name__ == "__main__":
    print(reference(), end="")
