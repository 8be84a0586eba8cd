"""The same image on the supported processors and memory sizes, with the profile for each size."""

import os
import time

import pytest
from crash.clients import ack_frame
from hand_client import PUB, SUB, HelloClient, command
from machines import MATRIX

MESSAGES = 2000


@pytest.mark.long
@pytest.mark.qemu("a board has the processor it has")
@pytest.mark.parametrize(("machine", "cpu", "memory_mib", "profile"), MATRIX)
def test_each_memory_size_boots_with_its_profile_and_serves(new_guest, machine, cpu, memory_mib, profile, figure):
    guest = new_guest(machine, cpu=cpu, memory_mib=memory_mib)
    name = f"{machine}, {cpu}, {memory_mib} MB"
    figure(f"{name}: power on to broker ready", guest.boot(), "s")
    figure(f"{name}: load average of this machine meanwhile", round(os.getloadavg()[0], 1))
    status = guest.wait_for_status(lambda status: status.get("State") == "ok", "that all is well")
    assert profile in status["Profile"]
    figure(f"{name}: QoS 0 from client to client", round(rate(guest, 0)), "messages/s")
    figure(f"{name}: QoS 1 from client to client", round(rate(guest, 1)), "messages/s")


def rate(guest, qos):
    """Messages per second, all received in order."""
    with HelloClient(guest.address, f"rate-{qos}") as subscriber, HelloClient(guest.address) as publisher:
        assert subscriber.ask(SUB, "rate/of", qos=qos).code == 0
        frames = [command(PUB, "rate/of", b"%06d" % number + bytes(94), qos=qos) for number in range(MESSAGES)]
        began = time.monotonic()
        publisher.send(*frames)
        for number in range(MESSAGES):
            message = subscriber.next()
            assert message.payload[:6] == b"%06d" % number
            if qos:
                subscriber.send(ack_frame(message.id))
        return MESSAGES / (time.monotonic() - began)
