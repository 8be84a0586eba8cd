"""TLS, seen from outside: accepted and refused clients, traffic in both directions, certificate changes.

The broker is a separate process ($BLIPMQ_BINARY: a frozen one); the clients are `ssl`, raw sockets and the command
line.
"""

import contextlib
import hashlib
import json
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from broker_process import TIMEOUT_S, BrokerProcess, broker_command, environment, run_cli, start_cli, toml, until
from certificates import Authority, openssl
from hand_client import HELLO, INFO, PUB, SUB, HelloClient, command, decode

API_KEY = "a-key-of-the-tests-over-TLS"
# Longer than any test takes on any machine, so no client is closed for slowness.
NO_HURRY_MS = 60_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def unknown_ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("unknown_ca"), "Another authority")


class TlsBroker(BrokerProcess):
    """A broker that listens for unencrypted and TLS clients; `secure` is the TLS address."""

    def __init__(self, directory, authority, settings=None, certificate=None, **variables):
        self.authority = authority
        self.children = []
        cert, key = certificate or authority.sign("broker")
        self.cert, self.key = directory / "broker.pem", directory / "broker.key"
        self.install(cert, key)
        ours = {
            "server.tls_bind_addr": "127.0.0.1:0",
            "tls.cert_file": str(self.cert),
            "tls.key_file": str(self.key),
            "metrics.bind_addr": "",
        }
        self.settings = {**ours, **(settings or {})}
        super().__init__(directory, self.settings, **variables)

    def install(self, cert, key):
        """Replace the files that it uses, each atomically, like tools that renew certificates."""
        for source, target in (cert, self.cert), (key, self.key):
            fresh = target.with_suffix(".new")
            fresh.write_bytes(Path(source).read_bytes())
            fresh.chmod(0o600)
            fresh.replace(target)

    def reconfigure(self, settings):
        """Change its settings and send SIGHUP; returns once they are in effect."""
        self.configure({**self.settings, **settings})
        before = len(self.lines("reloaded"))
        self.signal(signal.SIGHUP)
        until(lambda: len(self.lines("reloaded")) > before, "the settings are read again")

    def get_ready(self):
        super().get_ready()
        self.secure = self.wait_for("ready")["tls"]
        return self

    @property
    def secure_url(self):
        return f"tls://{self.secure}"

    def context(self, **options):
        context = ssl.create_default_context(cafile=self.authority.file)
        for name, value in options.items():
            setattr(context, name, value)
        return context

    def dial(self, context=None, timeout_s=TIMEOUT_S):
        """A TLS socket after its handshake."""
        host, port = self.secure.rsplit(":", 1)
        plain = socket.create_connection((host, int(port)), timeout_s)
        return (context or self.context()).wrap_socket(plain, server_hostname=host)

    def dial_plain(self):
        host, port = self.secure.rsplit(":", 1)
        return socket.create_connection((host, int(port)), TIMEOUT_S)

    def serial_shown(self):
        with self.dial() as client:
            return client.getpeercert()["serialNumber"]

    def start_cli(self, address, *arguments):
        """A command in the background; it is ended after the test."""
        child = start_cli(address, *arguments, stdout=subprocess.PIPE)
        self.children.append(child)
        return child

    def kill(self):
        for child in self.children:
            child.kill()
            child.wait(TIMEOUT_S)
            child.stdout.close()
        super().kill()

    def cli(self, *arguments, **options):
        return run_cli(self.secure_url, "--ca-file", str(self.authority.file), *arguments, **options)


@pytest.fixture
def start(tmp_path, authority):
    with contextlib.ExitStack() as stack:

        def begin(settings=None, **options):
            broker = TlsBroker(tmp_path, authority, settings, **options)
            stack.callback(broker.kill)
            return broker.get_ready()

        yield begin


def read_frame(client):
    """The next frame of a socket, decoded."""
    return decode(read_exactly(client, struct.unpack(">I", read_exactly(client, 4))[0]))


def read_exactly(client, size):
    parts = bytearray()
    while len(parts) < size:
        part = client.recv(size - len(parts))
        assert part, "the broker closed"
        parts += part
    return bytes(parts)


def read_to_end(client):
    """The remaining data before the broker closes, in order or not."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(4096):
            data += part
    return data


def ask(client, frame):
    """Send one frame and receive one."""
    client.sendall(frame)
    return read_frame(client)


# ---- client features -------------------------------------------------------------------------------------------------


def test_messages_pass_between_tls_and_unencrypted_clients(start):
    broker = start()
    ca = str(broker.authority.file)
    secure = broker.start_cli(broker.secure_url, "--ca-file", ca, "sub", "t", "-n", "2")
    plain = broker.start_cli(broker.address, "sub", "t", "-n", "2")
    broker.wait_for_subscriptions(2)
    assert run_cli(broker.address, "pub", "t", "from plain").returncode == 0
    assert broker.cli("pub", "t", "from tls").returncode == 0
    for reader in secure, plain:
        out, _ = reader.communicate(timeout=TIMEOUT_S)
        assert out == b"t\tfrom plain\nt\tfrom tls\n"
    broker.stop()


def test_qos_1_and_durable_subscriptions_work_over_tls(start):
    broker = start()
    durable = ("sub", "d", "--qos", "1", "--durable", "--client-id", "archive", "-n", "1")
    first = broker.start_cli(broker.secure_url, "--ca-file", str(broker.authority.file), *durable)
    until(lambda: broker.info()["subscriptions_total"], "it is subscribed")
    assert broker.cli("pub", "d", "one", "--qos", "1").returncode == 0
    assert first.communicate(timeout=TIMEOUT_S)[0] == b"d\tone\n"
    assert broker.cli("pub", "d", "two", "--qos", "1").returncode == 0  # without a connected subscriber
    again = broker.cli(*durable)
    assert (again.returncode, again.stdout) == (0, b"d\ttwo\n")
    broker.stop()


def test_requests_followed_by_close_notify_are_answered(start):
    broker = start({"wal.flush_interval_ms": 300})  # delays the answer to the publish
    host, port = broker.secure.rsplit(":", 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = broker.context().wrap_bio(incoming, outgoing, server_hostname=host)
    with socket.create_connection((host, int(port)), TIMEOUT_S) as plain:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        tls.write(command(HELLO, seq=1, protocol=1) + command(PUB, "t", b"kept", qos=1, seq=5) + command(INFO, seq=6))
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()  # sends close_notify; the answer of the broker arrives later
        plain.sendall(outgoing.read())  # everything in one piece
        answers = b""
        while data := plain.recv(65536):
            incoming.write(data)
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                while part := tls.read(65536):
                    answers += part
    replies = []
    while answers:
        size = struct.unpack(">I", answers[:4])[0]
        replies.append(decode(answers[4 : 4 + size]))
        answers = answers[4 + size :]
    assert sorted((reply.seq, reply.code) for reply in replies) == [(1, 0), (5, 0), (6, 0)]
    until(lambda: not broker.info()["tls"]["connections"], "its connection is closed")
    broker.stop()


def test_a_broker_with_only_a_tls_listener_serves(start):
    broker = start({"server.bind_addr": ""})
    assert broker.address == ""
    assert broker.cli("pub", "t", "x").returncode == 0
    shown = broker.cli("info")
    assert b"certificate until 20" in shown.stdout
    broker.stop()


def test_the_variables_of_the_environment_turn_tls_on(start):
    broker = start()
    ca = str(broker.authority.file)
    assert run_cli(broker.secure, "pub", "t", "x", BLIPMQ_TLS_CA=ca).returncode == 0
    assert run_cli(f"tcp://{broker.address}", "pub", "t", "x", BLIPMQ_TLS_CA=ca).returncode == 0
    broker.stop()


def test_a_tls_client_has_its_address_in_info_and_in_the_log(start):
    broker = start()
    with broker.dial() as client:
        peer = f"127.0.0.1:{client.getsockname()[1]}"
        assert ask(client, command(HELLO, seq=1, client_id="gateway-7", protocol=1)).code == 0
        ask(client, command(SUB, "t", seq=2))
        info = json.loads(ask(client, command(INFO, seq=3)).payload)
        assert [row["peer"] for row in info["subscriptions"]] == [peer]
        assert info["tls"]["connections"] == 1
        assert info["tls"]["certificate"]["subject"] == "broker"
    assert broker.wait_for("hello", client="gateway-7")["peer"] == peer
    assert broker.wait_for("closed", client="gateway-7")["peer"] == peer
    broker.stop()


def test_messages_before_end_of_file_arrive_although_the_publisher_is_blocked(start):
    broker = start({"queues.overflow_policy": "block", "queues.subscriber_capacity": 50})
    with HelloClient(broker.address) as reader:
        reader.subscribe("t")
        with broker.dial() as client:
            client.sendall(b"".join(command(PUB, "t", b"%d" % n) for n in range(5000)))
            client.unwrap()  # sends end of file; the broker has not read everything yet
        for n in range(5000):
            assert reader.next().payload == b"%d" % n
    broker.stop()


def test_large_flows_with_slow_readers_on_both_sides_arrive_unchanged(start):
    broker = start({"queues.overflow_policy": "block", "queues.subscriber_bytes": 1 << 20})
    size, count = 200_000, 150
    sent, received = hashlib.sha256(), hashlib.sha256()
    with broker.dial() as reader, broker.dial() as writer:
        ask(reader, command(SUB, "big"))

        def write():
            for n in range(count):
                payload = n.to_bytes(4, "big") + bytes((n * 7 + i) & 255 for i in range(251)) * (size // 251)
                sent.update(payload)
                writer.sendall(command(PUB, "big", payload))

        thread = threading.Thread(target=write)
        thread.start()
        for n in range(count):
            if n % 50 == 0:
                time.sleep(0.1)  # so that queues, windows and sockets fill up
            received.update(read_frame(reader).payload)
        thread.join(TIMEOUT_S)
    assert sent.digest() == received.digest()
    broker.stop()


def test_a_stopping_broker_sends_queued_messages_and_close_notify(start):
    broker = start()
    with broker.dial() as client:
        ask(client, command(SUB, "t"))
        assert broker.cli("pub", "t", "last").returncode == 0
        broker.stop()
        assert read_frame(client).payload == b"last"
        assert client.recv(1) == b""  # in order: a cut connection would raise


def test_an_authority_made_with_one_openssl_command_is_accepted(start, tmp_path):
    own = Authority(tmp_path, "Made by hand", strict=False)
    broker = start(certificate=own.sign("by hand"))
    assert run_cli(broker.secure_url, "--ca-file", str(own.file), "pub", "t", "x").returncode == 0
    broker.stop()


# ---- refused clients -------------------------------------------------------------------------------------------------


def test_a_client_refuses_an_unknown_authority_with_a_remedy(start, unknown_ca):
    broker = start()
    done = run_cli(broker.secure_url, "--ca-file", str(unknown_ca.file), "pub", "t", "x")
    assert done.returncode == 77
    assert b"this machine does not know its authority" in done.stderr and b"--ca-file" in done.stderr
    assert "does not know the authority" in broker.wait_for("tls_failed")["error"]
    broker.stop()


def test_a_certificate_for_another_name_is_refused_by_the_client(start, authority):
    broker = start(certificate=authority.sign("elsewhere", names="DNS:elsewhere.example"))
    done = broker.cli("pub", "t", "x")
    assert done.returncode == 77 and b"it is not for 127.0.0.1" in done.stderr
    broker.stop()


def test_an_expired_certificate_is_warned_of_and_refused_by_the_client(start, authority):
    broker = start(certificate=authority.sign("old", days=-1))
    assert "expired on" in broker.wait_for("tls_certificate_warning")["warning"]
    done = broker.cli("pub", "t", "x")
    assert done.returncode == 77 and b"it has expired" in done.stderr
    assert any("has expired" in reason for reason in broker.info()["reasons"])
    broker.stop()


def test_versions_older_than_1_2_are_refused(start):
    broker = start()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        broker.dial(old)
    assert "tls.min_version" in broker.wait_for("tls_failed")["error"]
    broker.stop()


def test_min_version_1_3_refuses_1_2(start):
    broker = start({"tls.min_version": "1.3"})
    with pytest.raises(ssl.SSLError):
        broker.dial(broker.context(maximum_version=ssl.TLSVersion.TLSv1_2))
    with broker.dial() as client:
        assert client.version() == "TLSv1.3"
    broker.stop()


def test_unencrypted_bytes_at_the_tls_port_have_no_effect_and_are_logged(start):
    broker = start()
    with broker.dial_plain() as client:
        client.sendall(command(PUB, "t", b"not encrypted"))
        read_to_end(client)
    assert "did not use TLS" in broker.wait_for("tls_failed")["error"]
    with broker.dial_plain() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_to_end(client)
    until(lambda: any("plain HTTP" in line["error"] for line in broker.lines("tls_failed")), "HTTP was recognised")
    assert broker.info()["messages"]["published"] == 0
    done = run_cli(f"tcp://{broker.secure}", "pub", "t", "x")
    assert done.returncode != 0 and b"TLS" in done.stderr
    broker.stop()


def test_a_tls_client_at_the_unencrypted_port_reports_it(start):
    broker = start()
    done = run_cli(f"tls://{broker.address}", "--ca-file", str(broker.authority.file), "pub", "t", "x")
    assert done.returncode == 69 and b"server.tls_bind_addr" in done.stderr
    broker.stop()


def test_a_handshake_is_ended_at_its_deadline_and_a_reload_changes_it(start):
    broker = start({"limits.hello_timeout_ms": 700})
    with broker.dial_plain() as silent, broker.dial_plain() as slow:
        hello = client_hello(broker)
        for byte in hello[:20]:
            with contextlib.suppress(OSError):  # it may have been closed by then
                slow.sendall(bytes([byte]))
            time.sleep(0.01)
        assert read_to_end(silent) == read_to_end(slow) == b""
    until(lambda: len(broker.lines("tls_failed", error="no handshake in 0.7 s")) == 2, "both were ended for slowness")
    broker.reconfigure({"limits.hello_timeout_ms": 300})
    with broker.dial_plain() as silent:
        assert read_to_end(silent) == b""
    broker.wait_for("tls_failed", error="no handshake in 0.3 s")
    broker.stop()


def test_a_client_silent_after_its_handshake_is_closed_like_an_unencrypted_one(start):
    broker = start({"auth.api_keys": [API_KEY], "limits.hello_timeout_ms": 1500})

    def silent():
        with contextlib.suppress(OSError), broker.dial() as client:  # its handshake may take too long
            assert read_to_end(client) == b""
        return broker.lines("closed", detail="no HELLO in time")

    until(silent, "it was ended for saying nothing")
    broker.stop()


def client_hello(broker):
    """The first bytes of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = broker.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_at_most_max_pending_handshakes_run_and_the_oldest_is_displaced(start):
    broker = start({"limits.max_pending": 4, "limits.hello_timeout_ms": NO_HURRY_MS})
    with broker.dial() as early, contextlib.ExitStack() as stack:
        assert ask(early, command(HELLO, seq=1, protocol=1)).code == 0

        def told():
            return json.loads(ask(early, command(INFO, seq=1)).payload)["tls"]

        waiting = [stack.enter_context(broker.dial_plain()) for _ in range(10)]
        until(lambda: told()["handshakes"]["refused"] == 6, "six had to go")
        assert told()["pending"] == 4
        for client in waiting[:6]:
            assert read_to_end(client) == b"", "the oldest have gone"
        assert broker.cli("pub", "t", "x").returncode == 0, "who is in earnest takes the place of the next one"
        assert told()["handshakes"]["refused"] == 7
        for client in waiting:
            client.close()
        until(lambda: told()["pending"] == 0, "those that went away hold no place")
    assert "it was the slowest" in broker.wait_for("tls_refused")["why"]
    broker.stop()


def test_many_handshakes_and_invalid_bytes_leak_nothing(start):
    broker = start()
    before = broker.descriptors()
    for n in range(60):
        with broker.dial_plain() as client, contextlib.suppress(OSError):
            client.sendall([b"\x16\x03\x01\x00\x05hello", client_hello(broker), b"\0" * 300][n % 3])
    assert broker.cli("pub", "t", "x").returncode == 0
    until(lambda: broker.info()["tls"]["pending"] == 0, "no handshake is under way")
    until(lambda: broker.descriptors() <= before + 1, "all sockets are closed")
    broker.stop()


# ---- client certificates ---------------------------------------------------------------------------------------------


def test_required_client_certificates_are_verified_and_their_names_logged(start, authority, unknown_ca):
    broker = start({"tls.client_ca_file": str(authority.file), "tls.require_client_cert": True})
    done = broker.cli("pub", "t", "x")
    assert done.returncode == 77 and b"it requires a client certificate" in done.stderr
    assert "sent no certificate" in broker.wait_for("tls_failed")["error"]

    cert, key = unknown_ca.sign("intruder")
    done = broker.cli("--cert", str(cert), "--cert-key", str(key), "pub", "t", "x")
    assert done.returncode == 77 and b"refused this client" in done.stderr
    until(
        lambda: any(
            "no authority in tls.client_ca_file signed" in line["error"] for line in broker.lines("tls_failed")
        ),
        "the cause is in the log",
    )

    cert, key = authority.sign("sensor-12")
    done = broker.cli("pub", "t", "x", BLIPMQ_TLS_CERT=str(cert), BLIPMQ_TLS_KEY=str(key))
    assert done.returncode == 0, done.stderr
    assert broker.wait_for("tls", certificate="sensor-12")["version"] == "TLSv1.3"
    assert broker.info()["messages"]["published"] == 1
    broker.stop()


def test_optional_client_certificates_are_verified(start, authority, unknown_ca):
    broker = start({"tls.client_ca_file": str(authority.file)})
    assert broker.cli("pub", "t", "x").returncode == 0
    cert, key = unknown_ca.sign("intruder-2")
    assert broker.cli("--cert", str(cert), "--cert-key", str(key), "pub", "t", "x").returncode == 77
    broker.stop()


# ---- certificate changes ---------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_for_new_clients_and_open_connections_stay(start, authority):
    broker = start()
    with broker.dial() as old:
        first = old.getpeercert()["serialNumber"]
        ask(old, command(SUB, "t"))
        broker.install(*authority.sign("renewed"))
        until(lambda: broker.serial_shown() != first, "new clients see the new certificate")
        assert broker.wait_for("tls_certificate", subject="renewed")
        assert broker.cli("pub", "t", "still here").returncode == 0
        assert read_frame(old).payload == b"still here"
    broker.stop()


def test_an_invalid_new_certificate_keeps_the_old_one_and_is_reported(start, authority):
    broker = start({"metrics.bind_addr": "127.0.0.1:0"})
    first = broker.serial_shown()
    cert, key = broker.cert.read_bytes(), broker.key.read_bytes()
    broker.cert.write_text("-----BEGIN CERTIFICATE-----\nhalf a")
    assert "its first certificate is damaged" in broker.wait_for("tls_certificate_refused")["error"]
    assert broker.serial_shown() == first
    info = broker.info()
    assert info["state"] == "degraded" and any("the old one stays in use" in reason for reason in info["reasons"])
    url = "http://{}/metrics".format(broker.wait_for("metrics")["address"])
    assert "\nblipmq_tls_certificate_ok 0\n" in urllib.request.urlopen(url).read().decode()
    broker.cert.write_bytes(cert)
    broker.key.write_bytes(key)
    until(lambda: broker.info()["state"] == "ok", "the mended file is in use")
    assert "\nblipmq_tls_certificate_ok 1\n" in urllib.request.urlopen(url).read().decode()
    broker.stop()


def test_sighup_loads_or_refuses_other_certificate_files(start, authority, tmp_path):
    broker = start()
    cert, key = authority.sign("moved")
    settings = {"server.tls_bind_addr": "127.0.0.1:0", "metrics.bind_addr": "", "tls.cert_file": str(cert)}
    broker.configure({**settings, "tls.key_file": str(broker.key)})
    broker.signal(1)
    assert "is not the key of the certificate" in broker.wait_for("reload_failed")["error"]
    broker.configure({**settings, "tls.key_file": str(key)})
    broker.signal(1)
    broker.wait_for("tls_certificate", subject="moved")
    with broker.dial() as client:
        assert ("commonName", "moved") in [name for part in client.getpeercert()["subject"] for name in part]
    broker.stop()


# ---- metrics over HTTPS ----------------------------------------------------------------------------------------------


def test_metrics_are_served_over_https_with_the_expiry_of_the_certificate(start):
    broker = start({"metrics.bind_addr": "127.0.0.1:0", "metrics.tls": True})
    address = broker.wait_for("metrics")["address"]
    text = urllib.request.urlopen(f"https://{address}/metrics", context=broker.context()).read().decode()
    with broker.dial() as client:
        expires = ssl.cert_time_to_seconds(client.getpeercert()["notAfter"])
    assert f"\nblipmq_tls_certificate_expiry_timestamp_seconds {expires}\n" in text
    health = urllib.request.urlopen(f"https://{address}/healthz", context=broker.context())
    assert json.loads(health.read())["status"] == "ok"
    with pytest.raises((urllib.error.URLError, OSError, EOFError)):
        urllib.request.urlopen(f"http://{address}/metrics").read()
    broker.stop()


# ---- secrets and settings --------------------------------------------------------------------------------------------


def test_the_private_key_is_in_no_log_info_or_process_list(start):
    broker = start({"logging.level": "debug"})
    secret = broker.key.read_text().splitlines()[1]
    with broker.dial() as client:
        ask(client, command(HELLO, seq=1, protocol=1))
        info = ask(client, command(INFO, seq=2)).payload.decode()
    broker.cli("pub", "t", "x")
    process = Path(f"/proc/{broker.pid}/cmdline").read_text() + Path(f"/proc/{broker.pid}/environ").read_text()
    broker.stop()
    for text in info, process, "\n".join(broker.log):
        assert secret not in text


def check(tmp_path, **settings):
    """`blipmq check` with these settings."""
    file = tmp_path / "check.toml"
    file.write_text(toml({"server.tls_bind_addr": "127.0.0.1:0", **settings}))
    command_ = [*broker_command(), "check", "--config", str(file)]
    return subprocess.run(command_, capture_output=True, text=True, env=environment(), timeout=TIMEOUT_S)


def test_check_reports_unusable_files_with_the_reason(tmp_path, authority):
    cert, key = authority.sign("checked")
    _, other_key = authority.sign("other")
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    encrypted = tmp_path / "encrypted.key"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    for status, files, words in (
        (78, (cert, ""), "tls.key_file is not; TLS needs both"),
        (78, ("", key), "tls.cert_file is not; TLS needs both"),
        (78, ("", ""), "TLS needs a certificate"),
        # A bad file may be valid a second later: a volume mounted late, a renewal in progress.
        (66, (tmp_path / "missing.pem", key), "No such file"),
        (66, (empty, key), "holds no certificate in PEM"),
        (66, (cert, empty), "holds no private key in PEM"),
        (66, (cert, other_key), "is not the key of the certificate"),
        (66, (cert, encrypted), "the key is encrypted"),
    ):
        done = check(tmp_path, **{"tls.cert_file": str(files[0]), "tls.key_file": str(files[1])})
        assert done.returncode == status and words in done.stderr, (files, done.stderr)
    right = {"tls.cert_file": str(cert), "tls.key_file": str(key)}
    done = check(tmp_path, **right)
    assert done.returncode == 0 and "checked, until 20" in done.stdout and "warning" not in done.stdout
    assert not list(tmp_path.glob("data*")), "check changes nothing"
    for status, more, words in (
        (78, {"server.tls_bind_addr": ""}, "TLS is not used"),
        (78, {"tls.require_client_cert": True}, "tls.client_ca_file is empty"),
        (78, {"server.tls_bind_addr": "0.0.0.0:0"}, "can be reached from other machines"),
        (66, {"tls.client_ca_file": str(empty)}, "holds no certificate in PEM"),
    ):
        done = check(tmp_path, **right, **more)
        assert done.returncode == status and words in done.stderr, (more, done.stderr)


def test_check_warns_of_a_world_readable_key_and_an_expired_certificate(tmp_path, authority):
    cert, key = authority.sign("careless", days=-1)
    key.chmod(0o644)
    done = check(tmp_path, **{"tls.cert_file": str(cert), "tls.key_file": str(key)})
    assert done.returncode == 0
    assert "everyone on this machine can read" in done.stdout and "expired on" in done.stdout
