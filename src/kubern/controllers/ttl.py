"""How long kubelets may keep Secrets and ConfigMaps, told by an annotation of their node: the larger the cluster, the longer.

Upstream: pkg/controller/ttl. Without its hysteresis: the steps are those of a growing cluster.
"""

from __future__ import annotations

from kubern.model.controller import Controller, Steps
from kubern.model.intent import Patch
from kubern.model.object import Object, name, notes
from kubern.model.view import View

ANNOTATION = "node.alpha.kubernetes.io/ttl"
STEPS = ((100, 0), (500, 15), (1000, 30), (2000, 60))       # up to so many nodes: seconds
LARGEST_S = 300
SETTLE_S = 1.0                  # a new node is changed by several at once, and seldom comes alone


def seconds_for(count: int) -> int:
    return next((s for most, s in STEPS if count <= most), LARGEST_S)


def reconcile(node: Object, view: View, now: float) -> Steps:
    wanted = str(seconds_for(len(list(view.list("nodes")))))
    if notes(node).get(ANNOTATION) != wanted:
        yield Patch("v1", "Node", "", name(node), {"metadata": {"annotations": {ANNOTATION: wanted}}}, "strategic", ignore_missing=True)


CONTROLLER = Controller("ttl-controller", "nodes", reconcile, component="ttl-controller",
                        after_s=SETTLE_S)
