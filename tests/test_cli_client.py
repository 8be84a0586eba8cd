"""blipmq-cli as used by people and scripts: real processes, real pipes, a pseudo-terminal, and the fake broker."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_broker
import pytest
from fake_broker import FakeBroker
from terminal import Terminal, environment

from blipmq.cli import render
from blipmq.cli.client import make_parser
from blipmq.cli.publish import read_lines
from blipmq.errors import Disconnected
from blipmq.wire.frames import Message

CLI = ["-m", "blipmq.cli.client"]

INFO: dict[str, Any] = {
    "version": "2.0.0",
    "uptime_s": 273_903,
    "address": "0.0.0.0:7878",
    "state": "degraded",
    "reasons": ["disk almost full", "a subscriber is stuck"],
    "clients": 4,
    "topics": 12,
    "subscriptions": [
        {
            "client": "gateway-17",
            "peer": "10.0.0.7:40112",
            "filters": ["site/+/temp", "alarm"],
            "queued_messages": 1200,
            "queued_bytes": 90_000,
            "enqueued": 5000,
            "delivered": 3700,
            "dropped_ttl": 60,
            "dropped_queue_full": 40,
            "blocked": True,
        },
        {"client": "", "peer": "10.0.0.8:1", "filters": ["#"], "queued_messages": 0, "delivered": 1},
    ],
    "subscriptions_total": 3,
    "subscribers": {"total": 5, "blocked": 1},
    "connections": {"pending": 3, "refused": {"max_connections": 0, "max_pending": 1204, "descriptors": 2}},
    "messages": {
        "published": 1_234_567,
        "enqueued": 5001,
        "delivered": 3701,
        "queued": 1200,
        "unrouted": 7,
        "dropped": {"ttl": 60, "queue_full": 40, "disconnect": 0},
    },
    "rates": {"in_per_s": 1500.4, "out_per_s": 0.0},
    "memory": {"used_bytes": 12 << 20, "budget_bytes": 64 << 20},
    "log": None,
    "disk_free_bytes": 3_435_973_837,
    "hardware": {"temperature_c": 61.3, "throttled": False, "undervoltage": True},
}

INFO_TEXT = """\
BlipMQ 2.0.0 at 0.0.0.0:7878
State          degraded, because: disk almost full, a subscriber is stuck
Up for         3 days 4 hours
Clients        4
Topic cache    12 topics
Messages in    1,234,567, 1,500 a second now
Messages out   3,701, 0 a second now
Waiting        1,200
Dropped        100 (expired 60, queue full 40, disconnected 0)
Turned away    1,204 (max_pending), 2 (descriptors)
No subscriber  7 messages
Memory         12 MiB of 64 MiB (19 %)
WAL            off
Disk free      3.2 GiB
Temperature    61 °C
Processor      full speed
Power          UNDER-VOLTAGE: use a stronger supply or a shorter cable
Subscriptions  3
  gateway-17  site/+/temp, alarm: 1,200 waiting (87.9 KiB), 3,700 delivered, 100 dropped (expired 60, queue full 40), \
not reading
  10.0.0.8:1  #: 0 waiting, 1 delivered
  … and 3 more connected subscribers
"""


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


def start(broker: FakeBroker | str, *arguments: str, **extra: str) -> subprocess.Popen[bytes]:
    address = broker if isinstance(broker, str) else broker.address
    return subprocess.Popen(
        [sys.executable, *CLI, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(BLIPMQ_ADDR=address, **extra),
    )


def run(broker: FakeBroker | str, *arguments: str, stdin: bytes = b"", **extra: str) -> tuple[int, bytes, str]:
    """Exit status, standard output, standard error."""
    with start(broker, *arguments, **extra) as process:
        out, err = process.communicate(stdin, timeout=30)
        return process.returncode, out, err.decode()


def published(broker: FakeBroker) -> list[tuple[str, bytes]]:
    return [(command["topic"], command["payload"]) for command in broker.commands if command["action"] == "PUB"]


# ---- pub -------------------------------------------------------------------------------------------------------------


def test_pub_sends_one_message_and_confirms_it(broker: FakeBroker) -> None:
    assert run(broker, "pub", "site/1/temp", "21.5 °C") == (0, b"Sent 8 bytes to site/1/temp.\n", "")
    assert published(broker) == [("site/1/temp", "21.5 °C".encode())]


def test_pub_waits_for_a_ping_answer_before_it_ends(broker: FakeBroker) -> None:
    broker.silent.add("PING")
    with start(broker, "-q", "pub", "a", "x") as process:
        seq = broker.wait_for("PING")[0]["seq"]
        assert process.poll() is None
        broker.send(fake_broker.reply(seq))
        broker.silent.clear()
        assert process.wait(20) == 0
    assert [command["action"] for command in broker.commands][:3] == ["HELLO", "PUB", "PING"]


def test_short_names_quiet_and_options_after_the_command_work(broker: FakeBroker) -> None:
    assert run("127.0.0.1:1", "p", "a", "x", "-q", "--ttl", "500", "--addr", broker.address) == (0, b"", "")
    assert broker.wait_for("PUB")[0]["ttl_ms"] == 500


def test_pub_verbose_prints_the_connection_on_standard_error(broker: FakeBroker) -> None:
    assert run(broker, "-v", "pub", "a", "x") == (0, b"Sent 1 byte to a.\n", f"Connected to {broker.address}.\n")


def test_pub_dash_sends_each_line_as_it_is(broker: FakeBroker) -> None:
    lines = [b"plain", b"", b"\xff\x00binary\r", "°".encode(), b" spaces ", b"last has no newline"]
    assert run(broker, "pub", "a", "-", stdin=b"\n".join(lines)) == (0, b"Sent 6 messages to a.\n", "")
    assert [payload for _, payload in published(broker)] == lines


def test_pub_dash_sends_each_line_immediately(broker: FakeBroker) -> None:
    with start(broker, "-q", "pub", "a", "-") as process:
        assert process.stdin is not None
        for number, line in enumerate((b"one\n", b"two\nthr", b"ee\n")):
            process.stdin.write(line)
            process.stdin.flush()
            broker.wait_for("PUB", number + 1)
        process.stdin.close()
        assert process.wait(20) == 0
    assert [payload for _, payload in published(broker)] == [b"one", b"two", b"three"]


def test_pub_dash_keeps_the_order_of_many_lines(broker: FakeBroker) -> None:
    lines = [b"%d" % number for number in range(5_000)]  # several reads; the fake broker must handle them in time
    assert run(broker, "-q", "pub", "a", "-", stdin=b"\n".join(lines) + b"\n") == (0, b"", "")
    assert [payload for _, payload in published(broker)] == lines


def test_pub_file_is_one_message_of_any_bytes(broker: FakeBroker, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(bytes(range(256)) * 400 + b"\n")
    assert run(broker, "pub", "a", "--file", str(path)) == (0, b"Sent 100 KiB to a.\n", "")
    assert published(broker) == [("a", path.read_bytes())]


def test_a_message_may_begin_with_a_dash_and_hold_any_bytes(broker: FakeBroker) -> None:
    assert run(broker, "-q", "pub", "a", "-5")[0] == 0
    assert run(broker, "-q", "pub", "a", "--", "-x")[0] == 0
    with start(broker, "-q", "pub", "a", os.fsdecode(b"\xff\xfe")) as process:
        assert process.wait(20) == 0
    assert [payload for _, payload in published(broker)] == [b"-5", b"-x", b"\xff\xfe"]


def test_qos_1_is_passed_on_and_the_refusal_explained(broker: FakeBroker) -> None:
    status, out, err = run(broker, "pub", "a", "x", "--qos", "1")
    assert (status, out) == (1, b"")
    assert err.startswith("blipmq-cli: Publish to a was refused (503): QoS 1 needs the WAL")
    assert run(broker, "pub", "a", "-", "--qos", "1", stdin=b"x\n")[0] == 1


def test_a_publish_that_the_broker_refuses_is_not_called_sent(broker: FakeBroker) -> None:
    broker.refusals["PUB"] = (403, "read only key")
    status, out, err = run(broker, "pub", "a", "x")
    assert (status, out) == (77, b"")
    assert "read only key" in err
    broker.refusals["PUB"] = (413, "too large")
    assert run(broker, "pub", "a", "-", stdin=b"x\n" * 10)[0] == 1


def test_pub_dash_reports_the_sent_lines_when_the_broker_is_lost(broker: FakeBroker) -> None:
    with start(broker, "pub", "a", "-") as process:
        assert process.stdin is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        broker.wait_for("PUB")
        broker.kick()
        _, err = process.communicate(b"two\n", timeout=20)
        assert process.returncode == 69
    assert b"may be lost" in err


# ---- sub, unsub ------------------------------------------------------------------------------------------------------


def feed(broker: FakeBroker, *payloads: bytes, topic: str = "a.b", ttl_ms: int = 0) -> None:
    """Publish from inside the broker once the subscriber exists."""
    broker.wait_for("SUB")
    broker.call(lambda: [broker.publish(topic, payload, ttl_ms) for payload in payloads] and None)


def test_sub_in_a_pipe_prints_topic_tab_payload_and_ends_after_the_count(broker: FakeBroker) -> None:
    with start(broker, "sub", "a.*", "-n", "2") as process:
        feed(broker, b"one", b"\xfftwo", b"three")
        assert process.communicate(timeout=20) == (b"a.b\tone\na.b\t\xfftwo\n", b"")
        assert process.returncode == 0


def test_sub_quiet_prints_payload_bytes_and_a_newline_only(broker: FakeBroker) -> None:
    with start(broker, "-q", "s", "a.*", "--count", "3") as process:
        feed(broker, b"one", b"\xff\x00", b"")
        assert process.communicate(timeout=20) == (b"one\n\xff\x00\n\n", b"")


def test_sub_json_is_one_object_a_line(broker: FakeBroker) -> None:
    with start(broker, "sub", "a.*", "-n", "2", "-f", "json") as process:
        feed(broker, "21 °C\n".encode(), b"\xff\x00", ttl_ms=5)
        out, _ = process.communicate(timeout=20)
    first, second = (json.loads(line) for line in out.splitlines())
    assert first == {
        "id": 1,
        "topic": "a.b",
        "payload": "21 °C\n",
        "timestamp": 1_760_000_000_123,
        "ttl_ms": 5,
        "qos": 0,
        "redelivered": False,
        "sequence": 1,
    }
    assert "payload" not in second
    assert (base64.b64decode(second["payload_base64"]), second["sequence"]) == (b"\xff\x00", 2)


def test_sub_writes_to_a_pipe_immediately(broker: FakeBroker) -> None:
    with start(broker, "-q", "sub", "a.*") as process:
        assert process.stdout is not None
        for number in range(3):
            feed(broker, b"%d" % number)
            assert process.stdout.readline() == b"%d\n" % number
        process.terminate()


def test_a_closed_output_pipe_ends_sub_silently(broker: FakeBroker) -> None:
    with start(broker, "-q", "sub", "a.*") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        feed(broker, b"x")
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        feed(broker, b"y")
        assert process.wait(20) == 141
        assert process.stderr.read() == b""


def test_an_interrupted_sub_ends_with_130_and_sums_up_if_asked(broker: FakeBroker) -> None:
    for arguments, words in ((["sub"], ""), (["-v", "sub"], "1 message in ")):
        with start(broker, *arguments, "a.*") as process:
            assert process.stdout is not None
            broker.commands.clear()
            feed(broker, b"x")
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
            assert process.returncode == 130
            assert b"Traceback" not in err
            assert words in err.decode()
            assert bool(err) is bool(words)


def test_sub_reconnects_after_a_broker_restart_and_reports_it(broker: FakeBroker) -> None:
    with start(broker, "sub", "a.*", "-n", "2") as process:
        feed(broker, b"before")
        assert process.stdout is not None
        assert process.stdout.readline() == b"a.b\tbefore\n"
        broker.stop()
        broker.commands.clear()
        broker.start()
        feed(broker, b"after")
        out, err = process.communicate(timeout=20)
    assert out == b"a.b\tafter\n"
    assert err.decode().count("Reconnecting…") == 1
    assert err.endswith(b"Connected again.\n")


def test_sub_passes_qos_durable_and_group_on(broker: FakeBroker) -> None:
    arguments = ["sub", "a", "--qos", "1", "--durable", "--client-id", "me", "--group", "g"]
    status, _, err = run(broker, *arguments)
    assert (status, "503" in err) == (1, True)
    sub = broker.wait_for("SUB")[0]
    assert (sub["qos"], sub["durable"], sub["group"]) == (1, 1, "g")
    assert broker.commands[0]["client_id"] == "me"
    assert run(broker, "sub", "a", "--durable")[0] == 2


def test_unsub_ends_a_durable_subscription_by_name(broker: FakeBroker) -> None:
    status, _, err = run(broker, "unsub", "a", "--client-id", "me")
    assert (status, "no such subscription" in err) == (1, True)
    broker.durables = {("me", "a"), ("you", "a")}
    assert run(broker, "u", "a", "--client-id", "me") == (0, b"Ended the subscription of me to a.\n", "")
    assert broker.durables == {("you", "a")}


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_prints_short_plain_sentences(broker: FakeBroker) -> None:
    broker.info = INFO
    status, out, err = run(broker, "info")
    assert (status, out.decode(), err) == (0, INFO_TEXT, "")


def test_info_json_prints_the_broker_answer_unchanged(broker: FakeBroker) -> None:
    broker.info = INFO
    status, out, _ = run(broker, "stats", "--format", "json")
    assert (status, json.loads(out), out.count(b"\n")) == (0, INFO, 1)


def test_info_accepts_an_answer_with_missing_fields(broker: FakeBroker) -> None:
    broker.info = {"state": None, "subscriptions": ["?", {}], "messages": 5, "memory": {"used_bytes": 5}, "topics": "x"}
    status, out, _ = run(broker, "info")
    assert status == 0
    assert out.startswith(b"BlipMQ unknown at unknown\nState          unknown\nMemory         5 bytes\n")


def test_info_watch_runs_until_interrupted(broker: FakeBroker) -> None:
    with start(broker, "info", "--watch", "-f", "json") as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["version"] for _ in range(2)] == ["fake", "fake"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["pub", "a", "x", "--addr", "127.0.0.1:1"], 69, "nothing listens there. Start the broker"),
        (["pub", "a", "x", "--addr", "127.0.0.1:99999"], 2, "between 1 and 65535"),
        (
            ["pub", "a", "x", "--key-file", "/does/not/exist"],
            78,
            "Cannot read the key file /does/not/exist: No such file",
        ),
        (["pub", "a", "x", "--ttl", "-1"], 2, "--ttl"),
        (["pub", "a", "x", "--qos", "2"], 2, "--qos"),
        (["pub", "a"], 2, "Give one message source: MESSAGE"),
        (["pub", "a", "x", "--file", "y"], 2, "Give one message source: MESSAGE"),
        (["pub", "a", "--file", "/does/not/exist"], 2, "Cannot read /does/not/exist"),
        (["pub", "a.*", "x"], 2, "wildcards are for subscribing"),
        (["sub", "a.*/+"], 2, "keep to one kind"),
        (["sub", "a", "-n", "x"], 2, "whole number"),
        (["unsub", "a"], 2, "--client-id"),
        (["nonsense"], 2, "nonsense"),
        ([], 2, "COMMAND"),
        (["-q", "-v", "info"], 2, "not allowed with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_failure_has_its_exit_status_and_message_on_standard_error(
    broker: FakeBroker, arguments: list[str], status: int, words: str
) -> None:
    got, out, err = run(broker, *arguments)
    assert (got, out) == (status, b"")
    assert words in err
    assert "Traceback" not in err
    assert published(broker) == []


def test_a_bad_address_in_the_environment_is_a_bad_configuration() -> None:
    status, _, err = run("http://broker:7878", "info")
    assert (status, "$BLIPMQ_ADDR" in err) == (78, True)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("BLIPMQ_ADR", "BLIPMQ_ADDR"), ("BLIPMQ_ADDRESS", "BLIPMQ_ADDR"), ("BLIPMQ_API_KEYS", "BLIPMQ_API_KEY")],
)
def test_a_misspelt_variable_is_a_bad_configuration(broker: FakeBroker, misspelt: str, meant: str) -> None:
    status, _, err = run(broker, "info", **{misspelt: "x"})
    assert (status, f"${misspelt}" in err, f"Did you mean ${meant}?" in err) == (78, True, True)
    assert broker.commands == []


def test_variables_of_the_broker_and_other_programs_are_ignored(broker: FakeBroker) -> None:
    others = {
        "BLIPMQ_SERVER__BIND_ADDR": "x",
        "BLIPMQ_CONFIG": "x",
        "BLIPMQ_PORT_7878_TCP_ADDR": "x",
        "BLIPMQ_IMAGE": "x",
    }
    assert run(broker, "info", **others)[0] == 0


def test_the_key_is_read_from_the_file_before_the_environment(tmp_path: Path) -> None:
    right, wrong, empty = (tmp_path / name for name in ("right", "wrong", "empty"))
    right.write_text("s3cret\n")
    wrong.write_text("other")
    empty.write_text("\n")
    with FakeBroker(api_key="s3cret") as broker:
        assert run(broker, "-q", "pub", "a", "x", "--key-file", str(right), BLIPMQ_API_KEY="ignored") == (0, b"", "")
        assert run(broker, "-q", "pub", "a", "x", BLIPMQ_API_KEY="s3cret") == (0, b"", "")
        status, _, err = run(broker, "pub", "a", "x", "--key-file", str(wrong))
        assert (status, "unknown API key" in err, "BLIPMQ_API_KEY" in err) == (77, True, True)
        assert run(broker, "pub", "a", "x", "--key-file", str(empty))[0] == 78


def test_the_command_line_does_not_import_heavy_modules() -> None:
    code = "import sys, blipmq.cli.client; print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(), check=True).stdout
    heavy = {
        "asyncio",
        "uvloop",
        "msgspec",
        "cffi",
        "_cffi_backend",
        "json",
        "dataclasses",
        "inspect",
        "logging",
        "ssl",
    }
    assert not heavy & set(eval(out))


# ---- terminals -------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_emoji_and_escapes_control_characters_in_payloads(broker: FakeBroker) -> None:
    with Terminal([*CLI, "-v", "sub", "a.*", "-n", "1"], {"BLIPMQ_ADDR": broker.address}) as terminal:
        terminal.expect("✅ Subscribed to a.*.")
        feed(broker, "21 °C \x1b[2J\x07\x9b".encode() + b"\xff")
        terminal.expect("📥 a.b  21 °C \\x1b[2J\\x07\\x9b\\xff\r\n")
        terminal.expect("📊 1 message in ")
        assert terminal.end() == 0
    with Terminal([*CLI, "pub", "a.b", "x"], {"BLIPMQ_ADDR": broker.address}) as terminal:
        terminal.expect("📤 Sent 1 byte to a.b.\r\n")
        assert terminal.end() == 0
    with Terminal([*CLI, "info"], {"BLIPMQ_ADDR": broker.address}) as terminal:
        terminal.expect("📊 BlipMQ fake at unknown\r\n")
    with Terminal([*CLI, "pub", "a.*", "x"], {"BLIPMQ_ADDR": broker.address}) as terminal:
        terminal.expect("❌ The topic 'a.*' holds '*'")
        assert terminal.end() == 2


def test_a_terminal_with_no_color_gets_plain_text(broker: FakeBroker) -> None:
    with Terminal([*CLI, "pub", "a.b", "x"], {"BLIPMQ_ADDR": broker.address, "NO_COLOR": "1"}) as terminal:
        assert terminal.expect("Sent 1 byte to a.b.\r\n") == "Sent 1 byte to a.b.\r\n"
        assert terminal.end() == 0


# ---- functions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1], [3, 1, 5], [1 << 20]])
def test_lines_are_assembled_from_partial_reads(sizes: list[int]) -> None:
    stream = b"a\n\nbb\r\nlong " + b"x" * 50 + b"\nend"
    rest, turn = [stream], [0]

    def read(most: int) -> bytes:
        size = sizes[turn[0] % len(sizes)]
        turn[0] += 1
        data, rest[0] = rest[0][:size], rest[0][size:]
        return data

    assert [line for lines in read_lines(read) for line in lines] == stream.split(b"\n")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (120_000, "117 KiB"),
        (5 << 40, "5 TiB"),
        (3 << 50, "3072 TiB"),
    ],
)
def test_sizes_are_written_in_words(size_bytes: int, text: str) -> None:
    assert render.bytes_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "less than a second"),
        (1, "1 second"),
        (125, "2 minutes 5 seconds"),
        (86_400, "1 day"),
        (90_061, "1 day 1 hour"),
    ],
)
def test_durations_are_written_in_words(seconds: float, text: str) -> None:
    assert render.duration_text(seconds) == text


def test_a_redelivered_message_is_marked_on_a_terminal() -> None:
    message = Message(1, "a", b"x", 0, 0, 1, True)
    assert render.render_fancy([message]).decode() == "📥 a (again)  x\n"


def test_a_reconnect_is_announced_once_per_outage() -> None:
    said: list[str] = []
    notices = render.ReconnectNotices(lambda emoji, text: said.append(f"{emoji} {text}"))
    for state in ("connecting", "connected", "disconnected", "connecting", "disconnected", "connecting", "connected"):
        notices(state, Disconnected("Gone.") if state == "disconnected" else None)
    assert said == ["❌ Gone. Reconnecting…", "✅ Connected again."]


def test_the_help_names_every_command_with_its_short_name() -> None:
    text = make_parser().format_help()
    assert all(words in text for words in ("pub (p)", "sub (s)", "unsub (u)", "info (stats)", "--addr", "--key-file"))
