"""Writes native/api/settings.h and native/api/settings.c: the structs of settings, their defaults, checks and reload.

Invariant: both files are generated only from the declarations and are checked in, so a build runs no generator. `make settings`
writes them after a change of a setting. `make core` and a test fail if the files do not match the declarations. The generator
needs only Python's standard library, and no built core.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

NATIVE = Path(__file__).resolve().parent
sys.path.insert(0, str(NATIVE.parent))

from blipmq.config.core_settings import CORE, WAL, Field, values  # noqa: E402
from blipmq.config.settings import Config  # noqa: E402

HEAD = """\
/* {name}: {what}.
 *
 * Made from blipmq/config/core_settings.py by `make settings`. Change the declaration there or in blipmq/config/settings.py.
 */
/* clang-format off */
"""
WIDTH = 130


class Struct(NamedTuple):
    """A struct of settings, by its name without the _t."""

    name: str
    fields: tuple[Field, ...]


STRUCTS = (Struct("bq_config", CORE), Struct("bq_wal_config", WAL))


def header() -> str:
    """native/api/settings.h: plain declarations, because cffi reads them too."""
    parts = [
        HEAD.format(name="settings.h", what="the settings of the core and of its log, read by the compiler and by cffi")
    ]
    for struct in STRUCTS:
        parts += [enum(field) for field in struct.fields if field.choices]
        members = "".join(comment(field) + f"    {field.c_type} {field.name};\n" for field in struct.fields)
        parts.append(f"typedef struct {struct.name} {{\n{members}}} {struct.name}_t;\n")
    parts.append(
        "/* A configuration with every setting at its default. */\n"
        + "".join(f"void {struct.name}_default({struct.name}_t *config);\n" for struct in STRUCTS)
    )
    parts.append(
        "/* Whether each value is one that the core can work with; the ranges that users are held to are narrower. */\n"
        "int bq_config_valid(const bq_config_t *config);\n"
    )
    parts.append(
        "/* Takes over the settings that may change while the core runs. */\n"
        "void bq_config_reload(bq_config_t *config, const bq_config_t *changed);\n"
    )
    return "\n".join(parts)


def enum(field: Field) -> str:
    members = ", ".join(f"{constant(field, choice)} = {n}" for n, choice in enumerate(field.choices))
    return f"enum bq_{field.name} {{ {members} }};\n"


def constant(field: Field, choice: str) -> str:
    return f"BQ_{field.name}_{choice}".upper()


def comment(field: Field) -> str:
    first = re.split(r"(?<=\.) (?=[A-Z0-9])", field.help)[0]
    return textwrap.fill(f"/* {first} */", WIDTH, initial_indent="    ", subsequent_indent="     * ") + "\n"


def source() -> str:
    """native/api/settings.c."""
    parts = [
        HEAD.format(name="settings.c", what="defaults, checks and reload of the settings"),
        '#include <stdint.h>\n\n#include "api/settings.h"\n',
    ]
    defaults = Config()
    for struct in STRUCTS:
        given = values(struct.fields, defaults)
        lines = "".join(f"        .{name} = {value}{'ull' * (value >= 1 << 31)},\n" for name, value in given.items())
        parts.append(
            f"void {struct.name}_default({struct.name}_t *config) {{\n    *config = ({struct.name}_t){{\n{lines}    }};\n}}\n"
        )
    checks = [check for field in CORE for check in checks_of(field)]
    parts.append(
        "int bq_config_valid(const bq_config_t *config) {\n    return "
        + " &&\n        ".join(f"config->{check}" for check in checks)
        + ";\n}\n"
    )
    copies = "".join(f"    config->{field.name} = changed->{field.name};\n" for field in CORE if field.reload)
    parts.append(f"void bq_config_reload(bq_config_t *config, const bq_config_t *changed) {{\n{copies}}}\n")
    return "\n".join(parts)


def checks_of(field: Field) -> list[str]:
    """C conditions of one setting. Upper bounds are checked only for choices, because the core has no code for other numbers."""
    lower = [f"{field.name} >= {field.low}"] if field.low else []
    return lower + ([f"{field.name} <= {constant(field, field.choices[-1])}"] if field.choices else [])


def files() -> dict[Path, str]:
    """The generated text of each file, by path."""
    return {NATIVE / "api/settings.h": header(), NATIVE / "api/settings.c": source()}


def stale() -> list[Path]:
    """Files that do not match the declarations."""
    return [path for path, text in files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if names := ", ".join(path.name for path in stale()):
            sys.exit(f"native/api: {names} differ from the declared settings; run `make settings`")
    else:
        for path, text in files().items():
            path.write_text(text, encoding="utf-8")
