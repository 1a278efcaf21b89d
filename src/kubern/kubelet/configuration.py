"""KubeletConfiguration (kubelet.config.k8s.io/v1beta1): the file a node's agent reads, what it means here, and what /configz shows.

In: YAML files, later ones win field by field. Out: a Configuration, and the whole document with upstream's defaults filled in. A field nobody knows,
or a value that cannot be carried out here, is an error that names it. Upstream: staging kubelet config/v1beta1 types.go, apis/config/v1beta1/defaults.go.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kubern.model import quantity

API_VERSION, KIND = "kubelet.config.k8s.io/v1beta1", "KubeletConfiguration"

DEFAULTS: dict[str, Any] = {
    "enableServer": True, "syncFrequency": "1m0s", "fileCheckFrequency": "20s", "httpCheckFrequency": "20s", "address": "0.0.0.0", "port": 10250,
    "rotateCertificates": True,
    "authentication": {"x509": {}, "webhook": {"enabled": True, "cacheTTL": "2m0s"}, "anonymous": {"enabled": False}},
    "authorization": {"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"}},
    "registryPullQPS": 5, "registryBurst": 10, "imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages", "eventRecordQPS": 50,
    "eventBurst": 100, "enableDebuggingHandlers": True, "healthzPort": 10248, "healthzBindAddress": "127.0.0.1", "oomScoreAdj": -999,
    "clusterDomain": "", "clusterDNS": [], "streamingConnectionIdleTimeout": "4h0m0s", "nodeStatusUpdateFrequency": "10s",
    "nodeStatusReportFrequency": "5m0s", "nodeLeaseDurationSeconds": 40, "imageMinimumGCAge": "2m0s", "imageMaximumGCAge": "0s",
    "imageGCHighThresholdPercent": 85, "imageGCLowThresholdPercent": 80, "volumeStatsAggPeriod": "1m0s", "cgroupRoot": "", "cgroupsPerQOS": True,
    "cgroupDriver": "cgroupfs", "cpuManagerPolicy": "none", "cpuManagerReconcilePeriod": "10s", "memoryManagerPolicy": "None",
    "topologyManagerPolicy": "none", "topologyManagerScope": "container", "runtimeRequestTimeout": "2m0s", "hairpinMode": "promiscuous-bridge",
    "maxPods": 110, "podPidsLimit": -1, "resolvConf": "/etc/resolv.conf", "cpuCFSQuota": True, "cpuCFSQuotaPeriod": "100ms", "nodeStatusMaxImages": 50,
    "maxOpenFiles": 1000000, "contentType": "application/vnd.kubernetes.protobuf", "kubeAPIQPS": 50, "kubeAPIBurst": 100, "serializeImagePulls": True,
    "evictionHard": {"imagefs.available": "15%", "imagefs.inodesFree": "5%", "memory.available": "100Mi", "nodefs.available": "10%",
                     "nodefs.inodesFree": "5%"},
    "evictionPressureTransitionPeriod": "5m0s", "mergeDefaultEvictionSettings": False, "enableControllerAttachDetach": True,
    "makeIPTablesUtilChains": True, "iptablesMasqueradeBit": 14, "iptablesDropBit": 15, "failSwapOn": True, "memorySwap": {},
    "containerLogMaxSize": "10Mi", "containerLogMaxFiles": 5, "containerLogMaxWorkers": 1, "containerLogMonitorInterval": "10s",
    "configMapAndSecretChangeDetectionStrategy": "Watch", "enforceNodeAllocatable": ["pods"], "volumePluginDir":
    "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/",
    "logging": {"format": "text", "flushFrequency": "5s", "verbosity": 0, "options": {"text": {"infoBufferSize": "0"}, "json": {"infoBufferSize": "0"}}},
    "enableSystemLogHandler": True, "enableSystemLogQuery": False, "shutdownGracePeriod": "0s", "shutdownGracePeriodCriticalPods": "0s",
    "crashLoopBackOff": {"maxContainerRestartPeriod": "5m0s"}, "enableProfilingHandler": True, "enableDebugFlagsHandler": True, "seccompDefault": False,
    "memoryThrottlingFactor": 0.9, "memoryReservationPolicy": "None", "registerNode": True, "localStorageCapacityIsolation": True,
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock", "failCgroupV1": False, "podLogsDir": "/var/log/pods",
}
NO_DEFAULT = (
    "tlsMinVersion", "serverTLSBootstrap",
    "staticPodPath", "staticPodURL", "staticPodURLHeader", "readOnlyPort", "tlsCertFile", "tlsPrivateKeyFile", "tlsCipherSuites", "tlsCurvePreferences",
    "preloadedImagesVerificationAllowlist", "enableContentionProfiling", "kubeletCgroups", "systemCgroups", "singleProcessOOMKill",
    "cpuManagerPolicyOptions", "topologyManagerPolicyOptions", "qosReserved", "podCIDR", "runOnce", "maxParallelImagePulls", "evictionSoft",
    "evictionSoftGracePeriod", "evictionMaxPodGracePeriod", "evictionMinimumReclaim", "podsPerCore", "protectKernelDefaults", "featureGates",
    "systemReserved", "kubeReserved", "reservedSystemCPUs", "showHiddenMetricsForVersion", "systemReservedCgroup", "kubeReservedCgroup",
    "allowedUnsafeSysctls", "providerID", "kernelMemcgNotification", "shutdownGracePeriodByPodPriority", "reservedMemory", "registerWithTaints",
    "tracing", "imageServiceEndpoint", "userNamespaces", "apiVersion", "kind")
# what is refused: field -> values that work
ONLY: dict[str, tuple[Any, ...]] = {
    "memoryManagerPolicy": ("None", "Static"), "topologyManagerPolicy": ("none", "best-effort", "restricted", "single-numa-node"),
    "topologyManagerScope": ("container", "pod"), "cpuManagerPolicy": ("none", "static"), "cgroupDriver": ("cgroupfs",),
    "memorySwap.swapBehavior": (None, "", "NoSwap", "LimitedSwap"), "readOnlyPort": (None, 0), "runOnce": (None, False), "authorization.mode": ("Webhook",)}
SIGNALS = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree", "containerfs.available",
           "containerfs.inodesFree", "pid.available", "allocatableMemory.available")
CRITICAL_PRIORITY = 2_000_000_000


class BadConfiguration(ValueError):
    """The file cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A shortage: less than `amount` (or that share of the whole) of what a signal measures, for longer than `grace_s` (0 = hard)."""

    signal: str
    amount: int = 0
    share: float = 0.0
    grace_s: float = 0.0
    reclaim: int = 0

    def limit(self, capacity: int) -> int:
        return int(capacity * self.share) if self.share else self.amount


def parse_threshold(signal: str, text: str, grace_s: float = 0.0, reclaim: str = "0") -> Threshold:
    if signal not in SIGNALS:
        raise BadConfiguration(f"unsupported eviction signal {signal}")
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if not 0 <= share <= 1:
                raise BadConfiguration(f"eviction percentage threshold {signal} must be >= 0%: {text}")
            return Threshold(signal, share=share, grace_s=grace_s, reclaim=0 if reclaim.endswith("%") else quantity.value(reclaim))
        return Threshold(signal, quantity.value(text), 0.0, grace_s, 0 if reclaim.endswith("%") else quantity.value(reclaim))
    except quantity.QuantityError as e:
        raise BadConfiguration(f"{signal}: {e}") from None
    except ValueError as e:
        raise BadConfiguration(f"{signal}: {text}: {e}") from None


def hard_thresholds(given: Mapping[str, Any], minimum: Mapping[str, Any], enforced: Iterable[str]) -> list[Threshold]:
    """Those of evictionHard; where all pods together have a limit, that of memory holds below it too."""
    out = [parse_threshold(k, str(v), 0.0, str(minimum.get(k, "0"))) for k, v in given.items()]
    if "pods" in enforced:
        out += [replace(t, signal="allocatableMemory.available") for t in out if t.signal == "memory.available"]
    return out


DEFAULT_THRESHOLDS = tuple(hard_thresholds(DEFAULTS["evictionHard"], {}, ("pods",)))


@dataclass(frozen=True, slots=True)
class CpuOptions:
    """cpuManagerPolicyOptions, by their names with _ for -."""

    full_pcpus_only: bool = False
    distribute_cpus_across_numa: bool = False
    align_by_socket: bool = False
    distribute_cpus_across_cores: bool = False
    strict_cpu_reservation: bool = False
    prefer_align_cpus_by_uncorecache: bool = False


@dataclass(frozen=True, slots=True)
class Alignment:
    """How near to each other a pod's cpus, memory and devices have to be."""

    policy: str = "none"
    scope: str = "container"
    closest: bool = False
    nodes_max: int = 8


@dataclass(frozen=True, slots=True)
class Configuration:
    """What of it this kubelet acts on."""

    pods_max: int = 110
    pods_per_core: int = 0
    pids_max: int = -1
    cpu_policy: str = "none"
    cpu_options: CpuOptions = CpuOptions()
    memory_policy: str = "None"
    memory_reserved: Mapping[int, Mapping[str, int]] = field(default_factory=dict)        # NUMA node -> resource -> bytes
    alignment: Alignment = Alignment()
    reserved_cpus: str = ""
    system_reserved: Mapping[str, str] = field(default_factory=dict)
    kube_reserved: Mapping[str, str] = field(default_factory=dict)
    enforced: tuple[str, ...] = ("pods",)
    system_reserved_cgroup: str = ""
    kube_reserved_cgroup: str = ""
    thresholds: tuple[Threshold, ...] = DEFAULT_THRESHOLDS
    transition_s: float = 300.0
    eviction_grace_max_s: int = 0
    image_high: float = 0.85
    image_low: float = 0.80
    image_age_min_s: float = 120.0
    image_age_max_s: float = 0.0
    log_bytes: int = 10 << 20
    log_files: int = 5
    log_check_s: float = 10.0
    fail_swap_on: bool = True
    limited_swap: bool = False
    unsafe_sysctls: tuple[str, ...] = ()
    taints: tuple[Mapping[str, str], ...] = ()
    crash_backoff_max_s: float = 300.0
    seccomp_default: bool = False
    cpu_quota: bool = True
    pulls_max: int = 5
    images_reported: int = 50
    status_s: float = 10.0
    report_s: float = 300.0
    shutdown: tuple[tuple[int, int], ...] = ()          # (priority from which on, seconds its pods get), lowest first; () = none
    anonymous: bool = False

    @property
    def reserved(self) -> dict[str, str]:
        """System and kube reserved together."""
        out = dict(self.system_reserved)
        for k, v in self.kube_reserved.items():
            out[k] = quantity.add(out[k], v) if k in out else v
        return out

    @property
    def shutdown_s(self) -> int:
        return sum(s for _, s in self.shutdown)


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds(text: Any, name: str) -> float:
    """A Go duration: 1m30s."""
    if text in ("0", 0):
        return 0.0
    parts = _DURATION.findall(str(text))
    if not parts or "".join(n + u for n, u in parts) != str(text):
        raise BadConfiguration(f"{name}: {text!r} is no duration")
    return math.fsum(float(n) * _UNITS[u] for n, u in parts)


def read(paths: Iterable[str]) -> tuple[Configuration, dict[str, Any]]:
    """(what it means, the whole document). Files that are not there are left out. Raises BadConfiguration."""
    import yaml

    given: dict[str, Any] = {}
    for path in paths:
        if not os.path.exists(path):
            continue
        try:
            with open(path) as f:
                doc = yaml.safe_load(f) or {}
        except (OSError, yaml.YAMLError) as e:
            raise BadConfiguration(f"{path}: {e}") from None
        if not isinstance(doc, dict) or doc.get("kind", KIND) != KIND or doc.get("apiVersion", API_VERSION) != API_VERSION:
            raise BadConfiguration(f"{path}: not a {KIND} of {API_VERSION}")
        given.update(doc)
    return interpret(given)


def interpret(given: Mapping[str, Any]) -> tuple[Configuration, dict[str, Any]]:
    """Pure. Raises BadConfiguration."""
    unknown = sorted(set(given) - DEFAULTS.keys() - set(NO_DEFAULT))
    if unknown:
        raise BadConfiguration(f'unknown field "{unknown[0]}"')
    doc: dict[str, Any] = {"kind": KIND, "apiVersion": API_VERSION}
    for k, v in DEFAULTS.items():
        have = given.get(k)
        doc[k] = v if have is None else {**v, **have} if isinstance(v, dict) and isinstance(have, dict) and k not in ("evictionHard",) else have
    doc |= {k: given[k] for k in given if k not in doc}
    if doc.get("mergeDefaultEvictionSettings"):
        doc["evictionHard"] = {**DEFAULTS["evictionHard"], **doc["evictionHard"]}
    for name, allowed in ONLY.items():
        value: Any = doc
        for part in name.split("."):
            value = (value or {}).get(part)
        if value not in allowed:
            raise BadConfiguration(f"{name}: {value!r} is not supported here; {', '.join(repr(a) for a in allowed if a is not None)}")
    try:
        return _configuration(doc), doc
    except BadConfiguration:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise BadConfiguration(str(e)) from None


def _configuration(d: Mapping[str, Any]) -> Configuration:
    def s(name: str) -> float:
        return seconds(d[name], name)

    minimum, graces = d.get("evictionMinimumReclaim") or {}, d.get("evictionSoftGracePeriod") or {}
    thresholds = hard_thresholds(d["evictionHard"], minimum, d["enforceNodeAllocatable"])
    for k, v in (d.get("evictionSoft") or {}).items():
        if k not in graces:
            raise BadConfiguration(f"grace period must be specified for the soft eviction threshold {k}")
        thresholds.append(parse_threshold(k, str(v), seconds(graces[k], f"evictionSoftGracePeriod.{k}"), str(minimum.get(k, "0"))))
    reserved_cpus = d.get("reservedSystemCPUs") or ""
    cores = {"cpu": str(len(cpu_list(reserved_cpus)))} if reserved_cpus else {}
    system, kube = dict(d.get("systemReserved") or {}) | cores, {k: v for k, v in (d.get("kubeReserved") or {}).items() if not (cores and k == "cpu")}
    enforced = tuple(x for x in d["enforceNodeAllocatable"] if x != "none")
    for name in enforced:
        if name not in ("pods", "system-reserved", "kube-reserved", "system-reserved-compressible", "kube-reserved-compressible"):
            raise BadConfiguration(f"enforceNodeAllocatable: {name!r} is not known")
        what = name.partition("-")[0]
        if name != "pods" and not d.get(f"{what}ReservedCgroup"):
            raise BadConfiguration(f"{what}ReservedCgroup (--{what}-reserved-cgroup) must be specified when {name!r} contained in enforceNodeAllocatable")
    if d["cpuManagerPolicy"] == "static" and not quantity.milli(system.get("cpu", "0")) + quantity.milli(kube.get("cpu", "0")):
        raise BadConfiguration("the static cpuManagerPolicy requires systemReserved.cpu + kubeReserved.cpu to be greater than zero")
    return Configuration(
        int(d["maxPods"]), int(d.get("podsPerCore") or 0), int(d["podPidsLimit"]), d["cpuManagerPolicy"], _cpu_options(d), d["memoryManagerPolicy"],
        _memory_reserved(d), _alignment(d), reserved_cpus, system, kube, enforced,
        d.get("systemReservedCgroup") or "", d.get("kubeReservedCgroup") or "", tuple(thresholds), s("evictionPressureTransitionPeriod"),
        int(d.get("evictionMaxPodGracePeriod") or 0), d["imageGCHighThresholdPercent"] / 100, d["imageGCLowThresholdPercent"] / 100,
        s("imageMinimumGCAge"), s("imageMaximumGCAge"), quantity.value(str(d["containerLogMaxSize"])), int(d["containerLogMaxFiles"]),
        s("containerLogMonitorInterval"), bool(d["failSwapOn"]),
        (d.get("memorySwap") or {}).get("swapBehavior") == "LimitedSwap", tuple(d.get("allowedUnsafeSysctls") or ()), tuple(d.get("registerWithTaints") or ()),
        seconds(d["crashLoopBackOff"]["maxContainerRestartPeriod"], "crashLoopBackOff.maxContainerRestartPeriod"), bool(d["seccompDefault"]),
        bool(d["cpuCFSQuota"]), int(d.get("maxParallelImagePulls") or 5), int(d["nodeStatusMaxImages"]), s("nodeStatusUpdateFrequency"),
        s("nodeStatusReportFrequency"), _shutdown(d), bool((d["authentication"].get("anonymous") or {}).get("enabled")))


CPU_OPTIONS_ALPHA, CPU_OPTIONS_BETA = ("align-by-socket", "distribute-cpus-across-cores"), ("distribute-cpus-across-numa",)
NOT_TOGETHER = (("full-pcpus-only", "distribute-cpus-across-cores"), ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
                ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"), ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"))


def _truth(text: Any, option: str) -> bool:
    if str(text) in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if str(text) in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise BadConfiguration(f'bad value for option "{option}": {text!r} is neither true nor false')


def _cpu_options(d: Mapping[str, Any]) -> CpuOptions:
    given, gates = d.get("cpuManagerPolicyOptions") or {}, d.get("featureGates") or {}
    if given and d["cpuManagerPolicy"] == "none":
        raise BadConfiguration("cpuManagerPolicyOptions: the none policy has no options")
    on = {}
    for name, value in given.items():
        if name.replace("-", "_") not in CpuOptions.__slots__:
            raise BadConfiguration(f'unknown CPU Manager Policy option: "{name}"')
        if name in CPU_OPTIONS_ALPHA and not gates.get("CPUManagerPolicyAlphaOptions"):
            raise BadConfiguration(f'CPU Manager Policy Alpha-level Options not enabled, but option "{name}" provided')
        if name in CPU_OPTIONS_BETA and not gates.get("CPUManagerPolicyBetaOptions", True):
            raise BadConfiguration(f'CPU Manager Policy Beta-level Options not enabled, but option "{name}" provided')
        on[name] = _truth(value, name)
    for a, b in NOT_TOGETHER:
        if on.get(a) and on.get(b):
            raise BadConfiguration(f"static policy options {a} and {b} can not be used at the same time")
    return CpuOptions(**{k.replace("-", "_"): v for k, v in on.items()})


def _alignment(d: Mapping[str, Any]) -> Alignment:
    closest, nodes_max = False, Alignment().nodes_max
    for name, value in (d.get("topologyManagerPolicyOptions") or {}).items():
        if name == "prefer-closest-numa-nodes":
            closest = _truth(value, name)
        elif name == "max-allowable-numa-nodes":
            if not str(value).isdigit() or int(value) < nodes_max:
                raise BadConfiguration(f'the minimum value of "{name}" should not be less than {nodes_max}')
            nodes_max = int(value)
        else:
            raise BadConfiguration(f'unknown Topology Manager Policy option: "{name}"')
    return Alignment(d["topologyManagerPolicy"], d["topologyManagerScope"], closest, nodes_max)


def _memory_reserved(d: Mapping[str, Any]) -> dict[int, dict[str, int]]:
    out: dict[int, dict[str, int]] = {}
    for row in d.get("reservedMemory") or ():
        node = out.setdefault(int(row["numaNode"]), {})
        for r, v in (row.get("limits") or {}).items():
            if r != "memory" and not r.startswith("hugepages-"):
                raise BadConfiguration(f'the resource type "{r}" is not supported by reservedMemory')
            if r in node:
                raise BadConfiguration(f'the reserved memory has a duplicate value for NUMA node {row["numaNode"]} and resource "{r}"')
            node[r] = quantity.value(str(v))
    if d["memoryManagerPolicy"] == "Static" and not any(n.get("memory") for n in out.values()):
        raise BadConfiguration("[memorymanager] you should specify the system reserved memory")
    return out


def _shutdown(d: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    rows = d.get("shutdownGracePeriodByPodPriority")
    if rows:
        return tuple(sorted((int(r["priority"]), int(r["shutdownGracePeriodSeconds"])) for r in rows))
    whole = int(seconds(d["shutdownGracePeriod"], "shutdownGracePeriod"))
    critical = int(seconds(d["shutdownGracePeriodCriticalPods"], "shutdownGracePeriodCriticalPods"))
    if critical > whole:
        raise BadConfiguration("shutdownGracePeriodCriticalPods must be <= shutdownGracePeriod")
    return ((0, whole - critical), (CRITICAL_PRIORITY, critical)) if whole else ()


def cpu_list(text: str) -> list[int]:
    """0-2,5 -> [0, 1, 2, 5]. Raises BadConfiguration."""
    out: set[int] = set()
    try:
        for part in text.split(",") if text else ():
            low, _, high = part.partition("-")
            out |= set(range(int(low), int(high or low) + 1))
    except ValueError:
        raise BadConfiguration(f"{text!r} is no list of cpus") from None
    return sorted(out)


def cpu_text(cpus: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> 0-2,5."""
    parts: list[list[int]] = []
    for c in sorted(cpus):
        if parts and parts[-1][1] == c - 1:
            parts[-1][1] = c
        else:
            parts.append([c, c])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in parts)
