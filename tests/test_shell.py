"""`blipmq connect`: transcripts of a person at a pseudo-terminal, and of a script with pipes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_broker
import pytest
from fake_broker import FakeBroker
from terminal import Terminal, environment

from blipmq.cli.line_editor import HISTORY_LINES_MAX, TOPICS_MAX, History, Vocabulary, history_path

SHELL = ["-c", "import sys; from blipmq.cli.shell import main; sys.exit(main(sys.argv[1:]))"]
PROMPT = "blipmq> "


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


def sit_down(broker: FakeBroker, **extra: str) -> Terminal:
    """A connected terminal at the first prompt."""
    terminal = Terminal([*SHELL, broker.address], extra)
    terminal.expect("Type help for the commands.")
    terminal.expect(PROMPT)
    return terminal


def script(address: str, text: str, **extra: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a shell that reads `text` from a pipe."""
    done = subprocess.run(
        [sys.executable, *SHELL, address],
        input=text.encode(),
        capture_output=True,
        timeout=30,
        check=False,
        env=environment(**extra),
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def deliver(broker: FakeBroker, topic: str, payload: bytes) -> None:
    broker.call(lambda: broker.publish(topic, payload))


# ---- interactive use -------------------------------------------------------------------------------------------------


def test_a_shell_transcript_matches_the_expected_text(broker: FakeBroker) -> None:
    with Terminal([*SHELL, broker.address]) as terminal:
        assert terminal.expect(PROMPT).endswith(
            f"✅ Connected to {broker.address}. Type help for the commands.\r\n{PROMPT}"
        )
        terminal.type("help\n")
        for verb in ("pub TOPIC [TTL] TEXT", "sub TOPIC", "unsub TOPIC", "help", "exit"):
            terminal.expect(verb)
        terminal.expect(PROMPT)
        terminal.type("sub site/+/temp\n")
        terminal.expect("✅ Subscribed to site/+/temp.\r\n")
        terminal.expect(PROMPT)
        terminal.type("pub site/1/temp 5000 21.5 degrees  C\n")
        terminal.expect("📤 Sent 15 bytes to site/1/temp, expires in 5,000 ms.\r\n")
        terminal.expect("📥 site/1/temp  21.5 degrees  C\r\n")
        terminal.expect(PROMPT)
        terminal.type("unsub site/+/temp\n")
        terminal.expect("✅ Unsubscribed from site/+/temp.\r\n")
        terminal.expect(PROMPT)
        terminal.type("exit\n")
        assert terminal.end() == 0
    assert broker.wait_for("PUB")[0]["ttl_ms"] == 5000
    assert broker.wait_for("QUIT")


def test_a_message_is_printed_above_the_edited_line(broker: FakeBroker) -> None:
    with sit_down(broker) as terminal:
        terminal.type("sub a\n")
        terminal.expect("Subscribed to a.")
        terminal.expect(PROMPT)
        terminal.type("pub b half a")
        terminal.expect("half a")
        deliver(broker, "a", b"news \x1b[2J")
        terminal.expect("\r\x1b[K📥 a  news \\x1b[2J\r\n" + PROMPT + "pub b half a")
        terminal.type(" line\n")
        terminal.expect("📤 Sent 11 bytes to b.")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    assert broker.wait_for("PUB")[0]["payload"] == b"half a line"


def test_the_arrow_key_recalls_the_last_line(broker: FakeBroker) -> None:
    with sit_down(broker) as terminal:
        terminal.type("pub a first\n")
        terminal.expect("Sent 5 bytes")
        terminal.expect(PROMPT)
        terminal.type("\x1b[A\n")
        terminal.expect("Sent 5 bytes")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    assert [command["payload"] for command in broker.wait_for("PUB", 2)] == [b"first", b"first"]


def test_ctrl_c_gives_a_new_prompt_and_ctrl_d_exits(broker: FakeBroker) -> None:
    with sit_down(broker) as terminal:
        terminal.type("pub a never")
        terminal.expect("never")
        terminal.interrupt_until("\n" + PROMPT)
        terminal.type("pub a yes\n")
        terminal.expect("Sent 3 bytes")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    assert [command["payload"] for command in broker.wait_for("PUB")] == [b"yes"]


def test_errors_are_explained_and_the_shell_continues(broker: FakeBroker) -> None:
    with sit_down(broker) as terminal:
        for line, words in (
            ("nonsense", "❌ There is no command 'nonsense'. Type help"),
            ("pub", "❌ Usage: pub TOPIC [TTL] TEXT"),
            ("pub a.* x", "❌ The topic 'a.*' holds '*'"),
            ("sub", "❌ Usage: sub TOPIC"),
            ("unsub b", "❌ b is not subscribed. Subscribed: nothing."),
        ):
            terminal.type(line + "\n")
            terminal.expect(words)
            terminal.expect(PROMPT)
        broker.refusals["PUB"] = (403, "read only key")
        terminal.type("pub a x\n")
        terminal.expect("❌ A publish was refused (403): read only key.")
        terminal.expect(PROMPT)
        terminal.type("exit\n")
        assert terminal.end() == 0


def test_the_shell_survives_a_restart_of_the_broker_with_a_notice(broker: FakeBroker) -> None:
    with sit_down(broker) as terminal:
        terminal.type("sub a\n")
        terminal.expect("Subscribed to a.")
        broker.stop()
        terminal.expect("❌ The connection to")
        terminal.expect("Reconnecting…")
        broker.commands.clear()
        broker.start()
        terminal.expect("✅ Connected again.")
        broker.wait_for("SUB")
        deliver(broker, "a", b"after")
        terminal.expect("📥 a  after")
        terminal.type("exit\n")
        assert terminal.end() == 0


def test_a_takeover_or_revoked_key_ends_the_shell_with_the_reason(broker: FakeBroker) -> None:
    with sit_down(broker) as terminal:
        broker.refusals["HELLO"] = (401, "this key was revoked")
        broker.kick()
        terminal.expect("Reconnecting…")
        terminal.expect("this key was revoked")
        assert terminal.end() == 77


def test_no_color_gives_plain_text(broker: FakeBroker) -> None:
    with Terminal([*SHELL, broker.address], {"NO_COLOR": "1"}) as terminal:
        assert "✅" not in terminal.expect(PROMPT)
        terminal.type("pub a x\n")
        assert "📤" not in terminal.expect("Sent 1 byte to a.")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0


# ---- history and completion ------------------------------------------------------------------------------------------


def test_history_of_earlier_sessions_is_restored_and_private(broker: FakeBroker, tmp_path: Path) -> None:
    with sit_down(broker, XDG_STATE_HOME=str(tmp_path)) as terminal:
        for line in ("pub a first", " pub a secret"):
            terminal.type(line + "\n")
            terminal.expect("Sent")
            terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    kept = tmp_path / "blipmq" / "history"
    assert kept.read_text() == "pub a first\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in kept.parent.iterdir()] == ["history"]
    with sit_down(broker, XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.type("\x1b[A\n")
        terminal.expect("Sent 5 bytes")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    assert [command["payload"] for command in broker.wait_for("PUB", 3)] == [b"first", b"secret", b"first"]


def test_the_shell_works_without_a_history_file(broker: FakeBroker) -> None:
    with sit_down(broker, XDG_STATE_HOME="/dev/null/nowhere") as terminal:
        terminal.type("pub a x\n")
        terminal.expect("Sent 1 byte to a.")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_the_tab_key_completes_commands_and_known_topics(broker: FakeBroker) -> None:
    with sit_down(broker) as terminal:
        terminal.type("su\tsite/+/temp\n")
        terminal.expect("✅ Subscribed to site/+/temp.")
        terminal.expect(PROMPT)
        deliver(broker, "site/kitchen/temp", b"21")
        terminal.expect("📥 site/kitchen/temp  21")
        terminal.type("pu\tsite/k\t21.5\n")
        terminal.expect("📤 Sent 4 bytes to site/kitchen/temp.")
        terminal.expect(PROMPT)
        terminal.type("uns\t\t\n")
        terminal.expect("✅ Unsubscribed from site/+/temp.")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_tab_completion_depends_on_the_preceding_words() -> None:
    words = Vocabulary(("pub", "sub", "unsub"))
    for topic in ("b.one", "a.two", "a two", "a.\x1b"):
        words.saw_topic(topic)
    words.subscribed(["a.*"])
    assert words.completions("", "") == ["pub ", "sub ", "unsub "]
    assert words.completions("pub ", "a") == ["a.two "]
    assert words.completions("sub ", "") == ["a.* ", "a.two ", "b.one "]
    assert words.completions("unsub ", "") == ["a.* "]
    assert words.completions("pub a.two ", "") == words.completions("help ", "") == []
    for number in range(2000):
        words.saw_topic(f"t{number}")
    assert len(words.completions("pub ", "")) == TOPICS_MAX


def test_the_history_is_bounded_and_keeps_lines_of_two_sessions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history"
    one, two = History(path), History(path)
    for number in range(HISTORY_LINES_MAX + 5):
        one.add(f"one {number}")
    for line in ("two", "two", " hidden", "", "x" * 5000, "\x1b[2J"):
        two.add(line)
    one.save()
    two.save()
    two.save()
    lines = History(path).load()
    assert len(lines) == HISTORY_LINES_MAX
    assert lines[-2:] == [f"one {HISTORY_LINES_MAX + 4}", "two"]
    path.write_bytes(b"\xff\x00\n" + b"long " * 400_000 + b"\nok\n")
    assert History(path).load()[-1] == "ok"


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"XDG_STATE_HOME": "/var/state", "HOME": "/srv"}, "/var/state/blipmq/history"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/srv"}, "/srv/.local/state/blipmq/history"),
        ({"HOME": "/"}, "/.local/state/blipmq/history"),
        ({}, None),
    ],
)
def test_the_history_path_follows_the_xdg_specification(variables: dict[str, str], path: str | None) -> None:
    assert history_path(variables) == (None if path is None else Path(path))


# ---- scripts ---------------------------------------------------------------------------------------------------------


def test_a_script_gets_plain_lines_and_its_own_messages(broker: FakeBroker) -> None:
    text = "sub a.*\npub a.b hello world\npub a.b 500 short\npub a.b 500\nunsub a.*\nexit\npub a.b never\n"
    status, out, err = script(broker.address, text)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if "\t" in line] == ["a.b\thello world", "a.b\tshort", "a.b\t500"]
    assert lines[0] == "Subscribed to a.*."
    assert lines[-1] == "Unsubscribed from a.*."
    assert PROMPT not in out


def test_the_end_of_the_input_ends_the_shell_after_the_last_line_without_newline(broker: FakeBroker) -> None:
    assert script(broker.address, "pub a last") == (0, "Sent 4 bytes to a.\n", "")
    assert script(broker.address, "\n  \n") == (0, "", "")


def test_a_failed_script_ends_with_its_status_and_an_error_message(broker: FakeBroker) -> None:
    status, out, err = script(broker.address, "nonsense\npub a x\n")
    assert (status, out) == (2, "Sent 1 byte to a.\n")
    assert err.startswith("blipmq connect: There is no command 'nonsense'.")
    broker.refusals["SUB"] = (403, "no right to read")
    assert script(broker.address, "sub a\n")[0] == 77


def test_no_broker_at_the_address_is_reported_with_status_69() -> None:
    status, out, err = script(f"127.0.0.1:{fake_broker.free_port()}", "")
    assert (status, out) == (69, "")
    assert "nothing listens there. Start the broker" in err
    assert script("http://x", "")[0] == 2


def test_the_key_comes_from_the_environment() -> None:
    with FakeBroker(api_key="s3cret") as broker:
        assert script(broker.address, "exit\n", BLIPMQ_API_KEY="s3cret")[0] == 0
        status, _, err = script(broker.address, "exit\n", BLIPMQ_API_KEY="wrong")
        assert (status, "unknown API key" in err) == (77, True)
