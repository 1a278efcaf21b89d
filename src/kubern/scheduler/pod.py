"""PodInfo: what scheduling needs of a pod, worked out once when the pod is seen. Pure.

Not the queue's view of it (attempts, back-off): queue.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from kubern.model import quantity
from kubern.model.object import Object, meta
from kubern.model.selector import Selector, from_label_selector
from kubern.scheduler.profile import ARGS, Args

DEFAULT_CPU_MILLI = 100                  # what a container without a request counts as when nodes are scored
DEFAULT_MEMORY = 200 * 1024 * 1024
SYSTEM_DEFAULT_SPREAD = (("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5))   # (key, maxSkew), ScheduleAnyway


@dataclass(frozen=True, slots=True, eq=False)
class PodSet:
    """Which pods a term speaks of: a label selector over some namespaces. Interned by `sig`."""

    sig: str
    namespaces: frozenset[str]                  # explicit names
    namespace_selector: Selector | None         # by the labels of namespaces; None: only the explicit names
    selector: Selector
    live_only: bool = False                     # leave terminating pods out: spread constraints do

    def matches(self, namespace: str, labels: Mapping[str, str], namespace_labels: Mapping[str, Mapping[str, str]]) -> bool:
        if namespace not in self.namespaces and (
                self.namespace_selector is None or not self.namespace_selector.matches(dict(namespace_labels.get(namespace) or {}))):
            return False
        return self.selector.matches(dict(labels))


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One pod affinity or anti-affinity term."""

    sig: str
    pods: PodSet
    topology_key: str
    weight: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """One topology spread constraint."""

    key: str
    max_skew: int
    hard: bool
    min_domains: int
    pods: PodSet
    honor_affinity: bool
    honor_taints: bool
    self_match: bool


_sets: dict[str, PodSet] = {}
_terms: dict[str, Term] = {}
INTERNED_MAX = 50_000


def _pod_set(namespaces: list[str], namespace_selector: Any, selector: Any, live_only: bool = False) -> PodSet:
    sig = orjson.dumps([sorted(namespaces), namespace_selector, selector, live_only], option=orjson.OPT_SORT_KEYS).decode()
    found = _sets.get(sig)
    if found is None:
        if len(_sets) > INTERNED_MAX:
            _sets.clear()
        by_label = None if namespace_selector is None else from_label_selector(namespace_selector)
        found = _sets[sig] = PodSet(sig, frozenset(namespaces), by_label, from_label_selector(selector), live_only)
    return found


def _term(t: Mapping[str, Any], namespace: str, weight: int = 1) -> Term:
    names = list(t.get("namespaces") or ())
    ns_selector = t.get("namespaceSelector")
    if not names and ns_selector is None:
        names = [namespace]
    pods = _pod_set(names, ns_selector, t.get("labelSelector"))
    sig = f"{t.get('topologyKey')}|{weight}|{pods.sig}"
    found = _terms.get(sig)
    if found is None:
        if len(_terms) > INTERNED_MAX:
            _terms.clear()
        found = _terms[sig] = Term(sig, pods, t.get("topologyKey") or "", weight)
    return found


def _terms_of(block: Mapping[str, Any] | None, namespace: str) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """(required, preferred) of a podAffinity or podAntiAffinity block."""
    if not block:
        return (), ()
    required = tuple(_term(t, namespace) for t in block.get("requiredDuringSchedulingIgnoredDuringExecution") or ())
    preferred = tuple(_term(t["podAffinityTerm"], namespace, int(t.get("weight") or 0))
                      for t in block.get("preferredDuringSchedulingIgnoredDuringExecution") or ())
    return required, preferred


def _amount(resource: str, value: Any) -> int:
    return quantity.milli(value) if resource == "cpu" else quantity.value(value)


def _requests(container: Mapping[str, Any], nonzero: bool) -> dict[str, int]:
    r = {k: _amount(k, v) for k, v in ((container.get("resources") or {}).get("requests") or {}).items()}
    if nonzero:
        r.setdefault("cpu", DEFAULT_CPU_MILLI)
        r.setdefault("memory", DEFAULT_MEMORY)
    return r


def _add(a: dict[str, int], b: Mapping[str, int]) -> None:
    for k, v in b.items():
        a[k] = a.get(k, 0) + v


def _max(a: dict[str, int], b: Mapping[str, int]) -> None:
    for k, v in b.items():
        if v > a.get(k, 0):
            a[k] = v


def requests_of(spec: Mapping[str, Any], statuses: Mapping[str, Any] | None = None, nonzero: bool = False) -> dict[str, int]:
    """What a pod asks of a node: {resource: amount}, cpu in milli, the rest in units.

    Containers and sidecars add up; an init container counts with the sidecars started before it; pod-level requests replace the sums;
    overhead is added (component-helpers resource.PodRequests). `statuses`: resources allocated by container name while a resize is pending.
    """
    total: dict[str, int] = {}
    for c in spec.get("containers") or ():
        r = _requests(c, nonzero)
        if statuses and c.get("name") in statuses:
            _max(r, statuses[c["name"]])
        _add(total, r)
    sidecars: dict[str, int] = {}
    init: dict[str, int] = {}
    for c in spec.get("initContainers") or ():
        r = _requests(c, nonzero)
        if c.get("restartPolicy") == "Always":
            _add(total, r)
            _add(sidecars, r)
            _max(init, sidecars)
        else:
            _add(r, sidecars)
            _max(init, r)
    _max(total, init)
    pod_level = (spec.get("resources") or {}).get("requests") or {}
    for k, v in pod_level.items():
        if k in ("cpu", "memory") or k.startswith("hugepages-"):
            total[k] = _amount(k, v)
    for k, v in (spec.get("overhead") or {}).items():
        total[k] = total.get(k, 0) + _amount(k, v)
    return total


def _allocated(pod: Object) -> dict[str, dict[str, int]]:
    out = {}
    for c in (pod.get("status") or {}).get("containerStatuses") or ():
        r = c.get("allocatedResources") or (c.get("resources") or {}).get("requests")
        if r:
            out[c.get("name") or ""] = {k: _amount(k, v) for k, v in r.items()}
    return out


@dataclass(slots=True, eq=False)
class PodInfo:
    """A pod as the scheduler sees it. `slot` is its row in the node table once it is placed there, -1 before."""

    pod: Object
    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    label_sig: tuple[Any, ...]                       # identifies (namespace, labels): match results are remembered by it
    priority: int
    requests: dict[str, int]
    nonzero_cpu: int
    nonzero_memory: int
    ports: tuple[tuple[str, str, int], ...]          # (protocol, host ip, host port)
    placement_sig: bytes                             # identifies nodeSelector + required node affinity; b"" if neither
    affinity: tuple[Term, ...] = ()
    anti_affinity: tuple[Term, ...] = ()
    preferred: tuple[Term, ...] = ()
    anti_preferred: tuple[Term, ...] = ()
    spreads: tuple[Spread, ...] = ()
    slot: int = -1
    assumed: bool = False                            # placed by us, the binding not seen yet
    volumes: tuple[str, ...] = ()                    # names of its PersistentVolumeClaims
    claims: bool = False                             # asks for ResourceClaims
    deleting: bool = False
    args: Args = ARGS                                # of the plugins of its profile
    backed: frozenset[str] = frozenset()             # resources it asks for that device classes back
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def spec(self) -> dict[str, Any]:
        return self.pod.get("spec") or {}

    @property
    def has_terms(self) -> bool:
        return bool(self.affinity or self.anti_affinity or self.preferred or self.anti_preferred)


def host_ports(spec: Mapping[str, Any]) -> tuple[tuple[str, str, int], ...]:
    """The host ports a pod takes: (protocol, address, port), address 0.0.0.0 for all."""
    out = []
    for c in [*(spec.get("containers") or ()), *(x for x in spec.get("initContainers") or () if x.get("restartPolicy") == "Always")]:
        for p in c.get("ports") or ():
            if p.get("hostPort"):
                out.append((p.get("protocol") or "TCP", p.get("hostIP") or "0.0.0.0", int(p["hostPort"])))
    return tuple(out)


def _spreads(constraints: Iterable[Mapping[str, Any]], namespace: str, labels: Mapping[str, str], selector: Any = None) -> tuple[Spread, ...]:
    out = []
    for c in constraints:
        pods = _pod_set([namespace], None, c.get("labelSelector") if selector is None else selector, live_only=True)
        out.append(Spread(c.get("topologyKey") or "", int(c.get("maxSkew") or 1), c.get("whenUnsatisfiable") != "ScheduleAnyway",
                          int(c.get("minDomains") or 1), pods, c.get("nodeAffinityPolicy") != "Ignore", c.get("nodeTaintsPolicy") == "Honor",
                          pods.selector.matches(dict(labels))))
    return tuple(out)


def default_spreads(p: PodInfo, selector: Mapping[str, Any]) -> tuple[Spread, ...]:
    """The system's default constraints for a pod that names none, over the pods of its Services and owner."""
    pods = _pod_set([p.namespace], None, selector, live_only=True)
    return tuple(Spread(key, skew, False, 1, pods, True, False, True) for key, skew in SYSTEM_DEFAULT_SPREAD)


def listed_spreads(p: PodInfo, constraints: Iterable[Mapping[str, Any]], selector: Mapping[str, Any]) -> tuple[Spread, ...]:
    """A profile's default constraints, over the same pods."""
    return _spreads(constraints, p.namespace, p.labels, selector)


def pod_info(pod: Object) -> PodInfo:
    """The PodInfo of a pod object. Cheap for plain pods, which is what most are."""
    m, spec = meta(pod), pod.get("spec") or {}
    namespace, labels = m.get("namespace") or "", m.get("labels") or {}
    allocated = _allocated(pod) if spec.get("nodeName") else None
    requests = requests_of(spec, allocated)
    complete = all({"cpu", "memory"} <= ((c.get("resources") or {}).get("requests") or {}).keys() for c in spec.get("containers") or ())
    full = requests if complete else requests_of(spec, allocated, nonzero=True)
    affinity = spec.get("affinity") or {}
    node_affinity = (affinity.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    placement = b"" if not spec.get("nodeSelector") and not node_affinity else orjson.dumps(
        [spec.get("nodeSelector"), node_affinity], option=orjson.OPT_SORT_KEYS)
    required, preferred = _terms_of(affinity.get("podAffinity"), namespace)
    anti, anti_preferred = _terms_of(affinity.get("podAntiAffinity"), namespace)
    return PodInfo(
        pod, namespace, m.get("name") or "", m.get("uid") or "", labels, (namespace, *sorted(labels.items())), int(spec.get("priority") or 0),
        requests, full.get("cpu", 0), full.get("memory", 0), host_ports(spec), placement, required, anti, preferred, anti_preferred,
        _spreads(spec.get("topologySpreadConstraints") or (), namespace, labels), volumes=_claim_names(m.get("name") or "", spec),
        claims=bool(spec.get("resourceClaims")), deleting=bool(m.get("deletionTimestamp")))


def _claim_names(pod_name: str, spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The PersistentVolumeClaims a pod's volumes name; an ephemeral volume's claim is POD-VOLUME."""
    out = []
    for v in spec.get("volumes") or ():
        if v.get("persistentVolumeClaim"):
            out.append(v["persistentVolumeClaim"].get("claimName") or "")
        elif v.get("ephemeral"):
            out.append(f"{pod_name}-{v.get('name')}")
    return tuple(out)


def start_time(p: PodInfo) -> str:
    """status.startTime, or now's stand-in for pods that have not started: the latest."""
    return (p.pod.get("status") or {}).get("startTime") or "9999"
