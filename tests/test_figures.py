"""Figures are defined in docs/PERFORMANCE.md; another page quotes a figure with its name and the same number.

    <!-- figure: memory-ready -->21.1 MB             a quote: the text behind the mark begins with the value
    <!-- own figures: the reason -->                 up to the next heading, figures are about something else

Invariant: start times, resident memory, message rates and download sizes are given with a mark, or not at all.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs" / "PERFORMANCE.md"
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- figure: ([\w-]+) -->([^<|]*)")
MARK_ALONE = re.compile(r"<!-- figure: [\w-]+ -->")
OWN = re.compile(r"<!-- own figures: .{20,} -->")
NUMBER = r"\b\d[\d.,]*(?: to \d[\d.,]*)?"


def beside(*parts: str) -> re.Pattern[str]:
    """Both parts, in either order."""
    return re.compile("|".join(r"\b.*\b".join(order) for order in (parts, parts[::-1])), re.IGNORECASE)


QUANTITIES = {
    "message rate": re.compile(
        rf"{NUMBER} (?:million |thousand )?(?:messages?|deliveries|publishes)(?: a second|/s| per second)"
    ),
    "start time": beside(r"\b(?:starts?|start-?up|ready)", rf"{NUMBER} ms\b"),
    "resident memory": beside(r"\b(?:RSS|resident|idle broker|when (?:ready|idle))", rf"{NUMBER} MB\b"),
    "memory of a connection": beside(r"\bidle connection", rf"{NUMBER} (?:bytes|KiB)\b"),
    "size of a download": re.compile(
        rf"\b(?:download|archive|Debian package|container image|wheels?|binary)\b[^.;,]*{NUMBER} MB\b"
        rf"|{NUMBER} MB (?:download|archive|Debian package|container image|wheel|binary)\b"
    ),
}


def figures(page: str) -> dict[str, str]:
    """The named figures of docs/PERFORMANCE.md: its first table."""
    rows = re.findall(
        r"^\| `([\w-]+)` \| ([^|]+?) \|", page.split("\n## Figures in short\n")[1].split("\n## ")[0], re.MULTILINE
    )
    assert len(rows) == len(dict(rows)), "a name stands twice"
    return dict(rows)


def fragments(page: str) -> list[str]:
    """Sentences, list items and table cells outside code and outside sections with their own figures. NUL: a mark."""
    page = MARK_ALONE.sub("\0", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL))
    found = []
    for section in re.split(r"^(?=#)", page, flags=re.MULTILINE):
        if OWN.search(section):
            continue
        for block in re.split(r"\n\s*\n|\n(?=[-|#])", section):
            for cell in block.split("|"):
                found += re.split(r"(?<=[.;]) ", " ".join(cell.split()))
    return found


def faults(page: str, known: dict[str, str]) -> list[str]:
    """The problems with the figures of a page, as messages."""
    found = ["a mark goes over the end of its line"] * (page.count("<!-- figure:") - len(MARK_ALONE.findall(page)))
    for name, behind in MARK.findall(page):
        text = " ".join(behind.split())
        if name not in known:
            found.append(f"there is no figure {name!r}")
        elif not re.match(re.escape(known[name]) + r"(?![\w.]*\d)", text):
            found.append(f"{name} is {known[name]!r}, not {text!r}")
    for fragment in fragments(page):
        for quantity, pattern in QUANTITIES.items():
            if "\0" not in fragment and pattern.search(fragment):
                found.append(f"a {quantity} without the name of its figure: {fragment!r}")
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != SOURCE], ids=lambda page: str(page.relative_to(ROOT))
)
def test_figures_on_all_pages_match_the_performance_page(page: Path) -> None:
    assert faults(page.read_text("utf-8"), figures(SOURCE.read_text("utf-8"))) == []


def test_the_performance_page_is_consistent() -> None:
    page = SOURCE.read_text("utf-8")
    known = figures(page)
    assert len(known) > 20
    marks = MARK.findall(page)
    assert page.count("<!-- figure:") == len(marks)
    assert {name for name, _ in marks} >= {"memory-ready", "start", "memory-10000", "start-million"}
    for name, behind in marks:  # a table has the unit in its header
        assert behind.split()[0] == known[name].split()[0], name


def test_figures_that_differ_or_have_no_name_are_found() -> None:
    known = {"start": "86 ms", "memory": "21.1 MB", "rate": "27 million"}
    for good in (
        "It starts in <!-- figure: start -->86 ms.",
        "| <!-- figure: memory -->21.1 MB when ready |",
        "moves <!-- figure: rate -->27 million messages a second",
        "a timeout of 500 ms",
        "boards with 256 MB, 512 MB and 1 GB",
        "`accept_rate` admits 1,000 connections a second",
        "## Emulated\n<!-- own figures: boards under QEMU, not this one -->\n| 70,805 messages/s |\n",
    ):
        assert not faults(good, known), good
    for bad in (
        "It starts in <!-- figure: start -->90 ms.",
        "It starts in <!-- figure: start -->86 ms5.",
        "<!-- figure: memory -->21.12 MB",
        "<!-- figure: memory\n-->21.1 MB",
        "<!-- figure: nobody -->1 MB",
        "ready after 86 ms",
        "about 86 ms from start",
        "An idle broker takes 28 MB.",
        "28 MB when ready",
        "27 million messages a second",
        "70,805 messages/s",
        "257 bytes for an idle connection",
        "the download is\n8.1 MB",
        "## Emulated\n<!-- own figures: no -->\n| 70,805 messages/s |\n",
    ):
        assert faults(bad, known), bad
