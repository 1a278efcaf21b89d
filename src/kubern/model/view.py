"""View: the read side of a decision. client/mirror.py implements it over local copies; tests build one from lists.

All objects handed out are shared: reading only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kubern.model.object import Object
from kubern.model.resource import Resource


class View(Protocol):
    """Local, indexed copies of the resources a controller declared in `reads`; names are plurals, "pods", "deployments.apps"."""

    def get(self, resource: str, namespace: str, name: str) -> Object | None: ...

    def list(self, resource: str, namespace: str | None = None) -> Iterable[Object]:
        """All of a resource, or those of one namespace (indexed)."""
        ...

    def owned(self, resource: str, owner_uid: str) -> Iterable[Object]:
        """Objects with an ownerReference of this uid (indexed)."""
        ...

    def by(self, resource: str, index: str, value: str) -> Iterable[Object]:
        """Objects by a named index: "nslabel:KEY" with "namespace/value",
        "spec.nodeName" for pods, "label:KEY" for a label's value, those of client/mirror.py INDEXES."""
        ...

    def find(self, uid: str) -> Object | None:
        """An object of any resource by its uid (only for a controller that watches everything)."""
        ...

    def dependents(self, uid: str) -> Iterable[Object]:
        """Objects of any resource with an ownerReference of this uid (only for a controller that watches everything)."""
        ...

    def served_elsewhere(self, api_version: str, kind: str) -> Resource | None:
        """The row of a kind of an aggregated API (only for a controller that watches everything)."""
        ...
