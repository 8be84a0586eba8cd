"""`blipmq wal verify|export|repair`: check, export or repair the WAL of a stopped broker.

Invariant: standard output has only findings or records. The progress goes to standard error, and only to a terminal.
Exit status: 0 no damage (a torn end is not damage: it was never confirmed), 1 damage was found or records are missing,
69 a broker uses the WAL, 77 not allowed, 78 it cannot be read.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable
from typing import Any

from blipmq.base.stdio import StreamError, is_terminal, put_error, write_out
from blipmq.broker.wal import close_to_others
from blipmq.config.memory import size
from blipmq.errors import BlipMQError
from blipmq.native.wal_tool import WalFinding, WalItem, WalMode, WalProgress, WalRecord, WalSums, walk_wal
from blipmq.sessions.connections import OWNER_ENDS
from blipmq.wire.properties import user_properties

HARMLESS = ("TORN", "STRAY")  # never confirmed; never part of this WAL
LINES_BYTES = 64 << 10  # output of an export that is written at once

Fact = dict[str, Any]

# Written by broker/commit.c and broker/consumer.c, in the byte order of the machine.
_TIME = struct.Struct(
    "=6Q2I"
)  # of native/broker/timeline.c: run, mono_ms, time_ms, boot_id, boot_ms, wall_ms, synchronized
_PUBLISH = struct.Struct("=5Q2I")  # id, timestamp_ms, ttl_ms, mono_ms, run, topic_size, properties_size
_DEAD_LETTER = struct.Struct("=Q2I")  # a dead letter's properties, in a record with this flag: id, deliveries, reserved
PUBLISH_DEAD_LETTER = 1
_ACK = struct.Struct("=2Q")  # subscription, floor
_SESSION = struct.Struct("=2Q3I4B")  # id, floor, sizes of filter, client_id and group, qos, grouped, form, floored
_LEAVE = struct.Struct("=Q4I")  # newest subscription it ends, sizes of filter, client_id and group, reserved


def run(action: str, directory: str, form: str) -> int:
    """Walk through the WAL; returns the exit status. Raises `LogLocked` and `LogUnusable`."""
    write = _json_line if form == "json" else _text_line
    progress = _Progress(is_terminal(sys.stderr))
    out = _Output(gather=action == "export", to_the_end=action == "repair")
    damaged = False
    if action == "repair":
        for event, about in close_to_others(directory):
            put_error(f"{event}: {about['directory']}: {about['hint']}\n".encode())
    try:
        for item in walk_wal(directory, WalMode[action.upper()]):
            if isinstance(item, WalProgress):
                progress.show(item)
                continue
            progress.clear()
            if isinstance(item, WalFinding):
                damaged = damaged or item.name not in HARMLESS
            elif isinstance(item, WalSums):
                damaged = damaged or bool(item.lost_ranges)
                if action == "export":
                    continue
            line = write(action, item)
            if action == "export" and not isinstance(item, WalRecord):
                put_error(line)  # standard output has the records; findings go to standard error
            else:
                out.put(line)
    except BlipMQError:
        out.finish()  # write the records before the one that cannot be read
        raise
    out.finish()
    return int(damaged)


class _Output:
    """Standard output. `gather`: many lines are written at once. `to_the_end`: a failed write does not stop the work;
    it is reported at the end."""

    def __init__(self, gather: bool, to_the_end: bool) -> None:
        self._gather, self._to_the_end = gather, to_the_end
        self._lines: list[bytes] = []
        self._bytes = 0
        self._failure: StreamError | BrokenPipeError | None = None

    def put(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        if not self._gather or self._bytes >= LINES_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        if self._failure is not None:
            raise self._failure

    def _flush(self) -> None:
        data = b"".join(self._lines)
        self._lines.clear()
        self._bytes = 0
        if self._failure is not None or not data:
            return
        try:
            write_out(data)
        except (StreamError, BrokenPipeError) as error:
            if not self._to_the_end:
                raise
            self._failure = error


class _Progress:
    """The progress line on a terminal, overwritten at each update."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._dirty = False

    def show(self, item: WalProgress) -> None:
        if self._shown and item.total_bytes:
            share = item.done_bytes / item.total_bytes
            put_error(f"\r{share:6.1%} of {size(item.total_bytes)} read".encode())
            self._dirty = True

    def clear(self) -> None:
        if self._dirty:
            put_error(b"\r\x1b[K")
            self._dirty = False


# ---- text ------------------------------------------------------------------------------------------------------------


def _text_line(action: str, item: WalItem) -> bytes:
    if isinstance(item, WalFinding):
        return f"{_finding_line(item)}\n".encode("utf-8", "backslashreplace")
    return f"{_sums_line(action, item)}\n".encode() if isinstance(item, WalSums) else b""


def _finding_line(item: WalFinding) -> str:
    where = f"segment {item.segment}" if item.segment else "the WAL"
    if item.bytes:
        where += f", {item.bytes} bytes at {item.offset}"
    if item.last_lsn:
        where += f", records {item.first_lsn} to {item.last_lsn}"
    return f"{item.name.lower()}: {where}: {item.text}"


def _sums_line(action: str, item: WalSums) -> str:
    parts = [f"{item.records} records of {size(item.bytes)} in {item.segments} segments"]
    if item.records:
        parts.append(f"{item.first_lsn} to {item.last_lsn}")
    parts.append("closed in order" if item.clean else "not closed in order")
    if item.lost_ranges:
        most = "at most " if item.lost_unknown else ""
        parts.append(f"{most}{item.lost_records} records are lost in {item.lost_ranges} ranges")
    else:
        parts.append("no record is missing")
    return f"{'repaired' if action == 'repair' else 'verified'}: " + "; ".join(parts)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _json_line(action: str, item: WalItem) -> bytes:
    if isinstance(item, WalFinding):
        fact: Fact = {"finding": item.name.lower(), **item._asdict()}
        del fact["name"]
    elif isinstance(item, WalRecord):
        fact = {"lsn": item.lsn, **record_fact(item)}
    else:
        fact = {"done": action, **item._asdict()}
    return (json.dumps(fact, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "backslashreplace")


def record_fact(record: WalRecord) -> Fact:
    """A record as a dict. Payloads are base64; an unknown or unreadable record is given as a whole."""
    read = _RECORDS.get(record.type)
    if read is not None:
        try:
            return read(record.data, record.flags) if read is _publish_fact else read(record.data)
        except (struct.error, UnicodeDecodeError):
            pass
    return {"type": f"type {record.type}", "data_base64": _base64(record.data)}


def _publish_fact(data: bytes, flags: int = 0) -> Fact:
    id_, timestamp_ms, ttl_ms, _, _, topic_size, properties_size = _PUBLISH.unpack_from(data)
    topic_end, payload_end = _PUBLISH.size + topic_size, len(data) - properties_size
    if topic_end > payload_end:
        raise struct.error("its sizes do not fit")
    topic, properties = data[_PUBLISH.size : topic_end].decode(), data[payload_end:]
    headers = user_properties(properties)
    if flags & PUBLISH_DEAD_LETTER and properties_size == _DEAD_LETTER.size:
        letter_id, deliveries, _ = _DEAD_LETTER.unpack(properties)
        about = {"topic": topic.removeprefix("$dlq/"), "id": str(letter_id), "deliveries": str(deliveries)}
        headers = {"reason": "max_deliveries", **about}
    return {
        "type": "publish",
        "id": id_,
        "topic": topic,
        "timestamp": timestamp_ms,
        "ttl_ms": ttl_ms,
        "payload_base64": _base64(data[topic_end:payload_end]),
        **({"headers": headers} if headers else {}),
    }


def _ack_fact(data: bytes) -> Fact:
    subscription, floor = _ACK.unpack_from(data)
    return {"type": "ack", "subscription": subscription, "up_to_lsn": floor}


def _session_fact(data: bytes) -> Fact:
    id_, _, filter_size, client_id_size, group_size, qos, *_ = _SESSION.unpack_from(data)
    texts, at = [], _SESSION.size
    for length in (filter_size, client_id_size, group_size):
        texts.append(data[at : at + length].decode())
        at += length
    filter_, identity, group = texts
    key, _, client_id = identity.rpartition(OWNER_ENDS)
    about = {"subscription": id_, "filter": filter_, "client_id": client_id, "group": group, "qos": qos}
    return {"type": "subscribe", **about, **({"key": key} if key else {})}


def _end_fact(data: bytes) -> Fact:
    return {"type": "unsubscribe", "subscription": struct.unpack_from("=Q", data)[0]}


def _leave_fact(data: bytes) -> Fact:
    up_to, filter_size, client_id_size, group_size, _ = _LEAVE.unpack_from(data)
    texts, at = [], _LEAVE.size
    for length in (filter_size, client_id_size, group_size):
        texts.append(data[at : at + length].decode())
        at += length
    filter_, identity, group = texts
    key, _, client_id = identity.rpartition(OWNER_ENDS)
    about = {"filter": filter_, "client_id": client_id, "group": group, "up_to_subscription": up_to}
    return {"type": "unsubscribe", **about, **({"key": key} if key else {})}


def _ids_fact(data: bytes) -> Fact:
    return {"type": "ids", "below": struct.unpack_from("=Q", data)[0]}


def _time_fact(data: bytes) -> Fact:
    run, mono_ms, time_ms, _, boot_ms, wall_ms, synchronized, _ = _TIME.unpack_from(data)
    facts = {"run": run, "mono_ms": mono_ms, "time_ms": time_ms, "boot_ms": boot_ms, "wall_ms": wall_ms}
    return {"type": "time", **facts, "synchronized": bool(synchronized)}


def _checkpoint_fact(data: bytes) -> Fact:
    return {"type": "checkpoint", "data_base64": _base64(data)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_RECORDS: dict[int, Callable[[bytes], Fact]] = {
    0: _checkpoint_fact,
    1: _publish_fact,
    2: _ack_fact,
    3: _session_fact,
    4: _end_fact,
    5: _ids_fact,
    6: _leave_fact,
    8: _time_fact,
}
