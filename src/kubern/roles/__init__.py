"""ROLES: what a control plane is made of, in the order of starting. Here the rooms of the house are joined.

A role's `run(ctx)` is an async context manager: entered when the roles before it are ready, it yields when it is ready itself, and
cleans up when it is left, in reverse order. Work that goes on in the background belongs to the cluster's one TaskGroup: if a role
dies, the process ends, and node units outlive it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubern.roles import api, autoscaler, controllers, metrics, nodes, scheduler
from kubern.roles.context import Context


@dataclass(frozen=True, slots=True)
class Role:
    name: str
    run: Callable[[Context], Any]


ROLES: tuple[Role, ...] = tuple(Role(name, run) for name, run in (
    ("api", api.run), ("controllers", controllers.run), ("scheduler", scheduler.run), ("metrics", metrics.run), ("nodes", nodes.run),
    ("autoscaler", autoscaler.run)))
