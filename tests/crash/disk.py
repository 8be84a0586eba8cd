"""The simulated disk of a broker before a power cut, read from the journal of power.c.

Invariant: `names` and the `content` of each file contain only synced data. A power cut keeps that data. Of the unsynced
data it keeps any sectors of the files and any prefix of the name changes. The directory is then rewritten with the
result.
"""

import ctypes
import mmap
import os
import struct
import subprocess
from pathlib import Path

CREATE, WRITE, SIZE, RENAME, UNLINK, SYNC, SYNC_DIRECTORY = range(1, 8)
CALLS = ("sync_data", "sync", "sync_directory", "write", "allocate", "rename", "open")
NOTE = struct.Struct("<IIQQ")
SECTOR_BYTES = 512


def build(directory, compiler="cc"):
    """Compile the shim library; returns its path."""
    library = Path(directory) / "power.so"
    source = Path(__file__).with_name("power.c")
    subprocess.run(
        [compiler, "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl", "-pthread"], check=True
    )
    return library


class Fault(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("error", "after", "times", "calls")]


class FaultPage(ctypes.Structure):
    _fields_ = [
        ("calls", Fault * len(CALLS)),
        ("free_bytes", ctypes.c_int64),
        ("sync_lies", ctypes.c_int32),
        ("sync_us", ctypes.c_int32),
        ("die_after", ctypes.c_int32),
    ]


class Faults:
    """Simulated disk errors, which can be changed while the broker runs."""

    def __init__(self, path):
        self.path = path
        path.write_bytes(bytes(mmap.PAGESIZE))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.page = FaultPage.from_buffer(self._map)
        self.page.free_bytes = -1

    def fail(self, call, error, after=0, times=-1):
        """`after` calls succeed, then `times` (-1: all) fail with errno `error`."""
        fault = self.page.calls[CALLS.index(call)]
        fault.error = 0  # so that the broker never sees half of the new fault
        fault.after, fault.times = after, times
        fault.error = error

    def heal(self):
        for fault in self.page.calls:
            fault.error = 0
        self.page.free_bytes = -1

    def calls(self, call):
        return self.page.calls[CALLS.index(call)].calls


class File:
    def __init__(self):
        self.content = bytearray()
        self.pending = []  # (position in the journal, offset, bytes), or (position, size, None)

    def apply(self, offset, data):
        if data is None:
            if offset < len(self.content):
                del self.content[offset:]
            else:
                self.content.extend(bytes(offset - len(self.content)))
            return
        if len(self.content) < offset + len(data):
            self.content.extend(bytes(offset + len(data) - len(self.content)))
        self.content[offset : offset + len(data)] = data

    def sync(self, place):
        kept = []
        for change in self.pending:
            if change[0] < place:
                self.apply(*change[1:])
            else:
                kept.append(change)
        self.pending = kept

    def cut(self, dice, kept):
        """Each unsynced sector remains with probability `kept`; sizes too. Returns the number of lost bytes."""
        lost = 0
        for _, offset, data in self.pending:
            if data is None:
                if dice.random() < kept:
                    self.apply(offset, None)
                continue
            at = 0
            while at < len(data):
                step = min(len(data) - at, SECTOR_BYTES - (offset + at) % SECTOR_BYTES)
                if dice.random() < kept:
                    self.apply(offset + at, data[at : at + step])
                else:
                    lost += step
                at += step
        self.pending = []
        return lost


class Disk:
    def __init__(self, directory, journal):
        self.directory, self.journal = Path(directory), Path(journal)
        self.names = {}  # name: File
        self.lost_bytes = self.lost_names = 0  # by all cuts so far
        self.directory.mkdir()
        self._begin()

    def _begin(self):
        """The directory matches `names`. Record the inode of each file, because the journal identifies files by
        inode."""
        self.journal.write_bytes(b"")
        self._inodes = {os.stat(self.directory / name).st_ino: file for name, file in self.names.items()}

    def _notes(self):
        """(kind, inode, position, offset, data) of all operations since then."""
        notes = self.journal.read_bytes()
        at = 0
        while at + NOTE.size <= len(notes):
            kind, size, inode, offset = NOTE.unpack_from(notes, at)
            place, at = at, at + NOTE.size + size
            if at <= len(notes):  # else the broker was killed while it wrote the entry
                yield kind, inode, place, offset, notes[place + NOTE.size : at]

    def _replay(self):
        """Apply the syncs of the broker. Returns the unsynced name changes in order."""
        inodes, live, pending = dict(self._inodes), dict(self.names), []
        for kind, inode, place, offset, data in self._notes():
            if kind == CREATE:
                inodes[inode] = live[data.decode()] = File()
                pending.append((place, data.decode(), None, inodes[inode]))
            elif kind == WRITE:
                inodes[inode].pending.append((place, offset, data))
            elif kind == SIZE:
                inodes[inode].pending.append((place, offset, None))
            elif kind == RENAME:
                old, new = data.decode().split("/")
                live[new] = live.pop(old)
                pending.append((place, new, old, live[new]))
            elif kind == UNLINK:
                del live[data.decode()]
                pending.append((place, data.decode(), None, None))
            elif kind == SYNC:
                inodes[inode].sync(offset)
            elif kind == SYNC_DIRECTORY:
                self._rename(change for change in pending if change[0] < offset)
                pending = [change for change in pending if change[0] >= offset]
        return pending

    def _rename(self, changes):
        for _, name, old, file in changes:
            if old is not None:
                self.names.pop(old)
            if file is None:
                self.names.pop(name)
            else:
                self.names[name] = file

    def cut(self, dice):
        """The broker is dead and the power is off: write the remaining data into the directory."""
        pending = self._replay()
        names_kept = dice.randint(0, len(pending))
        self._rename(pending[:names_kept])
        self.lost_names += len(pending) - names_kept
        kept = dice.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for file in {id(file): file for file in self.names.values()}.values():
            self.lost_bytes += file.cut(dice, kept)
        for name in os.listdir(self.directory):
            os.unlink(self.directory / name)
        for name, file in self.names.items():
            (self.directory / name).write_bytes(file.content)
        self._begin()
