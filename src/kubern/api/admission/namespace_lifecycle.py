"""NamespaceLifecycle: nothing is made in a namespace that does not exist or is going; a few namespaces never go.

Upstream: apiserver admission/plugin/namespace/lifecycle.
"""

from __future__ import annotations

from kubern.api.admission.attributes import CREATE, DELETE, UPDATE, Attributes, Plugin
from kubern.model.status import forbidden, not_found

IMMORTAL = frozenset(("default", "kube-system", "kube-public"))


async def mutate(a: Attributes) -> None:
    r = a.resource
    if r.plural == "namespaces" and r.group == "":
        if a.operation == DELETE and a.name in IMMORTAL:
            raise forbidden("", "namespaces", a.name, "this namespace may not be deleted")
        return
    if not a.namespace or a.operation == DELETE or (r.plural == "localsubjectaccessreviews" and r.group == "authorization.k8s.io"):
        return
    namespace = a.reader.get("namespaces", "", a.namespace)
    if namespace is None:
        raise not_found("", "namespaces", a.namespace)
    if a.operation == CREATE and (namespace.get("status") or {}).get("phase") == "Terminating":
        error = a.refuse(f"unable to create new content in namespace {a.namespace} because it is being terminated")
        assert error.details is not None
        error.details["causes"] = [{"reason": "NamespaceTerminating", "message": f"namespace {a.namespace} is being terminated",
                                    "field": "metadata.namespace"}]
        raise error


PLUGIN = Plugin("NamespaceLifecycle", (CREATE, UPDATE, DELETE), ("*",), mutate=mutate)
