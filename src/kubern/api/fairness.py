"""Fairness: which flow schema and priority level a request belongs to. Every answer names both.

The classification is upstream's; of its queues there is one limit for all (max_in_flight, handle.py), because one loop serves requests
in the order they come. Upstream: apiserver util/flowcontrol/{rule.go,apf_controller.go}; KEP-1040.
"""

from __future__ import annotations

from typing import Any

from kubern.api.authz.attributes import Attributes
from kubern.api.cache import Cache, Change
from kubern.model.object import Object
from kubern.model.request import User

MEMO_MAX = 20_000
Header = tuple[str, str]


class Fairness:
    """Flow schemas in order, and what was found for whom."""

    def __init__(self, cache: Cache) -> None:
        self._schemas = cache.collection("flowcontrol.apiserver.k8s.io", "flowschemas")
        self._levels = cache.collection("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations")
        self._order: list[Object] | None = None
        self._memo: dict[Any, tuple[Header, ...]] = {}
        for collection in (self._schemas, self._levels):
            collection.listeners.insert(0, self._changed)

    def _changed(self, changes: list[Change]) -> None:
        self._order = None
        self._memo.clear()

    def headers(self, user: User, a: Attributes) -> tuple[Header, ...]:
        """The two headers, none while there are no flow schemas."""
        key = (user.name, user.groups, a.verb, a.group, a.resource, a.subresource, a.namespace) if a.is_resource else (
            user.name, user.groups, a.verb, a.path)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            found = self._memo[key] = self._find(user, a)
        return found

    def _find(self, user: User, a: Attributes) -> tuple[Header, ...]:
        if self._order is None:
            schemas = [i.peek() for i in self._schemas.range()]
            self._order = sorted(schemas, key=lambda s: ((s.get("spec") or {}).get("matchingPrecedence") or 1000, s["metadata"]["name"]))
        for schema in self._order:
            spec = schema.get("spec") or {}
            if any(_matches(rule, user, a) for rule in spec.get("rules") or ()):
                level = self._levels.get((spec.get("priorityLevelConfiguration") or {}).get("name") or "")
                uid = level.peek()["metadata"]["uid"] if level is not None else ""
                return (("X-Kubernetes-Pf-Flowschema-Uid", schema["metadata"]["uid"]), ("X-Kubernetes-Pf-Prioritylevel-Uid", uid))
        return ()


def _matches(rule: Object, user: User, a: Attributes) -> bool:
    if not any(_subject(s, user) for s in rule.get("subjects") or ()):
        return False
    if a.is_resource:
        return any(_resource(r, a) for r in rule.get("resourceRules") or ())
    return any(_path(r, a) for r in rule.get("nonResourceRules") or ())


def _subject(subject: Object, user: User) -> bool:
    kind = subject.get("kind")
    if kind == "User":
        name = (subject.get("user") or {}).get("name")
        return name == "*" or name == user.name
    if kind == "Group":
        name = (subject.get("group") or {}).get("name")
        return name == "*" or name in user.groups
    account = subject.get("serviceAccount") or {}
    prefix = f"system:serviceaccount:{account.get('namespace')}:"
    if account.get("name") == "*":
        return user.name.startswith(prefix)
    return user.name == prefix + (account.get("name") or "")


def _in(value: str, allowed: list[str] | None) -> bool:
    return allowed is not None and ("*" in allowed or value in allowed)


def _resource(rule: Object, a: Attributes) -> bool:
    resource = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
    if not (_in(a.verb, rule.get("verbs")) and _in(a.group, rule.get("apiGroups")) and _in(resource, rule.get("resources"))):
        return False
    return _in(a.namespace, rule.get("namespaces")) if a.namespace else bool(rule.get("clusterScope"))


def _path(rule: Object, a: Attributes) -> bool:
    if not _in(a.verb, rule.get("verbs")):
        return False
    return any(p == "*" or p == a.path or (p.endswith("*") and a.path.startswith(p[:-1])) for p in rule.get("nonResourceURLs") or ())
