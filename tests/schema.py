"""Access to native/proto/blip.fbs: its tables, and the encoder and decoder that flatc generates from it.

Invariant: nothing of blipmq is used here, so encoded frames are independent of the tested code.
"""

from __future__ import annotations

import functools
import importlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import flatbuffers

ROOT = Path(__file__).resolve().parent.parent
FBS = ROOT / "native" / "proto" / "blip.fbs"
BITS = {"byte": 8, "ubyte": 8, "bool": 1, "ushort": 16, "ulong": 64}  # of the number types in the schema


class Field(NamedTuple):
    id: int
    name: str
    type: str  # as in the schema; for an enum its underlying type
    reserved: bool

    @property
    def largest(self) -> int:
        """The largest value of a number type."""
        return (1 << BITS[self.type]) - 1


def _without_comments() -> str:
    return re.sub(r"//.*", "", FBS.read_text("utf-8"))


def _enums() -> dict[str, tuple[str, dict[str, int]]]:
    """Each enum: its underlying type and its values."""
    found = re.findall(r"^enum (\w+) : (\w+) \{(.*?)^\}", _without_comments(), re.MULTILINE | re.DOTALL)
    return {
        name: (carrier, {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", body)})
        for name, carrier, body in found
    }


def _tables() -> dict[str, tuple[Field, ...]]:
    tables = {}
    for name, body in re.findall(r"^table (\w+) \{(.*?)^\}", _without_comments(), re.MULTILINE | re.DOTALL):
        lines = re.findall(r"(\w+):(\S+?)(?: = null)? \(id: (\d+)(, deprecated)?\);", body)
        assert len(lines) == body.count(";"), f"a line of table {name} is not understood"
        tables[name] = tuple(
            Field(int(id_), field, ENUMS[kind][0] if kind in ENUMS else kind, bool(reserved))
            for field, kind, id_, reserved in lines
        )
    return tables


ENUMS = _enums()
TABLES = _tables()


def fields(table: str) -> dict[str, Field]:
    """The fields of a table by name, without deprecated ones."""
    return {field.name: field for field in TABLES[table] if not field.reserved}


# ---- generated code --------------------------------------------------------------------------------------------------


def flatc(*arguments: str | Path) -> None:
    """Run flatc: from the test extra, else the system's, which is installed if missing."""
    program = shutil.which("flatc", path=sysconfig.get_path("scripts")) or shutil.which("flatc")
    if program is None:
        subprocess.run([ROOT / "packaging" / "setup.sh", "flatc"], check=True, timeout=600)
        program = "flatc"
    subprocess.run([program, *arguments], check=True, timeout=60, capture_output=True)


@functools.cache
def _generated() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="blip-fbs-")
    flatc("--python", "-o", folder.name, FBS)
    sys.path.insert(0, folder.name)
    return folder


@functools.cache
def generated(table: str) -> ModuleType:
    """The Python module that flatc generates for a table."""
    _generated()
    return importlib.import_module(f"blip.{table}")


def generated_source(table: str) -> str:
    return (Path(_generated().name) / "blip" / f"{table}.py").read_text("utf-8")


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def encode(
    table: str, values: Mapping[str, Any], *, order: Iterable[str] | None = None, defaults: bool = False
) -> bytes:
    """A FlatBuffer from generated code. None: absent. `order`: in which the fields are added; `defaults`: write numbers
    even if they have their default value."""
    module, known = generated(table), fields(table)
    builder = flatbuffers.Builder(64)
    builder.ForceDefaults(defaults)
    parts = {name: value for name, value in values.items() if value is not None}
    for name, value in parts.items():
        if known[name].type == "string":
            parts[name] = builder.CreateString(value)
        elif known[name].type == "[ubyte]":
            parts[name] = builder.CreateByteVector(value)
    getattr(module, f"{table}Start")(builder)
    for name in order or parts:
        if name in parts:
            getattr(module, f"{table}Add{camel(name)}")(builder, parts[name])
    builder.Finish(getattr(module, f"{table}End")(builder))
    return bytes(builder.Output())


def decode(table: str, body: bytes) -> dict[str, Any]:
    """All fields of a FlatBuffer, decoded by generated code: strings and vectors as bytes, None if absent."""
    root = getattr(generated(table), table).GetRootAs(bytearray(body))
    values = {}
    for name, field in fields(table).items():
        if field.type != "[ubyte]":
            values[name] = getattr(root, camel(name))()
        elif getattr(root, camel(name) + "IsNone")():
            values[name] = None
        else:
            start = root._tab.Vector(root._tab.Offset(4 + 2 * field.id))
            values[name] = bytes(root._tab.Bytes[start : start + getattr(root, camel(name) + "Length")()])
    return values
