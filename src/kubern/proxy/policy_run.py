"""The shell around policy.py: mirrors of policies, pods and namespaces in, the table kubern-policy out.

Pods and namespaces are only followed once a policy exists; a cluster without policies pays nothing.
"""

from __future__ import annotations

import asyncio
import logging

from kubern.client.mirror import Mirrors
from kubern.model.object import Key, Object, key
from kubern.proxy import netlink, nft
from kubern.proxy.guard import Guard
from kubern.proxy.policy import FAMILY, SKELETON, TABLE, TYPES, PodFacts, facts, render_policies
from kubern.proxy.ruleset import Ruleset

log = logging.getLogger(__name__)

POLICIES = "networkpolicies.networking.k8s.io"
GATHER_S = 0.01
RETRY_S = 1.0


class PolicyRole:
    def __init__(self, mirrors: Mirrors, node: str) -> None:
        self.mirrors, self.node = mirrors, node
        self.rules = Ruleset()
        self.pods: dict[Key, PodFacts] = {}
        self.whole = True
        self.wake = asyncio.Event()
        self.kernel = netlink.Kernel()
        self.guard = Guard(TABLE, (FAMILY,), self.rules, self.kernel, self.again)

    def again(self) -> None:
        """The table is not what it should be: the whole is written."""
        self.whole = True
        self.wake.set()

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        k = key(new or old)                                 # type: ignore[arg-type]
        now = facts(new) if new else None
        if now != self.pods.get(k):
            if now:
                self.pods[k] = now
            else:
                del self.pods[k]
            self.wake.set()

    def _namespace_changed(self, old: Object | None, new: Object | None) -> None:
        before, after = ((o or {}).get("metadata", {}).get("labels") for o in (old, new))
        if old is None or new is None or before != after:
            self.wake.set()

    def _policy_changed(self, old: Object | None, new: Object | None) -> None:
        self.wake.set()

    async def run(self) -> None:
        policies = self.mirrors.mirror(POLICIES)
        policies.handlers.append(self._policy_changed)
        await self.mirrors.synced((POLICIES,))
        while not policies.objects:
            await self.wake.wait()
            self.wake.clear()
        for name, handler in (("pods", self._pod_changed), ("namespaces", self._namespace_changed)):
            mirror = self.mirrors.mirror(name)
            mirror.handlers.append(handler)
            for obj in mirror.list():
                handler(None, obj)
        await self.mirrors.synced(("pods", "namespaces"))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.guard.run(), name="guard")
            while True:
                try:
                    async with self.guard.alone:
                        await self.apply()
                    await self.wake.wait()
                    await asyncio.sleep(GATHER_S)
                except nft.NftError as e:
                    log.error("network policy: nft: %s", e)
                    self.whole = True
                    await asyncio.sleep(RETRY_S)
                self.wake.clear()

    async def apply(self) -> None:
        namespaces = {o["metadata"]["name"]: o["metadata"].get("labels") or {} for o in self.mirrors.list("namespaces")}
        part = render_policies(self.mirrors.list(POLICIES), self.pods.values(), namespaces, self.node)
        delta = self.rules.update({"policies": part})
        if not delta and not self.whole:
            return
        whole = self.whole
        messages = None if whole else netlink.encode(delta, TABLE, {**TYPES, **self.rules.sets})
        text = SKELETON + self.rules.everything().text(TABLE) if whole else delta.text(TABLE)
        self.whole = True                                   # until it has been taken
        if messages is not None:
            self.kernel.send(messages)
        else:
            await nft.apply(text)
        if whole:
            self.guard.written()
        self.whole = False
