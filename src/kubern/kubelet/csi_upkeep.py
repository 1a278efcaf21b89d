"""Upkeep of CSI volumes that are published on this node: they grow, are published again, and the driver's count of volumes is kept true.

Growing is the node's half of expansion: once an external resizer has made the volume larger and says so in the claim's status, the driver is
asked to grow the file system. Upstream: operationexecutor/node_expander.go; KEP-1790 (recovery), KEP-4876 (mutable counts);
CSIDriver.requiresRepublish.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from kubern.kubelet import proto
from kubern.kubelet.csi import Drivers, Published, capability
from kubern.kubelet.csi_driver import EXPAND, Driver, ask, call, classes
from kubern.kubelet.projection import Missing
from kubern.model import quantity
from kubern.model.intent import Emit
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError
from kubern.model.time import rfc3339

log = logging.getLogger(__name__)

CLAIMS, VOLUMES = by_path["", "v1", "persistentvolumeclaims"], by_path["", "v1", "persistentvolumes"]
LOOK_S, REPUBLISH_S = 2.0, 60.0
PENDING = ("NodeResizePending", "NodeResizeInProgress")
RESIZE_CONDITIONS = ("Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError")
INFEASIBLE = ("INVALID_ARGUMENT", "OUT_OF_RANGE", "NOT_FOUND")                  # codes after which growing is not tried again
Tell = Callable[[Emit], None]


class Upkeep:
    def __init__(self, drivers: Drivers, tell: Tell, clock: Callable[[], float]) -> None:
        self.drivers, self.tell, self.clock = drivers, tell, clock
        self._next_count_s: dict[str, float] = {}
        self._failed: dict[str, tuple[float, float]] = {}                       # target -> (not before, the wait)

    async def run(self) -> None:
        """For ever; costs nothing while no volume is published."""
        d = self.drivers
        republish_s = self.clock() + REPUBLISH_S
        while True:
            if not d.published:
                d.changed.clear()
                await d.changed.wait()
            for v in list(d.published.values()):
                if v.pv and d.client is not None:
                    await self._guarded(v, self.grow(v))
            if self.clock() >= republish_s:
                republish_s = self.clock() + REPUBLISH_S
                for v in list(d.published.values()):
                    await self._guarded(v, self.republish(v))
            for driver in list(d.known.values()):
                await self._guarded(None, self.count(driver))
            await asyncio.sleep(LOOK_S)

    async def _guarded(self, v: Published | None, work: Any) -> None:
        try:
            await work
        except (StatusError, Missing, OSError, EOFError) as e:
            log.info("csi: %s: %s", v.target if v else "count", e)

    async def republish(self, v: Published) -> None:
        """Of drivers that ask for it: tokens and secrets that change reach the volume this way."""
        import grpc.aio

        driver = self.drivers.known.get(v.driver)
        spec = await self.drivers.driver_spec(v.driver) or {}
        if driver is None or not spec.get("requiresRepublish"):
            return
        try:
            await self.drivers.publish_again(v, driver, spec)
        except grpc.aio.AioRpcError as e:
            self.tell(Emit(_pod(v), "Warning", "FailedMount", f'MountVolume.SetUp failed for volume "{v.name}" : {proto.go_error(e)}'))

    async def count(self, driver: Driver) -> None:
        """Drivers whose CSIDriver has a nodeAllocatableUpdatePeriodSeconds are asked again how many volumes they take."""
        if not self.drivers.client or self.clock() < self._next_count_s.get(driver.name, 0.0):
            return
        period = (await self.drivers.driver_spec(driver.name) or {}).get("nodeAllocatableUpdatePeriodSeconds") or 0
        self._next_count_s[driver.name] = self.clock() + (period or REPUBLISH_S)
        if period:
            now = await ask(driver.name, driver.socket)
            if now.volumes_max != driver.volumes_max and driver.name in self.drivers.known:
                await self.drivers.tell_api(driver.name, now)
                self.drivers.known[driver.name] = now

    # --- growing ---

    async def grow(self, v: Published) -> None:
        """If the claim waits for this node."""
        import grpc.aio

        client, driver = self.drivers.client, self.drivers.known.get(v.driver)
        ref = v.pv["spec"].get("claimRef") or {}
        if client is None or driver is None or not ref or self.clock() < self._failed.get(v.target, (0.0, 0.0))[0]:
            return
        claim = await client.get(CLAIMS, ref["namespace"], ref["name"])
        status = claim.get("status") or {}
        if (status.get("allocatedResourceStatuses") or {}).get("storage") not in PENDING:
            return
        size = (await client.get(VOLUMES, "", v.pv["metadata"]["name"]))["spec"]["capacity"]["storage"]
        if EXPAND not in driver.can:
            return
        claim = await self._patch(claim, {"allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}})
        c = classes()
        secrets = await self.drivers.secret(v.source.get("nodeExpandSecretRef"))
        try:
            await call(driver.socket, "/csi.v1.Node/NodeExpandVolume", c["NodeExpandVolumeRequest"](
                volume_id=v.handle, volume_path=v.target, staging_target_path=v.staging, volume_capability=capability(v, driver),
                capacity_range={"required_bytes": quantity.value(size)}, secrets=secrets), "NodeExpandVolumeResponse")
        except grpc.aio.AioRpcError as e:
            await self._not_grown(v, claim, e)
            return
        self._failed.pop(v.target, None)
        done = f'MountVolume.NodeExpandVolume succeeded for volume "{v.pv["metadata"]["name"]}" {self.drivers.node}'
        for about in (_pod(v), {**claim, "apiVersion": "v1", "kind": "PersistentVolumeClaim"}):
            self.tell(Emit(about, "Normal", "FileSystemResizeSuccessful", done))
        await self._patch(claim, {"capacity": {"storage": size}, "allocatedResourceStatuses": {"storage": None}}, ())

    async def _not_grown(self, v: Published, claim: Object, e: Any) -> None:
        why = f"Expander.NodeExpand failed to expand the volume {proto.go_error(e)}"
        wait_s = min(self._failed.get(v.target, (0.0, 0.5))[1] * 2, 120.0)
        self._failed[v.target] = (self.clock() + wait_s, wait_s)
        self.tell(Emit(_pod(v), "Warning", "VolumeResizeFailed", f'NodeExpandVolume failed for volume "{v.pv["metadata"]["name"]}" : {why}'))
        change: dict[str, Any] = {"allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}} if e.code().name in INFEASIBLE else {}
        error = {"type": "NodeResizeError", "status": "True", "lastTransitionTime": rfc3339(self.clock()), "message": f"failed to expand pvc with {why}"}
        kept = [c for c in (claim.get("status") or {}).get("conditions") or () if c.get("type") != "NodeResizeError"]
        await self._patch(claim, {**change, "conditions": [*kept, error]})

    async def _patch(self, claim: Object, status: Mapping[str, Any], resize_conditions: tuple[()] | None = None) -> Object:
        """The claim afterwards; with `resize_conditions` () those about resizing go."""
        assert self.drivers.client is not None
        body = dict(status)
        if resize_conditions is not None:
            have = (claim.get("status") or {}).get("conditions") or []
            body["conditions"] = [c for c in have if c.get("type") not in RESIZE_CONDITIONS] or None
        m = claim["metadata"]
        patch = {"metadata": {"resourceVersion": m["resourceVersion"]}, "status": body}
        return await self.drivers.client.patch(CLAIMS, m["namespace"], m["name"], patch, subresource="status")


def _pod(v: Published) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": v.pod["metadata"]}
