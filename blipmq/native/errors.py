"""Failed calls into the core.

Invariant: every negative code that C returns becomes one of these errors, or one of the WAL's (`log.py`).
"""

from __future__ import annotations

import os

from blipmq._native import ffi, lib
from blipmq.errors import BlipMQError


class CoreError(BlipMQError):
    """A call into the core failed. `code` is the negative BQ_E code."""

    def __init__(self, code: int, what: str, detail: str = "") -> None:
        text = _ERROR_TEXTS.get(code, f"error {code}")
        super().__init__(f"{what}: {text}" + (f" ({detail})" if detail else ""), code=code)


class CoreBusy(CoreError):
    """The command ring and the bounded backlog behind it are full. Try again once the core has caught up."""


_ERROR_TEXTS: dict[int, str] = {
    lib.BQ_E_AGAIN: "the core is busy and too many commands wait already; try again later",
    lib.BQ_E_MEMORY: "out of memory",
    lib.BQ_E_ARGUMENT: "a value is outside what the core allows",
    lib.BQ_E_SYSTEM: "a system call failed",
    lib.BQ_E_TOO_LARGE: "larger than the core accepts",
}


def check(code: int, what: str) -> int:
    """Return `code`; if it is negative, raise `CoreError` with `what` and the cause."""
    if code >= 0:
        return code
    detail = os.strerror(ffi.errno) if code == lib.BQ_E_SYSTEM else ""
    raise CoreError(code, what, detail)
