"""The launcher of the one-file download, compiled with a zstd stub that only copies: the environment of the unpacked
program.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = ROOT / "packaging" / "launcher" / "launcher.c"
MAGIC = b"BLIPMQ\x1a\x01"

STORED = """
#include <stddef.h>
#include <string.h>
typedef int ZSTD_DStream;
typedef struct { const void *src; size_t size, pos; } ZSTD_inBuffer;
typedef struct { void *dst; size_t size, pos; } ZSTD_outBuffer;
static ZSTD_DStream stored;
static ZSTD_DStream *ZSTD_createDStream(void) { return &stored; }
static size_t ZSTD_DStreamInSize(void) { return 4096; }
static unsigned ZSTD_isError(size_t code) { return code != 0; }
static const char *ZSTD_getErrorName(size_t code) { return code ? "bad" : ""; }
static size_t ZSTD_decompressStream(ZSTD_DStream *stream, ZSTD_outBuffer *out, ZSTD_inBuffer *in) {
    size_t room = out->size - out->pos, left = in->size - in->pos, bytes = room < left ? room : left;
    (void)stream;
    memcpy((char *)out->dst + out->pos, (const char *)in->src + in->pos, bytes);
    out->pos += bytes;
    in->pos += bytes;
    return 0;
}
"""

# Prints the state of its descriptors 0 to 9: c (closed), d (a folder) or o (another).
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
int main(void) {
    char what[11] = {0};
    struct stat st;
    for (int fd = 0; fd < 10; fd++) what[fd] = fstat(fd, &st) < 0 ? 'c' : S_ISDIR(st.st_mode) ? 'd' : 'o';
    FILE *file = fopen(getenv("TOLD"), "w");
    if (!file) return 1;
    fputs(what, file);
    return fclose(file) != 0;
}
"""


def compiled(folder: Path, name: str, source: Path) -> bytes:
    compiler = shutil.which("gcc") or "cc"
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{folder}", "-o", str(folder / name)]
    subprocess.run([*command, str(source)], check=True, timeout=120)
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher with one program behind it, as packaging/launcher/pack.py builds it."""
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "zstd.h").write_text(STORED, "utf-8")
    (folder / "program.c").write_text(PROGRAM, "utf-8")
    program = compiled(folder, "program", folder / "program.c")
    frame = struct.pack("<IIQ", 0o100700, len(b"blipmq"), len(program)) + b"blipmq" + program
    whole = compiled(folder, "launcher", LAUNCHER) + frame + MAGIC + struct.pack("<QQ", len(frame), len(program))
    path = folder / "blipmq"
    path.write_bytes(whole)
    path.chmod(0o700)
    return path


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_descriptor_stays_closed_in_the_program(download: Path, tmp_path: Path, closed: str) -> None:
    told = tmp_path / "told"
    subprocess.run(
        ["sh", "-c", f'exec "$0" {closed}', str(download)],
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TOLD": str(told), "TMPDIR": str(tmp_path)},
    )
    what = told.read_text("utf-8")
    expected = "".join("c" if sign in closed.split() else "o" for sign in ("<&-", ">&-", "2>&-"))
    assert what[:3] == expected, "no file of the launcher's takes the place of a standard one"
    assert what[3:].count("d") == 1, "the folder stays open, and locked, as long as the program runs"
