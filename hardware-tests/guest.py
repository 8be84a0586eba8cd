"""A device under QEMU: the shipped image on a machine of machines.py; the test controls its power.

Invariant: QEMU is ended by its pid, by this process or, if this process dies, by the kernel. None remains.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from device import BROKER, SSH, Device
from disk import Disk
from machines import MIB

CONSOLE_LINES = 40
MEDIUM_MIB = 4096  # a small card; the data partition grows to its end


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Guest(Device):
    """`rtc`: its clock at power-on. `files`: for the settings partition. `medium_mib`: size of its disk in MiB. `wire`:
    the cable of a second network card."""

    ends_connections = True  # QEMU held the connections

    def __init__(self, machine, image, folder, cpu=None, memory_mib=0, key=None, rtc="", files=None, medium_mib=MEDIUM_MIB,
                 wire=None):  # fmt: skip
        super().__init__("127.0.0.1", {port: free_port() for port in (BROKER, SSH)}, key)
        self.machine, self.folder, self.rtc, self.wire = machine, folder, rtc, wire
        self.cpu, self.memory_mib = cpu or machine.cpu, memory_mib or machine.memory_mib
        self.disk = Disk(image, folder, self._medium_bytes(image, medium_mib))
        self.console_file = folder / "console.log"
        self.console_file.touch()
        self.child = None
        self.boot_seconds = []
        if machine.firmware:
            shutil.copyfile(machine.firmware.variables, folder / "variables.fd")
        if files:
            self.disk.put(files)

    def __repr__(self):
        return f"Guest({self.machine.image}, {self.cpu}, {self.memory_mib} MiB, {self.folder})"

    def _medium_bytes(self, image, medium_mib):
        size = max(image.path.stat().st_size, medium_mib * MIB)
        # QEMU requires SD cards with a power of two as size.
        return 1 << (size - 1).bit_length() if "if=sd" in self.machine.disk else size

    # ---- power ----

    def command(self):
        machine = self.machine
        drive = f"file={self.disk.overlay},format=qcow2,cache=writeback"
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{port}-:{inside}" for inside, port in self.ports.items())
        words = [
            machine.program,
            *"-accel tcg -nographic -nodefaults -monitor none".split(),
            "-m",
            str(self.memory_mib),
        ]
        words += [word.format(cpu=self.cpu) for word in machine.arguments]
        words += ["-chardev", f"file,id=console,path={self.console_file},append=on"]
        words += map(str, self._boot())
        words += machine.disk.format(drive=drive).split()
        words += ["-netdev", f"user,id=net,restrict=on{forwards}", *machine.network.split()]
        words += self.wire.arguments() if self.wire else []
        if self.rtc:
            words += ["-rtc", f"base={self.rtc}"]
        # QEMU must not outlive the tests in any case.
        return ["setpriv", "--pdeathsig", "KILL", *words]

    def _boot(self):
        firmware = self.machine.firmware
        if firmware is None:
            kernel, initrd, tree, words = self.disk.image.direct_boot(self.machine.device_tree, self.folder)
            return ["-serial", "chardev:console", "-serial", "null", "-kernel", kernel, "-initrd", initrd, "-dtb", tree,
                    "-append", f"{words} {self.machine.kernel_words}".strip()]  # fmt: skip
        drives = [f"if=pflash,format=raw,readonly=on,file={firmware.code}",
                  f"if=pflash,format=raw,file={self.folder / 'variables.fd'}"]  # fmt: skip
        return ["-serial", "chardev:console", *(word for drive in drives for word in ("-drive", drive))]

    def power_on(self):
        assert self.child is None, "it is on"
        self.disk.begin()
        self._console_start = self.console_file.stat().st_size
        self.switched_on = time.monotonic()
        with (self.folder / "qemu.log").open("ab") as log:
            self.child = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )
        return self

    def boot(self):
        """Switch it on and wait for the broker. Returns the seconds, measured here."""
        self.power_on()
        self.wait_until_ready()
        self.boot_seconds.append(round(time.monotonic() - self.switched_on, 1))
        self.cpu_seconds_at_ready = self.cpu_seconds()
        return self.boot_seconds[-1]

    def cpu_seconds(self):
        """Processor time of QEMU since its start, in seconds."""
        words = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return round((int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK"), 1)

    def cut_power(self):
        if self.child is not None:
            self.child.send_signal(signal.SIGKILL)
            self.child.wait()
            self.child = None

    def power_off(self, seconds_max=180):
        """Orderly shutdown with the `poweroff` command."""
        self.shell("poweroff", check=False)
        try:
            self.child.wait(seconds_max)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not power off in {seconds_max} s{self.last_words()}") from None
        self.child = None

    def put(self, files):
        assert self.child is None, "only a disk that is not in use can be written to"
        self.disk.put(files)

    def get(self, name):
        return self.disk.get(name)

    def restart_with(self, files):
        self.power_off()
        self.put(files)
        self.boot()

    def close(self):
        """Switch it off and delete its disk. The console log is kept."""
        self.cut_power()
        self.disk.remove()
        if self.wire:
            self.wire.close()

    def check_alive(self):
        assert self.child is not None, "it is switched off"
        status = self.child.poll()
        assert status is None, (
            f"QEMU ended with {status}: {(self.folder / 'qemu.log').read_text()[-2000:]}{self.last_words()}"
        )

    # ---- observation ----

    def console(self):
        """The output of the serial console since the last power-on."""
        with self.console_file.open("rb") as file:
            file.seek(self._console_start)
            return file.read().decode(errors="replace")

    def last_words(self):
        return "\nits console ends:\n" + "\n".join(self.console().splitlines()[-CONSOLE_LINES:])
