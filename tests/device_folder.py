"""An appliance as a folder for `blipmq-device --root`, with a fake system that records commands.

Invariant: only files in the folder are read or changed, and time changes only when a test changes it.
"""

import os
from pathlib import Path

from blipmq.device.paths import Paths
from blipmq.device.system import CommandResult, System

ROOT = Path(__file__).resolve().parent.parent
BUILT = 1_760_000_000.0
NOW = BUILT + 1_000_000.0
MOUNTS = "/dev/vda3 /data ext4 {data},noatime 0 0\n/dev/vda1 /boot/blipmq vfat {boot},noatime 0 0\n"


class StillSystem(System):
    """Records commands. `answers` gives the results of commands by their first words."""

    def __init__(self):
        super().__init__(live=False)
        self.commands = []
        self.answers = {}
        self.hostname = ""
        self.time = NOW

    def run(self, *command, seconds=60.0):
        self.commands.append(" ".join(command))
        for beginning, answer in self.answers.items():
            if self.commands[-1].startswith(beginning):
                return answer
        return CommandResult(0, "")

    def set_hostname(self, name):
        self.hostname = name

    def now(self):
        return self.time

    def set_time(self, seconds):
        self.time = seconds


class DeviceFolder:
    """A folder that looks like a started device with `memory_mib` of memory."""

    def __init__(self, folder, memory_mib=920):
        self.folder = folder
        self.paths = Paths(folder)
        self.system = StillSystem()
        for path in ("boot/blipmq", "data", "run", "proc", "etc", "usr/lib", "sys/class/leds"):
            (folder / path).mkdir(parents=True)
        self.mount()
        self.put("proc/meminfo", f"MemTotal:  {memory_mib * 1024} kB\nMemFree: 1 kB\n")
        self.put("proc/cmdline", "root=/dev/ram rauc.slot=A quiet\n")
        self.put("usr/lib/os-release", 'ID=blipmq\nIMAGE_VERSION="2.0.1"\n')
        self.put("usr/lib/clock-epoch", "")
        os.utime(folder / "usr/lib/clock-epoch", (BUILT, BUILT))
        self.put("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        for profile in (ROOT / "config").glob("*.toml"):
            self.put(f"usr/share/blipmq/profiles/{profile.name}", profile.read_text())

    def mount(self, data="rw", boot="rw"):
        """The mount options of the two partitions; "" means not mounted."""
        lines = MOUNTS.format(data=data, boot=boot).splitlines(keepends=True)
        self.put("proc/mounts", "".join(line for line, state in zip(lines, (data, boot), strict=True) if state))

    def put(self, path, text):
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            place.write_bytes(text)
        else:
            place.write_text(text, encoding="utf-8")

    def read(self, path):
        return (self.folder / path).read_text(encoding="utf-8")

    def has(self, path):
        return (self.folder / path).exists()


class MemoryStore:
    """A key store in a dict: {name: (key, rights)}; `calls` counts the changes."""

    def __init__(self):
        self.keys = {}
        self.calls = []

    def names(self):
        return list(self.keys)

    def add(self, name, allow, key):
        assert name not in self.keys
        self.calls.append(f"add {name}")
        self.keys[name] = (key, tuple(allow))

    def revoke(self, name):
        self.calls.append(f"revoke {name}")
        del self.keys[name]
