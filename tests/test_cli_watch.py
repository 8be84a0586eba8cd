"""`blipmq-cli info --watch` and its screen output."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import pytest
from fake_broker import FakeBroker
from terminal import Terminal

from blipmq.cli.render import rate_text
from blipmq.cli.report import SubscriptionRates, render_info
from blipmq.cli.terminal import Repaint, crop, fit

WATCH = ["-m", "blipmq.cli.client", "info", "--watch"]


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


def subscriber(delivered: int, dropped: int = 0, **extra: Any) -> dict[str, Any]:
    return {
        "client": "gateway-17",
        "peer": "10.0.0.7:40112",
        "filters": ["site/+/temp"],
        "queued_messages": 1200,
        "queued_bytes": 90_000,
        "delivered": delivered,
        "dropped_ttl": 0,
        "dropped_queue_full": dropped,
        **extra,
    }


def test_the_screen_is_refreshed_in_place_and_the_last_state_remains(broker: FakeBroker) -> None:
    broker.info = {"version": "1", "address": "here", "state": "ok", "subscriptions": [subscriber(100)]}
    with Terminal(WATCH, {"BLIPMQ_ADDR": broker.address}) as terminal:
        first = terminal.expect("site/+/temp\x1b[K\r\n\x1b[J")
        assert first.startswith("\x1b[?25l\r📊 BlipMQ 1 at here")
        assert "\x1b[2J" not in first
        broker.info = {**broker.info, "state": "degraded", "subscriptions": [subscriber(300)]}
        lines = first.count("\n")
        again = terminal.expect("degraded")
        assert again.startswith(f"\x1b[{lines}A\r📊 BlipMQ 1 at here\x1b[K\r\n")
        terminal.interrupt()
        terminal.expect("\x1b[?25h")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.screen


def test_an_outage_is_shown_above_the_last_state_and_watching_resumes(broker: FakeBroker) -> None:
    broker.info = {"version": "1", "address": "here", "state": "ok"}
    with Terminal(WATCH, {"BLIPMQ_ADDR": broker.address}) as terminal:
        terminal.expect("State")
        broker.stop()
        terminal.expect("ended. The broker was stopped or restarted")
        terminal.expect("BlipMQ 1 at here")
        broker.info = {**broker.info, "state": "degraded"}
        broker.start()
        terminal.expect("degraded")
        terminal.interrupt()
        assert terminal.end() == 130


def test_a_refusal_ends_watch_with_the_reason(broker: FakeBroker) -> None:
    with Terminal(WATCH, {"BLIPMQ_ADDR": broker.address}) as terminal:
        terminal.expect("State")
        broker.refusals["INFO"] = (403, "no right to look")
        terminal.expect("\x1b[?25h")
        terminal.expect("no right to look")
        assert terminal.end() == 77


def test_a_subscriber_is_shown_with_depth_drops_and_rates_between_two_answers() -> None:
    times = iter((10.0, 12.0))
    rates = SubscriptionRates(lambda: next(times))
    info = {"subscriptions": [subscriber(1000)], "subscribers": {"total": 2}}
    rates.take(info)
    assert rates.of(subscriber(1000)) is None
    info = {"subscriptions": [subscriber(3500, 40, blocked=True)], "subscribers": {"total": 2}}
    rates.take(info)
    lines = render_info(info, fancy=False, rates=rates).splitlines()[-3:]
    assert [line.split() for line in lines[:2]] == [
        "SUBSCRIBER WAITING SIZE DELIVERED /s DROPPED /s TOPICS".split(),
        "gateway-17 (blocked) 1,200 87.9 KiB 3,500 1,250 40 20 site/+/temp".split(),
    ]
    assert lines[2] == "  … and 1 more connected subscriber"


def test_incomplete_answers_are_shown_partially() -> None:
    rates = SubscriptionRates(lambda: 0.0)
    for entries in (["?", 5], [{}], [{"delivered": "x", "filters": 3, "queued_bytes": None}]):
        info = {"subscriptions": entries}
        rates.take(info)
        assert render_info(info, fancy=False, rates=rates).startswith("BlipMQ unknown at unknown\n")


@pytest.mark.parametrize(
    ("per_s", "text"),
    [
        (0, "0"),
        (0.54, "0.5"),
        (9.0, "9"),
        (9_999, "9,999"),
        (12_345, "12.3 k"),
        (999_949, "999.9 k"),
        (1.25e6, "1.2 M"),
    ],
)
def test_rates_are_rounded_to_few_digits(per_s: float, text: str) -> None:
    assert rate_text(per_s) == text


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("plain", 5, "plain"),
        ("plain text", 6, "plain…"),
        ("📊 é", 4, "📊 é"),
        ("📊📊📊", 5, "📊📊…"),
        ("📊📊📊", 6, "📊📊📊"),
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
    ],
)
def test_a_line_is_cut_to_the_display_width(text: str, columns: int, shown: str) -> None:
    assert crop(text, columns) == shown


def test_lines_beyond_the_screen_height_are_counted() -> None:
    assert fit([str(number) for number in range(10)], (80, 5)) == [
        "0",
        "1",
        "2",
        "… 7 more lines; make the terminal higher",
    ]
    assert fit(["0", "1"], (80, 3)) == ["0", "1"]


def test_a_resized_screen_is_cleared_before_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    size = [os.terminal_size((20, 10))]
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: size[0])
    stream = io.BytesIO()
    monkeypatch.setattr(stream, "fileno", lambda: 1, raising=False)
    with Repaint(stream, stream.write) as screen:
        screen.paint("one\ntwo\n")
        screen.paint("three")
        size[0] = os.terminal_size((0, 0))
        screen.paint("x" * 100)
    assert stream.getvalue().decode() == (
        "\x1b[?25l"
        "\rone\x1b[K\ntwo\x1b[K\n\x1b[J"
        "\x1b[2A\rthree\x1b[K\n\x1b[J"
        f"\x1b[H\x1b[2J{'x' * 79}…\x1b[K\n\x1b[J"
        "\x1b[?25h"
    )


def test_the_wal_and_its_stored_messages_are_described_in_words() -> None:
    log = {"state": "well", "bytes": 64 << 20, "segments": 2, "last_fsync_ms": 1.04, "durable_id": 5003, "unsynced": 20}
    sessions = {"total": 3, "behind": 1, "in_flight": 20, "redelivered": 0, "dead_lettered": 2, "acked": 7}
    text = render_info({"log": log, "sessions": sessions}, fancy=False)
    assert "WAL            well, 64 MiB in 2 segments, last sync 1.0 ms, durable id 5,003, 20 unsynced\n" in text
    assert (
        "QoS 1          3 subscriptions, 1 with stored messages not collected (away or slow), "
        "20 messages waiting for acknowledgement, 2 dead-lettered\n"
    ) in text
    odd = {"state": "failed", "bytes": None, "lost": {"first_lsn": 5, "last_lsn": 9}}
    text = render_info({"log": odd, "sessions": {"total": "x"}}, fancy=False)
    assert "failed, LOST records 5 to 9\n" in text and "QoS 1" not in text
