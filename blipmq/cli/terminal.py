"""The streams of one command, and lines of a terminal that are refreshed in place.

Invariant: standard output has only the requested data; remarks go to standard error. A refresh is one write, of lines
that fit, so that nothing flickers or scrolls.
"""

from __future__ import annotations

import argparse
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any

from blipmq.base.stdio import StreamError, check_output, is_terminal, say, write_out
from blipmq.cli import render
from blipmq.errors import BlipMQError

Size = tuple[int, int]  # columns, lines


class Terminal:
    """The three streams, and the kind of feedback wanted on them."""

    def __init__(self, arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self.quiet: bool = arguments.quiet
        self.verbose: bool = arguments.verbose
        self.fancy_out = render.is_fancy(sys.stdout, environment)
        self.fancy_err = render.is_fancy(sys.stderr, environment)

    def check_output(self) -> None:
        """Raise StreamError, or BrokenPipeError, if standard output does not work from the start."""
        check_output()

    def write(self, data: bytes) -> None:
        """Write to standard output without buffering. Raises StreamError, or BrokenPipeError."""
        write_out(data)

    def done(self, emoji: str, text: str) -> None:
        """Print the result of a command that has no other output."""
        if self.quiet:
            return
        try:
            self.write((f"{emoji} {text}\n" if self.fancy_out else f"{text}\n").encode("utf-8", "backslashreplace"))
        except StreamError as error:
            error.args = (f"{error} The command itself was carried out: {text}",)
            raise

    def notice(self, emoji: str, text: str) -> None:
        say(f"{emoji} {text}" if self.fancy_err else text)

    def detail(self, emoji: str, text: str) -> None:
        if self.verbose:
            self.notice(emoji, text)

    def error(self, error: BlipMQError) -> None:
        text = render.printable(str(error).encode("utf-8", "backslashreplace"))
        self.notice("❌", text if self.fancy_err else f"blipmq-cli: {text}")


def repaints(stream: IO[Any], environment: Mapping[str, str]) -> bool:
    """Whether the stream is a terminal with a movable cursor."""
    return is_terminal(stream) and environment.get("TERM", "dumb") != "dumb"


class Repaint:
    """Lines at the end of the terminal `stream`; `write` writes to it. Each paint replaces them; the last ones stay.
    `with` hides the cursor meanwhile."""

    def __init__(self, stream: IO[Any], write: Callable[[bytes], None]) -> None:
        self._stream, self._put = stream, write
        self._painted_lines = 0
        self._size: Size = (0, 0)

    def __enter__(self) -> Repaint:
        self._write("\x1b[?25l")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._write("\x1b[?25h")

    def paint(self, text: str) -> None:
        """Replace the lines. Lines that do not fit the terminal are truncated and marked."""
        size = self._measure()
        lines = fit(text.splitlines(), size)
        # the terminal has wrapped the old lines in an unknown way: clear it
        if self._painted_lines and size != self._size:
            head = "\x1b[H\x1b[2J"
        else:
            head = f"\x1b[{self._painted_lines}A\r" if self._painted_lines else "\r"
        self._write(head + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._painted_lines, self._size = len(lines), size

    def _measure(self) -> Size:
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, lines = 80, 24
        return columns or 80, lines or 24  # a serial console reports 0

    def _write(self, text: str) -> None:
        self._put(text.encode("utf-8", "backslashreplace"))


def fit(lines: list[str], size: Size) -> list[str]:
    """Lines truncated to a terminal's columns, and to its lines less one, which the cursor needs."""
    columns, room = size[0], max(size[1] - 1, 1)
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… {len(lines) - room + 1:,} more lines; make the terminal higher"]
    return [crop(line, columns) for line in lines]


def crop(text: str, columns: int) -> str:
    """The text truncated to the columns, with … at the end. Wide characters take two columns, combining marks none."""
    if text.isascii() and len(text) <= columns:
        return text
    used, fits = 0, 0
    for index, character in enumerate(text):
        if unicodedata.combining(character):
            continue
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > columns:
            return text[:fits] + "…"
        if used < columns:
            fits = index + 1
    return text
