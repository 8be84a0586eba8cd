"""A real device with power and network, reached over SSH with a key from its device.toml.

Invariant: changes of a test on the settings partition are undone after the test.
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
        """It starts by itself."""

    def cut_power(self):
        """A reset at any moment: nothing is synced, no service is notified. The medium keeps its power, so data that it
        has accepted but not stored is not lost. To test that, pull the plug."""
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
        """Undo the changes of `put` and restart with the result."""
        if self.kept:
            for name, content in self.kept.items():
                self._put(name, content)
            self.kept = {}
            self.reboot()
