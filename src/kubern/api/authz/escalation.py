"""Nobody gives rights they do not have: the checks on writing roles and bindings.

Asked after mutating admission and before validation of every create and update of the four RBAC kinds. Exempt are
system:masters, the verbs `escalate` (roles) and `bind` (bindings), and updates that touch nothing but what garbage collection does.
Upstream: pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased, pkg/registry/rbac/escalation_check.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.api.authz import MASTERS, Attributes, Authorizer
from kubern.api.authz.rbac import GROUP, Rule, compact, describe, uncovered
from kubern.model.invalid import aggregate, quote
from kubern.model.object import Object
from kubern.model.request import User
from kubern.model.status import forbidden, not_found

FULL: tuple[Rule, ...] = ({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]})
_GC_FIELDS = frozenset(("ownerReferences", "finalizers", "managedFields", "resourceVersion"))


def check(user: User, plural: str, namespace: str, name: str, obj: Object, old: Object | None, authorizer: Authorizer) -> None:
    """Raises 403 (404 for a missing role) if writing `obj` over `old` gives rights the user lacks. `name` is that of the
    request's path, "" on create."""
    if MASTERS in user.groups or (old is not None and _only_gc(obj, old)):
        return
    if plural in ("roles", "clusterroles"):
        _check_role(user, plural, namespace, name, obj, old, authorizer)
    else:
        _check_binding(user, plural, namespace, obj, authorizer)


def _check_role(user: User, plural: str, namespace: str, name: str, obj: Object, old: Object | None, authorizer: Authorizer) -> None:
    if authorizer.allowed(user, "escalate", GROUP, plural, namespace, name):
        return
    own = (obj.get("metadata") or {}).get("name") or ""
    _confirm(user, plural, namespace, own, obj.get("rules") or (), authorizer)
    if plural == "clusterroles" and (_aggregates(obj) or (old is not None and _aggregates(old))):
        held, _ = authorizer.rbac.rules_for(user, "")
        if uncovered(held, FULL):
            raise forbidden(GROUP, plural, own, "must have cluster-admin privileges to use the aggregationRule")


def _check_binding(user: User, plural: str, namespace: str, obj: Object, authorizer: Authorizer) -> None:
    ref: dict[str, Any] = obj.get("roleRef") or {}
    kind, role = ref.get("kind") or "", ref.get("name") or ""
    resource = {"ClusterRole": "clusterroles", "Role": "roles"}.get(kind, "")
    group = ref.get("apiGroup") or ""
    if resource and authorizer.authorize(Attributes(user, "bind", group, "*", resource, "", namespace, role)).allowed:
        return
    rules, error = authorizer.rbac.role_rules(ref, namespace)
    if error:
        if not resource:
            return                                        # validation refuses such a roleRef
        raise not_found(GROUP, plural, role)              # upstream's error names the request's resource, not the role's
    _confirm(user, plural, namespace, (obj.get("metadata") or {}).get("name") or "", rules, authorizer)


def _confirm(user: User, plural: str, namespace: str, name: str, rules: Iterable[Rule], authorizer: Authorizer) -> None:
    held, errors = authorizer.rbac.rules_for(user, namespace)
    missing = uncovered(held, rules)
    if not missing:
        return
    groups = "[" + " ".join(quote(g) for g in user.groups) + "]"
    lines = "\n".join(sorted({describe(r) for r in compact(missing)}))
    why = f"user {quote(user.name)} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{lines}"
    if errors:
        why += f"; resolution errors: [{aggregate(errors)}]"
    raise forbidden(GROUP, plural, name, why)


def _aggregates(role: Object) -> bool:
    return bool((role.get("aggregationRule") or {}).get("clusterRoleSelectors"))


def _only_gc(obj: Object, old: Object) -> bool:
    """Whether nothing differs but owner references, finalizers and bookkeeping."""
    def rest(o: Object) -> dict[str, Any]:
        m = {k: v for k, v in (o.get("metadata") or {}).items() if k not in _GC_FIELDS}
        return {"metadata": m, **{k: v for k, v in o.items() if k not in ("metadata", "kind", "apiVersion")}}

    return rest(obj) == rest(old)
