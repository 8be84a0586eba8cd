"""The disk of a guest: the shipped image file, and an overlay for the writes of one boot.

Invariant: the image file is only read. Each power-on begins a new overlay. QEMU keeps its cluster map in memory until
the guest flushes, so killing QEMU loses unflushed writes, like a power cut.
"""

import hashlib
import json
import lzma
import os
import re
import subprocess
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SECTOR = 512
# An overlay loses writes in whole clusters. A cluster of 4 KiB is one block of the file system, so a flush of one block
# cannot save another.
CLUSTER = 4096
BOOT, KERNEL_A, ROOT_A, KERNEL_B, ROOT_B, DATA = range(6)  # the partitions, in order
SECONDS_MAX = 300


def run(*command, **options):
    """Run a host tool; returns its output. An error contains the output of the tool."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, timeout=SECONDS_MAX, stdin=subprocess.DEVNULL, **options
    )
    assert done.returncode == 0, (
        f"{command[0]}: status {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
    )
    return done.stdout


def cache():
    """Unpacked images, next to the cache of packaging/build."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("BLIPMQ_BUILD_CACHE", caches / "blipmq")) / "unpacked"


def unpack(packed):
    """The raw image of an .img.xz, unpacked once per content."""
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else hash_of(file)
    raw = cache() / f"{digest.hexdigest()[:16]}.img"
    if raw.exists():
        return raw
    raw.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=raw.parent, delete=False) as out:
        with lzma.open(packed) as source:
            copy_sparse(source, out)
    os.replace(out.name, raw)
    return raw


def hash_of(file):
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def copy_sparse(source, target):
    """Keep holes: most of an image is empty."""
    while block := source.read(1 << 20):
        if block.count(0) == len(block):
            target.seek(len(block), os.SEEK_CUR)
        else:
            target.write(block)
    target.truncate(target.tell())


class Image:
    """An image file and its partitions."""

    def __init__(self, path):
        self.path = unpack(path) if path.suffix == ".xz" else path
        table = json.loads(run("sfdisk", "--json", self.path))["partitiontable"]
        self.partitions = [
            (entry["start"] * SECTOR, entry["size"] * SECTOR)
            for entry in sorted(table["partitions"], key=lambda entry: entry["start"])
        ]

    def __repr__(self):
        return f"Image({self.path})"

    def read(self, name):
        """A file of the settings partition."""
        return run("mtype", "-i", f"{self.path}@@{self.partitions[BOOT][0]}", f"::{name}")

    def copy_partition(self, number, target):
        start, size = self.partitions[number]
        with self.path.open("rb") as source, target.open("wb") as out:
            source.seek(start)
            while size > 0:
                block = source.read(min(size, 1 << 20))
                out.write(block)
                size -= len(block)

    def direct_boot(self, device_tree, folder):
        """The files that a boot loader would load from slot A, in a folder: kernel, initrd, device tree; and the kernel
        command line."""
        partition = folder / "kernel.img"
        self.copy_partition(KERNEL_A, partition)
        for name in ("vmlinuz", "initrd.img"):
            run("debugfs", "-R", f"dump {name} {folder / name}", partition)
        partition.unlink()
        (folder / "tree.dtb").write_bytes(self.read(device_tree))
        (words,) = re.findall(r"linux \S+/vmlinuz (.*?);", self.read("system/grub.cfg").decode())
        return folder / "vmlinuz", folder / "initrd.img", folder / "tree.dtb", words.replace("$chosen", "A")


class Disk:
    """The medium of one guest. `size_bytes`: its size; 0 or a smaller value means the size of the image."""

    def __init__(self, image, folder, size_bytes=0):
        self.image, self.folder = image, folder
        self.base = folder / "base.img"
        run("cp", "--sparse=always", "--reflink=auto", image.path, self.base)
        if size_bytes > self.base.stat().st_size:
            os.truncate(self.base, size_bytes)
        self.overlay = folder / "overlay.qcow2"

    def begin(self):
        """A new overlay until the next power cut. Flushed data of the previous overlay is in the base."""
        if self.overlay.exists():
            run("qemu-img", "commit", "-q", self.overlay)
            self.overlay.unlink()
        options = f"cluster_size={CLUSTER},lazy_refcounts=off"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", self.base, "-F", "raw", self.overlay)

    # ---- settings partition ----

    @property
    def _fat(self):
        return f"{self.base}@@{self.image.partitions[BOOT][0]}"

    def put(self, files):
        """Change files on the settings partition, {name: bytes, or None to delete}. The guest must be off."""
        self.begin()
        for name, content in files.items():
            if content is None:
                run("mdel", "-i", self._fat, f"::{name}")
                continue
            with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                file.write(content)
                file.flush()
                run("mcopy", "-o", "-i", self._fat, file.name, f"::{name}")

    def get(self, name):
        """A file of the settings partition, None if it does not exist; also while the guest runs."""
        start, size = self.image.partitions[BOOT]
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            copy = Path(folder) / "fat.img"
            top, form = (self.overlay, "qcow2") if self.overlay.exists() else (self.base, "raw")
            run("qemu-img", "dd", "-U", "-f", form, "-O", "raw", f"bs={1 << 16}", f"skip={start >> 16}",
                f"count={-(-(start % (1 << 16) + size) >> 16)}", f"if={top}", f"of={copy}")  # fmt: skip
            found = subprocess.run(
                ["mtype", "-i", f"{copy}@@{start % (1 << 16)}", f"::{name}"], capture_output=True, timeout=SECONDS_MAX
            )
        return found.stdout if found.returncode == 0 else None

    def remove(self):
        self.base.unlink()
        self.overlay.unlink(missing_ok=True)
