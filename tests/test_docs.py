"""Commands, Python and settings of README.md and docs/ are run unchanged against a broker of the test.

Invariant: each block declares its kind. ```sh is run block by block, in page order, unless a comment above it gives a
reason; ```python is run and ```toml is checked; ```console is a transcript that test_readme.py runs; a block without a
name is a picture, output or bytes, and contains no command. Nothing here repeats a page.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from broker_process import BrokerProcess

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTED, DOCUMENTED_METRICS = "127.0.0.1:7878", "127.0.0.1:9090"
TIMEOUT_S = 60
BLOCK = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"", "sh", "console", "python", "toml"}
COMMANDS = re.compile(
    r"^(?:\$ |(?:sudo|blipmq|blipmq-cli|make|pip|apt|apt-get|curl|docker|systemctl|journalctl|python3?) )", re.MULTILINE
)


class Block(NamedTuple):
    not_run: str  # the reason, or ""
    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page)]


def texts(page: Path, kind: str) -> list[str]:
    return [block.text for block in blocks(page.read_text("utf-8")) if block.kind == kind and not block.not_run]


def faults(page: str) -> list[str]:
    """Problems that prevent a block of this page from being run or recognized."""
    found = [f"a block is {block.kind!r}" for block in blocks(page) if block.kind not in KINDS]
    found += [
        f"a command in a picture: {block.text!r}"
        for block in blocks(page)
        if not block.kind and COMMANDS.search(block.text)
    ]
    found += [f"no reason: {block.not_run!r}" for block in blocks(page) if block.not_run and len(block.not_run) < 10]
    outside = BLOCK.sub("", page)
    if "```" in outside:
        found.append("a block does not end, or stands in from the margin")
    return found + [f"an indented block: {line!r}" for line in re.findall(r"^\n {4}\S.*$", outside, re.MULTILINE)]


def pages_with(kind: str) -> list[Path]:
    return [page for page in PAGES if texts(page, kind)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_code_block_has_a_language_and_no_command_is_untested(page: Path) -> None:
    assert faults(page.read_text("utf-8")) == []


def test_an_untested_command_is_found() -> None:
    for page in (
        "```\n$ ls\n```\n",
        "```\nblipmq start\n```\n",
        "```bash\nls\n```\n",
        "text\n\n    make it\n",
        "```sh\nls\n",
    ):
        assert faults(page), page
    assert faults("<!-- not run: no -->\n```sh\nls\n```\n")
    assert not faults("<!-- not run: needs a machine of its own -->\n```sh\nreboot\n```\n```\na --- b\n```\n")
    assert blocks("<!-- not run: why -->\n```sh\na\n```\n```sh\nb\n```\n") == [
        Block("why", "sh", "a\n"),
        Block("", "sh", "b\n"),
    ]


# ---- execution ----


@pytest.fixture(scope="session")
def programs() -> None:
    """Programs that the pages use and that a minimal system may lack."""
    for name in ("systemd", "curl", "openssl"):
        subprocess.run([ROOT / "packaging" / "setup.sh", name], check=True, timeout=600)


class Place:
    """A folder that looks like the source tree, a running broker, and an environment in which commands reach it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "tree"
        self.directory.mkdir()
        for name in ("bench", "config", "docs", "examples", "packaging"):
            (self.directory / name).symlink_to(ROOT / name)
        (directory / "broker").mkdir()
        settings = {"metrics.bind_addr": "127.0.0.1:0", "logging.level": "info"}
        self.broker = BrokerProcess(directory / "broker", settings)
        self.broker.get_ready()
        self.metrics = self.broker.wait_for("metrics")["address"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_")}
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "BLIPMQ_ADDR": self.broker.address,
            # For a broker that a page starts itself: it must use a free port.
            "BLIPMQ_SERVER__BIND_ADDR": "127.0.0.1:0",
            "BLIPMQ_METRICS__BIND_ADDR": "",
        }

    def localized(self, text: str) -> str:
        host, port = self.broker.address.rsplit(":", 1)
        text = text.replace('("127.0.0.1", 7878)', f'("{host}", {port})')
        return text.replace(DOCUMENTED, self.broker.address).replace(DOCUMENTED_METRICS, self.metrics)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )


@pytest.fixture
def place(tmp_path: Path):
    place = Place(tmp_path)
    yield place
    place.broker.stop()


@pytest.mark.parametrize("page", pages_with("sh"), ids=lambda page: page.name)
def test_the_shell_commands_of_a_page_run_in_their_order(programs: None, place: Place, page: Path) -> None:
    for text in texts(page, "sh"):
        done = place.run("bash", "-euo", "pipefail", "-c", place.localized(text))
        assert done.returncode == 0, f"{page.name}:\n{text}\nsays\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "page", [page for page in pages_with("python") if page.parent != ROOT], ids=lambda page: page.name
)
def test_the_python_of_a_page_prints_the_documented_output(place: Place, page: Path) -> None:
    for text in texts(page, "python"):
        done = place.run(sys.executable, "-c", place.localized(text))
        assert (done.returncode, done.stderr) == (0, "") and done.stdout
        for line in done.stdout.splitlines():
            assert f"`{line}`" in page.read_text("utf-8")


@pytest.mark.parametrize("page", pages_with("toml"), ids=lambda page: page.name)
def test_the_settings_of_a_page_are_valid(place: Place, page: Path) -> None:
    for text in texts(page, "toml"):
        (place.directory / "shown.toml").write_text(text, encoding="utf-8")
        done = place.run("blipmq", "check", "--config", "shown.toml")
        assert done.returncode == 0, done.stderr


# ---- content ----


def test_every_link_in_the_docs_leads_to_a_file_or_heading_that_exists() -> None:
    missing = []
    for page in PAGES:
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text("utf-8")):
            file = page.parent / target if target else page
            headings = (
                re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
                if file.suffix == ".md" and file.exists()
                else []
            )
            anchors = {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}
            if not file.exists() or (heading and heading not in anchors):
                missing.append(f"{page.name}: {target}#{heading}")
    assert missing == []


def test_the_example_frame_of_the_protocol_page_matches_the_reference_builder() -> None:
    page = (ROOT / "docs" / "PROTOCOL.md").read_text("utf-8")
    (shown,) = [block.text for block in blocks(page) if block.text.startswith("00000034")]
    rows = [line.split() for line in shown.splitlines()]
    vectors = json.loads((ROOT / "tests" / "vectors.json").read_text("utf-8"))["valid"]
    assert "".join(row[0] for row in rows) == next(v["frame"] for v in vectors if v["name"] == "v1 publish")
    at = 0
    for digits, offset, *_ in rows[1:]:
        assert int(offset) == at
        at += len(digits) // 2


def test_the_port_that_the_pages_show_is_the_default() -> None:
    from blipmq.config.settings import Config

    assert (Config().server.bind_addr, Config().metrics.bind_addr) == (DOCUMENTED, DOCUMENTED_METRICS)
