"""`blipmq health`, and the container that uses it."""

import importlib.util
import json
import re
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from broker_process import TIMEOUT_S, broker_command, environment, toml
from certificates import Authority

from blipmq.base.bind_address import split_address
from blipmq.config import memory
from blipmq.config.reader import load

ROOT = Path(__file__).resolve().parent.parent
OCI = ROOT / "packaging" / "oci"
KEY = "a-key-that-nobody-will-guess"
MIB = 1 << 20


def health(folder, settings, *options):
    """The result of the command for a broker with these settings: status, output, errors."""
    file = folder / "health.toml"
    file.write_text(toml(settings))
    command = [*broker_command(), "health", "--config", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=folder)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["plain", "tls", "clients' certificates"])
def test_the_health_check_needs_no_key(start_broker, tmp_path, kind):
    settings = {"auth.api_keys": [KEY], "metrics.bind_addr": "127.0.0.1:0"}
    if kind != "plain":
        authority = Authority(tmp_path)
        cert, cert_key = authority.sign("broker")
        settings |= {"metrics.tls": True, "tls.cert_file": str(cert), "tls.key_file": str(cert_key)}
    if kind == "clients' certificates":
        settings |= {"tls.client_ca_file": str(authority.file), "tls.require_client_cert": True}
    broker = start_broker(settings)
    settings["metrics.bind_addr"] = broker.wait_for("metrics")["address"]
    assert health(tmp_path, settings) == (0, "ok\n", "")
    assert health(tmp_path, settings, "--ready") == (0, "ok\n", "")
    broker.stop()
    status, out, err = health(tmp_path, settings)
    assert (status, out) == (69, "") and "No answer from " in err


def test_a_wildcard_metrics_address_is_checked_over_loopback(tmp_path, start_broker):
    broker = start_broker({"metrics.bind_addr": "127.0.0.1:0"})
    metrics = broker.wait_for("metrics")["address"]
    assert (
        health(tmp_path, {"metrics.bind_addr": metrics.replace("127.0.0.1", "0.0.0.0")})[0] == 0
    )  # one of all addresses


@pytest.mark.parametrize(
    ("bind_addr", "why"), [("", "metrics.bind_addr is empty"), ("127.0.0.1:0", "metrics.bind_addr has port 0")]
)
def test_a_disabled_endpoint_is_a_configuration_error(tmp_path, bind_addr, why):
    status, _, err = health(tmp_path, {"metrics.bind_addr": bind_addr})
    assert status == 78 and why in err


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (
            b"HTTP/1.1 503 Service Unavailable\r\n\r\nthe core is stuck\n",
            1,
            "The broker is not healthy: the core is stuck.",
        ),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1, "status 503"),
        (b"220 mail.example\r\n", 69, "Another program answers"),
        (b"", 69, "Another program answers"),
    ],
)
def test_an_unhealthy_broker_or_another_program_is_reported(tmp_path, answer, status, words):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def serve():
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        done = health(tmp_path, {"metrics.bind_addr": f"127.0.0.1:{port}"})
        server.join(TIMEOUT_S)
    assert done[0] == status and words in done[2]


# ---- the container


def image_config():
    spec = importlib.util.spec_from_file_location("image", OCI / "image.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONFIG


def test_the_container_health_check_is_the_same_everywhere_and_needs_no_key():
    wanted = ["CMD", "/usr/bin/blipmq", "health", "--config", "/etc/blipmq/blipmq.toml"]
    assert image_config()["Healthcheck"]["Test"] == wanted
    assert f"test: {json.dumps(wanted)}\n" in (OCI / "compose.yaml").read_text()
    assert f"CMD {json.dumps(wanted[1:])}\n" in (OCI / "Dockerfile").read_text()


def test_the_image_exposes_exactly_the_reachable_ports():
    config = load(OCI / "blipmq.toml", {}).config
    addresses = filter(None, (config.server.bind_addr, config.server.tls_bind_addr, config.metrics.bind_addr))
    listening = {port for host, port in map(split_address, addresses) if host == "0.0.0.0"}
    assert image_config()["ExposedPorts"].keys() == {f"{port}/tcp" for port in listening}
    exposed = re.search(r"^EXPOSE (.*)$", (OCI / "Dockerfile").read_text(), re.MULTILINE)
    assert set(map(int, exposed[1].split())) == listening


def test_the_memory_sum_of_the_image_fits_its_container():
    text = (OCI / "compose.yaml").read_text()
    limit, tmp = (int(re.search(pattern, text)[1]) * MIB for pattern in (r"mem_limit: (\d+)m\n", r"/tmp:size=(\d+)m,"))
    config = load(OCI / "blipmq.toml", {}).config
    assert (
        memory.worst_bytes(config) + tmp + memory.INTERPRETER_BYTES <= limit
    )  # the health check is a separate Python process
