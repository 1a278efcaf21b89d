"""Profiles: KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1) as data. Which plugins filter and score for a schedulerName, by what weight.

Pure. The default profile is None everywhere: it costs nothing. percentageOfNodesToScore, parallelism, leaderElection and clientConnection are
accepted and mean nothing here (all nodes are scored). Not there, and refused: extenders and plugins that are not upstream's default ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

API_VERSION = "kubescheduler.config.k8s.io/v1"
DEFAULT = "default-scheduler"
WEIGHTS = {"TaintToleration": 3, "NodeAffinity": 2, "PodTopologySpread": 2, "InterPodAffinity": 2, "NodeResourcesFit": 1,
           "NodeResourcesBalancedAllocation": 1, "ImageLocality": 1}
FILTERING = ("NodeUnschedulable", "NodeName", "TaintToleration", "NodeAffinity", "NodePorts", "NodeResourcesFit", "VolumeRestrictions", "NodeVolumeLimits",
             "VolumeBinding", "VolumeZone", "PodTopologySpread", "InterPodAffinity", "DynamicResources")
OTHERS = ("SchedulingGates", "PrioritySort", "DefaultPreemption", "DefaultBinder")
PLUGINS = frozenset((*FILTERING, *WEIGHTS, *OTHERS, "NodeDeclaredFeatures", "GangScheduling"))
POINTS = ("preEnqueue", "queueSort", "preFilter", "filter", "postFilter", "preScore", "score", "reserve", "permit", "preBind", "bind", "postBind", "multiPoint")
STRATEGIES = ("LeastAllocated", "MostAllocated", "RequestedToCapacityRatio")
IGNORED = ("apiVersion", "kind", "parallelism", "leaderElection", "clientConnection", "healthzBindAddress", "metricsBindAddress", "enableProfiling",
           "enableContentionProfiling", "delayCacheUntilActive")
WEIGHT_MAX = 2**31 // 100


class BadConfiguration(ValueError):
    """A scheduler configuration that cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """NodeResourcesFitArgs.scoringStrategy: how room is scored, by weight of each resource; `shape` is (utilization, score 0-100) pairs."""

    type: str = "LeastAllocated"
    resources: tuple[tuple[str, int], ...] = (("cpu", 1), ("memory", 1))
    shape: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """What differs from the default."""

    name: str
    off: frozenset[str] = frozenset()                   # filters that do not run
    weights: Mapping[str, int] = field(default_factory=lambda: WEIGHTS)      # of the scores that count
    strategy: Strategy | None = None                    # None: the default
    preempts: bool = True


@dataclass(frozen=True, slots=True)
class Configuration:
    """All profiles by schedulerName; None is the default profile."""

    profiles: Mapping[str, Profile | None]
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 10.0


STANDARD = Configuration({DEFAULT: None})


def parse(doc: Any) -> Configuration:
    """The configuration of a YAML document. Raises BadConfiguration."""
    if not isinstance(doc, Mapping) or doc.get("apiVersion") != API_VERSION or doc.get("kind") != "KubeSchedulerConfiguration":
        raise BadConfiguration(f"the scheduler's configuration must be a KubeSchedulerConfiguration of {API_VERSION}")
    if doc.get("extenders"):
        raise BadConfiguration("extenders: not supported")
    known = (*IGNORED, "percentageOfNodesToScore", "podInitialBackoffSeconds", "podMaxBackoffSeconds", "profiles", "extenders")
    for k in doc:
        if k not in known:
            raise BadConfiguration(f'unknown field "{k}"')
    _percentage(doc.get("percentageOfNodesToScore"), "percentageOfNodesToScore")
    first = _number(doc.get("podInitialBackoffSeconds", 1), "podInitialBackoffSeconds", 1, 1 << 30)
    last = _number(doc.get("podMaxBackoffSeconds", max(10, first)), "podMaxBackoffSeconds", 1, 1 << 30)
    if last < first:
        raise BadConfiguration("podMaxBackoffSeconds: must be greater than or equal to PodInitialBackoffSeconds")
    profiles: dict[str, Profile | None] = {}
    for i, p in enumerate(_list(doc.get("profiles") or [{}], "profiles")):
        made = _profile(p, f"profiles[{i}]")
        if made.name in profiles:
            raise BadConfiguration(f'profiles[{i}].schedulerName: Duplicate value: "{made.name}"')
        profiles[made.name] = None if made == Profile(made.name) else made
    return Configuration(profiles, float(first), float(last))


def _profile(p: Any, at: str) -> Profile:
    if not isinstance(p, Mapping):
        raise BadConfiguration(f"{at}: must be a mapping")
    name = p.get("schedulerName", DEFAULT)
    if not isinstance(name, str) or not name:
        raise BadConfiguration(f"{at}.schedulerName: Required value")
    _percentage(p.get("percentageOfNodesToScore"), f"{at}.percentageOfNodesToScore")
    plugins = p.get("plugins") or {}
    if not isinstance(plugins, Mapping):
        raise BadConfiguration(f"{at}.plugins: must be a mapping")
    for point in plugins:
        if point not in POINTS:
            raise BadConfiguration(f'{at}.plugins: unknown field "{point}"')
    sets = {point: _set(plugins.get(point), f"{at}.plugins.{point}") for point in POINTS}
    on, off, all_off = sets["multiPoint"]
    weights = {n: on.get(n) or w for n, w in WEIGHTS.items() if n in on or not (all_off or n in off)}
    filters = {n for n in FILTERING if n in on or not (all_off or n in off)}
    preempts = "DefaultPreemption" in on or not (all_off or "DefaultPreemption" in off)
    more, less, none = sets["score"]
    weights = {n: w for n, w in weights.items() if not (none or n in less)} | {n: w or WEIGHTS[n] for n, w in more.items() if n in WEIGHTS}
    more, less, none = sets["filter"]
    filters = {n for n in filters if not (none or n in less)} | (more.keys() & set(FILTERING))
    more, less, none = sets["postFilter"]
    preempts = "DefaultPreemption" in more or (preempts and not none and "DefaultPreemption" not in less)
    strategy = None
    for i, c in enumerate(_list(p.get("pluginConfig") or [], f"{at}.pluginConfig")):
        if not isinstance(c, Mapping) or c.get("name") not in PLUGINS:
            raise BadConfiguration(f"{at}.pluginConfig[{i}].name: no such plugin")
        if c["name"] == "NodeResourcesFit" and (c.get("args") or {}).get("scoringStrategy"):
            strategy = _strategy(c["args"]["scoringStrategy"], f"{at}.pluginConfig[{i}].args.scoringStrategy")
    return Profile(name, frozenset(FILTERING) - filters, weights, None if strategy == Strategy() else strategy, preempts)


def _set(given: Any, at: str) -> tuple[dict[str, int], frozenset[str], bool]:
    """({enabled: weight or 0}, disabled, all disabled) of a PluginSet."""
    given = given or {}
    if not isinstance(given, Mapping):
        raise BadConfiguration(f"{at}: must be a mapping")
    on: dict[str, int] = {}
    for i, e in enumerate(_list(given.get("enabled") or [], f"{at}.enabled")):
        n = e.get("name") if isinstance(e, Mapping) else None
        if n not in PLUGINS:
            raise BadConfiguration(f"{at}.enabled[{i}]: plugin {n!r} does not exist")
        on[n] = _number(e.get("weight") or 0, f"{at}.enabled[{i}].weight", 0, WEIGHT_MAX)
    off = [e.get("name") if isinstance(e, Mapping) else None for e in _list(given.get("disabled") or [], f"{at}.disabled")]
    for i, n in enumerate(off):
        if n != "*" and n not in PLUGINS:
            raise BadConfiguration(f"{at}.disabled[{i}]: plugin {n!r} does not exist")
    return on, frozenset(str(n) for n in off), "*" in off


def _strategy(given: Any, at: str) -> Strategy:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind not in STRATEGIES:
        raise BadConfiguration(f"{at}.type: must be one of {', '.join(STRATEGIES)}")
    rows = _list(given.get("resources") or [{"name": "cpu"}, {"name": "memory"}], f"{at}.resources")
    resources = tuple((str(r.get("name")), _number(r.get("weight") or 1, f"{at}.resources[].weight", 1, 100)) for r in rows if isinstance(r, Mapping))
    points = _list((given.get("requestedToCapacityRatio") or {}).get("shape") or [], f"{at}.requestedToCapacityRatio.shape")
    shape = tuple((_number(x.get("utilization", 0), f"{at}.shape[].utilization", 0, 100), _number(x.get("score", 0), f"{at}.shape[].score", 0, 10) * 10)
                  for x in points if isinstance(x, Mapping))
    if kind == "RequestedToCapacityRatio" and (not shape or list(shape) != sorted(set(shape), key=lambda x: x[0])):
        raise BadConfiguration(f"{at}.requestedToCapacityRatio.shape: at least one point, utilization rising")
    return Strategy(kind, resources, shape)


def _list(given: Any, at: str) -> list[Any]:
    if not isinstance(given, list):
        raise BadConfiguration(f"{at}: must be a list")
    return given


def _number(given: Any, at: str, low: int, high: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
        raise BadConfiguration(f"{at}: Invalid value: {given!r}: must be between {low} and {high}")
    return given


def _percentage(given: Any, at: str) -> None:
    if given is not None:
        _number(given, at, 0, 100)
