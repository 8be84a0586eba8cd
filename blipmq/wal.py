"""The broker's write-ahead log as Python sees it: how it is opened, and how it is said how it does.

Invariant: nothing here writes to the log or reads from it; the core does both. A damaged log is opened and reported with
what is gone, only one that another broker holds, a newer version wrote or the system denies keeps the broker down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blipmq import memory
from blipmq.config import Config
from blipmq.logs import Log
from blipmq.native.config import LogConfig
from blipmq.native.core import Core
from blipmq.native.log import LogReport, LogState, log_denied

PROGRESS_SECONDS = 1.0
# Where the ids of a broker begin that has none in its log: at the milliseconds since this moment, shifted. They stay below
# 2**53 (JSON's exact whole numbers) until 2094, and do not go back over a restart unless more than four million messages a
# second were published, or the clock went back.
IDS_SINCE_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
IDS_SHIFT = 12

Counters = dict[str, int]


def first_message_id(wall_s: float) -> int:
    """Where the ids of a broker begin that has none in its log: later than those of any earlier start."""
    return max(1, (int(wall_s * 1000) - IDS_SINCE_MS) << IDS_SHIFT)


def log_config(config: Config) -> LogConfig:
    """The log's share of the settings."""
    wal = config.wal
    return LogConfig(
        max_bytes=wal.max_bytes,
        reserve_bytes=wal.reserve_bytes,
        segment_bytes=wal.segment_size_bytes,
        flush_interval_ms=wal.flush_interval_ms,
        batch_bytes=memory.log_batch_bytes(config),
        block_bytes=wal.block_bytes,
    )


def make_parents(directory: str) -> None:
    """Make the directories above `directory`, each with its entry on disk: a power cut must not take the whole log. The
    core makes the last one. Raises `LogUnusable`."""
    missing, path = [], os.path.dirname(os.path.abspath(directory))
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for path in reversed(missing):
            os.mkdir(path, 0o755)
            sync_directory(os.path.dirname(path))
    except OSError as error:
        raise log_denied(directory, error.errno or 0) from None


def sync_directory(path: str) -> None:
    """Put a directory's entries on disk, where the system lets one do so."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Wal:
    """One broker's log: where it is, what was found when it was opened, how it has done since."""

    def __init__(self, directory: str, report: LogReport, log: Log) -> None:
        self.directory = os.path.abspath(directory)
        self.report = report
        self._log = log
        self._state = LogState.OK

    def __repr__(self) -> str:
        return f"<Wal {self.directory} {self._state.name.lower()} opened at LSN {self.report.next_lsn}>"

    @classmethod
    async def open(cls, core: Core, config: Config, log: Log) -> Wal:
        """Open and recover the log in a thread, with a line about it for every second that takes. Raises `LogLocked` or
        `LogUnusable`."""
        started = time.monotonic()
        make_parents(config.wal.directory)
        # A pool of its own: the thread ends with its work, and another program's pool is not kept waiting.
        pool = ThreadPoolExecutor(1, "blipmq-open")
        opening = asyncio.get_running_loop().run_in_executor(
            pool, core.open_log, config.wal.directory, log_config(config)
        )
        pool.shutdown(wait=False)
        try:
            while not (await asyncio.wait((opening,), timeout=PROGRESS_SECONDS))[0]:
                log.info("log_replay", progress=f"{core.log_progress():.1%}")
        finally:  # cancelled, however often: the core is the thread's until it has returned
            while not opening.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((opening,))
        wal = cls(config.wal.directory, opening.result(), log)
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
            hint = "the end of the log had not been synced, so no one was told it was; normal after a power cut"
            self._log.warning("log_torn", bytes=report.torn_bytes, hint=hint)
        if report.checkpoints_bad:
            self._log.warning("log_checkpoint_bad", count=report.checkpoints_bad, hint="it cost only a longer replay")
        if report.lost_ranges:
            self._log.error(
                "log_damaged",
                first_lsn=report.lost_first_lsn,
                last_lsn=report.lost_last_lsn,
                ranges=report.lost_ranges,
                hint="records are gone, all others are kept; `blipmq wal verify` lists them; check the disk",
            )

    def observe(self, counters: Counters) -> None:
        """Write one line when the log fills up, fails, or has room again. Called once a second."""
        state = LogState(counters["log_state"])
        if state == self._state:
            return
        if state == LogState.FAILED:
            self._log.error(
                "log_failed",
                directory=self.directory,
                error=os.strerror(counters["log_errno"]),
                hint="QoS 1 publishes are refused until a restart, QoS 0 goes on; check the disk first",
            )
        elif state == LogState.FULL:
            self._log.error("log_full", bytes=counters["log_bytes"], disk_free_bytes=counters["log_free_bytes"])
        elif self._state == LogState.FULL:
            self._log.info("log_has_room", bytes=counters["log_bytes"], disk_free_bytes=counters["log_free_bytes"])
        self._state = state

    def facts(self, counters: Counters) -> dict[str, Any]:
        """The log's part of what INFO answers. Ids are those of the log's records, which rise by one for ever."""
        return {
            "state": LogState(counters["log_state"]).name.lower(),
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
            "commits": counters["log_commits"],
            "lost": self._lost(),
        }

    def _lost(self) -> dict[str, int] | None:
        report = self.report
        if not report.lost_ranges:
            return None
        return {"first_lsn": report.lost_first_lsn, "last_lsn": report.lost_last_lsn, "ranges": report.lost_ranges}

    def reasons(self, counters: Counters) -> list[str]:
        """Why the broker is degraded, as far as the log has to do with it."""
        reasons = []
        state, report = LogState(counters["log_state"]), self.report
        if state == LogState.FAILED:
            why = os.strerror(counters["log_errno"])
            reasons.append(
                f"log: the disk failed ({why}); QoS 1 publishes are refused; check the disk, then restart the broker"
            )
        if state == LogState.FULL:
            size, free = memory.size(counters["log_bytes"]), memory.size(counters["log_free_bytes"])
            reasons.append(
                f"log: full at {size} with {free} free on its disk; QoS 1 publishes are refused until subscribers catch up, "
                "their durable subscriptions are ended, the disk has room, or wal.max_bytes is raised"
            )
        if report.lost_ranges:
            reasons.append(
                f"log: damaged; records {report.lost_first_lsn} to {report.lost_last_lsn} "
                f"({report.lost_ranges} range{'s'[: report.lost_ranges != 1]}) are gone or partly gone; "
                "`blipmq wal verify` lists them"
            )
        if counters["lost_lsns"]:
            reasons.append(
                f"log: {counters['lost_lsns']} records could not be read back for a subscriber; check the disk"
            )
        if counters["sessions_unread"]:
            reasons.append(
                f"log: reading back fails for {counters['sessions_unread']} subscriptions, which get nothing until it "
                "succeeds; check the disk and the memory that is free. The broker tries again by itself"
            )
        return reasons
