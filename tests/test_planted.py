"""Planted bugs (planted.py) still fit the source, and the tests that should find them do.

Invariant: the same programs and inputs pass on the source as it is.
"""

from __future__ import annotations

import re

import planted
import pytest


def test_every_planted_bug_fits_the_source_as_it_is() -> None:
    for name, edit in planted.BUGS.items():
        assert planted.text_with(name) != planted.source_of(edit.file).read_text(encoding="utf-8"), name


def test_a_planted_bug_that_no_longer_fits_says_which_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planted.BUGS, "gone", planted.Edit("writer.c", "a text that stands nowhere", ""))
    with pytest.raises(planted.Stale, match=r"'gone' no longer applies.* 0 times in native/.*writer\.c"):
        planted.text_with("gone")
    monkeypatch.setitem(planted.BUGS, "gone", planted.Edit("no_such_file.c", "", ""))
    with pytest.raises(planted.Stale, match="0 files named no_such_file"):
        planted.text_with("gone")


def test_the_core_has_no_switch_that_plants_a_bug() -> None:
    sources = [*planted.NATIVE.rglob("*.c"), *planted.NATIVE.rglob("*.h")]
    assert len(sources) > 50
    assert [path.name for path in sources if re.search(r"\bBUG_", path.read_text(encoding="utf-8"))] == []
