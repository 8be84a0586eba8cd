"""A client that makes TLS itself answer, and reads none of the answers, is not read until it does."""

import asyncio
import ssl

from certificates import Authority
from test_relay import Reader, TlsHost, Wire

from blipmq.net.tls_connection import HIGH_WATER_BYTES, TlsConnection

ANSWER = b"as long as what refuses a renegotiation"


class SlowWire(Wire):
    """Keeps what is sent, as a socket that takes nothing does, and what it was told about reading."""

    def __init__(self):
        super().__init__()
        self.reading = True

    def get_write_buffer_size(self):
        return len(self.sent)

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


def test_a_client_that_reads_no_answer_of_tls_is_not_read_until_it_does(tmp_path):
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
        while wire.reading:  # each record is answered, and the client takes none of it
            connection._outgoing.write(ANSWER * 100)
            client.write(b"%d " % sent)
            send()
            sent += 1
        assert HIGH_WATER_BYTES < len(wire.sent) < HIGH_WATER_BYTES + 2 * 100 * len(ANSWER)
        connection.pause_reading()
        connection.resume_reading()
        assert not wire.reading  # its far end does not change that
        wire.sent.clear()
        connection.resume_writing()
        assert wire.reading
        client.write(b"and on")
        send()
        assert b"".join(host.far.got) == b"".join(b"%d " % number for number in range(sent)) + b"and on"
        connection.abort()
        connection.connection_lost(None)

    asyncio.run(scene())
