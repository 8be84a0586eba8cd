"""A broker and its HTTP endpoint in a thread, and a client of that endpoint that is only a socket."""

import asyncio
import re
import socket
import threading
import zlib
from typing import NamedTuple

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import blipmq
from blipmq.ops.admin import Admin

TIMEOUT_S = 30
OPENMETRICS = "application/openmetrics-text"


class Response(NamedTuple):
    status: int
    fields: dict
    body: bytes


def exchange(address, request):
    """Send bytes and return everything received until the end."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
        connection.sendall(request)
        return read_all(connection)


def read_all(connection):
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def parse_response(raw):
    head, _, body = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("ascii").split("\r\n")
    version, status, _ = status_line.split(" ", 2)
    assert version == "HTTP/1.1"
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(fields) == len(lines)
    if fields.get("content-encoding") == "gzip":
        assert len(body) == int(fields["content-length"])
        body = zlib.decompress(body, wbits=31)
    return Response(int(status), fields, body)


def get(address, path, method="GET", **fields):
    """One request with the given header fields (`accept_encoding` is Accept-Encoding)."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return parse_response(exchange(address, ("\r\n".join(lines) + "\r\n\r\n").encode()))


def read_series(text, openmetrics=False):
    """The values of an exposition by `name` or `name{label="value",...}`; fails on any format violation."""
    (check_openmetrics if openmetrics else check_text)(text)
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    values = {key: float(value) for key, _, value in lines}
    assert len(values) == len(lines), "a series comes twice"
    # The text parser adds _total to the names of counters, so compare the values, and check that no two names became
    # one.
    samples = [s for family in (parse_openmetrics if openmetrics else parse_text)(text) for s in family.samples]
    assert sorted(s.value for s in samples) == sorted(values.values())
    assert len({(s.name, *sorted(s.labels.items())) for s in samples}) == len(samples)
    return values


NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{{LABEL}(?:,{LABEL})*\}})? -?[0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]+)?")


def check_text(text):
    """Rules of text 0.0.4 that its parser does not check: each metric once, in one group, HELP and TYPE before its
    samples."""
    seen, own, current, helped = set(), set(), "", ""
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert re.fullmatch(NAME, helped) and len(line.split(" ", 3)) == 4, line
        elif line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert current == helped and current not in seen and kind in ("counter", "gauge", "histogram"), line
            seen.add(current)
            own = {current} if kind != "histogram" else {current + end for end in ("_bucket", "_sum", "_count")}
        else:
            match = SAMPLE.fullmatch(line)
            assert match and match[1] in own, line


def check_openmetrics(text):
    """Rules that its strict parser does not check: each line is known metadata or a sample."""
    assert text.endswith("\n# EOF\n")
    for line in text.splitlines()[:-1]:
        assert re.match(r"# (TYPE|UNIT|HELP) ", line) or SAMPLE.fullmatch(line), line


class WatchedBroker:
    """Broker and endpoint, run by a loop in a separate thread. `broker` may be any substitute object."""

    def __init__(self, settings=None, broker=None, new_loop=asyncio.new_event_loop):
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        own = {"bind_addr": "127.0.0.1:0", **(settings or {}).get("server", {})}
        self.broker = broker or blipmq.Broker({**(settings or {}), "server": own})
        self.admin = Admin(self.broker, "127.0.0.1:0")
        self._own = broker is None
        self.run(self.admin.start())
        if self._own:
            self.run(self.broker.start())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._own:
            self.run(self.broker.stop(0))
        self.run(self.admin.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()

    def run(self, coroutine, seconds=TIMEOUT_S):
        return self.start(coroutine).result(seconds)

    def start(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function, *args):
        async def call():
            return function(*args)

        return self.run(call())

    @property
    def address(self):
        return self.broker.address

    def get(self, path, **fields):
        return get(self.admin.address, path, **fields)

    def scrape(self, openmetrics=False):
        response = self.get("/metrics", accept=OPENMETRICS if openmetrics else "text/plain")
        assert response.status == 200, response
        return read_series(response.body.decode(), openmetrics)
