"""Metrics: every declared series is exported in both formats, and each changes when its event happens."""

import contextlib
import mmap
import os
import shutil
import socket
import ssl
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import websocket_peer
from broker_process import until
from certificates import Authority
from hand_client import vanish
from raw_client import RawClient
from watched_broker import WatchedBroker, parse_openmetrics, parse_text, read_series

from blipmq.auth import keys
from blipmq.base.process import read_process, started_at
from blipmq.config.reader import from_dict
from blipmq.config.settings import Config
from blipmq.native.events import STATS_FIELDS, SYNC_BUCKETS
from blipmq.ops import metrics
from blipmq.ops.exposition import LABEL_CHARS_MAX, Snapshot, expose
from blipmq.ops.metrics import METRICS
from blipmq.ops.metrics_page import reference
from blipmq.version import __version__
from blipmq.wire import frames as wire

ROOT = Path(__file__).parent.parent
SCRAPES_MAX = 3000
ACTS_MAX = 30_000

DOCUMENTED = [
    "blipmq_published", "blipmq_enqueued", "blipmq_dropped_ttl", "blipmq_dropped_sub_queue_full", "blipmq_flush_bytes",
    "blipmq_flush_batches", "blipmq_timer_wheel_insertions", "blipmq_timer_wheel_expirations",
    "blipmq_timer_wheel_cascades", "blipmq_pool_cache_hits", "blipmq_pool_cache_misses", "blipmq_pool_allocations",
    "blipmq_batch_processing_efficiency", "blipmq_memory_pool_utilization",
]  # fmt: skip


def declared():
    """Every series that does not belong to one subscriber, in query form, with its documented names."""
    for metric in METRICS:
        for series in metric.series:
            labels = ",".join(f'{name}="{value}"' for name, value in series.labels)
            yield metric.name + series.ending + (f"{{{labels}}}" if labels else "")
            if series.documented:
                yield series.documented


# ---- each series changes when its cause happens ----


class Scene:
    """One broker, the clients of one test, and the scrapes before and after."""

    def __init__(self, watched):
        self.watched = watched
        self.clients = []
        self.open = []
        self.again = lambda: None  # repeats the cause of a series whose new value may equal the old one
        self.finish = lambda: None  # cleanup that must run before the clients close

    def client(self, name="", small_window=False):
        if not small_window:
            client = RawClient(self.watched.address)
        else:  # a receive buffer of a few KiB, so that little data fills it
            client = RawClient.__new__(RawClient)
            client.socket = socket.socket()
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.socket.settimeout(20)
            host, _, port = self.watched.address.rpartition(":")
            client.socket.connect((host, int(port)))
            client._stream = client.socket.makefile("rb")
        self.clients.append(client)
        return client.hello(name) if name else client

    def stuck(self, name="stuck", filter_="slow"):
        """A subscriber that does not read and whose socket is full."""
        client = self.client(name, small_window=True).subscribe(filter_)
        return client

    def publish(self, topic, payload=b"x", count=1, ttl_ms=0):
        """Publish, and wait until the broker has read everything."""
        feeder = self.client("feeder-" + str(len(self.clients)))
        frame = wire.encode_command(wire.PUB, topic, payload, ttl_ms=ttl_ms)
        feeder.send(*[frame] * count)
        return feeder

    def close(self):
        self.finish()
        for client in self.clients:
            client.close()
        for item in self.open:
            item.close()


BIG = bytes(60_000)
FEW = {"queues": {"subscriber_capacity": 20}, "performance": {"network_optimizations": {"send_buffer_size": 4096}}}


def messages_flow(scene):
    reader = scene.client("reader").subscribe("a.*")
    scene.publish("a.b", b"hello", 200)
    scene.publish("nobody.listens", b"x", 3)
    # a burst is routed once; a topic is looked up again after publishes of other clients
    scene.publish("a.b", b"again")
    for _ in range(201):
        reader.next()


def a_subscriber_is_stuck(scene):
    scene.stuck()
    scene.publish("slow", BIG, 100)


def messages_expire(scene):
    scene.stuck()
    scene.publish("slow", BIG, 15, ttl_ms=400)


def a_stuck_subscriber_leaves(scene):
    stuck = scene.stuck()
    scene.publish("slow", BIG, 15).say(wire.PING, seq=5)
    scene.clients[-1].next()
    stuck.close()


def publishers_are_held_back(scene):
    scene.stuck()
    scene.publish("slow", BIG, 60)


def a_client_publishes_to_many_topics_at_once(scene):
    frames = b"".join(wire.encode_command(wire.PUB, f"many.{number}", b"") for number in range(1000))
    until_stats(scene, lambda now: now["share_stops"], lambda: scene.client().send(frames))


def a_client_talks_nonsense(scene):
    scene.client().send(b"\x00\x00\x00\x08GET / HT")


def unadmitted_clients_and_a_key_with_few_rights_connect(scene):
    """The key file does not exist when the broker starts."""
    key = keys.add_key("keys", "sensor", ["pub:site/1"])
    deadline = time.monotonic() + 60
    while not scene.watched.scrape()["blipmq_keys"]:  # the file is checked twice a second
        assert time.monotonic() < deadline, "the key file was not read"
    scene.client().hello(api_key=key).say(wire.PUB, "site/2", b"x")
    scene.client().say(wire.HELLO, protocol=1)


def one_key_has_all_it_may(scene):
    key = KEYED["auth"]["api_keys"][0]
    first = scene.client().hello("a", api_key=key)
    scene.client().say(wire.HELLO, client_id="b", api_key=key, protocol=1)
    for filter_ in "ab":
        first.say(wire.SUB, filter_, qos=1, seq=5)
        first.next()


def a_forgotten_subscription_is_over_its_quota(scene):
    subscribe_qos1(scene, "orders", "gone", durable=True).close()
    writer = scene.client("writer")
    until_stats(scene, lambda now: now["dropped_session_log"], lambda: publish_qos1(writer, "orders", bytes(4000)))


def nobody_comes_back_to_a_subscription(scene):
    subscribe_qos1(scene, "orders", "gone", durable=True).close()
    until_stats(scene, lambda now: now["sessions_expired"])


def too_many_subscriptions_are_made(scene):
    client = scene.client("many")
    for filter_ in "ab":
        client.say(wire.SUB, filter_, qos=1, seq=5)
        client.next()


def too_many_connect(scene):
    for _ in range(4):
        scene.client()


def connections_come_faster_than_they_may(scene):
    for _ in range(4):
        scene.client()


def a_page_of_another_origin_and_a_program_come_over_websocket(scene):
    host, _, port = scene.watched.broker.websocket_address.rpartition(":")
    for sent in websocket_peer.request(), websocket_peer.request(Origin="https://another.example"):
        client = socket.create_connection((host, int(port)), timeout=30)
        scene.clients.append(client)
        client.sendall(sent)
        assert client.recv(4096).startswith(b"HTTP/1.1 ")


KEYED = {"auth": {"api_keys": ["a-key-that-nobody-comes-with"]}}


def unadmitted_clients_connect(scene):
    for _ in range(4):
        scene.client()  # loopback clients: the last two displace the first two, and then reach their own deadline

    def others():  # in one batch, before the broker detects that it does not need them
        for number in range(3):
            scene.watched.broker._core.attach(1_000_000 + number, peer=("198.51.100.7", 1))

    scene.watched.call(others)


def a_stranger_waits(scene):
    scene.client()


def a_client_leaves(scene):
    scene.client("short").close()


def clients_are_gone_without_a_word(scene):
    silent = scene.client()
    silent.say(wire.HELLO, seq=1, protocol=1, keepalive_ms=1)
    assert silent.next().keepalive_ms == 1000
    vanish(scene.client("vanished").socket)
    for cause in "vanished", "silent":
        until(lambda: scene.watched.scrape()[f'blipmq_connections_lost_total{{cause="{cause}"}}'], "it is noticed")  # noqa: B023


def slow_queues_are_compacted(scene):
    scene.stuck("rare", "rare")
    reader = scene.client("bulk").subscribe("bulk")
    feeder = scene.client("feeder")
    for _ in range(6):  # each segment contains one stored message and many delivered ones
        feeder.say(wire.PUB, "rare", bytes(9_000))
        for _ in range(5):
            feeder.say(wire.PUB, "bulk", BIG)
            reader.next()


def the_process_works(scene):
    scene.open.append(open(os.devnull))
    block = mmap.mmap(-1, 64 << 20)
    for at in range(0, len(block), mmap.PAGESIZE):
        block[at] = 1
    scene.open.append(block)
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    scene.open.append(SimpleNamespace(close=lambda: (release.set(), thread.join())))
    sum(range(3_000_000))


def http_is_abused(scene):
    address = scene.watched.admin.address
    host, _, port = address.rpartition(":")
    for _ in range(20):
        scene.open.append(socket.create_connection((host, int(port)), 20))
    scene.open[-1].sendall(b"nonsense\r\n\r\n")


def settings_are_reloaded(scene):
    new = from_dict(
        {
            "server": {"bind_addr": "127.0.0.1:0"},
            "queues": {"subscriber_capacity": 77, "subscriber_bytes": 2_000_000},
            "limits": {"memory_bytes": 0},
        }
    )
    scene.watched.call(scene.watched.broker.apply, new)


def a_changed_configuration_is_refused(scene):
    scene.watched.call(scene.watched.broker.reload_refused, "1 problem in the configuration:\nblipmq.toml:3: no")


def the_broker_begins_to_stop(scene):
    scene.stuck()
    scene.publish("slow", BIG, 15).say(wire.PING, seq=5)
    scene.clients[-1].next()
    scene.stopping = scene.watched.start(scene.watched.broker.stop(20_000))


def a_file_is_written(scene):
    file = open("filler", "wb")
    scene.open.append(file)
    file.write(os.urandom(1 << 20))
    file.flush()
    os.fsync(file.fileno())


# ---- QoS 1


LOGGED = {"wal": {"directory": "log"}}
QUICK = {"qos1": {"ack_timeout_ms": 100, "max_deliveries": 2}}
# The smallest possible WAL: four files, each twice the size of a sync batch.
SMALL_WAL = {
    "server": {"max_message_size_bytes": 4096},
    "wal": {"directory": "log", "segment_size_bytes": 512 << 10, "max_bytes": 2 << 20, "reserve_bytes": 0},
}


def subscribe_qos1(scene, filter_, client_id="", durable=False):
    client = scene.client(client_id or f"reader-{len(scene.clients)}")
    client.say(wire.SUB, filter_, qos=1, seq=3, durable=durable)
    assert client.next().code == 0
    return client


def publish_qos1(client, topic, payload=b"x"):
    """Publish and wait for the answer; returns its code."""
    client.say(wire.PUB, topic, payload, qos=1, seq=4)
    return client.next().code


def until_stats(scene, change, act=lambda: None):
    """Repeat an action until the core's counters satisfy the condition."""
    for _ in range(ACTS_MAX):
        if change(scene.watched.run(scene.watched.broker.stats())):
            return
        act()
    raise AssertionError("it never happened")


def qos1_messages_flow(scene):
    reader, writer = subscribe_qos1(scene, "orders"), scene.client("writer")
    for settled in True, False:
        assert publish_qos1(writer, "orders") == 0
        message = reader.next()
        if settled:
            reader.say(wire.ACK, seq=message.id)
    # A sync may take zero microseconds, or as long as the sync before the first scrape.
    scene.again = lambda: publish_qos1(writer, "elsewhere")


def what_is_not_acknowledged_comes_again(scene):
    reader = subscribe_qos1(scene, "orders")
    assert publish_qos1(scene.client("writer"), "orders") == 0
    assert not reader.next().redelivered and reader.next().redelivered


def publishes_wait_for_the_disk(scene):
    """One publish is pending almost always: the next is sent once one is answered."""
    writer, ended = scene.client("writer"), threading.Event()

    def work():
        while not ended.is_set():
            publish_qos1(writer, "orders")

    thread = threading.Thread(target=work)
    thread.start()
    scene.finish = lambda: (ended.set(), thread.join())


def a_subscriber_goes_away_and_the_log_fills_up(scene):
    subscribe_qos1(scene, "orders", "away", durable=True).close()
    writer = scene.client("writer")
    for _ in range((2 << 20) // 4000):
        if publish_qos1(writer, "orders", bytes(4000)):
            return
    raise AssertionError("the WAL holds more than wal.max_bytes")


def the_log_goes_round(scene):
    reader, writer = subscribe_qos1(scene, "orders"), scene.client("writer")

    def one():
        # otherwise it is full until the next checkpoint frees space
        if publish_qos1(writer, "orders", bytes(4000)) == 0:
            reader.say(wire.ACK, seq=reader.next().id)

    until_stats(scene, lambda now: now["log_reclaimed_segments"], one)


def the_log_fails(scene):
    """Its directory is deleted, so it cannot create the next file."""
    shutil.rmtree("log")
    writer = scene.client("writer")
    until_stats(scene, lambda now: now["log_errno"], lambda: publish_qos1(writer, "orders", bytes(4000)))


def the_disk_returns_something_else(scene):
    subscribe_qos1(scene, "orders", "away", durable=True).close()
    assert publish_qos1(scene.client("writer"), "orders", b"a payload to be found") == 0
    until_stats(scene, lambda now: now["sessions_behind"])  # from here on the messages are only in the WAL
    for file in Path("log").glob("wal-*"):
        content = file.read_bytes()
        at = content.find(b"a payload to be found")
        if at >= 0:
            with file.open("r+b") as stream:
                stream.seek(at)
                stream.write(b"A")
    subscribe_qos1(scene, "orders", "away", durable=True)


def the_logs_file_is_not_there(scene):
    subscribe_qos1(scene, "orders", "away", durable=True).close()
    assert publish_qos1(scene.client("writer"), "orders", b"unread") == 0
    until_stats(scene, lambda now: now["sessions_behind"])
    for file in Path("log").glob("wal-*"):
        file.rename(f"moved-{file.name}")
    subscribe_qos1(scene, "orders", "away", durable=True)


TLS = {
    "server": {"tls_bind_addr": "127.0.0.1:0"},
    "tls": {"cert_file": "broker.pem", "key_file": "broker.key"},
    "limits": {"max_pending": 20},
}


def tls_clients_come_and_the_certificate_changes(scene):
    host, _, port = scene.watched.broker.tls_address.rpartition(":")
    certificates = scene.watched.broker.tls.certificates
    cert, key = Authority(Path.cwd()).sign("renewed", days=30)
    key.replace("broker.key")
    cert.replace("broker.pem")
    until(lambda: certificates.certificate.subject == "renewed", "the new certificate is in use")
    Path("broker.pem").write_text("broken")
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    scene.open.append(trusting.wrap_socket(socket.create_connection((host, int(port)))))
    for _ in range(TLS["limits"]["max_pending"] + 20):
        scene.open.append(socket.create_connection((host, int(port))))
    with contextlib.suppress(OSError):
        scene.open[-1].sendall(b"not TLS at all")  # the last one: it is not displaced


CAUSES = [
    (
        messages_flow, {},
        """blipmq_messages_published_total blipmq_published blipmq_messages_unrouted_total blipmq_messages_enqueued_total
        blipmq_enqueued blipmq_messages_delivered_total blipmq_payload_published_bytes_total
        blipmq_frames_received_total blipmq_last_message_id blipmq_flushes_total blipmq_flush_batches
        blipmq_sent_bytes_total blipmq_flush_bytes blipmq_batch_processing_efficiency blipmq_connections
        blipmq_connections_accepted_total blipmq_subscriptions blipmq_filters blipmq_subscribers
        blipmq_subscriber_enqueued_total blipmq_subscriber_delivered_total blipmq_route_cache_topics
        blipmq_route_lookups_total{result="hit"} blipmq_route_lookups_total{result="miss"} blipmq_memory_used_bytes
        blipmq_memory_peak_bytes blipmq_memory_free_bytes blipmq_memory_pool_utilization
        blipmq_pool_takes_total{result="hit"} blipmq_pool_takes_total{result="miss"} blipmq_pool_cache_hits
        blipmq_pool_cache_misses blipmq_pool_allocations blipmq_core_turns_total blipmq_core_work_units_total
        blipmq_admin_requests_total""",
    ),
    (
        a_subscriber_is_stuck, FEW,
        """blipmq_messages_dropped_total{reason="queue_full"} blipmq_dropped_sub_queue_full blipmq_queue_messages
        blipmq_queue_bytes blipmq_subscribers_blocked blipmq_subscriber_queue_messages blipmq_subscriber_queue_bytes
        blipmq_subscriber_blocked blipmq_subscriber_dropped_total{reason="queue_full"} blipmq_segments
        blipmq_degraded""",
    ),
    (
        messages_expire, {"performance": {"timer_config": {"resolution_ms": 1}, **FEW["performance"]}},
        """blipmq_messages_dropped_total{reason="ttl"} blipmq_dropped_ttl blipmq_timers_armed_total
        blipmq_timer_wheel_insertions blipmq_timers_expired_total blipmq_timer_wheel_expirations
        blipmq_timers_cascaded_total blipmq_timer_wheel_cascades blipmq_subscriber_dropped_total{reason="ttl"}""",
    ),
    (a_stuck_subscriber_leaves, FEW, 'blipmq_messages_dropped_total{reason="disconnect"}'),
    (
        publishers_are_held_back, {**FEW, "queues": {"subscriber_capacity": 5, "overflow_policy": "block"}},
        "blipmq_publisher_pauses_total blipmq_publishers_blocked",
    ),
    (a_client_talks_nonsense, {}, "blipmq_frames_bad_total"),
    (a_client_publishes_to_many_topics_at_once, {}, "blipmq_core_share_stops_total"),
    (
        too_many_connect, {"server": {"max_connections": 2}},
        'blipmq_connections_refused_total{reason="max_connections"}',
    ),
    (
        a_page_of_another_origin_and_a_program_come_over_websocket, {"server": {"ws_bind_addr": "127.0.0.1:0"}},
        "blipmq_websocket_connections blipmq_websocket_refused_total",
    ),
    (connections_come_faster_than_they_may, {"limits": {"accept_rate": 1, "accept_burst": 2}}, "blipmq_accept_rests_total"),
    (
        unadmitted_clients_connect,
        {**KEYED, "limits": {"max_pending": 2, "max_pending_per_address": 1, "hello_timeout_ms": 100}},
        """blipmq_connections_refused_total{reason="max_pending"} blipmq_connections_hello_timeouts_total
        blipmq_connections_refused_total{reason="max_pending_per_address"}""",
    ),
    (a_stranger_waits, KEYED, "blipmq_connections_pending"),
    (
        one_key_has_all_it_may,
        {**KEYED, **LOGGED, "limits": {"max_connections_per_key": 1, "max_sessions_per_key": 1}},
        """blipmq_connections_refused_total{reason="max_connections_per_key"}
        blipmq_sessions_refused_total{reason="max_sessions_per_key"}""",
    ),
    (
        a_forgotten_subscription_is_over_its_quota,
        {**SMALL_WAL, "qos1": {"session_log_bytes": 65536, "session_overflow": "drop"}},
        'blipmq_messages_dropped_total{reason="session_log_bytes"} blipmq_sessions_over_quota_total',
    ),
    (
        nobody_comes_back_to_a_subscription, {**LOGGED, "qos1": {"session_expiry_ms": 100}},
        "blipmq_sessions_expired_total",
    ),
    (
        too_many_subscriptions_are_made, {**LOGGED, "limits": {"max_sessions": 1}},
        'blipmq_sessions_refused_total{reason="max_sessions"}',
    ),
    (a_client_leaves, {}, "blipmq_connections_closed_total"),
    (
        clients_are_gone_without_a_word, {"server": {"keepalive_ms": 2000}},
        'blipmq_connections_lost_total{cause="vanished"} blipmq_connections_lost_total{cause="silent"}',
    ),
    (slow_queues_are_compacted, FEW, "blipmq_segment_compacted_bytes_total"),
    (
        the_process_works, {},
        """process_cpu_seconds_total process_resident_memory_bytes process_virtual_memory_bytes process_open_fds
        process_threads""",
    ),
    (http_is_abused, {}, "blipmq_admin_bad_requests_total blipmq_admin_connections_cut_total"),
    (
        settings_are_reloaded, {},
        """blipmq_queue_limit_messages blipmq_queue_limit_bytes blipmq_memory_budget_bytes
        blipmq_config_reloads_total{result="applied"}""",
    ),
    (
        a_changed_configuration_is_refused, {},
        'blipmq_config_reloads_total{result="refused"} blipmq_config_last_reload_successful',
    ),
    (
        unadmitted_clients_and_a_key_with_few_rights_connect, {"auth": {"keys_file": "keys"}},
        """blipmq_keys blipmq_keys_file_ok blipmq_logins_refused_total
        blipmq_publishes_refused_total{reason="not_allowed"}""",
    ),
    (the_broker_begins_to_stop, FEW, "blipmq_ready"),
    (a_file_is_written, {}, "blipmq_disk_free_bytes"),
    (
        qos1_messages_flow, LOGGED,
        """blipmq_messages_acknowledged_total blipmq_messages_in_flight blipmq_sessions blipmq_log_next_lsn
        blipmq_log_durable_lsn blipmq_log_records_total blipmq_log_written_bytes_total blipmq_log_sync_seconds_sum
        blipmq_log_sync_seconds_count blipmq_log_sync_seconds_bucket{le="+Inf"} blipmq_log_sync_last_seconds
        blipmq_session_connections blipmq_session_in_flight""",
    ),
    (
        what_is_not_acknowledged_comes_again, {**LOGGED, **QUICK},
        """blipmq_messages_redelivered_total blipmq_messages_dead_lettered_total
        blipmq_messages_dead_lettered_unclaimed_total""",
    ),
    (publishes_wait_for_the_disk, {"wal": {**LOGGED["wal"], "flush_interval_ms": 1000}}, "blipmq_log_held"),
    (
        a_subscriber_goes_away_and_the_log_fills_up, SMALL_WAL,
        """blipmq_log_state blipmq_sessions_behind blipmq_log_bytes blipmq_log_segments blipmq_sessions_absent
        blipmq_sessions_lag_messages blipmq_sessions_lag_bytes blipmq_session_lag_messages blipmq_session_lag_bytes
        blipmq_session_log_bytes blipmq_session_oldest_seconds""",
    ),
    (the_log_goes_round, SMALL_WAL, "blipmq_log_reclaimed_segments_total blipmq_log_checkpoint_lsn blipmq_log_free_bytes"),
    (the_log_fails, SMALL_WAL, "blipmq_log_errno"),
    (the_disk_returns_something_else, LOGGED, "blipmq_log_lost_records_total blipmq_log_read_bytes_total"),
    (the_logs_file_is_not_there, LOGGED, "blipmq_sessions_unread blipmq_log_read_failures_total"),
    (
        tls_clients_come_and_the_certificate_changes, TLS,
        """blipmq_tls_connections blipmq_tls_handshakes_pending blipmq_tls_handshakes_total{result="done"}
        blipmq_tls_handshakes_total{result="failed"} blipmq_tls_handshakes_total{result="refused"}
        blipmq_tls_certificate_expiry_timestamp_seconds blipmq_tls_certificate_ok""",
    ),
]  # fmt: skip

# Series that do not change, or not on this machine; each has its own test below. The descriptor series is tested in
# test_show_admission.py, that of dropped dead letters in test_core_dead_letters.py.
FIXED = (
    """blipmq_build_info blipmq_connections_max process_max_fds process_start_time_seconds blipmq_scrape_incomplete
    blipmq_log_limit_bytes blipmq_log_reserve_bytes blipmq_board_temperature_celsius blipmq_board_throttled
    blipmq_board_undervoltage blipmq_log_sync_max_seconds blipmq_connections_pending_max
    blipmq_connections_refused_total{reason="descriptors"} blipmq_messages_dead_lettered_dropped_total""".split()
    + [f'blipmq_log_sync_seconds_bucket{{le="{le}"}}' for le in "0.0001 0.0003 0.001 0.003 0.01 0.03 0.1".split()]
)


def matching(scrape, query):
    """The values of the series that a query names; additional labels are allowed."""
    name, _, labels = query.rstrip("}").partition("{")
    return {
        key: value
        for key, value in scrape.items()
        if key.partition("{")[0] == name and all(label in key for label in labels.split(",") if label)
    }


@pytest.mark.parametrize(("cause", "settings", "moved"), CAUSES, ids=[cause[0].__name__ for cause in CAUSES])
def test_each_metric_moves_when_its_cause_happens(cause, settings, moved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "tls" in settings:
        Authority(tmp_path).sign("broker")
    with WatchedBroker(settings) as watched:
        scene = Scene(watched)
        try:
            still = set(moved.split())
            before = watched.scrape()
            cause(scene)
            for _ in range(SCRAPES_MAX):
                after = watched.scrape()
                still = {query for query in still if matching(after, query) == matching(before, query)}
                if not still:
                    break
                scene.again()
            assert not still
        finally:
            scene.close()


def test_every_declared_series_has_a_tested_cause():
    moved = {query for _, _, queries in CAUSES for query in queries.split()}
    assert set(declared()) == moved | set(FIXED)


# ---- constant series ----


def snapshot(report=None, config=None, **stats):
    return Snapshot(
        stats={**dict.fromkeys(STATS_FIELDS, 0), **stats},
        config=config or Config(),
        report=report,
        state={"ready": 1, "degraded": 0},
        reloads={"applied": 0, "refused": 0, "ok": 1},
        auth={"keys": 0, "file_ok": 1, "refused": 0},
        process={"cpu_seconds": 1.5, "started_at": 1.7e9},
        admin={"requests": 1, "bad": 0, "cut": 0},
    )


def report(*rows, **more):
    return {"subscriptions": rows, "subscribers": {"total": len(rows), "blocked": 0}, "hardware": None, **more}


def row(client="", peer="127.0.0.1:9", **numbers):
    names = "queued_messages", "queued_bytes", "enqueued", "delivered", "dropped_ttl", "dropped_queue_full"
    return {"client": client, "peer": peer, "filters": ["a"], "blocked": False, **dict.fromkeys(names, 0), **numbers}


def series(*args, **more):
    return read_series(expose(snapshot(*args, **more)).decode())


def test_settings_that_need_a_restart_are_exported():
    config = from_dict(
        {
            "server": {"max_connections": 123, "bind_addr": "127.0.0.1:0"},
            "wal": {"max_bytes": 234_000_000, "reserve_bytes": 345},
            "limits": {"max_pending": 45},
        }
    )
    told = series(config=config, log_state=1)
    assert (told["blipmq_connections_max"], told["blipmq_connections_pending_max"]) == (123, 45)
    assert (told["blipmq_log_limit_bytes"], told["blipmq_log_reserve_bytes"]) == (234_000_000, 345)


def test_without_a_wal_only_its_absence_is_exported():
    without, with_ = series(), series(log_state=1)
    assert [key for key in without if key.startswith("blipmq_log_")] == ["blipmq_log_state"]
    assert without["blipmq_log_state"] == 0
    assert len([key for key in with_ if key.startswith("blipmq_log_")]) > 25
    assert set(without) < set(with_)


def test_build_info_contains_the_broker_and_python_versions():
    (key,) = matching(series(), "blipmq_build_info")
    assert f'version="{__version__}"' in key and 'python="3.' in key


def test_temperature_and_supply_are_exported_only_on_a_raspberry_pi():
    board = {"temperature_c": 61.25, "throttled": True, "undervoltage": False}
    told = series(report(hardware=board))
    assert told["blipmq_board_temperature_celsius"] == 61.25
    assert (told["blipmq_board_throttled"], told["blipmq_board_undervoltage"]) == (1, 0)
    assert not [key for key in series(report()) if key.startswith("blipmq_board")]
    silent = series(report(hardware={"temperature_c": None, "throttled": None, "undervoltage": None}))
    assert not [key for key in silent if key.startswith("blipmq_board")]


def test_a_scrape_without_subscribers_is_marked_and_has_all_totals():
    without, with_ = series(enqueued=5), series(report(row()), enqueued=5)
    assert (without["blipmq_scrape_incomplete"], with_["blipmq_scrape_incomplete"]) == (1, 0)
    assert "blipmq_subscribers" not in without and with_["blipmq_subscribers"] == 1
    assert without["blipmq_messages_enqueued_total"] == 5


def test_process_metrics_match_the_operating_system(tmp_path):
    self = tmp_path / "proc/self"
    (self / "task").mkdir(parents=True)
    for thread in "17", "18":
        (self / "task" / thread).mkdir()
    (self / "fd").mkdir()
    (self / "statm").write_text("1000 250 100 1 0 200 0\n")
    figures = read_process(tmp_path)
    assert figures["virtual_bytes"] == 4 * figures["resident_bytes"] == 1000 * mmap.PAGESIZE
    assert figures["threads"] == 2
    assert read_process()["max_fds"] > 0 and read_process()["open_fds"] > 0
    assert figures["cpu_seconds"] > 0


def test_process_metrics_are_absent_when_the_system_has_none(tmp_path):
    assert set(read_process(tmp_path)) == {"cpu_seconds"}
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/stat").write_text("1 (blip) mq) S 1 1")
    assert started_at(tmp_path) > started_at()


def test_the_process_start_time_is_constant():
    assert abs(started_at() - started_at()) < 0.05


# ---- the formats


def test_every_documented_name_is_exported_in_both_formats():
    for openmetrics in (False, True):
        text = expose(snapshot(report()), openmetrics).decode()
        exposed = read_series(text, openmetrics)
        assert [name for name in DOCUMENTED if name not in exposed] == []


def test_both_formats_have_the_same_series_with_the_same_values():
    taken = snapshot(
        report(row("a", queued_messages=3), row("b"), disk_free_bytes=7), published=9, flushes=2, delivered=8
    )
    assert read_series(expose(taken).decode()) == read_series(expose(taken, True).decode(), True)


def test_a_counter_name_forbidden_by_openmetrics_has_unknown_type_there():
    text, openmetrics = expose(snapshot()).decode(), expose(snapshot(), True).decode()
    assert "# TYPE blipmq_published counter\n" in text
    assert "# TYPE blipmq_published unknown\n" in openmetrics
    assert "# TYPE blipmq_messages_published_total counter\n" in text
    assert "# TYPE blipmq_messages_published counter\n" in openmetrics
    assert "# TYPE blipmq_batch_processing_efficiency gauge\n" in openmetrics


def test_no_new_name_is_a_documented_name_with_a_standard_suffix():
    assert not {f"{name}_total" for name in DOCUMENTED} & {metric.name for metric in METRICS}


def test_metric_names_end_with_their_type_and_unit():
    for metric in METRICS:
        assert metric.help.endswith(".")
        assert (metric.type == "info") == metric.name.endswith("_info")
        if metric.name not in DOCUMENTED:
            assert (metric.type == "counter") == metric.name.endswith("_total")
        assert [unit for unit in ("bytes", "seconds", "celsius") if unit in metric.name] == [metric.unit] * bool(
            metric.unit
        )


def test_every_counter_of_the_core_is_exported():
    sources = {s.source for metric in METRICS for s in metric.series}
    used = {source.partition(".")[2] for source in sources if source.startswith("stats.")}
    tls = {"open": "connections", "pending": "pending"} | {n: f"handshakes.{n}" for n in ("done", "failed", "refused")}
    assert {f"report.tls.{name}" for name in tls.values()} <= sources
    assert used | {f"secure_{name}" for name in tls} == set(STATS_FIELDS)


def test_a_core_counter_with_two_names_is_exported_under_both():
    series = read_series(expose(snapshot(pool_hits=3, pool_misses=4, delivered_bytes=9), False).decode(), False)
    assert series["blipmq_pool_allocations"] == 7
    assert series["blipmq_sent_bytes_total"] == series["blipmq_flush_bytes"] == 9


def test_sync_histogram_buckets_are_cumulative():
    names = [f"log_syncs_{name}" for name in ("100us", "300us", "1ms", "3ms", "10ms", "30ms", "100ms", "longer")]
    counted = dict(zip(names, [5, 0, 7, 1, 2, 3, 4, 6], strict=True))
    taken = snapshot(log_state=1, log_sync_us_total=2_345_678, **counted)
    for openmetrics in False, True:
        text = expose(taken, openmetrics).decode()
        own = {key: value for key, value in read_series(text, openmetrics).items() if "sync_seconds" in key}
        assert list(own.values()) == [5, 5, 12, 13, 15, 18, 22, 28, 28, 2.345678]
        assert "# TYPE blipmq_log_sync_seconds histogram\n" in text
    bounds = [float(key.split('"')[1]) for key in own if "_bucket" in key]
    assert bounds == [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, float("inf")]


def test_the_longest_sync_is_exported_in_seconds():
    """It need not change with a sync: the first of a run may remain the longest."""
    text = expose(snapshot(log_state=1, log_sync_us_max=1_234_567), False).decode()
    assert read_series(text, False)["blipmq_log_sync_max_seconds"] == 1.234567


def test_a_running_wal_counts_each_sync_in_one_bucket(tmp_path):
    with WatchedBroker({"wal": {"directory": str(tmp_path)}}) as watched:
        scene = Scene(watched)
        writer = scene.client("writer")
        for _ in range(20):
            assert publish_qos1(writer, "orders") == 0
        stats = watched.run(watched.broker.stats())
        scene.close()
    assert sum(stats[name] for name in SYNC_BUCKETS) >= 20


@pytest.mark.parametrize("name", ['qu"ote', "back\\slash", "new\nline", '\\"\n', "é漢🎈", "}", 'x",y="z', "a" * 300])
def test_a_malicious_client_id_is_escaped_in_its_label(name):
    for openmetrics in (False, True):
        text = expose(snapshot(report(row(name, queued_messages=4))), openmetrics).decode()
        read_series(text, openmetrics)
        parse = parse_openmetrics if openmetrics else parse_text
        (sample,) = [
            s for family in parse(text) for s in family.samples if s.name == "blipmq_subscriber_queue_messages"
        ]
        assert sample.labels == {"client": name[:LABEL_CHARS_MAX], "peer": "127.0.0.1:9"}
        assert sample.value == 4


def test_indistinguishable_subscribers_share_one_series():
    twins = row(peer="in-process", queued_messages=3), row(peer="in-process", queued_messages=4)
    assert series(report(*twins))['blipmq_subscriber_queue_messages{client="",peer="in-process"}'] == 7


def test_only_the_deepest_queues_have_their_own_series():
    rows = [row(f"c{number}", queued_messages=1000 - number) for number in range(100)]
    own = matching(series(report(*rows)), "blipmq_subscriber_queue_messages")
    assert len(own) == metrics.SUBSCRIBERS_MAX
    assert min(own.values()) == 1000 - (metrics.SUBSCRIBERS_MAX - 1)


def test_batching_efficiency_is_the_share_of_saved_sends():
    assert series()["blipmq_batch_processing_efficiency"] == 0
    assert series(delivered=100, flushes=100)["blipmq_batch_processing_efficiency"] == 0
    assert series(delivered=100, flushes=1)["blipmq_batch_processing_efficiency"] == 0.99
    assert series(delivered=1, flushes=3)["blipmq_batch_processing_efficiency"] == 0  # three sends, one acknowledgement


def test_pool_utilization_is_the_share_in_use():
    assert series()["blipmq_memory_pool_utilization"] == 0
    assert series(memory_used_bytes=400, pool_free_bytes=100)["blipmq_memory_pool_utilization"] == 0.75


def test_the_documented_reference_matches_the_declarations():
    assert (ROOT / "docs/METRICS.md").read_text(encoding="utf-8") == reference()
