"""Transcripts of the two command lines against a broker in a separate process: the behaviour that scripts rely on."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import threading

import pytest
from broker_process import broker_command, cli_command, environment, parse_line, run_cli, start_cli, until
from hand_client import HelloClient, reply

from blipmq import connect_blocking

pytestmark = pytest.mark.blackbox

BINARY = bytes(range(256)) * 300


class Subscriber:
    """`blipmq-cli ... sub ...` in the background; `output()` waits for its end."""

    def __init__(self, broker, *arguments):
        self.process = start_cli(broker.address, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def output(self):
        out, err = self.process.communicate(timeout=60)
        assert (self.process.returncode, err) == (0, b"")
        return out


@pytest.fixture
def sub(broker):
    """Start `blipmq-cli ARGUMENTS` that subscribes; returns once the broker has its subscription."""
    running = []

    def start(*arguments):
        running.append(Subscriber(broker, *arguments))
        broker.wait_for_subscriptions(len(running))
        return running[-1]

    yield start
    for subscriber in running:
        if subscriber.process.poll() is None:
            subscriber.process.kill()
            subscriber.process.communicate()


def done(result, out=None):
    """The standard output of a successful command."""
    assert (result.returncode, result.stderr) == (0, b"")
    assert out is None or result.stdout == out
    return result.stdout


def failed(result, status):
    """The error message of a command that ended with this status and without standard output."""
    assert (result.returncode, result.stdout) == (status, b""), result
    text = result.stderr.decode()
    assert text.startswith("blipmq-cli: ") and len(text) > 40, text
    assert "Traceback" not in text
    return text


# ---- pub and sub -----------------------------------------------------------------------------------------------------


def test_a_message_goes_from_pub_to_sub(broker, sub):
    reader = sub("sub", "chat", "-n", "1")
    done(run_cli(broker.address, "pub", "chat", "Hello"), b"Sent 5 bytes to chat.\n")
    assert reader.output() == b"chat\tHello\n"


def test_short_names_are_the_same_commands(broker, sub):
    reader = sub("s", "chat", "-n", "1")
    done(run_cli(broker.address, "p", "chat", "Hello"))
    assert reader.output() == b"chat\tHello\n"
    assert done(run_cli(broker.address, "stats", "-f", "json"))


def test_quiet_prints_only_messages(broker, sub):
    reader = sub("-q", "sub", "chat", "--count", "2")
    done(run_cli(broker.address, "-q", "pub", "chat", "one"), b"")
    done(run_cli(broker.address, "pub", "-q", "chat", "two words"), b"")
    assert reader.output() == b"one\ntwo words\n"


def test_lines_of_standard_input_are_messages_in_order(broker, sub):
    reader = sub("sub", "-q", "log", "-n", "5")
    text = "first\n\n  third, indented\nvierte Zeile äöü\nno newline at the end".encode()
    done(run_cli(broker.address, "pub", "log", "-", stdin=text), b"Sent 5 messages to log.\n")
    assert reader.output() == text + b"\n"


def test_empty_standard_input_sends_nothing(broker):
    done(run_cli(broker.address, "pub", "log", "-"), b"Sent 0 messages to log.\n")


def test_a_file_is_sent_unchanged_as_one_message(broker, sub, tmp_path):
    (tmp_path / "image.bin").write_bytes(BINARY)
    reader = sub("sub", "-q", "files", "-n", "1")
    done(run_cli(broker.address, "pub", "files", "--file", str(tmp_path / "image.bin")))
    assert hashlib.sha256(reader.output()).digest() == hashlib.sha256(BINARY + b"\n").digest()


def test_json_is_one_object_a_line_with_all_message_fields(broker, sub):
    reader = sub("sub", "user.*", "--format", "json", "--count", "2")
    done(run_cli(broker.address, "pub", "user.1", 'He said "hi" äöü\t😀', "--ttl", "60000"))
    done(run_cli(broker.address, "pub", "user.2", "second"))
    first, second = [json.loads(line) for line in reader.output().splitlines()]
    assert 1_700_000_000_000 < first.pop("timestamp") <= second.pop("timestamp")
    assert second.pop("id") == first.pop("id") + 1
    assert first == {
        "topic": "user.1",
        "payload": 'He said "hi" äöü\t😀',
        "ttl_ms": 60000,
        "qos": 0,
        "redelivered": False,
        "sequence": 1,
    }
    assert (second["ttl_ms"], second["sequence"]) == (0, 2)


def test_json_encodes_invalid_utf_8_as_base64(broker, sub, tmp_path):
    (tmp_path / "raw").write_bytes(b"\xff\xfe\0")
    reader = sub("sub", "raw", "-f", "json", "-n", "1")
    done(run_cli(broker.address, "pub", "raw", "--file", str(tmp_path / "raw")))
    message = json.loads(reader.output())
    assert message["payload_base64"] == "//4A"
    assert "payload" not in message


def test_sub_ends_by_itself_only_after_its_count(broker, sub):
    reader = sub("sub", "-q", "t", "-n", "3")
    done(run_cli(broker.address, "pub", "t", "-", stdin=b"1\n2\n"))
    done(run_cli(broker.address, "pub", "t", "-", stdin=b"3\n4\n5\n"))
    assert reader.output() == b"1\n2\n3\n"


def test_a_message_that_looks_like_an_option_can_be_sent(broker, sub):
    reader = sub("sub", "-q", "t", "-n", "1")
    done(run_cli(broker.address, "pub", "t", "--", "--ttl"))
    assert reader.output() == b"--ttl\n"


def test_verbose_describes_each_step_on_standard_error(broker):
    result = run_cli(broker.address, "-v", "pub", "t", "x")
    assert result.returncode == 0
    assert result.stderr.decode() == f"Connected to {broker.address}.\n"


def test_the_address_can_be_given_before_and_after_the_command(broker):
    done(run_cli("", "--addr", broker.address, "pub", "t", "x"))
    done(run_cli("127.0.0.1:1", "pub", "t", "x", "--addr", broker.address))
    done(run_cli("", "pub", "t", "x", "--addr", "localhost:" + broker.address.rpartition(":")[2]))


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_has_a_readable_and_a_json_form(broker, sub):
    sub("sub", "site/+/temp")
    text = done(run_cli(broker.address, "info")).decode()
    assert text.startswith("BlipMQ ") and broker.address in text.splitlines()[0]
    assert "site/+/temp" in text
    assert not any(ord(c) > 0x2000 for c in text)
    info = json.loads(done(run_cli(broker.address, "info", "--format", "json")))
    assert (info["state"], info["subscriptions_total"]) == ("ok", 1)


# ---- terminal --------------------------------------------------------------------------------------------------------


def at_a_terminal(command, **variables):
    """Run a command with standard output on a pseudo-terminal; returns the screen text."""
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**variables))
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal closes with its last user
            while piece := screen.read(4096):
                seen += piece
        assert process.wait(60) == 0, seen
    return seen.decode()


def cli_at_a_terminal(broker, *arguments, **variables):
    return at_a_terminal([*cli_command(), *arguments], BLIPMQ_ADDR=broker.address, TERM="xterm", **variables)


def test_a_terminal_gets_emoji_and_no_color_gets_plain_text(broker):
    assert cli_at_a_terminal(broker, "pub", "chat", "Hello") == "📤 Sent 5 bytes to chat.\r\n"
    assert cli_at_a_terminal(broker, "pub", "chat", "Hello", NO_COLOR="1") == "Sent 5 bytes to chat.\r\n"
    assert cli_at_a_terminal(broker, "info").startswith("📊 BlipMQ ")


def test_published_control_characters_cannot_move_the_terminal_cursor(broker):
    ready = threading.Thread(target=publish_when_subscribed, args=(broker, b"\x1b[2J\x07bell"))
    ready.start()
    seen = cli_at_a_terminal(broker, "sub", "chat", "-n", "1")
    ready.join()
    assert seen == "📥 chat  \\x1b[2J\\x07bell\r\n"


def publish_when_subscribed(broker, payload):
    broker.wait_for_subscriptions(1)
    with HelloClient(broker.address) as client:
        client.publish("chat", payload)
        assert client.is_open()


def test_the_shell_reads_lines_from_a_pipe(broker):
    lines = b"sub chat\npub chat 60000 hello from the shell\nunsub chat\npub chat unheard\nexit\n"
    result = subprocess.run(
        [*broker_command(), "connect", broker.address], input=lines, capture_output=True, timeout=60, env=environment()
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"chat\thello from the shell\n" in result.stdout
    assert b"chat\tunheard\n" not in result.stdout


# ---- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broker", [{"wal.enabled": False}], indirect=True)
def test_status_1_when_the_broker_refuses(broker):
    assert "QoS 1 needs the WAL" in failed(run_cli(broker.address, "pub", "t", "x", "--qos", "1"), 1)
    assert "QoS 1 needs the WAL" in failed(run_cli(broker.address, "sub", "t", "--qos", "1"), 1)
    failed(run_cli(broker.address, "unsub", "never", "--client-id", "me"), 1)


@pytest.mark.parametrize("broker", [{"server.max_message_size_bytes": 1000}], indirect=True)
def test_status_1_when_a_message_is_too_large(broker, tmp_path):
    (tmp_path / "large").write_bytes(bytes(100_000))
    assert "max_message_size_bytes" in failed(run_cli(broker.address, "pub", "t", "--file", str(tmp_path / "large")), 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["publish", "t", "x"],
        ["pub", "t"],
        ["pub", "t", "x", "--ttl", "soon"],
        ["pub", "t", "x", "--qos", "2"],
        ["sub", "t", "--count", "x"],
        ["sub", "t", "--format", "xml"],
        ["pub", "logs.*", "x"],
        ["sub", "a.*/+"],
        ["sub", "t", "--durable"],
        ["pub", "t", "--file", "/nonexistent"],
        ["--addr", "localhost:port", "pub", "t", "x"],
        ["-q", "-v", "pub", "t", "x"],
    ],
    ids=" ".join,
)
def test_status_2_when_the_command_line_is_wrong_with_an_explanation(broker, arguments):
    result = run_cli(broker.address, *arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    assert len(result.stderr) > 40 and b"Traceback" not in result.stderr


def test_status_69_when_no_broker_answers():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    for arguments in (["pub", "t", "x"], ["sub", "t"], ["info"], ["unsub", "t", "--client-id", "me"]):
        assert address in failed(run_cli(address, *arguments), 69)


@pytest.mark.parametrize("code", [401, 403])
def test_status_77_when_the_broker_does_not_allow_it(code):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        refuser = threading.Thread(target=refuse_one, args=(listener, code))
        refuser.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert "unknown API key" in failed(run_cli(address, "pub", "t", "x"), 77)
        refuser.join()


def refuse_one(listener, code):
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(reply(1, code, "unknown API key"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def test_status_78_when_the_configuration_is_invalid(broker, tmp_path):
    assert "$BLIPMQ_ADDR" in failed(run_cli("localhost:port", "pub", "t", "x"), 78)
    missing = str(tmp_path / "missing")
    assert missing in failed(run_cli(broker.address, "--key-file", missing, "pub", "t", "x"), 78)
    (tmp_path / "bad.toml").write_text("[server]\nbind_adr = 'x'\n")
    result = subprocess.run(
        [*broker_command(), "start", "--config", str(tmp_path / "bad.toml")],
        capture_output=True,
        timeout=60,
        env=environment(),
    )
    assert result.returncode == 78
    assert b"bad.toml:2" in result.stderr and b"did you mean" in result.stderr


def test_a_closed_output_pipe_ends_sub_without_a_traceback(broker, sub):
    reader = sub("sub", "-q", "t")
    reader.process.stdout.close()
    with HelloClient(broker.address) as client:

        def ended():
            client.publish("t", b"is anyone there?")
            return client.is_open() and reader.process.poll() is not None

        until(ended, "sub notices")
    assert reader.process.stderr.read() == b""
    assert reader.process.returncode == 141
    reader.process.stderr.close()


# ---- the command of the broker ---------------------------------------------------------------------------------------


def blipmq(*arguments, **variables):
    return subprocess.run(
        [*broker_command(), *arguments], capture_output=True, timeout=60, env=environment(**variables)
    )


def test_blipmq_and_the_broker_print_their_version(broker):
    version = done(blipmq("version")).decode().strip()
    assert version.startswith("BlipMQ ")
    with HelloClient(broker.address) as client:
        assert client.greeting.message == version


def test_check_shows_the_origin_of_each_setting_and_starts_nothing(tmp_path):
    (tmp_path / "b.toml").write_text('[server]\nbind_addr = "127.0.0.1:0"\n[queues]\nsubscriber_capacity = 77\n')
    result = blipmq("check", "--config", str(tmp_path / "b.toml"), BLIPMQ_SERVER__MAX_CONNECTIONS="88")
    text = done(result).decode()
    assert "subscriber_capacity = 77" in text and "max_connections = 88" in text
    assert "BLIPMQ_SERVER__MAX_CONNECTIONS" in text
    assert os.listdir(tmp_path) == ["b.toml"]


def test_a_client_without_an_id_is_not_listed_by_info(broker, connect):
    for words in (("info",), ("sessions",), ("pub", "a", "x")):
        assert run_cli(broker.address, *words).returncode == 0
    connect(broker, hello=True, client_id="named").close()
    broker.wait_for("closed", client="named")
    events = [line["event"] for line in map(parse_line, broker.log) if line.get("level") == "info"]
    assert events[events.index("ready") + 1 :] == ["hello", "closed"]


def test_count_0_creates_a_durable_subscription(broker):
    mine = ("sub", "orders", "--qos", "1", "--durable", "--client-id", "till")
    assert done(run_cli(broker.address, *mine, "--count", "0"), b"") == b""
    done(run_cli(broker.address, "pub", "orders", "two coffees", "--qos", "1"))
    assert done(run_cli(broker.address, *mine, "--count", "1")) == b"orders\ttwo coffees\n"


def test_wait_ends_when_the_filter_has_a_subscriber(broker, connect):
    waiting = start_cli(broker.address, "wait", "logs.>", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    connect(broker, hello=True).subscribe("logs.*")  # another filter
    until(lambda: broker.info()["clients"] >= 3, "it waits")
    assert waiting.poll() is None
    connect(broker, hello=True).subscribe("logs.>")
    assert (*waiting.communicate(timeout=60), waiting.returncode) == (b"", b"", 0)


def test_wait_accepts_a_durable_subscription_of_an_absent_client(broker):
    done(run_cli(broker.address, "sub", "a", "--qos", "1", "--durable", "--client-id", "me", "--count", "0"))
    assert done(run_cli(broker.address, "wait", "a", "--seconds", "0"), b"") == b""


def test_wait_finds_a_subscription_behind_more_than_info_lists(broker, connect):
    with connect_blocking(broker.address, client_id="many") as client:
        for number in range(120):
            client.subscribe(f"late.{number}", qos=1, durable=True)
        client.abort()
    with connect_blocking(broker.address) as writer:
        for number in range(120):
            writer.publish(f"late.{number}", b"x", qos=1)
    done(run_cli(broker.address, "sub", "quiet", "--qos", "1", "--durable", "--client-id", "me", "--count", "0"))
    readers = [connect(broker, hello=True).subscribe("others") for _ in range(120)]
    connect(broker, hello=True).subscribe("last")
    info = broker.info()
    assert "quiet" not in [row["filter"] for row in info["sessions"]["list"]]
    assert "last" not in [filter_ for row in info["subscriptions"] for filter_ in row["filters"]]
    for filter_ in ("quiet", "last"):
        assert done(run_cli(broker.address, "wait", filter_, "--seconds", "0"), b"") == b""
    failed(run_cli(broker.address, "wait", "late", "--seconds", "0"), 1)  # a part of a filter is not the filter
    assert len(readers) == 120


def test_wait_ends_with_1_at_its_timeout(broker):
    text = failed(run_cli(broker.address, "wait", "a", "--seconds", "0"), 1)
    assert "No client has subscribed to a in 0 s." in text
