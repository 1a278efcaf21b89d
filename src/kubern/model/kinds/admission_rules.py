"""What admission webhooks and admission policies have in common: rules of operations and resources, match conditions, selectors.

Upstream: the shared parts of pkg/apis/admissionregistration/validation; KEP-3716 (match conditions).
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.invalid import duplicate, invalid, not_supported, required, too_many
from kubern.model.kinds.checks import Errors, messages
from kubern.model.kinds.expressions import compiles
from kubern.model.kinds.labels import validate_label_selector
from kubern.model.object import Object

OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
MUTATING_OPERATIONS = ("*", "CONNECT", "CREATE", "UPDATE")
SCOPES = ("*", "Cluster", "Namespaced")
FAILURE_POLICIES = ("Fail", "Ignore")
MATCH_POLICIES = ("Equivalent", "Exact")
REINVOCATION_POLICIES = ("IfNeeded", "Never")
CONDITIONS_MAX = 64
STATIC_SUFFIX = ".static.k8s.io"


def default_rule(rule: Object) -> None:
    if rule.get("scope") is None:
        rule["scope"] = "*"


def default_selectors(obj: Object) -> None:
    """matchPolicy and the two selectors, of a webhook or of MatchResources."""
    if obj.get("matchPolicy") is None:
        obj["matchPolicy"] = "Equivalent"
    for field in ("namespaceSelector", "objectSelector"):
        if obj.get(field) is None:
            obj[field] = {}


def default_match_resources(match: Object | None) -> None:
    if match is not None:
        default_selectors(match)
        for field in ("resourceRules", "excludeResourceRules"):
            for rule in match.get(field) or ():
                default_rule(rule)


def rule_with_operations(rule: Object, path: str) -> Errors:
    operations = rule.get("operations") or []
    if not operations:
        yield required(f"{path}.operations")
    if len(operations) > 1 and "*" in operations:
        yield invalid(f"{path}.operations", operations, "if '*' is present, must not specify other operations")
    for i, operation in enumerate(operations):
        if operation not in OPERATIONS:
            yield not_supported(f"{path}.operations[{i}]", operation, OPERATIONS)
    for field, what in (("apiGroups", "API groups"), ("apiVersions", "API versions")):
        values = rule.get(field) or []
        if not values:
            yield required(f"{path}.{field}")
        if len(values) > 1 and "*" in values:
            yield invalid(f"{path}.{field}", values, f"if '*' is present, must not specify other {what}")
    for i, version in enumerate(rule.get("apiVersions") or ()):
        if not version:
            yield required(f"{path}.apiVersions[{i}]")
    yield from _resources(rule.get("resources") or [], f"{path}.resources")
    scope = rule.get("scope")
    if scope is not None and scope not in SCOPES:
        yield not_supported(f"{path}.scope", scope, SCOPES)


def _resources(resources: list[str], path: str) -> Errors:
    if not resources:
        yield required(path)
    any_subresource: set[str] = set()
    any_resource: set[str] = set()
    plain = False
    for i, text in enumerate(resources):
        if not text:
            yield required(f"{path}[{i}]")
            continue
        resource, slash, subresource = text.partition("/")
        if not slash:
            plain = text != "*"
            continue
        if resource in any_subresource:
            yield invalid(f"{path}[{i}]", text, f"if '{resource}/*' is present, must not specify {text}")
        if subresource in any_resource:
            yield invalid(f"{path}[{i}]", text, f"if '*/{subresource}' is present, must not specify {text}")
        if subresource == "*":
            any_subresource.add(resource)
        if resource == "*":
            any_resource.add(subresource)
    if len(resources) > 1 and "*/*" in resources:
        yield invalid(path, resources, "if '*/*' is present, must not specify other resources")
    if "*" in resources and plain:
        yield invalid(path, resources, "if '*' is present, must not specify other resources without subresources")


def match_resources(match: Object | None, path: str) -> Errors:
    if match is None:
        return
    policy = match.get("matchPolicy")
    if policy is None:
        yield required(f"{path}.matchPolicy")
    elif policy not in MATCH_POLICIES:
        yield not_supported(f"{path}.matchPolicy", policy, MATCH_POLICIES)
    for field in ("namespaceSelector", "objectSelector"):
        if match.get(field) is None:
            yield required(f"{path}.{field}")
        else:
            yield from validate_label_selector(match[field], f"{path}.{field}")
    for field in ("resourceRules", "excludeResourceRules"):
        for i, rule in enumerate(match.get(field) or ()):
            yield from _named_rule(rule, f"{path}.{field}[{i}]")


def _named_rule(rule: Object, path: str) -> Errors:
    seen = set()
    for i, name in enumerate(rule.get("resourceNames") or ()):
        yield from messages(name, names.is_path_segment_name(name), f"{path}.resourceNames[{i}]")
        if name in seen:
            yield duplicate(f"{path}.resourceNames[{i}]", name)
        seen.add(name)
    yield from rule_with_operations(rule, path)


def match_conditions(conditions: list[Object], path: str, params: bool = False) -> Errors:
    if len(conditions) > CONDITIONS_MAX:
        yield too_many(path, len(conditions), CONDITIONS_MAX)
    seen = set()
    for i, c in enumerate(conditions):
        name, expression = c.get("name") or "", (c.get("expression") or "").strip()
        if not expression:
            yield required(f"{path}[{i}].expression")
        else:
            yield from compiles(expression, f"{path}[{i}].expression", "bool", params=params)
        if not name:
            yield required(f"{path}[{i}].name")
        else:
            yield from messages(name, names.is_qualified_name(name), f"{path}[{i}].name")
            if name in seen:
                yield duplicate(f"{path}[{i}].name", name)
            seen.add(name)


def static_suffix_warnings(new: Object, old: Object | None) -> list[str]:
    name = new["metadata"].get("name") or ""
    if name.endswith(STATIC_SUFFIX):
        return [f'metadata.name: names ending with "{STATIC_SUFFIX}" are reserved for static manifest-based configurations and cannot be '
                "managed via the API"]
    return []
