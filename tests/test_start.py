"""Modules loaded at a start: an unencrypted broker loads no unused module, and a configured one loads all it needs
before it is ready.

Not a time measurement: a module that is not imported costs no time on any machine. Each broker here is a process that
lists its loaded modules at its end.
"""

import signal
import subprocess
import sys

import pytest
from broker_process import BrokerProcess, environment
from certificates import Authority

from blipmq.cli import server as cli

WATCHED = """
import sys
before = set(sys.modules)
from blipmq.__main__ import main
status = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write("\\n".join(sorted(set(sys.modules) - before)))
sys.exit(status)
"""

# Modules of the package that `blipmq start` loads with its log and metrics before any client and any request over HTTP.
OURS = set(
    """__main__ auth auth.auth base base.affinity base.bind_address base.files base.hardware base.logs base.loop base.peer
    base.process base.stdio base.validation broker broker.broker broker.clock_sync broker.event_pump
    broker.message_ids broker.questions broker.status broker.timers broker.wal cli cli.server config
    config.core_settings config.embedded config.memory config.reader config.schema config.schema_reader
    config.settings errors native native.clock native.config native.core native.errors native.events native.wal net
    net.admission_log net.bind_retry net.listener ops ops.admin protocols protocols.blip protocols.clients service
    service.sd_notify service.server service.systemd sessions sessions.connections sessions.listing version""".split()
)
# Modules that it must not load, because the modules above do not need them: TLS, key hashes, settings files, command
# lines with more than one word, answers to requests, international names, archives, and modules that import many
# others.
UNUSED = set(
    """ssl _ssl uvloop hashlib _hashlib base64 json tomllib tomli argparse gettext shutil zlib bz2 lzma zipfile tarfile
    tempfile random datetime decimal uuid pathlib urllib.parse urllib.request http.client email html xml dataclasses
    encodings.idna stringprep unicodedata cffi msgspec prometheus_client importlib.metadata unittest ctypes multiprocessing
    blipmq._tls""".split()
)


def watched(place):
    return [sys.executable, "-c", WATCHED, str(place)]


def held(place):
    return set(place.read_text().split("\n"))


def ours(modules):
    return {name.removeprefix("blipmq.") for name in modules if name.startswith("blipmq.")} - {"_native", "_native.lib"}


@pytest.fixture
def modules_of_a_plain_broker(tmp_path):
    child = subprocess.Popen(
        [*watched(tmp_path / "modules"), "start"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(BLIPMQ_SERVER__BIND_ADDR="localhost:0", BLIPMQ_METRICS__BIND_ADDR="127.0.0.1:0"),
    )
    assert any(" info ready " in line for line in child.stderr), "it ended before it was ready"
    child.send_signal(signal.SIGTERM)
    rest = child.communicate()[1]
    assert child.returncode == 0, rest
    return held(tmp_path / "modules")


def test_a_broker_without_tls_loads_only_the_modules_it_uses(modules_of_a_plain_broker):
    assert ours(modules_of_a_plain_broker) == OURS
    assert modules_of_a_plain_broker & UNUSED == set()


def test_a_broker_with_tls_and_keys_loads_their_modules(tmp_path):
    cert, key = Authority(tmp_path).sign("broker")
    settings = {
        "server.tls_bind_addr": "127.0.0.1:0",
        "tls.cert_file": str(cert),
        "tls.key_file": str(key),
        "metrics.bind_addr": "",
        "auth.api_keys": ["a-key-that-nobody-will-guess"],
    }
    broker = BrokerProcess(tmp_path, settings, command=watched(tmp_path / "modules")).get_ready()
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0
    loaded = held(tmp_path / "modules")
    assert {"hashlib", "blipmq.auth.keys", "blipmq.net.tls", "blipmq._tls"} <= loaded
    assert not {"ssl", "_ssl", "uvloop"} & loaded, "only HTTPS for the metrics needs them"


def test_ssl_can_be_imported_after_asyncio_was_loaded_without_it():
    code = """
import sys
from blipmq.base.loop import load_asyncio, new_loop
load_asyncio(https=False)
assert "asyncio" in sys.modules and "ssl" not in sys.modules
import ssl
ssl.create_default_context()
loop = new_loop()
assert loop.run_until_complete(loop.run_in_executor(None, lambda: "ran")) == "ran"
loop.close()
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60)


def test_a_process_with_ssl_or_asyncio_loaded_is_not_changed():
    for first in "ssl", "asyncio":
        code = (
            f"import {first}; from blipmq.base.loop import load_asyncio; load_asyncio(https=False); "
            "from asyncio import sslproto; assert sslproto.ssl"
        )
        subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60)


def test_the_version_is_printed_without_parser_configuration_or_loop():
    code = "import sys; from blipmq.__main__ import main; main(['version']); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert ours(done.stdout.split()) == {"__main__", "base", "base.stdio", "cli", "cli.server", "errors", "version"}


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["start"], None),
        (["start", "--config", "a b.toml"], "a b.toml"),
        (["start", "--config", ""], ""),
        (["start", "--config=c.toml"], "c.toml"),
        (["start", "--conf", "d.toml"], "d.toml"),
    ],
)
def test_a_start_without_the_parser_equals_one_with_it(monkeypatch, words, path):
    started = []
    monkeypatch.setattr(cli, "_start", lambda path: started.append(path) or 0)
    assert cli.main(words) == 0
    arguments = cli._parser().parse_args(words)
    assert arguments.run(arguments) == 0
    assert started == [path, path]


@pytest.mark.parametrize("words", [["start", "--config"], ["start", "--config", "--help-me"], ["start", "now"]])
def test_an_invalid_command_line_is_explained_by_the_parser(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: blipmq" in capsys.readouterr().err
