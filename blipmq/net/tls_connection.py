"""One TLS connection of a server: ciphertext to and from the socket's transport, plaintext to and from the protocol it
serves (`far`).

    handshake ──(done, and `serve` called)──► open ──(close, end of file)──► closing ──► closed
        └──(too slow, a client that does not speak TLS, no certificate)── an error, one line in the log ──^

Invariant: decrypted bytes are passed on at once and never stored. If the protocol pauses reading, at most one read of
ciphertext waits here, and the client is held back. Only OpenSSL parses records. No byte of a failed handshake reaches
the protocol. Python's own TLS transports do not report failed handshakes, do not limit pending ones, and run all of
them in the thread of the loop: docs/ARCHITECTURE.md has the measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
from typing import Any, Protocol, cast

from blipmq.base.tcp_keepalive import Owed
from blipmq.net.tls_reason import explain

# From close_notify until the client has closed too.
CLOSING_SECONDS = 5.0
# The same after a failed handshake.
LINGER_SECONDS = 1.0
# Output that waits for a client's socket before the protocol is told to pause.
HIGH_WATER_BYTES = 256 << 10
RECORD_BYTES_MAX = 16 << 10

Buffer = bytes | bytearray | memoryview


class Host(Protocol):
    """The listener, as its connections see it. All connections share one pair of buffers, because each is used within
    one call only."""

    ciphertext: memoryview
    plaintext: memoryview

    def came(self, connection: TlsConnection) -> tuple[ssl.SSLContext, float] | None:
        """A client has connected: return its context and the seconds for the handshake, or None to refuse it."""

    def shake(self, connection: TlsConnection) -> None:
        """Call `connection.step` in any thread, then `connection.stepped` with its result in the loop's thread."""

    def opened(self, connection: TlsConnection) -> None:
        """The handshake is done; `connection.serve` then sets its protocol."""

    def failed(self, connection: TlsConnection, error: str) -> None:
        """The handshake failed or a record was invalid; "" if the client only closed the connection."""

    def gone(self, connection: TlsConnection) -> None:
        """The socket is closed."""


class TlsConnection(asyncio.BufferedProtocol):
    """The protocol of the socket, and the transport of the protocol that it serves (`far`)."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._transport: asyncio.Transport
        self._tls: ssl.SSLObject
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._far: Any = None
        self._state = "handshake"
        self._stepping = False  # another thread runs a handshake step: nothing here may use `_tls`
        self._paused = True  # until `serve`
        self._reading = False
        self._unread = False  # the client does not read TLS answers, so its input is not read either
        self._ended = False  # the client has ended its output
        self._broken: Exception | None = None  # an error in a record, reported after the records before it
        self._deadline: asyncio.TimerHandle | None = None
        self._owed = Owed()
        self.peer: tuple[str, int] = ("", 0)  # until the client's address is known
        self.began_s = loop.time()

    def __repr__(self) -> str:
        return f"<TlsConnection {self._state} peer={self.name} paused={self._paused}>"

    # -- for the host

    @property
    def name(self) -> str:
        """The client's address as text: HOST:PORT, or [HOST]:PORT for IPv6."""
        host, port = self.peer
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The client's verified certificate in the form of `ssl`; None without one."""
        return self._tls.getpeercert()

    @property
    def version(self) -> str:
        return self._tls.version() or ""

    def step(self) -> Exception | bool:
        """Continue the handshake; this can take long. Returns True when done, False if more bytes are needed, or the
        error."""
        if self._state != "handshake":
            return False
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except (OSError, ValueError) as error:
            return error
        return True

    def stepped(self, result: Exception | bool) -> None:
        """Continue after a handshake step with its result."""
        self._stepping = False
        if self._state != "handshake":
            return
        self._send()  # the next flight, or the alert
        if isinstance(result, Exception):
            self._fail(result)
        elif result:
            self._forget_deadline()
            self._state = "open"
            self._host.opened(self)
        elif self._ended:
            self._fail(None)
        else:
            self._transport.resume_reading()

    def look(self, now_s: float, within_s: float) -> None:
        """End the connection if the client's machine does not acknowledge output within `within_s` seconds."""
        if self._state == "open" and self._owed.is_lost(self.get_extra_info("socket"), now_s, within_s):
            far, self._far = self._far, None
            self.abort()
            if far is not None:
                far.connection_lost(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def serve(self, far: asyncio.Protocol) -> None:
        """Set the protocol that an open connection serves."""
        self._far = far
        far.connection_made(cast("asyncio.Transport", self))
        self.resume_reading()

    # -- the transport of the protocol that it serves

    def write(self, data: Buffer) -> None:
        if self._state != "open":
            return
        view = memoryview(data)
        try:
            while view:  # one call makes one record
                view = view[self._tls.write(view) :]
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._send()

    def write_eof(self) -> None:
        self.close()

    def close(self) -> None:
        """Send close_notify after the output, and give the client CLOSING_SECONDS to read it."""
        if self._state != "open":
            if self._state == "handshake":
                self.abort()
            return
        # unwrap fails because the client's close_notify has not arrived; it is not waited for
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        self._send()
        self._wind_up(CLOSING_SECONDS)

    def abort(self) -> None:
        """End the connection at once."""
        self._state = "closed"
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._state != "open" or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        self._read()
        if not self._paused and not self._unread and self._state == "open" and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- the socket's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is not a subclass of asyncio.Transport
        self._transport = cast("asyncio.Transport", transport)
        self.peer = (transport.get_extra_info("peername") or self.peer)[:2]
        welcome = self._host.came(self)
        if welcome is None:
            self.abort()
            return
        context, seconds = welcome
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._deadline = self._loop.call_later(seconds, self._too_slow, seconds)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._host.ciphertext

    def buffer_updated(self, size: int) -> None:
        if self._state in ("closing", "closed"):
            return
        self._incoming.write(self._host.ciphertext[:size])
        if self._state == "open":
            self._read()
        elif not self._stepping:
            self._shake()

    def eof_received(self) -> bool:
        self._ended = True
        if self._state == "handshake" and not self._stepping:
            self._fail(None)
        elif self._state == "open":
            self._read()
        return self._state == "open"  # the protocol may have more output

    def pause_writing(self) -> None:
        if self._far is not None:
            self._far.pause_writing()

    def resume_writing(self) -> None:
        if self._unread:
            self._unread = False
            if not self._paused:
                self.resume_reading()
        if self._far is not None:
            self._far.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._state = "closed"
        self._forget_deadline()
        self._host.gone(self)
        far, self._far = self._far, None
        if far is not None:
            far.connection_lost(error)

    # -- internal

    def _shake(self) -> None:
        self._stepping = True
        self._transport.pause_reading()  # one step at a time; data that the client sends early stays in its socket
        self._host.shake(self)

    def _send(self) -> None:
        data = self._outgoing.read()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _answer(self) -> None:
        """Send the answers of TLS itself: no renegotiation, or new keys. A client can ask for them without end and read
        none, so its input is not read while too much output waits."""
        data = self._outgoing.read()
        if not data or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._state == "open" and self._transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            self._unread = True
            self._transport.pause_reading()

    def _read(self) -> None:
        """Decrypt and pass on data in large pieces, until there is no more or the protocol pauses."""
        if self._reading or self._far is None:
            return
        self._reading = True
        plaintext = self._host.plaintext
        try:
            while not self._paused and self._state == "open":
                size, more = self._decrypt(plaintext)
                if size:
                    self._far.data_received(plaintext[:size])
                if self._broken is not None and self._state == "open":
                    self._fail(self._broken)
                if not more:
                    break
        finally:
            self._reading = False

    def _decrypt(self, into: memoryview) -> tuple[int, bool]:
        """Decrypt whole records into `into`. Returns the number of bytes and whether there may be more."""
        size = 0
        try:
            while size + RECORD_BYTES_MAX <= len(into):
                count = cast(int, self._tls.read(len(into) - size, into[size:]))  # typeshed: bytearray
                if not count:
                    self._ended = True
                    break
                size += count
            else:
                return size, True
            self._answer()
        except ssl.SSLWantReadError:
            self._answer()
        except ssl.SSLZeroReturnError:
            self._ended = True
        except (OSError, ValueError) as error:
            self._broken = error  # reported after the protocol has received the bytes before it
            return size, False
        if self._ended:
            self._loop.call_soon(self._end_of_file)
        return size, False

    def _end_of_file(self) -> None:
        if self._far is not None and self._state == "open" and not self._far.eof_received():
            self.close()

    def _too_slow(self, seconds: float) -> None:
        if self._state == "handshake":
            self._fail(TimeoutError(f"no handshake in {seconds:g} s"))

    def _fail(self, error: Exception | None) -> None:
        self._host.failed(self, explained(error) if error is not None else "")
        far, self._far = self._far, None
        self._forget_deadline()
        if isinstance(error, ssl.SSLError):  # an alert waits to be sent
            self._send()
            self._wind_up(LINGER_SECONDS)
        else:
            self.abort()
        if far is not None:
            far.connection_lost(error)

    def _wind_up(self, seconds: float) -> None:
        """End the output, and discard further input. A socket closed with unread input resets the connection, and the
        client could lose the last output."""
        self._state = "closing"
        self._deadline = self._loop.call_later(seconds, self.abort)
        if self._transport.is_closing():
            return
        if self._ended:
            self._transport.close()
            return
        self._transport.resume_reading()
        with contextlib.suppress(OSError):  # the client may have reset the connection
            self._transport.write_eof()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def explained(error: Exception) -> str:
    """The error in a client's bytes, as text for the log."""
    reason = getattr(error, "reason", None)
    return explain(reason, getattr(error, "verify_message", "")) if reason else str(error)
