"""Write the fuzzers' first inputs from tests/vectors.json: `make_seeds.py DIRECTORY` fills DIRECTORY/frame and /filter.

Invariant: a seed's name is its place in the vectors, so running it twice writes the same files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
    return 0


if __name__ == "__main__":
    sys.exit(main())
