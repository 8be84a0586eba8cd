"""A device with BlipMQ as the tests see it: a QEMU guest or a real board.

Invariant: a test that takes a device uses only this interface, so it works with both.
"""

import re
import socket
import subprocess
import time

from crash.clients import ack_frame
from hand_client import HELLO, SUB, HelloClient, command, decode

BROKER, SSH = 7878, 22
READY_SECONDS_MAX = 600  # longer means a hang, on any machine
PROBE_SECONDS = 3
SSH_SECONDS_MAX = 180
ASK_SECONDS_MAX = 45
STATUS = "blipmq-status.txt"


def receive(stream, size):
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data


def hello(host, port):
    """The answer of the broker to HELLO; None without one. QEMU and ssh accept connections that never reach the device,
    so only an answer counts."""
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as stream:
            stream.settimeout(PROBE_SECONDS)
            stream.sendall(command(HELLO, client_id="probe", protocol=1, seq=1))
            head = receive(stream, 4)
            body = receive(stream, int.from_bytes(head, "big")) if head else b""
            return decode(body) if body else None
    except OSError:
        return None


def port_speaks(host, port, first=b""):
    """Send `first` and return the bytes that the service sends within a few seconds; b"" if it accepts the connection
    and sends nothing, None if there is no service."""
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as stream:
            stream.settimeout(PROBE_SECONDS)
            if first:
                stream.sendall(first)
            return stream.recv(256) or None
    except TimeoutError:
        return b""
    except OSError:
        return None


def ids_kept_for(device, client_id, topic, count):
    """The ids of this many messages stored for a durable subscriber, which acknowledges each."""
    came = []
    with HelloClient(device.address, client_id) as client:
        assert client.ask(SUB, topic, qos=1, durable=True).code == 0
        while len(came) < count:
            message = client.next()
            client.send(ack_frame(message.id))
            came.append(message.id)
    return came


class Device:
    """`key`: the file with the private key for the device; None: the device has no key."""

    def __init__(self, host, ports, key=None, user="root"):
        self.host, self.ports, self.key, self.user = host, ports, key, user

    @property
    def address(self):
        return f"{self.host}:{self.ports[BROKER]}"

    # ---- different for guests and boards ----

    ends_connections = False  # whether a power cut closes the connections of its clients at once

    def boot(self):
        """Start the device, or wait for its start, until the broker answers. Returns the seconds, measured here."""
        raise NotImplementedError

    def cut_power(self):
        """Cut its power without warning."""
        raise NotImplementedError

    def power_on(self):
        raise NotImplementedError

    def put(self, files):
        """Change files on the settings partition, {name: bytes, or None to delete}; they take effect at the next
        boot."""
        raise NotImplementedError

    def get(self, name):
        """A file of the settings partition; None if it does not exist."""
        raise NotImplementedError

    def status(self):
        """The status file of the device: a dict of its fields, with the whole text under ""."""
        text = (self.get(STATUS) or b"").decode("utf-8-sig", "replace").replace("\r\n", "\n")
        facts = dict(line.split(":", 1) for line in text.splitlines() if re.match(r"[A-Za-z][\w. ]*:", line))
        return {"": text, **{name: value.strip() for name, value in facts.items()}}

    def wait_for_status(self, wanted, what, seconds_max=READY_SECONDS_MAX):
        """Wait until `wanted(status)` is true; returns that status."""

        def look():
            status = self.status()
            return status if wanted(status) else None

        return self.until(look, f"{STATUS} says {what}", seconds_max)

    def restart_with(self, files):
        """Shut down, change files as in `put`, and start again until the broker answers."""
        raise NotImplementedError

    # ---- readiness ----

    def check_alive(self):
        """Raises if further waiting is useless."""

    def wait_until_ready(self, seconds_max=READY_SECONDS_MAX):
        """Wait until the broker answers HELLO; returns the answer."""
        deadline = time.monotonic() + seconds_max
        while (answer := hello(self.host, self.ports[BROKER])) is None:
            self.check_alive()
            assert time.monotonic() < deadline, (
                f"no broker answered on {self.address} in {seconds_max} s{self.last_words()}"
            )
            time.sleep(0.1)
        return answer

    def last_words(self):
        """Diagnostic output for a failure message."""
        return ""

    # ---- shell access, if the device has a key ----

    def ssh_command(self, *words):
        assert self.key, "this device was given no key"
        # The device creates its host key at its first start, so there is no known key to compare with.
        options = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "BatchMode": "yes",
                   "IdentitiesOnly": "yes", "ConnectTimeout": "15", "ServerAliveInterval": "10", "LogLevel": "ERROR"}  # fmt: skip
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", *flags, "-i", str(self.key), "-p", str(self.ports[SSH]), f"{self.user}@{self.host}", *words]

    def shell(self, script, check=True, stdin=b"", seconds_max=SSH_SECONDS_MAX):
        """Run a shell script on the device. Returns its output, or with check=False the CompletedProcess."""
        done = subprocess.run(self.ssh_command(script), input=stdin, capture_output=True, timeout=seconds_max)
        if not check:
            return done
        message = done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"status {done.returncode} of: {script}\n{message}{self.last_words()}"
        return done.stdout.decode(errors="replace")

    def ask(self, script):
        """The output line of a script; "" if it failed or no shell is available."""
        try:
            done = self.shell(script, check=False, seconds_max=ASK_SECONDS_MAX)
        except subprocess.TimeoutExpired:  # the device shut down while the connection was open
            return ""
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""

    def boot_id(self):
        """Changes at each start; "" while no shell is available."""
        return self.ask("cat /proc/sys/kernel/random/boot_id")

    def wait_for_another_boot(self, before, what="it starts again", seconds_max=READY_SECONDS_MAX):
        """Wait until the boot id differs from `before` and the broker answers."""
        self.until(lambda: self.boot_id() not in ("", before), what, seconds_max)
        self.wait_until_ready()

    def reboot(self):
        """Orderly restart. Returns the seconds from the command to a ready broker, by the clock of the device: a shell
        requested during the restart may fail much later."""
        before, began = self.boot_id(), time.monotonic()
        self.shell("systemctl reboot", check=False)
        self.wait_for_another_boot(before)
        seconds = time.monotonic() - began
        ready = "systemctl show -p ActiveEnterTimestampMonotonic --value blipmq"
        up, ready_us = self.shell(f"echo $(cut -d' ' -f1 /proc/uptime) $({ready})").split()
        return round(seconds - (float(up) - int(ready_us) / 1e6), 1)

    def wait_for_shell(self, seconds_max=READY_SECONDS_MAX):
        deadline = time.monotonic() + seconds_max
        while True:
            done = self.shell("true", check=False)
            if done.returncode == 0:
                return
            self.check_alive()
            message = done.stderr.decode(errors="replace").strip()
            assert time.monotonic() < deadline, f"no shell in {seconds_max} s: {message}{self.last_words()}"
            time.sleep(0.5)

    def send_file(self, path, target):
        """Copy a local file to a path on the device. Uses `cat`, because not every device has an sftp server."""
        with open(path, "rb") as file:
            done = subprocess.run(
                self.ssh_command(f"cat >{target}"), stdin=file, capture_output=True, timeout=SSH_SECONDS_MAX
            )
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    def until(self, happened, what, seconds_max=READY_SECONDS_MAX):
        """Poll `happened()` until it is true; returns its value."""
        deadline = time.monotonic() + seconds_max
        while not (value := happened()):
            self.check_alive()
            assert time.monotonic() < deadline, f"in {seconds_max} s it did not happen that {what}{self.last_words()}"
            time.sleep(0.5)
        return value
