"""Similar groups: new nodes are spread over them, so that groups of one kind in several zones stay of one size. Pure.

Upstream: processors/nodegroupset (compare_nodegroups.go, balancing_processor.go); FAQ, --balance-similar-node-groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kubern.model.object import Object, labels
from kubern.model.quantity import milli
from kubern.scheduler.grow import Size

MEMORY_PART, ALLOCATABLE_PART = 0.015, 0.05           # by how much capacity of memory, and what is allocatable, may differ
IGNORED = frozenset((
    "kubernetes.io/hostname", "failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region", "topology.ebs.csi.aws.com/zone", "topology.gke.io/zone", "topology.disk.csi.azure.com/zone"))


def similar(a: Object, b: Object) -> bool:
    """Whether two nodes could be of one group: the same room, the same labels but for where they are."""
    one, other = ((x.get("status") or {}) for x in (a, b))
    return (_near(one.get("capacity"), other.get("capacity"), 0.0) and _near(one.get("allocatable"), other.get("allocatable"), ALLOCATABLE_PART)
            and _kept(a) == _kept(b))


def _near(a: Mapping[str, object] | None, b: Mapping[str, object] | None, part: float) -> bool:
    a, b = a or {}, b or {}
    if a.keys() != b.keys():
        return False
    for k in a:
        x, y = milli(str(a[k])), milli(str(b[k]))
        if abs(x - y) > max(x, y) * max(part, MEMORY_PART if k == "memory" else 0.0):
            return False
    return True


def _kept(node: Object) -> dict[str, str]:
    return {k: v for k, v in labels(node).items() if k not in IGNORED}


def balance(sizes: Iterable[Size], nodes: int) -> dict[str, int]:
    """How many of so many new nodes each group gets: the smallest first, none more than it may have. Groups that get none are left out."""
    room = {s.group.name: s for s in sizes}
    out: dict[str, int] = {}
    for _ in range(nodes):
        open_ = [s for name, s in room.items() if s.target + out.get(name, 0) < s.group.max]
        if not open_:
            break
        least = min(open_, key=lambda s: (s.target + out.get(s.group.name, 0), s.group.name))
        out[least.group.name] = out.get(least.group.name, 0) + 1
    return out
