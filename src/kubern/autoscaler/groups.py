"""Node groups and the autoscaler's timings, as people write them. Pure.

A group is "name=real,min=1,max=4,label=disk=ssd,taint=only=me:NoSchedule,cpu=4,memory=8Gi" or a mapping with the same names; several are a JSON
list. Timings are "scan-interval=10s,scale-down-unneeded-time=10m,…" with upstream's flag names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from kubern.model.names import is_dns1123_label
from kubern.scheduler.grow import Group

GROUPS_MAX, SIZE_MAX = 50, 5000
EXTERNAL = "externalgrpc="                     # followed by a file: the groups are a service's (external.py)
EXPANDERS = ("least-waste", "most-pods", "least-nodes", "priority", "random")
CAPACITY = ("cpu", "memory", "pods", "ephemeral-storage")
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class BadGroup(ValueError):
    """A group or timing that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Upstream's defaults."""

    scan_interval_s: float = 10.0
    scale_down_unneeded_time_s: float = 600.0
    scale_down_unready_time_s: float = 1200.0
    scale_down_delay_after_add_s: float = 600.0
    scale_down_delay_after_failure_s: float = 180.0
    scale_down_utilization_threshold: float = 0.5
    max_node_provision_time_s: float = 900.0
    max_pod_eviction_time_s: float = 120.0
    max_graceful_termination_s: float = 600.0
    new_pod_scale_up_delay_s: float = 0.0
    expander: str = "least-waste"                         # or several, the first that leaves one option wins
    backoff_s: float = 300.0
    backoff_max_s: float = 1800.0


def parse_group(given: str | Mapping[str, Any]) -> Group:
    """One group from its text or mapping. Raises BadGroup."""
    pairs = _pairs(given) if isinstance(given, str) else [(str(k), v) for k, v in given.items()]
    name, low, high = "", 0, 10
    labels: dict[str, str] = {}
    taints: list[dict[str, str]] = []
    capacity: dict[str, str] = {}
    for key, value in pairs:
        if key == "name":
            name = str(value)
        elif key in ("min", "max"):
            try:
                number = int(value)
            except (TypeError, ValueError):
                raise BadGroup(f"{key} of a node group must be a number, not {value!r}") from None
            low, high = (number, high) if key == "min" else (low, number)
        elif key in ("label", "labels"):
            labels.update(_label(str(value)) if not isinstance(value, Mapping) else {str(k): str(v) for k, v in value.items()})
        elif key in ("taint", "taints"):
            taints += [_taint(t) for t in (value if isinstance(value, list) else [value])]
        elif key == "capacity" and isinstance(value, Mapping):
            capacity.update({str(k): str(v) for k, v in value.items()})
        elif key in CAPACITY or "/" in key:
            capacity[key] = str(value)
        else:
            raise BadGroup(f"a node group has no {key!r}; known are name, min, max, label, taint, {', '.join(CAPACITY)}")
    if is_dns1123_label(name):
        raise BadGroup(f"a node group needs a name of lower case letters, digits and '-', not {name!r}")
    if not 0 <= low <= high <= SIZE_MAX:
        raise BadGroup(f"node group {name}: 0 <= min <= max <= {SIZE_MAX} must hold, not min={low}, max={high}")
    return Group(name, low, high, labels, tuple(taints), capacity)


def _pairs(text: str) -> list[tuple[str, str]]:
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, eq, value = part.partition("=")
        if not eq:
            raise BadGroup(f"a node group is name=…,min=…,max=…; {part!r} has no '='")
        out.append((key, value))
    return out


def _label(text: str) -> dict[str, str]:
    key, _, value = text.partition("=")
    return {key: value}


def _taint(given: Any) -> dict[str, str]:
    """"key=value:Effect", "key:Effect" or a mapping."""
    if isinstance(given, Mapping):
        return {str(k): str(v) for k, v in given.items()}
    key, _, effect = str(given).rpartition(":")
    key, _, value = key.partition("=")
    if not key or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise BadGroup(f"a taint is key=value:NoSchedule, not {given!r}")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}


def parse_groups(text: str) -> tuple[Group, ...]:
    """All groups of the setting: a JSON list of texts or mappings, or one text. Raises BadGroup."""
    if not text or external(text):
        return ()
    try:
        given = json.loads(text) if text.lstrip().startswith(("[", "{")) else [text]
    except ValueError as e:
        raise BadGroup(f"node groups: {e}") from None
    groups = tuple(parse_group(g) for g in (given if isinstance(given, list) else [given]))
    names = [g.name for g in groups]
    if len(set(names)) != len(names):
        raise BadGroup(f"two node groups have the same name: {', '.join(sorted(n for n in names if names.count(n) > 1))}")
    if len(groups) > GROUPS_MAX:
        raise BadGroup(f"{len(groups)} node groups are more than {GROUPS_MAX}")
    return groups


def external(text: str) -> str:
    """The file that says which service has the groups, "" where they are configured here. Raises BadGroup."""
    try:
        given = json.loads(text) if text.lstrip().startswith("[") else [text]
    except ValueError:
        return ""
    files = [str(g).removeprefix(EXTERNAL) for g in given if isinstance(g, str) and g.startswith(EXTERNAL)]
    if files and len(given) > 1:
        raise BadGroup(f"{EXTERNAL}FILE stands alone: the service names all groups")
    return files[0] if files else ""


def parse_timings(text: str) -> Timings:
    """Raises BadGroup."""
    out = Timings()
    known = {f.name.removesuffix("_s").replace("_", "-"): f.name for f in fields(Timings)}
    for key, value in _pairs(text):
        if key not in known:
            raise BadGroup(f"the autoscaler has no {key!r}; known are {', '.join(known)}")
        name = known[key]
        made: Any = seconds(value) if name.endswith("_s") else _expanders(value) if key == "expander" else _fraction(value)
        out = replace(out, **{name: made})
    return out


def seconds(text: str) -> float:
    """"10s", "1m30s", "1.5h", "10" -> seconds."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|$)", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise BadGroup(f"a duration is 10s, 5m, 1h30m, …, not {text!r}")
    return sum(float(n) * UNITS_S.get(unit, 1.0) for n, unit in parts)


def _expanders(text: str) -> str:
    """Names joined by "+": the list of options itself is joined by commas."""
    for name in text.split("+"):
        if name not in EXPANDERS:
            raise BadGroup(f"there is no expander {name!r}; known are {', '.join(EXPANDERS)}")
    return text


def _fraction(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadGroup(f"{text!r} is no number") from None


def instance_of(name: str, groups: Iterable[Group]) -> Group | None:
    """The group a node belongs to: its name is the group's, a dash and a number."""
    stem, _, number = name.rpartition("-")
    return next((g for g in groups if g.name == stem), None) if number.isdigit() else None
