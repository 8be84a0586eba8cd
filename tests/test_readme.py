"""The content of README.md is run: its Python unchanged, its shell commands line by line, against a broker of the test.

Invariant: nothing here repeats the README; a command that is changed there is the one that runs.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import blipmq
from blipmq.broker.blocking import BlockingBroker
from blipmq.wire.topics import match

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTED_ADDRESS = "127.0.0.1:7878"
TIMEOUT_S = 60
PRINTED = ["site/1/temp b'21.5'\n", "b'hello'\n"]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BlockingBroker]:
    settings = {"server": {"bind_addr": "127.0.0.1:0"}, "wal": {"directory": str(tmp_path / "wal")}}
    with blipmq.Broker(settings) as broker:
        yield broker


def environment(broker: BlockingBroker) -> dict[str, str]:
    """The commands of this Python environment, the package of this tree, the broker of this test."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "BLIPMQ_ADDR": broker.address}


@pytest.mark.parametrize(("text", "printed"), list(zip(PYTHON, PRINTED, strict=True)))
def test_the_python_in_the_readme_runs_unchanged(broker: BlockingBroker, text: str, printed: str) -> None:
    program = text.replace(DOCUMENTED_ADDRESS, broker.address)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(broker)
    )
    assert (result.stdout, result.stderr, result.returncode) == (printed, "", 0)


CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
ID = re.compile(r" as [0-9]+,")  # of a message: different each time


@pytest.mark.parametrize("session", CONSOLE)
def test_shell_examples_in_the_readme_print_the_shown_output(broker: BlockingBroker, session: str) -> None:
    """All lines must appear; where two programs write at the same time, their order is free."""
    commands = re.findall(r"^\$ (.*)$", session, re.MULTILINE)
    shown = re.findall(r"^(?!\$ )(.+)$", session, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*commands, "wait"])],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(broker),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(ID.sub(" as ID,", done.stdout).splitlines()) == sorted(ID.sub(" as ID,", line) for line in shown)


def test_the_readme_filters_match_the_stated_topics() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    for filter_cell, *cells in rows:
        (filter_,) = re.findall(r"`(.+?)`", filter_cell)
        matched, unmatched = (re.findall(r"`(.+?)`", cell) for cell in cells)
        assert matched and all(match(filter_, topic) for topic in matched), filter_
        assert unmatched and not any(match(filter_, topic) for topic in unmatched), filter_


def test_the_picture_is_small_self_contained_and_has_light_and_dark_colors() -> None:
    ((text, target),) = re.findall(r"!\[(.*?)\]\((.*?)\)", README)
    picture = (ROOT / target).read_text(encoding="utf-8")
    assert len(text) > 40 and len(picture) < 8192
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg") and root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in picture
    assert re.findall(r"(?:https?:|url\()[^\s\"]+", picture) == ["http://www.w3.org/2000/svg", "url(#tip);"]


def test_the_configuration_in_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "blipmq.toml").write_text(section("Configure").split("```toml\n")[1].split("```")[0], encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "blipmq", "check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert "subscriber_capacity = 10000" in result.stdout


def test_the_readme_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_in_the_readme_exists() -> None:
    makefiles = [ROOT / "Makefile", *ROOT.glob("*/*.mk")]
    targets = {name for file in makefiles for name in re.findall(r"^([\w-]+):", file.read_text("utf-8"), re.MULTILINE)}
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", README, re.MULTILINE))
    assert named and named - targets == set()
