"""Voice: what the autoscaler tells people, as events about pods and nodes, and about its status ConfigMap for those without its log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kubern.autoscaler import status
from kubern.client.client import Client
from kubern.client.events import Recorder
from kubern.model.intent import Emit
from kubern.model.object import Object, meta

log = logging.getLogger(__name__)

NAME = "cluster-autoscaler"


class Voice:
    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self.recorder = Recorder(client, clock)
        self.object: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": status.NAME, "namespace": status.NAMESPACE}}

    def say(self, obj: Object, type_: str, reason: str, message: str) -> None:
        about = obj if obj.get("kind") else {**obj, "apiVersion": "v1", "kind": "Node" if not meta(obj).get("namespace") else "Pod"}
        self.recorder.emit(NAME, Emit(about, type_, reason, message))

    def note(self, type_: str, reason: str, message: str) -> None:
        """About the status ConfigMap."""
        log.info("%s", message)
        self.recorder.emit(NAME, Emit(self.object, type_, reason, message))
