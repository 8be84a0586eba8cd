"""Files of native/ as a shared object that tests call, and the declarations of their headers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cffi import FFI

NATIVE = Path(__file__).resolve().parent.parent / "native"
CC = os.environ.get("CC", "cc").split()
_FLAGS = ["-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-shared", "-fPIC"]


def load(directory: Path, sources: Iterable[Path], declarations: str, *flags: str) -> tuple[FFI, Any]:
    """Compile `sources` in `directory` and load them: cffi's view of `declarations`, and the library."""
    shared = directory / "library.so"
    subprocess.run([*CC, *_FLAGS, *flags, *map(str, sources), "-o", str(shared)], check=True)
    ffi = FFI()
    ffi.cdef(declarations)
    return ffi, ffi.dlopen(str(shared))


def declarations(*headers: Path) -> str:
    """The headers without comments and preprocessor lines."""
    text = "".join(path.read_text(encoding="utf-8") for path in headers)
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"^#(?:.*\\\n)*.*\n", "", text, flags=re.MULTILINE)
