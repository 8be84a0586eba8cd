"""The processors that the broker uses.

Invariant: a processor is used only if this process may use it. Where the system offers no choice, a request for one is
an error.
"""

from __future__ import annotations

import os
import re
import sys

from blipmq.errors import ConfigError

ANY = -1


def processor_numbers(text: str) -> list[int]:
    """The numbers in "0,2"; none for "auto" and "". Raises ValueError that says what is allowed."""
    if text in ("", "auto"):
        return []
    if not re.fullmatch(r"[0-9]{1,4}( *, *[0-9]{1,4})*", text):
        raise ValueError('expected "auto" or processor numbers such as "0,2"')
    return [int(number) for number in text.split(",")]


def choose_processors(text: str) -> tuple[int, frozenset[int]]:
    """The processor of the I/O thread (ANY: no choice) and those of all other threads (empty: no choice). Raises
    `ConfigError`."""
    if not text:
        return ANY, frozenset()
    if sys.platform != "linux":
        raise ConfigError(
            "performance.network_optimizations.cpu_affinity: this system does not let a program choose its processors; "
            "remove the line"
        )
    allowed = os.sched_getaffinity(0)
    if text == "auto":
        if len(allowed) < 2:
            return ANY, frozenset()
        return max(allowed), frozenset(allowed - {max(allowed)})
    numbers = processor_numbers(text)
    foreign = [number for number in numbers if number not in allowed]
    if foreign:
        raise ConfigError(
            f"performance.network_optimizations.cpu_affinity: this process may not use processor {foreign[0]} "
            f'({", ".join(map(str, sorted(allowed)))}). Name one of these, or write "auto".'
        )
    return numbers[0], frozenset(numbers[1:])


def stay_on(processors: frozenset[int]) -> None:
    """Keep the calling thread, and the threads that it starts, on these processors; an empty set changes nothing."""
    if processors and sys.platform == "linux":
        os.sched_setaffinity(0, processors)
