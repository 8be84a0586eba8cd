"""A pytest plugin: the suite's black-box tests against frozen programs, `pytest -p frozen_programs`.

$BLIPMQ_FROZEN names a folder with `blipmq` and `blipmq-cli`. Whatever a test starts as `python -m blipmq …` is started from
there instead. Invariant: at the end something was really started so; a suite that never left the source tree fails.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ["BLIPMQ_FROZEN"]).resolve()
# What a test writes after `python`, and the command it stands for.
PROGRAMS = {
    ("-m", "blipmq"): ("blipmq",),
    ("-m", "blipmq.cli.client"): ("blipmq-cli",),
    ("-c", "import sys; from blipmq.cli.shell import main; sys.exit(main(sys.argv[1:]))"): ("blipmq", "connect"),
}
started = 0


def frozen(command: Sequence[str]) -> list[str]:
    """The same command with the frozen program, if it starts one of ours."""
    global started
    words = list(map(str, command))
    if words[0] != sys.executable or tuple(words[1:3]) not in PROGRAMS:
        return words
    started += 1
    name, *rest = PROGRAMS[words[1], words[2]]
    return [str(FOLDER / name), *rest, *words[3:]]


class FrozenPopen(subprocess.Popen[Any]):
    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        super().__init__(args if isinstance(args, str) else frozen(args), *rest, **options)


def pytest_configure() -> None:
    for name in ("blipmq", "blipmq-cli"):
        assert (FOLDER / name).exists(), f"{FOLDER} has no {name}: `make binary` makes them"
    subprocess.Popen = FrozenPopen  # type: ignore[misc]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not started:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
