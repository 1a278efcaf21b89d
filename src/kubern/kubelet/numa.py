"""How a machine is laid out: its cpus by NUMA node, socket, core and cache, the memory and the distances of its NUMA nodes; and hints of where to
take things from. `read` looks into /sys, all else is pure.

A hint is a set of NUMA nodes something can be had from, preferred if fewer would never do. Whoever hands things out gives hints by resource;
`merge` finds the nodes that suit all and says whether the policy takes a pod that cannot have better.
Upstream: pkg/kubelet/cm/topologymanager (policy.go, numa_info.go), cadvisor's machine topology; KEP-693, KEP-3545.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

from kubern.kubelet.configuration import cpu_list
from kubern.model import quantity

NODES_MAX = 8                           # of one machine, unless the option max-allowable-numa-nodes says more
Nodes = frozenset[int]


@dataclass(frozen=True, slots=True)
class Cpu:
    """Where one cpu is; cores and caches are named by their lowest cpu."""

    node: int = 0
    socket: int = 0
    core: int = 0
    cache: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    cpus: Mapping[int, Cpu]
    memory: Mapping[int, Mapping[str, int]] = field(default_factory=dict)          # NUMA node -> memory and hugepages-SIZE -> bytes
    distances: Mapping[int, Sequence[int]] = field(default_factory=dict)           # NUMA node -> how far each one is

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted({c.node for c in self.cpus.values()} | set(self.memory)))

    @property
    def threads(self) -> int:
        """Cpus of a core."""
        return len(self.cpus) // max(1, len({c.core for c in self.cpus.values()}))


@dataclass(frozen=True, slots=True)
class Hint:
    """None: any nodes."""

    nodes: Nodes | None
    preferred: bool


Hints = Mapping[str, Sequence[Hint] | None]             # resource -> its hints; None: no preference, none: it cannot be had


def read(base: str = "/sys/devices/system") -> Layout:
    """This machine's."""
    at = Path(base)

    def text(path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return ""

    nodes = cpu_list(text(at / "node/online")) or [0]
    node_of = {c: n for n in nodes for c in cpu_list(text(at / f"node/node{n}/cpulist"))}
    cpus = {}
    for c in cpu_list(text(at / "cpu/online")) or sorted(node_of) or [0]:
        own = at / f"cpu/cpu{c}"
        socket = text(own / "topology/physical_package_id")
        siblings = cpu_list(text(own / "topology/core_cpus_list") or text(own / "topology/thread_siblings_list")) or [c]
        cache = cpu_list(text(own / "cache/index3/shared_cpu_list"))
        cpus[c] = Cpu(node_of.get(c, 0), int(socket) if socket.isdigit() else 0, siblings[0], cache[0] if cache else 0)
    memory: dict[int, dict[str, int]] = {}
    whole = int((text(Path("/proc/meminfo")).split() or ["", "0"])[1]) << 10
    distances = {}
    for n in nodes:
        own = at / f"node/node{n}"
        total = next((int(line.split()[3]) << 10 for line in text(own / "meminfo").splitlines() if "MemTotal:" in line), 0)
        memory[n] = {"memory": total if len(nodes) > 1 and total else whole // len(nodes)}      # some machines tell one node's wrongly
        for folder in sorted(own.glob("hugepages/hugepages-*kB")):
            size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) << 10
            memory[n][f"hugepages-{quantity.of_value(size, 'BinarySI')}"] = size * int(text(folder / "nr_hugepages") or 0)
        distances[n] = tuple(int(d) for d in text(own / "distance").split())
    return Layout(cpus, memory, distances)


def masks(nodes: Iterable[int]) -> Iterator[Nodes]:
    """All sets of these nodes but the empty one, small ones first."""
    ordered = sorted(nodes)
    for size in range(1, len(ordered) + 1):
        yield from map(frozenset, combinations(ordered, size))


def narrowness(nodes: Nodes) -> tuple[int, int]:
    """Sorts sets of nodes: fewer first, then those with the lower numbers."""
    return len(nodes), sum(1 << n for n in nodes)


def preferring(found: Iterable[Nodes], least: int) -> list[Hint]:
    return [Hint(nodes, len(nodes) == least) for nodes in found]


def distance(layout: Layout, nodes: Nodes) -> float:
    """The mean between these nodes, each with itself counted."""
    return sum(layout.distances[a][b] for a in nodes for b in nodes) / (len(nodes) ** 2 or 1)


def merge(policy: str, everybody: Iterable[Hints], layout: Layout, closest: bool = False) -> tuple[Hint, bool]:
    """(the hint that suits all best, whether the policy admits with it). `closest`: of equally many nodes those near to each other."""
    rows: list[list[Hint]] = []
    for hints in everybody:
        if not hints:
            rows.append([Hint(None, True)])
        for own in hints.values():
            rows.append([Hint(None, True)] if own is None else list(own) or [Hint(None, False)])
    if policy == "single-numa-node":
        rows = [[h for h in row if h.preferred and (h.nodes is None or len(h.nodes) == 1)] for row in rows]
    every = frozenset(layout.nodes)
    # what the neediest of them needs at least: where nothing is preferred, as many nodes as that, or as few more as can be
    most = max((len(min((h.nodes for h in row if h.nodes is not None), key=narrowness)) for row in rows if any(h.nodes is not None for h in row)), default=0)

    def rank(h: Hint) -> tuple[object, ...]:
        assert h.nodes is not None
        count = len(h.nodes)
        fit = (count, distance(layout, h.nodes), narrowness(h.nodes)) if closest and policy != "single-numa-node" else narrowness(h.nodes)
        return (False, fit) if h.preferred else (True, count > most, abs(count - most), fit)

    def together(chosen: Sequence[Hint]) -> Hint:
        named = [h.nodes for h in chosen if h.nodes is not None]
        return Hint(every.intersection(*named), all(h.preferred for h in chosen) and len(set(named)) <= 1)

    best = min((h for h in map(together, product(*rows)) if h.nodes), key=rank, default=Hint(every, False))
    if policy == "single-numa-node" and best.nodes == every:
        best = Hint(None, best.preferred)
    return best, best.preferred or policy == "best-effort"
