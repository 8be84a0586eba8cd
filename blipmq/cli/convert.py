"""`blipmq check --convert`: convert another program's configuration to one of this broker.

Invariant: the configuration goes to standard output or to a new file, the fate of each old line to standard error. An
existing file is never overwritten.
"""

from __future__ import annotations

import os

from blipmq.base.stdio import print_out, say
from blipmq.config.convert import Fate, convert, printable
from blipmq.config.convert_mosquitto import is_mosquitto, read_mosquitto
from blipmq.config.convert_v1 import read_v1
from blipmq.config.schema_reader import read_text
from blipmq.errors import ConfigError, UsageError


def run(old: str, output: str | None) -> int:
    """Convert the file `old`. Raises `ConfigError` and `UsageError`."""
    text = read_text(old, "Check the path after --convert.")
    made = convert(text, old, read_mosquitto if is_mosquitto(text) else read_v1)
    for fate in made.fates:
        say(
            f"{old}:{fate.line}: {printable(fate.old)}: {fate.said}"
            if fate.line
            else f"{fate.key} = {fate.value}: {fate.said}"
        )
    say(_summary(made.fates))
    if output is None:
        print_out(made.text.removesuffix("\n"))
        return 0
    _write(output, made.text)
    say(f"Wrote {output}. Read it, then check it: blipmq check --config {output}")
    return 0


def _summary(fates: list[Fate]) -> str:
    words = ("kept", "renamed", "replaced", "added", "left out", "no effect")
    counts = {word: sum(fate.said.startswith(word) for fate in fates) for word in words}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def _write(path: str, text: str) -> None:
    try:
        # The file may contain keys.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} already exists and is not overwritten. Name another file with --output.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}. Name another file with --output.") from None
    with open(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
