"""Line editing at the shell's prompt: history across sessions, completion with Tab.

    history   $XDG_STATE_HOME/blipmq/history, else ~/.local/state/blipmq/history; the newest HISTORY_LINES_MAX lines, mode
              0600 because payloads may be secret; a line that begins with a space is left out. Off if the file cannot be
              written
    Tab       the verb; then a topic seen before, or for unsub a subscribed filter

Invariant: typing works without readline, and with a history that cannot be read or written.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HISTORY_LINES_MAX = 1000
HISTORY_LINE_CHARACTERS_MAX = 4096
HISTORY_BYTES_MAX = 1 << 20
TOPICS_MAX = 500


def history_path(environment: Mapping[str, str]) -> Path | None:
    """The path of the history (https://specifications.freedesktop.org/basedir-spec/); None without a home directory."""
    state = environment.get("XDG_STATE_HOME", "")
    if state and os.path.isabs(state):
        return Path(state, "blipmq", "history")
    home = environment.get("HOME", "")
    return Path(home, ".local", "state", "blipmq", "history") if os.path.isabs(home) else None


class History:
    """The lines typed in earlier sessions and in this one. Two shells at the same time both keep their lines."""

    def __init__(self, path: Path | None) -> None:
        self.path = path if path is not None and _can_be_written(path) else None
        self._typed: list[str] = []  # not saved yet
        self._last = ""

    def load(self) -> list[str]:
        """The lines of earlier sessions, oldest first."""
        if self.path is None:
            return []
        try:
            with open(self.path, "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - HISTORY_BYTES_MAX, 0))
                lines = file.read(HISTORY_BYTES_MAX).decode("utf-8", "replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.isprintable()][-HISTORY_LINES_MAX:]

    def add(self, line: str) -> None:
        keep = line and not line.startswith(" ") and line.isprintable() and len(line) <= HISTORY_LINE_CHARACTERS_MAX
        if keep and line != self._last:
            self._last = line
            self._typed.append(line)
            del self._typed[:-HISTORY_LINES_MAX]

    def save(self) -> None:
        """Append this session's lines to those in the file, and replace the file."""
        if self.path is None or not self._typed:
            return
        lines = [*self.load(), *self._typed][-HISTORY_LINES_MAX:]
        beside = self.path.with_name(f".history.{os.getpid()}")
        with contextlib.suppress(OSError):
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write("".join(f"{line}\n" for line in lines))
            os.replace(beside, self.path)
            self._typed.clear()


def _can_be_written(path: Path) -> bool:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        os.chmod(path, 0o600)
    except OSError:
        return False
    return True


class Vocabulary:
    """The words that Tab can complete. The client's thread fills it, the thread that reads lines uses it."""

    def __init__(self, verbs: Iterable[str]) -> None:
        self._verbs = sorted(verbs)
        self._topics: dict[str, None] = {}
        self._filters: list[str] = []
        self._lock = threading.Lock()

    def saw_topic(self, topic: str) -> None:
        """Remember a topic; only the newest TOPICS_MAX are kept."""
        with self._lock:
            self._topics.pop(topic, None)
            self._topics[topic] = None
            if len(self._topics) > TOPICS_MAX:
                del self._topics[next(iter(self._topics))]

    def subscribed(self, filters: Iterable[str]) -> None:
        """Set the filters that are subscribed now."""
        with self._lock:
            self._filters = list(filters)

    def completions(self, before: str, word: str) -> list[str]:
        """The completions of `word`, given the text `before` it in its line."""
        verb, *rest = before.split() or [""]
        if not verb:
            return [f"{name} " for name in self._verbs if name.startswith(word)]
        if rest or verb not in ("pub", "sub", "unsub"):
            return []
        with self._lock:
            known = self._filters if verb == "unsub" else sorted({*self._topics, *self._filters * (verb == "sub")})
        return [f"{name} " for name in known if name.startswith(word) and name.isprintable() and " " not in name]


class LineEditor:
    """readline, if it is available."""

    def __init__(self, history: History, vocabulary: Vocabulary) -> None:
        self._history, self._vocabulary = history, vocabulary
        self._choices: list[str] = []
        self._readline: Any = None
        try:
            import readline
        except ImportError:  # not available on every system
            return
        self._readline = readline
        for line in history.load():
            readline.add_history(line)
        readline.set_completer_delims(" \t\n")  # a topic is one word, whatever characters it has
        readline.set_completer(self._complete)
        # macOS and the frozen binaries have libedit; before Python 3.13 only the docstring says so
        libedit = getattr(readline, "backend", "") == "editline" or "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

    def typed(self) -> str:
        """The line typed so far."""
        return str(self._readline.get_line_buffer()) if self._readline is not None else ""

    def read(self, prompt: str) -> str:
        """Read one line. Raises EOFError and KeyboardInterrupt as input() does."""
        line = input(prompt)
        self._history.add(line)
        self._history.save()  # now, because closing the terminal leaves no time for it
        return line

    def _complete(self, word: str, state: int) -> str | None:
        """readline asks for one completion after another, until None."""
        if state == 0:
            before = str(self._readline.get_line_buffer())[: self._readline.get_begidx()]
            self._choices = self._vocabulary.completions(before, word)
        return self._choices[state] if state < len(self._choices) else None
