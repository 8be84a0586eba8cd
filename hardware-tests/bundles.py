"""Updates for a device: the shipped one, and others built from the same image that a device must refuse or abandon.

Invariant: each bad update has exactly one fault; the rest equals the shipped update.
"""

import os
import shutil
import struct
import subprocess
from pathlib import Path

from disk import KERNEL_A, ROOT_A, run

SQUASHFS_USED = struct.Struct("<40xQ")  # bytes_used in the superblock
BUNDLE_SECONDS_MAX = 900


def keys():
    """(certificate, key, keyring) that sign updates for images built here."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("BLIPMQ_BUILD_CACHE", caches / "blipmq")) / "images" / "any" / "keys"
    certificate = os.environ.get("BLIPMQ_BUNDLE_CERT", folder / "development.cert.pem")
    key = os.environ.get("BLIPMQ_BUNDLE_KEY", folder / "development.key.pem")
    for path in (certificate, key):
        assert Path(path).is_file(), (
            f"no {path}: it comes with `make image-generic-x64` (or name it: BLIPMQ_BUNDLE_CERT, _KEY)"
        )
    return Path(certificate), Path(key)


def unknown_keys(folder):
    """Keys that the device does not know."""
    certificate, key = folder / "unknown.cert.pem", folder / "unknown.key.pem"
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "7300", "-subj", "/CN=unknown",
        "-keyout", key, "-out", certificate)  # fmt: skip
    return certificate, key


class Parts:
    """The two images of a slot as files in `folder`."""

    def __init__(self, image, folder):
        self.folder = folder
        self.root, self.kernel = folder / "root.squashfs", folder / "kernel.img"
        image.copy_partition(ROOT_A, self.root)
        with self.root.open("rb") as file:
            (used,) = SQUASHFS_USED.unpack(file.read(SQUASHFS_USED.size))
        os.truncate(self.root, -(-used // 4096) * 4096)
        image.copy_partition(KERNEL_A, self.kernel)

    def change_root(self, change):
        """Unpack the system, let `change(folder)` change it, and pack it again. Packing favours speed over size."""
        tree = self.folder / "tree"
        subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, self.root], check=True, timeout=BUNDLE_SECONDS_MAX)
        change(tree)
        self.root.unlink()
        pack = ["mksquashfs", tree, self.root, "-quiet", "-no-progress", "-noappend", "-comp", "zstd"]
        subprocess.run([*pack, "-Xcompression-level", "1"], check=True, timeout=BUNDLE_SECONDS_MAX)
        shutil.rmtree(tree)

    def bundle(self, target, compatible, version, signer):
        """Pack and sign the parts as an update."""
        content = self.folder / f"{target.stem}.content"
        content.mkdir()
        for part in (self.root, self.kernel):
            os.link(part, content / part.name)
        (content / "manifest.raucm").write_text(
            f"[update]\ncompatible={compatible}\nversion={version}\n\n[bundle]\nformat=verity\n\n"
            f"[image.rootfs]\nfilename={self.root.name}\n\n[image.kernel]\nfilename={self.kernel.name}\n"
        )
        certificate, key = signer
        run("rauc", "bundle", "--cert", certificate, "--key", key, content, target)
        shutil.rmtree(content)
        return target
