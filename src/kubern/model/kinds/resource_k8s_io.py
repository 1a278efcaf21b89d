"""resource.k8s.io (dynamic resource allocation): the kinds and their strategies; rules in device_claims and device_slices.

Upstream: pkg/registry/resource.
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.kinds.checks import keep_spec_and_metadata, keep_status, listed, zero_status
from kubern.model.kinds.device_claims import (
    default_claim,
    default_template,
    drop_deallocated,
    validate_claim,
    validate_claim_status,
    validate_claim_update,
    validate_class,
    validate_template,
    validate_template_update,
)
from kubern.model.kinds.device_slices import default_slice, drop_disabled, validate_slice
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.object import Object


def _claim_status(new: Object, old: Object) -> None:
    keep_spec_and_metadata(new, old)
    drop_deallocated(new, old)


def _slice_warnings(new: Object, old: Object | None) -> list[str]:
    driver = (new.get("spec") or {}).get("driver") or ""
    if driver == driver.lower():
        return []
    return [f'spec.driver: driver names should be lowercase; "{driver}" contains uppercase characters']


GROUP = "resource.k8s.io"
KINDS: KindTable = {
    (GROUP, "ResourceClaim"): Kind(
        delete_returns_object=True,
        meta_again=1,
        defaults=default_claim, prepare_create=zero_status({}), prepare_update=keep_status, prepare_status=_claim_status,
        validate=listed(validate_claim), validate_update=listed(validate_claim_update), validate_status=listed(validate_claim_status)),
    (GROUP, "ResourceClaimTemplate"): Kind(
        delete_returns_object=True,
        meta_again=1,
        defaults=default_template, validate=listed(validate_template), validate_update=listed(validate_template_update)),
    (GROUP, "DeviceClass"): Kind(
        delete_returns_object=True,
        meta_again=1,
        validate=listed(validate_class), validate_update=listed(validate_class), has_generation=True,
        name_check=names.name_is_declared_subdomain),
    (GROUP, "ResourceSlice"): Kind(
        delete_returns_object=True,
        defaults=default_slice, prepare_create=drop_disabled, prepare_update=drop_disabled, validate=listed(validate_slice),
        validate_update=listed(validate_slice), warnings=_slice_warnings, has_generation=True),
}
