"""DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or not reachable, unless it says otherwise.

Upstream: plugin/pkg/admission/defaulttolerationseconds.
"""

from __future__ import annotations

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin, spec_of

KEYS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
STAY_S = 300


async def mutate(a: Attributes) -> None:
    spec = spec_of(a.obj)
    tolerations = spec.get("tolerations") or []
    missing = [key for key in KEYS
               if not any((t.get("key") or "") in ("", key) and (t.get("effect") or "") in ("", "NoExecute") for t in tolerations)]
    if missing:
        spec["tolerations"] = [*tolerations, *({"effect": "NoExecute", "key": k, "operator": "Exists", "tolerationSeconds": STAY_S}
                                               for k in missing)]


PLUGIN = Plugin("DefaultTolerationSeconds", (CREATE, UPDATE), ("pods",), mutate=mutate)
