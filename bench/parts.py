"""parts: one function for each thing that is measured. Each emits its rows and, where the table asks for it, gives its values.

The API series is the same work on any server; all else is a kubern of our own. Not the scheduler's workloads (run) nor the goals (table).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import orjson
from cluster import MAPS, PODS, Cluster, Probe, Server, add_nodes, config_map, emit, pod
from load import Load, Target, ask, slow_readers, until, watch_fan_out

PLACED = "/api/v1/namespaces/kube-node-lease/pods"      # nothing else is there
MERGE = "application/merge-patch+json"
Values = dict[str, float]


def api_series(server: Server, scale: float, nodes: int) -> Values:
    """Reads, writes, watches and scheduling; TLS and every default on, durable. Leaves its objects behind."""
    load, t, values = Load(server.target), server.target, Values()

    def n(full: int) -> int:
        return max(32, int(full * scale))

    def run(key: str, what: str, make: Any, count: int, clients: int, **how: Any) -> None:
        before = server.cpu_s()
        result = load.run(make, count, clients, **how)
        cpu_us = round((server.cpu_s() - before) / count * 1e6)
        emit(what, **result, server_cpu_us=cpu_us)
        values.update({key: result["per_s"], f"{key} p50": result["p50_ms"], f"{key} p99": result["p99_ms"], f"{key} us": cpu_us,
                       f"{key} errors": result["errors"]})
    ask(t, "POST", MAPS, orjson.loads(config_map("one")))
    run("get", "get", lambda i: t.request("GET", f"{MAPS}/one"), n(20_000), 32)
    probe = Probe(t)
    run("create map", "create ConfigMap", lambda i: t.request("POST", MAPS, config_map(f"m-{i:06d}")), n(10_000), 32)
    run("create pod", "create Pod", lambda i: t.request("POST", PODS, pod(f"p-{i:06d}")), n(2_000), 32)
    for i in range(16):
        ask(t, "POST", MAPS, orjson.loads(config_map(f"own-{i}")))
    run("update", "read-modify-write", lambda i: t.request("GET", f"{MAPS}/own-{i % 16}"), n(3_000), 16, again=True, ok=(200, 409))
    run("patch", "merge PATCH", lambda i: t.request("PATCH", f"{MAPS}/own-{i % 16}", b'{"data":{"i":"%d"}}' % i, MERGE), n(3_000), 16)
    emit("pauses while writing", **probe.end())
    run("list", "LIST all ConfigMaps", lambda i: t.request("GET", "/api/v1/configmaps"), 30, 2)
    run("page", "LIST page of 500", lambda i: t.request("GET", "/api/v1/configmaps?limit=500"), 60, 2)
    fan = emit("watch fan-out", **watch_fan_out(t, MAPS, 200, max(50, n(300)), lambda i: t.request("POST", MAPS, config_map(f"w-{i:06d}"))))
    values.update({"watch": fan["per_s"], "watch p99": fan["p99_ms"]})
    add_nodes(load, nodes)
    time.sleep(3)
    server.settle()
    pods, before = n(5_000), server.cpu_s()
    ended, bound = until(t, PLACED, pods, b'"nodeName":"', lambda: load.run(lambda i: t.request("POST", PLACED, pod(f"p-{i:06d}")), pods, 32), 400)
    values["schedule"] = round(bound / (ended - load.began), 1)
    values["schedule us"] = round((server.cpu_s() - before) / max(bound, 1) * 1e6)
    emit("schedule", nodes=nodes, pods=bound, per_s=values["schedule"], server_cpu_us=values["schedule us"])
    run("list pods", "LIST all pods", lambda i: t.request("GET", "/api/v1/pods"), 10, 1)
    values["memory"] = emit("memory after the series", memory_mb=server.memory_mb())["memory_mb"]
    load.close()
    return values


def startup(port: int) -> Values:
    """Start to ready with all roles, three times; then what it costs to do nothing."""
    ready = []
    for last in (False, False, True):
        with Cluster(port) as cluster:
            ready.append(cluster.ready_s)
            if last:
                time.sleep(3)
                before = cluster.cpu_s()
                time.sleep(20)
                row = emit("start", ready_s=round(sorted(ready)[1], 2), idle_memory_mb=cluster.memory_mb(),
                           idle_cpu_percent=round((cluster.cpu_s() - before) * 5, 2))
    return {"start": row["ready_s"], "idle memory": row["idle_memory_mb"], "idle cpu": row["idle_cpu_percent"]}


def simulation(port: int, nodes: int, pods: int) -> None:
    """KWOK's bar: so many nodes Ready, pods Running, pods deleted."""
    with Cluster(port, "--runtime", "simulated", "--nodes", str(nodes)) as cluster:
        emit("simulated nodes ready", nodes=nodes, seconds=round(cluster.ready_s, 2))
        t, load = cluster.target, Load(cluster.target)
        ended, n = until(t, PODS, pods, b'"phase":"Running"', lambda: load.run(
            lambda i: t.request("POST", PODS, pod(f"s-{i:06d}", cpu="10m", memory="10Mi")), pods, 32), 300)
        seconds = ended - load.began
        emit("simulated pods running", pods=n, seconds=round(seconds, 2), per_s=round(n / seconds, 1), memory_mb=cluster.memory_mb())
        at = time.perf_counter()
        ended, n = until(t, PODS, pods, b'{"type":"DELETED"', lambda: ask(t, "DELETE", PODS), 300)
        seconds = ended - at
        emit("simulated pods deleted", pods=n, seconds=round(seconds, 2), per_s=round(n / seconds, 1))
        load.close()


def population(port: int, nodes: int, pods: int) -> Values:
    """So many nodes with so many pods placed on them: memory when all is quiet again, and without what the load left in the allocator's hands."""
    with Cluster(port) as cluster:
        t, load = cluster.target, Load(cluster.target)
        add_nodes(load, nodes)
        _, bound = until(t, PODS, pods, b'"nodeName":"', lambda: load.run(
            lambda i: t.request("POST", PODS, pod(f"p-{i:06d}", cpu="10m", memory="10Mi")), pods, 32), 400)
        busy = cluster.memory_mb()
        cluster.settle(90)
        row = emit("population", nodes=nodes, pods=bound, memory_mb=max(busy, cluster.memory_mb()), quiet_memory_mb=cluster.memory_mb())
        load.close()
    return {"population": row["memory_mb"], "population pods": bound}


def real_pods(port: int, count: int = 30, per_s: float = 5.0) -> Values:
    """Real containers on one node unit: create to Ready at a rate, the agent's memory with these pods, the node's and the cluster's CPU while idle."""
    import pods as real

    with Cluster(port, "--nodes", "1", "--bind", "0.0.0.0") as cluster:      # the node reaches it over its own network
        home = cluster.home / "d"
        try:
            emit("pods", per_s=per_s, **asyncio.run(real.starts(home / "admin.kubeconfig", count, per_s)))
            time.sleep(5)
            processes, agent = real.node_processes(home, "node-0")
            row = emit("node with these pods", pods=count, agent_memory_mb=real.memory_mb(agent),
                       idle_cpu_percent=real.idle_percent([*processes, *cluster.pids], 30), agent_idle_cpu_percent=real.idle_percent([agent], 10))
        finally:
            subprocess.run([sys.executable, "-m", "kubern", "down", "--data-dir", str(home), "--purge"], capture_output=True, check=False)
    return {"node idle cpu": row["idle_cpu_percent"], "agent memory": row["agent_memory_mb"]}


def services_and_names(parts: list[str]) -> None:
    """The proxy's updates and a connection's first packet at so many services; answers of a node's DNS as a pod sees them."""
    import net

    for count in (100, 1000, 10_000) if "proxy" in parts else ():
        emit("proxy", **net.measure("proxy", str(count)))
    if "dns" in parts:
        emit("dns", **net.measure("dns", "10"))


# --- growth ---

def growth(port: int, sizes: list[int]) -> Values:
    """What reads and writes cost as objects pile up; at the end the longest pause under a light load of everything."""
    rows = []
    with Cluster(port) as cluster:
        t, load, have = cluster.target, Load(cluster.target), 0

        def cost(make: Any, n: int, clients: int) -> tuple[int, float]:
            """Server CPU of one operation in µs, and operations a second."""
            before = cluster.cpu_s()
            done = load.run(make, n, clients)
            return round((cluster.cpu_s() - before) / n * 1e6), done["per_s"]

        def patched(i: int, size: int) -> bytes:
            return t.request("PATCH", f"{MAPS}/g-{i * 7919 % size:07d}", b'{"data":{"n":"%d"}}' % i, MERGE)
        load.run(lambda i: t.request("POST", MAPS, config_map(f"warm-{i}")), 500, 32)
        load.run(lambda i: t.request("PATCH", f"{MAPS}/warm-{i}", b'{"data":{"n":"%d"}}' % i, MERGE), 500, 16)
        for size in sizes:
            first, have = have, size
            probe = Probe(t)
            create = cost(lambda i, f=first: t.request("POST", MAPS, config_map(f"g-{f + i:07d}")), size - first, 32)
            pause = probe.end()
            get = cost(lambda i, s=size: t.request("GET", f"{MAPS}/g-{i * 7919 % s:07d}"), 5000, 32)
            patch = cost(lambda i, s=size: patched(i, s), 3000, 16)
            page = load.run(lambda i: t.request("GET", "/api/v1/configmaps?limit=500"), 20, 2)
            rows.append(emit("growth", objects=size, create_us=create[0], get_us=get[0], patch_us=patch[0], create_per_s=create[1], get_per_s=get[1],
                             patch_per_s=patch[1], page_p50_ms=page["p50_ms"], longest_pause_ms=pause["max_ms"], memory_mb=cluster.memory_mb()))
        probe = Probe(t)
        load.run(lambda i: (t.request("POST", MAPS, config_map(f"q-{i:07d}")) if i % 3 else patched(i, have)) if i % 500 else t.request(
            "GET", "/api/v1/configmaps"), 12_000, 4)
        pause = emit(f"pauses at {have} objects", **probe.end())
        load.close()
    return {**{f"growth of {op}": round(max(r[f"{op}_us"] for r in rows) / rows[0][f"{op}_us"], 2) for op in ("get", "create", "patch")},
            "pause": pause["max_ms"], "pause p99": pause["p99_ms"]}


def growth_of_watchers(port: int, counts: list[int]) -> Values:
    """What a delivery costs as watchers come."""
    rows = []
    for watchers in counts:
        with Cluster(port) as cluster:
            before = cluster.cpu_s()
            opened: list[float] = []
            result = watch_fan_out(cluster.target, MAPS, watchers, 100, lambda i: cluster.target.request("POST", MAPS, config_map(f"w-{i:06d}")),
                                   lambda o=opened, c=cluster: o.append(c.cpu_s()))
            rows.append(emit("growth of watchers", **result, delivery_us=round((cluster.cpu_s() - opened[0]) / max(result["delivered"], 1) * 1e6, 1),
                             opening_us=round((opened[0] - before) / watchers * 1e6), memory_mb=cluster.memory_mb()))
    return {"growth of delivery": round(max(r["delivery_us"] for r in rows) / rows[0]["delivery_us"], 2)}


def growth_of_nodes(port: int, counts: list[int], pods: int) -> Values:
    """What a pod costs, from its creation to its binding, as nodes come."""
    rows = []
    for nodes in counts:
        with Cluster(port) as cluster:
            t, load = cluster.target, Load(cluster.target)
            add_nodes(load, nodes)
            cluster.settle()
            before = cluster.cpu_s()
            ended, bound = until(t, PODS, pods, b'"nodeName":"', lambda t=t, load=load: load.run(
                lambda i: t.request("POST", PODS, pod(f"p-{i:06d}")), pods, 32, (201,)), 300)
            rows.append(emit("growth of nodes", nodes=nodes, pods=bound, per_s=round(bound / (ended - load.began), 1),
                             pod_us=round((cluster.cpu_s() - before) / max(bound, 1) * 1e6), memory_mb=cluster.memory_mb()))
            load.close()
    return {"growth of pod": round(max(r["pod_us"] for r in rows) / rows[0]["pod_us"], 2)}


# --- more than it can do, and clients that do not read ---

def account(t: Target, namespace: str) -> Target:
    """The same server as the service account `bench` of a namespace, which may do everything but is not exempt from fairness."""
    ask(t, "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bench"}})
    ask(t, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": f"bench-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "bench", "namespace": namespace}]})
    _, answer = ask(t, "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/bench/token", {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
    return Target(t.host, t.port, token=answer["status"]["token"])


def overload(port: int, clients: int, n: int) -> Values:
    """So many clients of one account create as fast as they can; meanwhile health checks and a system account's lease must go on."""
    with Cluster(port) as cluster:
        t = cluster.target
        many, system = account(t, "default"), account(t, "kube-system")
        lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        ask(t, "POST", lease, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "bench"}, "spec": {}})
        load, before = Load(many), cluster.memory_mb()
        ready, renewed = Probe(t), Probe(system, system.request("PATCH", f"{lease}/bench", b'{"spec":{"holderIdentity":"bench"}}', MERGE))
        done = load.run(lambda i: many.request("POST", MAPS, config_map(f"o-{i:06d}")), n, clients, (201, 429))
        shed = done.get("statuses", {}).get(429, 0)
        row = emit("overload", clients=clients, **done, served_per_s=round((n - shed - done["errors"]) / done["seconds"], 1),
                   readyz=ready.end(), system=renewed.end(), memory_before_mb=before, memory_mb=cluster.memory_mb())
        load.close()
    return {"overload": row["served_per_s"], "overload p99": row["p99_ms"], "overload shed": shed, "overload errors": row["errors"],
            "overload no retry": done.get("no_retry_after", 0), "overload readyz": row["readyz"]["p99_ms"],
            "overload system": row["system"]["p99_ms"], "overload system refused": row["system"]["refused"],
            "overload memory": row["memory_mb"] - before, "overload clients": clients}


def laggards(port: int, slow: int = 20) -> Values:
    """Watch fan-out and GETs alone, then beside watchers that never read and clients that read a big list a little at a time."""
    values = Values()
    with Cluster(port) as cluster:
        t, load = cluster.target, Load(cluster.target)
        load.run(lambda i: t.request("POST", MAPS, config_map(f"m-{i:06d}")), 10_000, 32)

        def both(which: str) -> None:
            fan = watch_fan_out(t, MAPS, 100, 300, lambda i: t.request("POST", MAPS, config_map(f"{which}-{i:06d}")))
            gets = load.run(lambda i: t.request("GET", f"{MAPS}/m-000001"), 10_000, 32)
            emit(f"slow clients: {which}", deliveries_per_s=fan["per_s"], delivery_p99_ms=fan["p99_ms"], gets_per_s=gets["per_s"],
                 get_p99_ms=gets["p99_ms"], memory_mb=cluster.memory_mb())
            values.update({f"deliveries {which}": fan["per_s"], f"gets {which}": gets["per_s"], f"delivery p99 {which}": fan["p99_ms"],
                           f"get p99 {which}": gets["p99_ms"], f"slow memory {which}": cluster.memory_mb()})
        both("warm")
        both("without")
        stop = slow_readers(t, [t.request("GET", f"{MAPS}?watch=1")] * slow + [t.request("GET", "/api/v1/configmaps")] * slow)
        both("beside")
        stop()
        load.close()
    return values


