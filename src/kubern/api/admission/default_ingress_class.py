"""DefaultIngressClass: an Ingress that names no class gets the default one, the newest of several.

Upstream: plugin/pkg/admission/network/defaultingressclass.
"""

from __future__ import annotations

from kubern.api.admission.attributes import CREATE, Attributes, Plugin, annotations_of, spec_of

CLASSES = "ingressclasses.networking.k8s.io"
IS_DEFAULT = "ingressclass.kubernetes.io/is-default-class"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"


async def mutate(a: Attributes) -> None:
    assert a.obj is not None
    spec = spec_of(a.obj)
    if spec.get("ingressClassName") is not None or CLASS_ANNOTATION in annotations_of(a.obj):
        return
    found = sorted((c for c in a.reader.list(CLASSES) if annotations_of(c).get(IS_DEFAULT) == "true"), key=lambda c: c["metadata"]["name"])
    if found:
        spec["ingressClassName"] = max(found, key=lambda c: c["metadata"].get("creationTimestamp") or "")["metadata"]["name"]


PLUGIN = Plugin("DefaultIngressClass", (CREATE,), ("ingresses.networking.k8s.io",), mutate=mutate)
