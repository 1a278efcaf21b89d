"""Leeway: what an update may keep although no new object may have it, because the stored one has it already.

In: the old pod spec and annotations. Out: flags that the validators read. Upstream: pkg/api/pod/util.go
(GetValidationOptionsFromPodSpecAndMeta), with the feature gates of a default 1.36 cluster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kubern.model.kinds import sysctls
from kubern.model.kinds.labels import selector_is_valid
from kubern.model.kinds.placement import REQUIRED, bad_values_in_terms, match_label_keys, pod_affinity_terms, pod_term_selectors
from kubern.model.kinds.pod_resources import is_huge_page, is_sidecar
from kubern.model.object import Object
from kubern.model.quantity import QuantityError, parse

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


@dataclass(frozen=True, slots=True)
class Leeway:
    is_pod: bool = False                    # a Pod itself, not a template: a few rules are for pods only
    deletion_cost: bool = False             # the annotation is no number
    affinity_values: bool = False           # selectors of pod affinity hold what is no label value
    node_affinity_values: bool = False
    huge_pages: bool = False                # amounts are no multiples of the page size
    spread_selectors: bool = False
    spread_keys: bool = False               # matchLabelKeys break the rule for merged selectors
    token_paths: bool = False               # a projected token's path is not local
    host_sysctls: bool = False
    any_selinux_policy: bool = False
    comparisons: bool = False               # tolerations with Lt and Gt
    host_network_without_host_users: bool = False
    devices_without_host_users: bool = False
    init_restart_on_resize: bool = False


FOR_POD = Leeway(is_pod=True)
FOR_TEMPLATE = Leeway()


def deletion_cost_is_bad(annotations: dict[str, str] | None) -> bool:
    value = (annotations or {}).get(DELETION_COST)
    if value is None:
        return False
    return not (re.fullmatch("0|[1-9][0-9]{0,18}|-[0-9]{1,18}", value, re.ASCII) and -(1 << 31) <= int(value) < 1 << 31)


def leeway(old_spec: Object | None, old_annotations: dict[str, str] | None = None, is_pod: bool = False) -> Leeway:
    """For an update of a pod or template whose stored spec is `old_spec`; None on create."""
    if old_spec is None:
        return FOR_POD if is_pod else FOR_TEMPLATE
    security = old_spec.get("securityContext") or {}
    affinity = old_spec.get("affinity")
    spread = old_spec.get("topologySpreadConstraints") or ()
    no_host_users = old_spec.get("hostUsers") is False
    node_terms = ((((affinity or {}).get("nodeAffinity") or {}).get(REQUIRED)) or {}).get("nodeSelectorTerms")
    return Leeway(
        is_pod=is_pod,
        deletion_cost=bool(old_annotations) and deletion_cost_is_bad(old_annotations),
        affinity_values=bool(affinity) and any(True for t in pod_affinity_terms(affinity) for _ in pod_term_selectors(t, "")),
        node_affinity_values=bad_values_in_terms(node_terms),
        huge_pages=_indivisible_huge_pages(old_spec),
        spread_selectors=any(not selector_is_valid(c.get("labelSelector")) for c in spread),
        spread_keys=any(True for c in spread for _ in match_label_keys("", c.get("matchLabelKeys") or (), (), c.get("labelSelector"))),
        token_paths=_nonlocal_token(old_spec),
        host_sysctls=any(_host_sysctl(s.get("name", ""), old_spec) for s in security.get("sysctls") or ()),
        any_selinux_policy=security.get("seLinuxChangePolicy") is not None,
        comparisons=any(t.get("operator") in ("Lt", "Gt") for t in old_spec.get("tolerations") or ()),
        host_network_without_host_users=no_host_users and bool(old_spec.get("hostNetwork")),
        devices_without_host_users=no_host_users and any(c.get("volumeDevices") for c in _all(old_spec)),
        init_restart_on_resize=any(p.get("restartPolicy") == "RestartContainer" for c in old_spec.get("initContainers") or ()
                                   if not is_sidecar(c) for p in c.get("resizePolicy") or ()),
    )


def _all(spec: Object) -> list[Object]:
    return [c for which in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(which) or ()]


def _host_sysctl(name: str, spec: Object) -> bool:
    return next(sysctls.host_sysctl(name, bool(spec.get("hostNetwork")), bool(spec.get("hostIPC")), ""), None) is not None


def _nonlocal_token(spec: Object) -> bool:
    from kubern.model.kinds.references import local_path

    return any(next(local_path((s.get("serviceAccountToken") or {}).get("path", ""), ""), None) is not None
               for v in spec.get("volumes") or () for s in (v.get("projected") or {}).get("sources") or ())


def _indivisible_huge_pages(spec: Object) -> bool:
    lists = [(c.get("resources") or {}).get(side) or {} for c in _all(spec) for side in ("limits", "requests")]
    for amounts in (*lists, spec.get("overhead") or {}):
        for name, text in amounts.items():
            if is_huge_page(name):
                try:
                    page = parse(name.partition("-")[2]).amount
                except QuantityError:
                    return True
                if page <= 0 or parse(str(text)).amount % page:
                    return True
    return False
