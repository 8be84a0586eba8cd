"""The behaviour of every running device. These tests change nothing permanently, so they share one device, which may be
a board.
"""

import os
import socket
import time

import pytest
from crash.clients import ack_frame
from device import BROKER, SSH, port_speaks
from hand_client import PUB, SUB, UNSUB, HelloClient

pytestmark = pytest.mark.on("x64", "arm64")

MDNS, DHCP_CLIENT, DHCP6_CLIENT = 5353, 68, 546
METRICS = 9090
# The ports of the image's configuration in the form of /proc/net: (protocol, port, loopback only).
LISTENING = {
    ("tcp", BROKER, False),
    ("tcp", SSH, False),  # open because the device has a key
    ("tcp", METRICS, True),
    ("udp", MDNS, False),
    ("udp", DHCP_CLIENT, False),
    ("udp", DHCP6_CLIENT, False),
}
TCP_LISTEN, UDP_OPEN = "0A", "07"
REST_SECONDS = 30
DATA = "$(readlink -f /sys/class/block/$(basename $(readlink -f /dev/blipmq/data)))"
SECTORS_LEFT_MAX = 16384  # the copy of the partition table, and a remainder too small to use


def listening(device):
    """{(protocol, port, loopback only)} of all sockets that accept connections or datagrams, from the tables of the
    kernel."""
    found = set()
    for protocol, state in (("tcp", TCP_LISTEN), ("tcp6", TCP_LISTEN), ("udp", UDP_OPEN), ("udp6", UDP_OPEN)):
        for line in device.shell(f"cat /proc/net/{protocol}").splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == state:
                is_loopback = address.endswith("7F") or address == "0" * 24 + "01000000"
                found.add((protocol.rstrip("6"), int(port, 16), is_loopback))
    return found


def boot_figures(device, name, figure):
    """Includes the processor time of QEMU, which depends less on other load of this machine."""
    figure(f"{name}: power on to broker ready", device.boot_seconds[0], "s")
    figure(f"{name}: promised on an idle machine", device.machine.promise_seconds, "s")
    figure(f"{name}: processor time of QEMU until then", device.cpu_seconds_at_ready, "s")
    figure(f"{name}: load average of this machine meanwhile", round(os.getloadavg()[0], 1))


def test_the_device_is_ready_after_power_on(device, figure, request):
    name = request.node.callspec.params["device"]
    if device.boot_seconds:
        boot_figures(device, name, figure)
    else:  # the device was on before the tests
        figure(f"{name}: restart, from the command to broker ready", device.reboot(), "s")


def test_a_message_goes_from_one_client_to_another(device):
    with HelloClient(device.address) as subscriber, HelloClient(device.address) as publisher:
        subscriber.subscribe("plant/pump")
        publisher.publish("plant/pump", b"on at 60 Hz")
        assert subscriber.next().payload == b"on at 60 Hz"


def test_qos_1_is_acknowledged_and_waits_for_a_durable_subscriber_that_is_away(device):
    topic, client_id = "plant/valve", f"hardware-test-{time.time_ns()}"
    with HelloClient(device.address, client_id) as subscriber:
        assert subscriber.ask(SUB, topic, qos=1, durable=True).code == 0
    with HelloClient(device.address) as publisher:
        answers = [publisher.ask(PUB, topic, b"%d" % number, qos=1) for number in range(20)]
    assert {answer.code for answer in answers} == {0}
    with HelloClient(device.address, client_id) as subscriber:
        assert subscriber.ask(SUB, topic, qos=1, durable=True).code == 0
        came = [subscriber.next() for _ in answers]
        subscriber.send(*(ack_frame(message.id) for message in came))
        assert subscriber.ask(UNSUB, topic).code == 0
    assert [(message.id, message.payload) for message in came] == [
        (answer.id, b"%d" % number) for number, answer in enumerate(answers)
    ]


def test_only_configured_ports_are_open(device):
    device.wait_for_shell()
    # A time server lookup opens a socket for a moment. Only sockets that stay open count.
    found = listening(device) & listening(device)
    assert found - LISTENING == set()
    assert {entry for entry in found if entry[0] == "tcp" and not entry[2]} == {
        ("tcp", BROKER, False),
        ("tcp", SSH, False),
    }


def test_the_status_file_reports_a_healthy_device_and_its_address(device, figure, request):
    status = device.wait_for_status(lambda status: status.get("State") == "ok", "that all is well")
    assert f"port {BROKER}" in status["Broker"] and "reachable from the network" in status["Broker"]
    assert status["Address"]
    device.wait_for_shell()
    meminfo = dict(line.split(":", 1) for line in device.shell("cat /proc/meminfo").splitlines())
    kib = {key: int(value.split()[0]) for key, value in meminfo.items()}
    used = (kib["MemTotal"] - kib["MemAvailable"]) // 1024
    figure(f"{request.node.callspec.params['device']}: memory in use, of {kib['MemTotal'] // 1024} MiB", used, "MiB")


def test_password_logins_are_refused(device):
    device.wait_for_shell()
    assert port_speaks(device.host, device.ports[SSH]).startswith(b"SSH-2.0-")
    refused = device.shell("grep -E '^root:' /etc/shadow").split(":")[1]
    assert refused[:1] in ("*", "!")
    assert "passwordauthentication no" in device.shell("sshd -T").lower()


def sectors_written(device):
    """Sectors written to the whole medium since the start."""
    return int(device.shell(f"cat $(dirname {DATA})/stat").split()[6])


def test_the_data_partition_reaches_to_the_end_of_its_medium(device, figure, request):
    device.wait_for_shell()
    medium, start, size = map(int, device.shell(f"cat $(dirname {DATA})/size {DATA}/start {DATA}/size").split())
    assert medium - (start + size) < SECTORS_LEFT_MAX
    file_system = int(device.shell("stat -f -c %b /data")) * int(device.shell("stat -f -c %S /data"))
    assert file_system > 0.9 * size * 512
    figure(
        f"{request.node.callspec.params['device']}: data partition, of a medium of {medium >> 11} MiB",
        size >> 11,
        "MiB",
    )


def test_the_journal_is_in_memory_and_an_idle_device_writes_little(device, figure, request):
    device.wait_for_shell()
    assert device.shell("ls -d /var/log/journal 2>/dev/null || true") == ""
    assert device.shell("find /run/log/journal -name '*.journal' | head -n 1")
    before = sectors_written(device)
    time.sleep(REST_SECONDS)
    kib = (sectors_written(device) - before) // 2
    figure(f"{request.node.callspec.params['device']}: written to the medium in {REST_SECONDS} s at rest", kib, "KiB")


def test_a_client_with_invalid_input_is_closed_and_others_are_served(device):
    with socket.create_connection((device.host, device.ports[BROKER]), 30) as stream:
        stream.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        stream.settimeout(60)
        try:
            while stream.recv(4096):
                pass
        except ConnectionResetError:
            pass
    with HelloClient(device.address) as client:
        assert client.info()["version"]
