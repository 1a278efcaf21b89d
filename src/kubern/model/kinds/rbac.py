"""rbac.authorization.k8s.io/v1: Role, ClusterRole and their bindings. Escalation is checked by api/authz.

Upstream: pkg/apis/rbac/{v1/defaults.go,validation}, pkg/registry/rbac.
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.invalid import invalid, not_supported, required
from kubern.model.kinds.checks import Errors, form, listed, messages, selector_of
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import validate_label_selector
from kubern.model.object import Object

GROUP = "rbac.authorization.k8s.io"


def default_binding(obj: Object) -> None:
    ref = obj.setdefault("roleRef", {})
    if not ref.get("apiGroup"):
        ref["apiGroup"] = GROUP
    for s in obj.get("subjects") or ():
        if not s.get("apiGroup") and s.get("kind") in ("User", "Group"):
            s["apiGroup"] = GROUP


def _rule(rule: Object, path: str, namespaced: bool) -> Errors:
    if not rule.get("verbs"):
        yield required(f"{path}.verbs", "verbs must contain at least one value")
    urls = rule.get("nonResourceURLs")
    if urls:
        if namespaced:
            yield invalid(f"{path}.nonResourceURLs", urls, "namespaced rules cannot apply to non-resource URLs")
        if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
            yield invalid(f"{path}.nonResourceURLs", urls, "rules cannot apply to both regular resources and non-resource URLs")
        return
    if not rule.get("apiGroups"):
        yield required(f"{path}.apiGroups", "resource rules must supply at least one api group")
    if not rule.get("resources"):
        yield required(f"{path}.resources", "resource rules must supply at least one resource")


def validate_role(obj: Object, old: Object | None = None) -> Errors:
    for i, rule in enumerate(obj.get("rules") or ()):
        yield from _rule(rule, f"rules[{i}]", True)


def validate_cluster_role(obj: Object, old: Object | None = None) -> Errors:
    for i, rule in enumerate(obj.get("rules") or ()):
        yield from _rule(rule, f"rules[{i}]", False)
    aggregation = obj.get("aggregationRule")
    if aggregation is None:
        return
    path = "aggregationRule.clusterRoleSelectors"
    selectors = aggregation.get("clusterRoleSelectors") or ()
    if not selectors:
        yield required(path, "at least one clusterRoleSelector required if aggregationRule is non-nil")
    for i, selector in enumerate(selectors):
        yield from validate_label_selector(selector, f"{path}[{i}]")
        if selector_of(selector) is None:
            yield invalid(f"{path}[{i}]", None, "invalid label selector.")


def _binding(obj: Object, kinds: tuple[str, ...], namespaced: bool) -> Errors:
    ref = obj.get("roleRef") or {}
    if ref.get("apiGroup") != GROUP:
        yield not_supported("roleRef.apiGroup", ref.get("apiGroup") or "", (GROUP,))
    if ref.get("kind") not in kinds:
        yield not_supported("roleRef.kind", ref.get("kind") or "", kinds)
    name = ref.get("name") or ""
    if not name:
        yield required("roleRef.name")
    else:
        yield from messages(name, names.is_path_segment_name(name), "roleRef.name")
    for i, subject in enumerate(obj.get("subjects") or ()):
        yield from _subject(subject, f"subjects[{i}]", namespaced)


def _subject(subject: Object, path: str, namespaced: bool) -> Errors:
    name, kind, group = subject.get("name") or "", subject.get("kind") or "", subject.get("apiGroup") or ""
    if not name:
        yield required(f"{path}.name")
    if kind == "ServiceAccount":
        if name:
            yield from messages(name, names.is_dns1123_subdomain(name), f"{path}.name")
        if group:
            yield not_supported(f"{path}.apiGroup", group, ("",))
        if not namespaced and not subject.get("namespace"):
            yield required(f"{path}.namespace")
    elif kind in ("User", "Group"):
        if group != GROUP:
            yield not_supported(f"{path}.apiGroup", group, (GROUP,))
    else:
        yield not_supported(f"{path}.kind", kind, ("ServiceAccount", "User", "Group"))


def validate_role_binding(obj: Object) -> Errors:
    return _binding(obj, ("Role", "ClusterRole"), True)


def validate_cluster_role_binding(obj: Object) -> Errors:
    return _binding(obj, ("ClusterRole",), False)


def _role_ref_fixed(new: Object, old: Object) -> Errors:
    ref, before = new.get("roleRef") or {}, old.get("roleRef") or {}
    if any((ref.get(k) or "") != (before.get(k) or "") for k in ("apiGroup", "kind", "name")):
        yield invalid("roleRef", form(ref, "rbac.RoleRef"), "cannot change roleRef")


def validate_role_binding_update(new: Object, old: Object) -> Errors:
    yield from validate_role_binding(new)
    yield from _role_ref_fixed(new, old)


def validate_cluster_role_binding_update(new: Object, old: Object) -> Errors:
    yield from validate_cluster_role_binding(new)
    yield from _role_ref_fixed(new, old)


KINDS: KindTable = {
    (GROUP, "Role"): Kind(
        validate=listed(validate_role), validate_update=listed(validate_role), name_check=names.name_is_path_segment, meta_again=1, create_on_update=True),
    (GROUP, "ClusterRole"): Kind(
        validate=listed(validate_cluster_role), validate_update=listed(validate_cluster_role), name_check=names.name_is_path_segment, meta_again=1,
        create_on_update=True),
    (GROUP, "RoleBinding"): Kind(
        defaults=default_binding, validate=listed(validate_role_binding), validate_update=listed(validate_role_binding_update),
        name_check=names.name_is_path_segment, meta_again=1, create_on_update=True),
    (GROUP, "ClusterRoleBinding"): Kind(
        defaults=default_binding, validate=listed(validate_cluster_role_binding),
        validate_update=listed(validate_cluster_role_binding_update), name_check=names.name_is_path_segment, meta_again=1, create_on_update=True),
}
