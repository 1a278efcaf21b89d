"""OpenAPI documents of aggregated servers: how they are fetched, and how their v2 documents become one with ours.

The v3 document of a group version is passed on as it came. Of a v2 document, which tells of a whole server, the paths of the group version and what
they need are taken; names of definitions and parameters that mean something else here get another one ("Thing_v2"). What cannot be had or read is
left out. Upstream: kube-aggregator pkg/controllers/openapi{,v3}, kube-openapi pkg/aggregator.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import orjson

Doc = dict[str, Any]
Fetch = Callable[[str, str], Awaitable["tuple[int, bytes, str]"]]      # (path, the tag of what is known) -> (status, body, its tag)
_GVK = "x-kubernetes-group-version-kind"
_SHARED = ("definitions", "parameters")


class Remote(NamedTuple):
    """What one group version has: the v3 document, what the v2 document says of it, and the tags by which to ask again."""

    v3: bytes = b""
    v2: bytes = b""
    v3_tag: str = ""
    v2_tag: str = ""

    @property
    def hash(self) -> str:
        """Of both, for the tags of our own documents."""
        return hashlib.sha512(self.v3 + b"\0" + self.v2).hexdigest().upper()


async def learn(fetch: Fetch, group: str, version: str, known: Remote) -> Remote:
    """Both documents as they are now."""
    (v3, v3_tag), (v2, v2_tag) = await asyncio.gather(
        _document(fetch, f"/openapi/v3/apis/{group}/{version}", known.v3, known.v3_tag, _v3),
        _document(fetch, "/openapi/v2", known.v2, known.v2_tag, lambda doc, body: _v2(doc, f"/apis/{group}/{version}/")))
    return Remote(v3, v2, v3_tag, v2_tag)


async def _document(fetch: Fetch, path: str, known: bytes, tag: str, made: Callable[[Doc, bytes], bytes]) -> tuple[bytes, str]:
    status, body, new_tag = await fetch(path, tag if known else "")
    if status == 304:
        return known, tag
    try:
        doc = orjson.loads(body) if status == 200 else None
        return (made(doc, body), new_tag) if isinstance(doc, dict) and isinstance(doc.get("paths"), dict) else (b"", "")
    except (orjson.JSONDecodeError, TypeError, AttributeError):
        return b"", ""


def _v3(doc: Doc, body: bytes) -> bytes:
    return body if str(doc.get("openapi") or "").startswith("3") else b""


def _v2(doc: Doc, prefix: str) -> bytes:
    if doc.get("swagger") != "2.0":
        return b""
    return orjson.dumps(only(doc, [path for path in doc["paths"] if path.startswith(prefix)]))


def only(doc: Doc, paths: Iterable[str]) -> Doc:
    """Some paths of a v2 document, and the definitions and parameters that they need."""
    out: Doc = {"paths": {path: doc["paths"][path] for path in paths}}
    needed: dict[str, Doc] = {kind: {} for kind in _SHARED}
    todo: list[Any] = [out["paths"]]
    while todo:
        value = todo.pop()
        for kind, name in _references(value):
            node = (doc.get(kind) or {}).get(name)
            if isinstance(node, dict) and name not in needed[kind]:
                needed[kind][name] = node
                todo.append(node)
    return out | needed


def _references(value: Any) -> Iterable[tuple[str, str]]:
    """("definitions", name) for each {"$ref": "#/definitions/name"} inside, parameters likewise."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            target = node.get("$ref")
            if isinstance(target, str):
                _, kind, name = (*target.split("/", 2), "", "")[:3]
                if kind in _SHARED:
                    yield kind, name
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def merged(ours: Doc, others: Iterable[Doc]) -> Doc:
    """Our v2 document with what others have besides."""
    out = {**ours, **{kind: dict(ours.get(kind) or {}) for kind in ("paths", *_SHARED)}}
    for other in others:
        new = [path for path in other["paths"] if path not in out["paths"]]
        if not new:
            continue
        other = only(other, new)
        for kind in _SHARED:
            other = _renamed(other, kind, _names(out[kind], other[kind]))
        for kind in _SHARED:
            for name, node in other[kind].items():
                if name not in out[kind]:
                    out[kind][name] = node
                elif kind == "definitions" and node.get(_GVK) != out[kind][name].get(_GVK):
                    out[kind][name] = {**out[kind][name], _GVK: _all_gvks(out[kind][name], node)}
        out["paths"] |= other["paths"]
    return out


def _bare(node: Any) -> Any:
    """A definition without the kinds that are made of it."""
    return {k: v for k, v in node.items() if k != _GVK} if isinstance(node, dict) else node


def _all_gvks(a: Doc, b: Doc) -> list[Any]:
    first = a.get(_GVK) or []
    return [*first, *(g for g in b.get(_GVK) or [] if g not in first)]


def _names(ours: Doc, theirs: Doc) -> dict[str, str]:
    """Their names that mean something else here -> what they are called instead."""
    out: dict[str, str] = {}
    used = set(ours)
    for name, node in theirs.items():
        if name not in ours or _bare(ours[name]) == _bare(node):
            continue
        i = 2
        while (new := f"{name}_v{i}") in used or new in theirs:
            if new in ours and _bare(ours[new]) == _bare(node):
                break                                           # renamed like this before
            i += 1
        out[name] = new
        used.add(new)
    return out


def _renamed(value: Any, kind: str, names: dict[str, str]) -> Any:
    if not names:
        return value
    prefix = f"#/{kind}/"

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            target = node.get("$ref")
            if isinstance(target, str) and target.startswith(prefix):
                name = target.removeprefix(prefix)
                return {**node, "$ref": prefix + names.get(name, name)}
            return {k: walk(v) for k, v in node.items()}
        return [walk(v) for v in node] if isinstance(node, list) else node
    out = walk(value)
    out[kind] = {names.get(name, name): node for name, node in out[kind].items()}
    return out
