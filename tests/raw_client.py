"""A client of only a socket and frames, so that broker tests do not depend on client code."""

import socket
import struct

from blipmq.wire import frames as wire

TIMEOUT_S = 20


class RawClient:
    """Sends frames as given, returns frames as they come."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S)
        self.name = "{}:{}".format(*self.socket.getsockname()[:2])
        self._stream = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._stream.close()
        self.socket.close()

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def say(self, action, *args, **fields):
        """Send one command."""
        self.send(wire.encode_command(action, *args, **fields))

    def raw(self):
        """The next frame, whole; b"" at the end of the stream."""
        head = self._stream.read(4)
        return head + self._stream.read(struct.unpack(">I", head)[0]) if head else b""

    def next(self):
        """The next frame, decoded; None at the end of the stream."""
        frame = self.raw()
        if not frame:
            return None
        decode = (wire.decode_suback, wire.decode_message, wire.decode_reply)[frame[4]]
        return decode(frame[5:])

    def hello(self, client_id="", seq=1, api_key=""):
        """Send HELLO and be admitted."""
        self.say(wire.HELLO, client_id=client_id, api_key=api_key, protocol=1, seq=seq)
        reply = self.next()
        assert (reply.seq, reply.code) == (seq, 0), reply
        return self

    def subscribe(self, filter_, seq=2):
        """Subscribe and wait for the SubAck."""
        self.say(wire.SUB, filter_, seq=seq)
        ack = self.next()
        assert (ack.topic, ack.info, ack.seq, ack.code) == (filter_, "subscribed", seq, 0), ack
        return self
