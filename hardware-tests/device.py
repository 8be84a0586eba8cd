"""A device with BlipMQ on it as the tests see it, be it a guest of QEMU or a board on the desk.

Invariant: a test that takes a device uses only what is here, so that it holds for both.
"""

import re
import socket
import subprocess
import time

from crash.clients import ack_frame
from hand_client import HELLO, SUB, HelloClient, command, decode

BROKER, SSH = 7878, 22
READY_SECONDS_MAX = 600  # a hang, on whatever machine
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
    """The broker's answer to HELLO, None if there was none. QEMU and ssh take connections that the device never sees:
    only an answer is one."""
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
    """What a service there says within a few seconds, after `first` was said to it; b"" if it took the connection and said
    nothing, None if there is no service."""
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
    """The ids of so many messages that waited for a durable subscriber, which acknowledges each."""
    came = []
    with HelloClient(device.address, client_id) as client:
        assert client.ask(SUB, topic, qos=1, durable=True).code == 0
        while len(came) < count:
            message = client.next()
            client.send(ack_frame(message.id))
            came.append(message.id)
    return came


class Device:
    """`key`: the file with the private key that the device was given; None: it was given none."""

    def __init__(self, host, ports, key=None, user="root"):
        self.host, self.ports, self.key, self.user = host, ports, key, user

    @property
    def address(self):
        return f"{self.host}:{self.ports[BROKER]}"

    # ---- what the two kinds do each in their way ----

    ends_connections = False  # whether its clients learn at once that its power is gone

    def boot(self):
        """From off, or about to come back, to a broker that answers; the seconds it took as seen from here."""
        raise NotImplementedError

    def cut_power(self):
        """Take it down without a warning."""
        raise NotImplementedError

    def power_on(self):
        raise NotImplementedError

    def put(self, files):
        """Change files on the partition that a PC sees, {name: bytes, or None to delete it}; they count from the next boot."""
        raise NotImplementedError

    def get(self, name):
        """A file from there, None if there is none."""
        raise NotImplementedError

    def status(self):
        """What the device wrote about itself for a person with a PC, as a dict of its facts and the whole under ""."""
        text = (self.get(STATUS) or b"").decode("utf-8-sig", "replace").replace("\r\n", "\n")
        facts = dict(line.split(":", 1) for line in text.splitlines() if re.match(r"[A-Za-z][\w. ]*:", line))
        return {"": text, **{name: value.strip() for name, value in facts.items()}}

    def wait_for_status(self, wanted, what, seconds_max=READY_SECONDS_MAX):
        """Until `wanted(status)` is true; that status."""

        def look():
            status = self.status()
            return status if wanted(status) else None

        return self.until(look, f"{STATUS} says {what}", seconds_max)

    def restart_with(self, files):
        """Down in order, the files changed as `put` does it, and up again until the broker answers."""
        raise NotImplementedError

    # ---- readiness ----

    def check_alive(self):
        """Raises if there is no sense in waiting longer."""

    def wait_until_ready(self, seconds_max=READY_SECONDS_MAX):
        """Until the broker answers HELLO; its answer."""
        deadline = time.monotonic() + seconds_max
        while (answer := hello(self.host, self.ports[BROKER])) is None:
            self.check_alive()
            assert time.monotonic() < deadline, (
                f"no broker answered on {self.address} in {seconds_max} s{self.last_words()}"
            )
            time.sleep(0.1)
        return answer

    def last_words(self):
        """What may explain a failure, for its message."""
        return ""

    # ---- a shell, if it was given a key ----

    def ssh_command(self, *words):
        assert self.key, "this device was given no key"
        # The device makes its host key when it first starts: there is nothing to compare it with.
        options = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "BatchMode": "yes",
                   "IdentitiesOnly": "yes", "ConnectTimeout": "15", "ServerAliveInterval": "10", "LogLevel": "ERROR"}  # fmt: skip
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", *flags, "-i", str(self.key), "-p", str(self.ports[SSH]), f"{self.user}@{self.host}", *words]

    def shell(self, script, check=True, stdin=b"", seconds_max=SSH_SECONDS_MAX):
        """Run a shell script on the device; what it printed, or with check=False the whole CompletedProcess."""
        done = subprocess.run(self.ssh_command(script), input=stdin, capture_output=True, timeout=seconds_max)
        if not check:
            return done
        message = done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"status {done.returncode} of: {script}\n{message}{self.last_words()}"
        return done.stdout.decode(errors="replace")

    def ask(self, script):
        """What a script says on one line; "" if it failed or there is no shell just now."""
        try:
            done = self.shell(script, check=False, seconds_max=ASK_SECONDS_MAX)
        except subprocess.TimeoutExpired:  # it went down with the connection open
            return ""
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""

    def boot_id(self):
        """Another one after each start; "" while there is no shell."""
        return self.ask("cat /proc/sys/kernel/random/boot_id")

    def wait_for_another_boot(self, before, what="it starts again", seconds_max=READY_SECONDS_MAX):
        """Until it has been started anew since `boot_id` was `before`, and its broker answers."""
        self.until(lambda: self.boot_id() not in ("", before), what, seconds_max)
        self.wait_until_ready()

    def reboot(self):
        """Down and up again in order; the seconds from the command to a broker that is ready, by the device's own clock: a
        shell that was asked for while it was down may fail only much later."""
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
        """Copy a local file to a path on the device. Through `cat`: not every device has an sftp server."""
        with open(path, "rb") as file:
            done = subprocess.run(
                self.ssh_command(f"cat >{target}"), stdin=file, capture_output=True, timeout=SSH_SECONDS_MAX
            )
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    def until(self, happened, what, seconds_max=READY_SECONDS_MAX):
        """Look until `happened()` is true; its value."""
        deadline = time.monotonic() + seconds_max
        while not (value := happened()):
            self.check_alive()
            assert time.monotonic() < deadline, f"in {seconds_max} s it did not happen that {what}{self.last_words()}"
            time.sleep(0.5)
        return value
