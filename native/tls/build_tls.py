"""Builds blipmq._tls from native/tls/ and the declarations of net/secure_ops.h and tls/tls.h (cffi, API mode).

It is the only module that is linked with OpenSSL (3.0 or newer). If `BLIPMQ_OPENSSL` names a folder with `include` and `lib`, the
static libraries there become part of the module, and their symbols stay inside it; else the module uses the system's library.
setup.py runs this file from the root of the source tree.
"""

import os
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

TLS = Path(__file__).resolve().parent
NATIVE = TLS.parent
ROOT = NATIVE.parent
sys.path.insert(0, str(ROOT))

from native.build_native import compile_flags, link_flags, relative  # noqa: E402


def declarations(path: Path) -> str:
    """A header without the lines of the preprocessor, which cffi does not read: its guard and its includes."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def library(folder: str) -> dict[str, list[str]]:
    """How to find OpenSSL: in `folder`, or in the system if that is empty."""
    if not folder:
        return {"libraries": ["ssl", "crypto"]}
    place = Path(folder)
    return {
        "include_dirs": [str(place / "include")],
        "extra_objects": [str(place / "lib" / name) for name in ("libssl.a", "libcrypto.a")],
        "extra_compile_args": ["-ffunction-sections", "-fdata-sections"],
        "extra_link_args": ["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-Wl,--strip-all"],
    }


sanitize = os.environ.get("BLIPMQ_SANITIZE") == "1"
declared = [NATIVE / "net/secure_ops.h", TLS / "tls.h"]
sources = sorted(TLS.glob("*.c"))
inputs = [*declared, *sorted(TLS.glob("*.h")), Path(__file__).resolve(), NATIVE / "build_native.py", ROOT / "setup.py"]
found = library(os.environ.get("BLIPMQ_OPENSSL", ""))

ffibuilder = FFI()
ffibuilder.cdef("".join(map(declarations, declared)))
ffibuilder.set_source(
    "blipmq._tls",
    '#include "tls/tls.h"\n',
    sources=[relative(path) for path in sources],
    depends=[relative(path) for path in inputs],
    include_dirs=[relative(NATIVE), *found.pop("include_dirs", [])],
    extra_compile_args=[*compile_flags(sanitize), *found.pop("extra_compile_args", [])],
    extra_link_args=[*link_flags(sanitize), *found.pop("extra_link_args", [])],
    py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),
    **found,
)
