"""Intent: what a pure decision asks for. Frozen data; client/loop.py executes it through the client, in order.

A reconcile yields intents and never performs them. The object of Create/Update is complete and never touched afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kubern.model.object import Object
from kubern.model.resource import Resource


@dataclass(frozen=True, slots=True)
class Create:
    obj: Object                                 # apiVersion and kind say which resource
    ignore_exists: bool = False                 # AlreadyExists is success
    subresource: str = ""                       # e.g. "eviction", "binding"; then `name` of the parent is obj's name
    parent: tuple[str, str] | None = None       # (apiVersion, kind) of the parent, for a subresource whose body is of another kind


@dataclass(frozen=True, slots=True)
class Update:
    obj: Object                                 # with the resourceVersion the decision was made on: a conflict means decide again
    subresource: str = ""                       # "status", "scale"


@dataclass(frozen=True, slots=True)
class Patch:
    api_version: str
    kind: str
    namespace: str
    name: str
    patch: Any                                  # merge or strategic: a dict; json: a list of operations; apply: the object
    type: str = "merge"                         # merge | strategic | json | apply
    subresource: str = ""
    field_manager: str = ""
    force: bool = False
    ignore_missing: bool = False                # NotFound is success


@dataclass(frozen=True, slots=True)
class Delete:
    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""                               # precondition
    revision: str = ""                          # precondition: resourceVersion
    grace_s: int | None = None
    propagation: str = ""                       # "" | Background | Foreground | Orphan
    ignore_missing: bool = True


@dataclass(frozen=True, slots=True)
class DeleteAll:
    """A collection's DELETE. The mirrors are not waited for."""

    resource: Resource
    namespace: str = ""
    labels: str = ""
    fields: str = ""
    propagation: str = ""


@dataclass(frozen=True, slots=True)
class Fetch:
    """A live read of a path (or a call of another method whose answer decides): what no mirror holds. Failing does not repeat the pass."""

    path: str
    query: dict[str, list[str]] = field(default_factory=dict)
    method: str = "GET"
    body: Any = None
    accept: str = "application/json"


@dataclass(frozen=True, slots=True)
class Emit:
    """An Event about an object; the loop aggregates and rate-limits as client-go's recorder does."""

    regarding: Object                           # the object, or a dict with apiVersion, kind, metadata
    type: str                                   # Normal | Warning
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """Look at this key again after so many seconds, whether or not anything changes."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Again:
    """This pass could not do its work: repeat it with backoff. Success of everything else ends the backoff."""

    why: str


Intent = Create | Update | Patch | Delete | DeleteAll | Fetch | Emit | Requeue | Again


@dataclass(frozen=True, slots=True)
class Failed:
    """What the loop hands back into a reconcile (`result = yield intent`) when the intent was refused."""

    intent: Any
    code: int
    reason: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
