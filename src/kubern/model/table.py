"""Table: the meta.k8s.io/v1 form of one object or a list, which `kubectl get` prints (?includeObject=None|Metadata|Object).

Columns and cells come from the Kind; a kind without columns gets Name and Created At, custom resources the printer columns of
their CRD. Not here: negotiation of the form (api/negotiate.py) and what any one kind shows (model/kinds/columns_*.py).
Upstream: pkg/printers, apiserver registry/rest/table.go, apiextensions tableconvertor, apimachinery util/duration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from kubern.model.kinds.kind import Column, Kind
from kubern.model.object import Object
from kubern.model.status import StatusError, bad_request

INCLUDE = ("None", "Metadata", "Object")
NAME = Column("Name", "string", "name", "@meta.v1.ObjectMeta.name")
AGE = Column("Age", "string", "", "@meta.v1.ObjectMeta.creationTimestamp")
CREATED = Column("Created At", "date", "", "@meta.v1.ObjectMeta.creationTimestamp")
_META_PREFIX = "io.k8s.apimachinery.pkg.apis."
_API_PREFIX = "io.k8s.api."


def human_duration(seconds: float) -> str:
    """A duration in two or three significant figures: "5s", "2m30s", "47h", "3d4h", "2y10d"."""
    s = int(seconds)
    if s < -1:
        return "<invalid>"
    if s < 0:
        return "0s"
    if s < 120:
        return f"{s}s"
    minutes = s // 60
    if minutes < 10:
        return _two(minutes, "m", s % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    hours = s // 3600
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 24 * 8:
        return _two(hours // 24, "d", hours % 24, "h")
    if hours < 24 * 365 * 2:
        return f"{hours // 24}d"
    if hours < 24 * 365 * 8:
        return _two(hours // 24 // 365, "y", hours // 24 % 365, "d")
    return f"{hours // 24 // 365}y"


def _two(a: int, a_unit: str, b: int, b_unit: str) -> str:
    return f"{a}{a_unit}{b}{b_unit}" if b else f"{a}{a_unit}"


@lru_cache(maxsize=4096)
def seconds_of(time: str) -> float | None:
    """An RFC 3339 time as seconds since 1970, None where it is none."""
    try:
        t = datetime.fromisoformat(time)
    except ValueError:
        return None
    return (t if t.tzinfo else t.replace(tzinfo=UTC)).timestamp()


def since(time: str | None, now_s: float) -> str:
    """How long ago a timestamp of an object was, "<unknown>" where it has none."""
    at = seconds_of(time) if time else None
    return "<unknown>" if at is None else human_duration(now_s - at)


def age(obj: Object, now_s: float) -> str:
    return since(obj["metadata"].get("creationTimestamp"), now_s)


def _describe(text: str) -> str:
    """A description; "@core.v1.PodStatus.podIP" stands for that field's documentation in the schema."""
    if not text.startswith("@"):
        return text
    from kubern.model.schema import describe

    definition, _, field = text[1:].rpartition(".")
    return describe((_META_PREFIX if definition.startswith("meta.") else _API_PREFIX) + definition).get(field, "")


@lru_cache(maxsize=512)
def definitions(columns: tuple[Column, ...]) -> list[dict[str, Any]]:
    """The columnDefinitions of a Table; () gives the default columns. Shared: reading only."""
    return [{"name": c.name, "type": c.type, "format": c.format, "description": _describe(c.description), "priority": c.priority}
            for c in columns or (NAME, CREATED)]


def _default_cells(obj: Object, now_s: float) -> list[Any]:
    m = obj["metadata"]
    return [m.get("name") or "", m.get("creationTimestamp")]


_COMPLETED = {
    phase: [{"type": "Completed", "status": "True", "reason": phase, "message": text}]
    for phase, text in (("Succeeded", "The pod has completed successfully."), ("Failed", "The pod failed."))}


def row(kind: Kind, obj: Object, include: str, now_s: float, meta_version: str = "meta.k8s.io/v1", printed: Object | None = None) -> dict[str, Any]:
    """One row. obj carries kind and apiVersion; they go out only with include "Object". printed: what the cells are made of, if not of obj."""
    out: dict[str, Any] = {"cells": (kind.cells or _default_cells)(printed or obj, now_s)}
    if obj.get("kind") == "Pod" and obj.get("apiVersion") == "v1":
        conditions = _COMPLETED.get((obj.get("status") or {}).get("phase") or "")
        if conditions:
            out["conditions"] = conditions
    if include == "Object":
        out["object"] = obj
    elif include == "None":
        out["object"] = None
    else:
        out["object"] = {"kind": "PartialObjectMetadata", "apiVersion": meta_version, "metadata": obj["metadata"]}
    return out


def check_include(include: str) -> str:
    """The checked value of ?includeObject=, "Metadata" where it is empty."""
    if include and include not in INCLUDE:
        raise bad_request(f'unrecognized includeObject value: "{include}"')
    return include or "Metadata"


def table(kind: Kind, objects: Iterable[Object], list_meta: dict[str, Any], include: str, now_s: float, headers: bool = True,
          meta_version: str = "meta.k8s.io/v1", printed: Sequence[Object] | None = None) -> Object:
    """The Table of some objects; `printed`: those that their cells are made of, if others. list_meta: resourceVersion, continue,
    remainingItemCount of the list (of one object: its resourceVersion).
    headers=False leaves columnDefinitions null, as every watch event after the first has them."""
    return {
        "kind": "Table", "apiVersion": meta_version, "metadata": list_meta,
        "columnDefinitions": definitions(kind.columns) if headers else None,
        "rows": [row(kind, o, include, now_s, meta_version, printed[i] if printed is not None else None) for i, o in enumerate(objects)]}


def not_acceptable(resource: str) -> StatusError:
    """406 for results that have no Table form."""
    return StatusError(406, "NotAcceptable", f"the resource {resource} does not support being converted to a Table")


def custom(columns: Sequence[dict[str, Any]]) -> Kind:
    """A Kind with only the Table form of a custom resource, from the additionalPrinterColumns of its version ([] gives Name and Age)."""
    rows = columns or [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
                        "description": _describe(AGE.description)}]
    made = [NAME]
    finders = []
    for c in rows:
        path = c.get("jsonPath") or ""
        text = c.get("description") or f"Custom resource definition column (in JSONPath format): {path}"
        made.append(Column(c["name"], c["type"], c.get("format") or "", text, c.get("priority") or 0))
        finders.append((_finder(path), c["type"]))

    def cells(obj: Object, now_s: float) -> list[Any]:
        return [obj["metadata"].get("name") or "", *(find_cell(f, t, obj, now_s) for f, t in finders)]

    return Kind(columns=tuple(made), cells=cells)


def _finder(path: str) -> Callable[[Object], list[Any]]:
    from kubern.model.jsonpath import find

    return find(path)


def find_cell(find: Callable[[Object], list[Any]], type_: str, obj: Object, now_s: float) -> Any:
    """The first result of a printer column as its cell: a string is printed, other types must fit or are null."""
    try:
        results = find(obj)
    except (ValueError, StatusError):
        return None
    if not results:
        return None
    value = results[0]
    if type_ == "string":
        from kubern.model.jsonpath import text

        return text(value)
    if value is None:
        return None
    if type_ == "integer":
        return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if type_ == "number":
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if type_ == "boolean":
        return value if isinstance(value, bool) else None
    if type_ == "date" and isinstance(value, str):
        at = seconds_of(value)
        return "<invalid>" if at is None else human_duration(now_s - at)
    return None
