"""Write the fuzzers' first inputs: `make_seeds.py DIRECTORY` fills DIRECTORY/frame, /filter and /log, from tests/vectors.json and
the kept logs.

Invariant: a seed's name is its place in the vectors, so running it twice writes the same files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KEPT = Path(__file__).resolve().parents[2] / "tests" / "kept"
VECTORS = Path(__file__).resolve().parents[2] / "tests" / "vectors.json"
FILTERS = [
    "user.*",
    "logs.>",
    "*.b.*",
    ">",
    "site/+/temp",
    "site/#",
    "+/+",
    "#",
    "$SYS/#",
    "a.*/+",
    "a*",
    "#/a",
    "plain",
]
TOPICS = ["user.ann", "logs", "logs.a.b", "a.b.c", "site/1/temp", "site", "$SYS/load", "", "température/küche/温度"]


def write_seeds(directory: Path, seeds: list[bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (directory / f"{number:04}").write_bytes(seed)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: make_seeds.py DIRECTORY", file=sys.stderr)
        return 2
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    frames = [bytes.fromhex(vector["frame"]) for vector in vectors["valid"] + vectors["broken"]]
    write_seeds(Path(sys.argv[1]) / "frame", [frame[4:] for frame in frames])
    pairs = [f"{pattern}\0{topic}".encode() for pattern in FILTERS for topic in TOPICS]
    write_seeds(Path(sys.argv[1]) / "filter", pairs)
    segments = [path.read_bytes() for path in sorted(KEPT.glob("*/*.log"))]
    mends = range(32)  # the first byte of an input: what fuzz_log mends and how it splits
    write_seeds(Path(sys.argv[1]) / "log", [bytes([mend]) + segment for segment in segments for mend in mends])
    return 0


if __name__ == "__main__":
    sys.exit(main())
