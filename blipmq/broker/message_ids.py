"""Where message ids begin, so that they do not go back over a restart, whatever the clock does.

With a log, the log's own ledger knows. Without one, a small file in `wal.directory` holds a number that no id has reached: it is
raised, on disk, before the ids come to it. The clock is only a first guess; a board without one begins in 1970 each time.

Invariant: the file's number is above every id that was given out since it was first written.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from blipmq.base.logs import Log

# Ids begin at the milliseconds since this moment, shifted. They stay below 2**53 (JSON's exact whole numbers) until 2094.
IDS_SINCE_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
IDS_SHIFT = 12
IDS_BLOCK = 1 << 32  # reserved ahead
IDS_NAME = "ids"
IDS_DIGITS_MAX = 19
LEDGER_NAME = "LOCK"
LEDGER_BYTES, LEDGER_SLOT = 64, 4096  # see native/FORMAT.md


def first_message_id(wall_s: float) -> int:
    """Where ids begin by the clock alone."""
    return max(1, (int(wall_s * 1000) - IDS_SINCE_MS) << IDS_SHIFT)


class IdFile:
    """The ids of a broker without a log; `directory` is made if it is not there. An empty one: nothing is kept."""

    def __init__(self, directory: str, log: Log) -> None:
        self._directory = directory
        self._log = log
        self._reserved = 0

    def __repr__(self) -> str:
        return f"<IdFile {self._directory or '-'} reserved={self._reserved}>"

    def begin(self) -> int:
        """The first id of this start. A file that cannot be written is said once, and no reason not to start."""
        first = first_message_id(time.time())
        if not self._directory:
            return first
        first = max(first, _number_in(os.path.join(self._directory, IDS_NAME)), _noted(self._directory))
        self._reserve(first)
        return first

    def observe(self, counters: dict[str, int]) -> None:
        """Reserve more if need be. Called once a second, which is far less than half a block takes."""
        last_message_id = counters["last_message_id"]
        if self._reserved and last_message_id + IDS_BLOCK // 2 > self._reserved:
            self._reserve(last_message_id)

    def _reserve(self, beyond: int) -> None:
        self._reserved = beyond + IDS_BLOCK
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            _write_number(self._directory, self._reserved)
        except OSError as error:
            self._reserved = 0
            self._log.warning(
                "ids_not_kept",
                directory=self._directory,
                error=error.strerror or str(error),
                hint="without a log, and with a clock that goes back, message ids may go back over a restart",
            )


def _number_in(path: str) -> int:
    """The number in a file of ours; 0 if there is none."""
    with suppress(OSError, ValueError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            text = os.read(descriptor, IDS_DIGITS_MAX + 1).decode("ascii").strip()
        finally:
            os.close(descriptor)
        if text.isdigit():
            return int(text)
    return 0


def _write_number(directory: str, number: int) -> None:
    """Replace the file as a whole: what is there afterwards is the old number or the new one."""
    temporary = os.path.join(directory, IDS_NAME + ".tmp")
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, f"{number}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, os.path.join(directory, IDS_NAME))
    if os.name == "posix":
        folder = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _noted(directory: str) -> int:
    """What the ledger of a log says that was kept here before it was switched off; 0: nothing."""
    import zlib  # here, because a broker with a log never needs it

    newest, noted = 0, 0
    with suppress(OSError):
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(os.path.join(directory, LEDGER_NAME), flags)
        try:
            data = os.read(descriptor, LEDGER_SLOT + LEDGER_BYTES)
        finally:
            os.close(descriptor)
        for at in (0, LEDGER_SLOT):
            slot = data[at : at + LEDGER_BYTES]
            whole = len(slot) == LEDGER_BYTES and slot.startswith(b"BLIPLCK\0")
            if whole and zlib.crc32(slot[:60]) == int.from_bytes(slot[60:], "little"):
                sequence = int.from_bytes(slot[24:32], "little")
                if sequence > newest:
                    newest, noted = sequence, int.from_bytes(slot[48:56], "little")
    return noted
