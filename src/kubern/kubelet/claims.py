"""Resource claims: devices that DRA drivers prepare before a pod's containers start and take back when it is over.

In: pods and their ResourceClaims (allocated by the scheduler, reserved for the pod). Out: CDI device names by container. What was asked of a driver
is written down first (ROOT/dra_manager_state), so that nothing stays prepared after a crash; claims of pods that are no more are taken back
in the background. A driver that stays away loses its ResourceSlices. Not how CDI names become devices: cdi.py.
Specs: KEP-4381; kubelet dra v1 (DRAPlugin); upstream pkg/kubelet/cm/dra.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import orjson

from kubern.client.client import Client
from kubern.kubelet import proto
from kubern.kubelet.record import write_whole
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

CLAIMS, SLICES = by_path["resource.k8s.io", "v1", "resourceclaims"], by_path["resource.k8s.io", "v1", "resourceslices"]
SERVICES = ("v1.DRAPlugin", "v1beta1.DRAPlugin")          # the newest a driver has is used
STATE = "dra_manager_state"
CALL_TIMEOUT_S = 45.0
RECONCILE_S, WIPE_AFTER_S = 60.0, 30.0

MESSAGES: proto.Messages = {
    "Claim": (("namespace", 1, "string"), ("uid", 2, "string"), ("name", 3, "string")),
    "Request": (("claims", 1, "Claim*"),),
    "Device": (("request_names", 1, "string*"), ("pool_name", 2, "string"), ("device_name", 3, "string"), ("cdi_device_ids", 4, "string*"),
               ("share_id", 5, "string")),
    "Prepared": (("devices", 1, "Device*"), ("error", 2, "string")), "PrepareResponse": (("claims", 1, "map:Prepared"),),
    "Unprepared": (("error", 1, "string"),), "UnprepareResponse": (("claims", 1, "map:Unprepared"),),
}


class NotPrepared(Exception):
    """A claim cannot be used (or given back) now; the message says why."""


@cache
def classes() -> proto.Classes:
    return proto.define("kubern.dra", MESSAGES)


@dataclass(slots=True)
class Device:
    pool: str
    name: str
    requests: list[str]
    cdi: list[str]
    share: str = ""


@dataclass(slots=True)
class Claim:
    """One claim in use on this node; devices by driver."""

    namespace: str
    name: str
    uid: str
    pods: list[str] = field(default_factory=list)
    drivers: dict[str, list[Device]] = field(default_factory=dict)
    prepared: bool = False

    def cdi(self, request: str) -> Iterator[str]:
        """CDI names for one request of the claim, or for all ("")."""
        for devices in self.drivers.values():
            for d in devices:
                if not request or not d.requests or request in d.requests or any(r.partition("/")[0] == request for r in d.requests):
                    yield from d.cdi


def claim_names(pod: Object) -> dict[str, str]:
    """Name in the pod -> name of the ResourceClaim, for those that have one; "" is the claim the scheduler made for extended resources.
    Raises NotPrepared while a claim of a template is not made yet."""
    status = pod.get("status") or {}
    made = {s["name"]: s.get("resourceClaimName") for s in status.get("resourceClaimStatuses") or ()}
    m = pod["metadata"]
    out: dict[str, str] = {}
    for ref in pod["spec"].get("resourceClaims") or ():
        if ref.get("resourceClaimName"):
            out[ref["name"]] = ref["resourceClaimName"]
        elif ref["name"] not in made:
            raise NotPrepared(f'pod "{m.get("namespace")}/{m["name"]}": ResourceClaim not created yet')
        elif made[ref["name"]]:
            out[ref["name"]] = str(made[ref["name"]])
    extended = status.get("extendedResourceClaimStatus")
    if extended:
        out[""] = extended["resourceClaimName"]
    return out


def wanted_requests(pod: Object, container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name of the ResourceClaim, request or "" for all) of one container."""
    names = claim_names(pod)
    for c in (container.get("resources") or {}).get("claims") or ():
        if c["name"] in names:
            yield names[c["name"]], c.get("request") or ""
    if "" in names:
        for row in pod["status"]["extendedResourceClaimStatus"].get("requestMappings") or ():
            if row["containerName"] == container["name"]:
                yield names[""], row["requestName"]


class Claims:
    """The claims of this node, and the DRA drivers that serve them. A Keeper of plugins.py."""

    def __init__(self, client: Client | None, node: str, root: str) -> None:
        self.client, self.node, self.root = client, node, root
        self.drivers: dict[str, list[tuple[str, str]]] = {}       # name -> (socket, service), the newest last
        self.claims: dict[tuple[str, str], Claim] = {}
        self._wipes: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self._read()

    # --- drivers ---

    async def register(self, name: str, socket: str, versions: list[str]) -> None:
        service = next((s for s in SERVICES if s in versions), "")
        if not service:
            raise ValueError(f"invalid supported gRPC versions of DRA driver plugin {name} at endpoint {socket}: "
                             f"none of the DRA gRPC interfaces {' '.join(SERVICES)} are supported by the plugin")
        have = self.drivers.setdefault(name, [])
        if any(s == socket for s, _ in have):
            raise ValueError(f"endpoint {socket} already registered for DRA driver plugin {name}")
        have.append((socket, service))
        wipe = self._wipes.pop(name, None)
        if wipe is not None:
            wipe.cancel()
        log.info("DRA driver %s at %s, %s", name, socket, service)

    async def unregister(self, name: str, socket: str) -> None:
        left = [p for p in self.drivers.get(name, []) if p[0] != socket]
        if left:
            self.drivers[name] = left
            return
        self.drivers.pop(name, None)
        self._wipes[name] = asyncio.create_task(self._wipe(name, WIPE_AFTER_S))

    async def _wipe(self, driver: str, after_s: float = 0.0) -> None:
        """Devices of a driver that is not there are not to be handed out. "" = all drivers of this node."""
        await asyncio.sleep(after_s)
        if self.client is None:
            return
        fields = f"spec.nodeName={self.node}" + (f",spec.driver={driver}" if driver else "")
        try:
            for s in (await self.client.list(SLICES, fields=fields))[0]:
                with contextlib.suppress(StatusError):
                    await self.client.delete(SLICES, "", s["metadata"]["name"])
        except StatusError as e:
            log.info("resource slices of %s: %s", driver or "this node", e.message)

    async def run(self, active: Callable[[], Iterable[str]], sourced: asyncio.Event) -> None:
        """Gives back what pods that are no more (by uid) still hold; until cancelled."""
        await self._wipe("")
        await sourced.wait()
        try:
            while True:
                here = set(active())
                for uid in {p for c in self.claims.values() for p in c.pods} - here:
                    try:
                        await self.unprepare(uid)
                    except NotPrepared as e:
                        log.info("claims of pod %s: %s", uid, e)
                await asyncio.sleep(RECONCILE_S)
        finally:
            for task in self._wipes.values():
                task.cancel()

    # --- pods ---

    def holds(self, uid: str) -> bool:
        """Whether this pod has claims that are (or may be) prepared."""
        return any(uid in c.pods for c in self.claims.values())

    async def prepare(self, pod: Object) -> None:
        """All claims of a pod are prepared when this returns. Raises NotPrepared, StatusError."""
        names = claim_names(pod)
        uid = pod["metadata"]["uid"]
        if not names or all((c := self.claims.get((pod["metadata"]["namespace"], n))) and c.prepared and uid in c.pods for n in names.values()):
            return
        async with self._lock:
            found = [await self._usable(pod, n, with_owner=not any(
                r.get("resourceClaimName") == n for r in pod["spec"].get("resourceClaims") or ())) for n in names.values()]
            todo: dict[str, list[Claim]] = {}
            for fresh in found:
                claim = self.claims.setdefault((fresh.namespace, fresh.name), fresh)
                if claim.uid != fresh.uid:
                    raise NotPrepared(f"old ResourceClaim with same name {claim.name} and different UID {claim.uid} still exists "
                                      "(previous pod force-deleted?!)")
                if uid not in claim.pods:
                    claim.pods.append(uid)
                if not claim.prepared:
                    for driver in claim.drivers:
                        todo.setdefault(driver, []).append(claim)
            await self._write()
            for driver, batch in todo.items():
                answer = await self._ask(driver, "NodePrepareResources", batch, "PrepareResponse")
                for c in batch:
                    devices = answer[c.uid].devices
                    c.drivers[driver] = [Device(d.pool_name, d.device_name, list(d.request_names), list(d.cdi_device_ids), d.share_id) for d in devices]
            for fresh in found:
                self.claims[fresh.namespace, fresh.name].prepared = True
            await self._write()

    async def _usable(self, pod: Object, name: str, with_owner: bool) -> Claim:
        assert self.client is not None
        m = pod["metadata"]
        try:
            claim = await self.client.get(CLAIMS, m["namespace"], name)
        except StatusError as e:
            raise NotPrepared(f"fetch ResourceClaim {name}: {e.message}") from None
        if with_owner and not any(o.get("uid") == m["uid"] and o.get("controller") for o in claim["metadata"].get("ownerReferences") or ()):
            raise NotPrepared(f"ResourceClaim {m['namespace']}/{name} was not created for Pod {m['namespace']}/{m['name']} (Pod is not owner)")
        status = claim.get("status") or {}
        if not any(r.get("uid") == m["uid"] for r in status.get("reservedFor") or ()):
            raise NotPrepared(f"pod {m['name']} ({m['uid']}) is not allowed to use ResourceClaim {name} ({claim['metadata']['uid']})")
        if not status.get("allocation"):
            raise NotPrepared(f"ResourceClaim {name}: not allocated")
        drivers = {r["driver"] for r in (status["allocation"].get("devices") or {}).get("results") or ()}
        for d in drivers:
            if d not in self.drivers:
                raise NotPrepared(f"DRA driver {d} is not registered")
        return Claim(m["namespace"], name, claim["metadata"]["uid"], drivers={d: [] for d in sorted(drivers)})

    async def _ask(self, driver: str, method: str, batch: list[Claim], answer: str) -> Mapping[str, Any]:
        """The driver's answer by claim uid, complete and without errors. Raises NotPrepared."""
        import grpc.aio

        plugins = self.drivers.get(driver)
        if not plugins:
            raise NotPrepared(f"DRA driver {driver} is not registered")
        socket, service = plugins[-1]
        c = classes()
        request = c["Request"](claims=[{"namespace": x.namespace, "uid": x.uid, "name": x.name} for x in batch])
        try:
            got = (await proto.call(socket, f"/k8s.io.kubelet.pkg.apis.dra.{service}/{method}", request, c[answer], CALL_TIMEOUT_S)).claims
        except grpc.aio.AioRpcError as e:
            raise NotPrepared(f"{method}: {proto.go_error(e)}") from None
        names = {x.uid: x.name for x in batch}
        for uid, result in got.items():
            if uid not in names:
                raise NotPrepared(f"{method} returned result for unknown claim UID {uid}")
            if result.error:
                raise NotPrepared(f"{method} failed for ResourceClaim {names[uid]}: {result.error}")
        if len(got) < len(batch):
            raise NotPrepared(f"{method} skipped {len(batch) - len(got)} ResourceClaims")
        return dict(got)

    async def unprepare(self, uid: str) -> None:
        """Gives back the claims of a pod that no other pod uses. Raises NotPrepared; call again then."""
        if not self.holds(uid):
            return
        async with self._lock:
            todo: dict[str, list[Claim]] = {}
            over: list[Claim] = []
            for claim in self.claims.values():
                if uid not in claim.pods:
                    continue
                if len(claim.pods) > 1:
                    claim.pods.remove(uid)
                    continue
                over.append(claim)
                for driver in claim.drivers:
                    todo.setdefault(driver, []).append(claim)
            for driver, batch in todo.items():
                await self._ask(driver, "NodeUnprepareResources", batch, "UnprepareResponse")
            for claim in over:
                del self.claims[claim.namespace, claim.name]
            await self._write()

    def devices(self, pod: Object, container: Mapping[str, Any]) -> list[str]:
        """CDI names of a container's devices."""
        space = pod["metadata"].get("namespace") or ""
        out: dict[str, None] = {}
        for name, request in wanted_requests(pod, container):
            claim = self.claims.get((space, name))
            if claim is None:
                raise NotPrepared(f"unable to get claim info for ResourceClaim {name} in namespace {space}")
            out |= dict.fromkeys(claim.cdi(request))
        return list(out)

    # --- the record ---

    def _read(self) -> None:
        try:
            with open(f"{self.root}/{STATE}", "rb") as f:
                for row in orjson.loads(f.read()):
                    drivers = {k: [Device(**d) for d in v] for k, v in row.pop("drivers").items()}
                    claim = Claim(**row, drivers=drivers)
                    self.claims[claim.namespace, claim.name] = claim
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as e:
            log.warning("%s cannot be read: %s", STATE, e)

    async def _write(self) -> None:
        await asyncio.to_thread(write_whole, f"{self.root}/{STATE}", orjson.dumps([asdict(c) for c in self.claims.values()]))
