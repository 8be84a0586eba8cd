"""TLS, seen from outside: clients that may come in and those that may not, flows both ways, certificates that change.

The broker is a process of its own ($BLIPMQ_BINARY: a frozen one); the clients are `ssl`, raw sockets and the command line.
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
# Longer than any test takes, whatever else the machine does: nobody is ended for slowness then.
NO_HURRY_MS = 60_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "Another authority")


class TlsBroker(BrokerProcess):
    """A broker that listens for plain clients and for TLS; `secure` is where the latter."""

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
        """Put these files in the place of those it uses, each at once, as tools that renew certificates do."""
        for source, target in (cert, self.cert), (key, self.key):
            fresh = target.with_suffix(".new")
            fresh.write_bytes(Path(source).read_bytes())
            fresh.chmod(0o600)
            fresh.replace(target)

    def reconfigure(self, settings):
        """Other settings of its own, and SIGHUP; back when they are in effect."""
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
        """A TLS socket, its handshake done."""
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
        """A command that goes on; at the end of the test it does not."""
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
    """The next frame from a socket, decoded."""
    return decode(read_exactly(client, struct.unpack(">I", read_exactly(client, 4))[0]))


def read_exactly(client, size):
    parts = bytearray()
    while len(parts) < size:
        part = client.recv(size - len(parts))
        assert part, "the broker closed"
        parts += part
    return bytes(parts)


def read_to_end(client):
    """What still comes before the broker closes, be it in order or not."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(4096):
            data += part
    return data


def ask(client, frame):
    """Send one frame and read one."""
    client.sendall(frame)
    return read_frame(client)


# ---- what clients can do ---------------------------------------------------------------------------------------------


def test_messages_cross_between_tls_and_plain_clients(start):
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
    assert broker.cli("pub", "d", "two", "--qos", "1").returncode == 0  # while no one is there
    again = broker.cli(*durable)
    assert (again.returncode, again.stdout) == (0, b"d\ttwo\n")
    broker.stop()


def test_close_notify_right_behind_requests_does_not_swallow_their_answers(start):
    broker = start({"wal.flush_interval_ms": 300})  # the answer to the publish comes that much later
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
            tls.unwrap()  # says goodbye; the broker's is not there yet
        plain.sendall(outgoing.read())  # all of it in one piece
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


def test_tls_alone_without_a_plain_listener_serves(start):
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


def test_what_was_published_before_the_end_of_file_arrives_although_the_subscriber_holds_the_publisher_back(start):
    broker = start({"queues.overflow_policy": "block", "queues.subscriber_capacity": 50})
    with HelloClient(broker.address) as reader:
        reader.subscribe("t")
        with broker.dial() as client:
            client.sendall(b"".join(command(PUB, "t", b"%d" % n) for n in range(5000)))
            client.unwrap()  # its end of file; the broker has not taken all of that yet
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


def test_a_stopping_broker_sends_what_is_queued_and_says_goodbye(start):
    broker = start()
    with broker.dial() as client:
        ask(client, command(SUB, "t"))
        assert broker.cli("pub", "t", "last").returncode == 0
        broker.stop()
        assert read_frame(client).payload == b"last"
        assert client.recv(1) == b""  # in order: a cut connection would raise


def test_an_authority_made_with_one_openssl_command_will_do(start, tmp_path):
    own = Authority(tmp_path, "Made by hand", strict=False)
    broker = start(certificate=own.sign("by hand"))
    assert run_cli(broker.secure_url, "--ca-file", str(own.file), "pub", "t", "x").returncode == 0
    broker.stop()


# ---- who may not come in ---------------------------------------------------------------------------------------------


def test_a_client_that_does_not_know_the_authority_refuses_and_says_what_to_do(start, stranger):
    broker = start()
    done = run_cli(broker.secure_url, "--ca-file", str(stranger.file), "pub", "t", "x")
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
    assert "has expired on" in broker.wait_for("tls_certificate_warning")["warning"]
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


def test_plain_bytes_at_the_tls_port_have_no_effect_and_the_log_says_what_they_were(start):
    broker = start()
    with broker.dial_plain() as client:
        client.sendall(command(PUB, "t", b"not encrypted"))
        read_to_end(client)
    assert "did not speak TLS" in broker.wait_for("tls_failed")["error"]
    with broker.dial_plain() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_to_end(client)
    until(lambda: any("plain HTTP" in line["error"] for line in broker.lines("tls_failed")), "HTTP was recognised")
    assert broker.info()["messages"]["published"] == 0
    done = run_cli(f"tcp://{broker.secure}", "pub", "t", "x")
    assert done.returncode != 0 and b"TLS" in done.stderr
    broker.stop()


def test_a_tls_client_at_the_plain_port_says_so(start):
    broker = start()
    done = run_cli(f"tls://{broker.address}", "--ca-file", str(broker.authority.file), "pub", "t", "x")
    assert done.returncode == 69 and b"server.tls_bind_addr" in done.stderr
    broker.stop()


def test_a_handshake_that_is_not_done_in_time_is_ended_and_a_reload_changes_the_time(start):
    broker = start({"limits.hello_timeout_ms": 700})
    with broker.dial_plain() as silent, broker.dial_plain() as slow:
        hello = client_hello(broker)
        for byte in hello[:20]:
            with contextlib.suppress(OSError):  # it may have been ended by then
                slow.sendall(bytes([byte]))
            time.sleep(0.01)
        assert read_to_end(silent) == read_to_end(slow) == b""
    until(lambda: len(broker.lines("tls_failed", error="no handshake in 0.7 s")) == 2, "both were ended for slowness")
    broker.reconfigure({"limits.hello_timeout_ms": 300})
    with broker.dial_plain() as silent:
        assert read_to_end(silent) == b""
    broker.wait_for("tls_failed", error="no handshake in 0.3 s")
    broker.stop()


def test_a_client_that_is_silent_after_its_handshake_goes_as_a_plain_one_does(start):
    broker = start({"auth.api_keys": [API_KEY], "limits.hello_timeout_ms": 1500})

    def silent():
        with contextlib.suppress(OSError), broker.dial() as client:  # its handshake may take too long
            assert read_to_end(client) == b""
        return broker.lines("closed", detail="no HELLO in time")

    until(silent, "it was ended for saying nothing")
    broker.stop()


def client_hello(broker):
    """The first bytes a TLS client sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = broker.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_as_many_handshakes_as_max_pending_are_under_way_and_the_oldest_makes_room(start):
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


def test_a_storm_of_handshakes_and_garbage_leaves_nothing_behind(start):
    broker = start()
    before = broker.descriptors()
    for n in range(60):
        with broker.dial_plain() as client, contextlib.suppress(OSError):
            client.sendall([b"\x16\x03\x01\x00\x05hello", client_hello(broker), b"\0" * 300][n % 3])
    assert broker.cli("pub", "t", "x").returncode == 0
    until(lambda: broker.info()["tls"]["pending"] == 0, "no handshake is under way")
    until(lambda: broker.descriptors() <= before + 1, "all sockets are closed")
    broker.stop()


# ---- clients' certificates -------------------------------------------------------------------------------------------


def test_required_client_certificates_let_in_those_that_are_vouched_for_and_name_them_in_the_log(
    start, authority, stranger
):
    broker = start({"tls.client_ca_file": str(authority.file), "tls.require_client_cert": True})
    done = broker.cli("pub", "t", "x")
    assert done.returncode == 77 and b"it asks for a client's certificate" in done.stderr
    assert "showed no certificate" in broker.wait_for("tls_failed")["error"]

    cert, key = stranger.sign("intruder")
    done = broker.cli("--cert", str(cert), "--cert-key", str(key), "pub", "t", "x")
    assert done.returncode == 77 and b"refused this client" in done.stderr
    until(lambda: any("vouches" in line["error"] for line in broker.lines("tls_failed")), "the cause is in the log")

    cert, key = authority.sign("sensor-12")
    done = broker.cli("pub", "t", "x", BLIPMQ_TLS_CERT=str(cert), BLIPMQ_TLS_KEY=str(key))
    assert done.returncode == 0, done.stderr
    assert broker.wait_for("tls", certificate="sensor-12")["version"] == "TLSv1.3"
    assert broker.info()["messages"]["published"] == 1
    broker.stop()


def test_client_certificates_that_are_not_required_are_still_checked(start, authority, stranger):
    broker = start({"tls.client_ca_file": str(authority.file)})
    assert broker.cli("pub", "t", "x").returncode == 0
    cert, key = stranger.sign("intruder-2")
    assert broker.cli("--cert", str(cert), "--cert-key", str(key), "pub", "t", "x").returncode == 77
    broker.stop()


# ---- certificates that change ----------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_shown_to_new_clients_and_old_ones_go_on(start, authority):
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


def test_a_broken_new_certificate_keeps_the_old_one_and_is_told_everywhere(start, authority):
    broker = start({"metrics.bind_addr": "127.0.0.1:0"})
    first = broker.serial_shown()
    cert, key = broker.cert.read_bytes(), broker.key.read_bytes()
    broker.cert.write_text("-----BEGIN CERTIFICATE-----\nhalf a")
    assert "its first certificate is damaged" in broker.wait_for("tls_certificate_refused")["error"]
    assert broker.serial_shown() == first
    info = broker.info()
    assert info["state"] == "degraded" and any("the old one is in use" in reason for reason in info["reasons"])
    url = "http://{}/metrics".format(broker.wait_for("metrics")["address"])
    assert "\nblipmq_tls_certificate_ok 0\n" in urllib.request.urlopen(url).read().decode()
    broker.cert.write_bytes(cert)
    broker.key.write_bytes(key)
    until(lambda: broker.info()["state"] == "ok", "the mended file is in use")
    assert "\nblipmq_tls_certificate_ok 1\n" in urllib.request.urlopen(url).read().decode()
    broker.stop()


def test_sighup_puts_other_files_into_effect_or_refuses_them(start, authority, tmp_path):
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


def test_the_key_is_in_no_log_no_info_and_no_process_list(start):
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


def test_check_finds_files_that_cannot_be_used_and_says_why(tmp_path, authority):
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
        # What is wrong with a file may be over in a second: a volume that comes later, a renewal under way.
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
        (78, {"server.tls_bind_addr": ""}, "nothing speaks TLS"),
        (78, {"tls.require_client_cert": True}, "tls.client_ca_file is empty"),
        (78, {"server.tls_bind_addr": "0.0.0.0:0"}, "can be reached from other machines"),
        (66, {"tls.client_ca_file": str(empty)}, "holds no certificate in PEM"),
    ):
        done = check(tmp_path, **right, **more)
        assert done.returncode == status and words in done.stderr, (more, done.stderr)


def test_check_warns_of_a_key_that_everyone_can_read_and_of_an_expired_certificate(tmp_path, authority):
    cert, key = authority.sign("careless", days=-1)
    key.chmod(0o644)
    done = check(tmp_path, **{"tls.cert_file": str(cert), "tls.key_file": str(key)})
    assert done.returncode == 0
    assert "everyone on this machine can read" in done.stdout and "has expired on" in done.stdout
