"""A person at a terminal: runs a program on a pseudo-terminal, types, and reads the screen."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(**extra: str) -> dict[str, str]:
    """The environment of the tests without variables that change the output, and with the package in the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ") and name != "NO_COLOR"}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "XDG_STATE_HOME": os.devnull,
        **extra,
    }


class Terminal:
    """All three streams are the terminal. Invariant: text that `expect` has returned is not matched again."""

    def __init__(self, arguments: list[str], extra: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(**(extra or {})),
            start_new_session=True,
        )
        os.close(slave)
        self.screen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_until(self, text: str, timeout_s: float = 20.0) -> None:
        """Send interrupts repeatedly, as a person would, until the screen shows `text`. The line editor of Python
        notices a signal between two of its reads only at the next key."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.screen:
            assert time.monotonic() < deadline_s, f"{text!r} did not come; the screen shows {self.screen!r}"
            self.interrupt()
            patience_s = time.monotonic() + 2.0
            while text not in self.screen and time.monotonic() < patience_s:
                self._read(0.1)
        self.screen = self.screen.rpartition(text)[2]

    def expect(self, text: str, timeout_s: float = 20.0) -> str:
        """Read until the screen shows `text`. Returns the output up to and including it; later calls start behind
        it."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.screen:
            assert time.monotonic() < deadline_s, f"{text!r} did not come; the screen shows {self.screen!r}"
            if not self._read(0.1) and self.process.poll() is not None and not self._read(0.0):
                raise AssertionError(f"{text!r} did not come before the end; the screen shows {self.screen!r}")
        before, _, self.screen = self.screen.partition(text)
        return before + text

    def end(self, timeout_s: float = 20.0) -> int:
        """Read until the program ends; returns its exit status."""
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, f"it does not end; the screen shows {self.screen!r}"
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux returns EIO when the other side has closed
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)
