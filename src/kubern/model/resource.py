"""Resource: one row of the resource table, from which routing, discovery, RBAC, tables, storage and GC are read.

The rows themselves stand in model/resources.py (built-ins) or come from CRDs (api/crd.py makes the same rows).
"""

from __future__ import annotations

from dataclasses import dataclass, field

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Subresource:
    """A subresource as discovery shows it; `kind`/`group`/`version` are of the body it takes ("" = the parent's)."""

    name: str                      # "status", "scale", "binding", "eviction", "log", "exec", "token", …
    verbs: tuple[str, ...]
    kind: str = ""
    group: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    group: str                     # "" for core
    version: str                   # the version this row serves
    plural: str
    kind: str
    singular: str = ""
    namespaced: bool = True
    verbs: tuple[str, ...] = ALL_VERBS
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    storage_version: str = ""      # "" = this version; rows of several versions of a kind name the same one
    storage_group: str | None = None  # set where two groups serve one store: events.k8s.io reads and writes core events ("")
    hash_version: str = ""         # the version whose hash discovery shows, where that is not the storage version
    fields: tuple[str, ...] = ()   # field-selector paths besides metadata.name and metadata.namespace, e.g. "spec.nodeName"
    custom: bool = False           # True for rows that CRDs make
    list_kind: str = field(default="")

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage(self) -> tuple[str, str]:
        """(group, plural) that names the collection in the store; shared by all versions."""
        return (self.group if self.storage_group is None else self.storage_group), self.plural

    @property
    def prefix(self) -> str:
        """The path its collection lives under, without namespace: "/api/v1" or "/apis/apps/v1"."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def subresource(self, name: str) -> Subresource | None:
        for s in self.subresources:
            if s.name == name:
                return s
        return None
