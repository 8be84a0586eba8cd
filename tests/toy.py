"""The toy TLS module of tests/native/toy_secure.c, built as a shared object, and clients that speak its records."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from pathlib import Path

from stepped import STEPS_MAX, Bench, SocketClient

from blipmq.wire import frames as wire

TESTS = Path(__file__).resolve().parent
CC = os.environ.get("CC", "cc").split()
SOURCE = TESTS / "native" / "toy_secure.c"
HANDSHAKE, DATA, CLOSE, ALERT, ASK = 1, 2, 3, 4, 5
HEAD_BYTES = 3
RECORD_MAX = 16 << 10


class Toy:
    """The module, loaded. `alive` is the number of its contexts and states."""

    def __init__(self, directory: Path) -> None:
        path = directory / "toy_secure.so"
        flags = [
            f"-I{TESTS.parent / 'native'}",
            "-std=gnu11",
            "-O1",
            "-g",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wextra",
            "-Werror",
        ]
        subprocess.run([*CC, *flags, str(SOURCE), "-o", str(path)], check=True)
        self._library = ctypes.CDLL(str(path))
        self._library.toy_ops.restype = ctypes.c_void_p
        self._library.toy_context.restype = ctypes.c_void_p
        self._library.toy_alive.restype = ctypes.c_int64
        self.table: int = self._library.toy_ops()

    @property
    def alive(self) -> int:
        return int(self._library.toy_alive())

    def context(self, steps: int = 2, answer_bytes: int = 100, slow_us: int = 0) -> int:
        context: int = self._library.toy_context(steps, answer_bytes, slow_us)
        return context


class Records:
    """Both directions of one client: `seal` makes records, `open` reads them."""

    def __init__(self) -> None:
        self._sealed = self._opened = 0
        self._buffer = bytearray()

    def seal(self, kind: int, content: bytes = b"") -> bytes:
        mask = (self._sealed * 31 + 7) & 255
        self._sealed += 1
        return bytes((kind, *len(content).to_bytes(2, "big"))) + bytes(byte ^ mask for byte in content)

    def data(self, content: bytes, record_max: int = RECORD_MAX) -> bytes:
        parts = range(0, len(content), record_max)
        return b"".join(self.seal(DATA, content[at : at + record_max]) for at in parts)

    def open(self, data: bytes) -> list[tuple[int, bytes]]:
        self._buffer += data
        found = []
        while len(self._buffer) >= HEAD_BYTES:
            end = HEAD_BYTES + int.from_bytes(self._buffer[1:HEAD_BYTES], "big")
            if len(self._buffer) < end:
                break
            mask = (self._opened * 31 + 7) & 255
            self._opened += 1
            found.append((self._buffer[0], bytes(byte ^ mask for byte in self._buffer[HEAD_BYTES:end])))
            del self._buffer[:end]
        return found


class ToyClient(SocketClient):
    """A client of a stepped core over a socket, with the records of the toy module. `kinds` are those it received."""

    def __init__(self, bench: Bench, ours: socket.socket) -> None:
        super().__init__(bench, ours)
        self.records = Records()
        self.kinds: list[int] = []

    def raw(self, data: bytes) -> None:
        """Send ciphertext."""
        super().send_bytes(data)

    def send_bytes(self, data: bytes) -> None:
        self.raw(self.records.data(data))

    def shake(self, *contents: bytes) -> ToyClient:
        """The handshake records with these contents, one after the other."""
        for content in contents:
            self.raw(self.records.seal(HANDSHAKE, content))
            self.pump()
        return self

    def hello_over(self) -> ToyClient:
        """Say HELLO; the Reply stays in `replies`."""
        self.send(wire.HELLO, seq=1, client_id="client", protocol=wire.PROTOCOL)
        self.pump()
        return self

    def pump(self) -> None:
        """Read all available output."""
        for _ in range(STEPS_MAX):
            self.bench.settle()
            if not self.receive():
                return
        raise AssertionError("the core does not come to rest")

    def arrived(self, data: bytes) -> None:
        for kind, content in self.records.open(data):
            self.kinds.append(kind)
            if kind == DATA:
                super().arrived(content)


class ToyBench(Bench):
    """A bench whose clients may use the toy module."""

    def __init__(self, toy: Toy, steps: int = 2, answer_bytes: int = 100, tell: bool = False, **limits: int) -> None:
        super().__init__(**limits)
        self.toy = toy
        self.core.secure(toy.table, toy.context(steps, answer_bytes), tell)

    def dial(self, buffer_bytes: int = 1 << 16) -> ToyClient:
        """A client that has sent nothing yet."""
        return self.use(ToyClient(self, self.adopted(buffer_bytes, secure=True)))

    def dial_tcp(self) -> ToyClient:
        """The same over TCP, after `listen(secure=True)`."""
        return self.use(ToyClient(self, socket.create_connection(self.address)))

    def secure_client(self) -> ToyClient:
        """A client after its handshake."""
        return self.dial().shake(b"", b"")
