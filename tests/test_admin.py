"""The HTTP endpoint: its answers, its refusals, and the cost of hostile clients."""

import asyncio
import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from raw_client import RawClient
from watched_broker import OPENMETRICS, WatchedBroker, exchange, get, parse_response, read_all, read_series

from blipmq.config.settings import Config
from blipmq.errors import BlipMQError, UsageError
from blipmq.ops import admin, endpoints, http
from blipmq.ops.endpoints import OPENMETRICS_TYPE, TEXT_TYPE, Shared
from blipmq.ops.http import BadRequest, Exchange, quality, read_request
from blipmq.version import __version__
from blipmq.wire import frames as wire

ROOT = Path(__file__).parent.parent


LOOPS = [
    asyncio.new_event_loop,
    *([] if sys.platform == "win32" else [importlib.import_module("uvloop").new_event_loop]),
]


@pytest.fixture(params=LOOPS, ids=lambda new_loop: new_loop.__module__.partition(".")[0])
def watched(request):
    with WatchedBroker(new_loop=request.param) as watched:
        yield watched


@pytest.fixture
def dial(watched):
    """Open sockets to the endpoint; all are closed after the test."""
    opened = []

    def dial(data=b"", to=None):
        host, _, port = (to or watched).admin.address.rpartition(":")
        opened.append(socket.create_connection((host, int(port)), 30))
        opened[-1].sendall(data)
        return opened[-1]

    yield dial
    for connection in opened:
        connection.close()


REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


# ---- answers ----


def test_a_scrape_is_text_unless_openmetrics_is_preferred(watched):
    plain = watched.get("/metrics")
    assert plain.fields["content-type"] == TEXT_TYPE
    read_series(plain.body.decode())
    for accept in (
        OPENMETRICS,
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5",
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    ):
        told = watched.get("/metrics", accept=accept)
        assert told.fields["content-type"] == OPENMETRICS_TYPE
        read_series(told.body.decode(), openmetrics=True)
    for accept in (
        "text/plain",
        "*/*",
        "application/openmetrics-text;q=0",
        "application/json",
        OPENMETRICS + ";q=0.2,text/plain",
    ):
        assert watched.get("/metrics", accept=accept).fields["content-type"] == TEXT_TYPE


def test_a_scrape_is_packed_if_the_client_takes_gzip(watched):
    packed = watched.get("/metrics", accept_encoding="br, gzip;q=0.8")
    assert packed.fields["content-encoding"] == "gzip"
    assert int(packed.fields["content-length"]) < len(packed.body) / 2
    read_series(packed.body.decode())
    assert "content-encoding" not in watched.get("/metrics", accept_encoding="gzip;q=0").fields
    assert "content-encoding" not in watched.get("/livez", accept_encoding="gzip").fields


def test_head_is_answered_without_a_body(watched):
    told = watched.get("/metrics", method="HEAD")
    assert (told.status, told.body) == (200, b"")
    assert int(told.fields["content-length"]) > 1000


def test_query_strings_and_absolute_targets_are_accepted(watched):
    assert watched.get("/livez?verbose=1").status == 200
    assert watched.get(f"http://{watched.admin.address}/livez").status == 200


def test_the_index_lists_all_endpoints(watched):
    told = watched.get("/")
    assert told.status == 200 and __version__ in told.body.decode() and "/healthz" in told.body.decode()
    nowhere = watched.get("/metrics/")
    assert nowhere.status == 404 and b"try /metrics" in nowhere.body


def test_a_running_broker_is_live_ready_and_healthy(watched):
    for path in ("/livez", "/readyz"):
        assert (watched.get(path).status, watched.get(path).body) == (200, b"ok\n")
    told = watched.get("/healthz")
    assert told.status == 200 and told.fields["content-type"] == "application/json"
    assert json.loads(told.body) == {
        "status": "ok", "live": True, "ready": True, "reasons": [], "version": __version__,
    }  # fmt: skip


class StandIn:
    """A broker whose answers a test defines."""

    def __init__(self):
        self.config = Config()
        self.unready = ""
        self.told = []
        self.stuck = False
        self.slow_to_list = False
        self.asked = {"stats": 0, "reasons": 0, "info": 0}
        self.error = None
        self.reloads = {"applied": 0, "refused": 0, "ok": 1}
        self.auth = {"keys": 0, "file_ok": 1, "refused": 0}

    async def _answer(self, name, answer):
        self.asked[name] += 1
        if self.error:
            raise self.error
        if self.stuck or (name == "info" and self.slow_to_list):
            await asyncio.get_running_loop().create_future()
        return answer

    async def stats(self):
        from blipmq.native.events import STATS_FIELDS

        return await self._answer("stats", dict.fromkeys(STATS_FIELDS, 0))

    async def reasons(self):
        return await self._answer("reasons", self.told)

    async def info(self):
        return await self._answer("info", {"subscriptions": [], "subscribers": {"total": 0, "blocked": 0}})


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(endpoints, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(endpoints, "LISTING_SECONDS", 0.05)
    with WatchedBroker(broker=StandIn()) as watched:
        yield watched


def test_an_unresponsive_broker_is_not_live_and_the_answer_names_a_remedy(stand_in):
    stand_in.broker.stuck = True
    for path in ("/livez", "/metrics"):
        told = stand_in.get(path)
        assert told.status == 503 and b"restart the broker" in told.body
    health = stand_in.get("/healthz")
    assert health.status == 503 and json.loads(health.body)["status"] == "failing"
    assert json.loads(health.body)["live"] is False


def test_repeated_probes_send_one_request_to_an_unresponsive_broker(stand_in):
    stand_in.broker.stuck = True
    for _ in range(5):
        assert stand_in.get("/livez").status == 503
    assert stand_in.broker.asked["stats"] == 1


def test_a_broker_that_is_starting_or_stopping_is_live_but_not_ready(stand_in):
    stand_in.broker.error = UsageError("this broker is not running")
    stand_in.broker.unready = "starting"
    assert stand_in.get("/livez").status == 200
    told = stand_in.get("/readyz")
    assert (told.status, told.body) == (503, b"starting\n")
    health = stand_in.get("/healthz")
    assert health.status == 503 and json.loads(health.body)["reasons"] == ["starting"]
    assert stand_in.get("/metrics").status == 503


def test_a_degraded_broker_is_ready_and_names_the_reason(stand_in):
    stand_in.broker.told = ["full queues dropped 3 messages in the last 5 s: see subscriptions"]
    health = stand_in.get("/healthz")
    assert health.status == 200
    assert json.loads(health.body)["status"] == "degraded"
    assert json.loads(health.body)["reasons"] == stand_in.broker.told
    assert stand_in.get("/readyz").status == 200


def test_a_scrape_omits_subscribers_when_listing_them_takes_too_long(stand_in):
    stand_in.broker.slow_to_list = True
    scrape = stand_in.scrape()
    assert scrape["blipmq_scrape_incomplete"] == 1 and "blipmq_subscribers" not in scrape


def test_an_internal_error_is_answered_with_500_and_logged(stand_in):
    stand_in.broker.error = ZeroDivisionError("oops")
    lines = []
    stand_in.admin._log.error = lambda event, **facts: lines.append((event, facts))
    told = stand_in.get("/metrics")
    assert told.status == 500 and b"its log has the cause" in told.body
    assert lines == [("internal_error", {"on": "/metrics", "error": "ZeroDivisionError: oops"})]


def test_a_stopping_broker_is_live_but_not_ready_until_the_end(watched):
    stuck = RawClient(watched.address).hello("stuck").subscribe("a")
    feeder = RawClient(watched.address).hello("feeder")
    for _ in range(200):
        feeder.say(wire.PUB, "a", bytes(60_000))
    feeder.say(wire.PING, seq=9)
    feeder.next()
    stopping = watched.start(watched.broker.stop(20_000))
    while watched.get("/readyz").status == 200:
        pass
    assert watched.get("/readyz").body == b"stopping\n"
    assert watched.get("/livez").status == 200
    stuck.close()
    feeder.close()
    stopping.result(30)
    assert watched.get("/readyz").body == b"stopped\n"
    assert watched.get("/metrics").status == 503


# ---- sharing ----


def test_scrapes_at_the_same_time_share_one_collection():
    async def ask():
        asked, release = 0, asyncio.Event()

        async def question():
            nonlocal asked
            asked += 1
            await release.wait()
            return asked

        shared = Shared(question)
        waiting = [asyncio.create_task(shared.ask()) for _ in range(50)]
        await asyncio.sleep(0)
        release.set()
        assert await asyncio.gather(*waiting) == [1] * 50
        assert await shared.ask() == 2

    asyncio.run(ask())


def test_a_fresh_answer_is_reused_and_a_failed_one_is_not():
    async def ask():
        answers = [UsageError("no"), 1, 2]

        async def question():
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        shared = Shared(question, fresh_seconds=3600)
        with pytest.raises(UsageError):
            await shared.ask()
        assert [await shared.ask() for _ in range(3)] == [1, 1, 1]

    asyncio.run(ask())


def test_a_cancelled_request_does_not_cancel_the_shared_answer():
    async def ask():
        release = asyncio.Event()

        async def question():
            await release.wait()
            return "answer"

        shared = Shared(question)
        patient, hasty = asyncio.create_task(shared.ask()), asyncio.create_task(shared.ask())
        await asyncio.sleep(0)
        hasty.cancel()
        assert await shared.ask(0.01) is None
        release.set()
        assert await patient == "answer"
        await shared.end()

    asyncio.run(ask())


def test_a_request_to_a_stopping_broker_fails_instead_of_hanging():
    async def ask():
        import blipmq

        broker = blipmq.Broker({"server": {"bind_addr": ""}})
        await broker.start()
        asking = asyncio.create_task(broker.info())
        await asyncio.sleep(0)
        broker._core.list = lambda *_: None  # the next page is never requested, as if the stop happened in between
        await broker.stop()
        with pytest.raises(BlipMQError, match="stopped before"):
            await asking

    asyncio.run(ask())


# ---- hostile clients ----


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET  /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n: x\r\n\r\n", 400),
        (b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"\xff\xfe / HTTP/1.1\r\nHost: \xff\r\n\r\n", 405),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000 + b"\r\n", 431),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_an_invalid_request_is_answered_with_the_reason_and_closed(watched, request_, status):
    told = parse_response(exchange(watched.admin.address, request_))
    assert told.status == status
    assert told.fields["connection"] == "close"
    assert watched.get("/livez").status == 200


def test_a_refused_method_lists_the_allowed_methods(watched):
    assert watched.get("/metrics", method="PUT").fields["allow"] == "GET, HEAD"


def test_only_the_first_pipelined_request_is_answered(watched):
    raw = exchange(watched.admin.address, REQUEST * 500)
    assert raw.count(b"HTTP/1.1 ") == 1
    assert parse_response(raw).status == 200


def test_a_request_in_single_bytes_is_read(watched, dial):
    connection = dial()
    for index in range(len(REQUEST)):
        connection.sendall(REQUEST[index : index + 1])
    assert parse_response(read_all(connection)).status == 200


def test_a_client_that_half_closes_after_its_request_gets_the_answer(watched, dial):
    connection = dial(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)
    assert parse_response(read_all(connection)).status == 200


def test_a_client_that_disconnects_during_a_request_leaks_nothing(watched, dial):
    for data in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
        dial(data).close()
    assert watched.get("/livez").status == 200
    while watched.admin._open:
        pass


def test_a_slowly_sent_request_is_closed_at_the_deadline(watched, dial, monkeypatch):
    monkeypatch.setattr(http, "EXCHANGE_SECONDS", (0.2, 10.0))
    connection = dial(b"GET / HTTP/1.1\r\n")
    with pytest.raises(OSError):
        while True:  # each byte in time, but not the whole request
            connection.sendall(b"X")
            time.sleep(0.01)
    assert watched.scrape()["blipmq_admin_connections_cut_total"] == 1


def test_a_client_that_does_not_read_or_close_is_disconnected(watched, dial, monkeypatch):
    monkeypatch.setattr(http, "EXCHANGE_SECONDS", (5.0, 0.2))
    connection = dial(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    # without a scrape, because a slow scrape would be disconnected too
    while not watched.call(lambda: watched.admin._counts["cut"]):
        pass
    with pytest.raises(OSError):
        while True:
            connection.sendall(b"still here")


def test_a_client_that_floods_after_the_answer_is_disconnected(watched, dial):
    connection = dial(REQUEST)
    with pytest.raises(OSError):
        for _ in range(10_000):
            connection.sendall(bytes(65536))
    assert watched.get("/livez").status == 200


def test_stuck_clients_use_only_their_own_connection_slots(watched, dial):
    stuck = [dial(b"GET /metrics HTT") for _ in range(3 * admin.CONNECTIONS_MAX)]
    for _ in range(50):
        assert watched.get("/livez").status == 200
    assert len(watched.admin._open) <= admin.CONNECTIONS_MAX
    assert watched.scrape()["blipmq_admin_connections_cut_total"] >= 2 * admin.CONNECTIONS_MAX
    with pytest.raises(OSError):  # the oldest connection was closed
        while True:
            stuck[0].sendall(b"x")


def test_stopping_closes_all_open_connections(dial):
    with WatchedBroker() as short:
        connection = dial(b"GET /metr", to=short)
        assert get(short.admin.address, "/livez").status == 200
    try:
        assert connection.recv(100) == b""
    except ConnectionResetError:
        pass


def test_a_client_that_is_gone_before_the_answer_causes_no_error():
    """Shutting the socket down raises ENOTCONN in the transport; callbacks of the loop would only log it."""

    class Gone(asyncio.Transport):
        def is_closing(self):
            return False

        def resume_reading(self):
            pass

        def write(self, data):
            pass

        def get_extra_info(self, name, default=None):
            return ("127.0.0.1", 1) if name == "peername" else default

        def write_eof(self):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    class Host:
        def opened(self, exchange):
            pass

        def closed(self, exchange):
            pass

        def refused(self, exchange, why):
            pass

    async def scene():
        loop = asyncio.get_running_loop()
        gone = Gone()
        one = Exchange(Host(), loop)
        one.connection_made(gone)
        one.data_received(b"no request\r\n\r\n")
        one.connection_lost(None)

    asyncio.run(scene())


def test_the_endpoint_can_be_stopped_twice_and_started_again(watched):
    watched.run(watched.admin.stop())
    watched.run(watched.admin.stop())
    watched.run(watched.admin.start())
    assert watched.get("/livez").status == 200


def test_reading_a_request_raises_only_the_documented_error():
    for head in (
        b"",
        b" ",
        b"  ",
        b"\r\n",
        b"GET",
        b"GET  HTTP/1.1",
        b"\x00\x00\x00",
        b"GET http:// HTTP/1.0",
        bytes(range(256)),
    ):
        try:
            assert read_request(head).path.startswith("/")
        except BadRequest as error:
            assert error.answer.status in http.PHRASES and error.answer.body.endswith(b"\n")


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("gzip", 1), ("GZIP", 1), ("br,gzip;q=0.5", 0.5), ("gzip;q=0", 0), ("gzip;q=nan", 0), ("gzip;q=-1", 0), ("gzip;q=9", 1),
        ("gzip;q=", 0), ("gzip;q=x", 0), ("*", 0), ("", 0), (",;,;q=", 0), ("gzipped", 0), ("gzip;level=1;q=0.3", 0.3),
    ],
)  # fmt: skip
def test_quality_values_are_parsed_as_http_defines_them(field, wanted):
    assert quality(field, "gzip") == wanted


# ---- many subscribers


def test_a_scrape_with_ten_thousand_subscribers_is_bounded_and_does_not_stop_delivery():
    count = 10_000
    with WatchedBroker({"server": {"max_connections": count + 10}}) as watched:

        async def crowd():
            clients = []
            for number in range(count):
                client = asyncio.Protocol()
                transport = await watched.broker.open_transport(client)
                transport.write(wire.encode_command(wire.SUB, f"crowd.{number % 100}"))
                clients.append(transport)
            return clients

        clients = watched.run(crowd(), 300)
        reader, feeder = RawClient(watched.address).subscribe("flow"), RawClient(watched.address)
        while watched.run(watched.broker.stats())["subscriptions"] < count + 1:
            pass
        done = threading.Event()
        scrapes = []

        def scrape():
            while not done.is_set():
                scrapes.append(watched.get("/metrics"))

        scrapers = [threading.Thread(target=scrape) for _ in range(4)]
        for thread in scrapers:
            thread.start()
        flowed = 0
        while len(scrapes) < 8 or not flowed:  # on a busy machine eight scrapes may finish before the first message
            feeder.say(wire.PUB, "flow", b"x")
            assert reader.next().payload == b"x"
            flowed += 1
        done.set()
        for thread in scrapers:
            thread.join()
        assert flowed > 0
        for told in scrapes:
            assert told.status == 200 and len(told.body) < 128 * 1024
            read_series(told.body.decode())
        complete = [s for s in (read_series(r.body.decode()) for r in scrapes) if not s["blipmq_scrape_incomplete"]]
        assert complete and all(scrape["blipmq_subscribers"] == count + 1 for scrape in complete)
        reader.close()
        feeder.close()
        assert len(clients) == count


# ---- the process


@pytest.fixture
def started(tmp_path):
    """`blipmq start` with the given settings file; returns the process and a function that reads its log."""
    processes = []

    def started(toml):
        file = tmp_path / "blipmq.toml"
        file.write_text('[server]\nbind_addr = "127.0.0.1:0"\n' + toml)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "blipmq", "start", "--config", file],
            stderr=subprocess.PIPE, text=True, env={**environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        processes.append(process)

        process.file, process.seen = file, []

        def line(event):
            for text in process.stderr:
                process.seen.append(text)
                if text.split(" ")[2].strip() == event:
                    return text
            raise AssertionError(f"no {event}: {process.seen}")

        return process, line

    yield started
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_started_broker_serves_metrics_at_the_logged_address(started):
    process, line = started('[metrics]\nbind_addr = "127.0.0.1:0"\n')
    address = line("metrics").rpartition("address=")[2].strip()
    line("ready")
    assert get(address, "/readyz").status == 200
    assert read_series(get(address, "/metrics").body.decode())["process_threads"] >= 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_rejected_configuration_degrades_health_until_a_valid_one_is_applied(started):
    process, line = started('[metrics]\nbind_addr = "127.0.0.1:0"\n')
    address = line("metrics").rpartition("address=")[2].strip()
    line("ready")
    right = process.file.read_text()

    def reload(text, event):
        process.file.write_text(text)
        process.send_signal(signal.SIGHUP)
        line(event)
        return json.loads(get(address, "/healthz").body), read_series(get(address, "/metrics").body.decode())

    health, scrape = reload(right + "[queues]\nsubscriber_capacity = 0\nsubscriber_bites = 1\n", "reload_failed")
    (reason,) = health["reasons"]
    assert health["status"] == "degraded" and scrape["blipmq_config_last_reload_successful"] == 0
    assert "2 problems" in reason and "blipmq.toml:6" in reason and "did you mean" in reason
    health, scrape = reload(right, "reloaded")
    assert health["status"] == "ok" and scrape["blipmq_config_last_reload_successful"] == 1
    assert scrape['blipmq_config_reloads_total{result="refused"}'] == 1


def test_an_empty_address_turns_the_endpoint_off(started):
    process, line = started('[metrics]\nbind_addr = ""\n')
    line("ready")
    assert process.seen and not any(" metrics" in text for text in process.seen)


def test_a_configured_address_in_use_stops_the_start_with_one_line(started):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process, _ = started(f'[metrics]\nbind_addr = "{address}"\n')
        told = process.stderr.read()
        assert process.wait(30) == 69
    assert f"{address} is in use" in told and "choose another metrics.bind_addr" in told


def test_the_broker_starts_although_the_default_address_is_in_use(tmp_path):
    async def start():
        from blipmq.base.logs import Log
        from blipmq.broker.broker import Broker
        from blipmq.service import server

        read, write = os.pipe()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = {
                "server": {"bind_addr": ""},
                "metrics": {"bind_addr": "127.0.0.1:" + str(taken.getsockname()[1])},
            }
            process = server.Process(Broker(settings), lambda: None, Log(write))
            assert await process._start_admin(settings["metrics"]["bind_addr"], by_default=True) is None
        told = os.read(read, 4096).decode()
        os.close(read)
        os.close(write)
        return told

    told = asyncio.run(start())
    assert "warning metrics_off" in told and "choose another metrics.bind_addr" in told
