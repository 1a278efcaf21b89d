"""Node groups as people write them. Pure; the autoscaler's options: options.py.

A group is "name=real,min=1,max=4,label=disk=ssd,taint=only=me:NoSchedule,cpu=4,memory=8Gi" or a mapping with the same names; several are a JSON
list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kubern.autoscaler.options import BadGroup, pairs
from kubern.model.names import is_dns1123_label
from kubern.scheduler.grow import Group

GROUPS_MAX, SIZE_MAX = 50, 5000
EXTERNAL = "externalgrpc="                     # followed by a file: the groups are a service's (external.py)
CAPACITY = ("cpu", "memory", "pods", "ephemeral-storage")


def parse_group(given: str | Mapping[str, Any]) -> Group:
    """One group from its text or mapping. Raises BadGroup."""
    given_pairs = pairs(given) if isinstance(given, str) else [(str(k), v) for k, v in given.items()]
    name, low, high = "", 0, 10
    labels: dict[str, str] = {}
    taints: list[dict[str, str]] = []
    capacity: dict[str, str] = {}
    for key, value in given_pairs:
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


def instance_of(name: str, groups: Iterable[Group]) -> Group | None:
    """The group a node belongs to: its name is the group's, a dash and a number."""
    stem, _, number = name.rpartition("-")
    return next((g for g in groups if g.name == stem), None) if number.isdigit() else None
