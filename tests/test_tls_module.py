"""blipmq._tls in memory: handshakes, records, refusals and ends, against Python's `ssl` and against ClientHellos written by hand.

Invariant: expected values come from Python's `ssl`, the RFCs and the documented list of versions and suites.
"""

import os
import random
import re
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from broker_process import environment
from certificates import DAY_SECONDS, Authority, openssl
from secure_end import DONE, END, FAILED, FULL, OPS, WANT, Client, Server, connect

from blipmq.base.hardware import has_aes
from blipmq.native.tls import Part, TlsContext, TlsUnusable, library, table
from blipmq.net.tls_log import explain

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
BOTH = pytest.mark.parametrize("version", VERSIONS)
# The terms of a TLS connection and of a pending handshake in the memory that docs/OPERATIONS.md sums up.
CONNECTION_BYTES, HANDSHAKE_BYTES = 28 << 10, 64 << 10
# RFC 5289, RFC 7905, RFC 8446: with a certificate for ECDSA, with one for RSA, and TLS 1.3.
SUITES_ECDSA, SUITES_RSA, SUITES_13 = {0xC02B, 0xC02C, 0xCCA9}, {0xC02F, 0xC030, 0xCCA8}, {0x1301, 0x1302, 0x1303}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(place):
    return Authority(place)


@pytest.fixture(scope="module")
def pems(authority):
    """The broker's certificate and its key."""
    return tuple(path.read_bytes() for path in authority.sign("broker"))


@pytest.fixture(scope="module")
def context(pems):
    return TlsContext(*pems)


@pytest.fixture(scope="module")
def asking(pems, authority):
    """A context that asks for clients' certificates and refuses clients without one."""
    return TlsContext(*pems, authority.file.read_bytes(), require_client_cert=True)


@pytest.fixture
def trusting(authority):
    """Makes a client's context that trusts the broker."""

    def made(version=None, certificate=None, **options):
        found = ssl.create_default_context(cafile=authority.file)
        if version:
            found.minimum_version = found.maximum_version = VERSIONS[version]
        if certificate:
            found.load_cert_chain(*certificate)
        for name, value in options.items():
            getattr(found, name)(*value)
        return found

    return made


def alert(name, server):
    """Whether the server's last record is this fatal alert (RFC 8446, 6)."""
    codes = {"handshake_failure": 40, "protocol_version": 70, "no_application_protocol": 120, "decode_error": 50}
    return bytes(server.sent[-7:]) in [bytes((21, 3, minor, 0, 2, 2, codes[name])) for minor in (0, 1, 2, 3)]


# ---- handshakes ------------------------------------------------------------------------------------------------------


@BOTH
def test_a_handshake_gives_both_ends_the_same_facts(context, trusting, version):
    server, client = Server(context), Client(trusting(version))
    assert connect(server, client) == DONE and client.done
    name, spoken, _ = client.tls.cipher()
    assert server.facts == {
        "version": version, "cipher": name, "subject": "", "alpn": "", "resumed": False, "has_certificate": False,
    }  # fmt: skip
    assert client.tls.version() == version and spoken in (version, "TLSv1.3", "TLSv1.2")


@BOTH
@pytest.mark.parametrize("flight", [0, 1])
def test_a_flight_cut_at_any_byte_completes_the_handshake(context, trusting, version, flight):
    settings = trusting(version)
    number = size = 0

    def cut_once(data):
        nonlocal number, size
        number += 1
        if number != flight + 1 or not data:
            return [data] if data else []
        size = len(data)
        return [data[:at], data[at:]]

    at, size = 1, 2
    while at < size:
        number = 0
        server, client = Server(context), Client(settings)
        assert connect(server, client, cut_once) == DONE and client.done, at
        at += 1
    assert at > 40


@BOTH
@pytest.mark.parametrize("room", [1, 7, 100])
def test_a_trickle_in_both_directions_completes_the_handshake(context, trusting, version, room):
    server, client = Server(context, room), Client(trusting(version))
    assert connect(server, client, lambda data: [data[i : i + 1] for i in range(len(data))]) == DONE
    server.room = 20 << 10
    server.write_out(b"to the client")
    assert client.read(server.take()) == b"to the client"
    for byte in client.write(b"to the server"):
        server.give(bytes((byte,)))
        result, plaintext = server.read_out()
    assert (result, plaintext) == (WANT, b"to the server")


@BOTH
def test_data_right_behind_the_last_flight_is_read(context, trusting, version):
    server, client = Server(context), Client(trusting(version))
    for _ in range(2):
        server.give(client.step())
        assert server.shake_out() == WANT
        flight = client.step(server.take())
        if version == "TLSv1.3":
            break
        server.give(flight)
        # TLS 1.2: the server finishes first; a client may send with its Finished only in TLS 1.3
        assert server.shake_out() == DONE
        flight = client.step(server.take())
        break
    assert client.done
    server.give(flight + client.write(b"first") + client.write(b"second"))
    if version == "TLSv1.3":
        assert server.shake_out() == DONE and server.input
    assert server.read() == (DONE, b"firstsecond")
    assert server.read() == (WANT, b"")


# ---- records ---------------------------------------------------------------------------------------------------------


def pair(context, settings):
    server, client = Server(context), Client(settings)
    assert connect(server, client) == DONE
    return server, client


@BOTH
def test_large_flows_arrive_whole_through_any_room(context, trusting, version):
    server, client = pair(context, trusting(version))
    data = random.Random(1).randbytes(300_000)
    for room in (17 << 10, 17_000, 20_000, 40_000, 100 << 10, 500_000):
        server.write_out(data, room)
        assert client.read(server.take()) == data
    for room in (1, 100, 16_384, 1 << 20):
        part = data[: 100 * room]
        server.give(client.write(part))
        assert server.read_out(room) == (WANT, part)


@BOTH
def test_a_full_output_loses_and_repeats_nothing_at_any_room(context, trusting, version):
    server, client = pair(context, trusting(version))
    data = random.Random(2).randbytes(20_000)
    seen = set()
    for room in range(0, 22_000, 97):
        result, taken = server.write(data, room)
        seen.add((result, taken))
        assert client.read(server.take()) == data[:taken]
    assert seen == {(FULL, 0), (FULL, 16_384), (DONE, 20_000)}


def test_a_record_cut_at_any_byte_is_read_whole(context, trusting):
    server, client = pair(context, trusting())
    for at in range(1, 5 + 30 + 16 + 1):
        record = client.write(bytes(30))
        server.give(record[:at])
        assert server.read() == (WANT, b"")
        server.give(record[at:])
        assert server.read_out() == (WANT, bytes(30))


@BOTH
def test_a_changed_record_fails_with_an_alert_after_the_data_before_it(context, trusting, version):
    server, client = pair(context, trusting(version))
    good, bad = client.write(b"good"), bytearray(client.write(b"bad"))
    bad[-1] ^= 1
    server.give(good + bytes(bad) + client.write(b"never"))
    assert server.read() == (DONE, b"good")
    assert server.read() == (FAILED, b"")
    assert server.failure == ("decryption failed or bad record mac", "")
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        client.read(server.take())
    # nothing runs on it any more
    assert server.read() == (FAILED, b"") and server.write(b"x") == (FAILED, 0)
    assert server.goodbye() == FAILED and server.shake() == FAILED and not server.sent


# ---- the end -----------------------------------------------------------------------------------------------------------


@BOTH
def test_each_side_can_say_goodbye_first(context, trusting, version):
    server, client = pair(context, trusting(version))
    server.write_out(b"last words")
    assert server.goodbye() == DONE
    assert client.read(server.take()) == b"last words"
    assert client.tls.pending() == 0 and client.read() == b""  # an end of file, in order
    server, client = pair(context, trusting(version))
    server.give(client.write(b"and mine") + client.goodbye())
    assert server.read() == (DONE, b"and mine")
    assert server.read() == (END, b"") and server.read() == (END, b"")
    server.write_out(b"heard")
    assert server.goodbye() == DONE and server.sent


def test_a_goodbye_waits_for_room(context, trusting):
    server, client = pair(context, trusting())
    assert server.goodbye(0) == FULL and not server.sent
    assert server.goodbye(3) == FULL and server.goodbye() == DONE
    record = bytes(server.sent)
    assert server.goodbye() == DONE and bytes(server.sent) == record
    assert client.read(server.take()) == b""


def test_a_goodbye_before_the_handshake_is_done_writes_nothing(context, trusting):
    server = Server(context)
    assert server.goodbye() == DONE and not server.sent
    server.give(Client(trusting()).step()[:100])
    assert server.shake() == WANT and server.goodbye() == DONE and not server.sent


def test_a_close_notify_instead_of_a_handshake_is_an_end(context):
    server = Server(context)
    server.give(bytes((21, 3, 3, 0, 2, 1, 0)))
    assert server.shake() in (END, FAILED)


# ---- certificates of clients -------------------------------------------------------------------------------------------


@BOTH
def test_a_certificate_of_the_authority_is_named_by_its_subject(asking, trusting, authority, version):
    server, client = Server(asking), Client(trusting(version, authority.sign("sensor-12")))
    assert connect(server, client) == DONE
    assert server.facts["subject"] == "sensor-12" and server.facts["has_certificate"]


@pytest.mark.parametrize(
    ("subject", "names", "expected"),
    [
        ("/CN=pump", "DNS:other", "pump"),
        ("/O=plant/CN=first/CN=last", "DNS:other", "last"),
        ("/CN=Zähler", "DNS:other", "Zähler"),
        ("/O=plant", "DNS:pump.local,DNS:other", "pump.local"),
        ("/O=plant", "email:pump@plant", "pump@plant"),
        ("/O=plant", "IP:10.1.2.3", "10.1.2.3"),
        ("/O=plant", "IP:fd00::12", "FD00:0:0:0:0:0:0:12"),
        ("/O=plant", "RID:1.2.3.4,DNS:pump.local", "pump.local"),
        ("/O=plant", f"URI:urn:{'x' * 251}", f"urn:{'x' * 251}"),
        ("/O=plant", f"URI:urn:{'x' * 252}", ""),  # too long: never cut
        ("/O=plant", "RID:1.2.3.4", ""),
    ],
)
def test_the_subject_is_the_common_name_or_the_first_alternative_name(
    asking, trusting, authority, tmp_path, subject, names, expected
):
    certificate = signed(authority, tmp_path, subject, names)
    server, client = Server(asking), Client(trusting(None, certificate))
    assert connect(server, client) == DONE
    assert server.facts["subject"] == expected and server.facts["has_certificate"]


def signed(authority, place, subject, names):
    key, request, file, extensions = (place / f"one.{ending}" for ending in ("key", "csr", "pem", "ext"))
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    openssl("req", "-new", "-utf8", "-key", key, "-subj", subject, "-out", request)
    extensions.write_text(f"subjectAltName={names}\n")
    authority_files = ("-CA", authority.file, "-CAkey", authority.key, "-CAcreateserial")
    openssl("x509", "-req", "-in", request, *authority_files, "-days", 9, "-extfile", extensions, "-out", file)
    return file, key


def refused(context, client):
    """The reason for which the server refuses this client."""
    server = Server(context)
    assert connect(server, client) == FAILED
    assert server.shake() == FAILED
    return server.failure


@BOTH
def test_a_client_without_a_certificate_is_refused(asking, trusting, version):
    reason, detail = refused(asking, Client(trusting(version)))
    assert reason == "peer did not return a certificate" and not detail
    assert "tls.require_client_cert" in explain(reason)


@BOTH
def test_a_certificate_of_another_authority_is_refused(asking, trusting, tmp_path, version):
    stranger = Authority(tmp_path, "Another authority").sign("sensor-12")
    reason, detail = refused(asking, Client(trusting(version, stranger)))
    assert (reason, detail) == ("certificate verify failed", "unable to get local issuer certificate")
    assert explain(reason, detail).endswith("signed the client's certificate (unable to get local issuer certificate)")


def test_an_expired_certificate_of_a_client_is_refused(asking, trusting, authority):
    reason, detail = refused(asking, Client(trusting(None, authority.sign("old", days=-2))))
    assert (reason, detail) == ("certificate verify failed", "certificate has expired")


def test_the_certificate_of_a_server_is_no_certificate_of_a_client(asking, trusting, authority, tmp_path):
    names = "DNS:x\nextendedKeyUsage=serverAuth"
    reason, detail = refused(asking, Client(trusting(None, signed(authority, tmp_path, "/CN=x", names))))
    assert reason == "certificate verify failed" and "purpose" in detail


def test_an_optional_certificate_may_be_missing(pems, authority, trusting):
    context = TlsContext(*pems, authority.file.read_bytes())
    server, client = Server(context), Client(trusting())
    assert connect(server, client) == DONE and not server.facts["has_certificate"]


def test_a_client_is_told_which_authorities_are_known(asking, trusting, authority):
    server, client = Server(asking), Client(trusting("TLSv1.2"))
    server.give(client.step())
    assert server.shake() == WANT
    name = b"Authority of the tests"
    assert name in server.take()  # TLS 1.2 sends the list unencrypted


# ---- refused clients -----------------------------------------------------------------------------------------------------


def hello(version, suites, *extensions):
    """A ClientHello written by hand (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2)."""
    listed = b"".join(struct.pack(">H", suite) for suite in suites)
    packed = b"".join(struct.pack(">HH", kind, len(data)) + data for kind, data in extensions)
    body = struct.pack(">H", version) + bytes(32) + b"\0" + struct.pack(">H", len(listed)) + listed + b"\1\0"
    body += struct.pack(">H", len(packed)) + packed
    return b"\x16\x03\x01" + struct.pack(">H", len(body) + 4) + b"\1" + struct.pack(">I", len(body))[1:] + body


GROUPS = (10, b"\0\6\0\x17\0\x18\0\x1d")
SIGNATURES = (13, b"\0\x0e\4\3\5\3\6\3\x08\4\x08\5\x08\6\4\1")
POINTS = (11, b"\1\0")
EMPTY_SHARE = (51, b"\0\0")
ONLY_13 = (43, b"\2\3\4")


def accepted(context, version, suite):
    """The suite that the server chooses when it is the only one offered, or None."""
    server = Server(context)
    more = (ONLY_13, EMPTY_SHARE) if version == 0x0304 else ()
    server.give(hello(min(version, 0x0303), [suite], GROUPS, SIGNATURES, POINTS, *more))
    if server.shake() == FAILED:
        assert alert("handshake_failure", server), bytes(server.sent)
        return None
    record = bytes(server.sent)
    assert record[0] == 22 and record[5] == 2  # a ServerHello, or a HelloRetryRequest
    at = 5 + 4 + 2 + 32
    return struct.unpack_from(">H", record, at + 1 + record[at])[0]


# Every suite that IANA lists is in these ranges.
LISTED = [*range(0x100), *range(0x1300, 0x1320), *range(0xC000, 0xC100), *range(0xCC00, 0xCCC0), *range(0xD000, 0xD020)]


@pytest.mark.parametrize(
    ("version", "kind", "expected"),
    [
        (0x0303, "prime256v1", SUITES_ECDSA),
        (0x0303, "rsa", SUITES_RSA),
        (0x0304, "prime256v1", SUITES_13),
        (0x0304, "rsa", SUITES_13),
    ],
)
def test_the_accepted_suites_are_exactly_the_documented_ones(place, authority, version, kind, expected):
    certificate, key = authority.sign(f"suites-{kind}", key_kind=kind)
    context = TlsContext(certificate.read_bytes(), key.read_bytes())
    chosen = {suite: accepted(context, version, suite) for suite in LISTED}
    assert {suite for suite, answer in chosen.items() if answer} == expected
    assert all(answer in (None, suite) for suite, answer in chosen.items())


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302])
def test_older_versions_are_refused_with_an_alert(context, version):
    server = Server(context)
    server.give(hello(version, [0x002F, 0xC013, 0xC02B], GROUPS, SIGNATURES, POINTS))
    assert server.shake() == FAILED
    # SSL 3.0 has no alert for a version
    assert alert("handshake_failure" if version == 0x0300 else "protocol_version", server)
    assert "tls.min_version" in explain(*server.failure)


def test_tls_1_2_can_be_refused(pems, trusting):
    context = TlsContext(*pems, only_tls13=True)
    assert refused(context, Client(trusting("TLSv1.2")))[0] == "unsupported protocol"
    assert connect(Server(context), Client(trusting())) == DONE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "plain HTTP"),
        (b"CONNECT x:443 HTTP/1.1\r\n\r\n", "HTTP proxy"),
        (b"\0\0\0\x20\x10\0\0\0" + bytes(28), "did not use TLS"),
        (b"\x16\x02\0\0\x05hello", "did not use TLS"),
        (b"\x10\x1d\0\4MQTT\5\2\0\x3c\0\x11" + bytes(17), "did not use TLS"),
        (b"\x16\x03\x01\xff\xff" + bytes(100), "did not use TLS"),
    ],
)
def test_bytes_that_are_not_tls_are_named(context, data, words):
    server = Server(context)
    server.give(data)
    assert server.shake() == FAILED
    assert words in explain(*server.failure)


@BOTH
@pytest.mark.parametrize(
    ("days", "known", "words"),
    [(40, False, "does not know the authority"), (-2, True, "reports that this broker's certificate has expired")],
)
def test_the_alert_of_a_client_that_refuses_our_certificate_is_named(authority, trusting, version, days, known, words):
    certificate, key = authority.sign(f"refused{days}", days=days)
    context = TlsContext(certificate.read_bytes(), key.read_bytes())
    settings = trusting(version) if known else ssl.create_default_context()
    settings.minimum_version = settings.maximum_version = VERSIONS[version]
    server, client = Server(context), Client(settings)
    assert connect(server, client) == FAILED and client.error
    assert words in explain(*server.failure)


def test_reasons_of_all_versions_of_openssl_have_the_same_text():
    assert explain("sslv3 alert bad certificate") == explain("ssl/tls alert bad certificate")
    assert explain("SSLV3_ALERT_BAD_CERTIFICATE") == "the client does not accept this broker's certificate"
    assert explain("record layer failure") == explain("wrong version number") == explain("bad record type")
    assert explain("a new reason") == "a new reason" and explain("") == "the TLS library gave no reason"


# ---- the order of suites -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chacha_first", [False, True])
@BOTH
def test_the_order_of_suites_follows_the_processor(pems, trusting, version, chacha_first):
    context = TlsContext(*pems, chacha_first=chacha_first)
    server = Server(context)
    assert connect(server, Client(trusting(version))) == DONE
    assert ("CHACHA20" in server.facts["cipher"]) == chacha_first
    if not chacha_first:
        assert "128" in server.facts["cipher"]


def test_a_client_that_prefers_chacha20_gets_it(context, trusting):
    for order, chosen in (("CHACHA20", "AESGCM"), "CHACHA20"), (("AESGCM", "CHACHA20"), "AES128-GCM"):
        server = Server(context)
        client = Client(trusting("TLSv1.2", set_ciphers=[":".join(f"ECDHE+{name}" for name in order)]))
        assert connect(server, client) == DONE and chosen in server.facts["cipher"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 aes avx\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse2 vaes avx\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n", False),
        ("processor\t: 0\nisa: rv64\n", True),
        (None, True),
    ],
)
def test_the_instructions_of_the_processor_are_read_from_its_list(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert has_aes(str(tmp_path)) == expected


# ---- tickets -------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_ticket_resumes_a_session_until_the_context_is_renewed(context, trusting, version):
    settings = trusting(version)
    server, client = pair(context, settings)
    server.write_out(b"x")
    client.read(server.take())
    session = client.tls.session
    again, client = Server(context), Client(settings, session)
    assert connect(again, client) == DONE
    assert again.facts["resumed"] and client.tls.session_reused
    fresh = context.renewed()
    third, client = Server(fresh), Client(settings, session)
    assert connect(third, client) == DONE
    assert not third.facts["resumed"] and not client.tls.session_reused
    assert connect(Server(fresh), Client(settings)) == DONE


@BOTH
def test_a_resumed_session_keeps_the_certificate_of_the_client(asking, trusting, authority, version):
    settings = trusting(version, authority.sign("resumer"))
    server, client = pair(asking, settings)
    server.write_out(b"x")
    client.read(server.take())
    again = Server(asking)
    assert connect(again, Client(settings, client.tls.session)) == DONE
    assert again.facts["resumed"] and again.facts["subject"] == "resumer"


def session_of_short_certificate(asking, trusting, authority, version):
    """A client's settings and session, and the time at which its certificate has expired."""
    for seconds in (3, 10, 30):  # a busy machine may need longer than the certificate lives
        end = time.time() + seconds
        settings = trusting(version, authority.sign("short", days=seconds / DAY_SECONDS))
        server, client = Server(asking), Client(settings)
        if connect(server, client) == DONE:
            server.write_out(b"x")
            client.read(server.take())
            return settings, client.tls.session, end + 2
    raise AssertionError("no handshake within 30 s")


@BOTH
def test_a_ticket_resumes_nothing_after_the_certificate_of_the_client_has_expired(asking, trusting, authority, version):
    settings, session, expired_s = session_of_short_certificate(asking, trusting, authority, version)
    assert connect(Server(asking), Client(settings, session)) == DONE
    time.sleep(max(0.0, expired_s - time.time()))
    reason, detail = refused(asking, Client(settings, session))
    assert (reason, detail) == ("certificate verify failed", "certificate has expired")


def test_a_renewed_context_keeps_all_rules(pems, authority, trusting):
    certificate = authority.file.read_bytes()
    context = TlsContext(
        *pems, certificate, require_client_cert=True, only_tls13=True, chacha_first=True, alpn=("mqtt",)
    ).renewed()
    assert refused(context, Client(trusting()))[0] == "peer did not return a certificate"
    assert refused(context, Client(trusting("TLSv1.2")))[0] == "unsupported protocol"
    server = Server(context)
    settings = trusting(None, authority.sign("kept"), set_alpn_protocols=[["mqtt"]])
    assert connect(server, Client(settings)) == DONE
    facts = server.facts
    assert (facts["subject"], facts["alpn"]) == ("kept", "mqtt") and "CHACHA20" in facts["cipher"]


# ---- protocols -----------------------------------------------------------------------------------------------------------


def test_a_protocol_is_chosen_by_the_order_of_the_server(pems, trusting):
    context = TlsContext(*pems, alpn=("mqtt", "http/1.1"))
    for offered, chosen in ((["http/1.1", "mqtt"], "mqtt"), (["x", "http/1.1"], "http/1.1"), ([], "")):
        server, client = Server(context), Client(trusting(None, set_alpn_protocols=[offered]))
        assert connect(server, client) == DONE
        assert server.facts["alpn"] == chosen and (client.tls.selected_alpn_protocol() or "") == chosen
    server = Server(context)
    assert connect(server, Client(trusting(None, set_alpn_protocols=[["x"]]))) == FAILED


def test_protocols_are_ignored_where_there_is_no_choice(context, trusting):
    server, client = Server(context), Client(trusting(None, set_alpn_protocols=[["mqtt"]]))
    assert connect(server, client) == DONE and client.tls.selected_alpn_protocol() is None


# ---- contexts ------------------------------------------------------------------------------------------------------------


def unusable(*arguments, **options):
    with pytest.raises(TlsUnusable) as caught:
        TlsContext(*arguments, **options)
    return caught.value.part, caught.value.reason


def test_a_file_that_cannot_be_used_is_named(pems, authority, place, tmp_path):
    chain, key = pems
    assert unusable(b"", key)[0] == unusable(b"text", key)[0] == Part.CHAIN
    assert unusable(chain + chain.replace(b"M", b"-", 3), key)[0] == Part.CHAIN  # the second one is damaged
    assert unusable(chain, b"")[0] == unusable(chain, chain)[0] == Part.KEY
    assert unusable(chain, authority.key.read_bytes()) == (Part.PAIR, "key values mismatch")
    assert unusable(*pems, b"text")[0] == Part.CLIENT_CA
    assert unusable(*pems, alpn=("",))[0] == Part.ALPN
    openssl("pkey", "-in", authority.key, "-aes128", "-passout", "pass:secret", "-out", tmp_path / "locked.key")
    assert unusable(chain, (tmp_path / "locked.key").read_bytes()) == (Part.KEY_ENCRYPTED, "the key is encrypted")


def test_a_key_that_is_too_small_is_named(tmp_path):
    openssl(
        *("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=x", "-days", 9),
        *("-keyout", tmp_path / "small.key", "-out", tmp_path / "small.pem"),
    )
    part, reason = unusable((tmp_path / "small.pem").read_bytes(), (tmp_path / "small.key").read_bytes())
    assert (part, reason) == (Part.CHAIN, "ee key too small")


def test_the_chain_of_issuers_is_sent(place, authority, tmp_path):
    """A client that knows only the root verifies the broker through the intermediate certificate in its file."""
    middle_key, request, middle, extensions = (tmp_path / f"middle.{end}" for end in ("key", "csr", "pem", "ext"))
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", middle_key)
    openssl("req", "-new", "-key", middle_key, "-subj", "/CN=Middle", "-out", request)
    extensions.write_text("basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n")
    files = ("-CA", authority.file, "-CAkey", authority.key, "-CAcreateserial")
    openssl("x509", "-req", "-in", request, *files, "-days", 9, "-extfile", extensions, "-out", middle)
    issuer = Authority(tmp_path)
    issuer.key, issuer.file = middle_key, middle
    certificate, key = issuer.sign("leaf")
    context = TlsContext(certificate.read_bytes() + middle.read_bytes(), key.read_bytes())
    for made in context, context.renewed():
        settings = ssl.create_default_context(cafile=authority.file)
        assert connect(Server(made), Client(settings)) == DONE


def test_a_connection_outlives_its_context(pems, trusting):
    context = TlsContext(*pems)
    server, client = pair(context, trusting())
    del context
    server.write_out(b"still here")
    assert client.read(server.take()) == b"still here"
    server.free()


def test_a_shared_reference_is_released_by_the_table(pems, trusting):
    from blipmq._tls import ffi

    context = TlsContext(*pems)
    address = context.share()
    assert address == context.address
    del context
    state = OPS.open(ffi.cast("void *", address))
    OPS.context_free(ffi.cast("void *", address))
    OPS.close(state)


def test_the_table_has_the_size_that_the_core_expects():
    from blipmq._tls import ffi

    assert OPS.size == ffi.sizeof("bq_secure_ops_t") and table() == int(ffi.cast("uintptr_t", OPS))
    assert library().startswith("OpenSSL 3.")


# ---- without the module --------------------------------------------------------------------------------------------------


def test_a_build_without_the_module_says_so(tmp_path):
    code = (
        "import sys; sys.modules['blipmq._tls'] = None\n"
        "from blipmq.errors import ConfigError\n"
        "try:\n    import blipmq.native.tls\nexcept ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert "was built without it (BLIPMQ_WITHOUT_TLS=1)" in done.stdout, done.stderr


def test_the_core_is_not_linked_with_openssl():
    import blipmq._native
    import blipmq._tls

    for module, expected in (blipmq._native, False), (blipmq._tls, True):
        data = Path(module.__file__).read_bytes()
        assert (b"SSL_do_handshake" in data or b"bqtls_context_new" in data) == expected


# ---- with a client in C --------------------------------------------------------------------------------------------------

NATIVE = Path(__file__).resolve().parent.parent / "native"
CC = os.environ.get("CC", "cc").split()


def c_program(directory, *flags):
    program = directory / "test_tls"
    sources = [NATIVE.parent / "tests" / "native" / "test_tls.c", *sorted((NATIVE / "tls").glob("*.c"))]
    options = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", *flags]
    subprocess.run([*CC, *options, *map(str, sources), "-lssl", "-lcrypto", "-o", str(program)], check=True)
    return program


def test_key_updates_renegotiation_tickets_and_long_hellos(tmp_path):
    program = c_program(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_memory_of_connections_stays_within_the_documented_bytes(tmp_path):
    done = subprocess.run([c_program(tmp_path), "memory"], capture_output=True, text=True, timeout=300, check=True)
    used = {name: int(size) for name, size in re.findall(r"^([a-z][\w.-]*) (\d+)$", done.stdout, re.MULTILINE)}
    assert used.keys() == {"idle-1.2", "idle-1.3", "begun-1.2", "begun-1.3", "longest-hello"}
    assert max(used["idle-1.2"], used["idle-1.3"]) <= CONNECTION_BYTES
    assert max(used.values()) <= HANDSHAKE_BYTES
