"""The test scripts of mosquitto 2.0.11: fetched with apt-get from Debian's source archive, verified, unpacked below `build/`.

Invariant: nothing of them is in this repository, and only the archive with the pinned hash is used.
"""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

VERSION = "2.0.11"
SHA256 = "7b36a7198bce85cf31b132f5c6ee36dcf5dadf86fb768501eb1e11ce95d4f78a"
PLACE = Path(__file__).resolve().parents[2] / "build" / "conformance"
ARCHIVE = f"mosquitto_{VERSION}.orig.tar.gz"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TIMEOUT_S = 300


class SourceError(Exception):
    """The source cannot be had; the text gives the reason and the next step."""


def fetch(place: Path = PLACE) -> Path:
    """The directory of the unpacked source in `place`."""
    source = place / f"mosquitto-{VERSION}"
    if (source / ".whole").exists():
        return source
    place.mkdir(parents=True, exist_ok=True)
    archive = place / ARCHIVE
    if not archive.exists() or _sha256(archive) != SHA256:
        _download(place)
    if not archive.exists() or _sha256(archive) != SHA256:
        raise SourceError(f"{archive} is not the expected archive of mosquitto {VERSION}; delete it and try again")
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(archive) as whole:
        whole.extractall(place, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    # The certificates in the archive have expired. Its own script makes new ones with the same properties.
    _run(["sh", "./gen.sh"], source / "test" / "ssl")
    (source / ".whole").touch()
    return source


def build_plugins(source: Path) -> None:
    """The plugins and programs of some scripts, which only mosquitto itself can use."""
    library = source / "lib" / "libmosquitto.so.1"
    for found in Path("/usr/lib").glob("*/libmosquitto.so.1"):
        if not library.exists():
            library.symlink_to(found)
    _run(["make", "-s"], source / "test" / "broker" / "c")


def scripts(source: Path) -> dict[str, int]:
    """Name of each test script without `.py`: how many ports it needs. The list is that of mosquitto's own parallel run."""
    broker = source / "test" / "broker"
    tree = ast.parse((broker / "test.py").read_text(encoding="utf-8"))
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "tests"
    )
    return {Path(path).stem: ports for ports, path in listed if (broker / path).exists()}


def _download(place: Path) -> None:
    """Uses lists of its own, so the system's package sources need no `deb-src` line and stay as they are."""
    if shutil.which("apt-get") is None:
        raise SourceError(f"apt-get is missing: put {ARCHIVE} of Debian's package mosquitto into {PLACE}")
    apt = place / "apt"
    for name in ("lists/partial", "cache/archives/partial", "empty"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    signed = f" [signed-by={KEYRING}]" if Path(KEYRING).exists() else ""
    (apt / "sources.list").write_text(f"deb-src{signed} {_mirror()} bookworm main\n", encoding="utf-8")
    options = [
        f"Dir::Etc::SourceList={apt}/sources.list",
        f"Dir::Etc::SourceParts={apt}/empty",
        f"Dir::State::Lists={apt}/lists",
        f"Dir::Cache={apt}/cache",
        "APT::Sandbox::User=root",
    ]
    command = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    for step in (["update"], ["source", "--download-only", "--only-source", "mosquitto"]):
        _run([*command, *step], place)
    shutil.rmtree(apt, ignore_errors=True)


def _run(command: list[str], place: Path) -> None:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise SourceError(f"`{' '.join(command[:2])}` failed in {place}: {last}")


def _mirror() -> str:
    """The archive that this system uses, if it is a Debian."""
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    for line in shown.stdout.splitlines():
        if line.startswith("Debian Debian "):
            return line.split()[2]
    raise SourceError(
        f"this system uses no archive of Debian: put {ARCHIVE} of Debian's package mosquitto into {PLACE}"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
