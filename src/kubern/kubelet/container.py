"""A pod and its containers in the runtime's terms: PodSandboxConfig and ContainerConfig as dicts. Pure.

Raises CannotCreate(message) where a container cannot be made as asked (CreateContainerConfigError). Mounts and environment are worked
out elsewhere and handed in. Upstream: kuberuntime_sandbox.go, kuberuntime_container_linux.go, security_context.go, pkg/securitycontext.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from kubern.kubelet import identity, pods
from kubern.kubelet.env import expand
from kubern.kubelet.runtime import Image
from kubern.model import quantity
from kubern.model.object import Object

POD, CONTAINER, NODE, TARGET = 0, 1, 2, 3
PERIOD_US = 100_000
QUOTA_MIN_US = 1000
SHARES_MIN, SHARES_MAX = 2, 262_144
CRITICAL_PRIORITY = 2_000_000_000
GUARANTEED_OOM, BEST_EFFORT_OOM = -997, 1000

MASKED = ("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
          "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap")
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
PROPAGATION = {"None": 0, "HostToContainer": 1, "Bidirectional": 2}
PROTOCOLS = {"TCP": 0, "UDP": 1, "SCTP": 2}


class CannotCreate(Exception):
    """The container's definition cannot be carried out here."""


@dataclass(frozen=True, slots=True)
class Node:
    """What of the node goes into configurations."""

    name: str
    cgroup_root: str                    # "/kubern/CLUSTER/NODE"
    log_root: str
    cluster_domain: str = "cluster.local"
    cluster_dns: tuple[str, ...] = ()
    resolver: identity.Resolver = identity.NO_RESOLVER
    memory_bytes: int = 0
    seccomp_root: str = "/var/lib/kubelet/seccomp"
    pids_max: int = -1
    seccomp_default: bool = False
    cpu_quota: bool = True
    swap_bytes: int = 0                 # what the machine has of it
    limited_swap: bool = False          # burstable containers get a share of it, by the memory they ask for; the others none
    unified: bool = False               # cgroup v2


def log_directory(node: Node, pod: Object) -> str:
    m = pod["metadata"]
    return f"{node.log_root}/{m.get('namespace')}_{m['name']}_{m['uid']}"


def cgroup_parent(node: Node, pod: Object) -> str:
    """/ROOT/kubepods[/burstable|/besteffort]/podUID."""
    qos = pods.qos_class(pod)
    middle = "" if qos == "Guaranteed" else f"/{qos.lower()}"
    return f"{node.cgroup_root}/kubepods{middle}/pod{pod['metadata']['uid']}"


def sandbox_config(pod: Object, node: Node, attempt: int) -> dict[str, Any]:
    spec, meta = pod["spec"], pod["metadata"]
    host = pods.host_network(pod)
    dns = identity.resolver(pod, node.cluster_dns, node.cluster_domain, node.resolver)
    sc = spec.get("securityContext") or {}
    security: dict[str, Any] = {
        "namespace_options": namespaces(pod), "privileged": any((c.get("securityContext") or {}).get("privileged")
                                                                for _, c in pods.every_container(spec)),
        "supplemental_groups": groups(sc), "seccomp": _seccomp(sc.get("seccompProfile"), node)}
    for key, name in (("runAsUser", "run_as_user"), ("runAsGroup", "run_as_group")):
        if sc.get(key) is not None:
            security[name] = {"value": int(sc[key])}
    out: dict[str, Any] = {
        "metadata": {"name": meta["name"], "uid": meta["uid"], "namespace": meta.get("namespace") or "", "attempt": attempt},
        "log_directory": log_directory(node, pod),
        "dns_config": {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)},
        "labels": {**(meta.get("labels") or {}), **_pod_labels(pod)},
        "annotations": dict(meta.get("annotations") or {}),
        "linux": {"cgroup_parent": cgroup_parent(node, pod), "security_context": security,
                  "sysctls": {s["name"].replace("/", "."): s["value"] for s in sc.get("sysctls") or ()}},
    }
    if not host:                                           # with the host's UTS namespace runc refuses a hostname
        out["hostname"] = identity.node_hostname(pod, node.cluster_domain)
        out["port_mappings"] = [
            {"protocol": PROTOCOLS.get(p.get("protocol") or "TCP", 0), "container_port": p["containerPort"], "host_port": p["hostPort"],
             "host_ip": p.get("hostIP") or ""}
            for c in (*(spec.get("containers") or ()), *(c for c in spec.get("initContainers") or () if pods.is_sidecar(c)))
            for p in c.get("ports") or () if p.get("hostPort")]
    return out


def _pod_labels(pod: Object) -> dict[str, str]:
    m = pod["metadata"]
    return {"io.kubernetes.pod.name": m["name"], "io.kubernetes.pod.namespace": m.get("namespace") or "", "io.kubernetes.pod.uid": m["uid"]}


def namespaces(pod: Object, target: str = "") -> dict[str, Any]:
    """NamespaceOption; `target`: id of the container whose processes an ephemeral one sees."""
    spec = pod["spec"]
    pid = NODE if spec.get("hostPID") else POD if spec.get("shareProcessNamespace") else CONTAINER
    out: dict[str, Any] = {"network": NODE if spec.get("hostNetwork") else POD, "ipc": NODE if spec.get("hostIPC") else POD, "pid": pid}
    if target and pid == CONTAINER:
        out |= {"pid": TARGET, "target_id": target}
    return out


def groups(sc: Mapping[str, Any]) -> list[int]:
    out = [] if sc.get("fsGroup") is None else [int(sc["fsGroup"])]
    return out + [int(g) for g in sc.get("supplementalGroups") or () if int(g) not in out]


def _seccomp(profile: Mapping[str, Any] | None, node: Node) -> dict[str, Any]:
    kind = (profile or {}).get("type") or ("RuntimeDefault" if node.seccomp_default else "Unconfined")
    if kind == "RuntimeDefault":
        return {"profile_type": 0}
    if kind == "Localhost":
        return {"profile_type": 2, "localhost_ref": f"{node.seccomp_root}/{(profile or {}).get('localhostProfile')}"}
    return {"profile_type": 1}


def effective_security(pod: Object, c: Mapping[str, Any]) -> dict[str, Any]:
    """The container's security context over the pod's."""
    whole = pod["spec"].get("securityContext") or {}
    inherited = ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile", "seLinuxOptions", "appArmorProfile")
    out = {k: whole[k] for k in inherited if k in whole}
    out.update({k: v for k, v in (c.get("securityContext") or {}).items() if v is not None})
    return out


def check_non_root(pod: Object, c: Mapping[str, Any], image: Image | None) -> None:
    sc = effective_security(pod, c)
    if not sc.get("runAsNonRoot"):
        return
    who = f'(pod: "{pods.describe(pod)}", container: {c["name"]})'
    if sc.get("runAsUser") is not None:
        if int(sc["runAsUser"]) == 0:
            raise CannotCreate(f"container's runAsUser breaks non-root policy {who}")
        return
    if image is None:
        return
    if image.uid is None and image.username:
        raise CannotCreate(f"container has runAsNonRoot and image has non-numeric user ({image.username}), "
                           f"cannot verify user is non-root {who}")
    if not image.uid:
        raise CannotCreate(f"container has runAsNonRoot and image will run as root {who}")


def security_context(pod: Object, c: Mapping[str, Any], node: Node, image: Image | None, target: str = "") -> dict[str, Any]:
    sc = effective_security(pod, c)
    privileged = bool(sc.get("privileged"))
    out: dict[str, Any] = {
        "namespace_options": namespaces(pod, target), "privileged": privileged, "readonly_rootfs": bool(sc.get("readOnlyRootFilesystem")),
        "supplemental_groups": groups(pod["spec"].get("securityContext") or {}),
        "no_new_privs": sc.get("allowPrivilegeEscalation") is False,
        "seccomp": {"profile_type": 1} if privileged else _seccomp(sc.get("seccompProfile"), node),
    }
    if sc.get("runAsUser") is not None:
        out["run_as_user"] = {"value": int(sc["runAsUser"])}
    elif image is not None and image.uid is not None:
        out["run_as_user"] = {"value": image.uid}
    elif image is not None and image.username:
        out["run_as_username"] = image.username
    if sc.get("runAsGroup") is not None:
        out["run_as_group"] = {"value": int(sc["runAsGroup"])}
        if "run_as_user" not in out and "run_as_username" not in out:
            out["run_as_user"] = {"value": 0}
    if sc.get("seLinuxOptions"):
        out["selinux_options"] = {k: sc["seLinuxOptions"].get(k) or "" for k in ("user", "role", "type", "level")}
    caps = sc.get("capabilities") or {}
    if caps:
        out["capabilities"] = {"add_capabilities": [_capability(x) for x in caps.get("add") or ()],
                               "drop_capabilities": [_capability(x) for x in caps.get("drop") or ()]}
    if not privileged and sc.get("procMount") != "Unmasked":
        out |= {"masked_paths": list(MASKED), "readonly_paths": list(READ_ONLY)}
    return out


def _capability(name: str) -> str:
    """CAP_NET_ADMIN and NET_ADMIN alike."""
    return name.upper().removeprefix("CAP_")


def shares(milli: int) -> int:
    return max(SHARES_MIN, min(SHARES_MAX, milli * 1024 // 1000)) if milli else SHARES_MIN


def quota(milli: int) -> int:
    return max(QUOTA_MIN_US, milli * PERIOD_US // 1000) if milli else 0


def oom_score(pod: Object, c: Mapping[str, Any], memory_bytes: int) -> int:
    """-997 … 1000: the larger its share of the node's memory it asked for, the later a burstable container is killed."""
    if (pod["spec"].get("priority") or 0) >= CRITICAL_PRIORITY:
        return GUARANTEED_OOM
    qos = pods.qos_class(pod)
    if qos == "Guaranteed":
        return GUARANTEED_OOM
    if qos == "BestEffort":
        return BEST_EFFORT_OOM
    asked = quantity.value(str(((c.get("resources") or {}).get("requests") or {}).get("memory") or "0"))
    score = 1000 - (1000 * asked) // memory_bytes if memory_bytes else 999
    return min(max(score, 1000 + GUARANTEED_OOM), BEST_EFFORT_OOM - 1)


def resources(pod: Object, c: Mapping[str, Any], node: Node) -> dict[str, Any]:
    """LinuxContainerResources. Pod-level limits cap containers that have none of their own."""
    have = c.get("resources") or {}
    asked, capped = have.get("requests") or {}, have.get("limits") or {}
    whole = (pod["spec"].get("resources") or {}).get("limits") or {}
    limit = quantity.milli(str(capped.get("cpu") or whole.get("cpu") or "0"))
    request = quantity.milli(str(asked["cpu"])) if "cpu" in asked else quantity.milli(str(capped.get("cpu") or "0"))
    out: dict[str, Any] = {"cpu_period": PERIOD_US, "cpu_quota": quota(limit), "cpu_shares": shares(request),
                           "oom_score_adj": oom_score(pod, c, node.memory_bytes)}
    memory = quantity.value(str(capped.get("memory") or whole.get("memory") or "0"))
    if memory:
        out["memory_limit_in_bytes"] = memory
    if node.swap_bytes and node.unified:
        out["unified"] = {"memory.swap.max": str(swap(pod, c, node))}
    elif node.swap_bytes and memory:
        out["memory_swap_limit_in_bytes"] = memory
    huge = [{"page_size": page_size(k), "limit": quantity.value(str(v))} for k, v in capped.items() if k.startswith("hugepages-")]
    if huge:
        out["hugepage_limits"] = huge
    if not limit or not node.cpu_quota:
        del out["cpu_period"], out["cpu_quota"]
    return out


def swap(pod: Object, c: Mapping[str, Any], node: Node) -> int:
    """Bytes of swap a container may use. KEP-2400."""
    have = c.get("resources") or {}
    asked, limit = (quantity.value(str((have.get(k) or {}).get("memory") or "0")) for k in ("requests", "limits"))
    if not node.limited_swap or pods.qos_class(pod) != "Burstable" or asked == limit or (pod["spec"].get("priority") or 0) >= CRITICAL_PRIORITY:
        return 0
    return int(asked / node.memory_bytes * node.swap_bytes) if asked <= node.memory_bytes else 0


def page_size(resource: str) -> str:
    """hugepages-2Mi -> 2MB, as the kernel's controller names its files."""
    n = quantity.value(resource.removeprefix("hugepages-"))
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if n >= size:
            return f"{n // size}{unit}"
    return f"{n}B"


def notes(pod: Object, c: Mapping[str, Any], restarts: int) -> dict[str, str]:
    """What a kubelet that restarts needs to know of a container it did not start."""
    spec, meta = pod["spec"], pod["metadata"]
    out = {"io.kubernetes.container.hash": pods.container_hash(c), "io.kubernetes.container.restartCount": str(restarts),
           "io.kubernetes.container.terminationMessagePath": c.get("terminationMessagePath") or "",
           "io.kubernetes.container.terminationMessagePolicy": c.get("terminationMessagePolicy") or ""}
    if meta.get("deletionGracePeriodSeconds") is not None:
        out["io.kubernetes.pod.deletionGracePeriod"] = str(meta["deletionGracePeriodSeconds"])
    if spec.get("terminationGracePeriodSeconds") is not None:
        out["io.kubernetes.pod.terminationGracePeriod"] = str(spec["terminationGracePeriodSeconds"])
    hook = (c.get("lifecycle") or {}).get("preStop")
    if hook:
        out["io.kubernetes.container.preStopHandler"] = orjson.dumps(hook).decode()
    if c.get("ports"):
        out["io.kubernetes.container.ports"] = orjson.dumps(c["ports"]).decode()
    return out


def container_config(pod: Object, c: Mapping[str, Any], node: Node, image: Image, restarts: int, env: Mapping[str, str],
                     mounts: Sequence[Mapping[str, Any]], devices: Sequence[Mapping[str, Any]] = (), target: str = "") -> dict[str, Any]:
    check_non_root(pod, c, image)
    for k, v in env.items():
        if "\0" in v or "\0" in k:
            raise CannotCreate(f"environment variable {k} holds a NUL byte")
    sc = security_context(pod, c, node, image, target)
    out: dict[str, Any] = {
        "metadata": {"name": c["name"], "attempt": restarts},
        "image": {"image": image.id, "user_specified_image": c.get("image") or ""},
        "command": [expand(x, env) for x in c.get("command") or ()], "args": [expand(x, env) for x in c.get("args") or ()],
        "working_dir": c.get("workingDir") or "",
        "labels": {**_pod_labels(pod), "io.kubernetes.container.name": c["name"]}, "annotations": notes(pod, c, restarts),
        "envs": [{"key": k, "value": v.encode(errors="surrogateescape")} for k, v in env.items()],
        "mounts": [dict(m) for m in mounts], "devices": [dict(d) for d in devices], "log_path": f"{c['name']}/{restarts}.log",
        "stdin": bool(c.get("stdin")), "stdin_once": bool(c.get("stdinOnce")), "tty": bool(c.get("tty")),
        "linux": {"resources": resources(pod, c, node), "security_context": sc},
    }
    return out
