"""The WAL from the Python side: combined settings, QoS 1 of an embedded broker, error reports, and the tool."""

import asyncio
import base64
import errno
import json
import struct
import time

import pytest

import blipmq
from blipmq.broker import wal
from blipmq.broker.message_ids import first_message_id
from blipmq.broker.wal import Wal
from blipmq.cli import server as cli
from blipmq.config import memory
from blipmq.config.reader import from_dict, load
from blipmq.config.settings import Config
from blipmq.errors import ConfigError, LogLocked, LogUnusable
from blipmq.native.config import CoreConfig, WalConfig
from blipmq.native.core import Core
from blipmq.native.events import STATS_FIELDS
from blipmq.native.wal import WAL_REFUSED, WAL_VERSION, WalReport, WalState, wal_denied, wal_error
from blipmq.native.wal_tool import WalFinding, WalMode, WalProgress, WalRecord, walk_wal

SMALL_CORE = CoreConfig(ring_bytes=1 << 16)
SMALL_WAL = {"segment_size_bytes": 1 << 19, "max_bytes": 1 << 21}


def embedded(directory, **log):
    wal_section = {"directory": str(directory), "segment_size_bytes": 8 << 20, **log}
    return {"server": {"bind_addr": ""}, "wal": wal_section, "qos1": {"ack_timeout_ms": 100}}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "data" / "wal"


# ---- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"directory": ""}, "wal.directory: empty, but the WAL needs a directory"),
        ({"segment_size_bytes": 16_777_217}, "is not a multiple of 4096"),
        ({"block_bytes": 3000}, "wal.block_bytes: 3000 is not a power of two"),
        ({"max_bytes": 1 << 20}, "is over a quarter of wal.max_bytes"),
        ({"segment_size_bytes": 1 << 20}, "which messages of server.max_message_size_bytes"),
    ],
)
def test_conflicting_wal_settings_are_refused(log, message):
    with pytest.raises(ConfigError) as caught:
        from_dict({"wal": log})
    assert message in str(caught.value)
    assert from_dict({"wal": {**log, "enabled": False}})


def test_a_block_larger_than_an_eighth_of_a_segment_is_refused():
    small = {"server": {"max_message_size_bytes": 64}, "wal": {**SMALL_WAL, "block_bytes": 65536}}
    assert from_dict(small).wal.block_bytes == 65536
    with pytest.raises(ConfigError, match="is not a power of two"):
        from_dict({**small, "wal": {**SMALL_WAL, "block_bytes": 65528}})


@pytest.mark.parametrize("size", [64, 4096, 65536, 1 << 20, 4 << 20])
def test_a_dead_letter_of_the_largest_message_fits_in_half_a_batch(size):
    config = from_dict({"server": {"max_message_size_bytes": size}})
    letter = size + 2 * 256 + 512
    assert letter <= memory.wal_batch_bytes(config) // 2
    assert WalConfig.of(config).batch_bytes == memory.wal_batch_bytes(config) <= config.wal.segment_size_bytes // 2


def test_every_accepted_pair_of_sizes_opens_a_wal(tmp_path):
    for number, (size, segment) in enumerate([(64, 1 << 19), (65536, 1 << 20), (1 << 20, 8 << 20)]):
        config = from_dict(
            {
                "server": {"max_message_size_bytes": size},
                "wal": {"segment_size_bytes": segment, "max_bytes": 4 * segment, "block_bytes": 4096},
            }
        )
        core = Core(SMALL_CORE)
        assert core.open_wal(str(tmp_path / str(number)), WalConfig.of(config)).next_lsn == 1
        core.free()


def test_the_memory_sum_grows_with_qos_1_and_wal_settings():
    unbounded = {"limits": {"memory_bytes": 0}, "queues": {"subscriber_capacity": 100}}
    base = memory.worst_bytes(from_dict(unbounded))
    assert memory.worst_bytes(from_dict({**unbounded, "qos1": {"max_in_flight": 512}})) > base
    assert memory.worst_bytes(from_dict({**unbounded, "wal": {"max_bytes": 1 << 40}})) > base
    assert memory.worst_bytes(from_dict({**unbounded, "wal": {"enabled": False}})) < base


def test_the_command_line_has_a_wal_by_default_and_an_embedded_broker_only_if_configured(tmp_path):
    assert load(None, {}).config.wal.enabled
    for settings in (None, {}, {"wal": {"flush_interval_ms": 1}}):
        assert not blipmq.Broker(settings).config.wal.enabled
    assert blipmq.Broker({"wal": {"directory": str(tmp_path)}}).config.wal.enabled
    assert blipmq.Broker({"wal": {"enabled": True}}).config.wal.enabled
    assert blipmq.Broker(Config()).config.wal.enabled
    with pytest.raises(ConfigError, match=r"wal is a section"):
        blipmq.Broker({"wal": 1})


def test_ids_without_a_wal_follow_the_clock_and_are_exact_in_json():
    assert first_message_id(0) == 1  # a board without a clock
    in_2026, a_moment_later, in_2090 = 1_790_000_000.0, 1_790_000_000.001, 3_786_000_000.0
    assert 1 < first_message_id(in_2026) < first_message_id(a_moment_later) < first_message_id(in_2090) < 1 << 53


# ---- embedded brokers --------------------------------------------------------------------------------------------------


def test_an_embedded_broker_with_a_directory_stores_qos_1_messages(directory):
    async def first():
        async with blipmq.Broker(embedded(directory)) as broker:
            async with broker.connect(client_id="me") as client, client.subscribe("t", qos=1, durable=True):
                pass
            async with broker.connect() as client:
                return await client.publish("t", b"kept", qos=1)

    async def second():
        async with blipmq.Broker(embedded(directory)) as broker, broker.connect(client_id="me") as client:
            async with client.subscribe("t", qos=1, durable=True) as messages:
                async for message in messages:
                    client.ack(message)
                    return message

    id_, message = asyncio.run(first()), asyncio.run(second())
    assert (message.id, message.payload, message.qos) == (id_, b"kept", 1)


def test_missing_parent_directories_of_the_wal_are_created(directory):
    with blipmq.Broker(embedded(directory)) as broker:
        assert broker.info()["log"]["directory"] == str(directory)
    assert any(file.name.startswith("wal-") for file in directory.iterdir())


def test_two_embedded_brokers_cannot_share_a_wal(directory):
    async def scene():
        async with blipmq.Broker(embedded(directory)):
            with pytest.raises(LogLocked, match="another broker uses the WAL"):
                await blipmq.Broker(embedded(directory)).start()

    asyncio.run(scene())


def test_a_broker_that_could_not_open_its_wal_can_be_restarted(directory):
    async def scene():
        directory.parent.mkdir()
        directory.write_text("a file in place of the WAL")
        broker = blipmq.Broker(embedded(directory))
        with pytest.raises(LogUnusable, match=r"cannot be opened: .*Correct the cause"):
            await broker.start()
        directory.unlink()
        await broker.start()
        await broker.stop()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errno.EACCES, 77),
        (errno.EROFS, 77),
        (errno.ENOTDIR, 78),
        (errno.EIO, 71),
        (errno.ENOENT, 71),
        (errno.ENOMEM, 71),
        (0, 71),
    ],
)
def test_system_errors_are_reported_with_their_text_and_a_remedy(error, status):
    denied = wal_denied("data/wal", error)
    assert denied.exit_status == status
    assert "data/wal" in str(denied) and "wal.directory" in str(denied)


def test_an_unrecoverable_wal_is_refused_with_one_line():
    refused = wal_error(WAL_REFUSED, "data/wal", 0)
    assert (type(refused), refused.exit_status) == (LogUnusable, 78)
    assert "durable subscriptions could not be restored" in str(refused) and "Nothing was changed" in str(refused)


def test_a_wal_of_a_newer_version_is_refused_with_one_line():
    refused = wal_error(WAL_VERSION, "data/wal", 0)
    assert (type(refused), refused.exit_status) == (LogUnusable, 78)
    assert "a newer version of BlipMQ wrote the WAL" in str(refused) and "Nothing was changed" in str(refused)


# ---- reports -----------------------------------------------------------------------------------------------------------


class Lines:
    """A replacement for a log: records the lines."""

    def __init__(self):
        self.written = []

    def __getattr__(self, level):
        return lambda event, **facts: self.written.append((level, event, facts))


def wal_with(**found):
    return Wal("data/wal", WalReport(*[found.get(name, 0) for name in WalReport._fields]), Lines())


def counters(**values):
    return {**dict.fromkeys(STATS_FIELDS, 0), "log_state": WalState.OK, **values}


def test_a_failed_wal_is_reported_once_and_is_a_health_reason():
    log = wal_with()
    failed = counters(log_state=WalState.FAILED, log_errno=errno.EIO)
    for _ in range(3):
        log.observe(failed)
    ((level, event, facts),) = log._log.written
    assert (level, event, facts["error"]) == ("error", "log_failed", "Input/output error")
    (reason,) = log.reasons(failed)
    assert reason.startswith("WAL: disk error (Input/output error); QoS 1 publishes are refused")
    assert log.facts(failed)["state"] == "failed"


def test_a_full_wal_and_its_recovery_are_reported_each_time():
    log = wal_with()
    for state in (WalState.OK, WalState.FULL, WalState.FULL, WalState.OK):
        log.observe(counters(log_state=state))
    assert [event for _, event, _ in log._log.written] == ["log_full", "log_has_room"]
    assert log.reasons(counters()) == []


def test_a_loss_remains_a_health_reason_with_its_exact_bounds():
    log = wal_with(lost_first_lsn=5, lost_last_lsn=9, lost_ranges=1)
    (reason,) = log.reasons(counters())
    assert reason.startswith("WAL: damaged; records between 5 and 9 (1 range) are lost")
    assert log.facts(counters())["lost"] == {"first_lsn": 5, "last_lsn": 9, "ranges": 1, "exact": True}
    log._tell(0.1)
    assert [event for _, event, _ in log._log.written] == ["log_opened", "log_damaged"]


def test_unreadable_records_are_a_health_reason():
    assert "3 records could not be read for a subscriber" in wal_with().reasons(counters(lost_lsns=3))[0]


def test_lost_dead_letters_are_reported_once_and_dropped_ones_are_a_health_reason():
    log = wal_with()
    for now in (counters(dead_letters_unclaimed=2), counters(dead_letters_unclaimed=2, dead_letters_dropped=3)):
        log.observe(now)
        log.observe(now)
    assert [(event, facts["messages"]) for _, event, facts in log._log.written] == [
        ("dead_letters_unclaimed", 2),
        ("dead_letters_dropped", 3),
    ]
    assert log.reasons(counters(dead_letters_unclaimed=2)) == []
    assert log.reasons(counters(dead_letters_dropped=3))[0].startswith("WAL: 3 dead letters are lost")


def test_a_dead_letter_is_exported_with_its_properties():
    from blipmq.cli.wal import record_fact

    def record(topic, payload, properties, flags):
        head = struct.pack("=5Q2I", 9, 8, 0, 7, 6, len(topic), len(properties))
        return record_fact(WalRecord(5, 1, head + topic + payload + properties, flags))

    short = record(b"$dlq/jobs", b"poison", struct.pack("=Q2I", 3, 16, 0), 1)
    about = {"reason": "max_deliveries", "topic": "jobs", "id": "3", "deliveries": "16"}
    assert (short["topic"], short["payload_base64"], short["headers"]) == ("$dlq/jobs", "cG9pc29u", about)
    whole = record(b"$dlq/jobs", b"", b"\x26\0\x01a\0\x02bc", 0)
    assert (whole["payload_base64"], whole["headers"]) == ("", {"a": "bc"})
    assert "headers" not in record(b"jobs", b"x", b"", 0)


def test_subscriptions_with_failed_wal_reads_are_a_health_reason():
    (reason,) = wal_with().reasons(counters(sessions_unread=2))
    assert reason.startswith("WAL: 2 subscriptions get no messages")


def test_a_long_replay_reports_its_progress(monkeypatch):
    """The replay continues until its progress is reported: the test simulates the WAL thread."""
    lines, seen = Lines(), []

    class SlowCore:
        def wal_progress(self):
            seen.append(1)
            return 0.25

        def open_wal(self, directory, config):
            while not seen:
                time.sleep(0.001)
            return WalReport(*[0] * len(WalReport._fields))

    monkeypatch.setattr(wal, "PROGRESS_SECONDS", 0.001)
    asyncio.run(Wal.open(SlowCore(), Config(), lines))
    assert ("info", "log_replay", {"progress": "25.0%"}) in lines.written
    assert lines.written[-1][1] == "log_opened"


# ---- tool --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(directory):
    """The WAL of a stopped broker: a durable subscription and three messages."""

    async def scene():
        async with blipmq.Broker(embedded(directory)) as broker, broker.connect(client_id="me") as client:
            async with client.subscribe("site/1", qos=1, durable=True):
                return [await client.publish("site/1", payload, qos=1) for payload in (b"\xff", b"two", b"")]

    return asyncio.run(scene())


def tool(capsys, *arguments):
    status = cli.main(["wal", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def damage(directory, text):
    """Flip a bit at the first position of `text`."""
    for file in directory.iterdir():
        data = bytearray(file.read_bytes())
        if text in data:
            data[data.find(text)] ^= 1
            file.write_bytes(data)


def test_verify_accepts_an_intact_wal_and_changes_nothing(capsys, directory, kept):
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    status, out, err = tool(capsys, "verify", "--directory", str(directory))
    assert (status, err) == (0, "")
    assert out.startswith("verified: ") and out.endswith("; closed in order; no record is missing\n")
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before


def test_verify_names_the_damage_and_repair_keeps_the_rest(capsys, directory, kept):
    damage(directory, b"site/1two")
    status, out, _ = tool(capsys, "verify", "--directory", str(directory))
    assert status == 1
    assert "damaged: segment 1, " in out and "1 records are lost in 1 ranges" in out
    status, out, _ = tool(capsys, "verify", "--directory", str(directory), "--format", "json")
    items = [json.loads(line) for line in out.splitlines()]
    assert status == 1 and {"damaged", "lost"} <= {item.get("finding") for item in items}
    assert items[-1]["done"] == "verify" and items[-1]["lost_records"] == 1
    assert tool(capsys, "repair", "--directory", str(directory))[0] == 1
    status, out, _ = tool(capsys, "export", "--directory", str(directory))
    ids = [record["id"] for record in map(json.loads, out.splitlines()) if record["type"] == "publish"]
    assert ids == [kept[0], kept[2]]


def test_export_writes_every_record_as_a_json_line(capsys, directory, kept):
    status, out, err = tool(capsys, "export", "--directory", str(directory))
    records = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    published = [record for record in records if record["type"] == "publish"]
    assert [(r["id"], r["topic"], base64.b64decode(r["payload_base64"])) for r in published] == list(
        zip(kept, ["site/1"] * 3, [b"\xff", b"two", b""], strict=True)
    )
    (subscribed,) = [record for record in records if record["type"] == "subscribe"]
    assert (subscribed["filter"], subscribed["client_id"], subscribed["qos"]) == ("site/1", "me", 1)
    assert not [record for record in records if record["type"].startswith("type ")]
    lsns = [record["lsn"] for record in records if record["type"] != "checkpoint"]
    assert lsns == sorted(set(lsns))


def test_the_tool_finds_the_configured_wal(capsys, directory, kept, tmp_path):
    file = tmp_path / "blipmq.toml"
    file.write_text(f'[wal]\ndirectory = "{directory}"\n')
    assert tool(capsys, "verify", "--config", str(file))[0] == 0


def test_the_tool_does_not_run_beside_a_broker(capsys, directory):
    with blipmq.Broker(embedded(directory)):
        status, out, err = tool(capsys, "verify", "--directory", str(directory))
    assert (status, out) == (69, "")
    assert err.startswith("blipmq: a broker uses the WAL in ") and "Stop it first" in err


def test_the_tool_creates_no_wal_in_an_empty_directory(capsys, tmp_path):
    status, _, err = tool(capsys, "verify", "--directory", str(tmp_path / "none"))
    assert status == 71 and "No such file or directory" in err
    assert not (tmp_path / "none").exists()


def test_a_record_of_a_later_version_is_exported_completely():
    from blipmq.cli.wal import record_fact

    assert record_fact(WalRecord(9, 13, b"\x01")) == {"type": "type 13", "data_base64": "AQ=="}
    assert record_fact(WalRecord(9, 1, b"short")) == {"type": "type 1", "data_base64": "c2hvcnQ="}


def test_progress_is_shown_only_on_terminals(capsys, directory, kept):
    from blipmq.cli.wal import _Progress

    half = WalProgress(1 << 20, 2 << 20)
    _Progress(False).show(half)
    assert capsys.readouterr().err == ""
    shown = _Progress(True)
    shown.show(half)
    shown.clear()
    assert capsys.readouterr().err == "\r 50.0% of 2 MiB read\r\x1b[K"


def test_the_record_iteration_ends_with_the_totals(directory, kept):
    items = list(walk_wal(str(directory), WalMode.VERIFY))
    assert not [item for item in items if isinstance(item, WalFinding)]
    assert (items[-1].lost_ranges, items[-1].clean) == (0, 1)
