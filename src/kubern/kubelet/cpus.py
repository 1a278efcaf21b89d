"""Whole cpus for containers of Guaranteed pods that ask for whole numbers of them; everybody else shares the rest. cpuManagerPolicy: static.

`take` and `hints` are pure: whole sockets or NUMA nodes, then whole caches and cores, then single threads, the fullest first. Cpus keeps who has which
in ROOT/cpu_manager_state and tells which cpus a container may use. Upstream: pkg/kubelet/cm/cpumanager (policy_static.go, cpu_assignment.go,
policy_options.go); KEP-2625, KEP-2902.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import orjson

from kubern.kubelet import pods
from kubern.kubelet.configuration import CpuOptions, cpu_list, cpu_text
from kubern.kubelet.numa import Cpu, Hint, Hints, Layout, Nodes, masks
from kubern.kubelet.record import write_whole
from kubern.model import quantity
from kubern.model.object import Object

log = logging.getLogger(__name__)

STATE = "cpu_manager_state"


class NotEnoughCpus(Exception):
    """A container cannot have the cpus it asks for."""


class NotAligned(Exception):
    """A container asks for parts of cores, or there are not enough whole ones. Upstream: SMTAlignmentError."""


# --- which cpus ---

Key = Callable[[Cpu], int]


def _node(c: Cpu) -> int:
    return c.node


def _socket(c: Cpu) -> int:
    return c.socket


def _core(c: Cpu) -> int:
    return c.core


def _cache(c: Cpu) -> int:
    return c.cache


class _Taking:
    """One request being filled: what is free yet, what was taken."""

    def __init__(self, layout: Layout, free: Iterable[int], count: int) -> None:
        self.layout, self.free, self.need, self.taken = layout, set(free), count, set[int]()
        # what holds more cpus comes first: NUMA nodes where sockets lie in them, else sockets
        self.levels: tuple[Key, ...] = (_node, _socket) if len({c.socket for c in layout.cpus.values()}) >= len(layout.nodes) else (_socket, _node)

    def down_to(self, level: Key) -> tuple[Key, ...]:
        return self.levels[:self.levels.index(level) + 1]

    def groups(self, key: Key, of: Iterable[int]) -> dict[int, set[int]]:
        out: dict[int, set[int]] = {}
        for c in of:
            out.setdefault(key(self.layout.cpus[c]), set()).add(c)
        return out

    def ordered(self, *keys: Key) -> list[set[int]]:
        """The free cpus in groups of the last key, those with least left first, level by level."""
        parts = [set(self.free)]
        for key in keys:
            parts = [g for p in parts for _, g in sorted(self.groups(key, p).items(), key=lambda kv: (len(kv[1]), kv[0]))]
        return parts

    def take(self, cpus: Iterable[int]) -> None:
        chosen = set(cpus)
        self.taken |= chosen
        self.free -= chosen
        self.need -= len(chosen)

    def whole(self, *keys: Key) -> None:
        """Groups of which nothing is used, as long as they are needed whole."""
        key = keys[-1]
        sizes = {k: len(g) for k, g in self.groups(key, self.layout.cpus).items()}
        for group in self.ordered(*keys):
            if len(group) == sizes[key(self.layout.cpus[min(group)])] and len(group) <= self.need:
                self.take(group)

    def caches(self) -> None:
        """Whole caches, then one that can hold the rest in its first free cores."""
        keys = (*self.down_to(_node), _cache)
        self.whole(*keys)
        for group in self.ordered(*keys) if self.need else ():
            cores = [g for _, g in sorted(self.groups(_core, group).items())][:-(-self.need // self.layout.threads)]
            chosen = sorted(c for g in cores for c in g)
            if self.need % 2 and self.layout.threads > 1 and len(chosen) > self.need:
                chosen.pop()
            if len(chosen) == self.need:
                self.take(chosen)
                break

    def single(self, *keys: Key) -> None:
        for group in self.ordered(*keys):
            self.take(sorted(group)[:self.need])


def take(layout: Layout, available: set[int], count: int, spread: bool = False, by_cache: bool = False) -> set[int]:
    """`count` cpus as near to each other as can be; `spread`: threads of cores as they come, not core by core. Raises NotEnoughCpus."""
    if len(available) < count:
        raise NotEnoughCpus(f"not enough cpus available to satisfy request: requested={count}, available={len(available)}")
    t = _Taking(layout, available, count)
    t.whole(t.levels[0])
    t.whole(*t.levels)
    if by_cache:
        t.caches()
    if not spread:
        t.whole(*t.levels, _core)
    t.single(*(t.down_to(_socket) if spread else (*t.levels, _core)))
    return t.taken


def take_evenly(layout: Layout, available: set[int], count: int, group: int = 1) -> set[int]:
    """`count` cpus in equal parts from as few NUMA nodes as can be, in groups of `group`; packed where that cannot be. Raises NotEnoughCpus."""
    if count % group or len(available) < count or not count:
        return take(layout, available, count)
    t = _Taking(layout, available, count)
    order = list(dict.fromkeys(layout.cpus[min(g)].node for g in t.ordered(*t.down_to(_node))))
    free = {n: len(g) for n, g in t.groups(_node, available).items()}
    groups_a_node = math.ceil(math.ceil(len(layout.cpus) / group) / len(layout.nodes))
    for k in range(math.ceil(count // group / groups_a_node), min(count // group, len(free)) + 1):
        share = count // k // group * group
        best: tuple[float, Sequence[int], Sequence[int]] | None = None
        for combo in combinations(order, k):
            if sum(free[n] // group for n in combo) * group < count or any(free[n] < share for n in combo):
                continue
            left = {n: free[n] - share * (n in combo) for n in order}
            for balance, subset in _spreads(left, [n for n in combo if left[n] >= group], count - share * k, group):
                if best is None or balance < best[0]:
                    best = balance, combo, subset
        if best is None:
            continue
        out: set[int] = set()
        for n in best[1]:
            out |= take(layout, {c for c in available if layout.cpus[c].node == n}, share)
        while len(out) < count:
            for n in best[2]:
                there = {c for c in available - out if layout.cpus[c].node == n}
                if len(out) < count and len(there) >= group:
                    out |= take(layout, there, group)
        return out
    return take(layout, available, count)


def _spreads(left: Mapping[int, int], over: Sequence[int], rest: int, group: int) -> Iterable[tuple[float, Sequence[int]]]:
    """(how unevenly the nodes would be left, the nodes the rest comes from), wide spreads first."""
    def uneven(free: Mapping[int, int]) -> float:
        return round(statistics.pstdev(free.values()), 3)
    if not rest:
        yield uneven(left), ()
        return
    for k in range(len(over), 0, -1):
        for subset in combinations(over, k):
            if sum(left[n] // group for n in subset) * group < rest:
                continue
            after, todo = dict(left), rest
            while todo > 0:
                for n in subset:
                    if todo and after[n] >= group:
                        after[n] -= group
                        todo -= group
            yield uneven(after), subset


def hints(layout: Layout, available: set[int], reusable: set[int], count: int, by_socket: bool = False) -> list[Hint]:
    """NUMA nodes from which `count` cpus can be had, those already the pod's among them."""
    found, least = [], len(layout.nodes)
    for nodes in masks(layout.nodes):
        if sum(c.node in nodes for c in layout.cpus.values()) >= count:
            least = min(least, len(nodes))
        if all(layout.cpus[c].node in nodes for c in reusable) and sum(layout.cpus[c].node in nodes for c in available) + len(reusable) >= count:
            found.append(nodes)
    per_socket = len(layout.nodes) // max(1, len({c.socket for c in layout.cpus.values()}))

    def on_few_sockets(nodes: Nodes) -> bool:
        return bool(per_socket) and len({c.socket for c in layout.cpus.values() if c.node in nodes}) == -(-least // per_socket)
    return [Hint(n, len(n) == least or (by_socket and on_few_sockets(n))) for n in found]


def exclusive(pod: Object, c: Mapping[str, Any]) -> int:
    """How many whole cpus a container is to have, 0 if it shares. Resources of the pod as a whole are nothing this policy knows."""
    if pods.qos_class(pod) != "Guaranteed" or pod["spec"].get("resources"):
        return 0
    asked = quantity.milli(str(((c.get("resources") or {}).get("requests") or {}).get("cpu")
                                or ((c.get("resources") or {}).get("limits") or {}).get("cpu") or "0"))
    return 0 if asked % 1000 else asked // 1000


def whole_pod(pod: Object, asks: Callable[[Mapping[str, Any]], int]) -> int:
    """What a pod's containers need at most at one time."""
    running = init = 0
    for kind, c in pods.every_container(pod["spec"]):
        if kind == "init" and pods.is_sidecar(c):
            running += asks(c)
            init = max(init, running)
        elif kind == "init":
            init = max(init, running + asks(c))
        elif kind == "container":
            running += asks(c)
    return max(init, running)


class Cpus:
    """The static policy. Its state is read again after a restart; a state of other cpus or reservations is an error upstream, here it begins anew."""

    def __init__(self, root: str, layout: Layout, reserved_milli: int, reserved: str = "", options: CpuOptions | None = None) -> None:
        self.path, self.layout, self.options = f"{root}/{STATE}", layout, options or CpuOptions()
        every = set(layout.cpus)
        self.reserved = set(cpu_list(reserved)) & every if reserved else take(layout, every, min(len(every), math.ceil(reserved_milli / 1000)))
        self.taken: dict[str, dict[str, set[int]]] = {}               # pod uid -> container -> its cpus
        self._reusable: dict[str, set[int]] = {}                      # of init containers that are over by then
        self._read()

    @property
    def shared(self) -> set[int]:
        """What containers without cpus of their own run on."""
        strict = self.reserved if self.options.strict_cpu_reservation else set()
        return set(self.layout.cpus) - strict - {c for by_name in self.taken.values() for cpus in by_name.values() for c in cpus}

    # --- for pods that come ---

    def hints(self, pod: Object, c: Mapping[str, Any] | None) -> Hints:
        """For a container, or (None) for the pod as a whole."""
        count = exclusive(pod, c) if c is not None else whole_pod(pod, lambda x: exclusive(pod, x))
        if not count:
            return {}
        reusable = self._reusable.get(pod["metadata"]["uid"], set())
        return {"cpu": hints(self.layout, self.shared - self.reserved, reusable, count, self.options.align_by_socket)}

    async def grant(self, pod: Object, kind: str, c: Mapping[str, Any], near: Hint) -> None:
        """Gives a container its cpus, those of these NUMA nodes first. Raises NotEnoughCpus, NotAligned."""
        uid, count, o = pod["metadata"]["uid"], exclusive(pod, c), self.options
        if not count or c["name"] in self.taken.get(uid, {}):
            return
        if o.full_pcpus_only:
            self._aligned(count)
        reusable = self._reusable.get(uid, set())
        allocatable = (self.shared - self.reserved) | reusable
        got: set[int] = set()
        if near.nodes is not None:
            sockets = {x.socket for x in self.layout.cpus.values() if x.node in near.nodes}
            there = {n for n in allocatable if (self.layout.cpus[n].socket in sockets if o.align_by_socket else self.layout.cpus[n].node in near.nodes)}
            got = self._take(there, min(count, len(there)))
        got |= self._take(allocatable - got, count - len(got))
        self.taken.setdefault(uid, {})[c["name"]] = got
        self._reusable[uid] = reusable | got if kind == "init" and not pods.is_sidecar(c) else reusable - got
        self._write()

    def _take(self, available: set[int], count: int) -> set[int]:
        o = self.options
        if o.distribute_cpus_across_numa:
            return take_evenly(self.layout, available, count, self.layout.threads if o.full_pcpus_only else 1)
        return take(self.layout, available, count, o.distribute_cpus_across_cores, o.prefer_align_cpus_by_uncorecache)

    def _aligned(self, count: int) -> None:
        threads = self.layout.threads
        if count % threads:
            raise NotAligned(f"SMT Alignment Error: requested {count} cpus not multiple cpus per core = {threads}")
        kept = {self.layout.cpus[c].core for c in self.reserved}
        free = sum(self.layout.cpus[c].core not in kept for c in self.shared)
        if count > free:
            raise NotAligned(f"SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {free}, requested CPUs = {count}, "
                             f"CPUs per core = {threads}")

    async def release(self, uid: str) -> bool:
        """Whether the shared cpus changed."""
        self._reusable.pop(uid, None)
        if self.taken.pop(uid, None) is None:
            return False
        self._write()
        return True

    def exclusive(self, uid: str, container: str) -> bool:
        return container in self.taken.get(uid, {})

    def of(self, uid: str, container: str) -> str:
        """cpuset of a container."""
        return cpu_text(self.taken.get(uid, {}).get(container) or self.shared)

    # --- the record ---

    def _read(self) -> None:
        try:
            doc = orjson.loads(Path(self.path).read_bytes())
            entries = {uid: {n: set(cpu_list(v)) for n, v in by_name.items()} for uid, by_name in (doc.get("entries") or {}).items()}
        except FileNotFoundError:
            return self._write()
        except (OSError, ValueError, AttributeError) as e:
            log.warning("%s cannot be read: %s", STATE, e)
            return self._write()
        used = {c for by_name in entries.values() for cpus in by_name.values() for c in cpus}
        if doc.get("policyName") == "static" and used <= set(self.layout.cpus) - self.reserved:
            self.taken = entries
        else:
            log.warning("%s is of other cpus or another policy: beginning anew", STATE)
        return self._write()

    def _write(self) -> None:
        doc = {"policyName": "static", "defaultCpuSet": cpu_text(self.shared),
               "entries": {uid: {n: cpu_text(v) for n, v in by_name.items()} for uid, by_name in self.taken.items()}, "checksum": 0}
        write_whole(self.path, orjson.dumps(doc))
