"""The settings of a broker: what there is, each declared once.

Invariant: every key below changes what the broker does, or allows one value and says why. The file reader, the
BLIPMQ_SECTION__KEY variables, `blipmq check` and docs/CONFIGURATION.md are all derived from these classes; a `Config`
never changes after it is made.
"""

from __future__ import annotations

from typing import Any

from blipmq.base.affinity import processor_numbers
from blipmq.base.bind_address import split_address
from blipmq.base.validation import API_KEY_BYTES_MAX
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
        "Where to listen for TLS, beside or instead of `bind_addr`; the certificate is that of `[tls]`. Empty: nowhere.",
        check=split_address,
    )
    max_connections: int = key(
        10_000, "Connections open at once; one more is refused.", "connections", 1, 1_000_000, core="max_connections"
    )
    max_message_size_bytes: int = key(
        1 * MIB,
        "Largest message taken; a longer frame is refused from its length alone.",
        "bytes",
        64,
        16 * MIB,
    )

    keepalive_ms: int = key(
        60_000,
        "Close within this time a connection whose client is gone without a word, as after a power cut. The system probes quiet "
        "connections, the broker checks that output is acknowledged, and clients that can promise to send something this often. "
        "A client that only reads slowly stays. At least 2000; 0: off. New connections use a new value.",
        "ms",
        0,
        HOUR_MS,
        reload=True,
        core="keepalive_ms",
    )


class Tls(Section):
    cert_file: str = key(
        "",
        "The broker's certificate in PEM, followed by those of its issuers but the root's. It is read again when it changes.",
        reload=True,
    )
    key_file: str = key(
        "",
        "The certificate's private key in PEM, not encrypted; no one but the broker's user should be able to read it.",
        reload=True,
    )
    client_ca_file: str = key(
        "",
        "Certificates, in PEM, of the authorities that clients' certificates are checked against. Empty: clients are not "
        "asked for one.",
        reload=True,
    )
    require_client_cert: bool = key(
        False, "Serve no one whose certificate `client_ca_file` does not vouch for.", reload=True
    )
    min_version: str = key("1.2", "The oldest version of TLS spoken.", choices=("1.2", "1.3"), reload=True)


class Metrics(Section):
    bind_addr: str = key(
        "127.0.0.1:9090",
        "Where `blipmq start` serves /metrics, /livez, /readyz and /healthz over HTTP: ADDRESS:PORT, [IPv6]:PORT or "
        "NAME:PORT. Empty: nowhere. If it was left at the default and is taken, the broker warns and runs without.",
        check=split_address,
    )
    tls: bool = key(False, "Serve them over HTTPS, with the certificate of `[tls]`, and with its rules for clients'.")


class Auth(Section):
    api_keys: tuple[str, ...] = key(
        (),
        "Keys that clients may come in with, as they are; each may do everything. As soon as there is one, nobody comes in "
        "without. A file that holds them should be readable by the broker alone; `keys_file` needs no secret to be kept.",
        "keys",
        0,
        1000,
        reload=True,
        secret=True,
        check=check_api_key,
    )
    keys_file: str = key(
        "",
        "File of keys with names and rights, made and changed by `blipmq keys`. It holds hashes only. Once it is set, nobody "
        "comes in without a key; a change of the file is in effect within a second.",
        reload=True,
    )
    allow_anonymous: bool = key(
        False,
        "Serve clients without a key on an address that others can reach, if there are no keys. Loopback needs no permission.",
    )

    @property
    def required(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_keys or self.keys_file)


class Queues(Section):
    topic_capacity: int = key(
        65_536,
        "Messages of one topic gathered before they are handed to its subscribers' queues. They never wait for more to come; "
        "a small number costs work for every subscriber more often.",
        "messages",
        1,
        1_000_000,
        reload=True,
    )
    subscriber_capacity: int = key(
        262_144,
        "Messages that may wait for one subscriber.",
        "messages",
        1,
        100_000_000,
        reload=True,
        core="subscriber_messages",
    )
    subscriber_bytes: int = key(
        64 * MIB,
        "Encoded bytes that may wait for one subscriber.",
        "bytes",
        4 * KIB,
        1 << 40,
        reload=True,
        core="subscriber_bytes",
    )
    overflow_policy: str = key(
        "drop_oldest",
        "What a full queue does: drop its oldest message, drop the new one, or hold the publisher back.",
        choices=("drop_oldest", "drop_new", "block"),
        reload=True,
        core="overflow_policy",
    )


class Wal(Section):
    enabled: bool = key(
        True,
        "Keep a log on disk, which QoS 1 needs. An embedded broker keeps one only if it is given `wal.directory`.",
    )
    directory: str = key(
        "data/wal",
        "Where the log lies, made if it is not there. Not on a RAM disk, and no other broker's. Without a log a file in it keeps "
        "message ids from going back.",
    )
    segment_size_bytes: int = key(
        32 * MIB,
        "Size of one file of the log, allocated ahead. The log shrinks by whole files.",
        "bytes",
        64 * KIB,
        512 * MIB,
        wal="segment_bytes",
    )
    flush_interval_ms: int = key(
        0,
        "How long a QoS 1 publish may wait for company before it is written and synced. 0: not at all; what comes during a "
        "sync shares the next one.",
        "ms",
        0,
        1000,
        wal="flush_interval_ms",
    )
    max_bytes: int = key(
        1024 * MIB,
        "All files of the log together. A full log refuses QoS 1 publishes (503) until subscribers have caught up.",
        "bytes",
        256 * KIB,
        1 << 44,
        wal="max_bytes",
    )
    reserve_bytes: int = key(
        64 * MIB,
        "Free space of its file system that publishes leave alone: it is for acknowledgements, and for the rest of the system.",
        "bytes",
        0,
        1 << 44,
        wal="reserve_bytes",
    )
    block_bytes: int = key(
        0,
        "What is synced together is padded to a multiple of this, so that no flash page is written twice: 4096 for SD cards. "
        "0: to 8 bytes.",
        "bytes",
        0,
        64 * KIB,
        wal="block_bytes",
    )


class Qos1(Section):
    ack_timeout_ms: int = key(
        30_000,
        "Time a subscriber has to acknowledge a message before it comes again; doubles each time, up to 32 times this.",
        "ms",
        100,
        HOUR_MS,
        reload=True,
        core="ack_timeout_ms",
    )
    max_in_flight: int = key(
        256,
        "Messages sent to one subscriber of a QoS 1 subscription and not acknowledged yet.",
        "messages",
        1,
        65_536,
        reload=True,
        core="max_in_flight",
    )
    max_deliveries: int = key(
        16,
        "How often a message is delivered without an acknowledgement before it goes to `$dlq/<topic>`.",
        "deliveries",
        1,
        10_000,
        reload=True,
        core="max_deliveries",
    )
    session_log_bytes: int = key(
        0,
        "Bytes of the log that one durable subscription or queue group may keep from being deleted: as far as its oldest message "
        "may lie behind the log's end. What is older goes where `session_overflow` says, so one forgotten subscriber cannot "
        "fill the log. Half of `wal.max_bytes` or less is of use. 0: no quota.",
        "bytes",
        0,
        1 << 44,
        reload=True,
        core="session_log_bytes",
    )
    session_overflow: str = key(
        "dead_letter",
        "What becomes of messages over `session_log_bytes`: they go to `$dlq/<topic>` with the reason `session_log_bytes`, or "
        "they are dropped. Those whose dead letter finds no room in a full log are dropped.",
        choices=("dead_letter", "drop"),
        reload=True,
        core="session_overflow",
    )
    session_expiry_ms: int = key(
        0,
        "A durable subscription or queue group that nobody was connected to for this long ends by itself, and what waited for it "
        "is let go. Time off counts as far as it is known. 0: never.",
        "ms",
        0,
        365 * DAY_MS,
        reload=True,
        core="session_expiry_ms",
    )


class Delivery(Section):
    max_batch: int = key(
        65_536, "Messages sent to one subscriber before the next has its turn.", "messages", 1, 1_000_000, reload=True
    )
    max_batch_bytes: int = key(
        1 * MIB,
        "Bytes sent to one subscriber before the next has its turn.",
        "bytes",
        4 * KIB,
        64 * MIB,
        reload=True,
        core="max_batch_bytes",
    )
    flush_interval_ms: int = key(
        0,
        "How long a delivery may wait for company. 0 sends at once; a few milliseconds save CPU.",
        "ms",
        0,
        1000,
        reload=True,
    )
    fanout_shards: int = key(
        1,
        "I/O threads. There is one: 1 says so, 0 leaves it to the broker, which comes to the same. What a second one would "
        "bring is in docs/PERFORMANCE.md.",
        "threads",
        0,
        1,
        reason=": 1 is what there is, one I/O thread; more are not built, because they would save no "
        "processor time per message (docs/PERFORMANCE.md). Where cores are free, run a second broker for other topics",
    )
    default_ttl_ms: int = key(
        0,
        "Time to live of a message that names none. 0: it never expires.",
        "ms",
        0,
        365 * DAY_MS,
        reload=True,
        core="default_ttl_ms",
    )


class TimerConfig(Section):
    resolution_ms: int = key(
        10, "How exactly a time to live is kept: the tick of the timer wheel.", "ms", 1, 1000, core="tick_ms"
    )
    max_timeout_ms: int = key(
        7 * DAY_MS,
        "Longest time to live; a longer one is cut to this.",
        "ms",
        1000,
        365 * DAY_MS,
        reload=True,
        core="max_ttl_ms",
    )


class PoolConfig(Section):
    buffer_small_count: int = key(1024, "Free blocks of up to 1 KiB kept for reuse.", "blocks", 0, 1_000_000)
    buffer_medium_count: int = key(256, "Free blocks of up to 16 KiB kept for reuse.", "blocks", 0, 100_000)
    buffer_large_count: int = key(32, "Free larger blocks (message segments) kept for reuse.", "blocks", 0, 10_000)
    message_batch_count: int = key(
        4096, "Queue entries, each a batch of messages, that `warm_up_pools` allocates ahead.", "entries", 0, 1_000_000
    )


class BatchConfig(Section):
    ttl_max_batch_size: int = key(
        65_536,
        "Expired entries removed before other work goes on.",
        "entries",
        1,
        10_000_000,
        reload=True,
        core="expire_batch",
    )
    fanout_max_batch_size: int = key(
        1024,
        "Subscribers sent to before input is looked at again.",
        "subscribers",
        1,
        1_000_000,
        reload=True,
        core="flush_subscribers",
    )
    channel_capacity: int = key(
        4096,
        "Requests, and answers, that may wait between Python and the core: each way has room for this many of 256 bytes, "
        "rounded up to a power of two. When it is full each side holds its own back.",
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
        "Processors to stay on: `auto`, or numbers such as `0,2`: the first for the I/O thread, the others for the rest. "
        "Empty: the system decides.",
        check=processor_numbers,
    )


class Performance(Section):
    enable_timer_wheel: bool = key(
        True,
        "Drop messages the moment they expire. false: when it is their turn to be sent, which saves the timers and "
        "lets expired messages hold their place in the queue.",
    )
    enable_memory_pools: bool = key(True, "Keep free blocks for reuse. false: give each back to the system at once.")
    enable_batch_processing: bool = key(
        True, "Send what waits for a subscriber together. false: one message a send, for comparison."
    )
    warm_up_pools: bool = key(False, "Allocate pools at start instead of when they are first needed.")
    timer_config: TimerConfig = section(TimerConfig)
    pool_config: PoolConfig = section(PoolConfig)
    batch_config: BatchConfig = section(BatchConfig)
    network_optimizations: NetworkOptimizations = section(NetworkOptimizations)


class Limits(Section):
    memory_bytes: int = key(
        512 * MIB,
        "Memory the core may use. Past it slow subscribers' queues only shrink, as `queues.overflow_policy` says, and new "
        "subscriptions are refused. 0: no budget.",
        "bytes",
        0,
        1 << 40,
        reload=True,
        core="memory_bytes",
    )
    max_subscriptions_per_connection: int = key(
        1024, "Filters one connection may subscribe to.", "filters", 1, 100_000, reload=True
    )
    max_topic_levels: int = key(
        64,
        "Levels of a topic or a filter, whichever of `.` and `/` there is more of.",
        "levels",
        1,
        257,
        core="max_topic_levels",
    )
    hello_timeout_ms: int = key(
        5000,
        "Time a connection has to be admitted in, where keys are asked for. A TLS handshake is part of it, and has no more "
        "where they are not. Bytes that trickle in do not extend it.",
        "ms",
        100,
        60_000,
        reload=True,
        core="hello_timeout_ms",
    )
    max_pending: int = key(
        1024,
        "Connections not admitted yet, where keys are asked for; as many again may be in a TLS handshake. One more takes "
        "the place of the one that has been silent for longest.",
        "connections",
        1,
        100_000,
        core="max_pending",
    )
    max_pending_per_address: int = key(
        64,
        "Of them, those of one IPv4 address or one IPv6 /64; one more is closed. This machine's own (127.0.0.0/8, ::1) are "
        "bounded by `max_pending` alone.",
        "connections",
        1,
        100_000,
        reload=True,
        core="max_pending_per_address",
    )
    accept_rate: int = key(
        1000,
        "Connections that `server.bind_addr` takes in a second; those beyond it wait in the system's backlog. 0: as fast as "
        "they come.",
        "connections",
        0,
        1_000_000,
        reload=True,
        core="accept_rate",
    )
    accept_burst: int = key(
        1000,
        "Connections taken at once after a quiet time.",
        "connections",
        1,
        1_000_000,
        reload=True,
        core="accept_burst",
    )
    max_sessions: int = key(
        10_000,
        "QoS 1 subscriptions and queue groups, those of absent durable clients included.",
        "subscriptions",
        1,
        1_000_000,
        reload=True,
        core="max_sessions",
    )
    max_connections_per_key: int = key(
        0,
        "Connections of one key, where keys are asked for; one more is refused (429), unless it takes the place of one with the "
        "same client_id. 0: three quarters of `server.max_connections`.",
        "connections",
        0,
        1_000_000,
        reload=True,
    )
    max_sessions_per_key: int = key(
        0,
        "Of `max_sessions`, those of one key, where keys are asked for; one more is refused (429). Keys of `auth.api_keys` count "
        "as one. 0: three quarters of `max_sessions`.",
        "subscriptions",
        0,
        1_000_000,
        reload=True,
    )
    route_cache_entries: int = key(
        4096,
        "Topics whose subscribers are remembered; more topics than this cost a search each.",
        "topics",
        16,
        1_000_000,
        core="route_cache_entries",
    )
    shutdown_timeout_ms: int = key(
        5000,
        "Time that queues have to be sent at shutdown before connections are closed.",
        "ms",
        0,
        600_000,
        reload=True,
    )


class Logging(Section):
    level: str = key(
        "info", "The least important line written.", choices=("debug", "info", "warning", "error"), reload=True
    )
    format: str = key("text", "One line a fact: `event key=value`, or JSON.", choices=("text", "json"), reload=True)


class Config(Section):
    """All settings of one broker. `Config()` is the defaults; `config_reader` makes one from a file or a dict."""

    server: Server = section(Server)
    tls: Tls = section(Tls)
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
        """Connections that one key may have."""
        return self.limits.max_connections_per_key or most_of(self.server.max_connections)

    @property
    def sessions_per_key(self) -> int:
        """QoS 1 subscriptions and queue groups that one key may have."""
        return self.limits.max_sessions_per_key or most_of(self.limits.max_sessions)


def most_of(limit: int) -> int:
    """Three quarters, so that others find room; one at least."""
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
    """The value of `section.key` for people to read; of a secret, how much of it there is."""
    value = value_of(config, path)
    return f"({len(value)}, not shown)" if KEYS[path].secret and value else literal(value)


def reference() -> str:
    """docs/CONFIGURATION.md, all of it."""
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

`blipmq start --config FILE` reads FILE; without `--config` it reads the file `$BLIPMQ_CONFIG` names, else
`./blipmq.toml`, else it runs on the defaults below. The first log line says which. `blipmq check` prints every setting
in effect, where it comes from, and the memory it may need, and changes nothing.

Every key can also be set by an environment variable, which wins over the file: `BLIPMQ_`, the section, two underscores,
the key, in capitals: `BLIPMQ_SERVER__BIND_ADDR=127.0.0.1:7979`, `BLIPMQ_PERFORMANCE__TIMER_CONFIG__RESOLUTION_MS=5`.
A list is written with commas. A variable that begins with `BLIPMQ_` and names no setting is an error, unless it is one of
the command lines' (`BLIPMQ_ADDR`, `BLIPMQ_API_KEY`, `BLIPMQ_TLS_CA` and so on), of the build's, or one by which Kubernetes
tells of a service.

A secret should not stand in the environment: with `_FILE` at its end the variable names a file that holds it, one item a
line: `BLIPMQ_AUTH__API_KEYS_FILE=/run/secrets/blipmq_keys`. Secrets are never shown, not by `blipmq check` and not in an
error.

An unknown key, a value of the wrong kind or outside its range is an error that names the line; all errors of a file are
listed at once, and the exit status is 78. Nothing is accepted and ignored. A byte order mark and Windows line ends are
fine.

## From 1.0.0

`blipmq check --convert OLD` writes the settings of a configuration of BlipMQ 1.0.0 as they are here, to standard output or, with
`--output FILE`, to a new file; it never writes over one. What became of each old line goes to standard error: kept, renamed,
replaced (a value that is refused here, with the reason), without effect here, or left out. Comments above and behind a line that
is kept come along. What is written is always accepted by `blipmq check`. Three things are worth a look: the log gets a folder
of its own (`wal.directory`), because files of 1.0.0 have the same names and cannot be read; an address that served everyone goes
on doing so (`auth.allow_anonymous`), which the file says; and where keys were configured, clients of 1.0.0, whose protocol has no
place for a key, are refused.

## Reloading

On SIGHUP the file is read again. Keys marked *reload* take effect at once, a change to another one is logged and waits
for a restart, and a file with an error changes nothing."""

if __name__ == "__main__":
    print(reference(), end="")
