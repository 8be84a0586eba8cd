"""The clients over TLS: values of `tls`, refusals, and outages and floods as without TLS."""

import asyncio
import ssl

import pytest
from certificates import Authority

import blipmq
from blipmq.client.address import Address, parse_address, unreachable
from blipmq.client.connection import Link
from blipmq.errors import ConfigError, NotTrusted, Unreachable, UsageError


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def settings(authority):
    cert, key = authority.sign("broker")
    return {
        "server": {"bind_addr": "127.0.0.1:0", "tls_bind_addr": "127.0.0.1:0"},
        "tls": {"cert_file": str(cert), "key_file": str(key)},
    }


def test_the_address_scheme_selects_tls():
    assert parse_address("tls://broker.example") == Address("broker.example", 7879, True)
    assert parse_address("tls://[::1]:1") == Address("::1", 1, True)
    assert parse_address("tcp://broker.example") == Address("broker.example", 7878, False)
    assert parse_address("broker.example", tls=True) == Address("broker.example", 7879, True)
    assert str(parse_address("tls://[::1]:1")) == "tls://[::1]:1"
    for text, tls in (("tcp://a", True), ("tls://a", False), ("mqtt://a", None), ("tls://", None)):
        with pytest.raises(UsageError):
            parse_address(text, tls)


@pytest.mark.parametrize("kind", ["path", "text", "context"])
def test_trust_can_be_given_as_a_path_or_an_ssl_context(settings, authority, kind):
    trusted = {
        "path": authority.file,
        "text": str(authority.file),
        "context": ssl.create_default_context(cafile=authority.file),
    }[kind]

    async def run():
        async with blipmq.Broker(settings) as broker:
            async with blipmq.connect(broker.tls_address, tls=trusted) as client, client.subscribe("t") as messages:
                await client.publish("t", b"x")
                assert (await messages.next(timeout_s=30)).payload == b"x"
            async with blipmq.connect(f"tls://{broker.tls_address}", tls=trusted) as client:
                assert (await client.info())["tls"]["connections"] == 1

    asyncio.run(run())


def test_the_blocking_client_sends_and_receives_over_tls(settings, authority):
    payloads = [n.to_bytes(4, "big") * (n % 5000) for n in range(2000)]
    with blipmq.Broker(settings) as broker:
        address = broker.tls_address
        with blipmq.connect_blocking(address, tls=authority.file) as client:
            messages = client.subscribe("t")
            for start in range(0, len(payloads), 100):
                client.publish_many("t", payloads[start : start + 100])
                for payload in payloads[start : start + 100]:
                    assert messages.next(timeout_s=60).payload == payload


def test_many_large_messages_cross_the_asyncio_client_unchanged(settings, authority):
    payloads = [bytes([n % 256]) * 100_000 for n in range(200)]

    async def run():
        async with blipmq.Broker({**settings, "queues": {"overflow_policy": "block"}}) as broker:
            trusted = authority.file
            async with blipmq.connect(broker.tls_address, tls=trusted) as reader, reader.subscribe("t") as messages:
                async with blipmq.connect(broker.tls_address, tls=trusted) as writer:
                    sending = asyncio.create_task(writer.publish_many("t", payloads))
                    for payload in payloads:
                        assert (await messages.next(timeout_s=60)).payload == payload
                    await sending

    asyncio.run(run())


def test_a_client_repeats_the_handshake_after_an_outage(settings, authority):
    async def run():
        broker = blipmq.Broker(settings)
        await broker.start()
        settings["server"]["tls_bind_addr"] = broker.tls_address
        client = await blipmq.connect(broker.tls_address, tls=authority.file)
        messages = await client.subscribe("t")
        await broker.stop()
        async with blipmq.Broker(settings) as again:
            # The client retries until the broker is back.
            while not (await again.info())["subscriptions_total"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await client.publish("t", b"back")
            assert (await messages.next(timeout_s=30)).payload == b"back"
            await client.close()

    asyncio.run(run())


def test_both_clients_report_the_same_tls_errors(settings, tmp_path):
    unknown_ca = Authority(tmp_path, "Unknown authority")
    elsewhere = ssl.create_default_context(cafile=unknown_ca.file)
    with blipmq.Broker(settings) as broker:
        address = broker.tls_address
        for tls in (True, unknown_ca.file, elsewhere):
            with pytest.raises(NotTrusted, match="does not know its authority"):
                blipmq.connect_blocking(address, tls=tls, reconnect=False)
            with pytest.raises(NotTrusted, match="does not know its authority"):
                asyncio.run(opened(address, tls=tls))
        with pytest.raises(Unreachable, match=r"server\.tls_bind_addr"):
            blipmq.connect_blocking(broker.address, tls=unknown_ca.file)
        with pytest.raises(Unreachable, match=r"server\.tls_bind_addr"):
            asyncio.run(opened(broker.address, tls=unknown_ca.file))
        for wrong, error in ((tmp_path / "missing.pem", ConfigError), (7, UsageError), (False, UsageError)):
            with pytest.raises(error):
                blipmq.connect_blocking(f"tls://{address}", tls=wrong)


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed (EOF)"),  # OpenSSL 3.0 with Python 3.11.2
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_aborted_handshake_is_reported_alike_for_all_causes(error):
    assert "server.tls_bind_addr" in str(unreachable(Address("127.0.0.1", 7878, True), error))


def test_a_closed_link_is_not_aborted_again():
    class Ended:
        """The remaining part of a TLS transport in Python 3.11.2."""

        def close(self):
            pass

        def abort(self):
            raise AttributeError("'NoneType' object has no attribute '_abort'")

    class Deaf:
        def link_lost(self, link, error):
            pass

    async def scene():
        link = Link(Deaf())
        link.abort()  # before a transport exists
        link.transport = Ended()
        link.connection_lost(None)
        link.abort()

    asyncio.run(scene())


async def opened(address, **options):
    async with blipmq.connect(address, reconnect=False, **options):
        pass


def test_both_clients_report_a_missing_client_certificate(settings, authority):
    settings["tls"] |= {"client_ca_file": str(authority.file), "require_client_cert": True}
    cert, key = authority.sign("client")
    known = ssl.create_default_context(cafile=authority.file)
    known.load_cert_chain(cert, key)
    with blipmq.Broker(settings) as broker:
        address = broker.tls_address
        with pytest.raises(NotTrusted, match="requires a client certificate"):
            blipmq.connect_blocking(address, tls=authority.file, reconnect=False)
        with pytest.raises(NotTrusted, match="requires a client certificate"):
            asyncio.run(opened(address, tls=authority.file))
        asyncio.run(opened(address, tls=known))
        blipmq.connect_blocking(address, tls=known).close()
