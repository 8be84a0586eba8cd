"""The memory that a configuration can need, term by term.

Invariant: the core is started with the sizes in this sum, so a setting that changes the memory also changes the sum.
`at rest` is the memory of an idle broker; in the `worst case` every limit is reached at once.
"""

from __future__ import annotations

from typing import NamedTuple

from blipmq.config.settings import KIB, MIB, Config

# The interpreter with the modules of a plain broker, before the first connection (measured resident size, rounded up),
# and the memory that keys add: their hash, and OpenSSL with it.
INTERPRETER_BYTES, KEYS_BYTES = 22 * MIB, 5 * MIB
# OpenSSL, the core's buffers and, for HTTPS, the module ssl, where [tls] is configured (measured, rounded up), and one TLS
# connection: OpenSSL's state, one record that has not come completely, the ciphertext of one send, and answers of TLS behind it.
TLS_BYTES = 10 * MIB
TLS_CONNECTION_BYTES = (28 + 17 + 176) * KIB
# A pending handshake: OpenSSL's state, the read and the flight of one step (64 KiB at most), and the allocator's gaps while
# thousands come and go.
TLS_HANDSHAKE_BYTES = 80 * KIB
# A WebSocket connection: the layer's state, and the rest of one frame that its socket has not taken; before its upgrade the
# request.
WEBSOCKET_CONNECTION_BYTES, WEBSOCKET_REQUEST_BYTES = 65 * KIB, 8 * KIB
# One idle connection in the core: slot, timer, poller.
CONNECTION_BYTES = 1 * KIB
# One subscription in the core: the filter and its place in the route table.
SUBSCRIPTION_BYTES = 384
# Python objects of a connection that sent HELLO or subscribed, and of each of its filters.
SESSION_BYTES, SESSION_FILTER_BYTES = 1 * KIB, 256
# One cached topic with the list of its subscribers.
ROUTE_BYTES = 512
FRAME_ALLOWANCE_BYTES = 1024
# The table of addresses of pending connections: at least two slots for each; a power of two.
PLACE_BYTES = 20
BUFFER_BYTES = 256 * KIB
# A command or an event with a topic. The largest, a piece of output of an in-memory connection, is far smaller than the
# smallest ring; longer ones are passed beside the ring.
RING_RECORD_BYTES = 256
# QoS 1: a message in flight or next to be sent, and a subscription with its texts.
DELIVERY_BYTES, QOS1_SUBSCRIPTION_BYTES = 256, 1 * KIB
QOS1_FRAME_BYTES = 80  # the shortest frame to a subscriber
# The WAL: its smallest batch, its readers, the block of each reader (one record, if that is larger), the buffer for
# reading files, and the positions that it remembers in its files.
WAL_BATCH_BYTES_MIN = 256 * KIB
WAL_READERS, WAL_READ_BYTES, WAL_SCAN_BYTES = 8, 256 * KIB, 1 * MIB
WAL_MARK_BYTES, WAL_MARK_EVERY_BYTES = 16, 256 * KIB
POOL_SMALL_BYTES, POOL_MEDIUM_BYTES = 1 * KIB, 16 * KIB


class Term(NamedTuple):
    """One line of the sum: bytes if this limit is reached everywhere at once."""

    name: str
    formula: str
    worst: int


class Memory(NamedTuple):
    """The sum. `limits.memory_bytes` bounds the `core` terms together; `capped` is that bounded total in bytes."""

    outside: list[Term]
    core: list[Term]
    budget: int  # 0: none
    capped: int

    @property
    def worst(self) -> int:
        """Bytes with every connection open, every queue full, every subscriber stuck."""
        return sum(term.worst for term in self.outside) + self.capped


def max_frame_bytes(config: Config) -> int:
    """The largest accepted frame: the largest message with its topic and table."""
    return config.server.max_message_size_bytes + FRAME_ALLOWANCE_BYTES


def ring_bytes(config: Config) -> int:
    """Capacity of each ring: a power of two with room for `channel_capacity` records of the usual size."""
    return 1 << (config.performance.batch_config.channel_capacity * RING_RECORD_BYTES - 1).bit_length()


def wal_batch_bytes(config: Config) -> int:
    """Bytes that the WAL gathers for one sync. A record may fill half of it. The largest record is a dead letter: the
    largest message, its topic twice, and its properties."""
    record = max_frame_bytes(config) + 4 * KIB
    return max(WAL_BATCH_BYTES_MIN, (2 * record + 4095) // 4096 * 4096)


def _places(config: Config) -> int:
    return 1 << (2 * config.limits.max_pending - 1).bit_length()


def _wal_terms(config: Config) -> list[Term]:
    if not config.wal.enabled:
        return []
    batch, scan = wal_batch_bytes(config), WAL_SCAN_BYTES + max_frame_bytes(config)
    places = config.wal.max_bytes // WAL_MARK_EVERY_BYTES
    return [
        Term("WAL batches", f"2 x {size(batch)}", 2 * batch),
        Term("WAL reading", size(scan), scan),
        Term("WAL positions", f"{places} x {WAL_MARK_BYTES} B", places * WAL_MARK_BYTES),
    ]


def _tls_terms(config: Config) -> list[Term]:
    if not config.tls.cert_file:
        return [Term("keys", "measured", KEYS_BYTES)] if config.auth.required else []
    terms = [Term("TLS", "measured", TLS_BYTES)]
    if config.server.tls_bind_addr or config.mqtt.tls_bind_addr:
        n, pending = config.server.max_connections, config.limits.max_pending
        terms.append(Term("TLS connections", f"{n} x {size(TLS_CONNECTION_BYTES)}", n * TLS_CONNECTION_BYTES))
        terms.append(Term("TLS handshakes", f"{pending} x {size(TLS_HANDSHAKE_BYTES)}", pending * TLS_HANDSHAKE_BYTES))
    return terms


def memory_of(config: Config) -> Memory:
    """The sum for this configuration."""
    n, budget = config.server.max_connections, config.limits.memory_bytes
    filters = n * config.limits.max_subscriptions_per_connection
    core, frame = _core_terms(config), max_frame_bytes(config)
    demand = sum(term.worst for term in core)
    if budget:
        # Past the budget new subscriptions are refused, so it also bounds their Python objects.
        filters = min(filters, budget // SUBSCRIPTION_BYTES)
    outside = [
        Term("interpreter", "measured", INTERPRETER_BYTES),
        Term("rings", f"2 x {size(ring_bytes(config))}", 2 * ring_bytes(config)),
        Term("large commands", f"4 x {size(frame)} + 4 MiB", 4 * frame + 4 * MIB),
        Term("sessions", f"{n} x {size(SESSION_BYTES)}", n * SESSION_BYTES),
        Term("session filters", f"{filters} x {SESSION_FILTER_BYTES} B", filters * SESSION_FILTER_BYTES),
        Term("pending addresses", f"{_places(config)} x {PLACE_BYTES} B", _places(config) * PLACE_BYTES),
        *_tls_terms(config),
        *_wal_terms(config),
    ]
    # Connections are admitted even past the budget; everything else stays within it.
    capped = min(demand, budget + n * CONNECTION_BYTES) if budget else demand
    return Memory(outside, core, budget, capped)


def _core_terms(config: Config) -> list[Term]:
    n, pool, frame = config.server.max_connections, config.performance.pool_config, max_frame_bytes(config)
    filters, queue = config.limits.max_subscriptions_per_connection, config.queues.subscriber_bytes
    small, medium, large = pool.buffer_small_count, pool.buffer_medium_count, pool.buffer_large_count
    routes = config.limits.route_cache_entries
    pools = small * POOL_SMALL_BYTES + medium * POOL_MEDIUM_BYTES + large * BUFFER_BYTES
    return [
        Term("connections", f"{n} x {size(CONNECTION_BYTES)}", n * CONNECTION_BYTES),
        *_websocket_terms(config),
        Term("subscriptions", f"{n} x {filters} x {SUBSCRIPTION_BYTES} B", n * filters * SUBSCRIPTION_BYTES),
        Term("route cache", f"{routes} topics x {ROUTE_BYTES} B", routes * ROUTE_BYTES),
        Term("incoming frames", f"{n} x {size(frame)}", n * frame),
        Term("queues", f"{n} x {size(queue)}", n * queue),
        *_qos1_terms(config),
        Term("open buffer", size(BUFFER_BYTES), BUFFER_BYTES),
        Term("kept for reuse", f"{small} x 1 KiB + {medium} x 16 KiB + {large} x {size(BUFFER_BYTES)}", pools),
    ]


def _websocket_terms(config: Config) -> list[Term]:
    if not config.server.ws_bind_addr and not config.mqtt.ws_bind_addr:
        return []
    n, pending = config.server.max_connections, config.limits.max_pending
    frames, requests = n * WEBSOCKET_CONNECTION_BYTES, pending * WEBSOCKET_REQUEST_BYTES
    return [
        Term("WebSocket frames", f"{n} x {size(WEBSOCKET_CONNECTION_BYTES)}", frames),
        Term("WebSocket requests", f"{pending} x {size(WEBSOCKET_REQUEST_BYTES)}", requests),
    ]


def _qos1_terms(config: Config) -> list[Term]:
    """One QoS 1 subscription per connection with a full window; a second one adds as much."""
    if not config.wal.enabled:
        return []
    n, queues = config.server.max_connections, config.queues
    window = max(
        2 * config.qos1.max_in_flight, min(queues.subscriber_capacity, queues.subscriber_bytes // QOS1_FRAME_BYTES)
    )
    block = max(WAL_READ_BYTES, max_frame_bytes(config))
    each = QOS1_SUBSCRIPTION_BYTES + window * DELIVERY_BYTES + config.queues.subscriber_bytes
    formula = f"{n} x (1 KiB + {window} x {DELIVERY_BYTES} B + {size(config.queues.subscriber_bytes)})"
    return [
        Term("QoS 1 windows", formula, n * each),
        Term("WAL readers", f"{WAL_READERS} x {size(block)}", WAL_READERS * block),
    ]


def at_rest_bytes(config: Config) -> int:
    """Bytes of the broker without connections. Rings and WAL batches use memory only when they are written to."""
    loaded = TLS_BYTES if config.tls.cert_file else KEYS_BYTES if config.auth.required else 0
    return INTERPRETER_BYTES + BUFFER_BYTES + loaded


def worst_bytes(config: Config) -> int:
    """Bytes with every limit reached at once."""
    return memory_of(config).worst


def size(count: int) -> str:
    """A number of bytes as text: 512 B, 64 KiB, 1.5 GiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.1f}".removesuffix(".0") + f" {unit}"
        amount /= 1024
    return f"{amount:.1f}".removesuffix(".0") + " TiB"


def table(config: Config) -> str:
    """The sum in the format of `blipmq check`."""
    total = memory_of(config)
    bound = (
        f"limits.memory_bytes = {size(total.budget)}, and the connections"
        if total.budget
        else "limits.memory_bytes = 0"
    )
    demand = sum(term.worst for term in total.core)
    rows = [(term.name, size(term.worst), term.formula) for term in total.outside]
    rows.append(("core", size(total.capped), f"{bound}; the sum of the other limits is {size(demand)}:"))
    rows += [("  " + term.name, size(term.worst), term.formula) for term in total.core]
    rows.append(("worst case", size(total.worst), "every limit reached at once, and no subscriber reads"))
    rows.append(("at rest", size(at_rest_bytes(config)), "no client connected"))
    return "\n".join(f"  {name:<22} {amount:>11}  {formula}" for name, amount, formula in rows)
