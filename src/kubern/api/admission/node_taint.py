"""TaintNodesByCondition: a new node is not ready until its controller says so.

Upstream: plugin/pkg/admission/nodetaint.
"""

from __future__ import annotations

from kubern.api.admission.attributes import CREATE, Attributes, Plugin, spec_of

NOT_READY = {"effect": "NoSchedule", "key": "node.kubernetes.io/not-ready"}


async def mutate(a: Attributes) -> None:
    spec = spec_of(a.obj)
    taints = spec.get("taints") or []
    if not any(t.get("key") == NOT_READY["key"] and t.get("effect") == NOT_READY["effect"] for t in taints):
        spec["taints"] = [*taints, dict(NOT_READY)]


PLUGIN = Plugin("TaintNodesByCondition", (CREATE,), ("nodes",), mutate=mutate)
