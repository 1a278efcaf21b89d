"""apiregistration.k8s.io/v1: APIService. Upstream: kube-aggregator pkg/apis/apiregistration, pkg/registry/apiservice."""

from __future__ import annotations

import base64
import binascii

from kubern.model import names
from kubern.model.invalid import invalid, not_supported, quote, required
from kubern.model.kinds.checks import Errors, keep, keep_status, listed, messages
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.webhook_client import default_service_port
from kubern.model.object import Object

GROUP_PRIORITY_MAX, VERSION_PRIORITY_MAX = 20_000, 1000


def default_service(obj: Object) -> None:
    default_service_port(obj.get("spec"))


def _create(obj: Object) -> None:
    obj["status"] = {}
    if (obj.get("spec") or {}).get("service") is None:  # served here: there is nothing to wait for
        obj["status"]["conditions"] = [{
            "type": "Available", "status": "True", "lastTransitionTime": obj["metadata"].get("creationTimestamp"), "reason": "Local",
            "message": "Local APIServices are always available"}]


def _status(new: Object, old: Object) -> None:
    keep(new, old, "spec")
    keep(new["metadata"], old["metadata"], "labels", "annotations", "finalizers", "ownerReferences")


def validate_service(obj: Object, old: Object | None = None) -> Errors:
    spec, name = obj.get("spec") or {}, obj["metadata"].get("name") or ""
    group, version = spec.get("group") or "", spec.get("version") or ""
    wanted = f"{version}.{group}"
    for field, given in (("generateName", obj["metadata"].get("generateName")), ("name", name)):
        if given and not names.is_path_segment_name(given) and given != wanted:
            yield invalid(f"metadata.{field}", given, f'must be `spec.version+"."+spec.group`: {quote(wanted)}')
    if not group and version != "v1":
        yield required("spec.group", "only v1 may have an empty group and it better be legacy kube")
    if group:
        yield from messages(group, names.is_dns1123_subdomain(group), "spec.group")
    yield from messages(version, names.is_dns1035_label(version), "spec.version")
    group_priority, version_priority = spec.get("groupPriorityMinimum") or 0, spec.get("versionPriority") or 0
    if not 0 < group_priority <= GROUP_PRIORITY_MAX:
        yield invalid("spec.groupPriorityMinimum", group_priority, f"must be positive and less than {GROUP_PRIORITY_MAX}")
    if not 0 < version_priority <= VERSION_PRIORITY_MAX:
        yield invalid("spec.versionPriority", version_priority, f"must be positive and less than {VERSION_PRIORITY_MAX}")
    service, bundle, insecure = spec.get("service"), spec.get("caBundle"), spec.get("insecureSkipTLSVerify")
    if service is None:
        if bundle:
            yield invalid("spec.caBundle", f"{_size(bundle)} bytes", "local APIServices may not have a caBundle")
        if insecure:
            yield invalid("spec.insecureSkipTLSVerify", True, "local APIServices may not have insecureSkipTLSVerify")
        return
    if not service.get("namespace"):
        yield required("spec.service.namespace")
    if not service.get("name"):
        yield required("spec.service.name")
    port = service.get("port") or 0
    if errors := names.is_port_number(port):
        yield invalid("spec.service.port", port, f"port is not valid: {', '.join(errors)}")
    if insecure and bundle:
        yield invalid("spec.insecureSkipTLSVerify", True, "may not be true if caBundle is present")


def _size(text: str) -> int:
    try:
        return len(base64.b64decode(text))
    except (binascii.Error, ValueError):
        return 0


def validate_status(new: Object, old: Object) -> Errors:
    for i, c in enumerate((new.get("status") or {}).get("conditions") or ()):
        if c.get("status") not in ("True", "False", "Unknown"):
            yield not_supported(f"status.conditions[{i}].status", c.get("status") or "", ("True", "False", "Unknown"))


KINDS: KindTable = {
    ("apiregistration.k8s.io", "APIService"): Kind(
        defaults=default_service, prepare_create=_create, prepare_update=keep_status, prepare_status=_status,
        validate=listed(validate_service), validate_update=listed(validate_service), validate_status=listed(validate_status),
        name_check=names.name_is_path_segment, unconditional_update=False, qualified_finalizers=False, meta_again=1),
}
