"""The parser of all command lines: argparse, whose help and errors go out as everything else that a program says.

Invariant: what cannot be written is told as streams.py has it, never as a traceback of argparse or of the interpreter's end.
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
