"""`blipmq health`: check over the metrics port that the broker of a configuration is alive.

Invariant: no key is needed, nothing is written, and it ends within TIMEOUT_SECONDS after connecting. For health checks
of containers, which have neither a shell nor curl.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from blipmq.base.bind_address import split_address
from blipmq.base.peer import host_port
from blipmq.base.stdio import print_out
from blipmq.config.settings import Config
from blipmq.errors import BlipMQError, ConfigError, Unreachable

TIMEOUT_SECONDS = 4.0  # container engines wait for five seconds
ANSWER_BYTES_MAX = 64 * 1024
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class NotWell(BlipMQError):
    """The broker answers that it is not healthy."""


def run(config: Config, ready: bool) -> int:
    """Print the broker's answer. Raises `NotWell`, `Unreachable` or `ConfigError`."""
    host, port = _address(config.metrics.bind_addr)
    status, text = _get(config, host, port, "/readyz" if ready else "/livez")
    if status != 200:
        raise NotWell(f"The broker is not healthy: {text or f'status {status}'}.")
    print_out(text)
    return 0


def _address(bind_addr: str) -> tuple[str, int]:
    if not bind_addr:
        raise ConfigError(
            "metrics.bind_addr is empty, but the health check needs it. Set an address, such as 127.0.0.1:9090."
        )
    host, port = split_address(bind_addr)
    if not port:
        raise ConfigError("metrics.bind_addr has port 0, so the health check does not know the port. Set a fixed port.")
    return ANY.get(host, host), port


def _get(config: Config, host: str, port: int, path: str) -> tuple[int, str]:
    where = host_port(host, port)
    request = f"GET {path} HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode()
    answer = b""
    try:
        with _connected(config, host, port) as connection:
            end = time.monotonic() + TIMEOUT_SECONDS
            connection.sendall(request)
            while len(answer) < ANSWER_BYTES_MAX and (piece := connection.recv(ANSWER_BYTES_MAX)):
                answer += piece
                connection.settimeout(max(end - time.monotonic(), 0.001))
    except OSError as error:
        raise Unreachable(
            f"No answer from {where} (metrics.bind_addr): {error.strerror or error}. "
            "Check that the broker runs with this configuration."
        ) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 3 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise Unreachable(f"Another program answers at {where} (metrics.bind_addr). Check the address and the port.")
    return int(words[1]), " ".join(body.decode("utf-8", "replace").split())


@contextlib.contextmanager
def _connected(config: Config, host: str, port: int) -> Iterator[socket.socket]:
    with socket.create_connection((host, port), TIMEOUT_SECONDS) as plain:
        if not config.metrics.tls:
            yield plain
            return
        import ssl

        # The connection stays on this machine and carries no secret, so the broker's certificate is not checked. If
        # clients need a certificate, the broker's own is presented; `tls.client_ca_file` may or may not accept it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if config.tls.require_client_cert:
            context.load_cert_chain(config.tls.cert_file, config.tls.key_file)
        with context.wrap_socket(plain, server_hostname=host) as secure:
            yield secure
