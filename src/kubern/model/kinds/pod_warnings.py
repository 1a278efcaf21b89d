"""Warnings about pods and templates: what is accepted and is most likely not meant.

`pod_warnings(spec, meta, path)` with path "" for a Pod, "spec.template" for a template. Out: texts for Warning headers, in upstream's
order. Upstream: pkg/api/pod/warnings.go, pkg/api/node/util.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubern.model import names
from kubern.model.addresses import ip_warnings
from kubern.model.invalid import quote
from kubern.model.kinds.placement import PREFERRED, REQUIRED
from kubern.model.kinds.pod_security import APPARMOR_CONTAINER, SECCOMP_CONTAINER, SECCOMP_POD, apparmor_field, containers_with_path
from kubern.model.object import Object
from kubern.model.quantity import milli

Texts = Iterator[str]

DEPRECATED_NODE_LABELS = {
    "beta.kubernetes.io/arch": 'deprecated since v1.14; use "kubernetes.io/arch" instead',
    "beta.kubernetes.io/os": 'deprecated since v1.14; use "kubernetes.io/os" instead',
    "failure-domain.beta.kubernetes.io/region": 'deprecated since v1.17; use "topology.kubernetes.io/region" instead',
    "failure-domain.beta.kubernetes.io/zone": 'deprecated since v1.17; use "topology.kubernetes.io/zone" instead',
    "beta.kubernetes.io/instance-type": 'deprecated since v1.17; use "node.kubernetes.io/instance-type" instead',
    "app.kubernetes.io/created-by": "deprecated since v1.9",
    "scheduler.alpha.kubernetes.io/preferAvoidPods": "deprecated since v1.22; use Taints and Tolerations instead",
    "node-role.kubernetes.io/master": 'use "node-role.kubernetes.io/control-plane" instead',
}
_DEPRECATED_ANNOTATIONS = {
    "scheduler.alpha.kubernetes.io/critical-pod": 'non-functional in v1.16+; use the "priorityClassName" field instead',
    "security.alpha.kubernetes.io/sysctls": 'non-functional in v1.11+; use the "sysctls" field instead',
    "security.alpha.kubernetes.io/unsafe-sysctls": 'non-functional in v1.11+; use the "sysctls" field instead',
}
_DEPRECATED_VOLUMES = (  # (field, its name in the text, text), in the order upstream looks; None stands for claim templates
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("ephemeral", "", ""),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
)
_DEPRECATED_FIELDS = frozenset(field for field, _, _ in _DEPRECATED_VOLUMES)
_SECCOMP_GONE = 'non-functional in v1.27+; use the "seccompProfile" field instead'
_APPARMOR_FIELD = 'deprecated since v1.30; use the "appArmorProfile" field instead'
NO_SELECTOR = "a null labelSelector results in matching no pod"


def template_warnings(template: Object | None, path: str) -> list[str]:
    """Of a pod template at `path`."""
    return pod_warnings((template or {}).get("spec") or {}, (template or {}).get("metadata") or {}, path) if template else []


def pod_warnings(spec: Object, meta: Object, path: str = "") -> list[str]:
    at = f"{path}." if path else ""
    return list(_all(spec, meta.get("annotations") or {}, f"{at}spec", f"{at}metadata.annotations", bool(path)))


def _all(spec: Object, annotations: dict[str, str], s: str, a: str, is_template: bool) -> Texts:
    yield from _placement(spec, s)
    for key, text in _DEPRECATED_ANNOTATIONS.items():
        if key in annotations:
            yield f"{a}[{key}]: {text}"
    if volumes := spec.get("volumes"):
        yield from _volumes(volumes, f"{s}.volumes")
    yield from _repeated(spec.get("hostAliases") or [], "ip", f"{s}.hostAliases")
    secrets = spec.get("imagePullSecrets") or []
    yield from _repeated(secrets, "name", f"{s}.imagePullSecrets")
    for i, secret in enumerate(secrets):
        if not secret.get("name"):
            yield f'{s}.imagePullSecrets[{i}].name: invalid empty name ""'
    yield from _fractions(spec.get("overhead"), f"{s}.overhead")
    if annotations and SECCOMP_POD in annotations and (spec.get("securityContext") or {}).get("seccompProfile") is None:
        yield f"{a}[{SECCOMP_POD}]: {_SECCOMP_GONE}"
    yield from _containers(spec, annotations, s, a, is_template)
    yield from _ports(spec, s)
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        yield f"{s}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
    if spec.get("affinity"):
        yield from _affinity(spec["affinity"], f"{s}.affinity")
    for i, server in enumerate((spec.get("dnsConfig") or {}).get("nameservers") or ()):
        yield from ip_warnings(f"{s}.dnsConfig.nameservers[{i}]", server)
    for i, alias in enumerate(spec.get("hostAliases") or ()):
        yield from ip_warnings(f"{s}.hostAliases[{i}].ip", alias.get("ip", ""))


def _placement(spec: Object, s: str) -> Texts:
    for key in spec.get("nodeSelector") or ():
        if key in DEPRECATED_NODE_LABELS:
            yield f"{s}.nodeSelector[{key}]: {DEPRECATED_NODE_LABELS[key]}"
    if node := (spec.get("affinity") or {}).get("nodeAffinity"):
        for i, term in enumerate((node.get(REQUIRED) or {}).get("nodeSelectorTerms") or ()):
            yield from node_term_warnings(term, f"{s}.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[{i}]", False)
        for i, term in enumerate(node.get(PREFERRED) or ()):
            yield from node_term_warnings(term.get("preference") or {}, f"{s}.affinity.nodeAffinity.{PREFERRED}[{i}].preference", True)
    for i, c in enumerate(spec.get("topologySpreadConstraints") or ()):
        key, here = c.get("topologyKey", ""), f"{s}.topologySpreadConstraints[{i}]"
        if key in DEPRECATED_NODE_LABELS:
            yield f"{here}.topologyKey: {key} is {DEPRECATED_NODE_LABELS[key]}"
        if c.get("labelSelector") is None:
            yield f"{here}.labelSelector: {NO_SELECTOR}"


def node_term_warnings(term: Object, path: str, values_too: bool) -> Texts:
    for i, e in enumerate(term.get("matchExpressions") or ()):
        key = e.get("key", "")
        if key in DEPRECATED_NODE_LABELS:
            yield f"{path}.matchExpressions[{i}].key: {key} is {DEPRECATED_NODE_LABELS[key]}"
        if values_too:
            for j, value in enumerate(e.get("values") or ()):
                for text in names.is_label_value(value):
                    yield f"{path}.matchExpressions[{i}].values[{j}]: {value} is invalid, {text}"


def _repeated(items: list[Object], field: str, path: str) -> Texts:
    seen: set[str] = set()
    for i, item in enumerate(items):
        value = item.get(field, "")
        if value in seen:
            yield f"{path}[{i}].{field}: duplicate {field} {quote(value)}"
        seen.add(value)


def _fractions(amounts: dict[str, Any] | None, path: str, names_: tuple[str, ...] = ("memory", "ephemeral-storage")) -> Texts:
    for name in names_:
        text = (amounts or {}).get(name)
        if text is not None and not str(text).isdigit() and milli(str(text)) % 1000:
            yield f"{path}[{name}]: fractional byte value {quote(str(text))} is invalid, must be an integer"


def claim_spec_warnings(spec: Object, path: str) -> Texts:
    for side in ("requests", "limits"):
        yield from _fractions((spec.get("resources") or {}).get(side), f"{path}.resources.{side}", ("storage",))


def _containers(spec: Object, annotations: dict[str, str], s: str, a: str, is_template: bool) -> Texts:
    pod_profile = (spec.get("securityContext") or {}).get("appArmorProfile")
    for c, here in containers_with_path(spec, s):
        security, name = c.get("securityContext") or {}, c.get("name", "")
        if annotations:
            if security.get("seccompProfile") is None and SECCOMP_CONTAINER + name in annotations:
                yield f"{a}[{SECCOMP_CONTAINER}{name}]: {_SECCOMP_GONE}"
            annotation = annotations.get(APPARMOR_CONTAINER + name)
            if is_template and annotation is not None and security.get("appArmorProfile") is None and (
                    pod_profile is None or pod_profile != apparmor_field(annotation)):
                yield f"{a}[{APPARMOR_CONTAINER}{name}]: {_APPARMOR_FIELD}"
        if resources := c.get("resources"):
            for resource in ("memory", "ephemeral-storage"):
                for side in ("limits", "requests"):
                    yield from _fractions(resources.get(side), f"{here}.resources.{side}", (resource,))
        if len(c.get("env") or ()) > 1:
            yield from _hidden_env(c["env"], f"{here}.env")


def apparmor_warnings(spec: Object, meta: Object) -> list[str]:
    """Of a Pod, whose annotations were copied into fields before this is asked (kinds/pod_prepare.py)."""
    annotations, out = meta.get("annotations") or {}, []
    pod_profile = (spec.get("securityContext") or {}).get("appArmorProfile")
    for c, _ in containers_with_path(spec, "") if annotations else ():
        key = APPARMOR_CONTAINER + c.get("name", "")
        if key in annotations:
            own, meant = (c.get("securityContext") or {}).get("appArmorProfile"), apparmor_field(annotations[key])
            if (own is None and meant is None) or (own is not None and own == meant and own != pod_profile):
                out.append(f"metadata.annotations[{key}]: {_APPARMOR_FIELD}")
    return out


def _hidden_env(env: list[Object], path: str) -> Texts:
    seen: set[str] = set()
    for i, e in enumerate(env):
        name, value = e.get("name", ""), e.get("value", "")
        if name in seen:
            itself = f"$({name})"                            # A=$(A):more extends the earlier one
            if e.get("valueFrom") is not None or value == itself or itself not in value:
                yield f"{path}[{i}]: hides previous definition of {quote(name)}, which may be dropped when using apply"
        seen.add(name)


def _ports(spec: Object, s: str) -> Texts:
    by_number: dict[tuple[int, str], list[tuple[str, Object]]] = {}
    by_name: dict[str, str] = {}
    repeated: list[str] = []
    for c, container in containers_with_path(spec, s):
        for i, p in enumerate(c.get("ports") or ()):
            here, host_ip, host_port = f"{container}.ports[{i}]", p.get("hostIP", ""), p.get("hostPort", 0)
            if host_ip and not host_port:
                yield f"{here}: hostIP set without hostPort: {_go_port(p)}"
            others = by_number.setdefault((p.get("containerPort", 0), p.get("protocol", "")), [])
            for there, o in others:
                other_ip, other_port = o.get("hostIP", ""), o.get("hostPort", 0)
                if host_ip == other_ip and host_port == other_port:
                    yield f"{here}: duplicate port definition with {there}"
                elif not host_port or not other_port:
                    yield f"{here}: overlapping port definition with {there}"
                elif host_port == other_port and (not host_ip) != (not other_ip):
                    yield f"{here}: dangerously ambiguous port definition with {there}"
            others.append((here, p))
            if name := p.get("name"):
                if name in by_name:
                    repeated.append(f"{here}: duplicate port name {quote(name)} with {by_name[name]}, services and probes that select ports by "
                                    f"name will use {by_name[name]}")
                by_name.setdefault(name, here)
    yield from repeated


def _go_port(p: Object) -> str:
    """A ContainerPort as Go's %+v prints it."""
    return (f"{{Name:{p.get('name', '')} HostPort:{p.get('hostPort', 0)} ContainerPort:{p.get('containerPort', 0)} "
            f"Protocol:{p.get('protocol', '')} HostIP:{p.get('hostIP', '')}}}")


def _affinity(affinity: Object, path: str) -> Texts:
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        for i, term in enumerate(rules.get(REQUIRED) or ()):
            if term.get("labelSelector") is None:
                yield f"{path}.{kind}.{REQUIRED}[{i}].labelSelector: {NO_SELECTOR}"
        for i, weighted in enumerate(rules.get(PREFERRED) or ()):
            if (weighted.get("podAffinityTerm") or {}).get("labelSelector") is None:
                yield f"{path}.{kind}.{PREFERRED}[{i}].podAffinityTerm.labelSelector: {NO_SELECTOR}"


# Volumes -----------------------------------------------------------------------------------------------------------------------

def _volumes(volumes: list[Object], path: str) -> Texts:
    for i, v in enumerate(volumes):
        for field, printed, text in _DEPRECATED_VOLUMES if v.keys() & _DEPRECATED_FIELDS else ():
            if v.get(field) is None:
                continue
            if text:
                yield f"{path}[{i}].{printed}: {text}"
            elif template := v[field].get("volumeClaimTemplate"):
                yield from claim_spec_warnings(template.get("spec") or {}, f"{path}[{i}].ephemeral.volumeClaimTemplate.spec")
    for v in volumes:
        name = quote(v.get("name", ""))
        for kind, title, field in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")):
            source = v.get(kind)
            if source is not None and source.get("items"):
                label = f"{title} {quote(source.get(field, ''))}" if field else title
                for text in _overlaps([(item.get("path", ""), "") for item in source["items"]]):
                    yield f"volume {name} ({label}): overlapping paths: {text}"
        if (projected := v.get("projected")) is not None:
            paths: list[tuple[str, str]] = []
            for source in projected.get("sources") or ():
                if not source:
                    yield f"volume {name} (Projected) has no sources provided"
                    continue
                paths.extend(_projected_paths(source))
            for text in _overlaps(paths):
                yield f"volume {name} (Projected): overlapping paths: {text}"


def _projected_paths(source: Object) -> Iterator[tuple[str, str]]:
    for kind, title in (("configMap", "ConfigMap"), ("secret", "Secret")):
        if (keys := source.get(kind)) is not None and keys.get("items"):
            yield from ((item.get("path", ""), f"{title} {quote(keys.get('name', ''))}") for item in keys["items"])
            return
    if (downward := source.get("downwardAPI")) is not None and downward.get("items"):
        yield from ((item.get("path", ""), "DownwardAPI") for item in downward["items"])
    elif (token := source.get("serviceAccountToken")) is not None:
        yield token.get("path", ""), "ServiceAccountToken"
    elif (bundle := source.get("clusterTrustBundle")) is not None:
        yield bundle.get("path", ""), f"ClusterTrustBundle {quote(bundle.get('name') or bundle.get('signerName') or '')}"
    elif (certificate := source.get("podCertificate")) is not None:
        for field, what in (("certificateChainPath", "chain"), ("keyPath", "key"), ("credentialBundlePath", "credential bundle")):
            if certificate.get(field):
                yield certificate[field], f"PodCertificate {what}"


def _overlaps(paths: list[tuple[str, str]]) -> Texts:
    """Pairs of which one lies in the other."""
    seen: list[tuple[str, str]] = []
    for raw, source in paths:
        target = raw.rstrip("/")
        for other, other_source in seen:
            if target and other and (f"{other}/".startswith(f"{target}/") or f"{target}/".startswith(f"{other}/")):
                yield f"{_named(target, source)} with {_named(other, other_source)}"
        seen.append((target, source))


def _named(path: str, source: str) -> str:
    return f"{quote(path)} ({source})" if source else quote(path)
