"""A small fuzzer for Python code: inputs that reach new lines are kept and mutated further.

Invariant: deterministic for the same seed, inputs and code. The target gets bytes and raises only for a finding.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

INPUT_BYTES_MAX = 4096
CORPUS_MAX = 4000
NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 127, 128, 255, 256, 4095, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]

Line = tuple[CodeType, int]


class Outcome(NamedTuple):
    """The result of a run. `broken` is the failing input with its error; `corpus` contains the inputs kept."""

    inputs: int
    lines: int
    corpus: list[bytes]
    broken: tuple[bytes, BaseException] | None


class Trace:
    """Records the executed lines of the watched files inside the `with`."""

    def __init__(self, files: Sequence[str]) -> None:
        self.lines: set[Line] = set()
        self._files = frozenset(files)

    def __enter__(self) -> Trace:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        self.lines.add((frame.f_code, frame.f_lineno))
        return self._line


def mutated(data: bytes, others: Sequence[bytes], words: Sequence[bytes], chance: random.Random) -> bytes:
    """`data` mutated at one to five positions, with parts of `others`, of `words` and of itself."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(out) + 1)
        size = min(chance.choice((1, 1, 2, 4, 8, 32)), len(out) - at)
        kind = chance.randrange(9)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = chance.randrange(256)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = chance.randbytes(size or 1)
        elif kind == 4:
            out[at:at] = out[at : at + size] * chance.choice((1, 2, 50))
        elif kind == 5 and words:
            out[at : at + chance.choice((0, size))] = chance.choice(words)
        elif kind == 6:
            number = struct.pack(chance.choice(("<I", ">I", "<H", "<Q")), chance.choice(NUMBERS) & 0xFFFF)
            out[at : at + len(number)] = number
        elif kind == 7:
            out[at : at + 4] = struct.pack(chance.choice(("<I", ">I")), chance.choice(NUMBERS))
        elif others:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            out[at:] = other[start:]
    return bytes(out[:INPUT_BYTES_MAX])


def minimal(target: Callable[[bytes], object], inputs: Sequence[bytes], files: Sequence[str]) -> list[bytes]:
    """The inputs, in order, that reach a line not reached by earlier ones."""
    seen: set[Line] = set()
    chosen = []
    for data in inputs:
        trace = Trace(files)
        with trace:
            target(data)
        if not trace.lines <= seen:
            chosen.append(data)
        seen |= trace.lines
    return chosen


def fuzz(
    target: Callable[[bytes], object],
    first: Sequence[bytes],
    words: Sequence[bytes],
    files: Sequence[str],
    seconds: float,
    seed: int,
) -> Outcome:
    """Run `target` on `first`, then on mutated inputs, until the time is over or one fails."""
    chance = random.Random(seed)
    seen: set[Line] = set()
    corpus: list[bytes] = []
    inputs, until = 0, time.monotonic() + seconds
    waiting = list(first) or [b""]
    while waiting or time.monotonic() < until:
        data = waiting.pop() if waiting else mutated(chance.choice(corpus), corpus, words, chance)
        trace = Trace(files)
        try:
            with trace:
                target(data)
        except Exception as error:
            return Outcome(inputs, len(seen), corpus, (data, error))
        inputs += 1
        if len(corpus) < CORPUS_MAX and (not corpus or not trace.lines <= seen):
            corpus.append(data)
        seen |= trace.lines
    return Outcome(inputs, len(seen), corpus, None)
