"""Whole cpus for containers of Guaranteed pods that ask for whole numbers of them; everybody else shares the rest. cpuManagerPolicy: static.

`take` is pure: whole sockets, then whole cores, then single threads. Cpus keeps who has which in ROOT/cpu_manager_state and tells which cpus a
container may use. Upstream: pkg/kubelet/cm/cpumanager (policy_static.go, cpu_assignment.go).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from kubern.kubelet import pods
from kubern.kubelet.configuration import cpu_list, cpu_text
from kubern.kubelet.record import write_whole
from kubern.model import quantity
from kubern.model.object import Object

log = logging.getLogger(__name__)

STATE = "cpu_manager_state"
Topology = Mapping[int, tuple[int, int]]              # cpu -> (socket, core)


class NotEnoughCpus(Exception):
    """A container cannot have the cpus it asks for."""


def topology(base: str = "/sys/devices/system/cpu") -> dict[int, tuple[int, int]]:
    """The machine's cpus that are on."""
    out = {}
    for cpu in cpu_list((Path(base) / "online").read_text().strip()) if os.path.exists(f"{base}/online") else range(os.cpu_count() or 1):
        def number(name: str, otherwise: int, at: int = cpu) -> int:
            try:
                return int((Path(base) / f"cpu{at}/topology/{name}").read_text())
            except (OSError, ValueError):
                return otherwise
        out[cpu] = (number("physical_package_id", 0), number("core_id", cpu))
    return out


def take(machine: Topology, available: set[int], count: int) -> set[int]:
    """`count` cpus as near to each other as can be. Raises NotEnoughCpus."""
    if len(available) < count:
        raise NotEnoughCpus(f"not enough cpus available to satisfy request: requested={count}, available={len(available)}")
    left, out = set(available), set[int]()

    def whole(key: Any) -> None:
        groups: dict[Any, set[int]] = {}
        for c in machine:
            groups.setdefault(key(c), set()).add(c)
        for _, group in sorted(groups.items(), key=lambda g: g[0]):
            if group <= left and len(group) <= count - len(out):
                out.update(group)
                left.difference_update(group)

    whole(lambda c: machine[c][0])
    whole(lambda c: machine[c])
    near = {machine[c][0] for c in out}
    free_in_core: dict[tuple[int, int], int] = {}
    for c in left:
        free_in_core[machine[c]] = free_in_core.get(machine[c], 0) + 1
    for c in sorted(left, key=lambda c: (machine[c][0] not in near, free_in_core[machine[c]], machine[c], c)):
        if len(out) == count:
            break
        out.add(c)
    return out


def exclusive(pod: Object, c: Mapping[str, Any]) -> int:
    """How many whole cpus a container is to have, 0 if it shares."""
    if pods.qos_class(pod) != "Guaranteed":
        return 0
    asked = quantity.milli(str(((c.get("resources") or {}).get("requests") or {}).get("cpu")
                                or ((c.get("resources") or {}).get("limits") or {}).get("cpu") or "0"))
    return 0 if asked % 1000 else asked // 1000


class Cpus:
    """The static policy. Its state is read again after a restart; a state of other cpus or reservations is an error upstream, here it begins anew."""

    def __init__(self, root: str, machine: Topology, reserved_milli: int, reserved: str = "") -> None:
        self.path, self.machine = f"{root}/{STATE}", machine
        every = set(machine)
        self.reserved = set(cpu_list(reserved)) & every if reserved else take(machine, every, min(len(every), math.ceil(reserved_milli / 1000)))
        self.taken: dict[str, dict[str, set[int]]] = {}               # pod uid -> container -> its cpus
        self._read()

    @property
    def shared(self) -> set[int]:
        """What containers without cpus of their own run on."""
        return set(self.machine) - {c for by_name in self.taken.values() for cpus in by_name.values() for c in cpus}

    def allocate(self, pod: Object) -> bool:
        """Gives the pod's containers their cpus; whether the shared ones changed. Raises NotEnoughCpus."""
        uid = pod["metadata"]["uid"]
        if uid in self.taken:
            return False
        mine: dict[str, set[int]] = {}
        reusable: set[int] = set()                                    # of init containers that are over by then
        free = self.shared - self.reserved
        for kind, c in pods.every_container(pod["spec"]):
            count = exclusive(pod, c) if kind != "ephemeral" else 0
            if not count:
                continue
            first = set(sorted(reusable)[:count])
            got = first | take(self.machine, free - first, count - len(first))
            mine[c["name"]] = got
            free -= got
            if kind == "init" and not pods.is_sidecar(c):
                reusable |= got
                free |= got
            else:
                reusable -= got
        if mine:
            self.taken[uid] = mine
            self._write()
        return bool(mine)

    def release(self, uid: str) -> bool:
        """Whether the shared cpus changed."""
        if self.taken.pop(uid, None) is None:
            return False
        self._write()
        return True

    def of(self, uid: str, container: str) -> str:
        """cpuset of a container."""
        return cpu_text(self.taken.get(uid, {}).get(container) or self.shared)

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
        if doc.get("policyName") == "static" and used <= set(self.machine) - self.reserved:
            self.taken = entries
        else:
            log.warning("%s is of other cpus or another policy: beginning anew", STATE)
        return self._write()

    def _write(self) -> None:
        doc = {"policyName": "static", "defaultCpuSet": cpu_text(self.shared),
               "entries": {uid: {n: cpu_text(v) for n, v in by_name.items()} for uid, by_name in self.taken.items()}, "checksum": 0}
        write_whole(self.path, orjson.dumps(doc))
