"""The status of a ResourceClaim is written by several: who allocates it, and each device's driver. Every one may write its own part only.

Asked are subresources that do not exist, so that roles can tell them apart: `resourceclaims/binding` for allocation and reservation, and
`resourceclaims/driver` with the driver's name for what a driver reports, with a verb that says whether it runs on the claim's own node.
No plugin upstream: its registry checks with validation (pkg/registry/resource/utils.go). KEP-4817, KEP-4381.
"""

from __future__ import annotations

from kubern.api.admission.attributes import UPDATE, Attributes, Plugin
from kubern.api.authn.impersonate import service_account
from kubern.api.authz.attributes import Attributes as Asked
from kubern.api.authz.attributes import forbid
from kubern.api.authz.unanswered import settled
from kubern.model.invalid import FieldError, forbidden
from kubern.model.object import Object

GROUP = "resource.k8s.io"
NODE_NAME = "authentication.kubernetes.io/node-name"


def changed_drivers(new: Object, old: Object) -> list[str]:
    """Drivers of which something is said that was not said before, or not any more."""
    def devices(status: Object) -> dict[tuple[str, str, str, str], Object]:
        return {(d.get("driver", ""), d.get("pool", ""), d.get("device", ""), d.get("shareID") or ""): d for d in status.get("devices") or ()}
    before, after = devices(old), devices(new)
    return sorted({key[0] for key in before.keys() | after.keys() if before.get(key) != after.get(key)})


def allocated_node(allocation: Object) -> str:
    """The one node an allocation is for, "" if it is for several."""
    terms = (allocation.get("nodeSelector") or {}).get("nodeSelectorTerms") or []
    if len(terms) != 1 or terms[0].get("matchExpressions") or len(terms[0].get("matchFields") or ()) != 1:
        return ""
    field = terms[0]["matchFields"][0]
    values = field.get("values") or []
    return values[0] if (field.get("key"), field.get("operator"), len(values)) == ("metadata.name", "In", 1) else ""


def _verbs(a: Attributes, allocation: Object) -> list[str]:
    node = allocated_node(allocation)
    near = node and service_account(a.user.name) is not None and tuple(a.user.extra.get(NODE_NAME, ())) == (node,)
    return [f"associated-node:{a.verb}", f"arbitrary-node:{a.verb}"] if near else [f"arbitrary-node:{a.verb}"]


def _refusal(a: Attributes, verbs: list[str], subresource: str, namespace: str = "", name: str = "") -> str:
    """Why none of the verbs is allowed, "" if one is."""
    assert a.authorizer is not None
    first = ""
    for verb in verbs:
        asked = Asked(a.user, verb, GROUP, a.resource.version, "resourceclaims", subresource, namespace, name)
        decision = a.authorizer.authorize(asked)
        if decision.allowed:
            return ""
        first = first or forbid(asked, ": ".join(t for t in (decision.error, decision.reason) if t)).message
    return first


def _errors(a: Attributes) -> list[FieldError]:
    new, old = (a.obj or {}).get("status") or {}, (a.old or {}).get("status") or {}
    errors = []
    if new.get("allocation") != old.get("allocation") or (new.get("reservedFor") or []) != (old.get("reservedFor") or []):
        why = _refusal(a, [a.verb], "binding")
        if why:
            errors.append(forbidden("status.allocation", 'changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", '
                                                         f'verb="{a.verb}" permission: {why}'))
    allocation = new.get("allocation")
    for driver in changed_drivers(new, old) if allocation is not None else ():
        verbs = _verbs(a, allocation or {})
        why = _refusal(a, verbs, "driver", a.namespace, driver)
        if why:
            errors.append(forbidden("status.devices", f'changing status.devices requires resource="resourceclaims/driver", verb="[{" ".join(verbs)}]" '
                                                      f"permission: {why}"))
    return errors


async def mutate(a: Attributes) -> None:
    if a.authorizer is None:
        return
    a.errors += await settled(lambda: _errors(a))


PLUGIN = Plugin("ResourceClaimStatus", (UPDATE,), (f"resourceclaims.{GROUP}/status",), mutate=mutate)
