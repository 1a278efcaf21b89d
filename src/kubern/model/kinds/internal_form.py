"""Values as upstream's internal types print them, for the few messages that show a whole struct or a difference of two.

`struct("Taint", {...})` gives the ordered form for a FieldError's value; `difference("PodSpec", old, new)` the unified diff that
stands in "may not change fields other than" messages. Types of other groups are "apps.DeploymentStrategy" and the like.
Facts: internal_form.txt, internal_form_groups.txt. Only read when an error is made.
"""

from __future__ import annotations

import difflib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from kubern.model.invalid import Struct

_FIELD = re.compile(r"(\w+?)(?:=([\w$-]+))?(?:(['#?q])|([*\[:])([\w.]+))?\Z")
_EMPTY = {"'": "", "#": 0, "?": False, "q": "0", None: None}
_HOST_FLAGS = {"HostNetwork": "hostNetwork", "HostPID": "hostPID", "HostIPC": "hostIPC",
               "ShareProcessNamespace": "shareProcessNamespace", "HostUsers": "hostUsers"}


@cache
def _table() -> dict[str, list[tuple[str, str, str | None, str | None, str | None]]]:
    """type -> [(printed name, JSON name, mark of the empty value, * [ or :, its type)]"""
    out = {}
    here = files("kubern.model.kinds")
    texts = [here.joinpath(f).read_text() for f in ("internal_form.txt", "internal_form_groups.txt")]
    for line in "\n".join(texts).splitlines():
        if line and not line.startswith("#"):
            name, *tokens = line.split()
            fields: list[tuple[str, str, str | None, str | None, str | None]] = []
            for token in tokens:
                if token[0] == "<":
                    fields.append((token, "", None, "<", token[1:]))
                    continue
                m = _FIELD.match(token)
                assert m, token
                fields.append((m[1], m[2] or m[1][0].lower() + m[1][1:], m[3], m[4], m[5]))
            out[name] = fields
    return out


def struct(type_: str, value: dict[str, Any] | None) -> Struct | None:
    """The value with every field of the type, in its order and spelling; None for None."""
    if value is None:
        return None
    out = Struct()
    for printed, name, mark, shape, inner in _table()[type_]:
        if shape == "<":
            out.update(value.get("metadata") or {} if inner == "meta" else struct(inner or "", value) or {})
            continue
        v = value.get(name)
        if inner is None:
            out[printed] = _selector(v) if printed.endswith("Selector") and isinstance(v, dict) else _EMPTY[mark] if v is None else v
        elif shape == "[":
            out[printed] = None if v is None else [struct(inner, i) for i in v]
        else:
            out[printed] = struct(inner, v if v is not None or shape == "*" else {})
    return out


def structs(type_: str, values: list[dict[str, Any]] | None) -> list[Any] | None:
    return None if values is None else [struct(type_, v) for v in values]


def _selector(value: dict[str, Any]) -> Any:
    """LabelSelector is of apimachinery and has JSON names; a node selector is a plain map."""
    if not value.keys() <= {"matchLabels", "matchExpressions"}:
        return value
    out = Struct()
    if value.get("matchLabels"):
        out["matchLabels"] = value["matchLabels"]
    if value.get("matchExpressions"):
        out["matchExpressions"] = [Struct((k, e[k]) for k in ("key", "operator", "values") if e.get(k)) for e in value["matchExpressions"]]
    return out


def pod_spec(spec: dict[str, Any]) -> Struct:
    """A pod spec in its internal form: what v1 has beside the security context stands inside it."""
    out = struct("PodSpec", spec)
    assert out is not None
    security = out["SecurityContext"]
    if security is None:
        security = out["SecurityContext"] = struct("PodSecurityContext", {})
    for printed, name in _HOST_FLAGS.items():
        if spec.get(name) is not None:
            security[printed] = spec[name]
    return out


def _sorted_maps(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _sorted_maps(value[k]) for k in (value if isinstance(value, Struct) else sorted(value))}
    return [_sorted_maps(v) for v in value] if isinstance(value, list) else value


def difference(old: Any, new: Any) -> str:
    """Unified diff, three lines of context, of two values in internal form."""
    a, b = ([f"{line}\n" for line in _pretty(v).split("\n")] for v in (old, new))
    return "".join(list(difflib.unified_diff(a, b, n=3))[2:])


_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def _pretty(value: Any) -> str:
    return json.dumps(_sorted_maps(value), indent=1, ensure_ascii=False).translate(_HTML)
