"""Wire facts: what upstream's Go types say of a field and no schema does — number, pointer, written when empty, type.

In: a definition's name ("io.k8s.api.core.v1.Pod"). Out: its fields. The facts stand in wire.txt (made by scripts/wire-table, its
head describes the format). Used to build schemas (model/schema.py) and by the protobuf codec (model/protobuf.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

SCALARS = {"s": "string", "i": "int32", "l": "int64", "b": "bool", "d": "float64", "f": "float32", "y": "[]uint8"}
_FIELD = re.compile(r"([^:]+):(\d+)([*!~]*)(.*)")
_TYPE = re.compile(r"((?:\[\]|\{[^}]*\})*)([\w.]+)(?:\(([\w.]+)\))?\Z")


@dataclass(frozen=True, slots=True)
class Field:
    """One field. type: scalar code or definition name; wrap: "" | "[]" | "{}" | "{}[]" …; go: the type as Go prints it."""

    name: str            # "<" for an embedded type
    number: int
    pointer: bool
    always: bool         # written even when empty
    zero: bool           # left out when zero, structs too (Go's omitzero)
    wrap: str
    type: str
    go: str

    @property
    def scalar(self) -> bool:
        return self.type in SCALARS


@cache
def _table() -> tuple[dict[str, str], dict[str, str]]:
    """(definition -> its line, package key -> prefix)."""
    lines: dict[str, str] = {}
    packages = {"resource": "io.k8s.apimachinery.pkg.api.resource", "intstr": "io.k8s.apimachinery.pkg.util.intstr"}
    prefix = ""
    for line in files("kubern.model").joinpath("wire.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("@"):
            prefix, key = line[1:].split()
            packages[key] = prefix
            continue
        name, _, rest = line.partition(" ")
        lines[f"{prefix}.{name}"] = rest
    return lines, packages


def package(definition: str) -> str:
    """The version, which is what Go prints as the package: "v1"."""
    return definition.rsplit(".", 2)[1]


def known(definition: str) -> bool:
    return definition in _table()[0]


@cache
def fields(definition: str) -> tuple[Field, ...]:
    """The fields of a type in the order of upstream's declaration; () where nothing is known."""
    lines, packages = _table()
    line = lines.get(definition, "")
    home = definition.rsplit(".", 1)[0]
    if line.startswith("="):
        return fields(_resolve(line[1:], home, packages))
    out = []
    for token in line.split():
        m = _FIELD.match(token)
        assert m, token
        name, number, flags, type_ = m.groups()
        t = _TYPE.match(type_)
        assert t, type_
        wrap, base, printed = t.groups()
        target = base if base in SCALARS else _resolve(base, home, packages)
        out.append(Field(name, int(number), "*" in flags, "!" in flags, "~" in flags, re.sub(r"\{[^}]*\}", "{}", wrap), target,
                         _printed(wrap, base, target, printed)))
    return tuple(out)


def _resolve(name: str, home: str, packages: dict[str, str]) -> str:
    key, _, simple = name.rpartition(".")
    return f"{packages.get(key, key) if key else home}.{simple}"


def _printed(wrap: str, base: str, target: str, printed: str | None) -> str:
    """Go's name of the type, as reflect prints it."""
    if base in SCALARS:
        text = printed or SCALARS[base]
    else:
        if printed:                      # a named list or map: printed under its own name
            return printed
        text = f"{package(target)}.{target.rsplit('.', 1)[1]}"
    for part in reversed(re.findall(r"\[\]|\{[^}]*\}", wrap)):
        text = "[]" + text if part == "[]" else f"map[{part[1:-1] or 'string'}]{text}"
    return text
