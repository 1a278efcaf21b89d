"""Policy: which requests are logged, how much of them, and at which stages. The first rule that matches decides.

Upstream: "Auditing", Audit policy; apiserver pkg/audit/policy/checker.go, pkg/apis/audit/validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from kubern.api.authz.attributes import Attributes, path_matches
from kubern.model.request import User

LEVELS = ("None", "Metadata", "Request", "RequestResponse")
RECEIVED, STARTED, COMPLETE, PANIC = STAGES = ("RequestReceived", "ResponseStarted", "ResponseComplete", "Panic")


class BadPolicy(ValueError):
    """An audit policy that cannot be used; the message says where and why."""


class Rule(NamedTuple):
    level: int
    users: frozenset[str]
    groups: frozenset[str]
    verbs: frozenset[str]
    namespaces: frozenset[str]
    resources: tuple[tuple[str, tuple[str, ...], frozenset[str]], ...]      # (group, resources, names)
    paths: tuple[str, ...]
    omit_stages: frozenset[str]
    omit_managed_fields: bool


class Decided(NamedTuple):
    level: int
    omit_stages: frozenset[str]
    omit_managed_fields: bool


NOTHING = Decided(0, frozenset(), False)


class Policy(NamedTuple):
    rules: tuple[Rule, ...]

    def decide(self, user: User | None, a: Attributes) -> Decided:
        """The first rule that matches decides."""
        for rule in self.rules:
            if _matches(rule, user, a):
                return Decided(rule.level, rule.omit_stages, rule.omit_managed_fields)
        return NOTHING


def _matches(rule: Rule, user: User | None, a: Attributes) -> bool:
    if rule.users and (user is None or user.name not in rule.users):
        return False
    if rule.groups and (user is None or rule.groups.isdisjoint(user.groups)):
        return False
    if rule.verbs and a.verb not in rule.verbs:
        return False
    if rule.namespaces or rule.resources:
        if not a.is_resource or (rule.namespaces and a.namespace not in rule.namespaces):
            return False
        return not rule.resources or any(
            g in ("*", a.group) and (not names or a.name in names) and (not wanted or any(_covers(w, a.resource, a.subresource) for w in wanted))
            for g, wanted, names in rule.resources)
    if rule.paths:
        return not a.is_resource and any(path_matches(p, a.path) for p in rule.paths)
    return True


def _covers(wanted: str, resource: str, subresource: str) -> bool:
    """ "pods", "pods/log", "pods/*" (itself and all below), "*/status", "*" (everything)."""
    if wanted in ("*", f"{resource}/{subresource}" if subresource else resource):
        return True
    name, _, sub = wanted.partition("/")
    return (name == "*" and bool(subresource) and sub == subresource) or (name == resource and sub == "*")


def parse(doc: Any) -> Policy:
    """A Policy of audit.k8s.io/v1 as read from YAML. Raises BadPolicy."""
    if not isinstance(doc, dict) or doc.get("kind") != "Policy" or doc.get("apiVersion") != "audit.k8s.io/v1":
        raise BadPolicy("a Policy of apiVersion audit.k8s.io/v1 is wanted")
    rules = doc.get("rules")
    if not isinstance(rules, list) or not rules:
        raise BadPolicy("loaded illegal policy with 0 rules")
    everywhere = _stages(doc.get("omitStages"), "omitStages")
    return Policy(tuple(_rule(r, f"rules[{i}]", everywhere, bool(doc.get("omitManagedFields"))) for i, r in enumerate(rules)))


def _stages(value: Any, at: str) -> frozenset[str]:
    for s in value or ():
        if s not in STAGES:
            raise BadPolicy(f'{at}: Unsupported value: "{s}": supported values: {", ".join(STAGES)}')
    return frozenset(value or ())


def _names(rule: dict[str, Any], field: str, at: str) -> tuple[str, ...]:
    value = rule.get(field) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise BadPolicy(f"{at}.{field}: must be a list of names")
    return tuple(value)


def _rule(rule: Any, at: str, everywhere: frozenset[str], omit_fields: bool) -> Rule:
    if not isinstance(rule, dict):
        raise BadPolicy(f"{at}: must be a rule")
    level = rule.get("level")
    if not level:
        raise BadPolicy(f"{at}.level: Required value")
    if level not in LEVELS:
        raise BadPolicy(f'{at}.level: Unsupported value: "{level}": supported values: {", ".join(LEVELS)}')
    paths = _names(rule, "nonResourceURLs", at)
    if paths and (rule.get("resources") or rule.get("namespaces")):
        raise BadPolicy(f"{at}.nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs")
    for p in paths:
        if p != "*" and not p.startswith("/"):
            raise BadPolicy(f"{at}.nonResourceURLs: Invalid value: {p!r}: non-resource URL rules must begin with a '/' character")
        if "*" in p[:-1]:
            raise BadPolicy(f"{at}.nonResourceURLs: Invalid value: {p!r}: non-resource URL wildcards '*' must be the final character of the rule")
    resources = []
    for j, r in enumerate(rule.get("resources") or ()):
        where = f"{at}.resources[{j}]"
        if not isinstance(r, dict):
            raise BadPolicy(f"{where}: must name a group and resources")
        if r.get("resourceNames") and not r.get("resources"):
            raise BadPolicy(f"{where}.resourceNames: Invalid value: using resourceNames requires at least one resource")
        resources.append((str(r.get("group") or ""), _names(r, "resources", where), frozenset(_names(r, "resourceNames", where))))
    own = rule.get("omitManagedFields")
    return Rule(LEVELS.index(level), frozenset(_names(rule, "users", at)), frozenset(_names(rule, "userGroups", at)), frozenset(_names(rule, "verbs", at)),
                frozenset(_names(rule, "namespaces", at)), tuple(resources), paths, everywhere | _stages(rule.get("omitStages"), f"{at}.omitStages"),
                omit_fields if own is None else bool(own))


def read(path: str | Path) -> Policy:
    """The policy in a file. Raises BadPolicy."""
    import yaml

    try:
        return parse(yaml.safe_load(Path(path).read_bytes()))
    except (OSError, yaml.YAMLError, BadPolicy) as e:
        raise BadPolicy(f"{path}: {e}") from None
