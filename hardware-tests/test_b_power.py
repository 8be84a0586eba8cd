"""Power cuts under load. Acknowledged messages must be present afterwards, and the broker must start.

Invariant: the same cuts on a broker that does not sync must lose data; otherwise the test proves nothing.
"""

import shutil
import subprocess
from pathlib import Path

import power_storm
import pytest

FOLDER = "/run/hardware-test"
LIBRARY = f"{FOLDER}/nosync.so"
DROP_IN = "/run/systemd/system/blipmq.service.d/hardware-test.conf"

# The default without --cuts.
CUTS = {"x64": 50, "arm64": 10}
CONTROL_CUTS = 4


def keeps_its_word(storm):
    assert not storm.ledger.faults, "\n".join(storm.ledger.faults)
    assert storm.ledger.lost() == {}


def storm_figures(storm, figure, name):
    ledger = storm.ledger
    figure(f"{name}: power cuts under load", storm.cuts)
    figure(f"{name}: acknowledged", ledger.acknowledged, "messages")
    figure(f"{name}: of them lost", storm.lost())
    figure(f"{name}: duplicates, all marked as such", sum(view.duplicates for view in ledger.views))
    figure(f"{name}: power on to ready, longest", max(storm.boot_seconds), "s")


NO_PLUG = "no test can pull a board's plug: see hardware-tests/README.md for how to do it by hand"


@pytest.mark.qemu(NO_PLUG)
@pytest.mark.parametrize("machine", ["x64"])
def test_a_few_power_cuts_under_load_lose_nothing_acknowledged(new_guest, machine, figure):
    guest = new_guest(machine, files={"blipmq.toml": power_storm.SETTINGS})
    storm = power_storm.run(guest, seed=1, cuts=2)
    keeps_its_word(storm)
    storm_figures(storm, figure, machine)


@pytest.mark.long
@pytest.mark.qemu(NO_PLUG)
@pytest.mark.parametrize("machine", CUTS)
def test_many_power_cuts_lose_nothing_and_the_broker_restarts_each_time(new_guest, machine, figure, pytestconfig):
    cuts = pytestconfig.getoption("--cuts") or CUTS[machine]
    guest = new_guest(machine, files={"blipmq.toml": power_storm.SETTINGS})
    storm = power_storm.run(guest, seed=2, cuts=cuts, starting_share=0.25)
    keeps_its_word(storm)
    assert len(storm.boot_seconds) == cuts + 1
    storm_figures(storm, figure, machine)


@pytest.mark.board("a guest of QEMU has its power cut instead")
def test_resets_under_load_lose_nothing_acknowledged(board, figure):
    board.put({"blipmq.toml": power_storm.SETTINGS})
    board.cut_power()
    storm = power_storm.run(board, seed=3, cuts=5)
    keeps_its_word(storm)
    storm_figures(storm, figure, "resets without a warning")


# ---- control run -----------------------------------------------------------------------------------------------------


def take_syncs_away(library):
    """Disable the syncs of the broker of a guest until the guest is switched off."""

    def between(guest):
        guest.wait_for_shell()
        # A mount of its own: the existing mounts may forbid executables.
        guest.shell(f"mkdir -p {FOLDER} && mount -t tmpfs -o mode=755 tmpfs {FOLDER}")
        guest.send_file(library, LIBRARY)
        guest.shell(f"chmod 755 {LIBRARY}; mkdir -p $(dirname {DROP_IN})")
        guest.shell(f"printf '[Service]\\nEnvironment=LD_PRELOAD={LIBRARY}\\n' >{DROP_IN}")
        guest.shell("systemctl daemon-reload && systemctl restart blipmq")
        guest.wait_until_ready()
        assert "nosync" in guest.shell("cat /proc/$(systemctl show -p MainPID --value blipmq)/maps")

    return between


def build_library(folder):
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: packaging/setup.sh installs one"
    library = folder / "nosync.so"
    source = Path(__file__).with_name("nosync.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True, timeout=120)
    return library


@pytest.mark.long
@pytest.mark.qemu("a broker without syncs is for guests: on a board it would lose what is the owner's")
def test_the_control_run_without_syncs_loses_messages(new_guest, tmp_path, figure, pytestconfig):
    cuts = pytestconfig.getoption("--cuts") or CONTROL_CUTS
    guest = new_guest("x64", files={"blipmq.toml": power_storm.SETTINGS})
    storm = power_storm.run(guest, seed=4, cuts=cuts, between=take_syncs_away(build_library(tmp_path)))
    figure("x64, control without syncs: power cuts under load", storm.cuts)
    figure("x64, control without syncs: acknowledged", storm.ledger.acknowledged, "messages")
    figure("x64, control without syncs: of them lost", storm.lost())
    assert storm.lost() > 0
