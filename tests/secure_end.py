"""The broker's end of TLS connections in memory: the functions of blipmq._tls as the core calls them, and Python's `ssl` as
the client.

Invariant: each call gets its input in a buffer of exactly its size, so the sanitizers find a read or a write beyond it. What a
call leaves of its input comes first in the next one.
"""

import contextlib
import ssl

from blipmq._tls import ffi, lib

DONE, WANT, FULL, END, FAILED = (
    getattr(lib, f"BQ_SECURE_{name}") for name in ("DONE", "WANT", "FULL", "END", "FAILED")
)
OPS = lib.bqtls_ops()
ROOM = 20 << 10
ROUNDS_MAX = 100_000


def text(field):
    return ffi.string(field).decode()


class Server:
    """One connection. `sent` is the ciphertext so far that no client has got."""

    def __init__(self, context, room=ROOM):
        self.room = room
        self.input = b""
        self.sent = bytearray()
        self._state = ffi.gc(OPS.open(ffi.cast("void *", context.address)), OPS.close)
        assert self._state != ffi.NULL

    def free(self):
        ffi.release(self._state)

    def give(self, ciphertext):
        self.input += ciphertext

    def _call(self, function, *arguments, room=None):
        room = self.room if room is None else room
        given = ffi.new("uint8_t[]", self.input or b"\0")
        out = ffi.new("uint8_t[]", max(room, 1))
        io = ffi.new("bq_secure_io_t *", {"in": given, "in_size": len(self.input), "out": out, "out_size": room})
        result = function(self._state, io, *arguments)
        assert io.in_used <= io.in_size and io.out_used <= io.out_size
        assert result != WANT or io.in_used == io.in_size
        self.input = self.input[io.in_used :]
        self.sent += ffi.buffer(out, io.out_used)[:]
        return result

    def shake(self, room=None):
        return self._call(OPS.shake, room=room)

    def shake_out(self, room=None):
        """Continue until the handshake needs input, is done, or has failed."""
        for _ in range(ROUNDS_MAX):
            if (result := self.shake(room)) != FULL:
                return result
        raise AssertionError("the handshake makes no progress")

    def read(self, room=64 << 10, out=None):
        """The result and the plaintext of one call."""
        into, got = ffi.new("uint8_t[]", room), ffi.new("uint32_t *", 77)
        result = self._call(OPS.read, into, room, got, room=out)
        assert (got[0] > 0) == (result == DONE)
        return result, ffi.buffer(into, got[0])[:]

    def read_out(self, room=64 << 10, out=None):
        """All plaintext up to a result other than DONE and FULL, and that result."""
        whole = b""
        for _ in range(ROUNDS_MAX):
            result, plaintext = self.read(room, out)
            whole += plaintext
            if result not in (DONE, FULL):
                return result, whole
        raise AssertionError("reading does not end")

    def write(self, plaintext, room=None):
        """The result of one call and how many bytes it has taken."""
        source, taken = ffi.new("uint8_t[]", plaintext or b"\0"), ffi.new("uint32_t *", 77)
        result = self._call(OPS.write, source, len(plaintext), taken, room=room)
        return result, taken[0]

    def write_out(self, plaintext, room=None):
        while plaintext:
            result, taken = self.write(plaintext, room)
            assert result in (DONE, FULL) and taken > 0
            plaintext = plaintext[taken:]

    def goodbye(self, room=None):
        return self._call(OPS.goodbye, room=room)

    def take(self):
        sent, self.sent = bytes(self.sent), bytearray()
        return sent

    @property
    def facts(self):
        facts = ffi.new("bq_secure_facts_t *")
        OPS.opened(self._state, facts)
        return {
            "version": text(facts.version),
            "cipher": text(facts.cipher),
            "subject": text(facts.subject),
            "alpn": text(facts.alpn),
            "resumed": bool(facts.resumed),
            "has_certificate": bool(facts.has_certificate),
        }

    @property
    def failure(self):
        error = ffi.new("bq_secure_error_t *")
        OPS.failed(self._state, error)
        return text(error.reason), text(error.detail)


class Client:
    """Python's `ssl` over memory. `error` is what ended its handshake."""

    def __init__(self, context, session=None, name="localhost"):
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self.done = False
        self.error = None

    def step(self, ciphertext=b""):
        """Take the server's bytes; the answer."""
        self._incoming.write(ciphertext)
        if not self.done and self.error is None:
            try:
                self.tls.do_handshake()
                self.done = True
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLError, ValueError) as error:
                self.error = error
        return self._outgoing.read()

    def write(self, plaintext):
        view = memoryview(plaintext)
        while view:
            view = view[self.tls.write(view) :]
        return self._outgoing.read()

    def read(self, ciphertext=b""):
        """All plaintext there is."""
        self._incoming.write(ciphertext)
        whole = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            while part := self.tls.read(1 << 20):
                whole += part
        return bytes(whole)

    def goodbye(self):
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()


def connect(server, client, cut=None):
    """A handshake. `cut` maps the client's bytes to the pieces in which they arrive. Returns the last result of the server."""
    result, flight = WANT, client.step()
    for _ in range(10):
        for piece in cut(flight) if cut else [flight]:
            if result == WANT:
                server.give(piece)
                result = server.shake_out()
            else:
                server.input += piece
        flight = client.step(server.take())
        if result != WANT and not flight:
            return result
    raise AssertionError(f"the handshake does not end: {result} {client.error}")
