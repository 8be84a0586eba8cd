"""Makes the one-file download: `pack.py archive FOLDER OUT`, then `pack.py join LAUNCHER ARCHIVE COMPRESSED OUT`.

The top of launcher.c shows the layout. Invariant: the same folder gives the same bytes: names are sorted; times, owners and
all mode bits except the executable bit are left out.
"""

import os
import stat
import struct
import sys
from pathlib import Path

MAGIC = b"BLIPMQ\x1a\x01"
BLOCK_BYTES = 4096


def entry(path: Path, name: str) -> bytes:
    """The header of one file or folder, its name, and the data of a file."""
    encoded = name.encode()
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return struct.pack("<IIQ", stat.S_IFDIR | 0o700, len(encoded), 0) + encoded
    if not stat.S_ISREG(status.st_mode):
        sys.exit(f"pack: {path} is neither a file nor a folder; the launcher cannot unpack it")
    data = path.read_bytes()
    mode = stat.S_IFREG | (0o700 if status.st_mode & 0o100 else 0o600)
    return struct.pack("<IIQ", mode, len(encoded), len(data)) + encoded + data


def archive(folder: Path, out: Path) -> None:
    with out.open("wb") as file:
        # Sorted by parts, so that a folder comes before its contents.
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
            file.write(entry(path, path.relative_to(folder).as_posix()))


def unpacked_bytes(archive: Path) -> int:
    """Bytes that the archive takes on disk, in whole blocks: at most one more block for each entry."""
    data = archive.read_bytes()
    position = total = 0
    while position < len(data):
        _, name_bytes, size = struct.unpack_from("<IIQ", data, position)
        position += 16 + name_bytes + size
        total += (size // BLOCK_BYTES + 1) * BLOCK_BYTES
    return total


def join(launcher: Path, packed: Path, compressed: Path, out: Path) -> None:
    frame = compressed.read_bytes()
    trailer = MAGIC + struct.pack("<QQ", len(frame), unpacked_bytes(packed))
    # A running binary cannot be overwritten, so a new file replaces it.
    fresh = out.with_name(out.name + ".new")
    fresh.write_bytes(launcher.read_bytes() + frame + trailer)
    fresh.chmod(0o755)
    os.replace(fresh, out)


if __name__ == "__main__":
    verbs = {"archive": (archive, 2), "join": (join, 4)}
    verb, count = verbs.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0))
    if verb is None or len(sys.argv) != count + 2:
        sys.exit(__doc__)
    verb(*map(Path, sys.argv[2:]))
