"""The declaration of settings, for brokers and devices.

Invariant: a setting is one `key(...)` in a class derived from `Section`. Readers, references and messages are generated
from it. The values of a section never change after it is created.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

LIST_ENTRIES_MAX = 64


class Key(NamedTuple):
    """One declared key."""

    path: str  # key, or section.key; "" at the declaration
    type: str  # int, bool, str or list
    default: Any
    help: str
    unit: str
    low: int
    high: int  # for a list: the maximum number of entries
    choices: tuple[str, ...]
    reload: bool
    secret: bool
    core: str  # the field of the core's bq_config_t that takes the value
    wal: str  # the same for bq_wal_config_t
    check: Callable[[str], object] | None
    reason: str

    @property
    def expected(self) -> str:
        """The allowed values, for an error message and the reference."""
        if self.type == "bool":
            return "true or false"
        if self.type == "int":
            return f"a whole number from {self.low} to {self.high} ({self.unit})"
        if self.type == "list":
            return f"a list of strings, {self.high} at most"
        return "one of " + ", ".join(f'"{c}"' for c in self.choices) if self.choices else "a string"


def key(
    default: Any,
    help: str,
    unit: str = "",
    low: int = 0,
    high: int = 0,
    choices: tuple[str, ...] = (),
    reload: bool = False,
    secret: bool = False,
    core: str = "",
    wal: str = "",
    check: Callable[[str], object] | None = None,
    reason: str = "",
) -> Any:
    """Declare one key; its type is that of `default`.

    unit, low, high: the unit of a number, and its inclusive range. high, for a list: the maximum number of entries.
    reload: SIGHUP applies a new value. secret: the value is never shown.
    core, wal: the field of the C core's settings, or of its WAL's, that takes the value; `make settings` writes them.
    check: takes the text, or each entry of a list, if it is not empty, and raises ValueError that says what is allowed.
    reason: the reason for the range, for the error message, if it is not obvious.
    """
    kind = "list" if isinstance(default, tuple) else type(default).__name__
    if kind == "list":
        high = high or LIST_ENTRIES_MAX
    return Key("", kind, default, help, unit, low, high, choices, reload, secret, core, wal, check, reason)


class Tables(NamedTuple):
    """A declared list of tables: `[[keys]]`, once for each entry."""

    kind: type[Section]
    most: int
    default: tuple[Any, ...] = ()


def section(kind: type[Section]) -> Any:
    """Declare a section within another."""
    return kind


def tables(kind: type[Section], most: int = LIST_ENTRIES_MAX) -> Any:
    """Declare a list of sections, empty if none is given."""
    return Tables(kind, most)


class Section:
    """The values of one section, by the names of its keys. Missing values are the declared defaults; nothing changes
    later.

    Not a dataclass: a dataclass compiles six functions for each class, which takes a tenth of a broker's start time.
    """

    declared: ClassVar[dict[str, Key | Tables | type[Section]]]

    def __init_subclass__(cls) -> None:
        cls.declared = {name: value for name, value in vars(cls).items() if _is_declared(value)}
        for name in cls.declared:
            delattr(cls, name)  # a value exists only on an instance

    def __init__(self, **values: Any) -> None:
        for name, declared in self.declared.items():
            if name in values:
                self.__dict__[name] = values.pop(name)
            else:
                self.__dict__[name] = declared() if isinstance(declared, type) else declared.default
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings do not change: {type(self).__name__}.{name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings do not change: {type(self).__name__}.{name}")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        secret = {name for name, declared in self.declared.items() if isinstance(declared, Key) and declared.secret}
        values = (f"{name}={value!r}" for name, value in self.__dict__.items() if name not in secret)
        return f"{type(self).__name__}({', '.join(values)})"


def _is_declared(value: Any) -> bool:
    return isinstance(value, Key | Tables) or (isinstance(value, type) and issubclass(value, Section))


class Schema:
    """All declarations of `kind`, by path: its keys (`section.key`), its sections and its lists of tables."""

    def __init__(self, kind: type[Section]) -> None:
        self.kind = kind
        self.keys: dict[str, Key] = {}
        self.sections: dict[str, type[Section]] = {}
        self.lists: dict[str, Tables] = {}
        self._add(kind, "")

    def _add(self, kind: type[Section], prefix: str) -> None:
        for name, declared in kind.declared.items():
            path = prefix + name
            if isinstance(declared, Key):
                self.keys[path] = declared._replace(path=path)
                continue
            if isinstance(declared, Tables):
                self.lists[path] = declared
            else:
                self.sections[path] = declared
            self._add(declared.kind if isinstance(declared, Tables) else declared, path + ".")

    def groups(self) -> Iterator[tuple[str, list[Key]]]:
        """Yield the keys by the section that declares them, for a reference."""
        found: dict[str, list[Key]] = {}
        for k in self.keys.values():
            found.setdefault(k.path.rpartition(".")[0], []).append(k)
        yield from found.items()


def literal(value: Any) -> str:
    """`value` in the syntax of the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
