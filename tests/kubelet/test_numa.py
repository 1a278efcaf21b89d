"""Cpus, memory and devices on machines with several NUMA nodes: all made up, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubern.kubelet import container
from kubern.kubelet.configuration import Alignment, BadConfiguration, CpuOptions, cpu_list, interpret
from kubern.kubelet.cpus import Cpus, NotAligned, NotEnoughCpus, hints, take, take_evenly
from kubern.kubelet.devices import near_to
from kubern.kubelet.grants import ANYWHERE, NO_LOCALITY, Grants, check
from kubern.kubelet.memory import Block, Memory, NoMemory, state
from kubern.kubelet.numa import Cpu, Hint, Hints, Layout, merge, read

GI = 1 << 30


def layout(nodes: int, sockets: int, cores: int, threads: int = 1, memory_gi: int = 16) -> Layout:
    """`cores` cores of `threads` on each NUMA node, nodes evenly on sockets; a core's threads follow each other."""
    cpus = {}
    for n in range(nodes):
        for c in range(cores):
            first = (n * cores + c) * threads
            for t in range(threads):
                cpus[first + t] = Cpu(n, n * sockets // nodes, first, n)
    near = {a: tuple(10 if a == b else 12 if a * sockets // nodes == b * sockets // nodes else 32 for b in range(nodes)) for a in range(nodes)}
    return Layout(cpus, {n: {"memory": memory_gi * GI, "hugepages-2Mi": 0} for n in range(nodes)}, near)


TWO_SOCKETS = layout(2, 2, 2, 2)                     # two sockets of two cores of two threads, 8 cpus
FOUR_NODES = layout(4, 2, 4)                         # two sockets of two NUMA nodes of four cores


def some(*nodes: int, preferred: bool = True) -> Hint:
    return Hint(frozenset(nodes), preferred)


# --- one hint of many ---

@pytest.mark.parametrize(("policy", "everybody", "best", "admitted"), [
    ("best-effort", [{}], Hint(frozenset({0, 1}), True), True),                                          # nobody wants anything
    ("single-numa-node", [{}], Hint(None, True), True),
    ("restricted", [{"cpu": [some(0), some(1), some(0, 1, preferred=False)]}], some(0), True),           # the lower node of two that do
    ("restricted", [{"cpu": [some(0), some(1)]}, {"gpu": [some(1)]}], some(1), True),                    # where both can be
    ("restricted", [{"cpu": [some(0)]}, {"gpu": [some(1)]}], Hint(frozenset({0, 1}), False), False),     # nowhere together
    ("best-effort", [{"cpu": [some(0)]}, {"gpu": [some(1)]}], Hint(frozenset({0, 1}), False), True),
    ("restricted", [{"cpu": []}], Hint(frozenset({0, 1}), False), False),                                # it cannot be had
    ("restricted", [{"cpu": None}, {"gpu": [some(1)]}], some(1), True),                                  # no preference
    ("restricted", [{"cpu": [some(0, 1)]}], some(0, 1), True),                                           # two nodes are the least that do
    ("single-numa-node", [{"cpu": [some(0, 1)]}], Hint(None, False), False),
    ("single-numa-node", [{"cpu": [some(0), some(0, 1, preferred=False)]}, {"memory": [some(0), some(1)]}], some(0), True),
    # nothing preferred together: as many nodes as the neediest wants, not fewer
    ("best-effort", [{"cpu": [some(0, preferred=False), some(0, 1, preferred=False)]}, {"gpu": [some(0, 1, preferred=False)]}],
     some(0, 1, preferred=False), True),
])
def test_what_suits_all(policy: str, everybody: list[Hints], best: Hint, admitted: bool) -> None:
    assert merge(policy, everybody, TWO_SOCKETS) == (best, admitted)


def test_of_equally_many_nodes_those_near_to_each_other() -> None:
    pairs: list[Hints] = [{"cpu": [some(0, 2), some(2, 3), some(1, 2)]}]
    assert merge("restricted", pairs, FOUR_NODES)[0] == some(0, 2) or merge("restricted", pairs, FOUR_NODES)[0] == some(1, 2)
    assert merge("restricted", pairs, FOUR_NODES, closest=True)[0] == some(2, 3)


# --- cpus ---

def test_cpus_near_to_each_other() -> None:
    every = set(TWO_SOCKETS.cpus)
    assert take(TWO_SOCKETS, every, 4) == {0, 1, 2, 3}
    assert take(TWO_SOCKETS, every - {0}, 4) == {4, 5, 6, 7}, "a whole socket before the rest of one"
    assert take(TWO_SOCKETS, every - {0}, 2) == {2, 3}, "a whole core"
    assert take(TWO_SOCKETS, every - {0}, 1) == {1}, "the half core before a whole one is broken"
    assert take(TWO_SOCKETS, every - {0}, 3) == {1, 2, 3}, "the rest from where most is taken"
    with pytest.raises(NotEnoughCpus, match="requested=9, available=8"):
        take(TWO_SOCKETS, every, 9)


def test_a_socket_of_two_nodes_is_taken_before_nodes_of_two_sockets() -> None:
    every = set(FOUR_NODES.cpus)
    assert take(FOUR_NODES, every, 8) == set(range(8)) and take(FOUR_NODES, every - {0}, 8) == set(range(8, 16))
    assert take(FOUR_NODES, every - {0}, 4) == {4, 5, 6, 7}, "a whole node of the socket that has less left"


def test_threads_of_many_cores_or_of_few() -> None:
    every = set(TWO_SOCKETS.cpus)
    assert take(TWO_SOCKETS, every - {1, 3}, 3, spread=True) == {0, 2, 4}, "thread by thread"
    assert take(TWO_SOCKETS, every - {1}, 3) == {0, 2, 3}


def test_one_cache_if_it_can_hold_all() -> None:
    cached = Layout({c: Cpu(0, 0, c, c // 4 * 4) for c in range(12)}, {0: {}}, {0: (10,)})     # one node, three caches of four cores
    free = set(cached.cpus) - {0, 1, 4}
    assert take(cached, free, 3) == {2, 3, 5} and take(cached, free, 3, by_cache=True) == {5, 6, 7}
    assert take(cached, free, 6, by_cache=True) == {2, 3, 8, 9, 10, 11}


@pytest.mark.parametrize(("count", "group", "by_node"), [(4, 1, [4, 0, 0, 0]), (6, 1, [3, 3, 0, 0]), (8, 1, [4, 4, 0, 0]), (9, 1, [3, 3, 3, 0]),
                                                         (7, 1, [4, 3, 0, 0]), (16, 1, [4, 4, 4, 4]), (6, 2, [4, 2, 0, 0])])
def test_equal_parts_from_several_nodes(count: int, group: int, by_node: list[int]) -> None:
    got = take_evenly(FOUR_NODES, set(FOUR_NODES.cpus), count, group)
    assert len(got) == count and sorted((sum(c // 4 == n for c in got) for n in range(4)), reverse=True) == by_node


def test_where_cpus_can_be_had() -> None:
    every = set(TWO_SOCKETS.cpus)
    assert hints(TWO_SOCKETS, every, set(), 4) == [some(0), some(1), some(0, 1, preferred=False)]
    assert hints(TWO_SOCKETS, every - {0}, set(), 4) == [some(1), some(0, 1, preferred=False)]
    assert hints(TWO_SOCKETS, every, set(), 5) == [some(0, 1)] and hints(TWO_SOCKETS, {0, 1}, set(), 3) == []
    assert hints(TWO_SOCKETS, {4, 5}, {0, 1}, 2) == [some(0), some(0, 1, preferred=False)], "what it has is among them"
    pairs = {h.nodes for h in hints(FOUR_NODES, set(FOUR_NODES.cpus), set(), 2, by_socket=True) if h.preferred}
    assert frozenset({0, 1}) in pairs and frozenset({1, 2}) not in pairs, "as good as one node: of one socket"


def guaranteed(uid: str, cpu: str, memory: str = "1Gi", init: str = "", **more: str) -> dict[str, Any]:
    def c(name: str, n: str) -> dict[str, Any]:
        return {"name": name, "resources": {k: {"cpu": n, "memory": memory, **more} for k in ("requests", "limits")}}
    return {"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [c("c", cpu)], **({"initContainers": [c("i", init)]} if init else {})}}


def grants(policy: str, *givers: Any, machine: Layout = TWO_SOCKETS, scope: str = "container") -> Grants:
    return Grants(machine, givers, Alignment(policy, scope))


async def test_whole_cpus_for_guaranteed_pods(tmp_path: Path) -> None:
    cpus = Cpus(str(tmp_path), TWO_SOCKETS, 1500)
    g = grants("none", cpus)
    assert cpus.reserved == {0, 1} and cpus.of("x", "c") == "0-7"
    assert await g.admit(guaranteed("half", "1500m")) is None and not cpus.taken
    assert await g.admit(guaranteed("two", "2")) is None
    assert (cpus.of("two", "c"), cpus.of("x", "c")) == ("2-3", "0-1,4-7")
    assert Cpus(str(tmp_path), TWO_SOCKETS, 1500).taken == cpus.taken, "after a restart"
    assert await g.admit(guaranteed("init", "2", init="4")) is None and cpus.of("init", "i") == "4-7"
    assert set(cpu_list(cpus.of("init", "c"))) < {4, 5, 6, 7}, "what the init container had is used again"
    assert await g.admit(guaranteed("more", "3")) == (
        "UnexpectedAdmissionError", "Allocate failed due to not enough cpus available to satisfy request: requested=3, available=0, which is unexpected")
    assert await g.release("two") and not await g.release("two")


async def test_options_of_the_static_policy(tmp_path: Path) -> None:
    strict = Cpus(str(tmp_path / "a"), TWO_SOCKETS, 0, "0", CpuOptions(strict_cpu_reservation=True, full_pcpus_only=True))
    assert strict.of("x", "c") == "1-7"
    g = grants("none", strict)
    assert await g.admit(guaranteed("odd", "1")) == ("SMTAlignmentError", "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2")
    assert await g.admit(guaranteed("many", "8")) == ("SMTAlignmentError", "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 6, "
                                                      "requested CPUs = 8, CPUs per core = 2")
    assert await g.admit(guaranteed("two", "2")) is None and strict.of("two", "c") == "2-3"
    with pytest.raises(NotAligned):
        await strict.grant(guaranteed("one", "1"), "container", guaranteed("one", "1")["spec"]["containers"][0], ANYWHERE)
    even = Cpus(str(tmp_path / "b"), FOUR_NODES, 1000, options=CpuOptions(distribute_cpus_across_numa=True))
    await grants("none", even, machine=FOUR_NODES).admit(guaranteed("six", "6"))
    assert sorted(sum(c // 4 == n for c in even.taken["six"]["c"]) for n in range(4)) == [0, 0, 3, 3]


# --- memory ---

def test_what_is_left_of_memory() -> None:
    machine = Layout({0: Cpu()}, {0: {"memory": 16 * GI, "hugepages-2Mi": 2 * GI}, 1: {"memory": 16 * GI}})
    nodes = state(machine, {0: {"memory": GI}}, [Block((0, 1), "memory", 20 * GI)])
    assert nodes[0].allocatable == {"memory": 13 * GI, "hugepages-2Mi": 2 * GI} and nodes[0].free["memory"] == 0
    assert nodes[1].free["memory"] == 9 * GI and nodes[1].group == (0, 1)


async def test_memory_of_one_node_or_of_several_never_of_both(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path), FOUR_NODES, {0: {"memory": GI}})
    g = grants("restricted", memory, machine=FOUR_NODES)
    assert await g.admit(guaranteed("small", "1", "10Gi")) is None and memory.of("small", "c") == "0"
    assert await g.admit(guaranteed("wide", "1", "30Gi")) is None and memory.of("wide", "c") == "1-2", "node 0 gives alone already"
    assert await g.admit(guaranteed("last", "1", "12Gi")) is None and memory.of("last", "c") == "3", "1 and 2 give together"
    assert await g.admit(guaranteed("none", "1", "6Gi")) == NO_LOCALITY
    assert Memory(str(tmp_path), FOUR_NODES, {0: {"memory": GI}}).taken == memory.taken, "after a restart"
    await g.release("wide")
    assert await g.admit(guaranteed("none", "1", "6Gi")) is None and memory.of("none", "c") == "1"
    burstable = {"metadata": {"uid": "b"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"memory": "1Gi"}}}]}}
    assert await g.admit(burstable) is None and memory.of("b", "c") == ""
    await g.release("last")
    with pytest.raises(NoMemory, match="no NUMA nodes with enough memory"):
        await memory.grant(guaranteed("huge", "1", "99Gi"), "container", guaranteed("huge", "1", "99Gi")["spec"]["containers"][0], ANYWHERE)


async def test_memory_of_init_containers_is_used_again(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path), layout(1, 1, 2), {0: {"memory": GI}})
    p = guaranteed("p", "1", "12Gi", init="1")
    assert await grants("single-numa-node", memory, machine=layout(1, 1, 2)).admit(p) is None
    assert [b.size // GI for name in ("i", "c") for b in memory.taken["p"][name]] == [0, 12]


# --- together ---

async def test_cpus_memory_and_devices_on_one_node(tmp_path: Path) -> None:
    cpus, memory = Cpus(str(tmp_path), TWO_SOCKETS, 1000), Memory(str(tmp_path), TWO_SOCKETS, {0: {"memory": 12 * GI}})

    class Gpus:
        """A device at node 1."""

        def hints(self, pod: dict[str, Any], c: Any) -> Hints:
            return {"gpu": near_to({"g": [1]}, {"g"}, set(), 1)} if "gpu" in str(c or pod) else {}

        async def grant(self, pod: dict[str, Any], kind: str, c: Any, near: Hint) -> None: ...

        async def release(self, uid: str) -> bool:
            return False
    g = grants("single-numa-node", Gpus(), cpus, memory)
    assert await g.admit(guaranteed("with", "2", "2Gi", gpu="1")) is None
    assert cpus.of("with", "c") == "4-5" and memory.of("with", "c") == "1", "where the device is"
    assert await g.admit(guaranteed("far", "4", "2Gi", gpu="1")) == NO_LOCALITY and "far" not in {*cpus.taken, *memory.taken}
    assert await g.admit(guaranteed("fat", "1", "10Gi")) is None and cpus.of("fat", "c") == "6", "node 0 has too little memory"
    two = guaranteed("two", "1", "3Gi")
    two["spec"]["containers"].append({**two["spec"]["containers"][0], "name": "d"})
    assert await grants("single-numa-node", cpus, memory, scope="pod").admit(two) == NO_LOCALITY, "each would fit, not both together"
    assert await grants("single-numa-node", cpus, memory).admit(two) is None
    assert await grants("best-effort", cpus, memory).admit(guaranteed("any", "1", "1Gi")) is None


def test_where_devices_are() -> None:
    assert near_to({"a": [0], "b": [1], "c": [1]}, {"a", "b", "c"}, set(), 2) == [some(1), some(0, 1, preferred=False)]
    assert near_to({"a": [0], "b": []}, {"a", "b"}, set(), 2) == []


# --- configuration and this machine ---

CPUS = {"cpuManagerPolicy": "static", "systemReserved": {"cpu": "1"}}
STATIC = {"memoryManagerPolicy": "Static", "systemReserved": {"memory": "1Gi"}, "evictionHard": {"memory.available": "100Mi"}}


@pytest.mark.parametrize(("given", "words"), [
    ({"cpuManagerPolicyOptions": {"full-pcpus-only": "true"}}, "none policy has no options"),
    ({**CPUS, "cpuManagerPolicyOptions": {"nosuch": "true"}}, 'unknown CPU Manager Policy option: "nosuch"'),
    ({**CPUS, "cpuManagerPolicyOptions": {"align-by-socket": "true"}}, "Alpha-level Options not enabled"),
    ({**CPUS, "featureGates": {"CPUManagerPolicyAlphaOptions": True},
      "cpuManagerPolicyOptions": {"full-pcpus-only": "true", "distribute-cpus-across-cores": "true"}}, "can not be used at the same time"),
    ({"topologyManagerPolicyOptions": {"max-allowable-numa-nodes": "4"}}, "should not be less than 8"),
    (STATIC, "you should specify the system reserved memory"),
])
def test_configurations_that_say_too_much(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadConfiguration, match=words):
        interpret(given)


def test_reserved_memory_is_what_the_node_withholds() -> None:
    c, _ = interpret({**STATIC, "reservedMemory": [{"numaNode": 0, "limits": {"memory": "1124Mi"}}], "topologyManagerPolicy": "single-numa-node"})
    assert (c.memory_policy, c.memory_reserved, c.alignment.policy) == ("Static", {0: {"memory": 1124 << 20}}, "single-numa-node")
    check(TWO_SOCKETS, c.alignment, False, c.memory_reserved, {"memory": 1124 << 20})
    with pytest.raises(BadConfiguration, match='the total amount "1124Mi" of type "memory" is not equal to the value "1Gi" determined'):
        check(TWO_SOCKETS, c.alignment, False, c.memory_reserved, {"memory": GI})
    with pytest.raises(BadConfiguration, match="NUMA node 7 that does not exist"):
        check(TWO_SOCKETS, c.alignment, False, {7: {"memory": GI}}, {"memory": GI})


def test_this_machine() -> None:
    here = read()
    assert here.cpus and here.nodes and all(here.memory[n]["memory"] for n in here.nodes) and here.threads in (1, 2, 4, 8)


def test_a_machine_with_two_nodes_in_files(tmp_path: Path) -> None:
    for n in (0, 1):
        at = tmp_path / f"node/node{n}"
        (at / "hugepages/hugepages-2048kB").mkdir(parents=True)
        (at / "hugepages/hugepages-2048kB/nr_hugepages").write_text("3\n")
        (at / "cpulist").write_text(f"{2 * n}-{2 * n + 1}\n")
        (at / "meminfo").write_text(f"Node {n} MemTotal:       1024 kB\nNode {n} MemFree: 1 kB\n")
        (at / "distance").write_text("10 20\n" if not n else "20 10\n")
        for c in (2 * n, 2 * n + 1):
            (tmp_path / f"cpu/cpu{c}/topology").mkdir(parents=True)
            (tmp_path / f"cpu/cpu{c}/topology/physical_package_id").write_text(f"{n}\n")
            (tmp_path / f"cpu/cpu{c}/topology/core_cpus_list").write_text(f"{2 * n}-{2 * n + 1}\n")
    (tmp_path / "node/online").write_text("0-1\n")
    (tmp_path / "cpu/online").write_text("0-3\n")
    made = read(str(tmp_path))
    assert made.cpus[3] == Cpu(1, 1, 2, 0) and made.threads == 2 and made.distances[1] == (20, 10)
    assert made.memory[1] == {"memory": 1 << 20, "hugepages-2Mi": 6 << 20}


# --- swap ---

@pytest.mark.parametrize(("pod", "limited", "share"), [
    ({"requests": {"memory": "1Gi"}}, True, 1 << 28), ({"requests": {"memory": "1Gi"}}, False, 0), ({}, True, 0),
    ({"requests": {"memory": "1Gi", "cpu": "1"}, "limits": {"memory": "1Gi"}}, True, 0)])
def test_swap_by_the_memory_that_was_asked_for(pod: dict[str, Any], limited: bool, share: int) -> None:
    node = container.Node("n", "", "", memory_bytes=16 * GI, swap_bytes=4 * GI, limited_swap=limited, unified=True)
    p = {"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [{"name": "c", "resources": pod}]}}
    assert container.resources(p, p["spec"]["containers"][0], node)["unified"] == {"memory.swap.max": str(share)}
    assert "unified" not in container.resources(p, p["spec"]["containers"][0], container.Node("n", "", ""))
