"""Devices of nodes that do not exist: a view in which a template's ResourceSlices stand for every imagined node. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kubern.model.object import Object, meta
from kubern.model.view import View
from kubern.scheduler.claims import SLICES
from kubern.scheduler.table import NodeTable

PREFIXES = ("template-", "upcoming-")            # names of imagined nodes: PREFIX GROUP-NUMBER (scheduler/grow.py)


class Imagined:
    """The view with slices for the imagined nodes of `table`. `slices_of(group)`: those of one node of the group."""

    def __init__(self, view: View, slices_of: Callable[[str], Iterable[Object]]) -> None:
        self.view, self.slices_of = view, slices_of
        self.table: NodeTable | None = None
        self.get, self.owned, self.by, self.find, self.dependents = view.get, view.owned, view.by, view.find, view.dependents
        self.served_elsewhere = view.served_elsewhere

    def list(self, resource: str, namespace: str | None = None) -> Iterable[Object]:
        found = self.view.list(resource, namespace)
        if resource != SLICES or self.table is None:
            return found
        out = [*found]
        for node in self.table.slots:
            if node.startswith(PREFIXES):
                out += [_moved(s, node) for s in self.slices_of(node.partition("-")[2].rpartition("-")[0])]
        return out


def _moved(slice_: Object, node: str) -> Object:
    """The slice as this node would have it: its devices are others than those it is like."""
    spec: dict[str, Any] = slice_["spec"]
    pool = spec.get("pool") or {}
    return {**slice_, "metadata": {**meta(slice_), "name": f"{meta(slice_).get('name')}-{node}"},
            "spec": {**spec, "nodeName": node, "pool": {**pool, "name": f"{pool.get('name')}@{node}"}}}
