"""Bugs that tests plant into a copy of the core's source, to show that other tests find them.

Invariant: the source itself holds no bug. An `Edit` names a file of native/ by its base name and replaces a text that stands
there exactly once; where it no longer does, `Stale` says which line of the table below has to follow the source.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"


class Stale(AssertionError):
    """The source has changed and an edit no longer fits it."""


class Edit(NamedTuple):
    """One bug: in native/**/`file`, `after` stands in place of `before`."""

    file: str
    before: str
    after: str


BUGS = {
    # ---- the write-ahead log
    "retry_fsync": Edit(
        "writer.c",
        "error = log->storage->sync_data(log->storage, file);",
        "error = log->storage->sync_data(log->storage, file);\n"
        "    if (error < 0) error = log->storage->sync_data(log->storage, file);",
    ),
    "reply_before_fsync": Edit(
        "writer.c",
        "    if (!whole && !next) {\n        log->position += part.bytes;",
        "    atomic_store(&log->durable, part.next_lsn - 1);\n    log_wake(log);\n"
        "    if (!whole && !next) {\n        log->position += part.bytes;",
    ),
    "serve_doubtful": Edit(
        "writer.c",
        "atomic_store(&log->durable, log->sure_lsn);",
        "atomic_store(&log->durable, log->next_lsn - 1);",
    ),
    "no_directory_fsync": Edit(
        "directory.c",
        "    if (error >= 0) error = storage->sync_directory(storage);\n    return error < 0 ? error : 0;",
        "    return error < 0 ? error : 0;",
    ),
    "headers_in_one_page": Edit(
        "directory.c",
        "    bool ends = third == FORMAT_GOOD &&",
        "    third = FORMAT_BAD;\n    bool ends = third == FORMAT_GOOD &&",
    ),
    "crc_without_length": Edit(
        "format.c",
        "return crc32_update(seed, record, 20);",
        "return crc32_update(crc32_update(seed, record, 4), record + 8, 12);",
    ),
    "forget_newest": Edit(
        "ledger.c",
        "    int error = ledger_write(log, ledger);\n    gate_leave(&log->books);\n    return error;\n}\n\nbool ledger_lets_go(",
        "    if (log->ledger.sequence) ledger = log->ledger;\n"
        "    int error = ledger_write(log, ledger);\n    gate_leave(&log->books);\n    return error;\n}\n\nbool ledger_lets_go(",
    ),
    "truncate_on_damage": Edit(
        "recover.c",
        "segment->damaged = segment->damaged || junk_end > begin;",
        "segment->damaged = segment->damaged || junk_end > begin;\n        segment_leave(recover);",
    ),
    "ledger_too_early": Edit(
        "tail.c",
        "    error = segment_write(log, segment, next_lsn, &file);",
        "    ledger_begun(log, segment, segment);\n    error = segment_write(log, segment, next_lsn, &file);",
    ),
    "drop_before_ledger": Edit(
        "tail.c",
        "    const ledger_t *ledger = &log->ledger;\n    const segment_t *newest =",
        "    if (log) return true;\n    const ledger_t *ledger = &log->ledger;\n    const segment_t *newest =",
    ),
    "cut_before_sync": Edit(
        "tail.c",
        "        if (size >= 0 && storage->sync_data(storage, file) < 0) return;\n    }",
        "    }",
    ),
}  # fmt: skip


def source_of(file: str) -> Path:
    """The one file of that base name below native/."""
    found = sorted(NATIVE.rglob(file))
    if len(found) != 1:
        raise Stale(f"tests/planted.py: native/ has {len(found)} files named {file}; an edit needs exactly one")
    return found[0]


def text_with(name: str) -> str:
    """The source file of a bug, with it."""
    edit = BUGS[name]
    source = source_of(edit.file)
    text = source.read_text(encoding="utf-8")
    if (times := text.count(edit.before)) != 1:
        raise Stale(
            f"tests/planted.py: planted bug {name!r} no longer applies: the text it replaces stands {times} times in "
            f"{source.relative_to(ROOT)}, not once. The source has changed; change the bug's `before` and `after` with it:\n"
            f"{edit.before}"
        )
    return text.replace(edit.before, edit.after)


def source_with(name: str, directory: Path) -> Path:
    """The source file of a bug, with it, in `directory`. It includes what stands beside the original (`flags_for`)."""
    file = directory / BUGS[name].file
    file.write_text(text_with(name), encoding="utf-8")
    return file


def flags_for(name: str) -> list[str]:
    """What the compiler needs to find the headers of a source that `source_with` has written."""
    return ["-iquote", str(source_of(BUGS[name].file).parent)]
