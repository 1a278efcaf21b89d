"""Intent: what a pure decision asks for. Frozen data; client/loop.py executes it through the client, in order.

A reconcile yields intents and never performs them. The object of Create/Update is complete and never touched afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kubern.model.object import Object


@dataclass(frozen=True, slots=True)
class Create:
    obj: Object                                 # apiVersion and kind say which resource
    ignore_exists: bool = False                 # AlreadyExists is success
    subresource: str = ""                       # e.g. "eviction", "binding"; then `name` of the parent is obj's name


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


Intent = Create | Update | Patch | Delete | Emit | Requeue


@dataclass(frozen=True, slots=True)
class Failed:
    """What the loop hands back into a reconcile (`result = yield intent`) when the intent was refused."""

    intent: Any
    code: int
    reason: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
