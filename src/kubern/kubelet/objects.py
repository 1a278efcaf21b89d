"""Objects of the API that pods on this node refer to: config maps, secrets, services, tokens, claims.

Each config map and secret is watched alone, as long as a pod here uses it: a node may see no others. `lookup` reads the local copies;
`ensure` waits until those a pod needs are there. Tokens are renewed at 80 % of their life. Upstream: pkg/kubelet/util/manager
(watch-based), pkg/kubelet/token; KEP-542, KEP-1205.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kubern.client.client import Client
from kubern.client.watch import follow
from kubern.kubelet import pods
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

ROWS = {"configmaps": by_path["", "v1", "configmaps"], "secrets": by_path["", "v1", "secrets"],
        "clustertrustbundles": by_path.get(("certificates.k8s.io", "v1beta1", "clustertrustbundles"))}
SERVICE_ACCOUNTS = by_path["", "v1", "serviceaccounts"]
CLAIMS, VOLUMES = by_path["", "v1", "persistentvolumeclaims"], by_path["", "v1", "persistentvolumes"]
FIRST_READ_S = 10.0
TOKEN_OLDEST_S = 24 * 3600.0

Key = tuple[str, str, str]                        # (plural, namespace, name)


def references(pod: Object) -> Iterator[Key]:
    """Every config map and secret a pod's containers, volumes and pulls refer to."""
    spec = pod["spec"]
    namespace = pod["metadata"].get("namespace") or ""
    for ref in spec.get("imagePullSecrets") or ():
        if ref.get("name"):
            yield "secrets", namespace, ref["name"]
    for _, c in pods.every_container(spec):
        for e in c.get("envFrom") or ():
            if e.get("configMapRef"):
                yield "configmaps", namespace, e["configMapRef"].get("name") or ""
            if e.get("secretRef"):
                yield "secrets", namespace, e["secretRef"].get("name") or ""
        for e in c.get("env") or ():
            source = e.get("valueFrom") or {}
            if source.get("configMapKeyRef"):
                yield "configmaps", namespace, source["configMapKeyRef"].get("name") or ""
            if source.get("secretKeyRef"):
                yield "secrets", namespace, source["secretKeyRef"].get("name") or ""
    for v in spec.get("volumes") or ():
        for part in ((v.get("projected") or {}).get("sources") or [v]):
            if part.get("configMap"):
                yield "configmaps", namespace, part["configMap"].get("name") or ""
            if part.get("secret"):
                yield "secrets", namespace, part["secret"].get("secretName") or part["secret"].get("name") or ""
            if part.get("clusterTrustBundle") and part["clusterTrustBundle"].get("name"):
                yield "clustertrustbundles", "", part["clusterTrustBundle"]["name"]


@dataclass(slots=True)
class _Watched:
    task: asyncio.Task[None]
    known: asyncio.Event
    users: set[str] = field(default_factory=set)
    obj: Object | None = None


class Objects:
    """`changed(uid)` is called for every pod that uses an object that changed."""

    def __init__(self, client: Client | None, changed: Callable[[str], None], clock: Callable[[], float]) -> None:
        self.client, self.changed, self.clock = client, changed, clock
        self._watched: dict[Key, _Watched] = {}
        self._by_pod: dict[str, set[Key]] = {}
        self._tokens: dict[tuple[Any, ...], tuple[str, float]] = {}     # -> (token, when to renew)

    def lookup(self, plural: str, namespace: str, name: str) -> Object | None:
        found = self._watched.get((plural, namespace, name))
        return found.obj if found else None

    async def ensure(self, pod: Object) -> None:
        """Watches what the pod refers to; returns when each was read once. Raises StatusError 504 when the API does not answer."""
        if self.client is None:
            return
        uid = pod["metadata"]["uid"]
        wanted = {k for k in references(pod) if k[2] and ROWS.get(k[0])}
        for key in wanted:
            w = self._watched.get(key)
            if w is None:
                known = asyncio.Event()
                w = self._watched[key] = _Watched(asyncio.create_task(self._follow(key, known), name=f"watch-{key[0]}-{key[2]}"), known)
            w.users.add(uid)
        for key in self._by_pod.get(uid, set()) - wanted:
            self._leave(key, uid)
        self._by_pod[uid] = wanted
        for key in wanted:
            try:
                async with asyncio.timeout(FIRST_READ_S):
                    await self._watched[key].known.wait()
            except TimeoutError:
                raise StatusError(504, "Timeout", f"failed to sync {key[0][:-1]} cache: timed out waiting for the condition") from None

    def release(self, uid: str) -> None:
        for key in self._by_pod.pop(uid, set()):
            self._leave(key, uid)
        for t in [t for t in self._tokens if t[0] == uid]:
            del self._tokens[t]

    def _leave(self, key: Key, uid: str) -> None:
        w = self._watched.get(key)
        if w is not None:
            w.users.discard(uid)
            if not w.users:
                w.task.cancel()
                del self._watched[key]

    async def _follow(self, key: Key, known: asyncio.Event) -> None:
        plural, namespace, name = key
        row = ROWS[plural]
        assert self.client is not None and row is not None

        def put(obj: Object | None) -> None:
            w = self._watched.get(key)
            if w is None:
                return
            before, w.obj = w.obj, obj
            differs = (before is None) != (obj is None) or (before is not None and obj is not None and _data(before) != _data(obj))
            if known.is_set() and differs:
                for uid in list(w.users):
                    self.changed(uid)
            known.set()

        def replace(items: list[Object], _revision: int) -> None:
            put(items[0] if items else None)

        def apply(type_: str, obj: Object) -> None:
            if type_ != "BOOKMARK":
                put(None if type_ == "DELETED" else obj)

        await follow(self.client, row, replace, apply, namespace=namespace, fields=f"metadata.name={name}")

    # --- tokens ---

    async def token(self, pod: Object, projection: Mapping[str, Any]) -> str:
        """A token of the pod's service account, bound to the pod. Raises StatusError."""
        if self.client is None:
            raise StatusError(503, "ServiceUnavailable", "no API server")
        m = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        audience, seconds = projection.get("audience") or "", int(projection.get("expirationSeconds") or 3600)
        key = (m["uid"], m["namespace"], account, audience, seconds)
        known = self._tokens.get(key)
        now = self.clock()
        if known and now < known[1]:
            return known[0]
        spec: dict[str, Any] = {"audiences": [audience] if audience else [], "expirationSeconds": seconds,
                                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": m["name"], "uid": m["uid"]}}
        try:
            made = await self.client.create_in(SERVICE_ACCOUNTS, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
                                               namespace=m["namespace"], name=account, subresource="token")
        except StatusError:
            if known:
                return known[0]
            raise
        status = made["status"]
        expires = datetime.fromisoformat(status["expirationTimestamp"].replace("Z", "+00:00")).timestamp()
        life = float(made["spec"].get("expirationSeconds") or seconds)           # by the server's clock, not by ours, which may be set
        self._tokens[key] = (status["token"], expires - life + min(0.8 * life, TOKEN_OLDEST_S))
        return str(status["token"])

    # --- claims ---

    async def claim(self, namespace: str, name: str) -> tuple[Object, Object] | None:
        """A bound claim and its volume; None when there is no such claim. Raises StatusError."""
        if self.client is None:
            return None
        try:
            pvc = await self.client.get(CLAIMS, namespace, name)
        except StatusError as e:
            if e.code == 404:
                return None
            raise
        volume = pvc["spec"].get("volumeName")
        if not volume or (pvc.get("status") or {}).get("phase") != "Bound":
            raise StatusError(409, "Conflict", f"PVC {namespace}/{name} is not bound")
        return pvc, await self.client.get(VOLUMES, "", volume)

    async def close(self) -> None:
        tasks = [w.task for w in self._watched.values()]
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watched.clear()


def _data(obj: Object) -> tuple[Any, ...]:
    return obj.get("data"), obj.get("binaryData"), obj.get("spec")
