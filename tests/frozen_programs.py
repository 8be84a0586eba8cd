"""A pytest plugin, `pytest -p frozen_programs`: tests that start `python -m blipmq …` start a frozen program instead.

$BLIPMQ_BINARY and $BLIPMQ_CLI name the frozen `blipmq` and `blipmq-cli`; black-box tests use them without this plugin.
Invariant: a run that never started a frozen program fails.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

BINARY, CLI = os.environ["BLIPMQ_BINARY"], os.environ["BLIPMQ_CLI"]
# The arguments behind `python`, and the corresponding command.
PROGRAMS = {
    ("-m", "blipmq"): (BINARY,),
    ("-m", "blipmq.cli.client"): (CLI,),
    ("-c", "import sys; from blipmq.cli.shell import main; sys.exit(main(sys.argv[1:]))"): (BINARY, "connect"),
}
started = 0


def frozen(command: Sequence[str]) -> list[str]:
    """The same command with the frozen program, if it starts one of our programs."""
    global started
    words = list(map(str, command))
    if words[0] == sys.executable and tuple(words[1:3]) in PROGRAMS:
        words[:3] = PROGRAMS[words[1], words[2]]
    started += words[0] in (BINARY, CLI)
    return words


class FrozenPopen(subprocess.Popen[Any]):
    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        super().__init__(args if isinstance(args, str) else frozen(args), *rest, **options)


def pytest_configure() -> None:
    for path in (BINARY, CLI):
        assert os.path.isabs(path) and Path(path).exists(), (
            f"{path} is not the full path of a program: `make binary` makes them"
        )
    subprocess.Popen = FrozenPopen  # type: ignore[misc]


class Totals:
    """Adds up the started processes over the workers of pytest-xdist."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        global started
        started += getattr(node, "workeroutput", {}).get("frozen_started", 0)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(Totals())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["frozen_started"] = started
    elif not started:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{started} times a test started {BINARY} or {CLI}")
