"""State reported in INFO and to operators: degraded with reasons, the sensors of the board, the memory budget."""

import asyncio
import errno

import pytest
from raw_client import RawClient

import blipmq
from blipmq.base import hardware
from blipmq.base.affinity import ANY, choose_processors, processor_numbers
from blipmq.base.hardware import read_hardware
from blipmq.broker import status
from blipmq.broker.status import Status
from blipmq.config.reader import from_dict
from blipmq.errors import ConfigError
from blipmq.native.config import CoreConfig
from blipmq.native.core import Core
from blipmq.native.events import STATS_FIELDS, SUMS_FIELDS, Accepting, Listed, SessionsListed, Stats, Subscriber
from blipmq.sessions.connections import Connections
from blipmq.wire import frames as wire


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def stepped():
    """A stepped core, its status, and a function that returns the next report."""
    core, clock = Core(CoreConfig(ring_bytes=1 << 16)), Clock()
    gathering = Status(core, Connections(), clock, budget_bytes=0)

    def settle():
        while True:
            core.wait(0)
            core.turn(int(clock.seconds * 1000), 0)
            events = list(core.events())
            for event in events:
                {
                    Stats: gathering.stats,
                    Listed: gathering.listed,
                    SessionsListed: gathering.session_lists.listed,
                }[type(event)](event)
            if not events:
                return

    def report():
        reports = []
        gathering.ask_report(reports.append)
        settle()
        return reports[0]

    gathering.settle, gathering.now = settle, clock
    yield gathering, report
    core.free()


def test_an_idle_broker_is_ok(stepped):
    assert (stepped[1]()["state"], stepped[1]()["reasons"]) == ("ok", [])


def test_uptime_counts_from_the_start(stepped):
    gathering, report = stepped
    gathering.now.seconds += 90.5
    assert report()["uptime_s"] == 90


def test_paused_accepting_is_a_reason_until_it_resumes(stepped):
    gathering, report = stepped
    gathering.accepting(Accepting(True, errno.EMFILE))
    (reason,) = report()["reasons"]
    assert reason.startswith("new connections are not accepted: Too many open files; raise the limit on open files")
    gathering.accepting(Accepting(False, 0))
    assert report()["state"] == "ok"


def test_memory_near_its_budget_is_a_reason(stepped):
    gathering, report = stepped
    gathering.budget_bytes = 1
    described = report()
    assert described["state"] == "degraded" and described["reasons"][0].startswith("memory: ")
    assert described["memory"]["budget_bytes"] == 1
    assert not gathering.memory_is_short  # not requested yet
    gathering.tick()
    gathering.settle()
    assert gathering.memory_is_short


def test_concurrent_requests_share_one_answer(stepped):
    gathering, _ = stepped
    answers = []
    for _ in range(1000):
        gathering.ask_report(answers.append)
    gathering.settle()
    assert len(answers) == 1000
    assert all(answer is answers[0] for answer in answers)


def test_rates_cover_the_last_seconds(stepped):
    gathering, _ = stepped
    base = dict.fromkeys(STATS_FIELDS, 0)
    gathering._history.append((1000.0, base))
    gathering.now.seconds = 1002.0
    rates, dropping = gathering._rates({**base, "published": 300, "delivered": 500, "dropped_queue_full": 7})
    assert (rates, dropping) == ({"in_per_s": 150.0, "out_per_s": 250.0}, 7)
    assert "full queues dropped 7 messages" in gathering._reasons(dropping, 0)[0]


def test_history_is_bounded(stepped):
    gathering, _ = stepped
    for _ in range(100):
        gathering.tick()
        gathering.settle()
    assert len(gathering._history) == status.RATE_SECONDS + 1


def test_subscriptions_over_the_memory_budget_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(Status, "memory_is_short", True)
    with blipmq.Broker({"server": {"bind_addr": "127.0.0.1:0"}}) as broker, RawClient(broker.address) as client:
        client.hello("a").say(wire.SUB, "t", seq=4)
        assert client.next() == wire.Reply(
            4, 503, "limits.memory_bytes is reached: try again later, or raise it", 0, b""
        )


def test_a_flood_of_subscriptions_ends_at_the_budget():
    config = {"server": {"bind_addr": "", "max_message_size_bytes": 4096}, "limits": {"memory_bytes": 1 << 20}}

    async def scene():
        async with blipmq.Broker(config) as broker, broker.connect() as client:
            refusals = 0
            for number in range(1000):
                try:
                    await client.subscribe(f"{'x' * 240}.{number}")
                except blipmq.errors.Refused:
                    refusals += 1
                if number % 50 == 0:
                    broker._status.tick()
            counters = await broker.stats()
            assert counters["subscriptions"] == 1000 - refusals

    asyncio.run(asyncio.wait_for(scene(), 60))


# ---- settings passed to the core ----


def test_every_setting_reaches_the_core():
    changed = {
        "server": {"max_connections": 7, "max_message_size_bytes": 5000, "keepalive_ms": 26_000},
        "queues": {
            "topic_capacity": 8, "subscriber_capacity": 9, "subscriber_bytes": 8192, "overflow_policy": "block",
        },
        "qos1": {"session_expiry_ms": 28, "session_log_bytes": 29, "session_overflow": "drop"},
        "delivery": {"max_batch": 3, "max_batch_bytes": 4096, "flush_interval_ms": 4, "default_ttl_ms": 5},
        "performance": {
            "enable_timer_wheel": False,
            "warm_up_pools": True,
            "timer_config": {"resolution_ms": 2, "max_timeout_ms": 6000},
            "pool_config": {
                "buffer_small_count": 11, "buffer_medium_count": 12, "buffer_large_count": 13, "message_batch_count": 14,
            },
            "batch_config": {"ttl_max_batch_size": 15, "fanout_max_batch_size": 16, "channel_capacity": 300},
            "network_optimizations": {"tcp_nodelay": False, "send_buffer_size": 17, "recv_buffer_size": 18},
        },
        "limits": {
            "memory_bytes": 1 << 22, "route_cache_entries": 19, "max_topic_levels": 20, "hello_timeout_ms": 121,
            "max_sessions_per_key": 27, "max_pending": 22, "max_pending_per_address": 23, "accept_rate": 24, "accept_burst": 25,
        },
    }  # fmt: skip
    core = CoreConfig.of(from_dict(changed))
    assert core == CoreConfig(
        max_connections=7, max_frame_bytes=6024, subscriber_messages=9, subscriber_bytes=8192, overflow_policy=2,
        max_batch=3, max_batch_bytes=4096, flush_interval_ms=4, default_ttl_ms=5, lazy_expiry=1, warm_entries=14,
        warm_buffers=13, tick_ms=2, max_ttl_ms=6000, pool_small_count=11, pool_medium_count=12, pool_large_count=13,
        expire_batch=15, flush_subscribers=16, tcp_nodelay=0, send_buffer_bytes=17, recv_buffer_bytes=18,
        memory_bytes=1 << 22, route_cache_entries=19, ring_bytes=1 << 17, run_messages=8,
        max_topic_levels=20, hello_timeout_ms=121, max_pending=22, max_pending_per_address=23, accept_rate=24, accept_burst=25,
        keepalive_ms=26_000, max_sessions_per_key=27, session_expiry_ms=28, session_log_bytes=29, session_overflow=1,
    )  # fmt: skip


def test_pools_and_batches_can_be_switched_off():
    off = {"performance": {"enable_memory_pools": False, "enable_batch_processing": False, "warm_up_pools": True}}
    core = CoreConfig.of(from_dict({**off, "delivery": {"flush_interval_ms": 9}}))
    assert (core.pool_small_count, core.pool_medium_count, core.pool_large_count) == (0, 0, 0)
    assert (core.warm_entries, core.warm_buffers) == (0, 0)
    assert (core.max_batch, core.flush_interval_ms) == (1, 0)


# ---- processors


def test_processors_are_chosen_from_the_allowed_set(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 3})
    assert choose_processors("") == (ANY, frozenset())
    assert choose_processors("auto") == (3, {0, 2})
    assert choose_processors("2") == (2, frozenset())
    assert choose_processors("0, 2,3") == (0, {2, 3})
    with pytest.raises(ConfigError, match=r"this process may not use processor 1 \(0, 2, 3\)"):
        choose_processors("0,1")


def test_auto_shares_a_single_processor(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert choose_processors("auto") == (ANY, frozenset())


@pytest.mark.parametrize("text", ["Auto", "0;1", "-1", "0,", "all"])
def test_an_invalid_processor_list_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        processor_numbers(text)
    with pytest.raises(ConfigError, match="cpu_affinity"):
        from_dict({"performance": {"network_optimizations": {"cpu_affinity": text}}})


# ---- board ----


def board(root, model="Raspberry Pi 4 Model B Rev 1.4\0", temperature="48312\n", throttled="0\n"):
    for path, text in {
        "proc/device-tree/model": model,
        "sys/class/thermal/thermal_zone0/temp": temperature,
        "sys/devices/platform/soc/soc:firmware/get_throttled": throttled,
    }.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    return read_hardware(str(root))


def test_a_raspberry_pi_reports_its_temperature(tmp_path):
    assert board(tmp_path) == {"temperature_c": 48.312, "throttled": False, "undervoltage": False}


def test_a_raspberry_pi_is_recognized_with_a_restricted_proc(tmp_path):
    board(tmp_path, model=None)
    (tmp_path / "sys/firmware/devicetree/base").mkdir(parents=True)
    (tmp_path / "sys/firmware/devicetree/base/model").write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    assert read_hardware(str(tmp_path)) == {"temperature_c": 48.312, "throttled": False, "undervoltage": False}


@pytest.mark.parametrize(
    ("word", "throttled", "undervoltage"),
    [("1", False, True), ("4", True, False), ("2", True, False), ("50005", True, True), ("50000", False, False)],
)
def test_the_current_firmware_flags_are_used_and_not_those_since_boot(tmp_path, word, throttled, undervoltage):
    described = board(tmp_path, throttled=word)
    assert (described["throttled"], described["undervoltage"]) == (throttled, undervoltage)


def test_other_machines_report_no_hardware_values(tmp_path):
    assert read_hardware(str(tmp_path)) is None
    assert board(tmp_path, model="Some Other Board") is None


def test_a_raspberry_pi_without_sensors_is_reported(tmp_path):
    assert board(tmp_path, temperature=None, throttled="?") == {
        "temperature_c": None, "throttled": None, "undervoltage": None,
    }  # fmt: skip


def test_a_weak_power_supply_is_a_reason(stepped, monkeypatch):
    weak: hardware.Hardware = {"temperature_c": 85.0, "throttled": True, "undervoltage": True}
    monkeypatch.setattr(status, "read_hardware", lambda: weak)
    described = stepped[1]()
    assert described["hardware"] == weak
    assert [reason.split(":")[0] for reason in described["reasons"]] == ["under-voltage", "throttled"]


def test_the_deepest_queues_are_found_on_any_page(stepped):
    gathering, _ = stepped
    empty = Subscriber(0, 0, 0, 0, 0, 0, 0, 1, 0, bytes(16), 0)
    depths = [(number * 7919) % 1000 for number in range(1000)]
    reports = []
    gathering.ask_report(reports.append)
    gathering.stats(Stats(gathering._round, dict.fromkeys(STATS_FIELDS, 0)))
    for at in range(0, 1000, 32):
        rows = [empty._replace(queued_messages=depth, flags=depth % 2) for depth in depths[at : at + 32]]
        gathering.listed(Listed(gathering._round, at + 32 if at + 32 < 1000 else 0, rows))
    gathering.session_lists.listed(SessionsListed(1, False, dict.fromkeys(SUMS_FIELDS, 0), []))
    listed = [row["queued_messages"] for row in reports[0]["subscriptions"]]
    assert listed == sorted(depths, reverse=True)[: status.SUBSCRIBERS_MAX]
    assert reports[0]["subscribers"] == {"total": 1000, "blocked": 500}
