"""EndpointSlices of Services with a selector: at most 100 endpoints each, as few writes as possible.

Upstream: staging endpointslice/reconciler.go, utils.go, trafficdist; pkg/controller/endpointslice. Hints by `topology-mode: Auto`: topology.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from kubern.controllers import topology
from kubern.controllers.claim import controller_ref
from kubern.controllers.context import Context
from kubern.controllers.pods import finished, node_of, ready
from kubern.controllers.select import selected
from kubern.controllers.triggertime import TRIGGER_TIME, TriggerTimes
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Create, Delete, Emit, Update
from kubern.model.object import Key, Object, deleting, labels, meta, name, namespace, notes, uid
from kubern.model.selector import from_set
from kubern.model.view import View

MANAGER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
HEADLESS = "service.kubernetes.io/headless"
RESERVED = {SERVICE_NAME, MANAGED_BY, HEADLESS}
SLICE_ENDPOINTS_MAX = 100
GATHER_S = 0.03
CLOSE = ("PreferClose", "PreferSameZone", "PreferSameNode")

Endpoint = dict[str, Any]
Port = dict[str, Any]


# ---- pods and services

def in_endpoints(pod: Object, terminating_too: bool) -> bool:
    status = pod.get("status") or {}
    return not finished(pod) and bool(status.get("podIP") or status.get("podIPs")) and (terminating_too or not deleting(pod))


def hostname_for(pod: Object, service: Object) -> str:
    spec = pod.get("spec") or {}
    return (spec.get("hostname") or "") if spec.get("subdomain") == name(service) else ""


def find_port(pod: Object, port: dict[str, Any]) -> int | None:
    """The number behind a Service port on this pod; None where a named port does not exist."""
    target = port.get("targetPort")
    if target is None:
        target = port.get("port")
    if isinstance(target, int):
        return target
    spec = pod.get("spec") or {}
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in [*(spec.get("containers") or ()), *sidecars]:
        for p in container.get("ports") or ():
            if p.get("name") == target and p.get("protocol", "TCP") == port.get("protocol", "TCP"):
                return int(p["containerPort"])
    return None


def services_of(pod: Object, view: View) -> set[Key]:
    """The Services that select this pod."""
    found: set[Key] = set()
    have = labels(pod)
    for k, v in have.items():
        for service in view.by("services", "selector", f"{namespace(pod)}/{k}={v}"):
            if service["spec"]["selector"].items() <= have.items():
                found.add((namespace(service), name(service)))
    return found


def _matters(pod: Object) -> tuple[Any, ...]:
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    return (bool(meta(pod).get("deletionTimestamp")), ready(pod), finished(pod), status.get("podIPs"), status.get("podIP"),
            spec.get("nodeName"), spec.get("hostname"))


def pod_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Services whose endpoints may have changed with the pod."""
    if old is None or new is None:
        pod = new or old
        return services_of(pod, view) if pod is not None else ()
    before, after = labels(old), labels(new)
    if _matters(old) != _matters(new):
        return services_of(new, view) | (services_of(old, view) if before != after else set())
    return services_of(old, view) ^ services_of(new, view) if before != after else ()


def headless(service: Object) -> bool:
    return (service["spec"].get("clusterIP") or "None") == "None"


# ---- what should be

def _families(service: Object) -> list[str]:
    families = service["spec"].get("ipFamilies")
    if families:
        return list(families)
    ip = service["spec"].get("clusterIP") or ""
    if ip and ip != "None":
        return ["IPv6" if ":" in ip else "IPv4"]
    return ["IPv4", "IPv6"]


def _ports(service: Object, pod: Object) -> list[Port]:
    out: list[Port] = []
    for p in service["spec"].get("ports") or ():
        number = find_port(pod, p)
        if number is None:
            continue
        port = {"name": p.get("name") or "", "port": number, "protocol": p.get("protocol", "TCP")}
        if p.get("appProtocol") is not None:
            port["appProtocol"] = p["appProtocol"]
        out.append(port)
    return out


def _port_key(ports: list[Port] | None) -> str:
    return json.dumps(sorted(json.dumps(p, sort_keys=True) for p in ports or ()))


def _endpoint(pod: Object, node: Object | None, service: Object, family: str) -> Endpoint | None:
    status = pod.get("status") or {}
    ips = [p.get("ip") for p in status.get("podIPs") or ()] or [status.get("podIP")]
    addresses = [ip for ip in ips if ip and (":" in ip) == (family == "IPv6")]
    if not addresses:
        return None
    serving, terminating = ready(pod), deleting(pod)
    out: Endpoint = {
        "addresses": addresses,
        "conditions": {"ready": bool(service["spec"].get("publishNotReadyAddresses")) or (serving and not terminating),
                       "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "namespace": namespace(pod), "name": name(pod), "uid": uid(pod)}}
    if host := hostname_for(pod, service):
        out["hostname"] = host
    if n := node_of(pod):
        out["nodeName"] = n
    if node is not None and (zone := labels(node).get("topology.kubernetes.io/zone")):
        out["zone"] = zone
    if not topology.enabled(service):
        _hint(out, service["spec"].get("trafficDistribution"))
    return out


def _hint(e: Endpoint, distribution: str | None) -> None:
    if distribution not in CLOSE or not e["conditions"]["ready"]:
        return
    hints: dict[str, Any] = {}
    if "zone" in e:
        hints["forZones"] = [{"name": e["zone"]}]
    if distribution == "PreferSameNode" and "nodeName" in e:
        hints["forNodes"] = [{"name": e["nodeName"]}]
    if hints:
        e["hints"] = hints


def _identity(e: Endpoint) -> tuple[Any, ...]:
    ref = e.get("targetRef") or {}
    return tuple(e.get("addresses") or ()), e.get("hostname"), ref.get("namespace"), ref.get("name")


def slice_labels(service: Object, manager: str) -> dict[str, str]:
    out = {k: v for k, v in labels(service).items() if k not in RESERVED}
    if headless(service):
        out[HEADLESS] = ""
    return {**out, SERVICE_NAME: name(service), MANAGED_BY: manager}


class Plan:
    """Slices of one address type: what to create, update and delete. Shared with the mirroring controller."""

    def __init__(self, owner: Object, family: str, wanted_labels: dict[str, str], limit: int) -> None:
        self.owner, self.family, self.labels, self.limit = owner, family, wanted_labels, limit
        self.create: list[Object] = []
        self.update: list[Object] = []
        self.delete: list[Object] = []
        self.unchanged: list[Object] = []
        self.hints_later = False          # hints are none of the arrangement's business

    def new(self, ports: list[Port], endpoints: list[Endpoint]) -> Object:
        return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"generateName": f"{name(self.owner)}-", "namespace": namespace(self.owner), "labels": self.labels,
                             "ownerReferences": [controller_ref(self.owner)]},
                "addressType": self.family, "endpoints": endpoints or None, "ports": ports or None}

    def arrange(self, existing: list[Object], ports: list[Port], wanted: dict[tuple[Any, ...], Endpoint]) -> None:
        """Existing slices of the same ports keep their endpoints; new ones fill changed slices first, then one with room, then new ones."""
        rest = dict(wanted)
        changed: list[Object] = []
        unchanged: list[Object] = []
        for s in existing:
            have = s.get("endpoints") or []
            kept = [rest.pop(i) for e in have if (i := _identity(e)) in rest]
            relabelled = labels(s) != self.labels
            differs = kept != ((topology.without(s)["endpoints"] or []) if self.hints_later else have)
            if differs and not kept:
                self.delete.append(s)
            elif differs or relabelled:
                changed.append({**s, "metadata": {**meta(s), "labels": self.labels}, "endpoints": kept})
            else:
                unchanged.append(s)
        left = list(rest.values())
        if left:
            for s in sorted(changed, key=lambda s: -len(s["endpoints"])):
                room = self.limit - len(s["endpoints"])
                s["endpoints"] = s["endpoints"] + left[:room]
                left = left[room:]
        while left:
            fitting = [s for s in unchanged if len(s.get("endpoints") or ()) + len(left) <= self.limit] if len(left) < self.limit else []
            if fitting:
                best = max(fitting, key=lambda s: len(s.get("endpoints") or ()))
                unchanged.remove(best)
                changed.append({**best, "metadata": {**meta(best), "labels": self.labels}, "endpoints": (best.get("endpoints") or []) + left})
                left = []
            else:
                self.create.append(self.new(ports, left[:self.limit]))
                left = left[self.limit:]
        self.update += changed
        self.unchanged += unchanged

    def placeholder(self, existing: list[Object]) -> None:
        """A service without endpoints keeps one empty slice."""
        if len(existing) == len(self.delete) and not self.create:
            if len(self.delete) == 1 and not (self.delete[0].get("endpoints") or self.delete[0].get("ports")) and \
                    labels(self.delete[0]) == self.labels:
                self.delete = []
            else:
                self.create.append(self.new([], []))

    def steps(self, trigger_time: str = "") -> Steps:
        """Slices to be deleted are used again for those to be created."""
        while self.create and self.delete:
            fresh, old = self.create.pop(), self.delete.pop(0)
            if not any(r.get("uid") == uid(self.owner) for r in meta(old).get("ownerReferences") or ()):
                self.create.append(fresh)
                self.delete.insert(0, old)
                break
            self.update.append({**old, "metadata": {**meta(old), "labels": self.labels}, "endpoints": fresh["endpoints"],
                                "ports": fresh["ports"]})
        intents: list[Any] = []
        if not deleting(self.owner):
            intents += [Create(_timed(s, trigger_time)) for s in self.create]
        intents += [Update(_timed(s, trigger_time)) for s in self.update]
        intents += [Delete("discovery.k8s.io/v1", "EndpointSlice", namespace(s), name(s)) for s in self.delete]
        if intents:
            yield intents


def _timed(s: Object, trigger_time: str) -> Object:
    have = {k: v for k, v in notes(s).items() if k != TRIGGER_TIME}
    if trigger_time:
        have[TRIGGER_TIME] = trigger_time
    m = {k: v for k, v in meta(s).items() if k != "annotations"}
    return {**s, "metadata": {**m, "annotations": have} if have else m}


def reconcile(service: Object, view: View, times: TriggerTimes) -> Steps:
    spec = service["spec"]
    if spec.get("type") == "ExternalName" or spec.get("selector") is None:
        return
    pods = selected(view, "pods", namespace(service), from_set(spec["selector"]))
    pods.sort(key=lambda p: (meta(p).get("creationTimestamp") or "", name(p)))
    mine = [s for s in view.by("endpointslices.discovery.k8s.io", f"nslabel:{SERVICE_NAME}", f"{namespace(service)}/{name(service)}")
            if labels(s).get(MANAGED_BY) == MANAGER and not deleting(s)]
    wanted_labels = slice_labels(service, MANAGER)
    families = _families(service)
    at = times.of(service, pods)
    missing_node = ""
    parts = topology.shares(view.list("nodes")) if topology.enabled(service) else None
    for family in families:
        existing = [s for s in mine if s.get("addressType") == family]
        plan = Plan(service, family, wanted_labels, SLICE_ENDPOINTS_MAX)
        plan.hints_later = parts is not None
        by_ports: dict[str, list[Object]] = {}
        for s in existing:
            if any(r.get("uid") == uid(service) for r in meta(s).get("ownerReferences") or ()):
                by_ports.setdefault(_port_key(s.get("ports")), []).append(s)
            else:
                plan.delete.append(s)
        wanted: dict[str, dict[tuple[Any, ...], Endpoint]] = {}
        ports_of: dict[str, list[Port]] = {}
        for pod in pods:
            if not in_endpoints(pod, True):
                continue
            ports = _ports(service, pod)
            k = _port_key(ports)
            group = wanted.setdefault(k, {})
            ports_of[k] = ports
            node = view.get("nodes", "", node_of(pod))
            if node is None and not spec.get("publishNotReadyAddresses"):
                missing_node = f"skipping Pod {name(pod)} for Service {namespace(service)}/{name(service)}: Node {node_of(pod)} Not Found"
                continue
            e = _endpoint(pod, node, service, family)
            if e is not None:
                group[_identity(e)] = e
        for k, group in wanted.items():
            plan.arrange(by_ports.get(k, []), ports_of[k], group)
        for k, found in by_ports.items():
            if k not in wanted:
                plan.delete += found
        plan.placeholder(existing)
        if parts is not None:
            had = any("hints" in e for s in mine for e in s.get("endpoints") or ())
            plan.create, plan.update, why = topology.hint(plan.create, plan.update, plan.unchanged, parts)
            if why:
                yield Emit(service, "Warning", "TopologyAwareHintsDisabled", f"{why}, addressType: {family}")
            elif not had:
                yield Emit(service, "Normal", "TopologyAwareHintsEnabled", f"Topology Aware Hints has been enabled, addressType: {family}")
        yield from plan.steps(at)
    other = [s for s in mine if s.get("addressType") not in families]
    if other:
        yield [Delete("discovery.k8s.io/v1", "EndpointSlice", namespace(s), name(s)) for s in other]
    if missing_node:
        yield Again(missing_node)


def _slice_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    out: set[Key] = set()
    for s in (old, new):
        if s is not None and labels(s).get(MANAGED_BY) == MANAGER and labels(s).get(SERVICE_NAME):
            out.add((namespace(s), labels(s)[SERVICE_NAME]))
    return out


def _node_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Services that share out their endpoints by the nodes' CPUs."""
    if (topology.weight(old) if old else None) == (topology.weight(new) if new else None):
        return ()
    return [(namespace(s), name(s)) for s in view.list("services") if topology.enabled(s)]


def controller(context: Context | None = None) -> Controller:
    times = TriggerTimes()

    def gone(k: Key, view: View, now: float) -> Steps:
        times.drop(k)
        yield from ()

    return Controller(
        "endpointslice-controller", "services", lambda service, view, now: reconcile(service, view, times), reads=("pods", "nodes"), gone=gone,
        component="endpoint-slice-controller",
        triggers=(Trigger("pods", pod_changed, after_s=GATHER_S), Trigger("endpointslices.discovery.k8s.io", _slice_changed),
                  Trigger("nodes", _node_changed, after_s=GATHER_S)))
