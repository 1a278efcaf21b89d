"""KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1): a document in, a Configuration out, or everything that is wrong with it.

Pure. parallelism, percentageOfNodesToScore, leaderElection and clientConnection are checked and mean nothing here: all nodes are looked at.
Plugins that are not upstream's do not exist. Upstream: pkg/scheduler/apis/config/{v1,validation}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_supported, required
from kubern.model.kinds.labels import validate_label_name
from kubern.model.kinds.placement import validate_node_selector, validate_node_selector_term
from kubern.model.time import duration_s
from kubern.scheduler.extended import is_extended
from kubern.scheduler.profile import ARGS, DEFAULT, FILTERING, PLUGINS, STANDARD, WEIGHTS, Args, Configuration, ExtenderSpec, Profile, Strategy

API_VERSION = "kubescheduler.config.k8s.io/v1"
POINTS = ("preEnqueue", "queueSort", "preFilter", "filter", "postFilter", "preScore", "score", "reserve", "permit", "preBind", "bind", "postBind", "multiPoint")
STRATEGIES = ("LeastAllocated", "MostAllocated", "RequestedToCapacityRatio")
REMOVED = ("AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits")
DURATION = "duration"                   # in the tables: a text as Go's time.ParseDuration reads it
Errors = Iterator[FieldError]

# What may stand where: {field: type or the table of what is below}; a list of one table is a list of such.
_PLUGIN_SET = {"enabled": [{"name": str, "weight": int}], "disabled": [{"name": str, "weight": int}]}
_TOP: dict[str, Any] = {
    "apiVersion": str, "kind": str, "parallelism": int, "percentageOfNodesToScore": int, "podInitialBackoffSeconds": int, "podMaxBackoffSeconds": int,
    "leaderElection": dict, "clientConnection": dict, "healthzBindAddress": str, "metricsBindAddress": str, "enableProfiling": bool,
    "enableContentionProfiling": bool, "delayCacheUntilActive": bool,
    "profiles": [{"schedulerName": str, "percentageOfNodesToScore": int, "plugins": dict.fromkeys(POINTS, _PLUGIN_SET),
                  "pluginConfig": [{"name": str, "args": dict}]}],
    "extenders": [{"urlPrefix": str, "filterVerb": str, "preemptVerb": str, "prioritizeVerb": str, "weight": int, "bindVerb": str, "enableHTTPS": bool,
                   "tlsConfig": {"insecure": bool, "serverName": str, "certFile": str, "keyFile": str, "caFile": str, "certData": str, "keyData": str,
                                 "caData": str},
                   "httpTimeout": DURATION, "nodeCacheCapable": bool, "managedResources": [{"name": str, "ignoredByScheduler": bool}], "ignorable": bool}],
}
_SHAPE = [{"utilization": int, "score": int}]
_RESOURCES = [{"name": str, "weight": int}]
_ARGS: dict[str, dict[str, Any]] = {
    "DefaultPreemption": {"minCandidateNodesPercentage": int, "minCandidateNodesAbsolute": int},
    "InterPodAffinity": {"hardPodAffinityWeight": int, "ignorePreferredTermsOfExistingPods": bool},
    "NodeAffinity": {"addedAffinity": dict},
    "NodeResourcesBalancedAllocation": {"resources": _RESOURCES},
    "NodeResourcesFit": {"ignoredResources": [str], "ignoredResourceGroups": [str], "scoringStrategy": {
        "type": str, "resources": _RESOURCES, "requestedToCapacityRatio": {"shape": _SHAPE}}},
    "PodTopologySpread": {"defaultConstraints": [dict], "defaultingType": str},
    "VolumeBinding": {"bindTimeoutSeconds": int, "shape": _SHAPE},
    "DynamicResources": {"filterTimeout": DURATION, "bindingTimeout": DURATION},
}


class BadConfiguration(ValueError):
    """A scheduler configuration that cannot be used; the message says where and why, in upstream's words."""


def parse(doc: Any) -> Configuration:
    """The configuration of a YAML document. Raises BadConfiguration."""
    if not isinstance(doc, Mapping) or doc.get("apiVersion") != API_VERSION or doc.get("kind") != "KubeSchedulerConfiguration":
        raise BadConfiguration(f"the scheduler's configuration must be a KubeSchedulerConfiguration of {API_VERSION}")
    _strict(doc, _TOP, "")
    for i, p in enumerate(doc.get("profiles") or ()):
        for j, c in enumerate(p.get("pluginConfig") or ()):
            at, args = f"profiles[{i}].pluginConfig[{j}].args", dict(c.get("args") or {})
            kind, version = args.pop("kind", f"{c.get('name')}Args"), args.pop("apiVersion", API_VERSION)
            if c.get("name") in _ARGS:
                if (kind, version) != (f"{c['name']}Args", API_VERSION):
                    raise BadConfiguration(f"{at}: args for plugin {c['name']} were not of type {c['name']}Args.{API_VERSION}, got {kind}.{version}")
                _strict(args, _ARGS[c["name"]], at)
    errors = [*_validate(doc)]
    if errors:
        texts = [e.text() for e in errors]
        raise BadConfiguration(texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]")
    extenders = tuple(_extender(e) for e in doc.get("extenders") or ())
    left_out = frozenset(r["name"] for e in doc.get("extenders") or () for r in e.get("managedResources") or () if r.get("ignoredByScheduler"))
    profiles = {}
    for p in doc.get("profiles") or [{}]:
        made = _profile(p, left_out)
        profiles[made.name] = None if made == Profile(made.name) else made
    return Configuration(profiles, float(doc.get("podInitialBackoffSeconds") or STANDARD.initial_backoff_s),
                         float(doc.get("podMaxBackoffSeconds") or STANDARD.max_backoff_s), extenders)


def _strict(value: Any, shape: Any, at: str) -> None:
    """Refuses unknown fields and wrong types."""
    if value is None:
        return
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            raise BadConfiguration(f"{at}: must be a mapping")
        for k, v in value.items():
            if k not in shape:
                raise BadConfiguration(f'strict decoding error: unknown field "{f"{at}." if at else ""}{k}"')
            _strict(v, shape[k], f"{at}.{k}" if at else str(k))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise BadConfiguration(f"{at}: must be a list")
        for i, v in enumerate(value):
            _strict(v, shape[0], f"{at}[{i}]")
    elif shape == DURATION:
        try:
            duration_s(value if isinstance(value, str) else "")
        except ValueError as e:
            raise BadConfiguration(f"{at}: {e}") from None
    elif shape is dict:
        if not isinstance(value, Mapping):
            raise BadConfiguration(f"{at}: must be a mapping")
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        raise BadConfiguration(f"{at}: {value!r} is not of type {shape.__name__}")


# --- what upstream's validation says --------------------------------------------------------------------------------------

def _validate(doc: Mapping[str, Any]) -> Errors:
    if (n := doc.get("parallelism")) is not None and n <= 0:
        yield invalid("parallelism", n, "should be an integer value greater than zero")
    elect = doc.get("leaderElection") or {}
    if elect.get("leaderElect", True) and elect.get("resourceLock", "leases") != "leases":
        yield invalid("leaderElection.resourceLock", elect["resourceLock"], 'resourceLock value must be "leases"')
    profiles = doc.get("profiles") or [{"schedulerName": DEFAULT}]
    seen: dict[str, int] = {}
    for i, p in enumerate(profiles):
        at = f"profiles[{i}]"
        name = p.get("schedulerName", DEFAULT if len(profiles) == 1 else "")
        if not name:
            yield required(f"{at}.schedulerName")
        yield from _percentage(p.get("percentageOfNodesToScore"), f"{at}.percentageOfNodesToScore")
        yield from _plugins(p, at)
        if name in seen:
            yield duplicate(f"{at}.schedulerName", f"profiles[{seen[name]}].schedulerName")
        seen[name] = i
    yield from _queue_sorts(profiles)
    yield from _percentage(doc.get("percentageOfNodesToScore"), "percentageOfNodesToScore")
    first = doc.get("podInitialBackoffSeconds", STANDARD.initial_backoff_s)
    last = doc.get("podMaxBackoffSeconds", STANDARD.max_backoff_s)
    if first <= 0:
        yield invalid("podInitialBackoffSeconds", first, "must be greater than 0")
    if last < first:
        yield invalid("podMaxBackoffSeconds", last, "must be greater than or equal to PodInitialBackoffSeconds")
    yield from _extenders(doc.get("extenders") or ())


def _percentage(value: int | None, at: str) -> Errors:
    if value is not None and not 0 <= value <= 100:
        yield invalid(at, value, "not in valid range [0-100]")


def _plugins(p: Mapping[str, Any], at: str) -> Errors:
    for point in POINTS:
        chosen = (p.get("plugins") or {}).get(point) or {}
        for kind in ("enabled", "disabled"):
            for i, plugin in enumerate(chosen.get(kind) or ()):
                name = plugin.get("name") or ""
                here = f"{at}.plugins.{point}.{kind}[{i}]"
                if kind == "enabled" and name in REMOVED:
                    yield invalid(here, name, f'was invalid in version "{API_VERSION}" (KubeSchedulerConfiguration is version "{API_VERSION}")')
                elif name not in PLUGINS and not (kind == "disabled" and name == "*"):
                    yield invalid(here, name, f"plugin {name!r} does not exist".replace("'", '"'))
    seen = set()
    for i, c in enumerate(p.get("pluginConfig") or ()):
        name, here = c.get("name") or "", f"{at}.pluginConfig[{i}]"
        if name in seen:
            yield duplicate(here, name)
        seen.add(name)
        if name in REMOVED:
            yield invalid(here, name, f'was invalid in version "{API_VERSION}" (KubeSchedulerConfiguration is version "{API_VERSION}")')
        elif name in _CHECKS:
            yield from _CHECKS[name](c.get("args") or {}, f"{here}.args")


def _queue_sorts(profiles: Sequence[Mapping[str, Any]]) -> Errors:
    def chosen(p: Mapping[str, Any]) -> Mapping[str, Any]:
        return (p.get("plugins") or {}).get("queueSort") or {}
    if (n := len(chosen(profiles[0]).get("enabled") or ())) > 1:
        yield invalid("profiles[0].plugins.queueSort.Enabled", n, "only one queue sort plugin can be enabled")
    for i, p in enumerate(profiles[1:], 1):
        if chosen(p) != chosen(profiles[0]):
            yield invalid(f"profiles[{i}].plugins.queueSort", chosen(p), "must be the same for all profiles")


def _preemption(args: Mapping[str, Any], at: str) -> Errors:
    share, least = args.get("minCandidateNodesPercentage", 10), args.get("minCandidateNodesAbsolute", 100)
    if not 0 <= share <= 100:
        yield invalid(f"{at}.minCandidateNodesPercentage", share, "not in valid range [0, 100]")
    if least < 0:
        yield invalid(f"{at}.minCandidateNodesAbsolute", least, "not in valid range [0, inf)")
    if share == 0 and least == 0:
        yield invalid(f"{at}.minCandidateNodesPercentage", share, "cannot be zero at the same time as minCandidateNodesAbsolute")
        yield invalid(f"{at}.minCandidateNodesAbsolute", least, "cannot be zero at the same time as minCandidateNodesPercentage")


def _pod_affinity(args: Mapping[str, Any], at: str) -> Errors:
    if not 0 <= (weight := args.get("hardPodAffinityWeight", 1)) <= 100:
        yield invalid(f"{at}.hardPodAffinityWeight", weight, "not in valid range [0, 100]")


def _node_affinity(args: Mapping[str, Any], at: str) -> Errors:
    added, at = args.get("addedAffinity") or {}, f"{at}.addedAffinity"
    if (required_ := added.get("requiredDuringSchedulingIgnoredDuringExecution")) is not None:
        yield from validate_node_selector(required_, f"{at}.requiredDuringSchedulingIgnoredDuringExecution")
    for i, term in enumerate(added.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        yield from validate_node_selector_term(term.get("preference") or {}, f"{at}.preferredDuringSchedulingIgnoredDuringExecution[{i}]", False)


def _balanced(args: Mapping[str, Any], at: str) -> Errors:
    seen = set()
    for i, r in enumerate(args.get("resources") or ()):
        if r.get("name") in seen:
            yield duplicate(f"{at}.resources[{i}].name", r.get("name"))
        seen.add(r.get("name"))
        if (weight := r.get("weight") or 1) != 1:
            yield invalid(f"{at}.resources[{i}].weight", weight, "must be 1")


def _fit(args: Mapping[str, Any], at: str) -> Errors:
    for i, name in enumerate(args.get("ignoredResources") or ()):
        yield from validate_label_name(name, f"{at}.ignoredResources[{i}]")
    for i, group in enumerate(args.get("ignoredResourceGroups") or ()):
        if "/" in group:
            yield invalid(f"{at}.ignoredResourceGroups[{i}]", group, "resource group name can't contain '/'")
        yield from validate_label_name(group, f"{at}.ignoredResourceGroups[{i}]")
    strategy, at = args.get("scoringStrategy"), f"{at}.scoringStrategy"
    if strategy is None:
        return
    kind, ratio = strategy.get("type") or "", strategy.get("requestedToCapacityRatio")
    if kind not in STRATEGIES:
        yield not_supported(f"{at}.type", kind, STRATEGIES)
    for i, r in enumerate(strategy.get("resources") or ()):
        if not 0 < (weight := r.get("weight") or 1) <= 100:
            yield invalid(f"{at}.resources[{i}].weight", weight, f"resource weight of {r.get('name')} not in valid range (0, 100]")
    if kind != "RequestedToCapacityRatio":
        if ratio is not None:
            yield forbidden(f"{at}.requestedToCapacityRatio", "must be nil when type is not RequestedToCapacityRatio")
    elif ratio is None:
        yield required(f"{at}.requestedToCapacityRatio", "must be specified when type is RequestedToCapacityRatio")
    else:
        yield from _shape(ratio.get("shape") or (), f"{at}.requestedToCapacityRatio.shape")


def _shape(points: Sequence[Mapping[str, int]], at: str) -> Errors:
    if not points:
        yield required(at, "at least one point must be specified")
    for i in range(1, len(points)):
        if points[i - 1].get("utilization", 0) >= points[i].get("utilization", 0):
            yield invalid(f"{at}[{i}].utilization", points[i].get("utilization", 0), "values must be sorted in increasing order")
            break
    for i, p in enumerate(points):
        if not 0 <= p.get("utilization", 0) <= 100:
            yield invalid(f"{at}[{i}].utilization", p["utilization"], "not in valid range [0, 100]")
        if not 0 <= p.get("score", 0) <= 10:
            yield invalid(f"{at}[{i}].score", p["score"], "not in valid range [0, 10]")


def _spread(args: Mapping[str, Any], at: str) -> Errors:
    kind, constraints = args.get("defaultingType") or "System", args.get("defaultConstraints") or ()
    if kind not in ("System", "List"):
        yield not_supported(f"{at}.defaultingType", kind, ("System", "List"))
    elif kind == "System" and constraints:
        yield invalid(f"{at}.defaultingType", kind, "when .defaultConstraints are not empty")
    for i, c in enumerate(constraints):
        here, what = f"{at}.defaultConstraints[{i}]", c.get("whenUnsatisfiable") or ""
        if (c.get("maxSkew") or 0) <= 0:
            yield invalid(f"{here}.maxSkew", c.get("maxSkew") or 0, "not in valid range (0, inf)")
        if not (topology_key := c.get("topologyKey") or ""):
            yield required(f"{here}.topologyKey", "can not be empty")
        else:
            yield from validate_label_name(topology_key, f"{here}.topologyKey")
        if not what:
            yield required(f"{here}.whenUnsatisfiable", "can not be empty")
        elif what not in ("DoNotSchedule", "ScheduleAnyway"):
            yield not_supported(f"{here}.whenUnsatisfiable", what, ("DoNotSchedule", "ScheduleAnyway"))
        if c.get("labelSelector") is not None:
            yield forbidden(f"{here}.labelSelector", "constraint must not define a selector, as they deduced for each pod")
        if any((x.get("topologyKey"), x.get("whenUnsatisfiable")) == (c.get("topologyKey"), c.get("whenUnsatisfiable")) for x in constraints[:i]):
            yield duplicate(here, f"{{{topology_key}, {what}}}")


def _volumes(args: Mapping[str, Any], at: str) -> Errors:
    if (seconds := args.get("bindTimeoutSeconds", 600)) < 0:
        yield invalid(f"{at}.bindTimeoutSeconds", seconds, "invalid BindTimeoutSeconds, should not be a negative value")
    if args.get("shape") is not None:
        yield invalid(f"{at}.shape", args["shape"], "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring")


def _devices(args: Mapping[str, Any], at: str) -> Errors:
    if (text := args.get("filterTimeout")) is not None and duration_s(text) < 0:
        yield invalid(f"{at}.filterTimeout", text, "must be zero or positive")
    if (text := args.get("bindingTimeout")) is not None and duration_s(text) < 1:
        yield invalid(f"{at}.bindingTimeout", text, "must be at least 1 second")


_CHECKS: dict[str, Callable[[Mapping[str, Any], str], Errors]] = {
    "DefaultPreemption": _preemption, "InterPodAffinity": _pod_affinity, "NodeAffinity": _node_affinity, "NodeResourcesBalancedAllocation": _balanced,
    "NodeResourcesFit": _fit, "PodTopologySpread": _spread, "VolumeBinding": _volumes, "DynamicResources": _devices}


def _extenders(given: Sequence[Mapping[str, Any]]) -> Errors:
    seen: set[str] = set()
    for i, e in enumerate(given):
        at = f"extenders[{i}]"
        if e.get("prioritizeVerb") and (e.get("weight") or 0) <= 0:
            yield invalid(f"{at}.weight", e.get("weight") or 0, "must have a positive weight applied to it")
        for j, r in enumerate(e.get("managedResources") or ()):
            name, here = r.get("name") or "", f"{at}.managedResources[{j}].name"
            wrong = [*validate_label_name(name, here)]
            yield from wrong
            if not wrong and not is_extended(name):
                yield invalid(here, name, "is an invalid extended resource name")
            if name in seen:
                yield invalid(here, name, "duplicate extender managed resource name")
            seen.add(name)
    binders = sum(bool(e.get("bindVerb")) for e in given)
    if binders > 1:
        yield invalid("extenders", f"found {binders} extenders implementing bind", "only one extender can implement bind")


# --- what it comes to -----------------------------------------------------------------------------------------------------

def _profile(p: Mapping[str, Any], left_out: frozenset[str]) -> Profile:
    sets = {point: _set((p.get("plugins") or {}).get(point)) for point in POINTS}
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
    args = {c["name"]: c.get("args") or {} for c in p.get("pluginConfig") or ()}
    strategy = _strategy((args.get("NodeResourcesFit") or {}).get("scoringStrategy") or {})
    return Profile(p.get("schedulerName", DEFAULT), frozenset(FILTERING) - filters, weights, None if strategy == Strategy() else strategy, preempts,
                   _arguments(args, left_out))


def _set(given: Mapping[str, Any] | None) -> tuple[dict[str, int], frozenset[str], bool]:
    """({enabled: weight or 0}, disabled, all disabled) of a PluginSet."""
    on = {e["name"]: int(e.get("weight") or 0) for e in (given or {}).get("enabled") or ()}
    off = frozenset(e["name"] for e in (given or {}).get("disabled") or ())
    return on, off, "*" in off


def _strategy(given: Mapping[str, Any]) -> Strategy:
    resources = tuple((r["name"], int(r.get("weight") or 1)) for r in given.get("resources") or ()) or Strategy().resources
    points = (given.get("requestedToCapacityRatio") or {}).get("shape") or ()
    return Strategy(given.get("type") or "LeastAllocated", resources, tuple((x.get("utilization", 0), x.get("score", 0) * 10) for x in points))


def _arguments(args: Mapping[str, Mapping[str, Any]], left_out: frozenset[str]) -> Args:
    fit, spread, affinity = (args.get(n) or {} for n in ("NodeResourcesFit", "PodTopologySpread", "InterPodAffinity"))
    added, preemption = (args.get("NodeAffinity") or {}).get("addedAffinity") or {}, args.get("DefaultPreemption") or {}
    balanced = tuple(r["name"] for r in (args.get("NodeResourcesBalancedAllocation") or {}).get("resources") or ())
    return Args(
        ignored=frozenset((*(fit.get("ignoredResources") or ()), *(f"{g}/" for g in fit.get("ignoredResourceGroups") or ()))) | left_out,
        balanced=balanced or ARGS.balanced,
        hard_affinity_weight=int(affinity.get("hardPodAffinityWeight", ARGS.hard_affinity_weight)),
        ignore_preferred_of_existing=bool(affinity.get("ignorePreferredTermsOfExistingPods")),
        default_constraints=tuple(spread.get("defaultConstraints") or ()) if spread.get("defaultingType") == "List" else None,
        required=added.get("requiredDuringSchedulingIgnoredDuringExecution"),
        preferred=tuple(added.get("preferredDuringSchedulingIgnoredDuringExecution") or ()),
        candidates_share=int(preemption.get("minCandidateNodesPercentage", 10)) / 100,
        candidates_min=int(preemption.get("minCandidateNodesAbsolute", 100)),
        volume_bind_s=float((args.get("VolumeBinding") or {}).get("bindTimeoutSeconds", ARGS.volume_bind_s)),
        device_bind_s=duration_s((args.get("DynamicResources") or {}).get("bindingTimeout") or f"{ARGS.device_bind_s:.0f}s"))


def _extender(e: Mapping[str, Any]) -> ExtenderSpec:
    return ExtenderSpec(
        e.get("urlPrefix") or "", e.get("filterVerb") or "", e.get("prioritizeVerb") or "", e.get("bindVerb") or "", e.get("preemptVerb") or "",
        int(e.get("weight") or 0), duration_s(e.get("httpTimeout") or "0s") or 5.0, bool(e.get("nodeCacheCapable")),
        frozenset(r["name"] for r in e.get("managedResources") or ()), bool(e.get("ignorable")), e.get("tlsConfig") or {}, bool(e.get("enableHTTPS")))
