"""Extenders: HTTP services that filter, score, bind or choose victims besides the plugins. Upstream: pkg/scheduler/extender.go.

A call happens in a thread, with a time limit; who may be missing (ignorable) is passed over. Keys of answers are matched as Go does, without case.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from kubern.model.object import Object, name
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.preempt import Victims
from kubern.scheduler.profile import ExtenderSpec

PLUGIN = "Extender"                   # what refuses, in the queue
SCORE_FACTOR = 10                     # an extender scores 0-10, a plugin 0-100
ANSWER_BYTES_MAX = 64 << 20


class ExtenderFailed(Exception):
    """An extender that must be heard did not answer, or not usefully."""


class Extender:
    def __init__(self, spec: ExtenderSpec) -> None:
        self.spec = spec
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if spec.https or spec.tls or spec.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=_tls(spec)))
        self._opener = urllib.request.build_opener(*handlers)

    def concerns(self, p: PodInfo) -> bool:
        if not self.spec.managed:
            return True
        containers = [*(p.spec.get("containers") or ()), *(p.spec.get("initContainers") or ())]
        return any(r in self.spec.managed for c in containers for kind in ("requests", "limits") for r in (c.get("resources") or {}).get(kind) or ())

    async def _call(self, verb: str, body: Any) -> Any:
        return await asyncio.to_thread(self._post, verb, orjson.dumps(body))

    def _post(self, verb: str, body: bytes) -> Any:
        url = f"{self.spec.url.rstrip('/')}/{verb}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with self._opener.open(request, timeout=self.spec.timeout_s) as answer:
                if answer.status != 200:
                    raise ExtenderFailed(f"failed {verb} with extender at URL {url}, code {answer.status}")
                return _lower(orjson.loads(answer.read(ANSWER_BYTES_MAX)))
        except urllib.error.HTTPError as e:
            raise ExtenderFailed(f"failed {verb} with extender at URL {url}, code {e.code}") from None
        except (OSError, ValueError) as e:
            raise ExtenderFailed(f'Post "{url}": {getattr(e, "reason", e)}') from None

    def _args(self, p: PodInfo, nodes: Sequence[Object]) -> dict[str, Any]:
        if self.spec.by_name:
            return {"Pod": p.pod, "Nodes": None, "NodeNames": [name(n) for n in nodes]}
        return {"Pod": p.pod, "Nodes": {"metadata": {}, "items": list(nodes)}, "NodeNames": None}

    async def filter(self, p: PodInfo, nodes: Sequence[Object]) -> tuple[set[str], Mapping[str, str], Mapping[str, str]]:
        """(nodes that will do, {node: why not}, {node: why not, and evicting pods would not help})."""
        found = await self._call(self.spec.filter_verb, self._args(p, nodes))
        if not isinstance(found, dict):
            raise ExtenderFailed(f"extender {self.spec.url}: an answer that is no object")
        if found.get("error"):
            raise ExtenderFailed(str(found["error"]))
        given = {name(n) for n in nodes}
        if self.spec.by_name and found.get("nodenames") is not None:
            left = set(found["nodenames"])
            if strange := left - given:
                raise ExtenderFailed(f'extender "{self.spec.url}" claims a filtered node "{min(strange)}" which is not found in the input node list')
        else:
            left = {((n or {}).get("metadata") or {}).get("name") for n in (found.get("nodes") or {}).get("items") or ()} & given
        return left, found.get("failednodes") or {}, found.get("failedandunresolvablenodes") or {}

    async def scores(self, p: PodInfo, nodes: Sequence[Object]) -> dict[str, int]:
        """What it adds to each node's total."""
        found = await self._call(self.spec.prioritize_verb, self._args(p, nodes))
        return {str(x.get("host")): int(x.get("score") or 0) * self.spec.weight * SCORE_FACTOR for x in found or () if isinstance(x, dict)}

    async def bind(self, p: PodInfo, node: str) -> None:
        found = await self._call(self.spec.bind_verb, {"PodName": p.name, "PodNamespace": p.namespace, "PodUID": p.uid, "Node": node})
        if isinstance(found, dict) and found.get("error"):
            raise ExtenderFailed(str(found["error"]))

    async def victims(self, p: PodInfo, found: Sequence[Victims]) -> list[Victims]:
        """The candidates for preemption that it leaves, with the victims it names."""
        if self.spec.by_name:
            sent = {v.node: {"Pods": [{"UID": q.uid} for q in v.pods], "NumPDBViolations": v.violations} for v in found}
            answer = await self._call(self.spec.preempt_verb, {"Pod": p.pod, "NodeNameToVictims": None, "NodeNameToMetaVictims": sent})
        else:
            whole = {v.node: {"Pods": [q.pod for q in v.pods], "NumPDBViolations": v.violations} for v in found}
            answer = await self._call(self.spec.preempt_verb, {"Pod": p.pod, "NodeNameToVictims": whole, "NodeNameToMetaVictims": None})
        by_node, out = {v.node: v for v in found}, []
        for node, chosen in ((answer or {}).get("nodenametometavictims") or {}).items():
            v = by_node.get(node)
            pods = {q.uid: q for q in v.pods} if v is not None else {}
            uids = [x.get("uid") for x in (chosen or {}).get("pods") or ()]
            if v is None or any(u not in pods for u in uids):
                raise ExtenderFailed(f"extender: {self.spec.url} claims to preempt pods on node: {node}, but they are not found on that node")
            out.append(Victims(node, v.slot, tuple(pods[u] for u in uids), int(chosen.get("numpdbviolations") or 0)))
        return out


def _lower(value: Any) -> Any:
    """Field names of the protocol's own objects without case; what lies below Pod and Nodes' items, and keys that are node names, stay."""
    if isinstance(value, list):
        return [_lower(v) for v in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for k, v in value.items():
        low = k.lower()
        if low in ("nodes", "failednodes", "failedandunresolvablenodes"):
            out[low] = {a.lower(): b for a, b in v.items()} if low == "nodes" and isinstance(v, dict) else v
        elif low in ("nodenametometavictims", "nodenametovictims") and isinstance(v, dict):
            out[low] = {n: _lower(x) for n, x in v.items()}
        else:
            out[low] = _lower(v)
    return out


def _tls(spec: ExtenderSpec) -> ssl.SSLContext:
    """As client-go makes it: without a CA, HTTPS is taken on trust."""
    t = spec.tls
    ca = t.get("caFile") or t.get("caData")
    context = ssl.create_default_context(cafile=t.get("caFile"), cadata=_decoded(t["caData"]).decode() if t.get("caData") else None)
    if t.get("insecure") or not ca:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if t.get("certData") and t.get("keyData"):
        with tempfile.TemporaryDirectory() as at:             # ssl reads keys from files only
            for field, file in (("certData", "cert"), ("keyData", "key")):
                with open(os.open(os.path.join(at, file), os.O_CREAT | os.O_WRONLY, 0o600), "wb") as f:
                    f.write(_decoded(t[field]))
            context.load_cert_chain(os.path.join(at, "cert"), os.path.join(at, "key"))
    elif t.get("certFile"):
        context.load_cert_chain(t["certFile"], t.get("keyFile"))
    return context


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)
