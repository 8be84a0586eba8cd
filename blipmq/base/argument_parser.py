"""The parser of all command lines: argparse, but it prints help and errors through stdio.py.

Invariant: an output error is reported as in stdio.py, never as a traceback.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from blipmq.base.stdio import put_error, write_out


class ArgumentParser(argparse.ArgumentParser):
    """See the top of the file."""

    def _print_message(self, message: str, file: Any = None) -> None:
        data = (message or "").encode("utf-8", "backslashreplace")
        if file is sys.stdout:
            write_out(data)
        else:
            put_error(data)
