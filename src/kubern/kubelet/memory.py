"""Memory of known NUMA nodes for containers of Guaranteed pods. memoryManagerPolicy: Static.

A container's memory and huge pages lie on one set of NUMA nodes, and what a node gives alone it gives to nobody together with others. All is worked out
of who has what (`state`, `hints`, pure); Memory keeps that in ROOT/memory_manager_state. The kernel is told by cpuset.mems: nothing is set aside.
Upstream: pkg/kubelet/cm/memorymanager (policy_static.go); KEP-1769.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from kubern.kubelet import pods
from kubern.kubelet.configuration import cpu_text
from kubern.kubelet.cpus import whole_pod
from kubern.kubelet.numa import Hint, Hints, Layout, Nodes, masks, narrowness
from kubern.kubelet.record import write_whole
from kubern.model import quantity
from kubern.model.object import Object

log = logging.getLogger(__name__)

STATE = "memory_manager_state"
Reserved = Mapping[int, Mapping[str, int]]              # NUMA node -> resource -> bytes that no pod gets


class NoMemory(Exception):
    """A container's memory cannot be had from NUMA nodes that suit."""


@dataclass(frozen=True, slots=True)
class Block:
    """So much of one resource, somewhere on these nodes."""

    nodes: tuple[int, ...]
    resource: str
    size: int


@dataclass(slots=True)
class Node:
    """What is known of one NUMA node: bytes by resource, how many blocks lie on it, and the nodes it gives together with."""

    allocatable: dict[str, int]
    free: dict[str, int]
    blocks: int
    group: tuple[int, ...]


def state(layout: Layout, reserved: Reserved, taken: Iterable[Block]) -> dict[int, Node]:
    """The nodes when these blocks are taken from them."""
    out = {}
    for n, there in layout.memory.items():
        kept = reserved.get(n, {})
        room = {r: size - kept.get(r, 0) - (sum(v for k, v in there.items() if k != "memory") if r == "memory" else 0) for r, size in there.items()}
        out[n] = Node(room, dict(room), 0, (n,))
    for b in taken:
        left = b.size
        for n in b.nodes:
            node = out[n]
            node.blocks, node.group = node.blocks + 1, b.nodes
            part = min(left, max(0, node.free.get(b.resource, 0)))
            node.free[b.resource] = node.free.get(b.resource, 0) - part
            left -= part
    return out


def hints(nodes: Mapping[int, Node], asked: Mapping[str, int], reusable: Mapping[tuple[Nodes, str], int]) -> dict[str, list[Hint]]:
    """NUMA nodes from which all of it can be had; the same for every resource."""
    found, least = [], len(nodes)
    for mask in masks(nodes):
        if any(sum(nodes[n].allocatable.get(r, 0) for n in mask) < size for r, size in asked.items()):
            continue
        least = min(least, len(mask))
        alone = len(mask) == 1
        if any((len(nodes[n].group) > 1) if alone else (nodes[n].blocks and set(nodes[n].group) != mask) for n in mask):
            continue
        if all(sum(nodes[n].free.get(r, 0) for n in mask) + reusable.get((mask, r), 0) >= size for r, size in asked.items()):
            found.append(mask)
    if not found:
        return {}
    return {r: [Hint(m, len(m) == least) for m in found] for r in asked}


def asked_for(pod: Object, c: Mapping[str, Any]) -> dict[str, int]:
    """Memory and huge pages a container asks for, in bytes."""
    resources = c.get("resources") or {}
    every = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {r: quantity.value(str(v)) for r, v in every.items() if r == "memory" or r.startswith("hugepages-")}


def concerned(pod: Object) -> bool:
    return pods.qos_class(pod) == "Guaranteed" and not pod["spec"].get("resources")


class Memory:
    """The Static policy."""

    def __init__(self, root: str, layout: Layout, reserved: Reserved) -> None:
        self.path, self.layout, self.reserved = f"{root}/{STATE}", layout, reserved
        self.taken: dict[str, dict[str, list[Block]]] = {}            # pod uid -> container -> its blocks
        self._reusable: dict[str, dict[tuple[Nodes, str], int]] = {}  # pod uid -> of init containers that are over by then
        self._read()

    def _state(self) -> dict[int, Node]:
        return state(self.layout, self.reserved, (b for by_name in self.taken.values() for blocks in by_name.values() for b in blocks))

    def hints(self, pod: Object, c: Mapping[str, Any] | None) -> Hints:
        if not concerned(pod):
            return {}
        if c is not None:
            asked = asked_for(pod, c)
        else:
            names = {r for _, x in pods.every_container(pod["spec"]) for r in asked_for(pod, x)}
            asked = {r: n for r in names if (n := whole_pod(pod, lambda x, r=r: asked_for(pod, x).get(r, 0)))}       # type: ignore[misc]
        if not asked:
            return {}
        return hints(self._state(), asked, self._reusable.get(pod["metadata"]["uid"], {})) or {r: [] for r in asked}

    async def grant(self, pod: Object, kind: str, c: Mapping[str, Any], hint: Hint) -> None:
        """Gives a container its memory on these nodes, or on more that hold them. Raises NoMemory."""
        uid = pod["metadata"]["uid"]
        asked = asked_for(pod, c) if concerned(pod) else {}
        if not asked or c["name"] in self.taken.get(uid, {}):
            return
        reusable = self._reusable.setdefault(uid, {})
        nodes, near = self._state(), hint.nodes
        if near is None or any(sum(nodes[n].free.get(r, 0) for n in near) < size for r, size in asked.items()):
            every = [h for h in hints(nodes, asked, reusable).get("memory", ()) if h.nodes is not None and (near is None or h.nodes >= near)]
            if not every:
                raise NoMemory("[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available" if near is None
                               else "[memorymanager] failed to find NUMA nodes to extend the current topology hint")
            best = min(every, key=lambda h: (not h.preferred, narrowness(h.nodes or frozenset())))
            if hint.preferred and not best.preferred:
                raise NoMemory(f"[memorymanager] failed to find the {'default' if near is None else 'extended'} preferred hint")
            near = best.nodes
        assert near is not None
        if len(near) > 1 and any(nodes[n].blocks and set(nodes[n].group) != near for n in near):
            raise NoMemory("[memorymanager] preferred hint violates NUMA node allocation")
        self._reuse(uid, kind == "init" and not pods.is_sidecar(c), near, asked)
        self.taken.setdefault(uid, {})[c["name"]] = [Block(tuple(sorted(near)), r, size) for r, size in asked.items()]
        if kind == "init" and not pods.is_sidecar(c):
            for r, size in asked.items():
                reusable[near, r] = max(size, reusable.get((near, r), 0))
        self._write()

    def _reuse(self, uid: str, again: bool, near: Nodes, asked: Mapping[str, int]) -> None:
        """What an init container that will be over had is this one's now; `again`: and can be another's after it."""
        reusable = self._reusable[uid]
        for r, size in asked.items():
            part = min(size, reusable.get((near, r), 0))
            if not again:
                reusable[near, r] = reusable.get((near, r), 0) - part
            for blocks in self.taken.get(uid, {}).values():
                for i, b in enumerate(blocks):
                    if part and b.resource == r and frozenset(b.nodes) == near:
                        blocks[i], part = replace(b, size=max(0, b.size - part)), max(0, part - b.size)

    async def release(self, uid: str) -> bool:
        self._reusable.pop(uid, None)
        if self.taken.pop(uid, None) is None:
            return False
        self._write()
        return True

    def of(self, uid: str, container: str) -> str:
        """NUMA nodes of a container, "" if it may use all."""
        return cpu_text({n for b in self.taken.get(uid, {}).get(container, ()) for n in b.nodes})

    def allocatable(self) -> list[Block]:
        return [Block((n,), r, size) for n, node in state(self.layout, self.reserved, ()).items() for r, size in node.allocatable.items() if size]

    # --- the record ---

    def _read(self) -> None:
        try:
            doc = orjson.loads(Path(self.path).read_bytes())
            if doc.get("policyName") == "Static":
                self.taken = {uid: {name: [Block(tuple(b["numaAffinity"]), b["type"], b["size"]) for b in blocks] for name, blocks in by_name.items()}
                              for uid, by_name in (doc.get("entries") or {}).items()}
            if any(n not in self.layout.memory for by_name in self.taken.values() for blocks in by_name.values() for b in blocks for n in b.nodes):
                log.warning("%s is of another machine: beginning anew", STATE)
                self.taken = {}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            log.warning("%s cannot be read: %s", STATE, e)

    def _write(self) -> None:
        doc = {"policyName": "Static", "entries": {uid: {name: [{"numaAffinity": list(b.nodes), "type": b.resource, "size": b.size} for b in blocks]
                                                         for name, blocks in by_name.items()} for uid, by_name in self.taken.items()}, "checksum": 0}
        write_whole(self.path, orjson.dumps(doc))
