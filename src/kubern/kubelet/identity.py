"""What a pod calls itself and whom it asks: hostname, /etc/hosts, DNS settings. Pure.

Upstream: kubelet_pods.go (GeneratePodHostNameAndDomain, managedHostsFileContent), network/dns; KEP-4762 (hostnameOverride).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubern.kubelet import pods
from kubern.model.object import Object

HOSTNAME_MAX = 63
SEARCHES_MAX, NAMESERVERS_MAX = 32, 3
HOSTS_HEADER = "# Kubernetes-managed hosts file.\n"
HOSTS_HEADER_HOST = "# Kubernetes-managed hosts file (host network).\n"
HOSTS_LOCAL = ("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n"
               "fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")


@dataclass(frozen=True, slots=True)
class Resolver:
    """resolv.conf as data."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


NO_RESOLVER = Resolver()


def parse_resolver(text: str) -> Resolver:
    """A resolv.conf file."""
    servers: list[str] = []
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if not words:
            continue
        if words[0] == "nameserver" and len(words) > 1:
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            searches = tuple(w.rstrip(".") or "." for w in words[1:])
        elif words[0] == "options":
            options = tuple(words[1:])
    return Resolver(tuple(servers), searches, options)


def hostname(pod: Object, cluster_domain: str) -> tuple[str, str]:
    """(hostname, domain it is in or "")."""
    spec, meta = pod["spec"], pod["metadata"]
    if spec.get("hostnameOverride"):
        return _short(spec["hostnameOverride"]), ""
    name = _short(spec.get("hostname") or meta["name"])
    domain = f"{spec['subdomain']}.{meta.get('namespace')}.svc.{cluster_domain}" if spec.get("subdomain") else ""
    return name, domain


def _short(name: str) -> str:
    return name if len(name) <= HOSTNAME_MAX else name[:HOSTNAME_MAX].rstrip("-.")


def node_hostname(pod: Object, cluster_domain: str) -> str:
    """What the kernel of the pod's uts namespace is told."""
    name, domain = hostname(pod, cluster_domain)
    return f"{name}.{domain}" if pod["spec"].get("setHostnameAsFQDN") and domain else name


def hosts_file(pod: Object, ips: Iterable[str], cluster_domain: str, node_hosts: str = "") -> str:
    """/etc/hosts: the pod's own, or the node's (its text in `node_hosts`) for pods in the node's network."""
    if pods.host_network(pod):
        text = HOSTS_HEADER_HOST + node_hosts
    else:
        name, domain = hostname(pod, cluster_domain)
        names = f"{name}.{domain}\t{name}" if domain else name
        text = HOSTS_HEADER + HOSTS_LOCAL + "".join(f"{ip}\t{names}\n" for ip in ips)
    aliases = pod["spec"].get("hostAliases") or ()
    if aliases:
        text += "\n# Entries added by HostAliases.\n"
        text += "".join("\t".join([a["ip"], *(a.get("hostnames") or ())]) + "\n" for a in aliases)
    return text


def resolver(pod: Object, cluster_dns: tuple[str, ...], cluster_domain: str, node: Resolver) -> Resolver:
    """The pod's resolv.conf after dnsPolicy and dnsConfig."""
    spec = pod["spec"]
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    if policy == "ClusterFirst" and pods.host_network(pod):
        policy = "Default"
    if policy == "ClusterFirstWithHostNet":
        policy = "ClusterFirst"
    if policy == "None":
        out = Resolver()
    elif policy == "ClusterFirst" and cluster_dns:
        space = pod["metadata"].get("namespace") or "default"
        own = (f"{space}.svc.{cluster_domain}", f"svc.{cluster_domain}", cluster_domain) if cluster_domain else ()
        out = Resolver(cluster_dns, tuple(dict.fromkeys((*own, *node.searches))), ("ndots:5",))
    else:
        out = node
    more: Mapping[str, Any] = spec.get("dnsConfig") or {}
    if more:
        options = dict(o.partition(":")[::2] for o in out.options)
        for o in more.get("options") or ():
            options[o["name"]] = o.get("value") or ""
        out = Resolver(tuple(dict.fromkeys((*out.servers, *(more.get("nameservers") or ())))),
                       tuple(dict.fromkeys((*out.searches, *(more.get("searches") or ())))),
                       tuple(f"{k}:{v}" if v else k for k, v in options.items()))
    return Resolver(out.servers[:NAMESERVERS_MAX], out.searches[:SEARCHES_MAX], out.options)
