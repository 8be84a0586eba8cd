"""How much memory a configuration can come to need, term by term.

Invariant: the sum is made of the same `CoreConfig` the core is started with, so a setting that changes the need changes
the sum. `at rest` is what an idle broker keeps; `worst case` has every limit reached at once.
"""

from __future__ import annotations

from typing import NamedTuple

from blipmq.config import KIB, MIB, Config

# The interpreter with this package and uvloop loaded, before the first connection (measured resident size, rounded up).
INTERPRETER_BYTES = 28 * MIB
# One idle connection in the core: slot, timer, routes of a few filters.
CONNECTION_BYTES = 1 * KIB
# What Python keeps for a connection that said HELLO or subscribed.
SESSION_BYTES = 2 * KIB
# One subscription: the filter, its place in the route table and in the session.
SUBSCRIPTION_BYTES = 512
# One remembered topic with the list of its subscribers.
ROUTE_BYTES = 512
FRAME_ALLOWANCE_BYTES = 1024
SEGMENT_BYTES = 256 * KIB
POOL_SMALL_BYTES, POOL_MEDIUM_BYTES = 1 * KIB, 16 * KIB


class Term(NamedTuple):
    """One line of the sum."""

    name: str
    formula: str
    at_rest: int
    worst: int


def max_frame_bytes(config: Config) -> int:
    """Largest frame taken: a message of the largest size with its topic and table around it."""
    return config.server.max_message_size_bytes + FRAME_ALLOWANCE_BYTES


def ring_bytes(config: Config) -> int:
    """Capacity of each ring: a power of two that holds the largest message at least twice."""
    return max(1 * MIB, 1 << (2 * (max_frame_bytes(config) + 4 * KIB) - 1).bit_length())


def terms(config: Config) -> list[Term]:
    """The sum's terms, in bytes."""
    n = config.server.max_connections
    pool = config.performance.pool_config
    small, medium, large = pool.buffer_small_count, pool.buffer_medium_count, pool.buffer_large_count
    pools = small * POOL_SMALL_BYTES + medium * POOL_MEDIUM_BYTES + large * SEGMENT_BYTES
    ring, frame = ring_bytes(config), max_frame_bytes(config)
    filters = config.limits.max_subscriptions_per_connection
    queue = config.queues.subscriber_bytes
    return [
        Term("interpreter", "measured", INTERPRETER_BYTES, INTERPRETER_BYTES),
        Term("rings", f"2 x {size(ring)}", 0, 2 * ring),
        Term("pools", f"{small} x 1 KiB + {medium} x 16 KiB + {large} x {size(SEGMENT_BYTES)}", 0, pools),
        Term(
            "route cache",
            f"{config.limits.route_cache_entries} topics x {ROUTE_BYTES} B",
            0,
            config.limits.route_cache_entries * ROUTE_BYTES,
        ),
        Term(
            "connections", f"{n} x {size(CONNECTION_BYTES + SESSION_BYTES)}", 0, n * (CONNECTION_BYTES + SESSION_BYTES)
        ),
        Term(
            "subscriptions",
            f"{n} connections x {filters} filters x {SUBSCRIPTION_BYTES} B",
            0,
            n * filters * SUBSCRIPTION_BYTES,
        ),
        Term("frames being received", f"{n} connections x {size(frame)}", 0, n * frame),
        Term("queues", f"{n} subscribers x {size(queue)}", 0, n * queue),
        Term("open segment", size(SEGMENT_BYTES), SEGMENT_BYTES, SEGMENT_BYTES),
    ]


def at_rest_bytes(config: Config) -> int:
    """What the broker keeps with no one connected."""
    return sum(term.at_rest for term in terms(config))


def worst_bytes(config: Config) -> int:
    """What it can come to with every connection open, every queue full and every subscriber stuck."""
    return sum(term.worst for term in terms(config))


def size(count: int) -> str:
    """Bytes as people read them: 512 B, 64 KiB, 1.5 GiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.1f}".removesuffix(".0") + f" {unit}"
        amount /= 1024
    return f"{amount:.1f}".removesuffix(".0") + " TiB"


def table(config: Config) -> str:
    """The sum as `blipmq check` prints it."""
    rows = [(t.name, size(t.worst), t.formula) for t in terms(config)]
    rows.append(("worst case", size(worst_bytes(config)), "every limit reached at once, every subscriber stuck"))
    rows.append(("at rest", size(at_rest_bytes(config)), "no one connected"))
    return "\n".join(f"  {name:<22} {amount:>11}  {formula}" for name, amount, formula in rows)
