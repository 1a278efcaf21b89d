"""Pod and claim templates as the workloads of other groups use them: one place that knows the names of the core modules' functions."""

from __future__ import annotations

from collections.abc import Iterable

from kubern.model.invalid import FieldError
from kubern.model.kinds.claim_spec import validate_claim_spec
from kubern.model.kinds.leeway import leeway
from kubern.model.kinds.pod_defaults import default_claim_spec, default_pod_template
from kubern.model.kinds.pod_prepare import drop_disabled
from kubern.model.kinds.pod_spec import validate_pod_template
from kubern.model.kinds.pod_warnings import claim_spec_warnings as _claim_spec_warnings
from kubern.model.kinds.pod_warnings import template_warnings as _template_warnings
from kubern.model.object import Object


def validate_template(template: Object, path: str, old: Object | None = None) -> Iterable[FieldError]:
    """`old`: the stored template, on update."""
    annotations = ((old or {}).get("metadata") or {}).get("annotations")
    return validate_pod_template(template, path, leeway((old or {}).get("spec"), annotations))


def prepare_template(template: Object | None, old: Object | None = None) -> None:
    """Drops fields of features that are off; part of the strategy of everything that has a template."""
    if template is not None:
        drop_disabled(template.setdefault("spec", {}), (old or {}).get("spec"))


def template_warnings(template: Object, path: str, old: Object | None = None) -> list[str]:
    return _template_warnings(template, path)


def default_claim(claim: Object) -> None:
    default_claim_spec(claim.setdefault("spec", {}))
    status = claim.setdefault("status", {})
    if not status.get("phase"):
        status["phase"] = "Pending"


def claim_spec_warnings(spec: Object, path: str) -> list[str]:
    return list(_claim_spec_warnings(spec, path))


__all__ = ["claim_spec_warnings", "default_claim", "default_pod_template", "prepare_template", "template_warnings", "validate_claim_spec",
           "validate_template"]
