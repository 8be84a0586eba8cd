"""Standard input, output and error of a program, even if they are closed, full, non-blocking or without a reader.

    take_descriptors()   called first in a program: opens /dev/null for each closed descriptor 0, 1 or 2
    write_out, read_in   raise one error with its cause; BrokenPipeError if the reader has gone
    check_output         raises the same at the start of a command whose first output may come late
    say                  writes to standard error; never raises, because the error could not be reported

Invariant: when `write_out` returns, the system has all bytes. Python's buffers are not used, so nothing can fail in
them at the end of the program.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from typing import Any

from blipmq.errors import BlipMQError

INPUT, OUTPUT, ERROR = range(3)
READER_GONE = 141
# How long a message waits for the reader of standard error, if that is a non-blocking pipe.
PATIENCE_SECONDS = 2.0


class StreamError(BlipMQError):
    """Standard input cannot be read, or standard output cannot be written."""

    exit_status = 74


def take_descriptors() -> None:
    """Open /dev/null on each closed descriptor of 0, 1 and 2. Otherwise the next file or socket would get its number,
    and the output meant for the stream. Input and output are opened in the wrong mode, so that using them still fails.
    """
    for descriptor, mode in ((INPUT, os.O_WRONLY), (OUTPUT, os.O_RDONLY), (ERROR, os.O_RDWR)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            os.set_inheritable(opened, True)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    # Python creates no stream object for a descriptor that was closed at its start.
    sys.stdin = sys.stdin or _object(INPUT, "r")
    sys.stdout = sys.stdout or _object(OUTPUT, "w")
    sys.stderr = sys.stderr or _object(ERROR, "w")


def _object(descriptor: int, mode: str) -> Any:
    return open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)


def write_out(data: bytes) -> None:
    """Write all data to standard output, waiting for a slow reader. Raises StreamError, or BrokenPipeError if the
    reader has gone."""
    descriptor = _descriptor(sys.stdout)
    try:
        if descriptor is None:  # the calling program has replaced the stream
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            _write(descriptor, data, None)
    except (BrokenPipeError, ConnectionResetError):
        raise BrokenPipeError from None
    except (OSError, ValueError) as error:
        raise StreamError(f"Cannot write to standard output: {_why(error, _OUTPUT)}.") from None


def check_output() -> None:
    """Report at the start of a long command that standard output does not work: it is closed, not open for writing, or
    /dev/full (StreamError), or its reader has gone (BrokenPipeError). A full disk is reported only when it is written
    to."""
    descriptor = _descriptor(sys.stdout)
    if descriptor is None:  # the calling program has replaced the stream
        return
    try:
        os.write(descriptor, b"")
    except OSError as error:
        raise StreamError(f"Cannot write to standard output: {_why(error, _OUTPUT)}.") from None
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(descriptor, 0)
        if any(event & select.POLLERR for _, event in poller.poll(0)):
            raise BrokenPipeError


def print_out(text: str) -> None:
    """Write one or more lines to standard output. Raises as `write_out` does."""
    write_out(f"{text}\n".encode("utf-8", "backslashreplace"))


def read_in(size: int) -> bytes:
    """Read up to `size` bytes of standard input as they arrive; b"" at its end. Raises StreamError."""
    try:
        descriptor = sys.stdin.fileno()
        while True:
            try:
                return os.read(descriptor, size)
            except BlockingIOError:
                _wait(descriptor, "POLLIN", None)
    except (OSError, ValueError, AttributeError) as error:
        raise StreamError(f"Cannot read standard input: {_why(error, _INPUT)}.") from None


def say(text: str) -> None:
    """Write a line to standard error."""
    put_error(f"{text}\n".encode("utf-8", "backslashreplace"))


def put_error(data: bytes) -> None:
    """Write to standard error, ignoring errors."""
    descriptor = _descriptor(sys.stderr)
    try:
        if descriptor is None:
            sys.stderr.write(data.decode("utf-8", "backslashreplace"))
            sys.stderr.flush()
        else:
            _write(descriptor, data, time.monotonic() + PATIENCE_SECONDS)
    except (OSError, ValueError, AttributeError):
        pass  # the error cannot be reported


def is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (OSError, ValueError, AttributeError):  # closed, or None
        return False


# ---- internal --------------------------------------------------------------------------------------------------------


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _write(descriptor: int, data: bytes, deadline_s: float | None) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            if not _wait(descriptor, "POLLOUT", deadline_s):
                return


def _wait(descriptor: int, event: str, deadline_s: float | None) -> bool:
    """Wait until a non-blocking descriptor is ready; False at the deadline. Its errors show at the next read or write."""
    if not hasattr(select, "poll"):
        time.sleep(0.01)
        return deadline_s is None or time.monotonic() < deadline_s
    poller = select.poll()
    poller.register(descriptor, getattr(select, event))
    rest_ms = None if deadline_s is None else max(int((deadline_s - time.monotonic()) * 1000), 0)
    return bool(poller.poll(rest_ms))


_INPUT = {
    errno.EBADF: "it is closed, or not open for reading. Redirect it from a file or a pipe",
}
_OUTPUT = {
    errno.EBADF: "it is closed, or not open for writing. Redirect it to a file, or to /dev/null",
    errno.ENOSPC: "its disk is full. Free space, or write to another disk",
    errno.EDQUOT: "its disk quota is used up. Free space, or write to another disk",
    errno.EFBIG: "the file has its maximum size. Write to another file",
}


def _why(error: Exception, sentences: dict[int, str]) -> str:
    number = error.errno if isinstance(error, OSError) else None
    number = errno.EBADF if number is None else number  # Python's own errors mean a closed stream
    return sentences.get(number) or os.strerror(number)
