"""Changes of the running system: commands, the host name, the clock.

Invariant: everything except files goes through this module. A `System` that is not live does nothing: with `--root` a
device is only a folder.
"""

from __future__ import annotations

import socket
import subprocess
import time
from typing import NamedTuple

COMMAND_SECONDS = 60.0
OUTPUT_CHARS_MAX = 1 << 20


class CommandResult(NamedTuple):
    """The exit status of a command, and its two outputs joined."""

    status: int
    output: str


class System:
    """This machine, if `live`."""

    def __init__(self, live: bool) -> None:
        self.live = live

    def __repr__(self) -> str:
        return f"System(live={self.live})"

    def run(self, *command: str, seconds: float = COMMAND_SECONDS) -> CommandResult:
        """Run a command to its end. Never raises: status 127 if it cannot be run, 124 after `seconds`."""
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
        """Set the host name. Raises OSError."""
        if self.live:
            socket.sethostname(name)

    def now(self) -> float:
        """The present time in seconds since 1970."""
        return time.time()

    def set_time(self, seconds: float) -> None:
        """Set the clock. `seconds`: since 1970. Raises OSError."""
        if self.live:
            time.clock_settime(time.CLOCK_REALTIME, seconds)
