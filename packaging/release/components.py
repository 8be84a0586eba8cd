"""The components of a binary or a wheel that others wrote. Licences and SBOM are made from this list.

Invariant: versions and licence texts are read from the built parts (the cache), never written here.
"""

import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Component:
    """A component: version, SPDX licence expression, package URL, licence text."""

    name: str
    version: str
    licence: str
    purl: str
    text: str
    # Place in the binary: a sentence for the page of licences.
    role: str


# Parts of a wheel with their own licence and no metadata: name, licence, place, wheel, pattern of the version.
INSIDE_WHEELS = [("libuv", "MIT", "the event loop inside uvloop", "uvloop", rb"\x00(1\.[0-9]{2}\.[0-9]+)\x00")]
# libffi inside cffi's wheel has no licence text and no version; the text is in the userland's package.
LIBFFI_TEXT = "chroot-freeze/usr/share/doc/libffi7/copyright"
# By name: licence, place, and the module that shows whether the program contains it (none: always).
WHEELS = {
    "uvloop": ("MIT OR Apache-2.0", "the event loop", "uvloop"),
    "cffi": ("MIT-0 AND MIT", "the boundary to the C core (with libffi)", "_cffi_backend"),
    "pyinstaller": (
        "GPL-2.0-or-later WITH Bootloader-exception",
        "start-up code; its exception covers frozen programs",
        "",
    ),
}
SOURCES = {
    "python": ("PYTHON_SOURCE", "PSF-2.0", "LICENSE", "the interpreter"),
    "openssl": ("OPENSSL_SOURCE", "Apache-2.0", "LICENSE.txt", "TLS, for the broker and for clients"),
    "zlib": ("ZLIB_SOURCE", "Zlib", "LICENSE", "compression"),
}
# Packages of the old userland, by name: package, licence, place. Those of the launcher are in the build chroot, those of the
# program in the freezer's chroot.
LAUNCHER = {
    "zstd": ("libzstd-dev", "BSD-3-Clause", "unpacks the one-file download"),
    "glibc": (
        "libc6-dev",
        "LGPL-2.1-or-later",
        "linked into the launcher of the one-file download, whose source comes with BlipMQ",
    ),
}
PROGRAM = {
    "libedit": ("libedit2", "BSD-3-Clause", "line editing in `blipmq connect`"),
    "libbsd": ("libbsd0", "BSD-3-Clause", "needed by libedit"),
    "libmd": ("libmd0", "BSD-3-Clause", "needed by libbsd"),
    "zlib1g": ("zlib1g", "Zlib", "needed by the start-up code"),
    "ncurses": ("libtinfo6", "MIT", "needed by libedit"),
}


def variables(path: Path) -> dict[str, str]:
    """The NAME=value lines of a data file."""
    lines = (line.partition("=") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in lines}


def from_sources(cache: Path, names: dict[str, str]) -> list[Component]:
    versions = dict(line.split() for line in (cache / "any/sources/versions").read_text().splitlines())
    found = []
    for name, (variable, licence, file, role) in SOURCES.items():
        source = names[variable]
        # Debian's version: upstream's version and the applied security patches.
        version = versions[source]
        text = (cache / "any/sources" / source / file).read_text(errors="replace")
        found.append(Component(name, version, licence, f"pkg:deb/debian/{source}@{version}?arch=source", text, role))
    return found


def from_wheels(cache: Path, target: str) -> list[Component]:
    contents = "".join((cache / target / "onedir" / name).read_text() for name in ("PYZ-00.toc", "COLLECT-00.toc"))
    found = []
    for wheel in sorted((cache / target / "wheels").glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if name not in WHEELS:
            continue
        licence, role, module = WHEELS[name]
        if f"('{module}" not in contents:
            continue
        with zipfile.ZipFile(wheel) as archive:
            texts = [
                n
                for n in sorted(archive.namelist())
                if re.search(r"dist-info/(licenses/)?(LICEN[CS]E|COPYING|NOTICE)", n)
            ]
            text = "\n".join(archive.read(n).decode(errors="replace") for n in texts if not n.endswith("/"))
            if name == "cffi":
                text += f"\n\nlibffi, inside it:\n\n{(cache / target / LIBFFI_TEXT).read_text(errors='replace')}"
            binaries = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".so"))
        pypi = name.replace("_", "-")
        found.append(Component(pypi, version, licence, f"pkg:pypi/{pypi}@{version}", text, role))
        for inner, inner_licence, inner_role, outer, pattern in INSIDE_WHEELS:
            if outer != name:
                continue
            match = re.search(pattern, binaries)
            inner_version = match[1].decode() if match else "unknown"
            inner_text = (Path(__file__).parent / f"{inner}.txt").read_text()
            purl = f"pkg:generic/{inner}@{inner_version}"
            found.append(Component(inner, inner_version, inner_licence, purl, inner_text, inner_role))
    return found


def from_userland(root: Path, packages: dict[str, tuple[str, str, str]]) -> list[Component]:
    """Packages that are installed in a chroot."""
    status = (root / "var/lib/dpkg/status").read_text()
    found = []
    for name, (package, licence, role) in packages.items():
        match = re.search(rf"^Package: {package}\n(?:.+\n)*?Version: (.+)$", status, re.MULTILINE)
        if not match:
            sys.exit(f"components: {package} is not installed in {root}; was it made by packaging/build?")
        text = (root / "usr/share/doc" / package / "copyright").read_text(errors="replace")
        found.append(Component(name, match[1], licence, f"pkg:deb/debian/{package}@{match[1]}", text, role))
    return found


def components(cache: Path, target: str) -> list[Component]:
    names = variables(Path(__file__).parent.parent / "versions.env")
    found = from_sources(cache, names) + from_wheels(cache, target)
    found += from_userland(cache / "any/chroot-build", LAUNCHER)
    found += from_userland(cache / target / "chroot-freeze", PROGRAM)
    return sorted(found, key=lambda component: component.name)


def wheel_components(cache: Path) -> list[Component]:
    """The components of the wheel: what is linked into its modules."""
    names = variables(Path(__file__).parent.parent / "versions.env")
    return [part for part in from_sources(cache, names) if part.name == "openssl"]


def table(parts: list[Component]) -> str:
    head = "BlipMQ's binaries contain the following works of others, under their own licences.\n\n"
    return head + "".join(f"  {part.name:18} {part.version:28} {part.licence}\n{'':21}{part.role}\n" for part in parts)


def notices(parts: list[Component]) -> str:
    """The text of THIRD-PARTY.txt."""
    rule = "=" * 100
    return table(parts) + "".join(
        f"\n{rule}\n{part.name} {part.version}\n{rule}\n\n{part.text.strip()}\n" for part in parts
    )
