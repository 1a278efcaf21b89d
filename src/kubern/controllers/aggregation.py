"""ClusterRoles with an aggregationRule get the rules of the roles it selects. Upstream: pkg/controller/clusterroleaggregation."""

from __future__ import annotations

from collections.abc import Iterable

from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Patch
from kubern.model.object import Key, Object, meta, name
from kubern.model.selector import from_label_selector
from kubern.model.view import View

CLUSTER_ROLES = "clusterroles.rbac.authorization.k8s.io"


def reconcile(role: Object, view: View, now: float) -> Steps:
    rule = role.get("aggregationRule")
    if not rule:
        return
    others = sorted((r for r in view.list(CLUSTER_ROLES) if name(r) != name(role)), key=name)
    wanted: list[Object] = []
    for s in rule.get("clusterRoleSelectors") or ():
        selector = from_label_selector(s)
        for other in others:
            if selector.matches(meta(other).get("labels")):
                wanted += [r for r in other.get("rules") or () if r not in wanted]
    if wanted != (role.get("rules") or []):
        body = {"apiVersion": role["apiVersion"], "kind": "ClusterRole", "metadata": {"name": name(role)}, "rules": wanted}
        yield Patch(role["apiVersion"], "ClusterRole", "", name(role), body, "apply", field_manager="clusterrole-aggregation-controller", force=True)


def _aggregated(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Every aggregating role, when rules or labels of any role change."""
    if old is not None and new is not None and old.get("rules") == new.get("rules") and meta(old).get("labels") == meta(new).get("labels"):
        return ()
    return [("", name(r)) for r in view.list(CLUSTER_ROLES) if r.get("aggregationRule")]


CONTROLLER = Controller("clusterrole-aggregation-controller", CLUSTER_ROLES, reconcile, triggers=(Trigger(CLUSTER_ROLES, _aggregated),),
                        changed=lambda old, new: old.get("aggregationRule") != new.get("aggregationRule"))
