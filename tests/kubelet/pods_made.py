"""Pods and observations for tests, written short."""

from __future__ import annotations

from typing import Any

from kubern.kubelet import pods
from kubern.kubelet.runtime import EXITED, RUNNING, Container, Observed, Sandbox, observed


def c(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "i", **fields}


def pod(*containers: dict[str, Any], init: tuple[dict[str, Any], ...] = (), meta: dict[str, Any] | None = None,
        status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    full = {"restartPolicy": "Always", "containers": list(containers) or [c("a")], **spec}
    if init:
        full["initContainers"] = list(init)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1, **(meta or {})},
            "spec": full, "status": status or {}}


def sandbox(ready: bool = True, attempt: int = 0, created: int = 1, ips: tuple[str, ...] = ("10.0.0.1",), **more: Any) -> Sandbox:
    return Sandbox(f"s{attempt}", "p", "n", "u", attempt, ready, created, ips, network_known=True, **more)


def run(name: str, n: int = 0, image: str = "i", **more: Any) -> Container:
    return Container(f"{name}{n}", name, "u", "s0", n, RUNNING, created_ns=10 + n, started_ns=int(1e9), image=image,
                     hash=pods.container_hash({"name": name, "image": image}), restart_count=n, **more)


def end(name: str, code: int = 0, n: int = 0, at_s: float = 100.0, reason: str = "", sandbox_id: str = "s0") -> Container:
    return Container(f"{name}{n}", name, "u", sandbox_id, n, EXITED, created_ns=10 + n, started_ns=int(1e9), finished_ns=int(at_s * 1e9),
                     exit_code=code, reason=reason or ("Completed" if code == 0 else "Error"), image="i", restart_count=n,
                     hash=pods.container_hash({"name": name, "image": "i"}))


def seen(*things: Sandbox | Container) -> Observed:
    return observed([x for x in things if isinstance(x, Sandbox)], [x for x in things if isinstance(x, Container)])
