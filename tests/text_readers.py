"""Subscribers for the acceptance tests that receive hundreds of thousands of lines and report them.

Invariant: during the traffic a reader does as little as possible, in its own thread; received data is checked after its
end.
"""

import contextlib
import hashlib
import socket
import struct
import subprocess
import sysconfig
import threading
from pathlib import Path

from broker_process import start_cli
from hand_client import LegacyClient, Reader

READ_BYTES = 1 << 18


def real_lines(count):
    """The first `count` lines of Python's own standard library, each without its newline."""
    lines = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        lines += path.read_bytes().split(b"\n")
        if len(lines) >= count:
            return lines[:count]
    raise AssertionError(f"the standard library of this Python has only {len(lines)} lines of source")


def digest(lines):
    """One hash of lines in their order."""
    return hashlib.sha256(b"".join([line + b"\n" for line in lines])).hexdigest()


class SocketReader:
    """A subscription over a plain socket. It reads only its SubAck until `start` is called."""

    def __init__(self, broker, filter_, receive_buffer_bytes=0):
        self.client = LegacyClient(broker.address, receive_buffer_bytes).subscribe(filter_)
        self.client.socket.settimeout(None)  # no data may arrive for as long as the other clients take
        self.peer = self.client.peer
        self.count = 0
        self._stream = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self):
        self._thread.start()
        return self

    def _read(self):
        at = 0
        buffered = self.client.stream.read1() if self.client.stream.peek() else b""
        while buffered:
            self._stream += buffered
            while at + 4 <= len(self._stream):
                (size,) = struct.unpack_from(">I", self._stream, at)
                if at + 4 + size > len(self._stream):
                    break
                at += 4 + size
                self.count += 1
            buffered = self.client.socket.recv(READ_BYTES)

    def close(self):
        """Close the connection and end the thread. Closing twice is harmless."""
        with contextlib.suppress(OSError):
            self.client.socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self.client.close()

    def lines(self):
        """The received payloads in order. Closes the connection."""
        self.close()
        lines, at = [], 0
        for _ in range(self.count):
            (size,) = struct.unpack_from(">I", self._stream, at)
            lines.append(Reader(self._stream[at + 5 : at + 4 + size]).vector(1))
            at += 4 + size
        return lines


class CliReader:
    """`blipmq-cli sub -q` that ends by itself after `total` messages."""

    def __init__(self, broker, filter_, total):
        self.process = start_cli(broker.address, "sub", "-q", filter_, "-n", str(total), stdout=subprocess.PIPE)
        self.count = 0
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        while piece := self.process.stdout.read1(READ_BYTES):
            self._hash.update(piece)
            self.count += piece.count(b"\n")

    def digest(self):
        """The hash of its whole output, after its end."""
        assert self.process.wait(60) == 0
        self._thread.join()
        self.process.stdout.close()
        return self._hash.hexdigest()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._thread.join()
        self.process.stdout.close()


class CliPublisher:
    """`blipmq-cli pub TOPIC -` whose standard input is a pipe."""

    def __init__(self, broker, topic):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = start_cli(broker.address, "pub", topic, "-", **pipes)

    def feed(self, lines):
        self.process.stdin.write(b"".join([line + b"\n" for line in lines]))
        self.process.stdin.flush()

    def end(self):
        """Close its input; returns its output after a successful end."""
        out, err = self.process.communicate(timeout=60)
        assert (self.process.returncode, err) == (0, b"")
        return out.decode()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
