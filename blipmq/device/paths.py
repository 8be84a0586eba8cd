"""The paths of an appliance, all below one root, so that tests need no device.

Invariant: no other module contains a path of the system. No file or folder is created here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


class Paths:
    """Paths below `root`. `boot` is the FAT partition that a technician sees, `data` the persistent partition, `run` is
    in memory."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = Path(root)
        self.boot = self.root / "boot/blipmq"
        self.data = self.root / "data"
        self.kept = self.data / "device"
        self.run = self.root / "run/blipmq-device"
        self.status = self.boot / "blipmq-status.txt"
        self.new_keys = self.boot / "blipmq-new-keys.txt"
        self.good_slot = self.boot / "system/good-slot"
        self.clock = self.kept / "clock"
        self.machine_id = self.kept / "machine-id"
        self.made_keys = self.kept / "keys.json"
        self.own_key = self.kept / "own-key"
        self.broker_keys = self.data / "blipmq/keys"
        self.result = self.run / "result.json"
        self.health = self.run / "health.json"
        self.reset_note = self.run / "factory-reset"
        self.banner = self.run / "banner"
        self.authorized_keys = self.run / "authorized_keys"
        self.wifi = self.run / "wpa_supplicant.conf"
        self.broker_settings = self.root / "run/blipmq/blipmq.toml"
        self.networks = self.root / "run/systemd/network"
        self.time_servers = self.root / "run/systemd/timesyncd.conf.d/blipmq.conf"
        self.hostname = self.root / "etc/hostname"
        self.profiles = self.root / "usr/share/blipmq/profiles"
        self.leds = self.root / "sys/class/leds"

    def __repr__(self) -> str:
        return f"Paths({str(self.root)!r})"

    def text(self, path: str) -> str:
        """A small file below the root, without line end; "" if there is none."""
        try:
            with open(self.root / path, encoding="utf-8", errors="replace") as file:
                return file.read(64 << 10).strip("\0\n ")
        except OSError:
            return ""

    @property
    def slot(self) -> str:
        """The slot that this system was started from, "A" or "B"; "" without slots."""
        found = re.search(r"\brauc\.slot=(\S+)", self.text("proc/cmdline"))
        return found[1] if found else ""

    @property
    def image_version(self) -> str:
        """The version of the image; "" without an image."""
        found = re.search(r'^IMAGE_VERSION="?([^"\n]*)"?$', self.text("usr/lib/os-release"), re.MULTILINE)
        return found[1] if found else ""

    @property
    def memory_bytes(self) -> int:
        """MemTotal in bytes; 0 if unknown."""
        found = re.search(r"^MemTotal:\s+(\d+) kB", self.text("proc/meminfo"), re.MULTILINE)
        return int(found[1]) << 10 if found else 0

    def mounted(self, path: Path) -> str:
        """The mount state of a partition: "rw", "ro" or "" for not mounted."""
        wanted = "/" + str(path.relative_to(self.root))
        state = ""
        for line in self.text("proc/mounts").splitlines():
            words = line.split(" ")
            if len(words) > 3 and words[1] == wanted:
                state = "ro" if "ro" in words[3].split(",") else "rw"
        return state
