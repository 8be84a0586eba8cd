"""Bytes and end-of-file between a transport and the core: their order is kept, also while the core accepts nothing."""

import asyncio
import ssl

import pytest
from certificates import Authority

import blipmq
from blipmq.native.errors import CoreBusy
from blipmq.native.events import CloseReason
from blipmq.net import memory_transport
from blipmq.net.memory_transport import MemoryTransport
from blipmq.net.relay import Relay
from blipmq.net.tls_connection import TlsConnection

NO_LISTENER = {"server": {"bind_addr": ""}}


class BusyCore:
    """Accepts no bytes in the first `busy` calls; `calls` records everything accepted."""

    def __init__(self, busy=0):
        self.busy, self.tries, self.calls = busy, 0, []

    def feed(self, conn, data):
        self.tries += 1
        if self.busy:
            self.busy -= 1
            raise CoreBusy(-1, "not taken")
        self.calls.append(bytes(data))

    def feed_end(self, conn):
        self.calls.append("end")

    def close(self, conn, reason=CloseReason.BROKER):
        self.calls.append(reason)

    def taken(self, conn, size):
        pass


class Transport:
    """The methods of a transport that a relay needs."""

    def __init__(self):
        self.paused = False

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def close(self):
        pass


class Reader(asyncio.Protocol):
    """`got` is the received data in order; if requested, it pauses reading after each piece."""

    def __init__(self, pauses=False):
        self.got, self.pauses = [], pauses

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.got.append(bytes(data))
        if self.pauses:
            self.transport.pause_reading()

    def connection_lost(self, error):
        self.got.append("end" if error is None else type(error))


async def until(ready):
    for _ in range(20_000):
        if ready():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


def relay_on(core):
    relay, transport = Relay(core, 1, 2000, asyncio.get_running_loop()), Transport()
    relay.connection_made(transport)
    return relay, transport


# ---- a relay ---------------------------------------------------------------------------------------------------------


def test_end_of_file_is_sent_after_waiting_bytes():
    async def scene():
        core = BusyCore(busy=3)
        relay, transport = relay_on(core)
        relay.data_received(b"the last publish")
        assert relay.eof_received() and transport.paused
        await until(lambda: len(core.calls) == 2)
        assert core.calls == [b"the last publish", "end"]

    asyncio.run(scene())


@pytest.mark.parametrize(("error", "reason"), [(None, CloseReason.EOF), (OSError("reset"), CloseReason.RESET)])
def test_a_lost_connection_loses_no_earlier_bytes(error, reason):
    async def scene():
        core = BusyCore(busy=2)
        relay, _ = relay_on(core)
        relay.data_received(b"one")
        relay.data_received(b"two")  # a transport may deliver a piece that it had already read
        relay.eof_received()
        relay.connection_lost(error)
        await until(lambda: len(core.calls) == 3)
        assert core.calls == [b"one", b"two", reason]

    asyncio.run(scene())


def test_reading_resumes_when_the_core_accepts_waiting_bytes():
    async def scene():
        core = BusyCore(busy=1)
        relay, transport = relay_on(core)
        relay.data_received(b"one")
        assert transport.paused
        await until(lambda: not transport.paused)
        relay.data_received(b"two")
        assert core.calls == [b"one", b"two"]

    asyncio.run(scene())


def test_nothing_is_sent_to_the_core_after_it_closed_the_connection():
    async def scene():
        core = BusyCore(busy=1)
        relay, _ = relay_on(core)
        relay.data_received(b"too late")
        relay.eof_received()
        relay.ended()
        await asyncio.sleep(3 * memory_transport.RETRY_SECONDS)
        assert core.calls == []

    asyncio.run(scene())


# ---- an in-process connection ----------------------------------------------------------------------------------------


def test_writes_to_a_full_core_wait_in_order_with_one_timer():
    async def scene():
        core = BusyCore(busy=150)
        transport = MemoryTransport(core, 1, 2000, Reader(), asyncio.get_running_loop())
        for number in range(100):
            transport.write(b"%d" % number)
        transport.close()
        assert core.tries == 100
        await asyncio.sleep(2 * memory_transport.RETRY_SECONDS)
        assert core.tries < 110  # one timer per write would add a hundred
        await until(lambda: len(core.calls) == 100)
        assert core.calls == [b"%d" % number for number in range(100)]

    asyncio.run(scene())


def test_connection_lost_waits_while_the_protocol_has_paused_reading():
    async def scene():
        reader = Reader(pauses=True)
        transport = MemoryTransport(BusyCore(), 1, 2000, reader, asyncio.get_running_loop())
        reader.connection_made(transport)
        for piece in (b"one", b"two", b"three"):
            transport.arrived(piece)
        transport.ended()
        await asyncio.sleep(0)
        assert reader.got == [b"one"] and not transport.is_closing()
        transport.resume_reading()
        transport.resume_reading()
        await asyncio.sleep(0)
        assert reader.got == [b"one", b"two", b"three", "end"] and transport.is_closing()

    asyncio.run(scene())


@pytest.mark.parametrize("end", ["close", "abort"])
def test_closing_an_ended_connection_calls_connection_lost_at_once(end):
    async def scene():
        reader = Reader(pauses=True)
        transport = MemoryTransport(BusyCore(), 1, 2000, reader, asyncio.get_running_loop())
        reader.connection_made(transport)
        transport.arrived(b"one")
        transport.arrived(b"nobody wants this")
        transport.ended()
        getattr(transport, end)()
        await asyncio.sleep(0)
        assert reader.got == [b"one", "end"]

    asyncio.run(scene())


def test_a_slow_in_process_reader_gets_messages_sent_before_the_stop():
    async def scene():
        broker = blipmq.Broker(NO_LISTENER)
        await broker.start()
        async with broker.connect() as client:
            messages = await client.subscribe("t", queue_messages_max=10)
            for number in range(300):
                broker.publish("t", b"%03d" % number + bytes(2000))
            await until(lambda: client.reading_paused)
            unsent = await broker.stop(200)
            got = [message.payload[:3] async for message in until_the_end(messages)]
        assert len(got) == 300 - unsent
        assert got == [b"%03d" % number for number in range(len(got))]

    async def until_the_end(messages):
        try:
            async for message in messages:
                yield message
        except blipmq.errors.Disconnected:
            return

    asyncio.run(asyncio.wait_for(scene(), 60))


# ---- a TLS connection ------------------------------------------------------------------------------------------------


class TlsHost:
    """The host of one TLS connection, without a socket."""

    def __init__(self, context):
        self.context = context
        self.ciphertext, self.plaintext = memoryview(bytearray(64 << 10)), memoryview(bytearray(64 << 10))
        self.errors = []

    def came(self, connection):
        return self.context, 20.0

    def shake(self, connection):
        connection.stepped(connection.step())

    def opened(self, connection):
        connection.serve(self.far)

    def failed(self, connection, error):
        self.errors.append(error)

    def gone(self, connection):
        pass


class Wire(asyncio.Transport):
    """A socket transport that keeps its output."""

    def __init__(self):
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.sent = bytearray()

    def write(self, data):
        self.sent += data

    def write_eof(self):
        pass

    def is_closing(self):
        return False

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def close(self):
        pass

    def abort(self):
        pass


def test_bytes_decrypted_before_a_bad_record_are_delivered(tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.sign("broker")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def scene():
        host = TlsHost(context)
        host.far = Reader()
        connection, wire = TlsConnection(host, asyncio.get_running_loop()), Wire()
        connection.connection_made(wire)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ssl.create_default_context(cafile=authority.file).wrap_bio(
            incoming, outgoing, server_hostname="localhost"
        )

        def hand_over():
            data = outgoing.read()
            host.ciphertext[: len(data)] = data
            connection.buffer_updated(len(data))
            incoming.write(bytes(wire.sent))
            wire.sent.clear()

        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                hand_over()
        hand_over()
        client.write(b"one")
        client.write(b"two")
        outgoing.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that was never encrypted
        hand_over()
        assert host.far.got == [b"onetwo", ssl.SSLError]
        assert len(host.errors) == 1
        connection.abort()
        connection.connection_lost(None)

    asyncio.run(scene())
