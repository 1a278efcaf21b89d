"""The agent of a unit without an API server: network, proxy and DNS as in the product, fed from a file (HOME/state.json)."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

from kubern.dns import run as dns
from kubern.kubelet import network
from kubern.kubelet.unit import read_config
from kubern.proxy import run as proxy

POLL_S = 0.02


class FileMirror:
    def __init__(self) -> None:
        self.handlers: list[Any] = []
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}

    def list(self, namespace: str | None = None) -> list[dict[str, Any]]:
        return list(self.objects.values())

    def get(self, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((namespace, name))

    def replace(self, items: list[dict[str, Any]]) -> None:
        new = {(o["metadata"].get("namespace") or "", o["metadata"]["name"]): o for o in items}
        for k in self.objects.keys() | new.keys():
            old, now = self.objects.get(k), new.get(k)
            if old != now:
                if now is None:
                    del self.objects[k]
                else:
                    self.objects[k] = now
                for h in self.handlers:
                    h(old, now)


class FileMirrors:
    """What the roles use of client/mirror.py Mirrors."""

    def __init__(self, path: Path) -> None:
        self.path, self.all, self.client = path, {}, None
        self.first = asyncio.Event()

    def mirror(self, name: str) -> FileMirror:
        return self.all.setdefault(name, FileMirror())

    async def synced(self, names: object) -> None:
        await self.first.wait()

    def get(self, resource: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.mirror(resource).get(namespace, name)

    def list(self, resource: str, namespace: str | None = None) -> list[dict[str, Any]]:
        return self.mirror(resource).list(namespace)

    async def follow(self) -> None:
        seen = 0
        while True:
            if self.path.exists() and (stamp := self.path.stat().st_mtime_ns) != seen:
                seen = stamp
                for name, items in json.loads(self.path.read_text()).items():
                    self.mirror(name).replace(items)
                self.first.set()
            await asyncio.sleep(POLL_S)


async def main(config_path: str) -> None:
    logging.basicConfig(level="INFO")
    config = read_config(config_path)
    mirrors: Any = FileMirrors(Path(config.data_dir).parent.parent / "state.json")
    await asyncio.gather(
        mirrors.follow(), network.run(mirrors, config),
        proxy.run(mirrors, config.name, (config.pod_cidr,), (config.service_cidr,), (4,)),
        dns.run(mirrors, config.name, config.address, config.cluster_dns, config.cluster_domain, config.gateway))


asyncio.run(main(sys.argv[1]))
