"""`core_coverage.py DIRECTORY`: the coverage of the core in the instrumented run in DIRECTORY, as a table and as pages.

Invariant: includes the counts of all processes and programs built from the core: the extensions, and the programs of the
C tests left in DIRECTORY/tmp.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

KINDS = ("lines", "branches", "functions")


def programs(directory: Path) -> list[Path]:
    """The extensions, and the newest copy of each test program: shared objects or executables."""
    extensions = sorted((directory / "tree" / "blipmq").glob("_*.so"))
    built = [path for path in sorted((directory / "tmp").rglob("*")) if path.is_file() and is_program(path)]
    return [*extensions, *built]


def is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF" and path.suffix != ".o"


def shown(counts: dict[str, dict[str, float]]) -> str:
    cells = (
        f"{counts[kind]['covered']:>6.0f} of {counts[kind]['count']:>5.0f} {counts[kind]['percent']:>5.1f} %"
        for kind in KINDS
    )
    return "   ".join(cells)


def main() -> None:
    directory = Path(sys.argv[1]).absolute()
    profile = directory / "profile.profdata"
    raw = [str(path) for path in directory.glob("*.profraw")]
    subprocess.run(["llvm-profdata", "merge", "-sparse", "-failure-mode=all", *raw, "-o", str(profile)], check=True)
    first, *others = map(str, programs(directory))
    common = [first, *(part for other in others for part in ("-object", other)), f"-instr-profile={profile}"]
    core = [str(path) for path in sorted((directory / "tree" / "native").rglob("*.c")) if path.parent.name != "fuzz"]
    exported = subprocess.run(
        ["llvm-cov", "export", "-summary-only", *common, *core], check=True, capture_output=True
    ).stdout
    data = json.loads(exported)["data"][0]
    print(f"{'':22}" + "".join(f"{kind:>25}" for kind in KINDS))
    for file in sorted(data["files"], key=lambda file: str(file["filename"])):
        print(f"{Path(file['filename']).name:22}{shown(file['summary'])}")
    print(f"{'all':22}{shown(data['totals'])}")
    pages = ["-format=html", f"-output-dir={directory / 'html'}", "-show-branches=count"]
    subprocess.run(["llvm-cov", "show", *pages, *common, *core], check=True, stderr=subprocess.DEVNULL)
    print(f"every line: {directory / 'html' / 'index.html'}")


if __name__ == "__main__":
    main()
