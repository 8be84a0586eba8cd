"""The core's WAL: the report of opening it, and its errors.

Invariant: an error says what happened to the WAL, what was left unchanged, and what to do.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import NamedTuple

from blipmq._native import lib
from blipmq.errors import BlipMQError, LogLocked, LogUnusable
from blipmq.native.errors import CoreError

# Error codes of native/wal/wal.h, in addition to those of api/bq.h.
WAL_LOCKED, WAL_VERSION, WAL_REFUSED = -22, -23, -25


class WalReport(NamedTuple):
    """The report of opening the WAL: `bq_wal_report_t`. Zero stands for none; LSNs count the WAL's records."""

    records: int
    bytes: int
    segments: int
    torn_bytes: int
    lost_first_lsn: int
    lost_last_lsn: int
    lost_ranges: int
    first_lsn: int
    next_lsn: int
    checkpoint_lsn: int
    sessions: int
    next_message_id: int
    checkpoints_bad: int
    clean: int
    error: int
    lost_unknown: int
    damaged_files: int
    strange_files: int


class WalState(IntEnum):
    """`log_state` of the counters."""

    NONE = 0
    OK = 1
    FULL = 2
    FAILED = 3


def wal_error(code: int, directory: str, error: int) -> BlipMQError:
    """Return the exception for a negative code of the WAL in `directory`; `error` is the errno of BQ_E_SYSTEM."""
    if code == WAL_LOCKED:
        return LogLocked(
            f"another broker uses the WAL in {directory}. Stop it, or give this broker another wal.directory."
        )
    if code == WAL_VERSION:
        return LogUnusable(
            f"a newer version of BlipMQ wrote the WAL in {directory}. Nothing was changed. Start the newer version, or give "
            "this broker another wal.directory."
        )
    if code == WAL_REFUSED:
        return LogUnusable(
            f"the WAL in {directory} cannot be opened: its checkpoint or its durable subscriptions could not be restored. "
            "Nothing was changed. If a newer version of BlipMQ wrote it, start that version. If memory is short, free some. "
            "`blipmq wal export` shows the records."
        )
    if code != lib.BQ_E_SYSTEM:
        return CoreError(code, f"the WAL in {directory} cannot be opened")
    return wal_denied(directory, error)


def wal_denied(directory: str, error: int) -> LogUnusable:
    """Return the exception for a WAL that the system cannot open: `error` is its errno."""
    text = f"the WAL in {directory} cannot be opened: {os.strerror(error) if error else 'a system call failed'}. "
    if error == errno.ELOOP:
        return LogUnusable(
            f"the WAL in {directory} cannot be opened: its file LOCK is a link, a directory or a pipe, which the broker does not "
            "use. Remove it, and start the broker again."
        )
    if error in (errno.EACCES, errno.EPERM, errno.EROFS):
        text += "Allow the broker's user to write there, set another wal.directory, or set wal.enabled = false."
        return LogUnusable(text, exit_status=77)
    # An invalid name stays invalid; a disk, a mount or memory may be available at the next start.
    never = error in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
    text += "Correct the cause, or set another wal.directory."
    return LogUnusable(text, exit_status=78 if never else 71)
