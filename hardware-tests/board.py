"""A real device with its power and network connected, reached over SSH with a key that stands in its device.toml.

Invariant: what a test changed on the settings partition is put back when the test is over.
"""

import contextlib
import subprocess
import time

from device import BROKER, SSH, Device

SETTINGS = "/boot/blipmq"
RESET_SECONDS = 10


class Board(Device):
    def __init__(self, host, key):
        super().__init__(host, {BROKER: BROKER, SSH: SSH}, key)
        self.kept = {}
        self.left = time.monotonic()
        self.boot_seconds = []

    def __repr__(self):
        return f"Board({self.host})"

    def power_on(self):
        """It comes back by itself."""

    def cut_power(self):
        """A reset in the middle of whatever it does: nothing is synced, no service is told. The medium keeps its power, so
        what it had taken and not yet stored is not lost: pull the plug for that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.shell(
                "echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger", check=False, seconds_max=RESET_SECONDS
            )
        self.left = time.monotonic()

    def boot(self):
        self.wait_until_ready()
        self.boot_seconds.append(round(time.monotonic() - self.left, 1))
        return self.boot_seconds[-1]

    # ---- the settings partition ----

    def put(self, files):
        for name, content in files.items():
            self.kept.setdefault(name, self.get(name))
            self._put(name, content)

    def restart_with(self, files):
        self.put(files)
        self.reboot()

    def _put(self, name, content):
        if content is None:
            self.shell(f"rm -f {SETTINGS}/{name} && sync -f {SETTINGS}")
        else:
            self.shell(f"cat >{SETTINGS}/{name} && sync -f {SETTINGS}", stdin=content)

    def get(self, name):
        done = self.shell(f"cat {SETTINGS}/{name}", check=False)
        return done.stdout if done.returncode == 0 else None

    def restore(self):
        """Put back what `put` changed, and start again with it."""
        if self.kept:
            for name, content in self.kept.items():
                self._put(name, content)
            self.kept = {}
            self.reboot()
