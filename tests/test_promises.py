"""docs/PROMISES.md names the evidence for each promise; this checks that the evidence exists.

Invariant: a row has the state `yes` or `partly` only with an existing test, benchmark or page, and `not yet` only with
a reason.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Promise(NamedTuple):
    text: str
    state: str
    shown_by: str


def read_promises(text: str) -> list[Promise]:
    """Rows of the table with the header `promise | state | shown by`."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert cells[0] == ["promise", "state", "shown by"]
    return [Promise(*row) for row in cells[2:]]


def faults(promise: Promise, root: Path = ROOT) -> list[str]:
    """The problems of a row as messages; [] for a valid row."""
    names = re.findall(r"`([\w./-]+(?:::\w+)?)`", promise.shown_by)
    if promise.state == "not yet":
        return [] if len(promise.shown_by) > 10 else ["`not yet` says neither what is missing nor where it is planned"]
    if promise.state not in ("yes", "partly"):
        return [f"state {promise.state!r} is none of yes, partly, not yet"]
    found = [] if names else ["nothing is named that shows it"]
    for name in names:
        path, _, test = name.partition("::")
        if not (root / path).exists():
            found.append(f"{path} does not exist")
        elif test and f"def {test}(" not in (root / path).read_text(encoding="utf-8"):
            found.append(f"{path} has no {test}")
    return found


def test_every_test_named_by_the_security_page_exists() -> None:
    page = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|native)/[\w./-]+(?:::\w+)?)`", page)
    assert len(named) > 20
    assert {name: found for name in named if (found := faults(Promise(name, "yes", f"`{name}`")))} == {}


def test_every_promise_names_existing_evidence() -> None:
    promises = read_promises((ROOT / "docs" / "PROMISES.md").read_text(encoding="utf-8"))
    assert len(promises) > 20
    assert {promise.text: found for promise in promises if (found := faults(promise))} == {}


def test_a_row_without_evidence_is_found() -> None:
    assert faults(Promise("flies", "yes", "it surely does"))
    assert faults(Promise("flies", "yes", "`tests/test_wings.py`"))
    assert faults(Promise("flies", "partly", "`tests/test_promises.py::test_that_is_not_there`"))
    assert faults(Promise("flies", "soon", "`tests/test_promises.py`"))
    assert faults(Promise("flies", "not yet", "-"))
    assert not faults(Promise("holds", "yes", "`tests/test_promises.py::test_a_row_without_evidence_is_found`"))
