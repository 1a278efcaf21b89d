"""What a node unit of this cluster is started with."""

from __future__ import annotations

from typing import Any

from kubern import pki
from kubern.config import Settings
from kubern.model.addresses import networks

REGISTRY_PORT = 5001


def unit_settings(s: Settings, p: pki.Pki, gateway: str, name: str) -> Any:
    """What create_unit needs for this node; writes its kubeconfig and serving certificate."""
    from kubern.kubelet.network import GROUP
    from kubern.kubelet.node import UnitSettings

    server = f"https://{gateway}:{s.port}"
    home = s.home / "nodes" / name
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = home / "kubelet.kubeconfig"
    pki.write_kubeconfig(path, pki.kubeconfig("kubern", server, p.ca.cert, p.node_client(name), user=f"system:node:{name}"))
    pki.write_private(home / "ca.crt", p.ca.cert)
    network_path = home / "network.kubeconfig"
    pair = pki.client(p.directory, f"network-{name}-client", f"kubern:network:{name}", (GROUP,), p.ca)
    pki.write_kubeconfig(network_path, pki.kubeconfig("kubern", server, p.ca.cert, pair, user=f"kubern:network:{name}"))
    return UnitSettings(home=s.home, name=name, server=server, kubeconfig=str(path), network_kubeconfig=str(network_path), registry=f"http://{gateway}:{REGISTRY_PORT}",
                        pod_cidr=s.pod_cidr, service_cidr=s.service_cidr, cluster_dns=cluster_dns(s.service_cidr), cluster_domain=s.cluster_domain,
                        log_level=s.log_level, lease_s=lease_s(s.node_grace_s))


def lease_s(node_grace_s: float) -> float:
    """How long nodes' leases hold: 40 s, or four fifths of the control plane's patience where that is shorter (upstream: 40 of 50)."""
    return min(40.0, 0.8 * node_grace_s)


def cluster_dns(service_cidr: str) -> str:
    """The tenth address of the service range, as everywhere."""
    return str(networks(service_cidr)[0][10])
