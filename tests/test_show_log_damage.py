"""The reports of a broker after its WAL files were changed: wiped, cut, deleted, exchanged, or opened to other users.

Each test kills a broker with SIGKILL, changes files and starts it again. Acknowledged messages are delivered or
reported lost; a plain kill reports nothing.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from broker_process import BrokerProcess, broker_command, environment, until
from hand_client import ACK, PUB, SUB, HelloClient, Message, command

KEPT = Path(__file__).resolve().parent / "kept" / "broker-1.0"
SMALL = {
    "server.max_message_size_bytes": 4096,
    "wal.segment_size_bytes": 524288,
    "wal.max_bytes": 4194304,
    "wal.reserve_bytes": 0,
}
MARK = b"marked payload"
HUNG_DISK = """
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int file) {
    while (!access(getenv("DISK_HANGS"), F_OK)) usleep(10000);
    return (int)syscall(SYS_fdatasync, file);
}
"""


CLIENTS = []


@pytest.fixture(autouse=True)
def close_clients():
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def connect(broker, **options):
    CLIENTS.append(HelloClient(broker.address, **options))
    return CLIENTS[-1]


def wal_of(broker):
    return broker.config.parent / "data" / "wal"


def subscribe(broker, filter_="orders"):
    client = connect(broker, client_id="me")
    assert client.ask(SUB, filter_, qos=1, durable=True).code == 0
    return client


def publish(broker, count, size=100):
    """This many messages, each with the mark; returns their ids."""
    with HelloClient(broker.address) as client:
        answers = [client.ask(PUB, "orders", MARK + b" %d " % n + bytes(size), qos=1) for n in range(count)]
    assert {answer.code for answer in answers} <= {0}
    return [answer.id for answer in answers]


def ids_for(client, last):
    """The ids of the received messages, each acknowledged, up to `last`."""
    seen = []
    while not seen or seen[-1] < last:
        message = client.next()
        assert isinstance(message, Message), message
        client.send(command(ACK, seq=message.id))
        seen.append(message.id)
    return seen


def killed_broker(start_broker, messages, size=100):
    """A killed broker, and the ids of the messages stored for an absent subscription."""
    broker = start_broker(SMALL)
    subscribe(broker).close()
    ids = publish(broker, messages, size)
    broker.kill()
    return broker, ids


def newest_used(wal):
    return max(file for file in wal.glob("wal-*.log") if MARK in file.read_bytes())


def wipe_first_page(file):
    with file.open("r+b") as opened:
        opened.write(bytes(4096))


def wipe_all(file):
    file.write_bytes(bytes(file.stat().st_size))


def cut_to_nothing(file):
    os.truncate(file, 0)


def cut_in_the_middle(file):
    os.truncate(file, max(file.read_bytes().rfind(MARK), 2048) // 2)


def another_logs(file):
    shutil.copy(KEPT / "wal-0000000001.log", file)


DAMAGES = [wipe_first_page, wipe_all, cut_to_nothing, cut_in_the_middle, Path.unlink, another_logs]


def verify(broker):
    return subprocess.run(
        [*broker_command(), "wal", "verify", "--directory", str(wal_of(broker))],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


@pytest.mark.parametrize("checkpoints", [True, False], ids=["", "without-checkpoints"])
@pytest.mark.parametrize(("messages", "size"), [(5, 100), (400, 3000)], ids=["first-segment", "later-segment"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_to_the_newest_segment_after_a_kill_is_an_error_that_names_the_loss(
    start_broker, damage, messages, size, checkpoints
):
    first, ids = killed_broker(start_broker, messages, size)
    damage(newest_used(wal_of(first)))
    if not checkpoints:
        for file in wal_of(first).glob("checkpoint-*"):
            file.unlink()
    verified = verify(first)
    assert verified.returncode == 1, verified.stdout
    assert "records are lost" in verified.stdout.splitlines()[-1], verified.stdout
    second = start_broker(SMALL, after=first)
    line = second.wait_for("log_damaged")
    assert line["level"] == "error" and int(line["last_lsn"]) >= int(line["first_lsn"]) > 0
    described = second.info()
    assert described["state"] == "degraded"
    assert any(reason.startswith("WAL: damaged; ") for reason in described["reasons"]), described["reasons"]
    assert described["log"]["lost"]["exact"] == (line["exact"] == "true")
    subscriber = subscribe(second)
    (again,) = publish(second, 1)
    assert again > ids[-1]
    came = ids_for(subscriber, again)
    assert came[:-1] == ids[: len(came) - 1] if "wipe_first" not in damage.__name__ else set(came[:-1]) <= set(ids)
    assert len(came) - 1 < len(ids)
    if damage is wipe_first_page and size > 1000:  # all data behind the page is intact
        assert line["exact"] == "true" and len(came) - 1 == len(ids) - (
            int(line["last_lsn"]) - int(line["first_lsn"]) + 1
        )
        assert len(ids) - len(came) + 1 <= 3


def test_a_directory_with_only_a_lock_file_is_an_error(start_broker):
    first, ids = killed_broker(start_broker, 5)
    for file in wal_of(first).iterdir():
        if file.name != "LOCK":
            file.unlink()
    assert verify(first).returncode == 1
    second = start_broker(SMALL, after=first)
    assert second.wait_for("log_damaged")["exact"] == "false"
    assert second.info()["state"] == "degraded"
    assert publish(second, 1)[0] > ids[-1]


def test_a_missing_newest_segment_is_detected_without_a_lock_file(start_broker):
    first, _ = killed_broker(start_broker, 400, 3000)
    newest_used(wal_of(first)).unlink()
    (wal_of(first) / "LOCK").unlink()
    assert start_broker(SMALL, after=first).wait_for("log_damaged")["level"] == "error"


def test_the_loss_report_states_the_known_bounds(start_broker):
    """A later start repeats it only until a checkpoint has passed it."""
    first, _ = killed_broker(start_broker, 5)
    newest_used(wal_of(first)).unlink()
    facts = start_broker(SMALL, after=first).wait_for("log_damaged")
    assert facts["exact"] == "false" and int(facts["first_lsn"]) <= int(facts["last_lsn"])


@pytest.mark.parametrize("messages", [0, 5, 400])
def test_a_kill_alone_is_not_reported_as_damage(start_broker, messages):
    first, ids = killed_broker(start_broker, messages, 3000)
    for _ in range(2):
        verified = verify(first)
        assert verified.returncode == 0, verified.stdout
        second = start_broker(SMALL, after=first)
        assert not second.lines("log_damaged") and second.info()["state"] == "ok"
        if ids:
            assert ids_for(subscribe(second), ids[-1]) == ids
        second.kill()


# ---- access --------------------------------------------------------------------------------------------------------------


def refused_start(directory, settings, text, status):
    broker = BrokerProcess(directory, settings)
    assert broker.wait() == status, broker.log
    assert any(text in line for line in broker.log), broker.log


@pytest.mark.parametrize("removed", [False, True], ids=["", "without-LOCK"])
def test_a_second_broker_or_repair_on_a_wal_in_use_is_refused(start_broker, tmp_path, removed):
    first = start_broker(SMALL)
    if removed:
        (wal_of(first) / "LOCK").unlink()
    (tmp_path / "second").mkdir()
    directory = {**SMALL, "wal.directory": str(wal_of(first))}
    refused_start(tmp_path / "second", directory, "another broker uses the WAL", 69)
    for action in ("repair", "verify", "export"):
        tried = subprocess.run(
            [*broker_command(), "wal", action, "--directory", str(wal_of(first))],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert tried.returncode == 69 and "a broker uses the WAL" in tried.stderr
    publish(first, 3)


def test_wal_files_moved_to_another_directory_are_still_locked(start_broker, tmp_path):
    first = start_broker(SMALL)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in wal_of(first).glob("wal-*.log"):
        file.rename(moved / file.name)
    refused_start(moved, {**SMALL, "wal.directory": str(moved)}, "another broker uses the WAL", 69)
    first.kill()


@pytest.mark.parametrize("way", ["removed", "replaced", "moved"])
def test_a_removed_wal_directory_stops_all_acknowledgements(start_broker, way):
    first = start_broker(SMALL)
    with HelloClient(first.address) as client:
        assert client.ask(PUB, "orders", b"kept", qos=1).code == 0
        if way == "moved":
            wal_of(first).rename(wal_of(first).parent / "elsewhere")
        else:
            shutil.rmtree(wal_of(first))
        if way == "replaced":
            wal_of(first).mkdir()
        assert client.ask(PUB, "orders", b"for nobody", qos=1).code == 503
        assert first.wait_for("log_failed")["error"].startswith("the WAL directory or the newest segment was removed")
        client.publish("orders", b"QoS 0 goes on")
        assert client.is_open()
    assert first.info()["state"] == "degraded"
    first.kill()


def test_a_wal_directory_writable_by_others_is_made_private_with_a_log_line(start_broker, tmp_path):
    wal = tmp_path / "open"
    wal.mkdir()
    wal.chmod(0o777)
    (wal / "wal-0000000001.log").touch()
    (wal / "wal-0000000001.log").chmod(0o666)
    broker = start_broker({**SMALL, "wal.directory": str(wal)})
    assert broker.wait_for("log_directory_open", was="0777", now="0755")["level"] == "warning"
    assert broker.wait_for("log_files_open", count=1)
    assert wal.stat().st_mode & 0o777 == 0o755
    assert not [file for file in wal.iterdir() if file.stat().st_mode & 0o022]


def link(place):
    place.symlink_to(place.parent.parent / "victim")


def hard_link(place):
    os.link(place.parent.parent / "victim", place)


STRANGE = [link, hard_link, os.mkfifo, Path.mkdir]


@pytest.mark.parametrize("name", ["wal-0000000001.log", "checkpoint-0000000001.ckp", "wal.tmp", "checkpoint.tmp"])
@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_links_pipes_and_directories_named_like_wal_files_are_not_followed(start_broker, tmp_path, name, make):
    (tmp_path / "victim").write_bytes(b"precious")
    wal = tmp_path / "wal"
    wal.mkdir(0o700)
    make(wal / name)
    broker = start_broker({**SMALL, "wal.directory": str(wal)})
    publish(broker, 3)
    broker.stop()
    assert (tmp_path / "victim").read_bytes() == b"precious"
    again = start_broker({**SMALL, "wal.directory": str(wal)}, after=broker)
    assert int(again.wait_for("log_opened")["records"]) >= 3


@pytest.mark.parametrize("make", [link, os.mkfifo, Path.mkdir], ids=lambda make: make.__name__)
def test_a_lock_that_is_not_a_regular_file_is_refused_with_a_remedy(tmp_path, make):
    (tmp_path / "victim").write_bytes(b"precious")
    wal = tmp_path / "wal"
    wal.mkdir(0o700)
    make(wal / "LOCK")
    refused_start(tmp_path, {**SMALL, "wal.directory": str(wal)}, "LOCK is a link, a directory or a pipe", 78)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_lock_that_is_a_hard_link_is_not_written_to(start_broker, tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    wal = tmp_path / "wal"
    wal.mkdir(0o700)
    hard_link(wal / "LOCK")
    publish(start_broker({**SMALL, "wal.directory": str(wal)}), 1)
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["wal-9999999999999999999.log", "wal-999999999999999.log", "wal-9999999999.log"])
def test_an_unrelated_file_name_does_not_affect_segment_numbers(start_broker, tmp_path, name):
    wal = tmp_path / "wal"
    wal.mkdir(0o700)
    (wal / name).touch()
    first = start_broker({**SMALL, "wal.directory": str(wal)})
    assert first.wait_for("log_strange_files")["level"] == "warning"
    subscribe(first).close()
    ids = publish(first, 5)
    first.stop()
    assert (wal / "wal-0000000001.log").exists()
    second = start_broker({**SMALL, "wal.directory": str(wal)}, after=first)
    assert ids_for(subscribe(second), ids[-1]) == ids and second.info()["state"] == "ok"


# ---- a WAL of version 1.0 --------------------------------------------------------------------------------------------------


def test_the_saved_wal_of_a_1_0_broker_is_served(start_broker, tmp_path):
    shutil.copytree(KEPT, tmp_path / "wal")
    broker = start_broker({**SMALL, "wal.directory": str(tmp_path / "wal")})
    assert not broker.lines("log_damaged") and broker.info()["state"] == "ok"
    client = subscribe(broker, "site/+/temp")
    payloads = []
    while not payloads or payloads[-1] != b"kept 8":
        message = client.next()
        client.send(command(ACK, seq=message.id))
        payloads.append(message.payload)
    assert payloads == [b"kept %d" % n for n in range(9)]
    jobs = connect(broker, client_id="me")
    assert jobs.ask(SUB, "jobs", qos=1, durable=True, group="workers").code == 0
    assert [jobs.next().payload for _ in range(6)] == [b"job %d" % n for n in range(6)]
    assert publish(broker, 1)[0] > message.id


@pytest.mark.parametrize("version", ["log-1.0", "log-1.1"])
def test_artificial_saved_wals_do_not_prevent_a_start(start_broker, tmp_path, version):
    shutil.copytree(KEPT.parent / version, tmp_path / "wal")
    broker = start_broker({**SMALL, "wal.directory": str(tmp_path / "wal")})
    assert not broker.lines("log_damaged")
    client = subscribe(broker)
    ids = publish(broker, 3)
    assert ids_for(client, ids[-1]) == ids
    assert ids[-1] < 2**53


# ---- ids, and a stop delayed by the disk -----------------------------------------------------------------------------------


def test_ids_do_not_go_back_when_the_last_checkpoint_could_not_be_written(start_broker):
    first = start_broker(SMALL)
    subscriber = connect(first).subscribe("orders")
    with HelloClient(first.address) as client:
        for _ in range(50):
            client.publish("orders", b"QoS 0")
    last = max(subscriber.next().id for _ in range(50))
    first.stop()
    for file in wal_of(first).glob("checkpoint-*"):  # as if there had been no space for it
        file.unlink()
    second = start_broker(SMALL, after=first)
    assert publish(second, 1)[0] > last


@pytest.mark.parametrize("ends", ["stop", "kill"])
def test_ids_without_a_wal_do_not_go_back_with_the_clock(start_broker, ends):
    settings = {"wal.enabled": False}
    first = start_broker(settings)
    kept = wal_of(first) / "ids"
    ahead = int(kept.read_text()) + 2**40  # as if the clock had been far ahead then
    kept.write_text(f"{ahead}\n")
    getattr(first, ends)()
    for _ in range(2):
        second = start_broker(settings, after=first)
        with HelloClient(second.address).subscribe("orders") as client, HelloClient(second.address) as writer:
            writer.publish("orders", b"x")
            number = client.next().id
        assert number >= ahead
        assert int(kept.read_text()) > number
        ahead = number + 1
        getattr(second, ends)()


def test_a_second_signal_ends_at_once_while_the_disk_hangs_in_the_last_sync(start_broker, tmp_path):
    source, library, hangs = (tmp_path / name for name in ("disk.c", "disk.so", "hangs"))
    source.write_text(HUNG_DISK)
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: packaging/setup.sh installs one"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    preloaded = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
    settings = {**SMALL, "limits.shutdown_timeout_ms": 100}
    broker = start_broker(settings, LD_PRELOAD=preloaded, DISK_HANGS=str(hangs))
    publish(broker, 1)
    hangs.touch()
    with HelloClient(broker.address) as client:
        client.send(command(PUB, "orders", b"held", qos=1, seq=99))
        until(lambda: broker.info()["log"]["unsynced"], "the publish waits for the disk")
        broker.signal(signal.SIGTERM)
        broker.wait_for("stopping")
        while client.frame() is not None:  # until it is closed: it waits for the last sync
            pass
    time.sleep(0.2)  # longer than a signal sent twice in forwarding may take
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 128 + signal.SIGTERM
    assert broker.lines("killed")
