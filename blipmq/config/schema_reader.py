"""Reads declared settings from TOML files and dicts, for brokers and devices.

Invariant: each accepted value is allowed by its declaration, and its origin is known. Each error is kept as a problem,
with file, line and correction. For any text, only `ConfigError` is raised.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from blipmq.base.files import read_file
from blipmq.config.schema import Key, Schema, Section, Tables, literal
from blipmq.errors import ConfigError

FILE_BYTES_MAX = 1 << 20


USUAL_HINT = "Give the right file with --config, or unset BLIPMQ_CONFIG to run on the defaults."


def read_text(path: str | os.PathLike[str], hint: str = USUAL_HINT, wait: bool = True) -> str:
    """A settings file's text without byte order mark. Raises `ConfigError` if it cannot be read, is too large or is not
    UTF-8, and for a named pipe unless the caller can `wait`."""
    try:
        raw = read_file(path, FILE_BYTES_MAX + 1, wait)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            hint = "Raise the limit on open files, or lower server.max_connections."
        raise ConfigError(f"{path}: cannot be read: {error.strerror}\n{hint}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes, so it is not a configuration file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: not UTF-8 text (byte {raw[error.start]:#04x}); save the file as UTF-8"
        ) from None


def parse_toml(text: str, path: str) -> dict[str, Any]:
    """The tables of a file called `path`. Raises `ConfigError` with file and line."""
    if sys.version_info >= (3, 11):  # imported here because a broker with default settings does not need it
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

    try:
        table: dict[str, Any] = tomllib.loads(text)
        return table
    except RecursionError:
        raise ConfigError(f"{path}: lists or tables are nested too deeply for a configuration file") from None
    except ValueError as error:  # TOML errors, and numbers of thousands of digits
        message = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)", message)
        line = at[1] if at else str(text.count("\n") + 1)
        what = (message[: at.start()] if at else message.replace(" (at end of document)", "")).strip()
        raise ConfigError(
            f"{path}:{line}: not valid TOML: {what}\n"
            "Strings need quotes, and each setting a line of its own: key = value"
        ) from None


class Lines:
    """The line of each key of a TOML text. The text is valid TOML, so a scan for headers and keys is enough."""

    # Compiled at use: a broker with default settings reads no file and starts a few milliseconds sooner.
    _HEADER = r"\s*\[+([^\]]+)\]+"
    _KEY = r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=(.*)"""
    _LEVELS_MAX = 4
    _PART = r"""[\w-]+|"[^"]*"|'[^']*'"""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        section, inside = "", ""
        header, key = re.compile(self._HEADER), re.compile(self._KEY)
        for number, line in enumerate(text.splitlines(), 1):
            if inside:  # inside a multi-line string, which holds no keys
                inside = "" if inside in line else inside
            elif found := header.match(line):
                section = self._path(found[1])
                self._remember(section, number)
                if line.lstrip().startswith("[["):  # `keys.0`, `keys.1`: the tables of a list
                    count = self._counts[section] = self._counts.get(section, -1) + 1
                    section = f"{section}.{count}"
                    self._remember(section, number)
            elif found := key.match(line):
                self._remember(f"{section}.{self._path(found[1])}".lstrip("."), number)
                inside = next((q for q in ('"""', "'''") if found[2].count(q) == 1), "")

    def _path(self, dotted: str) -> str:
        return ".".join(part.strip("\"'") for part in re.findall(self._PART, dotted))

    def _remember(self, path: str, number: int) -> None:
        head = ""
        for part in path.split(".", self._LEVELS_MAX)[: self._LEVELS_MAX]:  # `a.b = 1` is also the line of `a`
            head += f".{part}" if head else part
            self._lines.setdefault(head, number)

    def find(self, path: str) -> int | None:
        """The line of `path`, or of the nearest table around it."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path.rpartition(".")[0]
        return None


class Source(NamedTuple):
    """A source of settings: its name in messages, and the lines of its keys, if it has lines."""

    name: str
    lines: Lines | None = None

    def at(self, place: str) -> str:
        """FILE:LINE of `place` or of the nearest table around it; FILE without lines."""
        number = self.lines.find(place) if self.lines else None
        return f"{self.name}:{number}" if number else self.name


class Reading:
    """Settings while they are read: values and their origins by path, and the problems found so far. A later value
    replaces an earlier one."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def take_table(self, table: Mapping[str, Any], source: Source) -> None:
        self._take_section(table, "", "", source, self.values)

    def _take_section(
        self, table: Mapping[str, Any], path: str, place: str, source: Source, into: dict[str, Any]
    ) -> None:
        """`path` is the section's declared path, `place` its position in the file: keys, keys.0."""
        schema = self.schema
        for word, value in table.items():
            inner, there = f"{path}{word}", f"{place}{word}"
            origin = source.at(there)
            if inner in schema.keys:
                self.take(schema.keys[inner], value, origin, into)
            elif inner in schema.lists:
                self._take_tables(inner, value, source, into)
            elif inner not in schema.sections:
                self.problems.append(f"{origin}: {self._unknown(inner, isinstance(value, Mapping))}")
            elif isinstance(value, Mapping):
                self._take_section(value, inner + ".", there + ".", source, into)
            else:
                what = f"{inner} is a section, not a setting; write [{inner}] on a line of its own"
                self.problems.append(f"{origin}: {what}")

    def _take_tables(self, path: str, value: Any, source: Source, into: dict[str, Any]) -> None:
        declared, origin = self.schema.lists[path], source.at(path)
        if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
            what = f"{path} is a list of tables; write [[{path}]] on a line of its own, once for each"
            self.problems.append(f"{origin}: {what}")
        elif len(value) > declared.most:
            self.problems.append(f"{origin}: {len(value)} {path}; the maximum is {declared.most}")
        else:
            into[path] = tuple(
                self._entry(declared, entry, path, f"{path}.{n}", source) for n, entry in enumerate(value)
            )
            self.origins[path] = origin

    def _entry(self, declared: Tables, table: Mapping[str, Any], path: str, place: str, source: Source) -> Section:
        values: dict[str, Any] = {}
        self._take_section(table, path + ".", place + ".", source, values)
        return _build(declared.kind, path + ".", values)

    def take(self, k: Key, value: Any, origin: str, into: dict[str, Any] | None = None) -> None:
        """Take one value of `k`, which comes from `origin`."""
        if problem := problem_with(k, value):
            self.problems.append(f"{origin}: {k.path}: {problem}")
            return
        (self.values if into is None else into)[k.path] = tuple(value) if k.type == "list" else value
        self.origins[k.path] = origin

    def build(self) -> Any:
        """Return the schema's outermost section with the values read, and defaults for all others."""
        return _build(self.schema.kind, "", self.values)

    def _unknown(self, path: str, is_section: bool) -> str:
        """The message for an undeclared name, which may be as long as the file."""
        name = shown(path)[1:-1]
        if not is_section:
            return f"there is no setting {name}" + meant(path, self.schema.keys)
        near = nearest(path, [*self.schema.sections, *self.schema.lists])
        return f"there is no section [{name}]" + (f"; did you mean [{near}]?" if near else "")


def _build(kind: type[Section], prefix: str, values: Mapping[str, Any]) -> Section:
    """Return a section of `kind` with `values` (by path); every path must be declared."""
    given: dict[str, Any] = {}
    for name, declared in kind.declared.items():
        path = prefix + name
        if isinstance(declared, type):
            given[name] = _build(declared, path + ".", values)
        elif path in values:
            given[name] = values[path]
    return kind(**given)


_HINTS = {"str": " in quotes", "list": ': ["one", "another"]'}


def problem_with(k: Key, value: Any) -> str:
    """The problem with `value` for this key; "" if there is none."""
    if not _is_of_type(k, value) or (k.choices and value not in k.choices):
        if k.secret:
            return f"the value is not {k.expected}"
        hint = "" if k.choices else _HINTS.get(k.type, "")
        return f"{shown(value)} is not {k.expected}{hint}{k.reason}" + meant(value, k.choices)
    if k.type == "int":
        return "" if k.low <= value <= k.high else f"{shown(value)} is not {k.expected}{k.reason}"
    if k.type == "list" and len(value) > k.high:
        return f"{len(value)} entries; the maximum is {k.high}"
    return _problem_with_texts(k, value if k.type == "list" else [value])


def _is_of_type(k: Key, value: Any) -> bool:
    if k.type == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if k.type == "bool":
        return isinstance(value, bool)
    if k.type == "list":
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def _problem_with_texts(k: Key, texts: Iterable[Any]) -> str:
    for number, text in enumerate(texts, 1):
        if k.type == "list" and not text:
            return "an entry is empty; remove it"
        if k.check is not None and text:
            try:
                k.check(text)
            except ValueError as error:
                which = shown(text) if not k.secret else f"number {number}" if k.type == "list" else ""
                return f"{which}: {error}" if which else str(error)
    return ""


def shown(value: Any) -> str:
    """A value as an error message shows it, shortened to 80 characters."""
    if isinstance(value, Mapping):
        return "a section"
    try:
        text = (
            repr(value) if isinstance(value, str) else literal(value) if isinstance(value, bool | int) else str(value)
        )
    except (RecursionError, ValueError):  # nested too deeply or too long for Python
        return "such a value"
    return text if len(text) <= 80 else text[:77] + "..."


def meant(word: Any, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown `word`: the known one that is nearest, or ""."""
    near = nearest(word, list(known)) if isinstance(word, str) else ""
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """The known word nearest to `word`, or ""."""
    import difflib  # imported here because only errors need it, and the start must be fast

    section, _, name = word.rpartition(".")
    # In a known section only the names are compared: the section is equal, and would make any two keys look alike.
    names = {path.rpartition(".")[2]: path for path in known if section and path.rpartition(".")[0] == section}
    near = [names[found] for found in difflib.get_close_matches(name, names, 1, cutoff)]
    if not names:
        near = difflib.get_close_matches(word, known, 1, cutoff)
    if not near:  # the right key in the wrong section
        near = [path for path in known if path.rpartition(".")[2] == word.rpartition(".")[2]][:1]
    return near[0] if near else ""
