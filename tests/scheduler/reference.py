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


def ports(pod: Object) -> list[Object]:
    return [p for c in pod["spec"]["containers"] for p in c.get("ports", [])]


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
    """`namespaces`: name -> labels. `args`: what the profile says (profile.Args, profile.Strategy)."""

    def __init__(self, nodes: list[Object], pods: list[Object], namespaces: dict[str, dict[str, str]], args: Any, strategy: Any) -> None:
        self.nodes, self.pods, self.namespaces, self.args, self.strategy = nodes, pods, namespaces, args, strategy

    def concerns(self, term: Object, owner: Object, pod: Object) -> bool:
        """Whether a pod affinity term of `owner` speaks of `pod`."""
        space = pod["metadata"]["namespace"]
        names, selector = term.get("namespaces", []), term.get("namespaceSelector")
        if not names and selector is None:
            names = [owner["metadata"]["namespace"]]
        if space not in names and (selector is None or not from_label_selector(selector).matches(self.namespaces[space])):
            return False
        return selects(term["labelSelector"], pod)

    def counts_here(self, constraint: Object, pod: Object, node: Object) -> int:
        """Pods of a spread constraint on a node: those of the pod's own namespace."""
        return sum(q["metadata"]["namespace"] == pod["metadata"]["namespace"] and selects(constraint["labelSelector"], q) for q in self.on(node))

    def included(self, constraint: Object, pod: Object, node: Object) -> bool:
        """The node inclusion policies."""
        if constraint.get("nodeAffinityPolicy") != "Ignore" and not node_matches(pod, node):
            return False
        return constraint.get("nodeTaintsPolicy") != "Honor" or all(tolerated(pod, t, ("NoSchedule", "NoExecute")) for t in node["spec"].get("taints", []))

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
        if self.args.required and not any(all(expression(e, labels(node)) for e in t["matchExpressions"]) for t in self.args.required["nodeSelectorTerms"]):
            return {"node(s) didn't match scheduler-enforced node affinity"}
        if not node_matches(pod, node):
            return {"node(s) didn't match Pod's node affinity/selector"}
        if any(a["hostPort"] == b["hostPort"] and a.get("protocol", "TCP") == b.get("protocol", "TCP") and (
                a.get("hostIP", "0.0.0.0") == b.get("hostIP", "0.0.0.0") or "0.0.0.0" in (a.get("hostIP", "0.0.0.0"), b.get("hostIP", "0.0.0.0")))
               for a in ports(pod) for q in self.on(node) for b in ports(q)):
            return {"node(s) didn't have free ports for the requested pod ports"}
        short = set()
        room = node["status"]["allocatable"]
        here = self.on(node)
        if len(here) + 1 > int(room["pods"]):
            short.add("Too many pods")
        for r, want in requests(pod).items():
            if want and r not in self.args.ignored and sum(requests(q).get(r, 0) for q in here) + want > amount(r, room.get(r, "0")):
                short.add(f"Insufficient {r}")
        if short:
            return short
        return self.spread(pod, node) or self.affinity(pod, node) or self.features(pod, node)

    def features(self, pod: Object, node: Object) -> set[str]:
        needs = any(r["action"] == "RestartAllContainers" for c in pod["spec"]["containers"] for r in c.get("restartPolicyRules", []))
        if needs and "RestartAllContainersOnContainerExits" not in node["status"].get("declaredFeatures", []):
            return {"node(s) didn't match Pod's required features"}
        return set()

    def spread(self, pod: Object, node: Object) -> set[str]:
        hard = [c for c in pod["spec"].get("topologySpreadConstraints", []) if c["whenUnsatisfiable"] == "DoNotSchedule"]
        for c in hard:
            key = c["topologyKey"]
            if key not in labels(node):
                return {"node(s) didn't match pod topology spread constraints (missing required label)"}
            counts: dict[str, int] = {}
            for n in self.nodes:
                if all(x["topologyKey"] in labels(n) for x in hard) and self.included(c, pod, n):
                    v = labels(n)[key]
                    counts[v] = counts.get(v, 0) + self.counts_here(c, pod, n)
            least = min(counts.values(), default=0) if len(counts) >= c.get("minDomains", 1) else 0
            if counts.get(labels(node)[key], 0) + selects(c["labelSelector"], pod) - least > c["maxSkew"]:
                return {"node(s) didn't match pod topology spread constraints"}
        return set()

    def affinity(self, pod: Object, node: Object) -> set[str]:
        wanted = self.terms(pod, "podAffinity", "required")
        if wanted:
            def matching(q: Object) -> bool:
                return all(self.concerns(t, pod, q) for t, _ in wanted)
            if any(t["topologyKey"] not in labels(node) for t, _ in wanted):
                return {"node(s) didn't match pod affinity rules"}
            there = [q for q in self.pods if matching(q)]
            ok = all(any(self.same_domain(node, self.node_of(q), t["topologyKey"]) for q in there) for t, _ in wanted)
            any_domain = any(t["topologyKey"] in labels(self.node_of(q)) for q in there for t, _ in wanted)
            if not ok and (any_domain or not matching(pod)):
                return {"node(s) didn't match pod affinity rules"}
        for t, _ in self.terms(pod, "podAntiAffinity", "required"):
            if any(self.concerns(t, pod, q) and self.same_domain(node, self.node_of(q), t["topologyKey"]) for q in self.pods):
                return {"node(s) didn't match pod anti-affinity rules"}
        for q in self.pods:
            for t, _ in self.terms(q, "podAntiAffinity", "required"):
                if self.concerns(t, q, pod) and self.same_domain(node, self.node_of(q), t["topologyKey"]):
                    return {"node(s) didn't satisfy existing pods anti-affinity rules"}
        return set()

    # --- scores, of the nodes that will do ---

    def total(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        out = {n["metadata"]["name"]: 0 for n in nodes}
        for weight, part in ((3, self.score_taints(pod, nodes)), (2, self.score_node_affinity(pod, nodes)), (1, self.score_room(pod, nodes)),
                             (1, self.score_balance(pod, nodes)), (2, self.score_spread(pod, nodes)), (2, self.score_affinity(pod, nodes)),
                             (1, self.score_images(pod, nodes))):
            for name, s in part.items():
                out[name] += weight * s
        return out

    def score_taints(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        raw = {n["metadata"]["name"]: sum(not tolerated(pod, t, ("PreferNoSchedule",)) for t in n["spec"].get("taints", [])) for n in nodes}
        high = max(raw.values())
        return {k: 100 - v * 100 // high if high else 0 for k, v in raw.items()}

    def score_node_affinity(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        preferred = [*pod["spec"].get("affinity", {}).get("nodeAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", []),
                     *self.args.preferred]
        raw = {n["metadata"]["name"]: sum(t["weight"] for t in preferred if all(expression(e, labels(n)) for e in t["preference"]["matchExpressions"]))
               for n in nodes}
        high = max(raw.values())
        return {k: v * 100 // high if high else 0 for k, v in raw.items()}

    def score_room(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        out = {}
        for n in nodes:
            total = weights = 0
            for r, weight in self.strategy.resources:
                plain = r in ("cpu", "memory")
                room = amount(r, n["status"]["allocatable"].get(r, "0"))
                if not room or (not plain and not requests(pod).get(r)):
                    continue
                used = sum(requests(q, plain).get(r, 0) for q in self.on(n)) + requests(pod, plain).get(r, 0)
                share = min(used, room) * 100 // room
                if self.strategy.type == "LeastAllocated":
                    score = (room - used) * 100 // room if used <= room else 0
                elif self.strategy.type == "MostAllocated":
                    score = share
                else:
                    (u0, s0), (u1, s1) = self.strategy.shape
                    at = 100 if used > room else used * 100 // room
                    score = s0 if at <= u0 else s1 if at >= u1 else s0 + int((s1 - s0) * (at - u0) / (u1 - u0))
                    if not score:
                        continue
                total += weight * score
                weights += weight
            share = total / weights if weights else 0
            out[n["metadata"]["name"]] = math.floor(share + 0.5) if self.strategy.shape else math.floor(share)
        return out

    def score_balance(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        if not any(requests(pod).get(r) for r in self.args.balanced):
            return {}

        def balance(n: Object, extra: bool) -> int:
            f = []
            for r in self.args.balanced:
                room = amount(r, n["status"]["allocatable"].get(r, "0"))
                if room:
                    f.append(min(1.0, (sum(requests(q).get(r, 0) for q in self.on(n)) + (requests(pod).get(r, 0) if extra else 0)) / room))
            if len(f) == 2:
                return int((1 - abs(f[0] - f[1]) / 2) * 100)
            mean = sum(f) / len(f)
            return int((1 - math.sqrt(sum((x - mean) ** 2 for x in f) / len(f))) * 100 + 1e-9)
        return {n["metadata"]["name"]: 50 + (50 + balance(n, True) - balance(n, False)) // 2 for n in nodes}

    def score_images(self, pod: Object, nodes: list[Object]) -> dict[str, int]:
        low, high = 23 << 20, 1000 << 20
        containers = pod["spec"]["containers"]
        out = {}
        for n in nodes:
            total = 0
            for c in containers:
                have = {x["metadata"]["name"]: i["sizeBytes"] for x in self.nodes for i in x["status"].get("images", [])
                        if f"{c['image']}:latest" in i["names"]}
                if n["metadata"]["name"] in have:
                    total += int(have[n["metadata"]["name"]] * (len(have) / len(self.nodes)))
            top = high * len(containers)
            out[n["metadata"]["name"]] = 100 * (min(max(total, low), top) - low) // (top - low)
        return out

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
                    size, count = len(scored), self.counts_here(c, pod, n)
                else:
                    size = len({labels(m)[key] for m in scored})
                    count = sum(self.counts_here(c, pod, m) for m in self.nodes
                                if self.same_domain(n, m, key) and all(x["topologyKey"] in labels(m) for x in soft) and self.included(c, pod, m))
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
                        s += sign * w * (self.concerns(t, pod, q) and self.same_domain(n, there, t["topologyKey"]))
                    for t, w in self.terms(q, kind, "preferred") if not self.args.ignore_preferred_of_existing else ():
                        s += sign * w * (self.concerns(t, q, pod) and self.same_domain(n, there, t["topologyKey"]))
                for t, _ in self.terms(q, "podAffinity", "required"):
                    s += self.args.hard_affinity_weight * (self.concerns(t, q, pod) and self.same_domain(n, there, t["topologyKey"]))
            raw[n["metadata"]["name"]] = s
        low, high = min(raw.values()), max(raw.values())
        return {k: int(100.0 * ((v - low) / (high - low))) if high > low else 0 for k, v in raw.items()}

    # --- preemption ---

    def victims(self, pod: Object, node: Object, budgets: list[Object]) -> tuple[list[Object], int] | None:
        """Whom to evict on a node, most important first, and how many of them are protected; None if nobody's leaving helps."""
        def weight(q: Object) -> tuple[int, str]:
            return -q["spec"].get("priority", 0), q["status"].get("startTime", "9999")
        lower = sorted((q for q in self.on(node) if q["spec"].get("priority", 0) < pod["spec"].get("priority", 0)), key=weight)
        everybody = list(self.pods)
        try:
            self.pods = [q for q in everybody if q not in lower]
            if not lower or self.why_not(pod, node):
                return None
            left = {b["metadata"]["name"]: b["status"]["disruptionsAllowed"] for b in budgets}
            protected = []
            for q in lower:
                mine = [b for b in budgets if b["metadata"]["namespace"] == q["metadata"]["namespace"] and selects(b["spec"]["selector"], q)]
                for b in mine:
                    left[b["metadata"]["name"]] -= 1
                if any(left[b["metadata"]["name"]] < 0 for b in mine):
                    protected.append(q)
            out = []
            for q in [*protected, *(q for q in lower if q not in protected)]:
                self.pods.append(q)
                if self.why_not(pod, node):
                    self.pods.remove(q)
                    out.append(q)
            return (sorted(out, key=weight), sum(q in protected for q in out)) if out else None
        finally:
            self.pods = everybody
