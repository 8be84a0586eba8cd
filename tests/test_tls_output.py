"""A TLS client that causes answers from the TLS layer itself and reads none of them is paused."""

import asyncio
import ssl

from certificates import Authority
from test_relay import Reader, TlsHost, Wire

from blipmq.net.tls_connection import HIGH_WATER_BYTES, TlsConnection

ANSWER = b"as long as what refuses a renegotiation"


class SlowWire(Wire):
    """Keeps its output, like a full socket, and records the reading state."""

    def __init__(self):
        super().__init__()
        self.reading = True

    def get_write_buffer_size(self):
        return len(self.sent)

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


def test_a_tls_client_that_reads_no_answers_is_paused(tmp_path):
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("broker"))

    async def scene():
        host, wire = TlsHost(context), SlowWire()
        host.far = Reader()
        connection = TlsConnection(host, asyncio.get_running_loop())
        connection.connection_made(wire)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ssl.create_default_context(cafile=authority.file).wrap_bio(
            incoming, outgoing, server_hostname="localhost"
        )

        def send():
            data = outgoing.read()
            host.ciphertext[: len(data)] = data
            connection.buffer_updated(len(data))

        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                send()
                incoming.write(bytes(wire.sent))
                wire.sent.clear()
        send()
        sent = 0
        while wire.reading:  # each record is answered, and the client reads nothing
            connection._outgoing.write(ANSWER * 100)
            client.write(b"%d " % sent)
            send()
            sent += 1
        assert HIGH_WATER_BYTES < len(wire.sent) < HIGH_WATER_BYTES + 2 * 100 * len(ANSWER)
        connection.pause_reading()
        connection.resume_reading()
        assert not wire.reading  # the peer does not change that
        wire.sent.clear()
        connection.resume_writing()
        assert wire.reading
        client.write(b"and on")
        send()
        assert b"".join(host.far.got) == b"".join(b"%d " % number for number in range(sent)) + b"and on"
        connection.abort()
        connection.connection_lost(None)

    asyncio.run(scene())
