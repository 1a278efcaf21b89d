"""RBAC: who may do what by Roles, ClusterRoles and their bindings. An index in memory, fed by the API's cache; no I/O.

Bindings are indexed by subject; what applies to a user is compiled once and kept until any RBAC object changes, decisions
likewise, so an answer costs a dict lookup. Order is that of names, cluster bindings first: the first rule that allows gives the
reason. Also here: covering of rules by rules, for the checks against privilege escalation (api/authz/escalation.py).
Upstream: plugin/pkg/auth/authorizer/rbac, pkg/registry/rbac/validation, component-helpers/auth/rbac/validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kubern.api.authz.attributes import NO_OPINION, Attributes, Decision, path_matches
from kubern.model.invalid import aggregate, quote
from kubern.model.object import Object
from kubern.model.request import User

GROUP = "rbac.authorization.k8s.io"
WATCHED = ((GROUP, "roles"), (GROUP, "clusterroles"), (GROUP, "rolebindings"), (GROUP, "clusterrolebindings"))
DECISIONS_MAX = 100_000
USERS_MAX = 10_000

Rule = dict[str, Any]
_NONE: tuple[str, ...] = ()


class _Compiled(NamedTuple):
    """A PolicyRule as sets."""

    verbs: frozenset[str]
    groups: frozenset[str]
    resources: frozenset[str]
    names: frozenset[str]
    urls: tuple[str, ...]
    any_verb: bool
    any_group: bool
    any_resource: bool


def compile_rule(rule: Rule) -> _Compiled:
    verbs, groups = frozenset(rule.get("verbs") or _NONE), frozenset(rule.get("apiGroups") or _NONE)
    resources = frozenset(rule.get("resources") or _NONE)
    return _Compiled(verbs, groups, resources, frozenset(rule.get("resourceNames") or _NONE), tuple(rule.get("nonResourceURLs") or _NONE),
                     "*" in verbs, "*" in groups, "*" in resources)


def allows(rule: _Compiled, a: Attributes) -> bool:
    """Whether one rule allows what is asked."""
    if not (rule.any_verb or a.verb in rule.verbs):
        return False
    if not a.is_resource:
        return any(path_matches(u, a.path) for u in rule.urls)
    if not (rule.any_group or a.group in rule.groups):
        return False
    if not rule.any_resource:
        if a.subresource:
            if f"{a.resource}/{a.subresource}" not in rule.resources and f"*/{a.subresource}" not in rule.resources:
                return False
        elif a.resource not in rule.resources:
            return False
    return not rule.names or a.name in rule.names


class _Source(NamedTuple):
    """A binding that applies to a user: its description for the reason, and the rules it gives; or the error of its roleRef."""

    text: str
    rules: tuple[_Compiled, ...]
    raw: tuple[Rule, ...]
    error: str


def _subject_key(subject: dict[str, Any], namespace: str) -> tuple[str, str] | None:
    kind, name = subject.get("kind"), subject.get("name") or ""
    if kind == "User":
        return "u", name
    if kind == "Group":
        return "g", name
    if kind == "ServiceAccount":
        ns = subject.get("namespace") or namespace
        return ("u", f"system:serviceaccount:{ns}:{name}") if ns else None
    return None


def _describe_subject(subject: dict[str, Any], namespace: str) -> str:
    kind, name = subject.get("kind") or "", subject.get("name") or ""
    if kind == "ServiceAccount":
        name = f"{name}/{subject.get('namespace') or namespace}"
    return f"{kind} {quote(name)}"


class Rbac:
    """The index. `observe` keeps it current; `authorize` and `rules_for` read it."""

    def __init__(self) -> None:
        self._roles: dict[tuple[str, str], tuple[tuple[_Compiled, ...], tuple[Rule, ...]]] = {}   # (namespace or "", name)
        self._bindings: dict[str, dict[str, Object]] = {"": {}}                                   # namespace or "" -> name -> binding
        self._by_subject: dict[str, dict[tuple[str, str], set[str]]] = {"": {}}                   # namespace or "" -> subject -> names
        self._sources: dict[tuple[str, tuple[str, ...], str], tuple[_Source, ...]] = {}
        self._decisions: dict[tuple[Any, ...], Decision] = {}
        self.generation = 0

    # -- feeding

    def observe(self, group: str, plural: str, namespace: str, name: str, obj: Object | None) -> None:
        """An RBAC object was written (obj) or deleted (None)."""
        if plural in ("roles", "clusterroles"):
            key = (namespace, name)
            if obj is None:
                self._roles.pop(key, None)
            else:
                raw = tuple(obj.get("rules") or ())
                self._roles[key] = (tuple(compile_rule(r) for r in raw), raw)
        elif plural in ("rolebindings", "clusterrolebindings"):
            bindings = self._bindings.setdefault(namespace, {})
            subjects = self._by_subject.setdefault(namespace, {})
            old = bindings.pop(name, None)
            for s in (old or {}).get("subjects") or ():
                k = _subject_key(s, namespace)
                if k and k in subjects:
                    subjects[k].discard(name)
                    if not subjects[k]:
                        del subjects[k]
            if obj is not None:
                bindings[name] = obj
                for s in obj.get("subjects") or ():
                    k = _subject_key(s, namespace)
                    if k:
                        subjects.setdefault(k, set()).add(name)
            elif namespace and not bindings:
                del self._bindings[namespace], self._by_subject[namespace]
        else:
            return
        self.generation += 1
        self._sources.clear()
        self._decisions.clear()

    # -- reading

    def role_rules(self, ref: dict[str, Any], namespace: str) -> tuple[tuple[Rule, ...], str]:
        """The rules a roleRef points at, or the error of resolving it."""
        _, raw, error = self._resolve(ref, namespace)
        return raw, error

    def _resolve(self, ref: dict[str, Any], namespace: str) -> tuple[tuple[_Compiled, ...], tuple[Rule, ...], str]:
        kind, name = ref.get("kind") or "", ref.get("name") or ""
        if kind == "Role":
            found, what = self._roles.get((namespace, name)) if namespace else None, "role"
        elif kind == "ClusterRole":
            found, what = self._roles.get(("", name)), "clusterrole"
        else:
            return (), (), f"unsupported role reference kind: {quote(kind)}"
        if found is None:
            return (), (), f"{what}.{GROUP} {quote(name)} not found"
        return found[0], found[1], ""

    def _applying(self, user: User, namespace: str) -> tuple[_Source, ...]:
        key = (user.name, user.groups, namespace)
        sources = self._sources.get(key)
        if sources is not None:
            return sources
        out: list[_Source] = []
        subjects = self._by_subject.get(namespace)
        if subjects:
            keys = {("u", user.name), *(("g", g) for g in user.groups)}
            names: set[str] = set()
            for k in keys:
                names |= subjects.get(k, set())
            for name in sorted(names):
                binding = self._bindings[namespace][name]
                subject = next(s for s in binding["subjects"] if _subject_key(s, namespace) in keys)
                ref = binding.get("roleRef") or {}
                rules, raw, error = self._resolve(ref, namespace)
                what = f"RoleBinding {quote(f'{name}/{namespace}')}" if namespace else f"ClusterRoleBinding {quote(name)}"
                text = f"{what} of {ref.get('kind')} {quote(ref.get('name') or '')} to {_describe_subject(subject, namespace)}"
                out.append(_Source(text, rules, raw, error))
        if len(self._sources) >= USERS_MAX:
            self._sources.clear()
        sources = self._sources[key] = tuple(out)
        return sources

    def sources(self, user: User, namespace: str) -> Iterator[_Source]:
        yield from self._applying(user, "")
        if namespace:
            yield from self._applying(user, namespace)

    def authorize(self, a: Attributes) -> Decision:
        user = a.user
        key = (user.name, user.groups, a.verb, a.group, a.resource, a.subresource, a.namespace, a.name) if a.is_resource else \
            (user.name, user.groups, a.verb, a.path)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(a)
            if len(self._decisions) >= DECISIONS_MAX:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision

    def _decide(self, a: Attributes) -> Decision:
        errors = []
        for source in self.sources(a.user, a.namespace):
            if source.error:
                errors.append(source.error)
            elif any(allows(r, a) for r in source.rules):
                return Decision(True, f"RBAC: allowed by {source.text}")
        return Decision(False, f"RBAC: {aggregate(errors)}") if errors else NO_OPINION

    def rules_for(self, user: User, namespace: str) -> tuple[list[Rule], list[str]]:
        """Every rule that applies to the user in the namespace, and the errors of resolving bindings."""
        rules: list[Rule] = []
        errors: list[str] = []
        for source in self.sources(user, namespace):
            rules.extend(source.raw)
            if source.error:
                errors.append(source.error)
        return rules, errors


# -- covering: do the rules one holds include the rules one wants to give?

def break_down(rule: Rule) -> Iterator[Rule]:
    """A rule as its smallest parts, one verb × group × resource × name (or URL) each, in upstream's order."""
    names = rule.get("resourceNames") or ()
    for group in rule.get("apiGroups") or ():
        for resource in rule.get("resources") or ():
            for verb in rule.get("verbs") or ():
                if names:
                    for n in names:
                        yield {"apiGroups": [group], "resources": [resource], "verbs": [verb], "resourceNames": [n]}
                else:
                    yield {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
    for url in rule.get("nonResourceURLs") or ():
        for verb in rule.get("verbs") or ():
            yield {"nonResourceURLs": [url], "verbs": [verb]}


def _covers_one(owner: Rule, part: Rule) -> bool:
    verbs = owner.get("verbs") or ()
    if "*" not in verbs and not set(part["verbs"]) <= set(verbs):
        return False
    if "nonResourceURLs" in part:
        return all(any(path_matches(u, url) for u in owner.get("nonResourceURLs") or ()) for url in part["nonResourceURLs"])
    groups, resources = owner.get("apiGroups") or (), owner.get("resources") or ()
    if "*" not in groups and not set(part["apiGroups"]) <= set(groups):
        return False
    resource = part["resources"][0]
    if "*" not in resources and resource not in resources:
        _, slash, sub = resource.partition("/")
        if not slash or f"*/{sub}" not in resources:
            return False
    owned, wanted = owner.get("resourceNames") or (), part.get("resourceNames") or ()
    if not owned:
        return True
    return bool(wanted) and set(wanted) <= set(owned)


def uncovered(owned: Iterable[Rule], wanted: Iterable[Rule]) -> list[Rule]:
    """The parts of `wanted` that no rule of `owned` includes."""
    owned = list(owned)
    return [part for rule in wanted for part in break_down(rule) if not any(_covers_one(o, part) for o in owned)]


def compact(parts: Iterable[Rule]) -> list[Rule]:
    """Parts with the same group, resource and names become one with all their verbs, the others stay as they are."""
    merged: dict[tuple[Any, ...], Rule] = {}
    out: list[Rule] = []
    for part in parts:
        if "nonResourceURLs" in part:
            out.append(part)
            continue
        key = (part["apiGroups"][0], part["resources"][0], tuple(part.get("resourceNames") or ()))
        if key in merged:
            merged[key]["verbs"] = [*merged[key]["verbs"], *part["verbs"]]
        else:
            merged[key] = dict(part)
            out.append(merged[key])
    return out


def describe(rule: Rule) -> str:
    """`{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`."""
    parts = [f"{label}:[{' '.join(quote(v) for v in rule[field])}]"
             for label, field in (("APIGroups", "apiGroups"), ("Resources", "resources"), ("NonResourceURLs", "nonResourceURLs"),
                                  ("ResourceNames", "resourceNames"), ("Verbs", "verbs")) if rule.get(field)]
    return "{" + ", ".join(parts) + "}"
