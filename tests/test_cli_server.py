"""The `blipmq` command: check, version, and exit statuses of errors."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from blipmq.cli import server as cli
from blipmq.config import memory
from blipmq.config.settings import KEYS, Config
from blipmq.version import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Without any configuration of the machine or the developer."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("BLIPMQ_"):
            monkeypatch.delenv(name)


def run(capsys, *arguments):
    status = cli.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_version_names_the_version(capsys):
    assert run(capsys, "version") == (0, f"BlipMQ {__version__}\n", "")


def test_check_prints_every_setting_with_its_origin(capsys, monkeypatch, tmp_path):
    (tmp_path / "blipmq.toml").write_text("[delivery]\nmax_batch = 10\n")
    monkeypatch.setenv("BLIPMQ_LOGGING__LEVEL", "debug")
    status, out, _ = run(capsys, "check")
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "configuration: blipmq.toml"
    assert "max_batch = 10 blipmq.toml:2" in lines
    assert 'level = "debug" BLIPMQ_LOGGING__LEVEL' in lines
    assert 'bind_addr = "127.0.0.1:7878" default' in lines
    for path in KEYS:
        assert any(line.startswith(path.rpartition(".")[2] + " = ") for line in lines), path


def test_check_prints_the_memory_term_by_term(capsys):
    _, out, _ = run(capsys, "check")
    assert memory.table(Config()) in out


def test_check_reports_when_all_settings_are_defaults(capsys):
    assert run(capsys, "check")[1].startswith("configuration: built-in defaults\n")


def test_check_reads_the_given_file(capsys, monkeypatch, tmp_path):
    (tmp_path / "a.toml").write_text("[delivery]\nmax_batch = 1\n")
    (tmp_path / "b.toml").write_text("[delivery]\nmax_batch = 2\n")
    monkeypatch.setenv("BLIPMQ_CONFIG", "a.toml")
    assert "max_batch = 1" in run(capsys, "check")[1]
    assert "max_batch = 2" in run(capsys, "check", "--config", "b.toml")[1]


def test_check_has_no_side_effects(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "c.toml").write_text(f"[server]\nbind_addr = '127.0.0.1:{taken.getsockname()[1]}'\n")
        assert run(capsys, "check", "--config", "c.toml")[0] == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.toml"]


@pytest.mark.parametrize("command", ["check", "start"])
def test_a_wrong_configuration_is_status_78_with_all_problems_on_standard_error(capsys, tmp_path, command):
    (tmp_path / "bad.toml").write_text("[server]\nmax_connections = 0\nport = 7878\n")
    status, out, err = run(capsys, command, "--config", "bad.toml")
    assert (status, out) == (78, "")
    assert err.splitlines() == [
        "blipmq: 2 problems in the configuration:",
        "bad.toml:2: server.max_connections: 0 is not a whole number from 1 to 1000000 (connections)",
        "bad.toml:3: there is no setting server.port",
    ]


def test_a_missing_file_is_status_78(capsys):
    status, _, err = run(capsys, "check", "--config", "nowhere.toml")
    assert status == 78
    assert err.startswith("blipmq: nowhere.toml: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("arguments", [[], ["strat"], ["check", "--colour"], ["connect"]])
def test_a_wrong_command_line_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: blipmq" in capsys.readouterr().err


def test_check_loads_neither_the_event_loop_nor_the_core():
    code = (
        "import sys; from blipmq.cli.server import main; main(['check']); "
        "sys.exit(bool({'asyncio', 'blipmq.native', 'blipmq.broker.broker'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_truncated_output_is_not_an_error():
    command = f"{sys.executable} -m blipmq check | head -1"
    done = subprocess.run(
        command, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("configuration: built-in defaults\n", "")


def test_connect_without_a_broker_is_status_69(capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening, so no other program can take the port meanwhile
        status, _, err = run(capsys, "connect", f"127.0.0.1:{unused.getsockname()[1]}")
    assert status == 69
    assert "nothing listens there" in err
