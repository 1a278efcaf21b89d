"""Administrative access to devices is only for namespaces that are labelled for it.

No plugin upstream: its registry checks with validation (pkg/registry/resource/utils.go). KEP-5018.
"""

from __future__ import annotations

from collections.abc import Iterable

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin
from kubern.model.invalid import forbidden
from kubern.model.object import Object

LABEL = "resource.kubernetes.io/admin-access"
CLAIMS, TEMPLATES = "resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io"


def _results(obj: Object | None) -> Iterable[Object]:
    return ((((obj or {}).get("status") or {}).get("allocation") or {}).get("devices") or {}).get("results") or ()


def _asked(a: Attributes) -> str:
    """The path of the first wish for it that is new, "" if there is none."""
    if a.subresource:
        if any(r.get("adminAccess") for r in _results(a.old)):
            return ""
        return next((f"status.allocation.devices.results[{i}].adminAccess" for i, r in enumerate(_results(a.obj)) if r.get("adminAccess")), "")
    if a.operation != CREATE:
        return ""                       # the spec never changes
    spec = (a.obj or {}).get("spec") or {}
    if a.what == TEMPLATES:
        spec = spec.get("spec") or {}
    requests = (spec.get("devices") or {}).get("requests") or ()
    return next((f"spec.devices.requests[{i}].adminAccess" for i, r in enumerate(requests) if (r.get("exactly") or {}).get("adminAccess")), "")


async def mutate(a: Attributes) -> None:
    path = _asked(a)
    if not path:
        return
    namespace = a.reader.get("namespaces", "", a.namespace) or {}
    if ((namespace.get("metadata") or {}).get("labels") or {}).get(LABEL) != "true":
        a.errors.append(forbidden(path, f"admin access to devices requires the `{LABEL}: true` label on the containing namespace"))


PLUGIN = Plugin("DeviceAdminAccess", (CREATE, UPDATE), (CLAIMS, TEMPLATES, f"{CLAIMS}/status"), mutate=mutate)
