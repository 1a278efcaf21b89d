"""Providers: who makes and removes the nodes of a group. Units of this machine, or simulated nodes of this process.

A provider knows instances by name, whether or not they are Nodes (yet). `create` and `delete` may take seconds. Clouds: external.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kubern.autoscaler.groups import instance_of
from kubern.autoscaler.options import Options
from kubern.model.object import Object
from kubern.scheduler.grow import Group

if TYPE_CHECKING:
    from kubern.kubelet.hollow import Hollow


CREATIONS_MAX = 4                       # nodes made at the same time


class Provider(Protocol):
    async def refresh(self, nodes: Iterable[Object]) -> Sequence[Group] | None:
        """Called before everything else in a scan, with all nodes; the groups, where it is the provider who knows them."""

    def instances(self) -> set[str]:
        """Names of all nodes it runs, of any group."""

    def group_of(self, name: str) -> str:
        """The group an instance or node belongs to, "" for none."""

    def renamed(self) -> dict[str, str]:
        """Instances that were asked for by one name and registered by another, since the last call."""

    def options(self, group: Group, defaults: Options) -> Options:
        """What holds for this group."""

    def room(self, group: Group) -> Mapping[str, str]:
        """What a new node will have."""

    def template(self, group: Group) -> tuple[Object, list[Object]]:
        """A new node as it will be and its ResourceSlices, where the provider knows; else empty."""

    async def create(self, group: Group, names: Sequence[str]) -> dict[str, str]:
        """{name: why} of those that could not be made. Raises what says that none could."""

    async def delete(self, name: str) -> None: ...

    async def adopt(self, group: Group, name: str) -> None:
        """Take up a node that an earlier process made."""

    async def close(self) -> None:
        """Nothing is asked for any more, for now: `refresh` may come again."""


class Maker(Protocol):
    """Makes nodes by the names it is given."""

    def instances(self) -> set[str]: ...

    def room(self, group: Group) -> Mapping[str, str]: ...

    async def make(self, group: Group, name: str) -> None: ...

    async def delete(self, name: str) -> None: ...

    async def adopt(self, group: Group, name: str) -> None: ...


class Named:
    """The provider over a maker: the groups are configured, and their nodes are called GROUP-NUMBER."""

    def __init__(self, groups: Iterable[Group], maker: Maker) -> None:
        self.groups, self.maker = tuple(groups), maker
        self.instances, self.room, self.delete, self.adopt = maker.instances, maker.room, maker.delete, maker.adopt
        self._busy = asyncio.Semaphore(CREATIONS_MAX)

    async def refresh(self, nodes: Iterable[Object]) -> Sequence[Group] | None:
        return None

    def group_of(self, name: str) -> str:
        group = instance_of(name, self.groups)
        return group.name if group is not None else ""

    def renamed(self) -> dict[str, str]:
        return {}

    def options(self, group: Group, defaults: Options) -> Options:
        return defaults

    def template(self, group: Group) -> tuple[Object, list[Object]]:
        return {}, []

    async def close(self) -> None:
        return None

    async def create(self, group: Group, names: Sequence[str]) -> dict[str, str]:
        failed: dict[str, str] = {}

        async def one(name: str) -> None:
            async with self._busy:
                try:
                    await self.maker.make(group, name)
                except Exception as e:
                    failed[name] = str(e)
        await asyncio.gather(*(one(n) for n in names))
        return failed


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

    async def make(self, group: Group, name: str) -> None:
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

    async def make(self, group: Group, name: str) -> None:
        from kubern.kubelet.hollow import Shape

        room = self.room(group)
        number = int(name.rpartition("-")[2])
        await self.hollow.add(Shape(name, room["cpu"], room["memory"], room["pods"], labels=group.labels, taints=tuple(group.taints),
                                    address=f"10.{224 + (number >> 16) % 16}.{number >> 8 & 255}.{number & 255}"))

    async def delete(self, name: str) -> None:
        self.hollow.remove(name)

    async def adopt(self, group: Group, name: str) -> None:
        await self.make(group, name)
