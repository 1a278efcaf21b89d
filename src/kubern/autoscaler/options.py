"""What the autoscaler may be told, as people write it: "scan-interval=10s,scale-down-unneeded-time=10m,…", with upstream's flag names and defaults. Pure.

The options of one group may differ where its provider says so (externalgrpc: NodeGroupGetOptions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from kubern.model.time import duration_s

EXPANDERS = ("least-waste", "most-pods", "least-nodes", "priority", "random")


class BadGroup(ValueError):
    """A group or an option that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """Names end in _s where the value is a duration."""

    scan_interval_s: float = 10.0
    scale_down_enabled: bool = True
    scale_down_unneeded_time_s: float = 600.0
    scale_down_unready_time_s: float = 1200.0
    scale_down_delay_after_add_s: float = 600.0
    scale_down_delay_after_delete_s: float = 0.0
    scale_down_delay_after_failure_s: float = 180.0
    scale_down_utilization_threshold: float = 0.5
    ignore_daemonsets_utilization: bool = False
    max_node_provision_time_s: float = 900.0
    max_pod_eviction_time_s: float = 120.0
    max_graceful_termination_s: float = 600.0
    new_pod_scale_up_delay_s: float = 0.0
    max_nodes_total: int = 0                              # 0: as many as the groups allow
    max_scale_down_parallelism: int = 10
    max_drain_parallelism: int = 1
    balance_similar_node_groups: bool = False
    skip_nodes_with_system_pods: bool = True
    skip_nodes_with_local_storage: bool = True
    daemonset_eviction_for_empty_nodes: bool = False
    daemonset_eviction_for_occupied_nodes: bool = True
    ok_total_unready_count: int = 3                       # more, and more than this part of all, and nothing is done any more
    max_total_unready_percentage: float = 45.0
    expander: str = "least-waste"                         # or several, the first that leaves one option wins
    backoff_s: float = 300.0
    backoff_max_s: float = 1800.0

    def healthy(self, nodes: int, unready: int) -> bool:
        """So few nodes are unready that what is seen can be believed."""
        return unready <= max(self.ok_total_unready_count, self.max_total_unready_percentage / 100 * nodes)


def parse_priorities(text: str) -> dict[int, list[str]]:
    """What the ConfigMap of the expander "priority" says: number -> regular expressions of groups. Raises BadGroup."""
    import re

    import yaml

    try:
        out = {int(n): [str(p) for p in patterns] for n, patterns in (yaml.safe_load(text) or {}).items()}
        for p in (p for patterns in out.values() for p in patterns):
            re.compile(p)
    except (yaml.YAMLError, re.error, AttributeError, TypeError, ValueError) as e:
        raise BadGroup(str(e)) from None
    return out


def pairs(text: str) -> list[tuple[str, str]]:
    """"a=1,b=2" as a list. Raises BadGroup."""
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, eq, value = part.partition("=")
        if not eq:
            raise BadGroup(f"a list of name=value is wanted; {part!r} has no '='")
        out.append((key, value))
    return out


def parse_options(text: str) -> Options:
    """Raises BadGroup."""
    out = Options()
    known = {f.name.removesuffix("_s").replace("_", "-"): f for f in fields(Options)}
    for key, value in pairs(text):
        if key not in known:
            raise BadGroup(f"the autoscaler has no {key!r}; known are {', '.join(known)}")
        field = known[key]
        read: Callable[[str], Any] = seconds if field.name.endswith("_s") else _expanders if key == "expander" else _READERS[str(field.type)]
        changed: dict[str, Any] = {field.name: read(value)}
        out = replace(out, **changed)
    return out


def seconds(text: str) -> float:
    """"10s", "1m30s", "1.5h", "10" -> seconds."""
    try:
        found = float(text) if text.replace(".", "", 1).isdecimal() else duration_s(text)
    except ValueError:
        found = -1.0
    if found < 0:
        raise BadGroup(f"a duration is 10s, 5m, 1h30m, …, not {text!r}")
    return found


def _expanders(text: str) -> str:
    """Names joined by "+": the list of options itself is joined by commas."""
    for name in text.split("+"):
        if name not in EXPANDERS:
            raise BadGroup(f"there is no expander {name!r}; known are {', '.join(EXPANDERS)}")
    return text


def _bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise BadGroup(f"{text!r} is neither true nor false")
    return text == "true"


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            found = kind(text)
        except ValueError:
            found = -1
        if not 0 <= found < float("inf"):
            raise BadGroup(f"{text!r} is no number that could be meant")
        return found
    return read


_READERS: dict[str, Callable[[str], Any]] = {"bool": _bool, "int": _number(int), "float": _number(float)}
