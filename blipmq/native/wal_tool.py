"""The WAL without a broker: verify, export, repair.

Invariant: an item is copied out of C memory before the next one is read; the walk is always closed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from blipmq._native import ffi, lib
from blipmq.errors import LogLocked
from blipmq.native.wal import WAL_LOCKED, wal_error


class WalMode(IntEnum):
    """The action on a WAL that no broker uses."""

    VERIFY = lib.BQ_WAL_VERIFY
    EXPORT = lib.BQ_WAL_EXPORT
    REPAIR = lib.BQ_WAL_REPAIR


class WalProgress(NamedTuple):
    """The part of the WAL that has been read."""

    done_bytes: int
    total_bytes: int


class WalFinding(NamedTuple):
    """A problem: `name` in capitals, `text` explains it. LSNs are 0 if no records are missing."""

    name: str
    text: str
    segment: int
    offset: int
    bytes: int
    first_lsn: int
    last_lsn: int


class WalRecord(NamedTuple):
    """One record of an export; `type` is wal_type of wal/wal.h, 0 for the checkpoint."""

    lsn: int
    type: int
    data: bytes
    flags: int = 0


class WalSums(NamedTuple):
    """Totals at the end of a walk through the WAL."""

    records: int
    bytes: int
    segments: int
    first_lsn: int
    last_lsn: int
    torn_bytes: int
    lost_ranges: int
    lost_records: int
    checkpoint_lsn: int
    checkpoints_bad: int
    clean: int
    lost_unknown: int


WalItem: TypeAlias = "WalProgress | WalFinding | WalRecord | WalSums"


def walk_wal(directory: str, mode: WalMode) -> Iterator[WalItem]:
    """Verify, export or repair the WAL in `directory`, item by item; the last one is `WalSums`. Verify and export
    change nothing. Raises `LogLocked` while a broker uses it, and `LogUnusable`."""
    error = ffi.new("int *")
    wal = lib.bq_wal_tool_open(os.fsencode(directory), mode, error)
    if wal == ffi.NULL:
        if error[0] == WAL_LOCKED:
            raise LogLocked(f"a broker uses the WAL in {directory}. Stop it first, or use a copy of the directory.")
        raise wal_error(error[0], directory, ffi.errno)
    try:
        item = ffi.new("bq_wal_item_t *")
        while (code := lib.bq_wal_tool_step(wal, item)) == 1:
            yield _wal_item(item)
        if code < 0:
            raise wal_error(code, directory, ffi.errno)
    finally:
        lib.bq_wal_tool_close(wal)


def _wal_item(item: Any) -> WalItem:
    if item.kind == lib.BQ_WAL_PROGRESS:
        return WalProgress(item.done_bytes, item.total_bytes)
    if item.kind == lib.BQ_WAL_FINDING:
        name, text = (ffi.string(field).decode() for field in (item.name, item.text))
        return WalFinding(name, text, item.segment, item.offset, item.bytes, item.first_lsn, item.last_lsn)
    if item.kind == lib.BQ_WAL_DONE:
        return WalSums(*(getattr(item, name) for name in WalSums._fields))
    data = bytes(ffi.buffer(item.data, item.data_size)) if item.data_size else b""
    return WalRecord(item.lsn, item.type, data, item.flags)
