"""Programs that people use with MQTT brokers, against a whole broker: mosquitto_pub, mosquitto_sub and MQTT.js.

Invariant: the programs are those of Debian and npm, unchanged. packaging/setup.sh and npm install them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_process import ROOT, BrokerProcess

from blipmq.auth.keys import add_key

SETTINGS = {"server.bind_addr": "", "mqtt.bind_addr": "127.0.0.1:0", "metrics.bind_addr": ""}
WAIT_S = 60
MQTT_JS = "mqtt@5.16.0"
LINES = 500
# A preloaded sanitizer is for the broker only.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    subprocess.run([ROOT / "packaging" / "setup.sh", "mosquitto-clients"], check=True, timeout=600)


@contextlib.contextmanager
def running(folder: Path, **settings: str) -> Iterator[list[str]]:
    """A broker; yields how to reach it as options of mosquitto's programs."""
    broker = BrokerProcess(folder, {**SETTINGS, **settings}).get_ready()
    host, _, port = broker.wait_for("ready")["mqtt"].rpartition(":")
    try:
        yield ["-h", host, "-p", port]
    finally:
        broker.signal(signal.SIGTERM)
        assert broker.wait() == 0


@contextlib.contextmanager
def subscribed(at: list[str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """mosquitto_sub after its SUBACK."""
    # With -d it says when it is subscribed, and its output is no longer kept back.
    command = ["stdbuf", "-oL", "mosquitto_sub", *at, "-d", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
    ) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("Subscribed (mid: ") for line in process.stdout)
            yield process
        finally:
            process.kill()


def run(
    command: list[str | Path], text: str | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=text, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def publish(at: list[str], *options: str, text: str | None = None) -> None:
    done = run(["mosquitto_pub", *at, *options], text)
    assert done.returncode == 0, done.stderr


def messages(process: subprocess.Popen[str]) -> list[str]:
    """The lines of messages until the program ends by itself."""
    output, _ = process.communicate(timeout=WAIT_S)
    return [line for line in output.splitlines() if not line.startswith(("Client ", "Subscribed "))]


@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
def test_mosquitto_pub_reaches_mosquitto_sub_in_order(tmp_path: Path, version: str) -> None:
    lines = [f"{number} {'x' * number}" for number in range(LINES)]
    with running(tmp_path) as at, subscribed(at, "-V", version, "-t", "site/+/temp", "-C", str(LINES)) as process:
        publish(at, "-V", version, "-t", "site/1/temp", "-l", text="\n".join(lines) + "\n")
        assert messages(process) == lines


def test_mosquitto_pub_waits_for_the_answer_to_qos_1(tmp_path: Path) -> None:
    with running(tmp_path) as at, subscribed(at, "-t", "a/#", "-C", "2", "-v") as process:
        for number in ("1", "2"):
            publish(at, "-t", f"a/{number}", "-q", "1", "-m", number)
        assert messages(process) == ["a/1 1", "a/2 2"]


def test_properties_of_mqtt_5_arrive(tmp_path: Path) -> None:
    with running(tmp_path) as at, subscribed(at, "-V", "mqttv5", "-t", "r", "-C", "1", "-F", "%p|%C|%R|%P") as process:
        publish(
            at, "-V", "mqttv5", "-t", "r", "-m", "hello", "-D", "publish", "content-type", "text/plain",
            "-D", "publish", "response-topic", "back", "-D", "publish", "user-property", "a", "1",
            "-D", "publish", "user-property", "b", "2",
        )  # fmt: skip
        assert messages(process) == ["hello|text/plain|back|a:1 b:2"]


def test_a_key_is_the_password(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    text = add_key(keys, "boiler", ["pub:site/1/#"])
    with running(tmp_path, **{"auth.keys_file": str(keys)}) as at:
        publish(at, "-u", "boiler", "-P", text, "-t", "site/1/a", "-q", "1", "-m", "x")
        for options in (["-u", "boiler", "-P", "wrong"], ["-u", "pump", "-P", text], []):
            refused = run(["mosquitto_pub", *at, *options, "-t", "site/1/a", "-m", "x"])
            assert refused.returncode == 5 and "not authorised" in refused.stderr


# ---- MQTT.js ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mqtt_js(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Node, and a folder in which MQTT.js is installed."""
    subprocess.run([ROOT / "packaging" / "setup.sh", "node", sys.prefix], check=True, timeout=600)
    node = Path(sys.prefix) / "lib" / "node" / "bin"
    folder = tmp_path_factory.mktemp("mqtt_js")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    environment = {**ENVIRONMENT, "PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        [node / "npm", "install", "--no-audit", "--no-fund", "--silent", MQTT_JS],
        cwd=folder,
        env=environment,
        check=True,
        timeout=600,
    )
    return node / "node", folder


PROGRAM = """
import mqtt from "mqtt";
const { url, options, count } = JSON.parse(process.argv[1]);
const client = await mqtt.connectAsync(url, options);
const got = [];
const all = new Promise((done) => client.on("message", (topic, payload) => {
    got.push([topic, payload.toString()]);
    if (got.length === count) done();
}));
await client.subscribeAsync("site/#");
for (let i = 0; i < count; i++) await client.publishAsync(`site/${i % 5}`, `${i}`, { qos: i % 2 });
await all;
await client.endAsync();
console.log(JSON.stringify(got));
"""


@pytest.mark.slow  # MQTT.js comes from npm
@pytest.mark.parametrize(
    "options",
    [
        {"protocolVersion": 4},
        {"protocolVersion": 5},
        {"protocolVersion": 5, "properties": {"topicAliasMaximum": 3}, "autoUseTopicAlias": True},
        {"protocolVersion": 5, "autoAssignTopicAlias": True},
    ],
    ids=["3.1.1", "5", "5, aliases that it repeats", "5, aliases that it assigns"],
)
def test_mqtt_js_gets_its_own_messages_back(
    tmp_path: Path, mqtt_js: tuple[Path, Path], options: dict[str, object]
) -> None:
    node, folder = mqtt_js
    count = 200
    with running(tmp_path) as at:
        given = {"url": f"mqtt://{at[1]}:{at[3]}", "options": {**options, "reconnectPeriod": 0}, "count": count}
        done = run([node, "--input-type=module", "--eval", PROGRAM, json.dumps(given)], folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[f"site/{number % 5}", str(number)] for number in range(count)]
