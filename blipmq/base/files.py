"""Reading a file that an operator names in a setting.

Invariant: while a broker runs, reading does not wait. Opening a named pipe would wait for a writer, and with it the event loop.
"""

from __future__ import annotations

import errno
import os
import stat


def read_file(path: str | os.PathLike[str], bytes_max: int, wait: bool = False) -> bytes:
    """Return the first `bytes_max` bytes of a file. Raises `OSError`, also for a named pipe, unless the caller can `wait`."""
    if wait:
        with open(path, "rb") as file:
            return file.read(bytes_max)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if stat.S_ISFIFO(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is a named pipe, not a file")
        with open(handle, "rb", closefd=False) as file:
            return file.read(bytes_max)
    finally:
        os.close(handle)
