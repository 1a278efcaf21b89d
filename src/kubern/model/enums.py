"""Enumerated types: the values a string field may have and what they mean, for those who read the API's documents.

In: a type as Go prints it ("v1.RestartPolicy", Schema.go). Out: its values, and the text that names them. The data stands in enums.txt.
It does not validate: each kind's rules do that, with their own words. Upstream: KEP-2887 (OpenAPI enum types).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def _table() -> dict[str, dict[str, str]]:
    """Type -> value -> what it means."""
    out: dict[str, dict[str, str]] = {}
    values: dict[str, str] = {}
    for line in files("kubern.model").joinpath("enums.txt").read_text().splitlines():
        if line.startswith(" "):
            value, end = json.JSONDecoder().raw_decode(line, 1)
            values[value] = line[end:]
        elif not line.startswith("#"):
            values = out[line] = {}
    return out


def values_of(go: str) -> tuple[str, ...]:
    """The values of a type in order; () where anything goes."""
    return tuple(_table().get(go, ()))


@cache
def meaning(go: str) -> str:
    """What a field's description ends with."""
    lines = [f" - `{json.dumps(value)}`{text}" for value, text in _table()[go].items()]
    return "\n\nPossible enum values:\n" + "\n".join(lines)
