"""What README.md shows is run: its Python as it stands, its shell commands line by line, against a broker of the test's own.

Invariant: nothing here repeats the README; a command that is changed there is the one that runs.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import blipmq
from blipmq.broker.blocking import BlockingBroker

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
    """The commands of this Python's environment, this tree's package, this test's broker."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "BLIPMQ_ADDR": broker.address}


def wait_for_subscriptions(broker: BlockingBroker, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while broker.stats()["subscriptions"] < count:
        assert time.monotonic() < deadline, f"the README's subscriber did not subscribe in {TIMEOUT_S} s"
        time.sleep(0.01)


@pytest.mark.parametrize(("text", "printed"), list(zip(PYTHON, PRINTED, strict=True)))
def test_the_python_in_the_readme_runs_as_it_stands(broker: BlockingBroker, text: str, printed: str) -> None:
    program = text.replace(DOCUMENTED_ADDRESS, broker.address)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(broker)
    )
    assert (result.stdout, result.stderr, result.returncode) == (printed, "", 0)


HEARD = ['logs.web.error\tdisk full\nlogs.db.slow\t{"level": 3}\n', "orders\ttwo coffees\n"]
SESSIONS = re.findall(r"```console\n(.*?)```", section("First messages"), re.DOTALL)


@pytest.mark.parametrize(("session", "heard"), list(zip(SESSIONS, HEARD, strict=True)))
def test_the_first_messages_of_the_readme_arrive(broker: BlockingBroker, session: str, heard: str) -> None:
    lines = re.findall(r"^\$ (.*)$", session, re.MULTILINE)
    subscribe = f"exec {lines[0].removesuffix('&')}"
    with subprocess.Popen(
        ["sh", "-c", subscribe], stdout=subprocess.PIPE, text=True, env=environment(broker)
    ) as subscriber:
        wait_for_subscriptions(broker, 1)
        for line in lines[1:]:
            subprocess.run(
                ["sh", "-c", line], check=True, timeout=TIMEOUT_S, env=environment(broker), stdout=subprocess.DEVNULL
            )
        printed, _ = subscriber.communicate(timeout=TIMEOUT_S)
    assert (printed, subscriber.returncode) == (heard, 0)


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
