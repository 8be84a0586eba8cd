"""Runs one test script of mosquitto in this process, with packets compared by meaning: `script.py SCRIPT PORT...`.

The script's own helper module stays as it is. Its functions that compare packets and start the broker are replaced.

Invariant: a received packet is read whole and nothing behind it, so that scripts which read the socket themselves find the rest.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import ssl
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mqtt_packets import Reader

from conformance.meaning import alike, alike_all, alike_begun, is_refusal, packets

START_S = 15.0
POLL_S = 0.02
# The scripts connect right after the start; mosquitto's own helper waits this long too.
SETTLE_S = 0.05


class Layer:
    """The functions that replace those of mosq_test. `differences` are the accepted ones of this script."""

    def __init__(self, mosq_test: Any, differences: list[dict[str, str]]) -> None:
        self.mosq_test = mosq_test
        self.differences = differences
        self.used: list[dict[str, str]] = []
        self.versions: weakref.WeakKeyDictionary[socket.socket, int] = weakref.WeakKeyDictionary()
        self.sent = mosq_test.do_send_receive

    def install(self) -> None:
        for name in ("expect_packet", "packet_matches", "receive_unordered", "do_send_receive", "start_broker"):
            setattr(self.mosq_test, name, getattr(self, name))

    def do_send_receive(self, sock: Any, send_packet: bytes, *more: Any, **named: Any) -> Any:
        if send_packet[:1] == b"\x10":
            self.versions[sock] = level(send_packet)
        try:
            return self.sent(sock, send_packet, *more, **named)
        except ssl.SSLEOFError:
            sock.recv(1)  # the broker has ended the connection; its alert gives the reason, and the scripts check it
            raise

    def expect_packet(self, sock: Any, name: str, expected: bytes) -> bool:
        received = b"".join(self._packet(sock) for _ in packets(expected) or [expected])
        if not expected and is_refusal(received):
            received = sock.recv(1)  # the connection must end behind it
        if not self._matches(name, received, expected, self.versions.get(sock)):
            raise self.mosq_test.TestError
        return True

    def packet_matches(self, name: str, recvd: bytes, expected: bytes) -> bool:
        return self._matches(name, recvd, expected, None)

    def receive_unordered(self, sock: Any, recv1_packet: bytes, recv2_packet: bytes, error_string: str) -> None:
        expected = (packets(recv1_packet) or []) + (packets(recv2_packet) or [])
        received = [self._packet(sock) for _ in expected]
        version = self.versions.get(sock)
        left = list(expected)
        for packet in received:
            for other in left:
                if alike(packet, other, version):
                    left.remove(other)
                    break
            else:
                self._matches(error_string, packet, b"".join(left), version)
                raise ValueError(error_string)

    def start_broker(
        self, filename: str, cmd: Any = None, port: int = 0, use_conf: bool = False, expect_fail: bool = False
    ) -> Any:
        """As mosquitto's helper, but waits as long as a loaded machine needs."""
        if use_conf or (cmd is None and port == 0):
            cmd = ["../../src/mosquitto", "-v", "-c", filename.replace(".py", ".conf")]
        elif cmd is None:
            cmd = ["../../src/mosquitto", "-v", "-p", str(port)]
        broker = subprocess.Popen(cmd, stderr=subprocess.PIPE)
        until = time.monotonic() + START_S
        while time.monotonic() < until and broker.poll() is None:
            try:
                socket.create_connection(("localhost", port or 1888)).close()
            except ConnectionRefusedError:
                time.sleep(POLL_S)
            else:
                time.sleep(SETTLE_S)
                return broker
        if expect_fail:
            return None
        broker.kill()
        print("the broker does not start:", broker.communicate()[1].decode(errors="replace"))
        raise OSError

    def _matches(self, name: str, received: bytes, expected: bytes, version: int | None) -> bool:
        ours, theirs = packets(received), packets(expected)
        if received == expected or (ours and theirs and alike_all(ours, theirs, version)):
            return True
        if ours and not theirs and alike_begun(received, expected):
            return True
        for difference in self.differences:
            accepted = packets(bytes.fromhex(difference["received"])) or []
            if (difference["packet"], difference["expected"]) == (name, expected.hex()) and alike_all(
                ours or [], accepted, version
            ):
                if difference not in self.used:
                    self.used.append(difference)
                return True
        print(f"DIFFERENT {name}: received {received.hex() or 'nothing'}, expected {expected.hex() or 'nothing'}")
        return False

    def _packet(self, sock: Any) -> bytes:
        """One whole packet. Shorter if the connection ended."""
        data = self._exactly(sock, 1)
        size = shift = 0
        while data:
            byte = self._exactly(sock, 1)
            data += byte
            if not byte:
                return data
            size |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                return data + self._exactly(sock, size)
        return data

    @staticmethod
    def _exactly(sock: Any, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            if not more:
                break
            data += more
        return data


def level(connect: bytes) -> int:
    """The version in a CONNECT, without the bit that bridges of mosquitto set."""
    reader = Reader(connect[1:])
    reader.variable()
    reader.text()
    return reader.number(1) & 0x7F


def wrap_socket(sock: socket.socket, **options: Any) -> ssl.SSLSocket:
    """The function that Python 3.12 removed, as far as the scripts use it."""
    server = options.get("server_side", False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = options.get("cert_reqs", ssl.CERT_NONE)
    if "ca_certs" in options:
        context.load_verify_locations(options["ca_certs"])
    if "certfile" in options:
        context.load_cert_chain(options["certfile"], options.get("keyfile"))
    return context.wrap_socket(sock, server_side=server)


def main() -> None:
    script, ports = Path(sys.argv[1]), sys.argv[2:]
    sys.path.insert(0, str(script.resolve().parent.parent))
    sys.path.insert(0, str(script.resolve().parent))
    import mosq_test

    layer = Layer(mosq_test, json.loads(os.environ.get("CONFORMANCE_DIFFERENCES", "[]")))
    layer.install()
    ssl.wrap_socket = wrap_socket  # type: ignore[attr-defined]
    sys.argv = [str(script), *ports]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        left = [difference for difference in layer.differences if difference not in layer.used]
        for difference in left:
            print(f"UNUSED {json.dumps(difference)}")


if __name__ == "__main__":
    main()
