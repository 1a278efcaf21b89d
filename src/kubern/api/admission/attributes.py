"""Attributes: one request as admission sees it, and the words of its refusals. Plugin: one row of the chain.

A mutating plugin changes `obj` in place (it is freshly parsed and owned by the request); a validating one only looks.
Upstream: apiserver admission/{interfaces,attributes,errors}.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kubern.model.invalid import FieldError
from kubern.model.object import Object, clone
from kubern.model.request import User
from kubern.model.resource import Resource
from kubern.model.status import StatusError, forbidden

if TYPE_CHECKING:
    from kubern.api.authz import Authorizer
    from kubern.api.forms import Served

CREATE, UPDATE, DELETE, CONNECT = "CREATE", "UPDATE", "DELETE", "CONNECT"


class Reader(Protocol):
    """The API's cache: objects for reading only, without kind and apiVersion. Resources by name, "deployments.apps"."""

    def get(self, resource: str, namespace: str, name: str) -> Object | None: ...

    def list(self, resource: str, namespace: str | None = None) -> Iterable[Object]: ...

    def changed(self, resource: str) -> int:
        """The revision of the newest change of a collection; 0 where there never was one."""
        ...


class Writer(Protocol):
    """How a plugin writes on its own behalf (quota usage): the API itself, as system:masters. client.Client is one."""

    async def update(self, obj: Object, subresource: str = "") -> Object: ...


def _ignore(text: str) -> None:
    return None


class Rounds:
    """What one mutating plugin remembers of the first pass, should there be a second: whom it may ask again, and whom it must."""

    def __init__(self, again: bool) -> None:
        self.again, self.dirty = again, False
        self._asked: set[Any] = set()            # may be asked again
        self._due: set[Any] = set()
        self._last: Object | None = None

    def begin(self, obj: Object | None, again: bool) -> None:
        self.again, self.dirty = again, False
        if again and self._asked and obj != self._last:
            self.require()

    def end(self, obj: Object | None) -> None:
        self._last = clone(obj) if self._asked and obj is not None else None

    def due(self, key: Any) -> bool:
        return not self.again or key in self._due

    def invoked(self, key: Any) -> None:
        self._asked.add(key)

    def require(self) -> None:
        """The object changed: everybody asked before is asked again in the second pass."""
        self._due |= self._asked
        self._asked.clear()


class Passes:
    """The mutating chain runs at most twice: the second time because a policy or webhook changed the object."""

    def __init__(self) -> None:
        self.again = self.wanted = False
        self._plugins: dict[str, Rounds] = {}

    def of(self, plugin: str, obj: Object | None) -> Rounds:
        rounds = self._plugins.get(plugin)
        if rounds is None:
            rounds = self._plugins[plugin] = Rounds(self.again)
        rounds.begin(obj, self.again)
        return rounds


@dataclass(slots=True)
class Attributes:
    operation: str                       # CREATE UPDATE DELETE CONNECT
    resource: Resource
    subresource: str
    namespace: str
    name: str                            # "" on create with generateName
    obj: Object | None                   # None on delete; the Binding, Eviction … of such subresources; the options of a connect
    old: Object | None                   # None on create and connect
    user: User
    reader: Reader
    dry_run: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)      # CreateOptions, UpdateOptions … as an object
    warn: Callable[[str], None] = _ignore                         # adds a Warning header
    authorizer: Authorizer | None = None
    writer: Writer | None = None
    audit: dict[str, str] = field(default_factory=dict)           # annotations for the audit log
    served: Served | None = None                                  # the row with its kind and schema, to fit what webhooks and policies made
    passes: Passes | None = None
    verb: str = ""                        # the request's: update or patch, where both are UPDATE
    errors: list[FieldError] = field(default_factory=list)       # what is told with all that is wrong with the object, and refuses it then

    @property
    def rounds(self) -> Passes:
        if self.passes is None:
            self.passes = Passes()
        return self.passes

    @property
    def what(self) -> str:
        """"pods", "pods/binding", "deployments.apps": as plugins name what they handle."""
        r = self.resource
        name = f"{r.plural}.{r.group}" if r.group else r.plural
        return f"{name}/{self.subresource}" if self.subresource else name

    def shown_name(self) -> str:
        """The name a refusal shows."""
        if self.name:
            return self.name
        m = (self.obj or {}).get("metadata") or {}
        return m.get("name") or m.get("generateName") or "Unknown"

    def refuse(self, why: str) -> StatusError:
        """The 403 of a plugin."""
        return forbidden(self.resource.group, self.resource.plural, self.shown_name(), why)


Step = Callable[[Attributes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Plugin:
    """`handles` names resources as Attributes.what does; "*" is everything, subresources too."""

    name: str
    operations: tuple[str, ...]
    handles: tuple[str, ...]
    mutate: Step | None = None
    validate: Step | None = None


def spec_of(obj: Object | None) -> dict[str, Any]:
    """The spec of an object, made where it is missing (validation will say what it lacks)."""
    assert obj is not None
    spec = obj.get("spec")
    if spec is None:
        spec = obj["spec"] = {}
    return spec


def annotations_of(obj: Object | None) -> dict[str, str]:
    """The annotations of an object, for reading."""
    return ((obj or {}).get("metadata") or {}).get("annotations") or {}


def is_true(text: str | None) -> bool:
    """Go's strconv.ParseBool, false for anything else."""
    return text in ("1", "t", "T", "TRUE", "true", "True")
