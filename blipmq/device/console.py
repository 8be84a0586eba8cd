"""A few lines on every console of the device: its name, address and state. The consoles have no login.

Invariant: written only when they change, and without waiting: a blocked serial line loses them.
"""

from __future__ import annotations

import contextlib
import os

from blipmq.device.atomic_write import write_file
from blipmq.device.paths import Paths
from blipmq.device.report import Report

PROBLEMS_SHOWN_MAX = 5
HOW_TO = (
    "To configure: switch off, put the card into a computer, edit device.toml, and switch on again.",
    "blipmq-status.txt in the same folder shows the result.",
)


def banner(report: Report) -> str:
    """The lines for a console."""
    facts = dict(report.facts)
    lines = [facts["Version"], "", f"  state    {report.state}"]
    lines += [
        f"  {label:<8} {facts[name]}"
        for label, name in (("name", "Name"), ("address", "Address"), ("broker", "Broker"))
    ]
    lines += [f"  - {sentence}" for sentence in (*report.problems, *report.notes)[:PROBLEMS_SHOWN_MAX]]
    return "\n".join([*lines, "", *HOW_TO]) + "\n"


def show(paths: Paths, report: Report) -> bool:
    """Write the banner to all consoles if it has changed. Returns True if it has. Raises OSError."""
    text = banner(report)
    if not write_file(paths.banner, text):
        return False
    for name in paths.text("sys/class/tty/console/active").split():
        with contextlib.suppress(OSError):
            _put(paths.root / "dev" / ("tty1" if name == "tty0" else name), text)
    return True


def _put(path: os.PathLike[str], text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        os.write(handle, ("\n" + text).replace("\n", "\r\n").encode("ascii", "replace"))
    finally:
        os.close(handle)
