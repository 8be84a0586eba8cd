"""The broker's write-ahead log (WAL) as Python sees it: opening it, and reporting its state.

Invariant: nothing here writes to the WAL or reads from it; the core does both. A damaged WAL is opened, and the missing
records are reported. The broker does not start only if another broker uses the WAL, a newer version wrote it, or access
is denied.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blipmq.base.logs import Log
from blipmq.config import memory
from blipmq.config.settings import Config
from blipmq.errors import LogUnusable
from blipmq.native.config import WalConfig
from blipmq.native.core import Core
from blipmq.native.events import SYNC_BUCKETS
from blipmq.native.wal import WalReport, WalState, wal_denied

PROGRESS_SECONDS = 1.0
WAL_NAMES = ("wal", "checkpoint", "LOCK")
HINT_LOST = "some records are lost, all others are kept: list them with `blipmq wal verify`, and check the disk"
HINT_AT_MOST = (
    "some records are lost, at most these; all others are kept: list them with `blipmq wal verify`, and check the disk"
)
# The meaning of an errno that a disk error cannot cause.
GONE = "the WAL directory or the newest segment was removed or replaced"
Counters = dict[str, int]


def make_parents(directory: str) -> None:
    """Create the directories above `directory` and sync their entries, so that a power cut cannot remove the whole WAL.
    The core creates the last one. Raises `LogUnusable`."""
    missing, path = [], os.path.dirname(os.path.abspath(directory))
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for path in reversed(missing):
            os.mkdir(path, 0o755)
            sync_directory(os.path.dirname(path))
    except OSError as error:
        raise wal_denied(directory, error.errno or 0) from None


WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def close_to_others(directory: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make sure that only the broker's user can change the WAL. Removes the write permission of others from the
    directory and the files that this user owns, and yields the events to log. Refuses a directory of another user that
    others can write to. A missing directory is not touched; the core creates it closed. Raises `LogUnusable`."""
    if os.name != "posix":
        return
    try:
        found = os.stat(directory)
        if not stat.S_ISDIR(found.st_mode):
            return  # the core reports the error when it opens the directory
        if found.st_mode & WRITABLE_BY_OTHERS:
            yield _closed(directory, found)
        count = sum(_file_closed(entry) for entry in os.scandir(directory) if entry.name.startswith(WAL_NAMES))
    except FileNotFoundError:
        return
    except OSError as error:
        raise wal_denied(directory, error.errno or 0) from None
    if count:
        yield (
            "log_files_open",
            {
                "directory": directory,
                "count": count,
                "hint": "other users could write to them; the broker has removed that permission",
            },
        )


def _closed(directory: str, found: os.stat_result) -> tuple[str, dict[str, Any]]:
    was = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        raise LogUnusable(
            f"the WAL directory {directory} belongs to user {found.st_uid}, and other users may write there (mode {was:04o}), so "
            f"they could change stored messages. Run `chmod go-w {directory}`, or `chown` it to the broker's user, or set "
            "wal.directory to a directory inside it.",
            exit_status=77,
        )
    now = was & ~WRITABLE_BY_OTHERS
    os.chmod(directory, now)
    return (
        "log_directory_open",
        {
            "directory": directory,
            "was": f"{was:04o}",
            "now": f"{now:04o}",
            "hint": "other users could write there; the broker has removed that permission",
        },
    )


def _file_closed(entry: os.DirEntry[str]) -> bool:
    found = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & WRITABLE_BY_OTHERS or found.st_uid != os.geteuid():
        return False
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~WRITABLE_BY_OTHERS)
    finally:
        os.close(descriptor)
    return True


def sync_directory(path: str) -> None:
    """Sync a directory's entries to disk, if the system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Wal:
    """The WAL of one broker: its directory, the report of its recovery, its state since."""

    def __init__(self, directory: str, report: WalReport, log: Log, max_bytes: int = 0) -> None:
        self.directory = os.path.abspath(directory)
        self.max_bytes = max_bytes  # limit of the WAL's size
        self.report = report
        self._log = log
        self._state = WalState.OK
        self._unclaimed = self._dropped = 0  # dead letters that have been logged

    def __repr__(self) -> str:
        return f"<Wal {self.directory} {self._state.name.lower()} opened at LSN {self.report.next_lsn}>"

    @classmethod
    async def open(cls, core: Core, config: Config, log: Log) -> Wal:
        """Open and recover the WAL in a thread, and log the progress every second. Raises `LogLocked` or `LogUnusable`."""
        started = time.monotonic()
        make_parents(config.wal.directory)
        for event, about in close_to_others(config.wal.directory):
            log.warning(event, **about)
        # A separate pool: its thread ends with the work, and the program's default pool is not occupied.
        pool = ThreadPoolExecutor(1, "blipmq-open")
        opening = asyncio.get_running_loop().run_in_executor(
            pool, core.open_wal, config.wal.directory, WalConfig.of(config)
        )
        pool.shutdown(wait=False)
        try:
            while not (await asyncio.wait((opening,), timeout=PROGRESS_SECONDS))[0]:
                log.info("log_replay", progress=f"{core.wal_progress():.1%}")
        finally:  # also after cancellation: the thread uses the core until it has returned
            while not opening.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((opening,))
        wal = cls(config.wal.directory, opening.result(), log, config.wal.max_bytes)
        wal._tell(time.monotonic() - started)
        return wal

    def _tell(self, seconds: float) -> None:
        report = self.report
        self._log.info(
            "log_opened",
            directory=self.directory,
            records=report.records,
            bytes=report.bytes,
            segments=report.segments,
            subscriptions=report.sessions,
            next_lsn=report.next_lsn,
            next_id=report.next_message_id,
            clean=bool(report.clean or not report.segments),
            ms=int(seconds * 1000),
        )
        if report.torn_bytes:
            hint = "the end of the WAL was not synced, and nothing in it was confirmed: normal after a power cut"
            self._log.warning("log_torn", bytes=report.torn_bytes, hint=hint)
        if report.checkpoints_bad:
            self._log.warning(
                "log_checkpoint_bad", count=report.checkpoints_bad, hint="the start took longer; nothing is lost"
            )
        if report.strange_files:
            hint = (
                "files that this WAL did not create: renamed to aside-* or ignored; list them with `blipmq wal verify`"
            )
            self._log.warning("log_strange_files", count=report.strange_files, hint=hint)
        if report.lost_ranges:
            self._log.error(
                "log_damaged",
                first_lsn=report.lost_first_lsn,
                last_lsn=report.lost_last_lsn,
                ranges=report.lost_ranges,
                exact=not report.lost_unknown,
                files=report.damaged_files,
                hint=HINT_AT_MOST if report.lost_unknown else HINT_LOST,
            )
        elif report.damaged_files:
            hint = "a header or a segment file is lost; no record is known to be lost: check the disk"
            self._log.error("log_damaged", files=report.damaged_files, hint=hint)

    def observe(self, counters: Counters) -> None:
        """Log when the WAL becomes full, fails, or has room again, and when dead letters are dropped or unclaimed.
        Called once a second."""
        self._observe_dead_letters(counters)
        state = WalState(counters["log_state"])
        if state == self._state:
            return
        if state == WalState.FAILED:
            self._log.error(
                "log_failed",
                directory=self.directory,
                error=_why(counters["log_errno"]),
                hint="QoS 1 publishes are refused until a restart, QoS 0 continues: check the disk, then restart the broker",
            )
        elif state == WalState.FULL:
            self._log.error("log_full", bytes=counters["log_bytes"], disk_free_bytes=counters["log_free_bytes"])
        elif self._state == WalState.FULL:
            self._log.info("log_has_room", bytes=counters["log_bytes"], disk_free_bytes=counters["log_free_bytes"])
        self._state = state

    def _observe_dead_letters(self, counters: Counters) -> None:
        unclaimed, dropped = counters["dead_letters_unclaimed"], counters["dead_letters_dropped"]
        if unclaimed > self._unclaimed:
            self._log.warning(
                "dead_letters_unclaimed",
                messages=unclaimed - self._unclaimed,
                hint="discarded, because dead letters have no subscriber (unacknowledged, or over qos1.session_log_bytes): "
                "subscribe to $dlq/# with QoS 1, durably",
            )
        if dropped > self._dropped:
            self._log.error(
                "dead_letters_dropped",
                messages=dropped - self._dropped,
                hint="the WAL was full: acknowledge the messages of $dlq/#, or raise wal.max_bytes",
            )
        self._unclaimed, self._dropped = unclaimed, dropped

    def facts(self, counters: Counters) -> dict[str, Any]:
        """The part of INFO about the WAL. Ids are those of the WAL's records (LSNs), which rise by one."""
        return {
            "state": WalState(counters["log_state"]).name.lower(),
            "directory": self.directory,
            "bytes": counters["log_bytes"],
            "segments": counters["log_segments"],
            "durable_id": counters["log_durable_lsn"],
            "unsynced": counters["log_next_lsn"] - 1 - counters["log_durable_lsn"],
            "last_fsync_ms": counters["log_sync_us_last"] / 1000,
            "disk_free_bytes": counters["log_free_bytes"],
            "checkpoint_id": counters["log_checkpoint_lsn"],
            "written_bytes": counters["log_written_bytes"],
            "records": counters["log_records"],
            "commits": sum(counters[name] for name in SYNC_BUCKETS),  # each sync is counted in one bucket
            "lost": self._lost(),
            "damaged_files": self.report.damaged_files,
        }

    def _lost(self) -> dict[str, int | bool] | None:
        report = self.report
        if not report.lost_ranges:
            return None
        return {
            "first_lsn": report.lost_first_lsn,
            "last_lsn": report.lost_last_lsn,
            "ranges": report.lost_ranges,
            "exact": not report.lost_unknown,
        }

    def reasons(self, counters: Counters) -> list[str]:
        """Why the broker is degraded, as far as the WAL is the cause."""
        reasons = []
        state, report = WalState(counters["log_state"]), self.report
        if state == WalState.FAILED:
            why = _why(counters["log_errno"])
            reasons.append(
                f"WAL: {why}; QoS 1 publishes are refused; restore it if you can, then restart the broker"
                if why == GONE
                else f"WAL: disk error ({why}); QoS 1 publishes are refused; check the disk, then restart the broker"
            )
        if state == WalState.FULL:
            size, free = memory.size(counters["log_bytes"]), memory.size(counters["log_free_bytes"])
            reasons.append(
                f"WAL: full at {size} with {free} free on its disk; QoS 1 publishes are refused; end unused durable "
                "subscriptions, free disk space, or raise wal.max_bytes"
            )
        if report.lost_unknown:
            reasons.append(
                f"WAL: damaged; some or all of the records {report.lost_first_lsn} to {report.lost_last_lsn} are lost; list them "
                "with `blipmq wal verify`, and check the disk"
            )
        elif report.lost_ranges:
            reasons.append(
                f"WAL: damaged; records between {report.lost_first_lsn} and {report.lost_last_lsn} "
                f"({report.lost_ranges} range{'s'[: report.lost_ranges != 1]}) are lost; list them with `blipmq wal verify`, "
                "and check the disk"
            )
        elif report.damaged_files:
            reasons.append(
                f"WAL: damaged; a header or a segment file is lost ({report.damaged_files}); no record is known to be lost; "
                "check the disk"
            )
        if counters["lost_lsns"]:
            up_to = "up to " if report.lost_unknown else ""
            reasons.append(
                f"WAL: {up_to}{counters['lost_lsns']} records could not be read for a subscriber and are lost; check the disk"
            )
        if counters["dead_letters_dropped"]:
            reasons.append(
                f"WAL: {counters['dead_letters_dropped']} dead letters are lost, because the WAL was full; acknowledge the "
                "messages of $dlq/#, or raise wal.max_bytes"
            )
        if counters["sessions_unread"]:
            reasons.append(
                f"WAL: {counters['sessions_unread']} subscriptions get no messages, because reading their messages fails; check "
                "the disk and the free memory. The broker tries again"
            )
        return reasons


def _why(error: int) -> str:
    return GONE if error in (errno.ENOENT, errno.ESTALE) else os.strerror(error)
