"""KINDS: every built-in kind, merged from the tables of the group modules, with its Table columns attached.

Loaded on first use: the modules are many and a client needs none of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from kubern.model.kinds.kind import Kind, KindTable, merge

MODULES = (
    "pod", "service", "node", "persistent_volume", "namespace", "config", "quota", "replication_controller", "endpoints",
    "apps", "stateful_set", "daemon_set", "batch", "autoscaling", "networking", "policy", "rbac", "storage", "scheduling", "coordination",
    "node_group", "discovery", "events", "resource_k8s_io", "flowcontrol", "certificates", "admissionregistration", "apiextensions", "apiregistration",
)
NEUTRAL = Kind()


@cache
def _kinds() -> KindTable:
    from kubern.model.kinds import columns_core, columns_groups, columns_workloads

    table = merge(*(import_module(f"kubern.model.kinds.{name}").KINDS for name in MODULES))
    for key, (columns, cells) in (columns_core.TABLES | columns_workloads.TABLES | columns_groups.TABLES).items():
        kind = table.get(key, NEUTRAL)
        if not kind.columns:
            table[key] = replace(kind, columns=columns, cells=cells)
    return table


def kind_of(group: str, kind: str) -> Kind:
    """The rules of a kind; a neutral Kind for one that is not built in."""
    return _kinds().get((group, kind), NEUTRAL)


def __getattr__(name: str) -> Any:
    if name == "KINDS":
        return _kinds()
    raise AttributeError(name)
