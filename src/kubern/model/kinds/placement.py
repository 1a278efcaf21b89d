"""Where a pod may run: node selectors, affinity, tolerations, taints, topology spread.

Generators of errors over the v1 shape, in upstream's order. Upstream: pkg/apis/core/validation (the functions of the same nouns),
KEP-3633 (matchLabelKeys), KEP-3094 (inclusion policies).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kubern.model import names
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_supported, required
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.labels import messages, validate_label_name, validate_label_selector
from kubern.model.object import Object

Errors = Iterator[FieldError]
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


# Node selectors ----------------------------------------------------------------------------------------------------------------

def validate_node_selector(selector: Object, path: str, any_value: bool = False) -> Errors:
    terms = selector.get("nodeSelectorTerms")
    if not terms:
        yield required(f"{path}.nodeSelectorTerms", "must have at least one node selector term")
        return
    for i, term in enumerate(terms):
        yield from validate_node_selector_term(term, f"{path}.nodeSelectorTerms[{i}]", any_value)


def validate_node_selector_term(term: Object, path: str, any_value: bool) -> Errors:
    for i, r in enumerate(term.get("matchExpressions") or ()):
        yield from _node_requirement(r, f"{path}.matchExpressions[{i}]", any_value)
    for i, r in enumerate(term.get("matchFields") or ()):
        yield from _node_field(r, f"{path}.matchFields[{i}]")


def _node_requirement(r: Object, path: str, any_value: bool) -> Errors:
    operator, values = r.get("operator", ""), r.get("values") or ()
    if operator in ("In", "NotIn"):
        if not values:
            yield required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            yield forbidden(f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    elif operator in ("Gt", "Lt"):
        if len(values) != 1:
            yield required(f"{path}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
    else:
        yield invalid(f"{path}.operator", operator, "not a valid selector operator")
    yield from validate_label_name(r.get("key", ""), f"{path}.key")
    if not any_value:
        for i, value in enumerate(values):
            yield from messages(f"{path}.values[{i}]", value, names.is_label_value(value))


def _node_field(r: Object, path: str) -> Errors:
    values = r.get("values") or ()
    if r.get("operator", "") in ("In", "NotIn"):
        if len(values) != 1:
            yield required(f"{path}.values", "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
    else:
        yield invalid(f"{path}.operator", r.get("operator", ""), "not a valid selector operator")
    if r.get("key", "") != "metadata.name":
        yield invalid(f"{path}.key", r.get("key", ""), "not a valid field selector key")
        return
    for i, value in enumerate(values):
        yield from messages(f"{path}.values[{i}]", value, names.name_is_dns_subdomain(value))


def bad_values_in_terms(terms: Sequence[Object] | None) -> bool:
    """Some value is no label value: allowed where it is stored already."""
    return any(names.is_label_value(v) for t in terms or () for e in t.get("matchExpressions") or () for v in e.get("values") or ())


# Affinity ----------------------------------------------------------------------------------------------------------------------

def validate_affinity(affinity: Object, path: str, any_node_value: bool, any_pod_value: bool) -> Errors:
    if (node := affinity.get("nodeAffinity")) is not None:
        if (selector := node.get(REQUIRED)) is not None:
            yield from validate_node_selector(selector, f"{path}.nodeAffinity.{REQUIRED}", any_node_value)
        for i, term in enumerate(node.get(PREFERRED) or ()):
            here = f"{path}.nodeAffinity.{PREFERRED}[{i}]"
            yield from _weight(term, here)
            yield from validate_node_selector_term(term.get("preference") or {}, f"{here}.preference", True)
    for kind in ("podAffinity", "podAntiAffinity"):
        if (rules := affinity.get(kind)) is not None:
            for i, term in enumerate(rules.get(REQUIRED) or ()):
                yield from _pod_term(term, f"{path}.{kind}.{REQUIRED}[{i}]", any_pod_value)
            for i, weighted in enumerate(rules.get(PREFERRED) or ()):
                here = f"{path}.{kind}.{PREFERRED}[{i}]"
                yield from _weight(weighted, here)
                yield from _pod_term(weighted.get("podAffinityTerm") or {}, f"{here}.podAffinityTerm", any_pod_value)


def _weight(term: Object, path: str) -> Errors:
    weight = term.get("weight", 0)
    if not 0 < weight <= 100:
        yield invalid(f"{path}.weight", weight, "must be in the range 1-100")


def _pod_term(term: Object, path: str, any_value: bool) -> Errors:
    yield from pod_term_selectors(term, path, any_value)
    for ns in term.get("namespaces") or ():
        yield from messages(f"{path}.namespace", ns, names.name_is_dns_label(ns))
    yield from match_label_keys(path, term.get("matchLabelKeys") or (), term.get("mismatchLabelKeys") or (), term.get("labelSelector"))
    key = term.get("topologyKey", "")
    if not key:
        yield required(f"{path}.topologyKey", "can not be empty")
    yield from validate_label_name(key, f"{path}.topologyKey")


def pod_term_selectors(term: Object, path: str, any_value: bool = False) -> Errors:
    yield from validate_label_selector(term.get("labelSelector"), f"{path}.labelSelector", any_value)
    yield from validate_label_selector(term.get("namespaceSelector"), f"{path}.namespaceSelector", any_value)


def pod_affinity_terms(affinity: Object | None) -> Iterator[Object]:
    """Every term of pod affinity and anti-affinity."""
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = (affinity or {}).get(kind) or {}
        yield from rules.get(REQUIRED) or ()
        for weighted in rules.get(PREFERRED) or ():
            yield weighted.get("podAffinityTerm") or {}


def match_label_keys(path: str, match: Sequence[str], mismatch: Sequence[str], selector: Object | None) -> Errors:
    """matchLabelKeys and mismatchLabelKeys, which are merged into the selector when a pod is created."""
    for which, keys in (("matchLabelKeys", match), ("mismatchLabelKeys", mismatch)):
        if keys and selector is None:
            yield forbidden(f"{path}.{which}", "must not be specified when labelSelector is not set")
        elif keys:
            for i, key in enumerate(keys):
                yield from validate_label_name(key, f"{path}.{which}[{i}]")
    if selector is not None and match:
        position = {key: i for i, key in enumerate(match)}
        seen = set(selector.get("matchLabels") or ())
        for e in selector.get("matchExpressions") or ():
            key = e.get("key", "")
            if key in position and key in seen:
                yield invalid(f"{path}[{position[key]}]", key, "exists in both matchLabelKeys and labelSelector")
            seen.add(key)
    for i, key in enumerate(match):
        if key in mismatch:
            yield invalid(f"{path}.matchLabelKeys[{i}]", key, "exists in both matchLabelKeys and mismatchLabelKeys")


# Topology spread ---------------------------------------------------------------------------------------------------------------

def validate_topology_spread(constraints: Sequence[Object], path: str, legacy_keys: bool = False, any_selector: bool = False) -> Errors:
    for i, c in enumerate(constraints):
        here = f"{path}[{i}]"
        skew, key, action = c.get("maxSkew", 0), c.get("topologyKey", ""), c.get("whenUnsatisfiable", "")
        if skew <= 0:
            yield invalid(f"{here}.maxSkew", skew, "must be greater than zero")
        if not key:
            yield required(f"{here}.topologyKey", "can not be empty")
        if action not in ("DoNotSchedule", "ScheduleAnyway"):
            yield not_supported(f"{here}.whenUnsatisfiable", action, ("DoNotSchedule", "ScheduleAnyway"))
        if any(key == o.get("topologyKey", "") and action == o.get("whenUnsatisfiable", "") for o in constraints[i + 1:]):
            yield duplicate(f"{here}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {action}}}")
        domains = c.get("minDomains")
        if domains is not None:
            if domains <= 0:
                yield invalid(f"{here}.minDomains", domains, "must be greater than zero")
            if action != "DoNotSchedule":
                yield invalid(f"{here}.minDomains", domains, f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}")
        for policy in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            if c.get(policy) is not None and c[policy] not in ("Honor", "Ignore"):
                yield not_supported(f"{here}.{policy}", c[policy], ("Honor", "Ignore"))
        if legacy_keys:
            yield from _legacy_match_label_keys(f"{here}.matchLabelKeys", c.get("matchLabelKeys") or (), c.get("labelSelector"))
        else:
            yield from match_label_keys(here, c.get("matchLabelKeys") or (), (), c.get("labelSelector"))
        if not any_selector:
            yield from validate_label_selector(c.get("labelSelector"), f"{here}.labelSelector")


def _legacy_match_label_keys(path: str, keys: Sequence[str], selector: Object | None) -> Errors:
    if not keys:
        return
    have: set[str] = set()
    if selector is None:
        yield forbidden(path, "must not be specified when labelSelector is not set")
    else:
        have = {*(selector.get("matchLabels") or ()), *(e.get("key", "") for e in selector.get("matchExpressions") or ())}
    for i, key in enumerate(keys):
        yield from validate_label_name(key, f"{path}[{i}]")
        if key in have:
            yield invalid(f"{path}[{i}]", key, "exists in both matchLabelKeys and labelSelector")


# Tolerations and taints --------------------------------------------------------------------------------------------------------

def validate_tolerations(tolerations: Sequence[Object], path: str, comparisons: bool = False) -> Errors:
    """`comparisons`: Lt and Gt are stored already (KEP-5471, off by default)."""
    for i, t in enumerate(tolerations):
        here = f"{path}[{i}]"
        key, operator, value, effect = (t.get(f, "") for f in ("key", "operator", "value", "effect"))
        if key:
            yield from validate_label_name(key, f"{here}.key")
        elif operator != "Exists":
            yield invalid(f"{here}.operator", operator,
                          'operator must be Exists when `key` is empty, which means "match all values and all keys"')
        if t.get("tolerationSeconds") is not None and effect != "NoExecute":
            yield invalid(f"{here}.effect", effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
        yield from _toleration_operator(operator, value, here, comparisons)
        if effect:
            yield from taint_effect(effect, f"{here}.effect")


def _toleration_operator(operator: str, value: str, path: str, comparisons: bool) -> Errors:
    if operator in ("Equal", ""):
        if errors := names.is_label_value(value):
            yield invalid(f"{path}.operator", value, ";".join(errors))
    elif operator == "Exists":
        if value:
            yield invalid(f"{path}.operator", value, "value must be empty when `operator` is 'Exists'")
    elif operator in ("Lt", "Gt"):
        if not comparisons:
            yield not_supported(f"{path}.operator", operator, ("Equal", "Exists", "Lt", "Gt"))
        else:
            yield from messages(f"{path}.value", value, names.is_decimal_integer(value))
    else:
        yield not_supported(f"{path}.operator", operator, ("Equal", "Exists"))


def taint_effect(effect: str, path: str) -> Errors:
    if effect not in TAINT_EFFECTS:
        yield not_supported(path, effect, TAINT_EFFECTS)


def validate_taints(taints: Sequence[Object], path: str) -> Errors:
    seen: set[tuple[str, str]] = set()
    for i, t in enumerate(taints):
        here, effect = f"{path}[{i}]", t.get("effect", "")
        yield from validate_label_name(t.get("key", ""), f"{here}.key")
        if errors := names.is_label_value(t.get("value", "")):
            yield invalid(f"{here}.value", t.get("value", ""), ";".join(errors))
        if not effect:
            yield required(f"{here}.effect")
        else:
            yield from taint_effect(effect, f"{here}.effect")
        if (effect, t.get("key", "")) in seen:
            yield FieldError("FieldValueDuplicate", here, struct("Taint", t), "taints must be unique by key and effect pair")
            continue
        seen.add((effect, t.get("key", "")))


# What may change ---------------------------------------------------------------------------------------------------------------

def only_added_tolerations(new: Sequence[Object], old: Sequence[Object], path: str, comparisons: bool) -> Errors:
    """Existing tolerations stay, apart from their seconds."""
    def bare(t: Object) -> dict[str, Any]:
        return {k: v for k, v in t.items() if k != "tolerationSeconds" and v}

    kept = [bare(t) for t in new]
    for t in old:
        if bare(t) not in kept:
            yield forbidden(path, "existing toleration can not be modified except its tolerationSeconds")
            return
    yield from validate_tolerations(new, path, comparisons)


def only_tightened_node_affinity(new: Object | None, old: Object | None, path: str) -> Errors:
    """A gated pod's required node affinity may be narrowed, never widened (KEP-3838)."""
    before = ((old or {}).get(REQUIRED) or {}).get("nodeSelectorTerms") or []
    if (old or {}).get(REQUIRED) is None:
        return
    after = ((new or {}).get(REQUIRED) or {}).get("nodeSelectorTerms") or []
    here = f"{path}.{REQUIRED}.nodeSelectorTerms"
    if before and len(before) != len(after):
        yield invalid(here, [struct("NodeSelectorTerm", t) for t in after] or None,
                      "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
        return
    for i, term in enumerate(before):
        if not _only_additions(after[i], term):
            yield invalid(f"{here}[{i}]", struct("NodeSelectorTerm", after[i]), "only additions are allowed (no mutations or deletions)")


def _only_additions(new: Object, old: Object) -> bool:
    parts = ("matchExpressions", "matchFields")
    if not any(old.get(p) for p in parts):
        return not any(new.get(p) for p in parts)
    return all((new.get(p) or [])[:len(old.get(p) or [])] == (old.get(p) or []) for p in parts)
