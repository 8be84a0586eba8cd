"""Log lines: their format, and their limits."""

import contextlib
import json
import os

import pytest

from blipmq.base import logs
from blipmq.base.logs import Log

NOON = 1_700_000_000.25
STAMP = "2023-11-14T22:13:20.250Z"


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    with contextlib.suppress(OSError):  # one test closes it itself
        os.close(writer)


def lines(reader):
    parts = []
    while True:
        try:
            part = os.read(reader, 1 << 20)
        except BlockingIOError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode().splitlines()


def test_a_line_has_time_level_event_and_fields(pipe):
    Log(pipe[1], clock=lambda: NOON).info("ready", address="127.0.0.1:7878", connections=3, tls=False, log=None)
    assert lines(pipe[0]) == [f"{STAMP} info ready address=127.0.0.1:7878 connections=3 tls=false log=-"]


def test_values_with_spaces_or_quotes_are_quoted(pipe):
    Log(pipe[1], clock=lambda: NOON).info("closed", detail='no "topic" \\ here', empty="")
    assert lines(pipe[0]) == [f'{STAMP} info closed detail="no \\"topic\\" \\\\ here" empty=""']


@pytest.mark.parametrize("evil", ["a\nb", "a\r\nb", "\x1b[31mred", "a\x00b", "a\u2028b", "a\u202eb", "\x85", "\udcff"])
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_value_cannot_start_a_line_or_control_a_terminal(pipe, evil, format):
    Log(pipe[1], format=format, clock=lambda: NOON).info("hello", client_id=evil)
    raw = os.read(pipe[0], 4096)
    assert raw.count(b"\n") == 1 and raw.endswith(b"\n")
    assert len(raw.decode().splitlines()) == 1
    assert raw.decode().strip("\n").isprintable()


def test_json_lines_contain_the_same_fields(pipe):
    Log(pipe[1], format="json", clock=lambda: NOON).warning("closed", peer="[::1]:4", bytes=7, path=os)
    record = json.loads(lines(pipe[0])[0])
    assert record["time"] == STAMP and record["level"] == "warning" and record["event"] == "closed"
    assert record["peer"] == "[::1]:4" and record["bytes"] == 7


def test_lines_below_the_level_are_not_written_until_the_level_changes(pipe):
    log = Log(pipe[1], level="warning", clock=lambda: NOON)
    log.info("quiet")
    log.set("debug", "text")
    log.debug("loud")
    assert lines(pipe[0]) == [f"{STAMP} debug loud"]


def test_long_values_are_cut(pipe):
    for format in ("text", "json"):
        Log(pipe[1], format=format, clock=lambda: NOON).info("x", value="y" * 100_000)
        assert len(os.read(pipe[0], 1 << 20)) < 1000


def test_a_stuck_reader_loses_lines_without_delay_and_gets_their_count(pipe):
    log = Log(pipe[1], clock=lambda: NOON, lines_per_event_max=1_000_000)
    sent = 20_000
    for number in range(sent):  # far more than the pipe and the buffer hold: the writer must not block
        log.info("line", number=number)
    assert log.dropped > 0
    dropped = log.dropped
    got = lines(pipe[0])
    while not log.flush():
        got += lines(pipe[0])
    log.info("after")
    got += lines(pipe[0])
    assert f"{STAMP} warning logs_dropped count={dropped}" in got
    assert got[-1] == f"{STAMP} info after"
    assert [line for line in got if " line " in line] == [
        f"{STAMP} info line number={n}" for n in range(sent - dropped)
    ]


def test_the_buffer_has_a_limit(pipe):
    log = Log(pipe[1], clock=lambda: NOON, lines_per_event_max=1_000_000)
    for number in range(20_000):
        log.info("line", number=number)
    assert log._buffer_bytes <= logs.BUFFER_BYTES_MAX


def test_a_closed_descriptor_is_not_an_error(pipe):
    log = Log(pipe[1], clock=lambda: NOON)
    os.close(pipe[1])
    log.info("into the void")
    assert log.dropped == 1


def test_a_value_that_cannot_be_formatted_is_not_an_error(pipe):
    class Broken:
        def __str__(self):
            raise RuntimeError("no")

    Log(pipe[1], clock=lambda: NOON).info("hello", value=Broken())
    assert lines(pipe[0]) == [f"{STAMP} error log_failed event=hello error=RuntimeError"]


def test_a_too_frequent_event_is_counted_instead_of_written(pipe):
    now = NOON
    log = Log(pipe[1], clock=lambda: now, lines_per_event_max=3)
    for number in range(10):
        log.warning("closed", number=number)
    log.info("other")
    assert [line.split(" ", 2)[2] for line in lines(pipe[0])] == [
        "closed number=0",
        "closed number=1",
        "closed number=2",
        "other",
    ]
    now += 1
    log.settle()
    assert [line.split(" ", 1)[1] for line in lines(pipe[0])] == ["warning logs_suppressed of=closed count=7"]
    log.warning("closed", number=10)
    assert [line.split(" ", 2)[2] for line in lines(pipe[0])] == ["closed number=10"]


def test_suppressed_events_are_counted_before_the_end(pipe):
    log = Log(pipe[1], clock=lambda: NOON, lines_per_event_max=3)
    for number in range(10):
        log.warning("closed", number=number)
    log.finish()
    assert [line.split(" ", 1)[1] for line in lines(pipe[0])][3:] == ["warning logs_suppressed of=closed count=7"]
