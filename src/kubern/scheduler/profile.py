"""Profiles: what a KubeSchedulerConfiguration changes, as data. Which plugins filter and score for a schedulerName, by what weight and arguments.

Pure. The default profile is None everywhere: it costs nothing. Reading and checking a document: configuration.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT = "default-scheduler"
WEIGHTS = {"TaintToleration": 3, "NodeAffinity": 2, "PodTopologySpread": 2, "InterPodAffinity": 2, "DynamicResources": 2, "NodeResourcesFit": 1,
           "NodeResourcesBalancedAllocation": 1, "ImageLocality": 1}
FILTERING = ("NodeUnschedulable", "NodeName", "TaintToleration", "NodeAffinity", "NodePorts", "NodeResourcesFit", "VolumeRestrictions", "NodeVolumeLimits",
             "VolumeBinding", "VolumeZone", "PodTopologySpread", "InterPodAffinity", "DynamicResources", "NodeDeclaredFeatures")
OTHERS = ("SchedulingGates", "PrioritySort", "DefaultPreemption", "DefaultBinder")
PLUGINS = frozenset((*FILTERING, *WEIGHTS, *OTHERS))


@dataclass(frozen=True, slots=True)
class Strategy:
    """NodeResourcesFitArgs.scoringStrategy: how room is scored, by weight of each resource; `shape` is (utilization, score 0-100) pairs."""

    type: str = "LeastAllocated"
    resources: tuple[tuple[str, int], ...] = (("cpu", 1), ("memory", 1))
    shape: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Args:
    """Arguments of plugins, by upstream's defaults. What a pod's profile says travels with the pod."""

    ignored: frozenset[str] = frozenset()                       # NodeResourcesFit: resources, and "group/" for all of a group
    balanced: tuple[str, ...] = ("cpu", "memory")               # NodeResourcesBalancedAllocation
    hard_affinity_weight: int = 1                               # InterPodAffinity
    ignore_preferred_of_existing: bool = False
    default_constraints: tuple[Mapping[str, Any], ...] | None = None     # PodTopologySpread; None: the system's own
    required: Mapping[str, Any] | None = None                   # NodeAffinity.addedAffinity
    preferred: tuple[Mapping[str, Any], ...] = ()
    candidates_share: float = 0.10                              # DefaultPreemption
    candidates_min: int = 100
    volume_bind_s: float = 600.0                                # VolumeBinding
    device_bind_s: float = 600.0                                # DynamicResources

    def ignores(self, resource: str) -> bool:
        return bool(self.ignored) and (resource in self.ignored or f"{resource.partition('/')[0]}/" in self.ignored)


ARGS = Args()


@dataclass(frozen=True, slots=True)
class Profile:
    """What differs from the default."""

    name: str
    off: frozenset[str] = frozenset()                   # filters that do not run
    weights: Mapping[str, int] = field(default_factory=lambda: WEIGHTS)      # of the scores that count
    strategy: Strategy | None = None                    # None: the default
    preempts: bool = True
    args: Args = ARGS


@dataclass(frozen=True, slots=True)
class ExtenderSpec:
    """Extender: an HTTP service that has a say. Times in seconds, TLS as paths or bytes."""

    url: str
    filter_verb: str = ""
    prioritize_verb: str = ""
    bind_verb: str = ""
    preempt_verb: str = ""
    weight: int = 0
    timeout_s: float = 5.0
    by_name: bool = False                               # nodeCacheCapable: node names are enough for it
    managed: frozenset[str] = frozenset()               # resources; empty: every pod concerns it
    ignorable: bool = False
    tls: Mapping[str, Any] = field(default_factory=dict)
    https: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """All profiles by schedulerName; None is the default profile."""

    profiles: Mapping[str, Profile | None]
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 10.0
    extenders: tuple[ExtenderSpec, ...] = ()


STANDARD = Configuration({DEFAULT: None})
