"""What was promised holds when the broker is killed, the power goes, or the disk fails. `make crash` runs the long forms.

Invariant: every test sees the broker from outside only, and each way to find a loss is also shown a loss.
"""

import errno
import os
import random
import signal
import sys

import pytest
from broker_process import BrokerProcess, until
from crash import behind, disk, storm
from crash.disk import Disk, Faults
from hand_client import ACK, INFO, PUB, SUB, HelloClient, Message, Reply, SubAck, command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk is preloaded into the broker: Linux only")

BINARY = "BLIPMQ_BINARY" in os.environ  # a launcher may start the broker itself: what is preloaded or killed is not it
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


def test_a_few_kills_and_power_cuts_lose_nothing(tmp_path, shim):
    kept_its_word(*storm.run(tmp_path, seed=SEED, cycles=5, shim=shim))


def test_the_same_power_cuts_without_syncs_lose_data_and_the_checker_sees_it(tmp_path, shim):
    figures, ledger = storm.run(tmp_path, seed=SEED, cycles=8, shim=shim, no_sync=True)
    assert figures["lost"] or ledger.faults, figures
