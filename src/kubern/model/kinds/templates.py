"""Pod and claim templates as the workloads of other groups use them: one place that knows the names of the core modules' functions."""

from __future__ import annotations

from collections.abc import Iterable

from kubern.model.invalid import FieldError
from kubern.model.kinds.claim_spec import validate_claim_spec
from kubern.model.object import Object


def validate_template(template: Object, path: str, old: Object | None = None) -> Iterable[FieldError]:
    try:
        from kubern.model.kinds.pod_validate import validate_pod_template
    except ImportError:
        return ()
    return validate_pod_template(template, path, old)


def template_warnings(template: Object, path: str, old: Object | None = None) -> list[str]:
    return []


def default_claim(claim: Object) -> None:
    spec = claim.setdefault("spec", {})
    if spec.get("volumeMode") is None:
        spec["volumeMode"] = "Filesystem"
    status = claim.setdefault("status", {})
    if not status.get("phase"):
        status["phase"] = "Pending"


def claim_spec_warnings(spec: Object, path: str) -> list[str]:
    return []


__all__ = ["claim_spec_warnings", "default_claim", "template_warnings", "validate_claim_spec", "validate_template"]
