"""Configure: the ConfigMap kube-system/kube-dns: other servers for some domains, and for the rest of the world.

`stubDomains`: JSON, domain -> list of servers; `upstreamNameservers`: JSON, a list. Servers are addresses, with ":PORT" or without. What cannot be
read is left out with a warning. Source: "Customizing DNS Service" of the Kubernetes documentation (kube-dns, which CoreDNS took over).
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kubern.client.client import Client
from kubern.client.watch import follow as follow_objects
from kubern.dns.codec import Name, name_of
from kubern.dns.forward import PORT, Server
from kubern.model.object import Object
from kubern.model.resources import by_path

log = logging.getLogger(__name__)

NAMESPACE, NAME = "kube-system", "kube-dns"
CONFIG_MAPS = by_path["", "v1", "configmaps"]
SERVERS_MAX = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to ask; `servers` empty: whoever is asked without a choice."""

    stubs: dict[Name, list[Server]] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)


def parse(config: Object | None) -> Choice:
    data = (config or {}).get("data") or {}
    stubs: dict[Name, list[Server]] = {}
    servers: list[Server] = []
    try:
        for domain, listed in json.loads(data.get("stubDomains") or "{}").items():
            if found := _servers(listed):
                stubs[name_of(domain)] = found
        servers = _servers(json.loads(data.get("upstreamNameservers") or "[]"))
    except (ValueError, AttributeError, TypeError) as e:
        log.warning("configmap %s/%s cannot be read: %s", NAMESPACE, NAME, e)
    return Choice(stubs, servers)


def _servers(texts: Iterable[str]) -> list[Server]:
    out = []
    for text in texts:
        host, _, port = text.rpartition(":") if text.count(":") == 1 or text.startswith("[") else (text, "", str(PORT))
        host = (host or text).strip("[]")
        try:
            out.append((str(ipaddress.ip_address(host)), int(port)))
        except ValueError:
            log.warning("%r is no address of a server", text)
    return out[:SERVERS_MAX]


def within_reach(c: Choice, networks: Sequence[str]) -> Choice:
    """Without servers outside of these networks: a node unit reaches those by way of the machine's relay, which knows them as well."""
    near = [ipaddress.ip_network(n, strict=False) for n in networks]

    def mine(servers: list[Server]) -> list[Server]:
        return [s for s in servers if any(ipaddress.ip_address(s[0]) in n for n in near)]
    return Choice({d: kept for d, s in c.stubs.items() if (kept := mine(s))}, mine(c.servers))


async def follow(client: Client, chosen: Callable[[Choice], None]) -> None:
    """Tells of the ConfigMap's choice, now and with every change; until cancelled."""
    def replaced(items: list[Object], _revision: int) -> None:
        chosen(parse(items[0] if items else None))

    def event(type_: str, obj: Object) -> None:
        if type_ != "BOOKMARK":
            chosen(parse(None if type_ == "DELETED" else obj))
    await follow_objects(client, CONFIG_MAPS, replaced, event, namespace=NAMESPACE, fields=f"metadata.name={NAME}")
