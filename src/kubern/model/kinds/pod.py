"""Pod, PodTemplate and Binding.

A Pod's rules stand in pod_prepare.py (what a client may set), pod_spec.py (what holds for any pod spec), pod_change.py (what may
change), pod_status.py and pod_resize.py; here they are put together, with deletion and warnings.
Upstream: pkg/registry/core/pod, pkg/registry/core/podtemplate.
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.addresses import ip_warnings
from kubern.model.invalid import FieldError, not_supported, required
from kubern.model.kinds.equal import semantic_equal
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import annotations_of
from kubern.model.kinds.leeway import Leeway, leeway
from kubern.model.kinds.pod_change import validate, validate_update
from kubern.model.kinds.pod_defaults import default_pod, default_pod_template
from kubern.model.kinds.pod_prepare import drop_disabled, prepare_create, prepare_status, prepare_update, spec_of
from kubern.model.kinds.pod_spec import validate_pod_template
from kubern.model.kinds.pod_status import validate_status
from kubern.model.kinds.pod_warnings import apparmor_warnings, pod_warnings, template_warnings
from kubern.model.likeness import Kept, likeness
from kubern.model.object import Object, meta
from kubern.model.object import name as name_of

# Deletion and warnings ---------------------------------------------------------------------------------------------------------

def grace_s(pod: Object, asked: int | None) -> int:
    """Seconds a deleted pod may live on: none where no kubelet has it or it has ended."""
    spec = spec_of(pod)
    if not spec.get("nodeName") or (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
        return 0
    seconds = asked if asked is not None else spec.get("terminationGracePeriodSeconds") or 0
    return 1 if seconds < 0 else seconds


_warnings: Kept[list[str]] = Kept()


def warnings(new: Object, old: Object | None) -> list[str]:
    if old is not None:
        return []
    spec, m = spec_of(new), meta(new)
    out = apparmor_warnings(spec, m)
    if texts := names.is_dns1123_label(name_of(new)):
        out.append("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: "
                   f"[{' '.join(texts)}]")
    key = likeness((spec, m.get("annotations")))
    known = _warnings.get(key)
    if known is None:
        known = pod_warnings(spec, m)
        _warnings.keep(key, known)
    return out + known


def status_warnings(pod: Object) -> list[str]:
    return [t for field in ("podIPs", "hostIPs") for i, e in enumerate((pod.get("status") or {}).get(field) or ())
            for t in ip_warnings(f"status.{field}[{i}].ip", e.get("ip", ""))]


# PodTemplate -------------------------------------------------------------------------------------------------------------------

def _default_template(obj: Object) -> None:
    default_pod_template(obj.setdefault("template", {}))


def _prepare_template(obj: Object) -> None:
    drop_disabled(obj.setdefault("template", {}).setdefault("spec", {}), None)


def _prepare_template_update(new: Object, old: Object) -> None:
    drop_disabled(new.setdefault("template", {}).setdefault("spec", {}), (old.get("template") or {}).get("spec"))


def template_leeway(template: Object | None) -> Leeway:
    """For an update of a workload whose stored template is this one."""
    return leeway((template or {}).get("spec"), annotations_of(template or {}))


def _template_warnings(new: Object, old: Object | None) -> list[str]:
    if old is not None and semantic_equal(new.get("template"), old.get("template")):
        return []
    return template_warnings(new.get("template"), "template")


# Binding -----------------------------------------------------------------------------------------------------------------------

def validate_binding(binding: Object) -> list[FieldError]:
    target = binding.get("target") or {}
    out = []
    if target.get("kind") not in (None, "", "Node"):
        out.append(not_supported("target.kind", target["kind"], ("Node", "<empty>")))
    if not target.get("name"):
        out.append(required("target.name"))
    return out


KINDS: KindTable = {
    ("", "Pod"): Kind(
        defaults=default_pod, prepare_create=prepare_create, prepare_update=prepare_update, prepare_status=prepare_status,
        validate=validate, validate_update=validate_update, validate_status=validate_status, warnings=warnings, status_warnings=status_warnings,
        has_generation=True, generation_changed=lambda new, old: not semantic_equal(new.get("spec"), old.get("spec")),
        meta_again=1, grace_s=grace_s, delete_returns_object=True),
    ("", "PodTemplate"): Kind(
        defaults=_default_template, prepare_create=_prepare_template, prepare_update=_prepare_template_update,
        validate=lambda obj: list(validate_pod_template(obj.get("template") or {}, "template")),
        validate_update=lambda new, old: list(validate_pod_template(new.get("template") or {}, "template", template_leeway(old.get("template")))),
        warnings=_template_warnings, delete_returns_object=True,
        has_generation=True, generation_changed=lambda new, old: not semantic_equal(new.get("template"), old.get("template"))),
    ("", "Binding"): Kind(validate=validate_binding, name_check=names.name_is_path_segment),
}
