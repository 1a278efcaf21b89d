"""ValidatingAdmissionPolicy status: which generation was looked at, and which expressions do not fit the types of what it matches.

The types are those of model/cel/policies.py. Upstream: pkg/controller/validatingadmissionpolicystatus.
"""

from __future__ import annotations

from kubern.model.controller import Controller, Steps
from kubern.model.intent import Patch
from kubern.model.object import Object, meta, name
from kubern.model.view import View

CRDS = "customresourcedefinitions.apiextensions.k8s.io"


def reconcile(policy: Object, view: View, now: float) -> Steps:
    generation = meta(policy).get("generation") or 0
    if generation <= ((policy.get("status") or {}).get("observedGeneration") or 0):
        return
    from kubern.model.cel.policies import warnings

    found = [{"fieldRef": f, "warning": w} for f, w in warnings(policy, view.list(CRDS))]
    body = {"apiVersion": policy["apiVersion"], "kind": policy["kind"], "metadata": {"name": name(policy)},
            "status": {"observedGeneration": generation, "typeChecking": {"expressionWarnings": found} if found else {}}}
    yield Patch(policy["apiVersion"], policy["kind"], "", name(policy), body, "apply", "status", "validatingadmissionpolicy-status", True)


CONTROLLER = Controller("validatingadmissionpolicy-status-controller", "validatingadmissionpolicies.admissionregistration.k8s.io", reconcile,
                        reads=(CRDS,))
