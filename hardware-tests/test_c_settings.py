"""Actions of a technician with a card in a PC: valid files, invalid files, keys, a factory reset. Also the clock and a
full medium.
"""

import re
import time

import pytest
from device import READY_SECONDS_MAX, ids_kept_for
from hand_client import HELLO, PUB, SUB, HelloClient, LegacyClient, command
from wire import Wire

pytestmark = pytest.mark.long
BOOT_FILES = "files on the settings partition come in while a guest is off; on a board, do it with the card in a PC"
OPEN_BROKER = b"[auth]\nallow_anonymous = true\n"


def passes_a_message(device):
    """Send a QoS 0 message from a client to itself."""
    with HelloClient(device.address) as client:
        client.subscribe("plant/self")
        client.publish("plant/self", b"to myself")
        return client.next().payload == b"to myself"


def publish_1(device, topic):
    """Returns the code of the answer."""
    with HelloClient(device.address) as client:
        return client.ask(PUB, topic, b"x" * 100, qos=1).code


def hello_with(device, api_key):
    with LegacyClient(device.address) as client:
        client.send(command(HELLO, client_id="key", api_key=api_key, protocol=1, seq=1))
        return client.next()


def test_invalid_files_keep_the_last_good_settings_and_the_status_names_the_line(own_device):
    own_device.wait_for_shell()
    good = own_device.get("device.toml")
    own_device.restart_with({
        "blipmq.toml": OPEN_BROKER + b"[server]\nmax_conections = 10\n",
        "device.toml": b'hostname = "pump-house"\r\n[network\r\n',
    })  # fmt: skip
    status = own_device.wait_for_status(lambda status: "blipmq.toml, line 4" in status[""], "which line is wrong")
    assert status["State"] == "degraded"
    assert "max_conections" in status[""]
    assert "device.toml, line 2" in status[""]
    assert "the last good one is" in status["blipmq.toml"]
    assert passes_a_message(own_device)
    own_device.wait_for_shell()  # the key of the last good device.toml is valid
    own_device.restart_with({"blipmq.toml": b"\xef\xbb\xbf" + OPEN_BROKER.replace(b"\n", b"\r\n"), "device.toml": good})
    own_device.wait_for_status(lambda status: status.get("State") == "ok", "that all is well again")


@pytest.mark.qemu("it needs a cable to itself, and a device without settings")
def test_a_new_device_opens_no_port_and_shows_its_address(new_guest, figure):
    guest = new_guest(files={"blipmq.toml": None}, with_key=False, wire=Wire()).power_on()
    guest.until(lambda: "blipmq.local" in guest.console(), "its console says its name")
    guest.wire.find_guest(READY_SECONDS_MAX)
    guest.until(lambda: guest.wire.ask_mdns("blipmq.local"), "it answers to blipmq.local")
    status = guest.wait_for_status(
        lambda status: "from the device itself only" in status.get("Broker", ""), "who it serves"
    )
    assert "[[keys]]" in status[""]
    open_ports, unanswered = guest.wire.open_tcp_ports()
    figure("TCP ports that answered an unknown machine on the network, of 65,535", len(open_ports))
    assert open_ports == set()
    assert unanswered == set()  # each was refused; no answer was lost


@pytest.mark.qemu(BOOT_FILES)
def test_a_key_named_in_device_toml_is_created_shown_once_and_opens_the_listener(new_guest):
    guest = new_guest(files={"blipmq.toml": None})
    guest.put({"device.toml": guest.login + b'[[keys]]\nname = "line-1"\nallow = ["pub:plant/#"]\n'})
    guest.boot()
    text = guest.until(lambda: guest.get("blipmq-new-keys.txt"), "the new key is told").decode()
    key = re.search(r"^line-1 = (\S+)$", text.replace("\r", ""), re.MULTILINE)
    assert key, text
    assert hello_with(guest, key[1]).code == 0
    assert hello_with(guest, "wrong" + key[1]).code == 401
    assert hello_with(guest, None).code == 401


def test_a_factory_reset_erases_the_data_and_keeps_the_settings(own_device, request):
    if request.config.getoption("--target"):
        own_device.wait_for_shell()
    with HelloClient(own_device.address, "reader") as client:
        assert client.ask(SUB, "reset/me", qos=1, durable=True).code == 0
    assert publish_1(own_device, "reset/me") == 0
    own_device.restart_with({"factory-reset": b""})
    with HelloClient(own_device.address) as client:
        assert client.info()["sessions"]["total"] == 0
    assert own_device.get("factory-reset") is None
    own_device.wait_for_status(
        lambda status: "factory reset was carried out" in status[""], "that a reset was carried out"
    )
    own_device.wait_for_shell()


@pytest.mark.qemu("a board keeps the time it has")
def test_a_clock_that_starts_in_1970_is_set_to_a_plausible_time(new_guest):
    guest = new_guest(rtc="1970-01-01T00:00:00")
    guest.boot()
    guest.wait_for_shell()
    built, now = (int(guest.shell(word)) for word in ("stat -c %Y /usr/lib/clock-epoch", "date +%s"))
    assert built <= now < time.time() + 86400
    with HelloClient(guest.address) as client:
        client.subscribe("plant/clock")
        assert publish_1(guest, "plant/clock") == 0
        assert client.next().timestamp_ms >= built * 1000
    # The last seen time is the minimum at the next start, although the clock chip is reset again.
    guest.shell("date -s @$(($(date +%s) + 86400)) && blipmq-device time-floor save && sync")
    later = int(guest.shell("date +%s"))
    guest.cut_power()
    guest.boot()
    guest.wait_for_shell()
    assert int(guest.shell("date +%s")) >= later - 1


@pytest.mark.qemu("it fills the whole data partition, and cuts the power")
def test_a_full_data_partition_stops_only_qos_1_and_recovers(new_guest):
    guest = new_guest(medium_mib=2048)
    guest.boot()
    guest.wait_for_shell()
    with HelloClient(guest.address, "reader") as client:
        assert client.ask(SUB, "full/disk", qos=1, durable=True).code == 0
    taken = []

    def publish_until_refused():
        with HelloClient(guest.address) as client:
            for _ in range(200):
                answer = client.ask(PUB, "full/disk", b"x" * 60_000, qos=1)
                if answer.code:
                    return answer
                taken.append(answer.id)

    fill = "dd if=/dev/zero of=/data/fill bs=1M 2>/dev/null; dd if=/dev/zero of=/data/fill2 bs=4k 2>/dev/null; sync; df -P /data"
    guest.shell(fill, seconds_max=600)
    refused = guest.until(publish_until_refused, "a publish is refused because the medium is full")
    assert refused.code == 503
    assert passes_a_message(guest)
    guest.wait_for_status(
        lambda status: status.get("State") == "degraded" and "nearly full" in status[""], "that it is full"
    )
    guest.cut_power()
    guest.boot()
    assert passes_a_message(guest)
    guest.wait_for_shell()
    guest.shell("rm /data/fill /data/fill2 && sync")
    guest.until(lambda: publish_1(guest, "full/disk") == 0, "QoS 1 is taken again")
    guest.wait_for_status(lambda status: status.get("State") == "ok", "that all is well again")
    assert ids_kept_for(guest, "reader", "full/disk", len(taken)) == taken
