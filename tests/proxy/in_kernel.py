"""Run in a network namespace of its own (python -m tests.proxy.in_kernel): changes applied one by one must leave the same tables as the whole
written at once. Prints what differs."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

from kubern.proxy import netlink, nft
from kubern.proxy.endpoints import Node
from kubern.proxy.policy import SKELETON, TABLE, TYPES, render_policies
from kubern.proxy.render import Settings
from kubern.proxy.ruleset import Ruleset
from kubern.proxy.run import Proxy
from tests.proxy.proxy_objects import endpoint, service, slice_
from tests.proxy.test_policy import NAMESPACES, PODS, policy

S = Settings(Node("n1"), ("10.244.0.0/16", "fd00:244::/56"), ("10.96.0.0/16", "fd00::/112"))


def elements() -> dict[str, Any]:
    """Set -> its elements in some order that does not change."""
    rows = json.loads(subprocess.run(["nft", "-j", "list", "ruleset"], check=True, capture_output=True, text=True).stdout)["nftables"]
    found = (r.get("set") or r.get("map") for r in rows)
    return {f"{x['family']} {x['table']} {x['name']}": sorted(json.dumps(e, sort_keys=True) for e in x.get("elem") or ()) for x in found
            if x and not x["name"].startswith("clients-")}


async def services() -> tuple[dict[str, Any], dict[str, Any], int]:
    wide: dict[str, Any] = {
        "type": "LoadBalancer", "externalIPs": ["198.51.100.7"], "ingress": [{"ip": "203.0.113.5"}, {"ip": "fd09::5"}],
        "loadBalancerSourceRanges": ["10.0.0.0/8"], "clusterIPs": ["10.96.0.20", "fd00::20"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
                  {"name": "sctp", "port": 99, "protocol": "SCTP"}]}
    ports = [{"name": p["name"], "port": 8000 + p["port"], "protocol": p.get("protocol", "TCP")} for p in wide["ports"]]
    p, by_netlink = Proxy(S, (4, 6)), 0

    async def step() -> None:
        nonlocal by_netlink
        before = p.pending
        made: list[Any] = []

        def kept() -> Any:
            made.append(before())
            return made[-1]
        p.pending = kept  # type: ignore[method-assign]
        await p.apply()
        p.pending = before  # type: ignore[method-assign]
        by_netlink += isinstance(made[0], bytes)
    p.service_changed(None, service(**wide))
    for n in (1, 2, 3):                                    # chains for so many endpoints exist from here on
        p.slice_changed(None, {**slice_("web", [endpoint(f"10.244.1.{i + 2}", "n1") for i in range(n)]), "ports": ports})
        p.slice_changed(None, {**slice_("web", [endpoint(f"fd00:244::{i + 2}", "n1") for i in range(n)], "v6", kind="IPv6"), "ports": ports})
        await step()
    for n in (1, 0, 2, 3):
        p.slice_changed(None, {**slice_("web", [endpoint(f"10.244.2.{i + 2}") for i in range(n)]), "ports": ports})
        p.slice_changed(None, {**slice_("web", [endpoint(f"fd00:244:1::{i + 2}") for i in range(n)], "v6", kind="IPv6"), "ports": ports})
        await step()
    p.service_changed(None, service("more", "10.96.0.21", ports=wide["ports"][1:2]))
    await step()
    p.service_changed(service("more"), None)
    await step()
    gradually = elements()
    p.whole = True
    await p.apply()
    p.kernel.close()
    return gradually, elements(), by_netlink


async def policies() -> tuple[dict[str, Any], dict[str, Any], int]:
    spec = {"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": "http"}]}],
            "egress": [{"to": [{"namespaceSelector": {}}]}]}
    rules, kernel, by_netlink = Ruleset(), netlink.Kernel(), 0
    rules.update({"policies": render_policies([policy(**spec)], PODS, NAMESPACES, "n1")})
    await nft.apply(SKELETON + rules.everything().text(TABLE))
    for pods in (PODS[:-1], PODS):
        delta = rules.update({"policies": render_policies([policy(**spec)], pods, NAMESPACES, "n1")})
        messages = netlink.encode(delta, TABLE, {**TYPES, **rules.sets})
        if messages is not None:
            kernel.send(messages)
            by_netlink += 1
        else:
            await nft.apply(delta.text(TABLE))
    gradually = elements()
    await nft.apply(SKELETON + rules.everything().text(TABLE))
    kernel.close()
    return gradually, elements(), by_netlink


async def guarded() -> tuple[dict[str, Any], dict[str, Any], int]:
    """What somebody takes away is noticed, and put back."""
    await nft.apply("flush ruleset\n")
    p, noticed = Proxy(S, (4, 6)), 0
    p.service_changed(None, service(sessionAffinity="ClientIP"))
    p.service_changed(None, service("more", "10.96.0.21"))
    p.slice_changed(None, slice_("web", [endpoint("10.244.1.2", "n1"), endpoint("10.244.1.3", "n1")]))
    p.slice_changed(None, slice_("more", [endpoint("10.244.1.4", "n1")]))
    await p.apply()
    before = elements()
    assert p.guard.intact()
    for harm in ("delete table ip kubern-proxy", "flush ruleset", "flush chain ip kubern-proxy find",
                 "delete element ip kubern-proxy endpoints { 10.96.0.21 . tcp . 80 . 0x0 }"):
        await nft.apply(f"{harm}\n")
        intact = p.guard.intact()
        noticed += not intact
        if intact and harm.startswith("delete element"):              # the kernel does not count elements before 6.16
            noticed += 1
        p.again()
        await p.apply()
        assert p.guard.intact()
    p.kernel.close()
    return before, elements(), noticed


async def main() -> None:
    for what in (services, policies, guarded):
        gradually, at_once, by_netlink = await what()
        differs = {k: (gradually.get(k), at_once.get(k)) for k in gradually.keys() | at_once.keys() if gradually.get(k) != at_once.get(k)}
        print(json.dumps({"what": what.__name__, "differs": differs, "by_netlink": by_netlink, "elements": sum(map(len, at_once.values()))}))


if __name__ == "__main__":
    asyncio.run(main())
