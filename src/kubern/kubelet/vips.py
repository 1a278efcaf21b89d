"""Load balancer addresses: to which node the machine sends what is meant for each. Pure; fabric.sync_routes does it.

A node whose proxy gets the packet sends it on to an endpoint. With externalTrafficPolicy Local only nodes with a ready endpoint are asked.
The choice is by rendezvous hashing: a node that comes or goes moves only its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from kubern.model.object import Object, condition, deleting, labels, namespace

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
SERVICE_LABEL = "kubernetes.io/service-name"


def candidates(nodes: Iterable[Object]) -> dict[str, dict[int, str]]:
    """name -> family -> InternalIP of every node that may take outside traffic."""
    out: dict[str, dict[int, str]] = {}
    for n in nodes:
        ips = {6 if ":" in a["address"] else 4: a["address"] for a in reversed((n.get("status") or {}).get("addresses") or ()) if a.get("type") == "InternalIP"}
        if ips and not deleting(n) and EXCLUDED not in labels(n) and (condition(n, "Ready") or {}).get("status") == "True":
            out[n["metadata"]["name"]] = ips
    return out


def local_nodes(slices: Iterable[Object]) -> dict[str, set[str]]:
    """"namespace/service" -> nodes with a ready endpoint of it."""
    out: dict[str, set[str]] = {}
    for s in slices:
        owner = f"{namespace(s)}/{labels(s).get(SERVICE_LABEL) or ''}"
        for e in s.get("endpoints") or ():
            if e.get("nodeName") and (e.get("conditions") or {}).get("ready") is not False:
                out.setdefault(owner, set()).add(e["nodeName"])
    return out


def routes(services: Iterable[Object], slices: Iterable[Object], nodes: Iterable[Object]) -> dict[str, str]:
    """VIP -> address of the node it is routed to. One that no node can serve is left out."""
    usable = candidates(nodes)
    if not usable:
        return {}
    local: Mapping[str, set[str]] | None = None
    out: dict[str, str] = {}
    slices = list(slices)
    for s in services:
        spec: dict[str, Any] = s.get("spec") or {}
        ingress = ((s.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        if spec.get("type") != "LoadBalancer" or not ingress:
            continue
        names = list(usable)
        if spec.get("externalTrafficPolicy") == "Local":
            local = local_nodes(slices) if local is None else local
            names = [n for n in names if n in local.get(f"{namespace(s)}/{s['metadata']['name']}", ())]
        for ip in (i.get("ip") for i in ingress if i.get("ipMode", "VIP") == "VIP"):
            family = 6 if ip and ":" in ip else 4
            able = [n for n in names if family in usable[n]]
            if ip and able:
                out[ip] = usable[max(able, key=lambda n: hashlib.sha256(f"{ip}/{n}".encode()).digest())][family]
    return out
