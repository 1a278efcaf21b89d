"""PodTopologyLabels: a pod learns by its labels in which zone and region it runs, when it is bound.

A Binding gets the node's labels (the binding verb copies a Binding's labels to the pod); a pod created on a node gets them itself.
Upstream: plugin/pkg/admission/podtopologylabels; KEP-4742.
"""

from __future__ import annotations

from kubern.api.admission.attributes import CREATE, Attributes, Plugin

LABELS = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone")


async def mutate(a: Attributes) -> None:
    assert a.obj is not None
    if a.what == "pods":
        node_name = (a.obj.get("spec") or {}).get("nodeName") or ""
    else:
        target = a.obj.get("target") or {}
        node_name = target.get("name") or "" if target.get("kind") == "Node" else ""
    node = a.reader.get("nodes", "", node_name) if node_name else None
    if node is None:
        return
    labels = node["metadata"].get("labels") or {}
    found = {k: labels[k] for k in LABELS if k in labels}
    if found:
        m = a.obj.setdefault("metadata", {})
        m["labels"] = {**(m.get("labels") or {}), **found}


PLUGIN = Plugin("PodTopologyLabels", (CREATE,), ("pods", "pods/binding", "bindings"), mutate=mutate)
