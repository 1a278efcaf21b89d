"""Which nodes a selector of nodes means: nodeSelector, required node affinity, a volume's node affinity.

Upstream: component-helpers scheduling/corev1/nodeaffinity.
"""

from __future__ import annotations

from typing import Any

from kubern.model.object import Object, labels, name


def _int(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _fits(requirement: dict[str, Any], value: str | None) -> bool:
    operator, values = requirement.get("operator"), requirement.get("values") or []
    if operator == "In":
        return value is not None and value in values
    if operator == "NotIn":
        return value is None or value not in values
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    have, want = _int(value), _int(values[0] if values else None)
    if have is None or want is None:
        return False
    return have > want if operator == "Gt" else have < want


def term_matches(term: dict[str, Any], node: Object) -> bool:
    """An empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    have = labels(node)
    return all(_fits(e, have.get(e.get("key") or "")) for e in expressions) and \
        all(e.get("key") == "metadata.name" and _fits(e, name(node)) for e in fields)


def selector_matches(node_selector: dict[str, Any] | None, node: Object) -> bool:
    """A NodeSelector: any of its terms; None matches every node."""
    return node_selector is None or any(term_matches(t, node) for t in node_selector.get("nodeSelectorTerms") or ())


def pod_matches(pod_spec: dict[str, Any], node: Object) -> bool:
    """nodeSelector and required node affinity of a pod."""
    have = labels(node)
    if any(have.get(k) != v for k, v in (pod_spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((pod_spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    return selector_matches(affinity, node)
