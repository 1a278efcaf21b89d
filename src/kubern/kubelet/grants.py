"""What a pod is given for itself when it is admitted: devices, whole cpus, memory of known NUMA nodes, as near to each other as the policy wants.

For each container (or, scope pod, once for the pod) everybody who hands something out is asked for hints; the policy finds the NUMA nodes that suit all,
or refuses the pod. Then each grants what he has, near there. Out: None, or (reason, message) of a refusal; nothing is kept of a pod that is refused.
Upstream: pkg/kubelet/cm/topologymanager (scope_container.go, scope_pod.go, scope_none.go), pkg/kubelet/cm/admission.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kubern.kubelet import pods
from kubern.kubelet.configuration import Alignment, BadConfiguration
from kubern.kubelet.cpus import NotAligned, NotEnoughCpus
from kubern.kubelet.devices import NoDevices
from kubern.kubelet.memory import NoMemory, Reserved
from kubern.kubelet.numa import Hint, Hints, Layout, merge
from kubern.model import quantity
from kubern.model.object import Object

ANYWHERE = Hint(None, False)
NO_LOCALITY = "TopologyAffinityError", "Resources cannot be allocated with Topology locality"


class Giver(Protocol):
    def hints(self, pod: Object, c: Mapping[str, Any] | None) -> Hints:
        """For a container, or (None) for the pod as a whole; {} if it asks for nothing of this."""

    async def grant(self, pod: Object, kind: str, c: Mapping[str, Any], near: Hint) -> None: ...

    async def release(self, uid: str) -> bool:
        """Whether there was something to release."""


@dataclass(frozen=True, slots=True)
class Grants:
    layout: Layout
    givers: Sequence[Giver]
    alignment: Alignment

    async def admit(self, pod: Object) -> tuple[str, str] | None:
        a, every = self.alignment, [(kind, c) for kind, c in pods.every_container(pod["spec"]) if kind != "ephemeral"]
        near, admitted = ANYWHERE, True
        if a.policy != "none" and a.scope == "pod":
            near, admitted = self._merge(pod, None)
        try:
            for kind, c in every:
                if a.policy != "none" and a.scope == "container":
                    near, admitted = self._merge(pod, c)
                if not admitted:
                    await self.release(pod["metadata"]["uid"])
                    return NO_LOCALITY
                for g in self.givers:
                    await g.grant(pod, kind, c, near)
        except (NotAligned, NotEnoughCpus, NoDevices, NoMemory) as e:
            await self.release(pod["metadata"]["uid"])
            if isinstance(e, NotAligned):
                return "SMTAlignmentError", str(e)
            return "UnexpectedAdmissionError", f"Allocate failed due to {e}, which is unexpected"
        return None

    def _merge(self, pod: Object, c: Mapping[str, Any] | None) -> tuple[Hint, bool]:
        a = self.alignment
        return merge(a.policy, [g.hints(pod, c) for g in self.givers], self.layout, a.closest)

    async def release(self, uid: str) -> bool:
        return any([await g.release(uid) for g in self.givers])


def check(layout: Layout, a: Alignment, by_socket: bool, memory: Reserved, withheld: Mapping[str, int]) -> None:
    """What the configuration asks of this machine. `withheld`: bytes that are reserved of memory and huge pages. Raises BadConfiguration."""
    if a.policy != "none" and len(layout.nodes) > a.nodes_max:
        raise BadConfiguration(f"topologyManagerPolicy: unsupported on machines with more than {a.nodes_max} NUMA Nodes")
    if by_socket and a.policy == "single-numa-node":
        raise BadConfiguration("Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option")
    if by_socket and len({c.socket for c in layout.cpus.values()}) > len(layout.nodes):
        raise BadConfiguration("Align by socket is not compatible with hardware where number of sockets are more than number of NUMA")
    if not memory:
        return
    for n in memory:
        if n not in layout.memory:
            raise BadConfiguration(f"the reserved memory configuration references a NUMA node {n} that does not exist on this machine")
    for r in sorted({r for by_resource in memory.values() for r in by_resource} | set(withheld)):
        have = sum(by_resource.get(r, 0) for by_resource in memory.values())
        if have != withheld.get(r, 0):
            raise BadConfiguration(f'the total amount "{quantity.of_value(have, "BinarySI")}" of type "{r}" is not equal to the value '
                                   f'"{quantity.of_value(withheld.get(r, 0), "BinarySI")}" determined by Node Allocatable feature')
