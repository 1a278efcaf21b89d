"""Nodes of the running cluster on this machine: list, add, drain and remove."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from kubern.commands.terminal import ask, say
from kubern.config import Settings
from kubern.daemon import READY_TIMEOUT_S, running_pid, saved

DRAIN_TIMEOUT_S = 60.0


def as_started(s: Settings) -> Settings:
    """The settings the running cluster was started with."""
    from dataclasses import fields, replace

    old = saved(s.home)
    return replace(s, **{f.name: old[f.name] for f in fields(Settings) if f.name in old and f.name != "data_dir"})


def ensure_nodes(s: Settings) -> int:
    """`up` on a running cluster: add the nodes that are asked for and not there."""
    from kubern.kubelet import node

    running = as_started(s)
    if s.runtime != "containerd" or running.runtime != "containerd" or os.geteuid() != 0:
        return 0
    have = {u.name for u in node.list_units(s.home) if u.alive()}
    for name in (f"{running.node_prefix}{i}" for i in range(s.nodes)):
        if name not in have and node_add(s, name):
            return 1
    return 0


def node_list(s: Settings) -> int:
    from kubern.kubelet import node

    units = node.list_units(s.home)
    for u in units:
        state = "running" if u.alive() else "not running"
        say(f"{u.name:<16}{state:<13}{u.config.address:<16}process {u.pid}")
    if not units:
        say("no node units on this machine; add one with: kubern node add")
    return 0


def node_add(s: Settings, name: str = "") -> int:
    """Create a unit and wait until its Node is Ready."""
    from kubern import pki
    from kubern.kubelet import fabric, node
    from kubern.model.object import condition
    from kubern.model.resources import by_kind
    from kubern.roles.units import unit_settings

    if not running_pid(s.home):
        say(f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up")
        return 1
    s = as_started(s)
    if not (s.home / "fabric.json").exists():
        say("kubern: this cluster was started without real nodes; start it again with: kubern up --nodes 1")
        return 1
    units = {u.name: u for u in node.list_units(s.home)}
    if name in units and units[name].alive():
        say(f"{name} is already running")
        return 0
    name = name or next(n for n in (f"{s.node_prefix}{i}" for i in range(10_000)) if n not in units and not (s.home / "nodes" / n / "killed").exists())
    began = time.monotonic()
    try:
        f = fabric.ensure(fabric.cluster_id(s.home), s.home / "fabric.json", s.pod_cidr, s.service_cidr)
        s = replace(s, pod_cidr=f.pod_cidr)
        node.create_unit(unit_settings(s, pki.ensure(s.home / "pki", **_names(s)), f.gateway, name), wait=False)
    except node.CannotRun as e:
        say(f"kubern: {e}")
        return 1
    (s.home / "nodes" / name / "killed").unlink(missing_ok=True)

    async def ready(client: Any) -> bool:
        n = await client.get(by_kind[("v1", "Node")], "", name)
        return (condition(n, "Ready") or {}).get("status") == "True"
    while not ask(s, ready):
        if time.monotonic() - began > READY_TIMEOUT_S:
            say(f"kubern: {name} did not become Ready; see: kubern logs {name}")
            return 1
        time.sleep(0.1)
    say(f"{name} is Ready after {time.monotonic() - began:.1f} s")
    return 0


def _names(s: Settings) -> dict[str, Any]:
    """The names already in the serving certificate, so that it is not made anew."""
    from cryptography import x509

    cert = x509.load_pem_x509_certificate((s.home / "pki" / "apiserver.crt").read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {"dns": names.get_values_for_type(x509.DNSName), "ips": [str(i) for i in names.get_values_for_type(x509.IPAddress)]}


def node_remove(s: Settings, name: str, kill: bool) -> int:
    """Drain and remove a node, or kill it as a power cut would."""
    from kubern.kubelet import node
    from kubern.model.resources import by_kind

    if name not in {u.name for u in node.list_units(s.home)}:
        say(f"kubern: there is no node unit {name}; see: kubern node list")
        return 1
    if kill:
        (s.home / "nodes" / name / "killed").touch()
        node.destroy_unit(s.home, name, kill=True)
        say(f"{name} is killed; its Node turns NotReady when its lease runs out")
        return 0
    row = by_kind[("v1", "Node")]
    say(f"draining {name}")
    ask(s, lambda client: drain(client, name))
    node.destroy_unit(s.home, name, purge=True)
    ask(s, lambda client: client.delete(row, "", name))
    say(f"{name} is removed")
    return 0


async def drain(client: Any, name: str) -> None:
    """Cordon a node and evict its pods, DaemonSets' aside, waiting while budgets hold; gives up after DRAIN_TIMEOUT_S."""
    import asyncio

    from kubern.model.object import controller_of, meta
    from kubern.model.resources import by_kind
    from kubern.model.status import StatusError

    pod = by_kind[("v1", "Pod")]
    await client.patch(by_kind[("v1", "Node")], "", name, {"spec": {"unschedulable": True}})
    end = time.monotonic() + DRAIN_TIMEOUT_S
    while time.monotonic() < end:
        items, _ = await client.list(pod, fields=f"spec.nodeName={name}")
        left = [p for p in items if (controller_of(p) or {}).get("kind") != "DaemonSet" and (p.get("status") or {}).get("phase") not in
                ("Succeeded", "Failed")]
        if not left:
            return
        for p in left:
            m = meta(p)
            if m.get("deletionTimestamp"):
                continue
            try:
                await client.create_in(pod, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": m["name"], "namespace": m["namespace"]}},
                                       name=m["name"], subresource="eviction")
            except StatusError as e:
                if e.code not in (404, 429):
                    raise
        await asyncio.sleep(0.2)
    say(f"not all pods left {name} in {DRAIN_TIMEOUT_S:.0f} s; taking it away nevertheless")
