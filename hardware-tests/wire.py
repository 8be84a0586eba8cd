"""A cable to a second network card of a guest, with a neighbour at its other end that implements IPv6 by hand.

    QEMU  <- Ethernet frames in UDP datagrams on 127.0.0.1 ->  Wire

Invariant: the neighbour knows only the frames on the cable, so it sees the same as a neighbour in a real network: all
ports, not only those that QEMU forwards.
"""

import ipaddress
import socket
import struct
import time

OWN_MAC = bytes.fromhex("525400b11901")
GUEST_MAC = "52:54:00:b1:19:02"
OWN = ipaddress.IPv6Address("fe80::b1:1901").packed
MDNS_GROUP, MDNS_PORT = ipaddress.IPv6Address("ff02::fb").packed, 5353
ETHERTYPE_IPV6 = b"\x86\xdd"
TCP, UDP, ICMPV6 = 6, 17, 58
SOLICITATION, ADVERTISEMENT = 135, 136
SYN, RST, SYN_ACK = 0x02, 0x04, 0x12
BURST = 256
PORTS = 65535
FRAME_BYTES_MAX = 65536
QUIET_SECONDS = 0.3


def checksum(source, target, protocol, body):
    """The Internet checksum over the IPv6 pseudo-header and a body whose checksum field is zero."""
    data = source + target + struct.pack(">II", len(body), protocol) + body + bytes(len(body) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


class Wire:
    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.far = probe.getsockname()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.guest = self.guest_mac = None

    def close(self):
        self.socket.close()

    def arguments(self):
        """The QEMU arguments for the end of the guest."""
        near = "{}:{}".format(*self.socket.getsockname())
        far = "{}:{}".format(*self.far)
        return ["-netdev", f"socket,id=wire,udp={near},localaddr={far}",
                "-device", f"virtio-net-pci,netdev=wire,mac={GUEST_MAC}"]  # fmt: skip

    # ---- frames ----

    def _send(self, target, mac, protocol, body, hops=255):
        head = struct.pack(">IHBB", 6 << 28, len(body), protocol, hops) + OWN + target
        self.socket.sendto(mac + OWN_MAC + ETHERTYPE_IPV6 + head + body, self.far)

    def _receive(self, seconds):
        """(source, protocol, body) of each IPv6 packet until none arrives for `seconds`; neighbour solicitations are
        answered."""
        while True:
            self.socket.settimeout(seconds)
            try:
                frame = self.socket.recv(FRAME_BYTES_MAX)
            except TimeoutError:
                return
            if frame[12:14] != ETHERTYPE_IPV6 or len(frame) < 54:
                continue
            source, protocol, body = frame[22:38], frame[20], frame[54:]
            if source[:2] == b"\xfe\x80":
                self.guest, self.guest_mac = source, frame[6:12]
            if protocol == ICMPV6 and body[0] == SOLICITATION and body[8:24] == OWN:
                self._advertise(source, frame[6:12])
            yield source, protocol, body

    def _advertise(self, target, mac):
        """Answer a neighbour solicitation."""
        body = struct.pack(">BBHI", ADVERTISEMENT, 0, 0, 0x60000000) + OWN + b"\x02\x01" + OWN_MAC
        body = body[:2] + struct.pack(">H", checksum(OWN, target, ICMPV6, body)) + body[4:]
        self._send(target, mac, ICMPV6, body)

    def find_guest(self, seconds_max):
        """Wait for a packet from an address of the guest; returns that address."""
        deadline = time.monotonic() + seconds_max
        while self.guest is None:
            assert time.monotonic() < deadline, f"nothing came out of the cable in {seconds_max} s"
            for _ in self._receive(1):
                if self.guest:
                    break
        return ipaddress.IPv6Address(self.guest)

    # ---- queries ----

    def ask_mdns(self, name):
        """The mDNS records of a name as the bytes of a message; None without an answer."""
        question = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0"
        query = struct.pack(">6H", 0, 0, 1, 0, 0, 0) + question + struct.pack(">HH", 255, 1)
        datagram = struct.pack(">HHHH", MDNS_PORT, MDNS_PORT, 8 + len(query), 0) + query
        datagram = datagram[:6] + struct.pack(">H", checksum(OWN, MDNS_GROUP, UDP, datagram)) + datagram[8:]
        self._send(MDNS_GROUP, bytes.fromhex("3333000000fb"), UDP, datagram)
        for source, protocol, body in self._receive(5):
            if source == self.guest and protocol == UDP and struct.unpack_from(">H", body)[0] == MDNS_PORT:
                flags, _, answers = struct.unpack_from(">HHH", body, 10)
                if flags & 0x8000 and answers and question[:-1] in body:
                    return body[8:]
        return None

    def open_tcp_ports(self, rounds_max=20):
        """Send SYN to every port. Returns (ports with SYN-ACK, ports without any answer)."""
        unanswered, open_ports = set(range(1, PORTS + 1)), set()
        for _ in range(rounds_max):
            waiting = sorted(unanswered)
            for start in range(0, len(waiting), BURST):
                for port in waiting[start : start + BURST]:
                    self._knock(port)
                self._listen_for_answers(unanswered, open_ports)
            if not unanswered:
                break
        return open_ports, unanswered

    def _knock(self, port, flags=SYN):
        segment = struct.pack(">HHIIBBHHH", 40000, port, 1, 0, 5 << 4, flags, 1024, 0, 0)
        segment = segment[:16] + struct.pack(">H", checksum(OWN, self.guest, TCP, segment)) + segment[18:]
        self._send(self.guest, self.guest_mac, TCP, segment, hops=64)

    def _listen_for_answers(self, unanswered, open_ports):
        pending = BURST
        for source, protocol, body in self._receive(QUIET_SECONDS):
            if source == self.guest and protocol == TCP:
                port, flags = struct.unpack_from(">H", body)[0], body[13]
                if flags & SYN_ACK == SYN_ACK:
                    open_ports.add(port)
                    self._knock(port, RST)
                unanswered.discard(port)
                pending -= 1
                if pending <= 0:
                    return
