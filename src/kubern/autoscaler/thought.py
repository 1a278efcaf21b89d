"""Thought: the node table that grow and shrink look at, and what of a pod's volumes and devices they must ask. Made anew from the mirrors each time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from kubern.autoscaler.devices import Imagined
from kubern.client.mirror import Mirrors
from kubern.model.object import Object, meta
from kubern.scheduler import claims, volumes
from kubern.scheduler.pick import Extra
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.table import NodeTable

READS = ("pods", "nodes", "namespaces", "persistentvolumeclaims", "persistentvolumes", volumes.CLASSES, volumes.CSINODES, volumes.DRIVERS,
         volumes.CAPACITIES, claims.CLAIMS, claims.SLICES, claims.DEVICE_CLASSES)


class Thought:
    """Owns what is known of pods from the last time, by revision. `slices_of(group)`: the ResourceSlices of a new node."""

    def __init__(self, mirrors: Mirrors, slices_of: Callable[[str], Iterable[Object]], clock: Callable[[], float]) -> None:
        self.mirrors = mirrors
        self._infos: dict[str, tuple[str, PodInfo]] = {}
        self._volume_filters, self._volume_prefilters = volumes.filters(mirrors, {}), volumes.prefilters(mirrors)
        self._allocating: dict[str, Any] = {}
        self._view = Imagined(mirrors, slices_of)
        self._devices = claims.DynamicResources(self._view, self._allocating, clock)

    def table(self, nodes: Mapping[str, Object], without: Collection[str]) -> NodeTable:
        """Nodes that are there and count, with their pods. Those on their way (`without`) are grow's to imagine."""
        table = NodeTable()
        for ns in self.mirrors.list("namespaces"):
            table.set_namespace(meta(ns)["name"], meta(ns).get("labels") or {})
        for name, node in nodes.items():
            if name not in without:
                table.set_node(node)
        kept: dict[str, tuple[str, PodInfo]] = {}
        for pod in self.mirrors.list("pods"):
            m = meta(pod)
            where = (pod.get("spec") or {}).get("nodeName")
            if where and where in table.slots and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                known = self._infos.get(m["uid"])
                if known is None or known[0] != m["resourceVersion"]:
                    known = (m["resourceVersion"], pod_info(pod))
                known[1].slot = -1
                kept[m["uid"]] = known
                table.add_pod(known[1], where)
        self._infos = kept
        self._view.table = table
        return table

    def extra_for(self, p: PodInfo) -> Extra:
        devices = self._devices.concerns(p)
        return Extra(
            filters=self._volume_filters if p.volumes else (),
            prefilters=(*(self._volume_prefilters if p.volumes else ()), *((("DynamicResources", self._devices.prefilter),) if devices else ())),
            late_filters=(("DynamicResources", self._devices.filter),) if devices else ())

    def reserve(self, p: PodInfo, slot: int) -> Callable[[], None]:
        """The pod takes devices while the thought lasts."""
        assert self._view.table is not None
        taken = self._devices.reserve(p, self._view.table, slot).uids

        def give_back() -> None:
            for claim in taken:
                self._allocating.pop(claim, None)
        return give_back
