"""What is done to the running system: commands, the host name, the clock.

Invariant: everything outside of files goes through here, and a `System` that is not live does none of it: with `--root` a device
is only a folder.
"""

from __future__ import annotations

import socket
import subprocess
import time
from typing import NamedTuple

COMMAND_SECONDS = 60.0
OUTPUT_CHARS_MAX = 1 << 20


class CommandResult(NamedTuple):
    """How a command ended, and what it wrote to both of its outputs."""

    status: int
    output: str


class System:
    """This machine, if `live`."""

    def __init__(self, live: bool) -> None:
        self.live = live

    def __repr__(self) -> str:
        return f"System(live={self.live})"

    def run(self, *command: str, seconds: float = COMMAND_SECONDS) -> CommandResult:
        """Run a command to its end. Raises nothing: what cannot be run has status 127, what takes too long 124."""
        if not self.live:
            return CommandResult(127, "not on a device")
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return CommandResult(124, f"{command[0]} took more than {seconds:g} s")
        except OSError as error:
            return CommandResult(127, f"{command[0]} cannot be run: {error.strerror}")
        return CommandResult(done.returncode, done.stdout.decode(errors="replace")[:OUTPUT_CHARS_MAX])

    def set_hostname(self, name: str) -> None:
        """Raises OSError."""
        if self.live:
            socket.sethostname(name)

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def set_time(self, seconds: float) -> None:
        """Raises OSError."""
        if self.live:
            time.clock_settime(time.CLOCK_REALTIME, seconds)
