"""A plain scheduler: one node at a time, one pod at a time, no arrays and no counters. Slow and obvious; the real one must agree with it."""

from __future__ import annotations

import math
from typing import Any

from kubern.model import quantity
from kubern.model.selector import from_label_selector

Object = dict[str, Any]


def amount(resource: str, v: str) -> int:
    return quantity.milli(v) if resource == "cpu" else quantity.value(v)


def requests(pod: Object, nonzero: bool = False) -> dict[str, int]:
    total: dict[str, int] = {}
    for c in pod["spec"]["containers"]:
        r = {k: amount(k, v) for k, v in c.get("resources", {}).get("requests", {}).items()}
        if nonzero:
            r.setdefault("cpu", 100)
            r.setdefault("memory", 200 << 20)
        for k, v in r.items():
            total[k] = total.get(k, 0) + v
    return total


def selects(selector: Object | None, pod: Object) -> bool:
    return from_label_selector(selector).matches(pod["metadata"].get("labels", {}))


def labels(node: Object) -> dict[str, str]:
    return node["metadata"].get("labels", {})


def tolerated(pod: Object, taint: Object, effects: tuple[str, ...]) -> bool:
    if taint["effect"] not in effects:
        return True
    for t in pod["spec"].get("tolerations", []):
        if t.get("effect") in (None, "", taint["effect"]) and t.get("key") in (None, "", taint["key"]):
            if t.get("operator") == "Exists" or (t.get("key") and t.get("value", "") == taint.get("value", "")):
                return True
    return False


def expression(e: Object, have: dict[str, str]) -> bool:
    v, values = have.get(e["key"]), e.get("values", [])
    match e["operator"]:
        case "In":
            return v is not None and v in values
        case "NotIn":
            return v not in values
        case "Exists":
            return v is not None
        case "DoesNotExist":
            return v is None
        case "Gt":
            return v is not None and v.lstrip("-").isdigit() and int(v) > int(values[0])
        case "Lt":
            return v is not None and v.lstrip("-").isdigit() and int(v) < int(values[0])
    raise AssertionError(e)


def node_matches(pod: Object, node: Object) -> bool:
    spec = pod["spec"]
    if any(labels(node).get(k) != v for k, v in spec.get("nodeSelector", {}).items()):
        return False
    required = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(all(expression(e, labels(node)) for e in t["matchExpressions"]) for t in required["nodeSelectorTerms"])


class World:
    def __init__(self, nodes: list[Object], pods: list[Object]) -> None:
        self.nodes, self.pods = nodes, pods

    def on(self, node: Object) -> list[Object]:
        return [p for p in self.pods if p["spec"]["nodeName"] == node["metadata"]["name"]]

    def node_of(self, pod: Object) -> Object:
        return next(n for n in self.nodes if n["metadata"]["name"] == pod["spec"]["nodeName"])

    def terms(self, pod: Object, kind: str, which: str) -> list[tuple[Object, int]]:
        block = pod["spec"].get("affinity", {}).get(kind, {})
        if which == "required":
            return [(t, 1) for t in block.get("requiredDuringSchedulingIgnoredDuringExecution", [])]
        return [(t["podAffinityTerm"], t["weight"]) for t in block.get("preferredDuringSchedulingIgnoredDuringExecution", [])]

    def same_domain(self, a: Object, b: Object, key: str) -> bool:
        return key in labels(a) and labels(a).get(key) == labels(b).get(key)

    # --- filters ---

    def why_not(self, pod: Object, node: Object) -> set[str]:
        """The reasons of the first failing filter; empty if the node will do."""
        cordon = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
        if node["spec"].get("unschedulable") and not tolerated(pod, cordon, ("NoSchedule",)):
            return {"node(s) were unschedulable"}
        if any(not tolerated(pod, t, ("NoSchedule", "NoExecute")) for t in node["spec"].get("taints", [])):
            return {"node(s) had untolerated taint(s)"}
        if not node_matches(pod, node):
            return {"node(s) didn't match Pod's node affinity/selector"}
        short = set()
        room = node["status"]["allocatable"]
        here = self.on(node)
        if len(here) + 1 > int(room["pods"]):
            short.add("Too many pods")
        for r, want in requests(pod).items():
            if want and sum(requests(q).get(r, 0) for q in here) + want > amount(r, room.get(r, "0")):
                short.add(f"Insufficient {r}")
        if short:
            return short
        return self.spread(pod, node) or self.affinity(pod, node)

    def spread(self, pod: Object, node: Object) -> set[str]:
        hard = [c for c in pod["spec"].get("topologySpreadConstraints", []) if c["whenUnsatisfiable"] == "DoNotSchedule"]
        for c in hard:
            key = c["topologyKey"]
            if key not in labels(node):
                return {"node(s) didn't match pod topology spread constraints (missing required label)"}
            counts: dict[str, int] = {}
            for n in self.nodes:
                if all(x["topologyKey"] in labels(n) for x in hard) and node_matches(pod, n):
                    v = labels(n)[key]
                    counts[v] = counts.get(v, 0) + sum(selects(c["labelSelector"], q) for q in self.on(n))
            least = min(counts.values(), default=0)
            if counts.get(labels(node)[key], 0) + selects(c["labelSelector"], pod) - least > c["maxSkew"]:
                return {"node(s) didn't match pod topology spread constraints"}
        return set()

    def affinity(self, pod: Object, node: Object) -> set[str]:
        wanted = self.terms(pod, "podAffinity", "required")
        if wanted:
            def matching(q: Object) -> bool:
                return all(selects(t["labelSelector"], q) for t, _ in wanted)
            if any(t["topologyKey"] not in labels(node) for t, _ in wanted):
                return {"node(s) didn't match pod affinity rules"}
            there = [q for q in self.pods if matching(q)]
            ok = all(any(self.same_domain(node, self.node_of(q), t["topologyKey"]) for q in there) for t, _ in wanted)
            any_domain = any(t["topologyKey"] in labels(self.node_of(q)) for q in there for t, _ in wanted)
            if not ok and (any_domain or not matching(pod)):
                return {"node(s) didn't match pod affinity rules"}
        for t, _ in self.terms(pod, "podAntiAffinity", "required"):
            if any(selects(t["labelSelector"], q) and self.same_domain(node, self.node_of(q), t["topologyKey"]) for q in self.pods):
                return {"node(s) didn't match pod anti-affinity rules"}
        for q in self.pods:
            for t, _ in self.terms(q, "podAntiAffinity", "required"):
                if selects(t["labelSelector"], pod) and self.same_domain(node, self.node_of(q), t["topologyKey"]):
                    return {"node(s) didn't satisfy existing pods anti-affinity rules"}
        return set()

    # --- scores, of the nodes that will do ---

    def total(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        out = {n["metadata"]["name"]: 0 for n in nodes}
        for weight, part in ((3, self.score_taints(pod, nodes)), (2, self.score_node_affinity(pod, nodes)), (1, self.score_least(pod, nodes)),
                             (1, self.score_balance(pod, nodes)), (2, self.score_spread(pod, nodes)), (2, self.score_affinity(pod, nodes))):
            for name, s in part.items():
                out[name] += weight * s
        return out

    def score_taints(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        raw = {n["metadata"]["name"]: sum(not tolerated(pod, t, ("PreferNoSchedule",)) for t in n["spec"].get("taints", [])) for n in nodes}
        high = max(raw.values())
        return {k: 100 - v * 100 // high if high else 0 for k, v in raw.items()}

    def score_node_affinity(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        preferred = pod["spec"].get("affinity", {}).get("nodeAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", [])
        raw = {n["metadata"]["name"]: sum(t["weight"] for t in preferred if all(expression(e, labels(n)) for e in t["preference"]["matchExpressions"]))
               for n in nodes}
        high = max(raw.values())
        return {k: v * 100 // high if high else 0 for k, v in raw.items()}

    def score_least(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        out = {}
        for n in nodes:
            scores = []
            for r in ("cpu", "memory"):
                room = amount(r, n["status"]["allocatable"][r])
                used = sum(requests(q, True).get(r, 0) for q in self.on(n)) + requests(pod, True)[r]
                scores.append((room - used) * 100 // room if used <= room else 0)
            out[n["metadata"]["name"]] = sum(scores) // 2
        return out

    def score_balance(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        if not any(requests(pod).get(r) for r in ("cpu", "memory")):
            return {}

        def balance(n: Object, extra: bool) -> int:
            f = []
            for r in ("cpu", "memory"):
                used = sum(requests(q).get(r, 0) for q in self.on(n)) + (requests(pod).get(r, 0) if extra else 0)
                f.append(min(1.0, used / amount(r, n["status"]["allocatable"][r])))
            return int((1 - abs(f[0] - f[1]) / 2) * 100)
        return {n["metadata"]["name"]: 50 + (50 + balance(n, True) - balance(n, False)) // 2 for n in nodes}

    def score_spread(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        soft = [c for c in pod["spec"].get("topologySpreadConstraints", []) if c["whenUnsatisfiable"] == "ScheduleAnyway"]
        if not soft:
            return {}
        scored = [n for n in nodes if all(c["topologyKey"] in labels(n) for c in soft)]
        raw = {}
        for n in scored:
            s = 0.0
            for c in soft:
                key = c["topologyKey"]
                if key == "kubernetes.io/hostname":
                    size, count = len(scored), sum(selects(c["labelSelector"], q) for q in self.on(n))
                else:
                    size = len({labels(m)[key] for m in scored})
                    count = sum(selects(c["labelSelector"], q) for m in self.nodes for q in self.on(m)
                                if self.same_domain(n, m, key) and all(x["topologyKey"] in labels(m) for x in soft) and node_matches(pod, m))
                s += count * math.log(size + 2) + c["maxSkew"] - 1
            raw[n["metadata"]["name"]] = round(s)
        if not raw:
            return {}
        low, high = min(raw.values()), max(raw.values())
        return {k: 100 * (high + low - v) // high if high else 100 for k, v in raw.items()}

    def score_affinity(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        raw = {}
        for n in nodes:
            s = 0
            for q in self.pods:
                there = self.node_of(q)
                for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
                    for t, w in self.terms(pod, kind, "preferred"):
                        s += sign * w * (selects(t["labelSelector"], q) and self.same_domain(n, there, t["topologyKey"]))
                    for t, w in self.terms(q, kind, "preferred"):
                        s += sign * w * (selects(t["labelSelector"], pod) and self.same_domain(n, there, t["topologyKey"]))
                for t, _ in self.terms(q, "podAffinity", "required"):
                    s += selects(t["labelSelector"], pod) and self.same_domain(n, there, t["topologyKey"])
            raw[n["metadata"]["name"]] = s
        low, high = min(raw.values()), max(raw.values())
        return {k: int(100.0 * ((v - low) / (high - low))) if high > low else 0 for k, v in raw.items()}
