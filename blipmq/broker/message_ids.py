"""The first message id of a start, so that ids never go back after a restart, whatever the clock does.

With a WAL, the WAL's ledger has the id. Without one, a small file in `wal.directory` has a number above all used ids.
It is raised on disk before the ids reach it. The clock gives only a first estimate; a board without a real-time clock
starts in 1970 each time.
Invariant: the file's number is above every id used since it was first written.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from blipmq.base.logs import Log

# Ids start at the milliseconds since this moment, shifted. They stay below 2**53 (JSON's exact integers) until 2094.
IDS_SINCE_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
IDS_SHIFT = 12
IDS_BLOCK = 1 << 32  # ids reserved at a time
IDS_NAME = "ids"
IDS_DIGITS_MAX = 19
LEDGER_NAME = "LOCK"
LEDGER_BYTES, LEDGER_SLOT = 64, 4096  # see native/FORMAT.md


def first_message_id(wall_s: float) -> int:
    """The first id according to the clock alone. `wall_s`: seconds since 1970."""
    return max(1, (int(wall_s * 1000) - IDS_SINCE_MS) << IDS_SHIFT)


class IdFile:
    """The ids of a broker without a WAL. `directory` is created if it does not exist; "": nothing is stored."""

    def __init__(self, directory: str, log: Log) -> None:
        self._directory = directory
        self._log = log
        self._reserved = 0

    def __repr__(self) -> str:
        return f"<IdFile {self._directory or '-'} reserved={self._reserved}>"

    def begin(self) -> int:
        """Return the first id of this start. A file that cannot be written is logged once and does not prevent the
        start."""
        first = first_message_id(time.time())
        if not self._directory:
            return first
        first = max(first, _number_in(os.path.join(self._directory, IDS_NAME)), _noted(self._directory))
        self._reserve(first)
        return first

    def observe(self, counters: dict[str, int]) -> None:
        """Reserve more ids if necessary. Called once a second; half a block lasts much longer."""
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
                hint="without the WAL, message ids may be used again after a restart if the clock went back",
            )


def _number_in(path: str) -> int:
    """The number in a file that this module wrote; 0 if there is none."""
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
    """Replace the whole file: afterwards it holds the old number or the new one."""
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
    """The first message id that is unused according to the ledger of a WAL, which was kept here before it was switched
    off. 0 if there is none."""
    import zlib  # imported here because a broker with a WAL never needs it

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
