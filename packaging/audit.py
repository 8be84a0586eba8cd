"""`make audit`: list known vulnerabilities in the packages that BlipMQ needs and is built with.

    audit.py PIP_AUDIT SITE

asks pip-audit about the pinned requirements of the binaries and the packages installed in SITE (a virtual environment's
interpreter), one service after the other until one answers. Exit status: 0 no vulnerability known, 1 at least one, 2 no service
answered.

Invariant: a package without an answer never counts as clean. Parts that are not on PyPI (the interpreter, OpenSSL and zlib
inside the binaries and wheels) come from Debian's archive with its security patches and are not checked here.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PINNED = [Path(__file__).parent / "requirements.txt", Path(__file__).parent / "requirements-audit.txt"]
SERVICES = {"pypi": "PyPI's JSON interface", "osv": "api.osv.dev"}


def plain(name: str) -> str:
    """A package's name in the normal form of package indexes."""
    return name.lower().replace("_", "-").replace(".", "-")


def pinned(path: Path) -> list[str]:
    """The NAME==VERSION lines of a requirements file."""
    lines = (line.split("\\")[0].split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "==" in line and not line.startswith("--")]


def installed(interpreter: str) -> list[str]:
    """The packages that pip lists there, without the project itself."""
    command = [interpreter, "-m", "pip", "list", "--format=json", "--exclude-editable", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        f"{package['name']}=={package['version']}" for package in listed if package["name"] not in ("pip", "setuptools")
    ]


def ask(pip_audit: str, service: str, wanted: list[str]) -> tuple[dict[str, list[str]], list[str], str]:
    """Vulnerabilities by package, the packages without an answer, and the error text of a failure."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(wanted) + "\n")
        file.flush()
        command = [
            pip_audit,
            "--progress-spinner=off",
            "-f",
            "json",
            "-s",
            service,
            "--no-deps",
            "--disable-pip",
            "-r",
            file.name,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answered = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return {}, wanted, last[-1].strip()
    found = {
        f"{one['name']}=={one['version']}": [vulnerability["id"] for vulnerability in one["vulns"]]
        for one in answered
        if one.get("vulns")
    }
    clear = {plain(one["name"]) for one in answered if "vulns" in one}
    unanswered = [line for line in wanted if plain(line.split("==")[0]) not in clear]
    return found, unanswered, "it does not know them" if unanswered else ""


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    pip_audit, interpreter = sys.argv[1:]
    wanted = sorted({*(line for path in PINNED for line in pinned(path)), *installed(interpreter)})
    print(f"==> {len(wanted)} packages at exact versions")
    found: dict[str, list[str]] = {}
    open_ones = wanted
    for service, place in SERVICES.items():
        if not open_ones:
            break
        asked = len(open_ones)
        vulnerable, open_ones, why = ask(pip_audit, service, open_ones)
        found |= vulnerable
        print(f"    {place}: answered for {asked - len(open_ones)} of {asked}{f' ({why[:160]})' if why else ''}")
    for package, names in sorted(found.items()):
        print(f"    VULNERABLE {package}: {', '.join(names)}")
    if found:
        print("audit: raise these versions, or say in docs/SECURITY.md why they do not matter here", file=sys.stderr)
        return 1
    if open_ones:
        print(
            f"audit: NOT DONE: no service answered for {len(open_ones)} packages ({', '.join(open_ones[:3])}, ...). "
            "This machine reaches neither; run `make audit` where pypi.org or api.osv.dev can be reached.",
            file=sys.stderr,
        )
        return 2
    print("    nothing known against any of them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
