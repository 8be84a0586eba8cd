"""A WAL on a real file system that becomes read-only under load, as ext4 does when it detects an internal error.

Invariant: the file system is a separate image in a separate mount namespace, so nothing of this machine changes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from broker_process import BrokerProcess, until

from blipmq import connect_blocking, errors

pytestmark = pytest.mark.slow

SETTINGS = {
    "metrics.bind_addr": "",
    "server.max_message_size_bytes": 65536,
    "wal.enabled": True,
    "wal.segment_size_bytes": 1 << 20,
    "wal.max_bytes": 32 << 20,
    "wal.reserve_bytes": 2 << 20,
}
BEFORE = 100  # messages acknowledged before the error


def test_a_read_only_file_system_is_reported_and_loses_nothing_acknowledged(tmp_path):
    assert os.geteuid() == 0, "this mounts a file system, which needs root: run `make slow` as root"
    command = ["unshare", "--mount", sys.executable, __file__, str(tmp_path)]
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, timeout=300, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run(*command):
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)


def read_all(address, count):
    with connect_blocking(address, client_id="reader") as client:
        messages = client.subscribe("jobs", qos=1, durable=True)
        return [int(messages.next(30).payload) for _ in range(count)]


def publish_until_refused(address, image_mounted):
    """The acknowledged numbers. The file system fails behind the first of them."""
    acknowledged = []
    with connect_blocking(address) as client:
        for number in range(1_000_000):
            try:
                client.publish("jobs", b"%d" % number, qos=1)
            except errors.Refused as refused:
                assert refused.code == 503
                assert "has stopped after a disk error" in str(refused)
                client.publish("other", b"QoS 0 goes on")
                client.ping()
                return acknowledged
            acknowledged.append(number)
            if len(acknowledged) == BEFORE:
                run("mount", "-o", "remount,abort", image_mounted)
    raise AssertionError("never refused")


def main(folder):
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir()
    run("truncate", "--size", "64M", image)
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, mounted)
    (mounted / "wal").mkdir(mode=0o700)
    settings = {**SETTINGS, "wal.directory": str(mounted / "wal")}

    broker = BrokerProcess(folder, settings).get_ready()
    with connect_blocking(broker.address, client_id="reader") as client:
        client.subscribe("jobs", qos=1, durable=True)
    acknowledged = publish_until_refused(broker.address, mounted)
    assert len(acknowledged) >= BEFORE
    broker.wait_for("log_failed", error="Read-only file system")
    until(lambda: broker.info()["state"] == "degraded", "the broker is degraded")
    assert read_all(broker.address, BEFORE) == acknowledged[:BEFORE]
    broker.child.terminate()
    assert broker.child.wait(60) == 0

    run("umount", mounted)
    assert subprocess.run(["fsck.ext4", "-fp", image], timeout=60, stdout=subprocess.DEVNULL).returncode in (0, 1)
    run("mount", "-o", "loop", image, mounted)
    broker = BrokerProcess(folder, settings).get_ready()
    assert broker.info()["state"] == "ok"
    # Acknowledgements to the failed WAL are lost, so the message is redelivered.
    assert read_all(broker.address, len(acknowledged)) == acknowledged
    broker.child.terminate()
    assert broker.child.wait(60) == 0
    run("umount", mounted)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
