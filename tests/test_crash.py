"""All guarantees hold when the broker is killed, the power is cut, or the disk fails. `make crash` runs the long forms.

Invariant: every test observes the broker from outside only, and each loss detector is tested with a real loss.
"""

import errno
import os
import signal
import urllib.request

import pytest
from broker_process import BrokerProcess, until
from crash import behind, disk, lease, storm
from crash.disk import Faults
from hand_client import ACK, PUB, SUB, HelloClient, Reply, command

SEED = int(os.environ.get("CRASH_SEED", "2026"))


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    return disk.build(tmp_path_factory.mktemp("shim"))


def kept_its_word(figures, ledger):
    told = f"CRASH_SEED={figures['seed']}: {figures}\n" + "\n".join(ledger.faults)
    assert not ledger.faults, told
    assert not ledger.lost(), f"{told}\n{ledger.lost()}"
    assert figures["acknowledged"] > 20 * figures["cycles"], f"too little was acknowledged to prove anything: {told}"
    assert figures["log_damaged"] == 0, told


# ---- kills and power cuts ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path):
    kept_its_word(*storm.run(tmp_path, seed=SEED, cycles=30))


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_to_power_cuts(tmp_path, shim):
    kept_its_word(*storm.run(tmp_path, seed=SEED, cycles=30, shim=shim))


@pytest.mark.slow
def test_unacknowledged_messages_of_a_full_wal_become_dead_letters_over_crashes(tmp_path, shim):
    kept_its_word(*storm.run(tmp_path, kind=storm.PoisonStorm, seed=SEED, cycles=15, shim=shim))


def what_is_let_go_is_told(figures, ledger):
    kept_its_word(figures, ledger)
    assert figures["over_quota"] > 0 and figures["expired"] > 0, f"nothing was let go: {figures}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [lease.LeaseStorm, lease.DroppingStorm])
def test_ended_subscriptions_and_quotas_release_and_report_messages_over_kills(tmp_path, kind):
    what_is_let_go_is_told(*storm.run(tmp_path, kind=kind, seed=SEED, cycles=25))


@pytest.mark.parametrize("kind", [lease.LeaseStorm, lease.DroppingStorm])
def test_ended_subscriptions_and_quotas_release_and_report_messages_over_power_cuts(tmp_path, shim, kind):
    what_is_let_go_is_told(*storm.run(tmp_path, kind=kind, seed=SEED, cycles=8, shim=shim))


def test_a_few_kills_and_power_cuts_lose_nothing(tmp_path, shim):
    kept_its_word(*storm.run(tmp_path, seed=SEED, cycles=5, shim=shim))


def test_the_checker_detects_losses_when_power_is_cut_without_syncs(tmp_path, shim):
    figures, ledger = storm.run(tmp_path, seed=SEED, cycles=8, shim=shim, no_sync=True)
    assert figures["lost"] or ledger.faults, figures


# ---- disk errors ---------------------------------------------------------------------------------------------------------


class Place:
    """A broker on a disk with simulated errors, which can be restarted."""

    def __init__(self, directory, shim, **settings):
        self.directory = directory
        (directory / "wal").mkdir()
        self.faults = Faults(directory / "faults")
        self.settings = {**storm.SETTINGS, "wal.directory": str(directory / "wal"), **settings}
        self.variables = {
            "LD_PRELOAD": str(shim),
            "CRASH_DIRECTORY": str(directory / "wal"),
            "CRASH_FAULTS": str(self.faults.path),
        }
        self.broker = None

    def start(self):
        self.broker = BrokerProcess(self.directory, self.settings, **self.variables)
        return self.broker.get_ready()

    def restart(self):
        self.broker.stop()
        return self.start()


@pytest.fixture
def place(tmp_path, shim):
    places = []

    def make(**settings):
        places.append(Place(tmp_path, shim, **settings))
        return places[-1]

    yield make
    for each in places:
        if each.broker:
            each.broker.kill()


def publish(client, text):
    """Send a QoS 1 publish; returns its Reply."""
    return client.ask(PUB, "disk/fails", text.encode(), qos=1)


def collect(broker, last=None):
    """The messages of the durable subscriber up to `last`, each acknowledged; without `last` none may arrive."""
    texts = []
    with HelloClient(broker.address, client_id="collector") as client:
        assert client.ask(SUB, "disk/#", qos=1, durable=True).code == 0
        while last is not None and texts[-1:] != [last]:
            message = client.next()
            client.send(command(ACK, seq=message.id))
            texts.append(message.payload.decode())
        assert client.is_open()  # and no further message arrives
    return texts


def killed_with_a_message(here):
    """A killed broker that stored one message for the durable subscriber."""
    broker = here.start()
    collect(broker)
    with HelloClient(broker.address) as client:
        assert publish(client, "before").code == 0
    broker.signal(signal.SIGKILL)
    broker.wait()


@pytest.mark.parametrize("times", [1, -1], ids=["once", "for ever"])
@pytest.mark.parametrize("after", [0, 1, 7])
@pytest.mark.parametrize("call", ["sync_data", "write"])
def test_after_a_failed_write_or_sync_nothing_is_acknowledged_until_a_restart(place, call, after, times):
    here = place()
    broker = here.start()
    collect(broker)
    with HelloClient(broker.address) as client, HelloClient(broker.address) as other:
        here.faults.fail(call, errno.EIO, after, times)
        replies = [publish(client, str(number)) for number in range(after + 8)]
        codes = [reply.code for reply in replies]
        good = codes.index(503)
        assert good <= after and codes == [0] * good + [503] * (len(codes) - good), codes
        assert all(reply.message for reply in replies[good:])

        other.subscribe("disk/fails")
        client.publish("disk/fails", b"without a log")
        assert other.next().payload == b"without a log"

        until(lambda: other.info()["state"] == "degraded", "INFO says degraded")
        reasons = " ".join(other.info()["reasons"])
        assert os.strerror(errno.EIO) in reasons and "restart" in reasons
    assert broker.wait_for("log_failed")["error"] == os.strerror(errno.EIO)

    here.faults.heal()
    broker = here.restart()
    with HelloClient(broker.address) as client:
        assert client.info()["state"] == "ok"
        assert publish(client, "after the restart").code == 0
    got = collect(broker, last="after the restart")
    acknowledged = [str(number) for number in range(good)]
    unknown = [str(number) for number in range(good, after + 8)]
    assert got[: len(acknowledged)] == acknowledged and got[-1] == "after the restart"
    assert [text for text in got[len(acknowledged) : -1] if text not in unknown] == []


@pytest.mark.parametrize("call", ["sync", "sync_directory", "rename", "allocate", "open"])
def test_a_disk_error_at_file_creation_loses_nothing_acknowledged(place, call):
    here = place()
    broker = here.start()
    collect(broker)
    fill = "x" * 12_000
    with HelloClient(broker.address) as client:
        here.faults.fail(call, errno.EIO)
        acknowledged = []
        while len(acknowledged) < 500 and publish(client, f"{len(acknowledged)} {fill}").code == 0:
            acknowledged.append(f"{len(acknowledged)} {fill}")
        assert len(acknowledged) < 500, f"{call} failed for ever, and nobody noticed"
        assert [publish(client, "refused").code for _ in range(3)] == [503] * 3
    here.faults.heal()
    broker = here.restart()
    with HelloClient(broker.address) as client:
        assert publish(client, "after the restart").code == 0
    assert collect(broker, last="after the restart")[: len(acknowledged)] == acknowledged


@pytest.mark.parametrize("call", ["sync", "sync_directory", "rename", "allocate", "open", "write"])
def test_a_disk_error_at_start_is_reported_and_a_later_start_recovers_everything(place, call):
    here = place()
    killed_with_a_message(here)
    here.faults.fail(call, errno.EIO)
    broken = BrokerProcess(here.directory, here.settings, **here.variables)
    status = broken.wait()
    text = "\n".join(broken.log)
    assert status not in (0, -signal.SIGKILL) and os.strerror(errno.EIO) in text and "Traceback" not in text, text
    here.faults.heal()
    broker = here.start()
    assert collect(broker, last="before") == ["before"]


# ---- full disk -----------------------------------------------------------------------------------------------------------


def fill_up(here, full, room):
    """Publish while `full()` is true and after `room()`; returns the acknowledged messages. A full disk must refuse
    publishes and later accept them again."""
    broker = here.start()
    collect(broker)
    acknowledged, number = [], 0
    fill = "x" * 3_000

    def one(client):
        nonlocal number
        number += 1
        reply = publish(client, f"{number} {fill}")
        assert isinstance(reply, Reply) and reply.code in (0, 503), reply
        if reply.code == 0:
            acknowledged.append(f"{number} {fill}")
        return reply.code

    with HelloClient(broker.address) as client:
        assert one(client) == 0
        full()
        for _ in range(5000):
            if one(client):
                break
        assert number < 5000, "it was never full"
        assert [one(client) for _ in range(20)] == [503] * 20
        until(lambda: client.info()["state"] == "degraded", "INFO says degraded")
        assert client.is_open()
        room(broker, acknowledged)
        until(lambda: one(client) == 0, "it takes messages again, by itself")
        assert [one(client) for _ in range(20)] == [0] * 20
        until(lambda: client.info()["state"] == "ok", "INFO says ok")
        assert publish(client, "the end").code == 0
    return broker, acknowledged


def test_a_full_disk_refuses_publishes_and_resumes_when_it_has_room(place):
    here = place()

    def full():
        here.faults.fail("allocate", errno.ENOSPC)
        here.faults.page.free_bytes = 0

    broker, acknowledged = fill_up(here, full, lambda *_: here.faults.heal())
    assert [text for text in collect(broker, last="the end") if text in set(acknowledged)] == acknowledged


def test_a_write_to_a_full_disk_is_answered_when_there_is_room(place):
    here = place()
    broker = here.start()
    collect(broker)
    with HelloClient(broker.address) as first, HelloClient(broker.address) as second:
        here.faults.fail("write", errno.ENOSPC)
        first.send(command(PUB, "disk/fails", b"held", qos=1, seq=7))
        until(lambda: second.info()["state"] == "degraded", "INFO says degraded")
        assert publish(second, "refused").code == 503
        here.faults.heal()
        answer = first.next()
        assert (answer.seq, answer.code) == (7, 0)
        until(lambda: publish(second, "the end").code == 0, "it takes messages again, by itself")
    assert collect(broker, last="the end") == ["held", "the end"]


def no_room(here):
    here.faults.fail("allocate", errno.ENOSPC)
    here.faults.fail("write", errno.ENOSPC)
    here.faults.page.free_bytes = 0


def said(broker, path):
    address = broker.wait_for("metrics")["address"]
    with urllib.request.urlopen(f"http://{address}{path}", timeout=60) as answer:
        return answer.read().decode()


def check_that_it_refuses_and_says_why(broker):
    with HelloClient(broker.address) as client, HelloClient(broker.address) as light:
        refusal = publish(client, "refused")
        assert refusal.code == 503 and "the WAL is full" in refusal.message, refusal
        light.subscribe("disk/fails")
        client.publish("disk/fails", b"without a log")
        assert light.next().payload == b"without a log"
        described = client.info()
        assert (described["state"], described["log"]["state"]) == ("degraded", "full")
        assert any(
            reason.startswith("WAL: full at ") and "free disk space" in reason for reason in described["reasons"]
        )
    assert "WAL: full at " in said(broker, "/healthz") and said(broker, "/readyz")
    assert broker.wait_for("log_full")["disk_free_bytes"] == "0"


def test_a_broker_on_a_full_disk_delivers_stored_messages_and_resumes_with_room(place):
    here = place(**{"metrics.bind_addr": "127.0.0.1:0"})
    broker = here.start()
    collect(broker)
    with HelloClient(broker.address) as client:
        assert [publish(client, text).code for text in ("first", "second")] == [0, 0]
    broker.stop()
    no_room(here)
    broker = here.start()
    check_that_it_refuses_and_says_why(broker)
    assert collect(broker, last="second") == ["first", "second"]
    # the acknowledgements could not be stored either, so the messages are redelivered: never lost, never changed
    broker = here.restart()
    check_that_it_refuses_and_says_why(broker)
    assert collect(broker, last="second") == ["first", "second"]
    here.faults.heal()
    with HelloClient(broker.address) as client:
        until(lambda: publish(client, "the end").code == 0, "it takes messages again, by itself")
        until(lambda: client.info()["state"] == "ok", "INFO says ok")
    assert broker.wait_for("log_has_room")
    assert collect(broker, last="the end") == ["the end"]


def test_unsynced_messages_are_delivered_once_a_full_disk_allows_a_sync(place):
    here = place(**{"metrics.bind_addr": "127.0.0.1:0"})
    killed_with_a_message(here)
    no_room(here)
    broker = here.start()
    check_that_it_refuses_and_says_why(broker)
    with HelloClient(broker.address, client_id="collector") as client:
        assert client.ask(SUB, "disk/#", qos=1, durable=True).code == 503
    here.faults.heal()
    until(lambda: broker.info()["state"] == "ok", "INFO says ok")
    assert collect(broker, last="before") == ["before"]


def test_a_full_wal_refuses_publishes_until_its_subscriber_has_caught_up(place):
    here = place(**{"wal.max_bytes": 4 * 1024 * 1024})
    early = []

    def room(broker, acknowledged):
        early.extend(collect(broker, last=acknowledged[-1]))

    broker, acknowledged = fill_up(here, lambda: None, room)
    assert early + collect(broker, last="the end")[:-1] == acknowledged


# ---- ids -----------------------------------------------------------------------------------------------------------------


def ids_of(broker, count=3):
    """Ids of messages published without a WAL."""
    with HelloClient(broker.address).subscribe("ids") as subscriber, HelloClient(broker.address) as publisher:
        for _ in range(count):
            publisher.publish("ids", b"")
        return [subscriber.next().id for _ in range(count)]


def test_ids_never_go_back_after_crashes_with_only_qos_0_between(place):
    here = place()
    ids = []
    for life in range(4):
        broker = here.start()
        if life == 0:
            with HelloClient(broker.address) as client:
                ids.append(publish(client, "one record").id)
        ids += ids_of(broker)
        broker.signal(signal.SIGKILL)
        broker.wait()
    assert ids == sorted(set(ids))


# ---- large backlog -------------------------------------------------------------------------------------------------------

# the interpreter, the batches and read buffers of the WAL, and retained allocator memory
BESIDE_BYTES = 64 * 1024 * 1024


@pytest.mark.parametrize("count", [30_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_returning_subscriber_gets_all_in_order_within_bounded_memory(tmp_path, start_broker, count, capsys):
    settings = {**behind.SETTINGS, "wal.directory": str(tmp_path / "wal")}
    figures = behind.fall_behind(start_broker, settings, count, payload_bytes=200)
    with capsys.disabled():
        print(f"\n    {figures}")
    assert figures["rss_bytes_most"] < behind.SETTINGS["limits.memory_bytes"] + BESIDE_BYTES
