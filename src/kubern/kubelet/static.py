"""Static pods: manifests in a directory, run without the API and shown there by mirror pods.

Upstream: pkg/kubelet/config/file.go, pkg/kubelet/pod/mirror_client.go.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Any

from kubern.kubelet import pods
from kubern.model.object import Object

log = logging.getLogger(__name__)


def read_manifests(folder: str, node: str) -> dict[str, Object]:
    """uid -> pod of every manifest; a file that is none is left out and logged."""
    import yaml

    out: dict[str, Object] = {}
    try:
        names = sorted(n for n in os.listdir(folder) if not n.startswith("."))
    except OSError:
        return out
    for name in names:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as f:
                text = f.read()
            for doc in yaml.safe_load_all(text):
                if isinstance(doc, dict) and doc.get("kind") == "Pod":
                    pod = complete(doc, path, node)
                    out[pod["metadata"]["uid"]] = pod
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as e:
            log.warning("static pod %s: %s", path, e)
    return out


def complete(doc: dict[str, Any], path: str, node: str) -> Object:
    """The manifest with name, uid and the defaults that containers need."""
    digest = hashlib.md5(repr((doc, path, node)).encode(), usedforsecurity=False).hexdigest()
    m = doc["metadata"]
    spec = doc["spec"]
    meta = {**m, "name": f"{m['name']}-{node}", "namespace": m.get("namespace") or "default", "uid": m.get("uid") or digest,
            "annotations": {**(m.get("annotations") or {}), pods.STATIC_SOURCE: "file", "kubernetes.io/config.hash": digest}}
    for key in ("containers", "initContainers"):
        for c in spec.get(key) or ():
            c.setdefault("terminationMessagePath", "/dev/termination-log")
            c.setdefault("terminationMessagePolicy", "File")
            c.setdefault("resources", {})
    full = {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30, "enableServiceLinks": True, **spec,
            "nodeName": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": full, "status": {"phase": "Pending"}}


def mirror_of(pod: Object, node: Object) -> Object:
    """What the API shows of it."""
    m = pod["metadata"]
    notes = {**(m.get("annotations") or {}), pods.MIRROR: m["annotations"]["kubernetes.io/config.hash"]}
    meta = {"name": m["name"], "namespace": m["namespace"], "annotations": notes, **({"labels": m["labels"]} if m.get("labels") else {}),
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node["metadata"]["name"], "uid": node["metadata"]["uid"],
                                 "controller": True}]}
    tolerations = [*(pod["spec"].get("tolerations") or ()), {"operator": "Exists", "effect": "NoExecute"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {**pod["spec"], "tolerations": tolerations}}
