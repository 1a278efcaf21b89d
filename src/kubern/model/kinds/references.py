"""Small things containers and volumes point with: paths, field references, resource references, signer names, pull policies.

Generators of errors. Upstream: pkg/apis/core/validation (validateObjectFieldSelector and its like, names.go), pkg/fieldpath.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kubern.model import names
from kubern.model.invalid import FieldError, invalid, not_supported, quote, required, too_long
from kubern.model.kinds.labels import messages
from kubern.model.object import Object
from kubern.model.quantity import canonical, compare

Errors = Iterator[FieldError]
PULL_POLICIES = ("Always", "IfNotPresent", "Never")

# Every path the downward API knows; env variables and volumes take different parts of it.
DOWNWARD_FIELDS = frozenset({
    "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.restartPolicy",
    "spec.serviceAccountName", "spec.schedulerName", "status.phase", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"})
RESOURCE_FIELDS = frozenset(f"{side}.{name}" for side in ("limits", "requests") for name in ("cpu", "memory", "ephemeral-storage"))
_BYTES = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
_DIVISORS = {"cpu": (("1m", "1"), "1m and 1", "cpu"),
             "memory": (_BYTES, ", ".join(_BYTES), "memory"),
             "ephemeral-storage": (_BYTES, ", ".join(_BYTES), "local ephemeral storage"),
             "hugepages": (_BYTES, ", ".join(_BYTES), "hugepages")}


# Paths -------------------------------------------------------------------------------------------------------------------------

def no_backsteps(target: str, path: str) -> Errors:
    if ".." in target and ".." in target.split("/"):
        yield invalid(path, target, "must not contain '..'")


def relative_path(target: str, path: str) -> Errors:
    """Stays below where it starts."""
    if target.startswith("/"):
        yield invalid(path, target, "must be a relative path")
    yield from no_backsteps(target, path)


def local_path(target: str, path: str) -> Errors:
    """Relative, and not one of the names the kubelet keeps for itself ("..data")."""
    yield from relative_path(target, path)
    if target.startswith("..") and not target.startswith("../"):
        yield invalid(path, target, "must not start with '..'")


# Field and resource references -------------------------------------------------------------------------------------------------

def _subscripted(field_path: str) -> tuple[str, str | None]:
    """"metadata.labels['a']" -> ("metadata.labels", "a")."""
    if field_path.endswith("']"):
        head, found, key = field_path[:-2].partition("['")
        if found and head:
            return head, key
    return field_path, None


def object_field(ref: Object, path: str, allowed: frozenset[str]) -> Errors:
    version, field_path = ref.get("apiVersion", ""), ref.get("fieldPath", "")
    if not version:
        yield required(f"{path}.apiVersion")
        return
    if not field_path:
        yield required(f"{path}.fieldPath")
        return
    head, key = _subscripted(field_path)
    if version != "v1":
        why = f"unsupported pod version: {version}"
    elif key is not None:
        why = "" if head in ("metadata.annotations", "metadata.labels") else f"field label does not support subscript: {field_path}"
    elif field_path == "spec.host":
        head, why = "spec.nodeName", ""
    else:
        why = "" if head in DOWNWARD_FIELDS else f"field label not supported: {field_path}"
    if why:
        yield invalid(f"{path}.fieldPath", field_path, f"error converting fieldPath: {why}")
    elif key is not None:
        checked = key.lower() if head == "metadata.annotations" else key
        yield from messages(path, checked, names.is_qualified_name(checked))
    elif head not in allowed:
        yield not_supported(f"{path}.fieldPath", head, allowed)


def resource_field(ref: Object, path: str, in_volume: bool) -> Errors:
    resource = ref.get("resource", "")
    huge = resource.startswith(("requests.hugepages-", "limits.hugepages-"))
    if in_volume and not ref.get("containerName"):
        yield required(f"{path}.containerName")
    elif not resource:
        yield required(f"{path}.resource")
    elif resource not in RESOURCE_FIELDS and not huge:
        yield not_supported(f"{path}.resource", resource, RESOURCE_FIELDS)
    divisor = ref.get("divisor")
    if divisor is None or compare(divisor, "0") == 0:
        return
    rule = _DIVISORS.get("hugepages" if huge else resource.partition(".")[2])
    if rule and (huge or resource in RESOURCE_FIELDS) and canonical(str(divisor)) not in rule[0]:
        yield invalid(f"{path}.divisor", resource, f"only divisor's values {rule[1]} are supported with the {rule[2]} resource")


def pull_policy(policy: str, path: str) -> Errors:
    if not policy:
        yield required(path)
    elif policy not in PULL_POLICIES:
        yield not_supported(path, policy, PULL_POLICIES)


# Signers -----------------------------------------------------------------------------------------------------------------------

def is_kubernetes_signer(signer: str) -> bool:
    host = signer.partition("/")[0]
    return host == "kubernetes.io" or host.endswith(".kubernetes.io")


def signer_name(signer: str, path: str) -> Errors:
    """domain/path, as certificate requests and trust bundles name who signs."""
    if not signer:
        yield required(path)
        return
    domain, slash, rest = signer.partition("/")
    if not slash or "/" in rest:
        yield invalid(path, signer, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
        return
    if names.size(domain) > names.SUBDOMAIN_MAX:
        yield too_long(path, names.SUBDOMAIN_MAX)
    yield from _each_label(path, domain, names.is_dns1123_label)
    if "." not in domain:
        yield invalid(path, domain, "should be a domain with at least two segments separated by dots")
    yield from _each_label(path, rest, names.is_dns1123_subdomain)
    longest = 2 * names.SUBDOMAIN_MAX + names.LABEL_MAX + 2
    if names.size(signer) > longest:
        yield too_long(path, longest)


def _each_label(path: str, text: str, check: Callable[[str], list[str]]) -> Errors:
    for label in text.split("."):
        if errors := check(label):
            for e in errors:
                yield invalid(path, text, f"validating label {quote(label)}: {e}")
            return


def trust_bundle_name(name: str, prefix: bool = False, signer: str | None = None) -> list[str]:
    """Name of a ClusterTrustBundle: "domain:path:name" for its signer, without a colon where it has none (signer None: from the name)."""
    if signer is None:
        signer = name.rpartition(":")[0].replace(":", "/")
    if not signer:
        return ['ClusterTrustBundle without signer name must not have ":" in its name'] if ":" in name \
            else names.name_is_dns_subdomain(name, prefix)
    start = signer.replace("/", ":") + ":"
    if not name.startswith(start):
        return [f"ClusterTrustBundle for signerName {signer} must be named with prefix {start}"]
    return names.name_is_dns_subdomain(name[len(start):], prefix)
