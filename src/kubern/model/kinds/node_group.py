"""node.k8s.io/v1: RuntimeClass. Upstream: pkg/apis/node/validation, pkg/registry/node; KEP-585."""

from __future__ import annotations

from kubern.model import names
from kubern.model.invalid import duplicate, required
from kubern.model.kinds.checks import Errors, immutable, listed, messages
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import validate_labels
from kubern.model.kinds.placement import validate_tolerations
from kubern.model.kinds.pod_defaults import default_resource_list
from kubern.model.kinds.pod_warnings import DEPRECATED_NODE_LABELS
from kubern.model.kinds.resource_rules import requirements
from kubern.model.object import Object


def default_runtime_class(obj: Object) -> None:
    fixed = (obj.get("overhead") or {}).get("podFixed")
    if fixed:
        default_resource_list(fixed)


def validate_runtime_class(obj: Object, old: Object | None = None) -> Errors:
    handler = obj.get("handler") or ""
    if not handler:
        yield required("handler")
    else:
        yield from messages(handler, names.is_dns1123_label(handler), "handler")
    overhead, scheduling = obj.get("overhead"), obj.get("scheduling")
    if overhead is not None:
        yield from requirements({"limits": overhead.get("podFixed") or {}}, "overhead", ())
    if scheduling is not None:
        yield from validate_labels(scheduling.get("nodeSelector"), "scheduling.nodeSelector")
        tolerations = scheduling.get("tolerations") or []
        yield from validate_tolerations(tolerations, "scheduling.tolerations")
        seen = set()
        for i, t in enumerate(tolerations):
            key = tuple(t.get(f) or "" for f in ("key", "operator", "value", "effect"))
            if key in seen:
                yield duplicate(f"scheduling.tolerations[{i}]", struct("Toleration", t))
            seen.add(key)
    if old is not None:
        yield from immutable(handler, old.get("handler") or "", "handler")


def _warnings(new: Object, old: Object | None) -> list[str]:
    labels = (new.get("scheduling") or {}).get("nodeSelector") or ()
    return [f"scheduling.nodeSelector: {DEPRECATED_NODE_LABELS[k]}" for k in labels if k in DEPRECATED_NODE_LABELS]


KINDS: KindTable = {
    ("node.k8s.io", "RuntimeClass"): Kind(
        defaults=default_runtime_class, validate=listed(validate_runtime_class), validate_update=listed(validate_runtime_class),
        warnings=_warnings, create_on_update=True, unconditional_update=False, qualified_finalizers=False, meta_again=1),
}
