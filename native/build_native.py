"""Builds blipmq._native from every C file below native/ and the declarations of api/settings.h and api/bq.h (cffi, API mode).

Invariant: these two are the only description of the boundary. gcc and cffi read the same text, so a structure that
differs between the two sides cannot be built. Run through setup.py, from the root of the source tree;
`BLIPMQ_SANITIZE=1` builds with AddressSanitizer and UndefinedBehaviorSanitizer, which end the process at a finding.
"""

import os
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent


def compile_flags(sanitize: bool) -> list[str]:
    """Flags of this project, after the interpreter's own: the last one wins."""
    if sys.platform == "win32":
        return ["/O2", "/std:c17"]
    flags = [
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        # cffi's generated functions ignore the arguments CPython passes them.
        "-Wno-unused-parameter",
        "-fvisibility=hidden",
        # The rings hold structures in byte arrays, and a breach of the aliasing rules is a fault no sanitizer shows.
        "-fno-strict-aliasing",
        "-fstack-protector-strong",
        "-pthread",
        # Many interpreters are built with NDEBUG and pass it on; the core's assertions guard memory and stay.
        "-UNDEBUG",
        "-U_FORTIFY_SOURCE",
    ]
    if sanitize:
        return [
            *flags,
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-DBQ_CHECK",  # core_check.c
        ]
    return [*flags, "-O3", "-D_FORTIFY_SOURCE=2"]


def link_flags(sanitize: bool) -> list[str]:
    if sys.platform == "win32":
        return []
    flags = ["-pthread"]
    if sys.platform == "linux":
        # Relocations are read-only once loaded.
        flags += ["-Wl,-z,relro", "-Wl,-z,now"]
    if sanitize:
        flags.append("-fsanitize=address,undefined")
    return flags


def core_files(pattern: str) -> list[Path]:
    """Files of the core. The fuzz targets are programs of their own."""
    return [path for path in sorted(NATIVE.rglob(pattern)) if NATIVE / "fuzz" not in path.parents]


def relative(path: Path) -> str:
    """setuptools wants paths relative to the root of the project, with slashes."""
    return path.relative_to(ROOT).as_posix()


sanitize = os.environ.get("BLIPMQ_SANITIZE") == "1"
declared = [NATIVE / "api/settings.h", NATIVE / "api/bq.h"]  # in this order, as base/bytes.h includes them
sources = core_files("*.c")
inputs = [*core_files("*.h"), Path(__file__).resolve(), ROOT / "setup.py"]

ffibuilder = FFI()
ffibuilder.cdef("".join(path.read_text(encoding="utf-8") for path in declared))
ffibuilder.set_source(
    "blipmq._native",
    '#include "base/bytes.h"\n',
    sources=[relative(path) for path in sources],
    depends=[relative(path) for path in inputs],
    include_dirs=[relative(NATIVE)],
    extra_compile_args=compile_flags(sanitize),
    extra_link_args=link_flags(sanitize),
    py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),
)
