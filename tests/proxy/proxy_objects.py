"""Services and slices for tests of the proxy."""

from __future__ import annotations

from typing import Any


def service(name: str = "web", ip: str = "10.96.0.20", ports: list[dict[str, Any]] | None = None, ingress: list[dict[str, Any]] | None = None,
            **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": ports or [{"name": "http", "port": 80, "protocol": "TCP"}], **spec},
            **({"status": {"loadBalancer": {"ingress": ingress}}} if ingress else {})}


def endpoint(ip: str, node: str = "n2", ready: bool | None = True, **more: Any) -> dict[str, Any]:
    conditions = more.pop("conditions", {"ready": ready} if ready is not None else {})
    return {"addresses": [ip], "nodeName": node, "conditions": conditions, **more}


def slice_(service_name: str, endpoints: list[dict[str, Any]], name: str = "", ports: list[dict[str, Any]] | None = None,
           kind: str = "IPv4") -> dict[str, Any]:
    return {"metadata": {"name": name or f"{service_name}-x", "namespace": "default", "labels": {"kubernetes.io/service-name": service_name}},
            "addressType": kind, "ports": ports or [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}
