"""Defaults of pods and pod templates: what a stored pod has that its writer left out.

`default_pod` for Pods, `default_pod_template` and `default_pod_spec` for everything that holds a template (a template gets no
defaults that only pods have: requests from limits, enableServiceLinks, host ports). All change the dict they are given.
Not here: what admission adds (tolerations, priority, service account, limit ranges).
Upstream: pkg/apis/core/v1/defaults.go with its generated part, conversion.go (deprecated spellings).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from kubern.model.kinds.pod_resources import is_huge_page, is_overcommit_allowed, is_pod_level, sum_containers
from kubern.model.object import Object
from kubern.model.quantity import QuantityError, round_up_milli

_PLAIN = re.compile(r"[0-9]+(m|[kMGTPE]|[KMGTPE]i)?").fullmatch
_CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_INIT_ANNOTATIONS = tuple(f"pod.{stage}.kubernetes.io/{what}" for stage in ("beta", "alpha")
                          for what in ("init-containers", "init-container-statuses"))


def default_pod(pod: Object) -> None:
    spec = pod.setdefault("spec", {})
    drop_init_annotations(pod)
    for which in ("containers", "initContainers"):
        for c in spec.get(which) or ():
            _requests_from_limits(c)
    if spec.get("resources"):
        _pod_level_resources(spec)
    if spec.get("enableServiceLinks") is None:
        spec["enableServiceLinks"] = True
    if spec.get("hostNetwork"):
        for which in ("containers", "initContainers"):
            for c in spec.get(which) or ():
                for p in c.get("ports") or ():
                    if not p.get("hostPort"):
                        p["hostPort"] = p.get("containerPort", 0)
    default_pod_spec(spec)
    if spec.get("terminationGracePeriodSeconds", 0) < 0:
        spec["terminationGracePeriodSeconds"] = 1
    if status := pod.get("status"):
        _default_status(status)


def default_pod_template(template: Object | None) -> None:
    """The `template` of a workload; None where there is none."""
    if template is None:
        return
    drop_init_annotations(template)
    default_pod_spec(template.setdefault("spec", {}))


def default_pod_spec(spec: Object) -> None:
    if not spec.get("dnsPolicy"):
        spec["dnsPolicy"] = "ClusterFirst"
    if not spec.get("restartPolicy"):
        spec["restartPolicy"] = "Always"
    if spec.get("securityContext") is None:
        spec["securityContext"] = {}
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = 30
    if not spec.get("schedulerName"):
        spec["schedulerName"] = "default-scheduler"
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for v in spec.get("volumes") or ():
        default_volume(v)
    for which in _CONTAINER_LISTS:
        for c in spec.get(which) or ():
            default_container(c)
    if overhead := spec.get("overhead"):
        default_resource_list(overhead)
    if resources := spec.get("resources"):
        default_requirements(resources)


def default_container(c: Object) -> None:
    if not c.get("imagePullPolicy"):
        c["imagePullPolicy"] = pull_policy(c.get("image") or "")
    if not c.get("terminationMessagePath"):
        c["terminationMessagePath"] = "/dev/termination-log"
    if not c.get("terminationMessagePolicy"):
        c["terminationMessagePolicy"] = "File"
    for p in c.get("ports") or ():
        if not p.get("protocol"):
            p["protocol"] = "TCP"
    for e in c.get("env") or ():
        if source := e.get("valueFrom"):
            _default_env_source(source)
    resources = c.setdefault("resources", {})
    if resources:
        default_requirements(resources)
    for name in _PROBES:
        if (probe := c.get(name)) is not None:
            _default_probe(probe)
    if lifecycle := c.get("lifecycle"):
        for moment in ("postStart", "preStop"):
            if http := (lifecycle.get(moment) or {}).get("httpGet"):
                _default_http(http)


def _default_env_source(source: Object) -> None:
    if (ref := source.get("fieldRef")) is not None:
        ref["apiVersion"] = ref.get("apiVersion") or "v1"
    if (ref := source.get("fileKeyRef")) is not None and ref.get("optional") is None:
        ref["optional"] = False


def _default_probe(probe: Object) -> None:
    for field, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(field):
            probe[field] = value
    if (http := probe.get("httpGet")) is not None:
        _default_http(http)
    if (grpc := probe.get("grpc")) is not None and grpc.get("service") is None:
        grpc["service"] = ""


def _default_http(http: Object) -> None:
    http["path"] = http.get("path") or "/"
    http["scheme"] = http.get("scheme") or "HTTP"


_MODE_644 = 0o644
# Volume source -> fields that get a value when they are empty ("" or absent).
_SOURCE_DEFAULTS: dict[str, dict[str, Any]] = {
    "iscsi": {"iscsiInterface": "default"},
    "rbd": {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"},
    "scaleIO": {"storageMode": "ThinProvisioned", "fsType": "xfs"},
}
# Volume source -> fields that get a value when they are absent.
_SOURCE_POINTERS: dict[str, dict[str, Any]] = {
    "hostPath": {"type": ""},
    "secret": {"defaultMode": _MODE_644},
    "configMap": {"defaultMode": _MODE_644},
    "downwardAPI": {"defaultMode": _MODE_644},
    "projected": {"defaultMode": _MODE_644},
    "azureDisk": {"cachingMode": "ReadWrite", "fsType": "ext4", "readOnly": False, "kind": "Shared"},
}


def default_volume_source(holder: Object) -> None:
    """Defaults of one volume source, in a pod's volume or in a PersistentVolume's spec."""
    for kind in holder.keys() & _SOURCE_DEFAULTS.keys():
        for field, value in _SOURCE_DEFAULTS[kind].items():
            if not holder[kind].get(field):
                holder[kind][field] = value
    for kind in holder.keys() & _SOURCE_POINTERS.keys():
        for field, value in _SOURCE_POINTERS[kind].items():
            if holder[kind].get(field) is None:
                holder[kind][field] = value


def default_volume(v: Object) -> None:
    """A pod's volume: without any source it is an emptyDir."""
    if len(v) <= 1 and not v.keys() - {"name"}:
        v["emptyDir"] = {}
        return
    default_volume_source(v)
    if (image := v.get("image")) is not None and not image.get("pullPolicy"):
        image["pullPolicy"] = pull_policy(image.get("reference") or "")
    if downward := v.get("downwardAPI"):
        _default_downward_items(downward)
    if projected := v.get("projected"):
        for source in projected.get("sources") or ():
            if items := source.get("downwardAPI"):
                _default_downward_items(items)
            if (token := source.get("serviceAccountToken")) is not None and token.get("expirationSeconds") is None:
                token["expirationSeconds"] = 3600
    if template := (v.get("ephemeral") or {}).get("volumeClaimTemplate"):
        default_claim_spec(template.setdefault("spec", {}))


def _default_downward_items(source: Object) -> None:
    for item in source.get("items") or ():
        if (ref := item.get("fieldRef")) is not None:
            ref["apiVersion"] = ref.get("apiVersion") or "v1"


def default_claim_spec(spec: Object) -> None:
    """Spec of a PersistentVolumeClaim, also in templates of claims (StatefulSet, ephemeral volumes)."""
    if spec.get("volumeMode") is None:
        spec["volumeMode"] = "Filesystem"
    default_requirements(spec.setdefault("resources", {}))


def default_requirements(resources: Object) -> None:
    for side in ("limits", "requests"):
        if amounts := resources.get(side):
            default_resource_list(amounts)


def default_resource_list(amounts: dict[str, Any] | None) -> None:
    """Quantities below a thousandth are rounded up to it."""
    if not amounts:
        return
    for name, text in amounts.items():
        if not (isinstance(text, str) and _PLAIN(text)):
            try:
                amounts[name] = round_up_milli(str(text))
            except QuantityError:                       # decoding refuses it; kept here for objects that never went through it
                continue


def _requests_from_limits(c: Object) -> None:
    resources = c.get("resources") or {}
    limits = resources.get("limits")
    if limits:
        requests = resources.get("requests")
        if requests is None:
            requests = resources["requests"] = {}
        for name, amount in limits.items():
            requests.setdefault(name, amount)


def _pod_level_resources(spec: Object) -> None:
    """spec.resources takes huge page limits from the containers, and missing requests from them or else from its own limits."""
    own = spec["resources"]
    if own.get("limits") or own.get("requests"):
        limits = dict(own.get("limits") or {})
        for name, amount in sum_containers(spec, "limits").items():
            if is_huge_page(name) and name not in (own.get("requests") or {}):
                limits.setdefault(name, amount)
        if limits:
            own["limits"] = limits
    if own.get("limits"):
        requests = dict(own.get("requests") or {})
        for name, amount in sum_containers(spec, "requests").items():
            if is_pod_level(name) and is_overcommit_allowed(name):
                requests.setdefault(name, amount)
        for name, amount in own["limits"].items():
            if is_pod_level(name):
                requests.setdefault(name, amount)
        if requests:
            own["requests"] = requests


def _default_status(status: Object) -> None:
    for which in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for s in status.get(which) or ():
            default_resource_list(s.get("allocatedResources"))
            default_requirements(s.get("resources") or {})
    default_resource_list(status.get("allocatedResources"))
    default_requirements(status.get("resources") or {})
    ip, ips = status.get("podIP"), status.get("podIPs")      # two spellings of one fact; the older wins
    if ip and (not ips or ips[0].get("ip") != ip):
        status["podIPs"] = [{"ip": ip}]
    elif ips and not ip:
        status["podIP"] = ips[0].get("ip", "")


def drop_init_annotations(obj: Object) -> None:
    """Init containers were annotations once; what is left of them is never stored."""
    annotations = (obj.get("metadata") or {}).get("annotations")
    if annotations:
        for key in _INIT_ANNOTATIONS:
            annotations.pop(key, None)


# Image names: the grammar of distribution/reference --------------------------------------------------------------------------

_DOMAIN_PART = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REFERENCE = re.compile(
    rf"(?P<name>(?:(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?",
    re.ASCII).fullmatch
_DIGEST_SIZES = {"sha256": 64, "sha384": 96, "sha512": 128}


@lru_cache(maxsize=4096)
def image_tag(image: str) -> str | None:
    """The tag an image name means: "latest" where it has neither tag nor digest, "" with only a digest, None for no valid name."""
    if re.fullmatch("[a-f0-9]{64}", image):
        return None
    head, slash, _ = image.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost" or head.lower() != head):
        image = f"docker.io/{image}" if slash else f"docker.io/library/{image}"
    m = _REFERENCE(image)
    if m is None or len(m["name"]) > 255:
        return None
    if digest := m["digest"]:
        algorithm, _, value = digest.partition(":")
        if _DIGEST_SIZES.get(algorithm) != len(value) or value.lower() != value:
            return None
        return m["tag"] or ""
    return m["tag"] or "latest"


def pull_policy(image: str) -> str:
    return "Always" if image_tag(image) == "latest" else "IfNotPresent"
