"""Configuration files of the API server: read strictly, checked against a shape, followed while the server runs.

A shape is written as the file itself looks: a mapping of field -> shape, a list of one shape, or a type; a `Duration` is Go's text and becomes
seconds. Unknown fields and wrong types are errors that name the field, as upstream's strict decoding has it. `follow` looks at the files'
identity once in a while and hands over what changed; a file that cannot be used any more is told in the log and changes nothing.
Not the settings of the command line (config.py). Upstream: apiserver pkg/apis/apiserver, server/options/{authenticationconfig,authorizationconfig}.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kubern.model.invalid import FieldError, aggregate, quote
from kubern.model.time import duration_s

log = logging.getLogger(__name__)

GROUP = "apiserver.config.k8s.io"
LOOK_EVERY_S = 2.0
BYTES_MAX = 10 * 1024 * 1024

RELOADS: dict[tuple[str, str], tuple[int, float]] = {}      # (what, success or failure) -> how often, and when last


class BadFile(ValueError):
    """A configuration file that cannot be used; the message says which and why, and never shows a secret."""


class Duration(float):
    """Seconds; in a file Go's text, "1m30s"."""


_WORDS = {str: "string", bool: "bool", int: "int32", dict: "object", list: "array"}


def decode(doc: Any, kind: str, versions: Iterable[str], shape: Mapping[str, Any], group: str = GROUP) -> dict[str, Any]:
    """A document of this kind in one of these versions, checked. Raises BadFile."""
    if not isinstance(doc, dict):
        raise BadFile(f"a {kind} of {group}/{next(iter(versions))} is wanted")
    if doc.get("kind") != kind or doc.get("apiVersion") not in [f"{group}/{v}" for v in versions]:
        raise BadFile(f"no kind {quote(str(doc.get('kind') or ''))} is registered for version {quote(str(doc.get('apiVersion') or ''))}; "
                      f"wanted is {kind} of {', '.join(f'{group}/{v}' for v in versions)}")
    problems: list[str] = []
    out = _checked({k: v for k, v in doc.items() if k not in ("kind", "apiVersion")}, shape, "", problems)
    if problems:
        raise BadFile("strict decoding error: " + ", ".join(problems))
    return out                                                       # type: ignore[no-any-return]


def _checked(value: Any, shape: Any, at: str, problems: list[str]) -> Any:
    """The value with durations read; null fields are left out."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            problems.append(f"{at or 'the document'}: must be an object")
            return {}
        problems.extend(f"unknown field {quote(f'{at}.{k}'.lstrip('.'))}" for k in value if k not in shape)
        return {k: _checked(v, shape[k], f"{at}.{k}".lstrip("."), problems) for k, v in value.items() if k in shape and v is not None}
    if isinstance(shape, list):
        if not isinstance(value, list):
            problems.append(f"{at}: must be an array")
            return []
        return [_checked(v, shape[0], f"{at}[{i}]", problems) for i, v in enumerate(value)]
    if shape is Duration:
        try:
            return duration_s(value if isinstance(value, str) else "")
        except ValueError as e:
            problems.append(f"{at}: {e}")
            return 0.0
    if not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        problems.append(f"{at}: must be of type {_WORDS[shape]}")
        return shape()
    return value


def refuse(what: str, errors: Iterable[FieldError]) -> None:
    """Raises BadFile if there are any errors, as upstream's aggregate reads; `what` stands before them."""
    texts = [e.text() for e in errors]
    if texts:
        raise BadFile(what + aggregate(texts))


def read(path: str | Path) -> Any:
    """The YAML document in a file. Raises BadFile."""
    import yaml

    try:
        data = Path(path).read_bytes()
        if len(data) > BYTES_MAX:
            raise BadFile(f"{path} is larger than {BYTES_MAX} bytes")
        return yaml.safe_load(data)
    except OSError as e:
        raise BadFile(str(e)) from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)                      # the error itself would show the text
        raise BadFile(f"{path} is not YAML" + (f" (line {mark.line + 1})" if mark else "")) from None


def stamp(paths: Iterable[str]) -> tuple[Any, ...]:
    """What tells whether files have changed."""
    out = []
    for p in paths:
        try:
            s = os.stat(p)
            out.append((s.st_mtime_ns, s.st_size, s.st_ino))
        except OSError:
            out.append((0, 0, 0))
    return tuple(out)


async def follow(path: str, changed: Callable[[], Awaitable[None]], what: str = "") -> None:
    """Runs for ever: calls `changed` after the file was. What it raises as BadFile is told and the file looked at again when it changes.
    `what`: the name under which RELOADS counts."""
    seen = stamp([path])
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        now = stamp([path])
        if now == seen:
            continue
        seen = now
        outcome = "success"
        try:
            await changed()
            log.info("%s was read again", path)
        except BadFile as e:
            outcome = "failure"
            log.error("%s has changed and cannot be used: %s; what it said before holds", path, e)
        RELOADS[what, outcome] = RELOADS.get((what, outcome), (0, 0.0))[0] + 1, time.time()
