"""Static pods: manifests in a directory, run without the API and shown there by mirror pods. Reading is pure but for the files; StaticPods is the shell.

Upstream: pkg/kubelet/config/file.go, pkg/kubelet/pod/mirror_client.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from typing import TYPE_CHECKING, Any

from kubern.kubelet import pods
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)

PODS = by_path["", "v1", "pods"]
LOOK_S = 5.0


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


class StaticPods:
    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet

    async def run(self) -> None:
        """Looks at the directory for ever: new manifests begin, missing ones end."""
        last: dict[str, Object] = {}
        while True:
            now = await asyncio.to_thread(read_manifests, self.kubelet.settings.static_pods, self.kubelet.settings.name)
            for uid, pod in now.items():
                if uid not in self.kubelet.workers:
                    self.kubelet.begin(pod)
            for uid in last.keys() - now.keys():
                w = self.kubelet.workers.get(uid)
                if w is not None:
                    self.kubelet.lost(w)
            last = now
            if self.kubelet.client is None:
                self.kubelet.sourced.set()
            else:
                await self._make_mirrors()
            await asyncio.sleep(LOOK_S)

    async def _make_mirrors(self) -> None:
        client = self.kubelet.client
        assert client is not None
        if self.kubelet.presence.node_object is None or not self.kubelet.sourced.is_set():
            return
        for w in list(self.kubelet.workers.values()):
            if pods.is_static(w.pod) and w.mirror is None and not w.gone:
                try:
                    w.mirror = await client.create(mirror_of(w.pod, self.kubelet.presence.node_object))
                    self.kubelet.report(w)
                except StatusError as e:
                    log.info("mirror of %s: %s", pods.describe(w.pod), e.message)

    def mirror_event(self, type_: str, mirror: Object) -> None:
        """A mirror pod of this node appeared, changed or went: one without its static pod is deleted."""
        notes = mirror["metadata"].get("annotations") or {}
        static = next((w for w in self.kubelet.workers.values() if pods.is_static(w.pod)
                       and (w.pod["metadata"].get("annotations") or {}).get("kubernetes.io/config.hash") == notes.get(pods.MIRROR)
                       and w.pod["metadata"]["name"] == mirror["metadata"]["name"]), None)
        if type_ == "DELETED":
            if static is not None:
                static.mirror = None
            return
        if static is not None and not mirror["metadata"].get("deletionTimestamp"):
            static.mirror = mirror
        elif self.kubelet.client is not None:
            m = mirror["metadata"]
            self.kubelet.spawn(self.delete_mirror(m["namespace"], m["name"], m["uid"]))

    async def delete_mirror(self, namespace: str, name: str, uid: str) -> None:
        client = self.kubelet.client
        assert client is not None
        with contextlib.suppress(StatusError):
            await client.delete(PODS, namespace, name, uid=uid, grace_s=0)
