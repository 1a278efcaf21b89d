"""Providers: who makes and removes the nodes of a group. Units of this machine, or simulated nodes of this process.

A provider knows instances by name, whether or not they are Nodes (yet). `create` and `delete` may take seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kubern.scheduler.grow import Group

if TYPE_CHECKING:
    from kubern.kubelet.hollow import Hollow


class Provider(Protocol):
    def instances(self) -> set[str]:
        """Names of all nodes it runs, of any group."""

    def room(self, group: Group) -> Mapping[str, str]:
        """What a new node will have."""

    async def create(self, group: Group, name: str) -> None: ...

    async def delete(self, name: str) -> None: ...

    async def adopt(self, group: Group, name: str) -> None:
        """Take up a node that an earlier process made."""


class Local:
    """Real nodes: units on this machine. `settings(name)` gives what a unit needs (cluster.unit_settings)."""

    def __init__(self, home: Path, settings: Callable[[str], Any]) -> None:
        self.home, self.settings = home, settings

    def instances(self) -> set[str]:
        from kubern.kubelet.node import list_units

        return {u.name for u in list_units(self.home) if u.alive()}

    def room(self, group: Group) -> Mapping[str, str]:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"cpu": str(os.cpu_count() or 1), "memory": str(memory)}

    async def create(self, group: Group, name: str) -> None:
        from kubern.kubelet.node import create_unit

        def make() -> None:
            taints = tuple(f"{t['key']}={t['value']}:{t['effect']}" if t.get("value") else f"{t['key']}:{t['effect']}" for t in group.taints)
            create_unit(replace(self.settings(name), labels=dict(group.labels), taints=taints), wait=False)
        await asyncio.to_thread(make)

    async def delete(self, name: str) -> None:
        from kubern.kubelet.node import destroy_unit

        await asyncio.to_thread(destroy_unit, self.home, name, False, True)

    async def adopt(self, group: Group, name: str) -> None:
        return None                                       # units outlive the control plane; the nodes role takes them up


class Simulated:
    """Nodes over the simulated runtime of this process."""

    def __init__(self, hollow: Hollow) -> None:
        self.hollow = hollow

    def instances(self) -> set[str]:
        return set(self.hollow.nodes)

    def room(self, group: Group) -> Mapping[str, str]:
        return {"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi", **group.capacity}

    async def create(self, group: Group, name: str) -> None:
        from kubern.kubelet.hollow import Shape

        room = self.room(group)
        number = int(name.rpartition("-")[2])
        await self.hollow.add(Shape(name, room["cpu"], room["memory"], room["pods"], labels=group.labels, taints=tuple(group.taints),
                                    address=f"10.{224 + (number >> 16) % 16}.{number >> 8 & 255}.{number & 255}"))

    async def delete(self, name: str) -> None:
        self.hollow.remove(name)

    async def adopt(self, group: Group, name: str) -> None:
        await self.create(group, name)
