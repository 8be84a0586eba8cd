"""The state of the running broker, over its HTTP endpoint on loopback.

Invariant: bounded in time and size; raises nothing: a missing answer is a valid result.
"""

from __future__ import annotations

import json
import socket
import time
from typing import NamedTuple

from blipmq.base.bind_address import split_address
from blipmq.device.selftest import ANY

ANSWER_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 << 10


class Answer(NamedTuple):
    """`status`: "ok", "degraded", "failing" or "silent"; `reasons`: one sentence each; `version`: the broker's."""

    status: str
    reasons: tuple[str, ...] = ()
    version: str = ""


def ask(metrics_addr: str, bind_addr: str) -> Answer:
    """Ask for the broker's state. If its metrics are off, only test whether it accepts a connection."""
    if not metrics_addr:
        return _knock(bind_addr)
    try:
        body = _get(metrics_addr, "/healthz").partition(b"\r\n\r\n")[2]
        told = json.loads(body)
        return Answer(str(told["status"]), tuple(map(str, told["reasons"])), str(told["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Answer("silent", ("the broker does not answer; `systemctl status blipmq` shows the cause",))


def _knock(bind_addr: str) -> Answer:
    try:
        socket.create_connection(_place(bind_addr), ANSWER_SECONDS).close()
        return Answer("ok")
    except (OSError, ValueError):
        return Answer(
            "silent", ("the broker does not listen at its address; `systemctl status blipmq` shows the cause",)
        )


def _place(addr: str) -> tuple[str, int]:
    host, port = split_address(addr)
    return ANY.get(host, host), port


def _get(addr: str, path: str) -> bytes:
    deadline = time.monotonic() + ANSWER_SECONDS
    with socket.create_connection(_place(addr), ANSWER_SECONDS) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while len(answer) < ANSWER_BYTES_MAX:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = connection.recv(4096)
            if not piece:
                break
            answer += piece
        return answer
