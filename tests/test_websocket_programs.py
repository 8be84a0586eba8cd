"""Programs of others: a browser as a client of the broker, and nginx in front of it. packaging/setup.sh installs both.

Invariant: each program gets a home and a port of its own, and ends with the test.
"""

import asyncio
import contextlib
import http.server
import json
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from broker_process import until
from certificates import Authority

import blipmq
from blipmq.wire import frames as wire

SETUP = Path(__file__).resolve().parent.parent / "packaging" / "setup.sh"
TIMEOUT_S = 120
PAGE = """<!doctype html><script>
const bytes = (hex) => Uint8Array.from(hex.match(/../g).map((two) => parseInt(two, 16)));
const told = {protocol: null, received: [], close: null, error: false};
const tell = () => fetch("/told", {method: "POST", body: JSON.stringify(told)});
const socket = new WebSocket("URL", "blipmq");
socket.binaryType = "arraybuffer";
socket.onopen = () => {
    told.protocol = socket.protocol;
    for (const hex of FRAMES) socket.send(bytes(hex));
};
socket.onmessage = (event) => {
    told.received.push(Array.from(new Uint8Array(event.data), (byte) => byte.toString(16).padStart(2, "0")).join(""));
    if (told.received.join("").includes("ENDING")) socket.close(4000, "seen");
};
socket.onerror = () => { told.error = true; };
socket.onclose = (event) => { told.close = event.code; tell(); };
</script>"""


def program(name):
    subprocess.run([SETUP, name], check=True, timeout=600)


class Site(http.server.ThreadingHTTPServer):
    """Serves one page at http://127.0.0.1:PORT, and takes what it tells."""

    def __init__(self):
        self.page, self.told = "", []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.server.page.encode() if self.path == "/" else b""
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


@contextlib.contextmanager
def running(command, **options):
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def visit(site, url, tmp_path, frames=(), ending=b""):
    """Open the page in a browser and return what it tells."""
    program("browser")
    site.page = (
        PAGE.replace("URL", url)
        .replace("FRAMES", json.dumps([f.hex() for f in frames]))
        .replace("ENDING", ending.hex())
    )
    command = [
        "chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path / 'browser'}", site.origin + "/",
    ]  # fmt: skip
    before = len(site.told)
    with running(command, env={**os.environ, "HOME": str(tmp_path)}):
        until(lambda: len(site.told) > before, "the page tells how its WebSocket ended")
    return site.told[-1]


@pytest.mark.slow
def test_a_browser_publishes_and_subscribes(start_broker, tmp_path):
    with Site() as site:
        broker = start_broker({"server.ws_bind_addr": "127.0.0.1:0", "server.ws_origins": [site.origin]})
        address = broker.info()["websocket"]["address"]
        payloads = [bytes(range(256)), b"", b"x" * 70_000, b"the end"]
        frames = [
            wire.encode_command(wire.HELLO, client_id="browser", protocol=wire.PROTOCOL, seq=1),
            wire.encode_command(wire.SUB, "a", seq=2),
            *(wire.encode_command(wire.PUB, "a", payload) for payload in payloads),
        ]
        told = visit(site, f"ws://{address}/blipmq", tmp_path, frames, b"the end")
        assert (told["protocol"], told["close"], told["error"]) == ("blipmq", 4000, False)
        got = list(wire.FrameReader().feed(bytes.fromhex("".join(told["received"]))))
        assert [frame.code for frame in got if isinstance(frame, wire.Reply)] == [0]
        assert [frame.payload for frame in got if isinstance(frame, wire.Message)] == payloads


@pytest.mark.slow
def test_a_page_of_another_origin_cannot_connect_to_a_broker_without_keys(start_broker, tmp_path):
    with Site() as site:
        broker = start_broker({"server.ws_bind_addr": "127.0.0.1:0"})
        address = broker.info()["websocket"]["address"]
        told = visit(site, f"ws://{address}/blipmq", tmp_path)
        assert (told["protocol"], told["close"], told["error"]) == (None, 1006, True)
        assert broker.info()["websocket"]["refused"] == 1


# ---- nginx ----


def nginx_lines():
    """The location that docs/OPERATIONS.md shows."""
    page = (SETUP.parent.parent / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    lines = page.split("location /blipmq {")[1].split("\n}\n")[0]
    return "location /blipmq {" + lines + "\n}\n"


@pytest.mark.slow
def test_clients_reach_the_broker_through_nginx_as_the_page_shows(start_broker, tmp_path):
    program("nginx")
    broker = start_broker({"server.ws_bind_addr": "127.0.0.1:0"})
    address = broker.info()["websocket"]["address"]
    authority = Authority(tmp_path)
    cert, key = authority.sign("proxy")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid;\nerror_log stderr;\ndaemon off;\nmaster_process off;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f"{temporary}server {{\nlisten 127.0.0.1:{port} ssl;\nssl_certificate {cert};\nssl_certificate_key {key};\n"
        + nginx_lines().replace("127.0.0.1:7881", address)
        + "}\n}\n"
    )

    def listens():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True

    async def talk():
        where, payloads = f"wss://127.0.0.1:{port}/blipmq", [os.urandom(size) for size in (0, 100, 70_000, 1_000_000)]
        async with blipmq.connect(where, tls=str(authority.file)) as client, client.subscribe("a") as messages:
            for payload in payloads:
                await client.publish("a", payload)
                assert (await messages.next(timeout_s=30)).payload == payload

    environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"}
    with running(["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], env=environment):
        until(listens, "nginx listens")
        asyncio.run(asyncio.wait_for(talk(), TIMEOUT_S))
