"""ValidatingAdmissionPolicy status: says which generation was looked at. Upstream: pkg/controller/validatingadmissionpolicystatus.

Type warnings come from `check`, given by the composition root; without it none are found.
"""

from __future__ import annotations

from kubern.controllers.context import Context
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Patch
from kubern.model.object import Object, meta, name
from kubern.model.view import View


def controller(context: Context) -> Controller:
    def reconcile(policy: Object, view: View, now: float) -> Steps:
        generation = meta(policy).get("generation") or 0
        if generation <= ((policy.get("status") or {}).get("observedGeneration") or 0):
            return
        warnings = context.check_policy(policy) if context.check_policy is not None else []
        checking = {"expressionWarnings": [{"fieldRef": f, "warning": w} for f, w in warnings]} if warnings else {}
        body = {"apiVersion": policy["apiVersion"], "kind": policy["kind"], "metadata": {"name": name(policy)},
                "status": {"observedGeneration": generation, "typeChecking": checking}}
        yield Patch(policy["apiVersion"], policy["kind"], "", name(policy), body, "apply", "status",
                    "validatingadmissionpolicy-status", True)

    return Controller("validatingadmissionpolicy-status-controller", "validatingadmissionpolicies.admissionregistration.k8s.io", reconcile)
