"""The clients' lines in the program's own log: the logger `blipmq.client` of the standard library's `logging`.

Invariant: a program that has not loaded `logging` does not load it by this module, because the command line must start
fast. Without a handler of the program nothing is printed.
"""

from __future__ import annotations

import sys

NAME = "blipmq.client"


def write(level: str, text: str, *values: object) -> None:
    """Write a line with this level, such as "WARNING". `text` has a %s for each of the values."""
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger(NAME)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.log(getattr(logging, level), text, *values)


def write_state(address: object, before: str, state: str, error: Exception | None) -> None:
    """Write a change of a connection's state: an outage is a warning once, and its unsuccessful attempts are not."""
    if state == "connected":
        write("INFO", "connected to %s", address)
    elif state == "disconnected":
        write("WARNING" if before == "connected" else "INFO", "disconnected from %s: %s", address, error)
    elif state == "closed" and error is not None:
        write("ERROR", "closed for good, %s: %s", address, error)
    else:
        write("DEBUG", "%s, %s", state, address)
