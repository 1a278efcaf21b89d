"""flowcontrol.apiserver.k8s.io/v1: FlowSchema, PriorityLevelConfiguration; what a new cluster has of them stands in flow_defaults.py.

Upstream: pkg/apis/flowcontrol/{v1/defaults.go,validation}, pkg/registry/flowcontrol; KEP-1040.
"""

from __future__ import annotations

import math

from kubern.model import names
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_supported, required
from kubern.model.kinds.checks import Errors, form, keep, keep_status, listed, messages, same, zero_status
from kubern.model.kinds.flow_defaults import MANDATORY_LEVELS, MANDATORY_SCHEMAS
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.object import Object

PRECEDENCE_DEFAULT, PRECEDENCE_MAX = 1000, 10_000
SHARES_DEFAULT, HAND_DEFAULT, QUEUES_DEFAULT, QUEUE_LENGTH_DEFAULT = 30, 8, 64, 50
QUEUES_MAX, HASH_BITS_MAX = 10_000_000, 60
METHODS = ("ByNamespace", "ByUser")
VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch")
SUBJECTS = ("Group", "ServiceAccount", "User")
PRESERVE_ZERO = "flowcontrol.k8s.io/preserve-zero-concurrency-shares"


# --- defaults ---------------------------------------------------------------------------------------------------------------------------

def default_schema(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if not spec.get("matchingPrecedence"):
        spec["matchingPrecedence"] = PRECEDENCE_DEFAULT


def default_level(obj: Object) -> None:
    spec = obj.get("spec") or {}
    exempt, limited = spec.get("exempt"), spec.get("limited")
    if exempt is not None:
        _default(exempt, nominalConcurrencyShares=0, lendablePercent=0)
    if limited is not None:
        _default(limited, nominalConcurrencyShares=SHARES_DEFAULT, lendablePercent=0)
        queuing = (limited.get("limitResponse") or {}).get("queuing")
        if queuing is not None:
            for field, value in (("handSize", HAND_DEFAULT), ("queues", QUEUES_DEFAULT), ("queueLengthLimit", QUEUE_LENGTH_DEFAULT)):
                queuing[field] = queuing.get(field) or value


def _default(obj: Object, **values: int) -> None:
    for field, value in values.items():
        if obj.get(field) is None:
            obj[field] = value


def _status(new: Object, old: Object) -> None:
    """/status changes nothing else, no metadata either."""
    managed, revision = new["metadata"].get("managedFields"), new["metadata"].get("resourceVersion")
    new["metadata"] = dict(old["metadata"])
    for field, value in (("managedFields", managed), ("resourceVersion", revision)):
        if value is not None:
            new["metadata"][field] = value
    keep(new, old, "spec")


# --- FlowSchema -------------------------------------------------------------------------------------------------------------------------

def validate_schema(obj: Object, old: Object | None = None) -> Errors:
    spec, name = obj.get("spec") or {}, obj["metadata"].get("name") or ""
    precedence = spec.get("matchingPrecedence") or 0
    if precedence <= 0:
        yield invalid("spec.matchingPrecedence", precedence, "must be a positive value")
    if precedence > PRECEDENCE_MAX:
        yield invalid("spec.matchingPrecedence", precedence, f"must not be greater than {PRECEDENCE_MAX}")
    if precedence == 1 and name != "exempt":
        yield invalid("spec.matchingPrecedence", precedence, "only the schema named 'exempt' may have matchingPrecedence 1")
    method = spec.get("distinguisherMethod")
    if method is not None and method.get("type") not in METHODS:
        yield not_supported("spec.distinguisherMethod.type", form(method, "flowcontrol.FlowDistinguisherMethod"), METHODS)
    level = (spec.get("priorityLevelConfiguration") or {}).get("name") or ""
    if level:
        yield from messages(level, names.is_dns1123_subdomain(level), "spec.priorityLevelConfiguration.name")
    else:
        yield required("spec.priorityLevelConfiguration.name", "must reference a priority level")
    for i, rule in enumerate(spec.get("rules") or ()):
        yield from _rules(rule, f"spec.rules[{i}]")
    fixed = MANDATORY_SCHEMAS.get(name)
    if fixed is not None and not same(spec, fixed):
        yield invalid("spec", form(spec, "flowcontrol.FlowSchemaSpec"), f"spec of '{name}' must equal the fixed value")
    yield from validate_status(obj)


def _rules(rule: Object, path: str) -> Errors:
    if not rule.get("subjects"):
        yield required(f"{path}.subjects", "subjects must contain at least one value")
    for i, subject in enumerate(rule.get("subjects") or ()):
        yield from _subject(subject, f"{path}.subjects[{i}]")
    if not rule.get("resourceRules") and not rule.get("nonResourceRules"):
        yield required(path, "at least one of resourceRules and nonResourceRules has to be non-empty")
    for i, r in enumerate(rule.get("resourceRules") or ()):
        yield from _resource_rule(r, f"{path}.resourceRules[{i}]")
    for i, r in enumerate(rule.get("nonResourceRules") or ()):
        yield from _path_rule(r, f"{path}.nonResourceRules[{i}]")


_FIELDS = {"ServiceAccount": "serviceAccount", "User": "user", "Group": "group"}


def _subject(subject: Object, path: str) -> Errors:
    kind = subject.get("kind") or ""
    field = _FIELDS.get(kind)
    if field is None:
        yield not_supported(f"{path}.kind", kind, SUBJECTS)
        return
    value = subject.get(field)
    if value is None:
        yield required(f"{path}.{field}", f"{field} is required when subject kind is '{kind}'")
    else:
        name = value.get("name") or ""
        if not name:
            yield required(f"{path}.{field}.name")
        elif field == "serviceAccount" and name != "*":
            yield from messages(name, names.is_dns1123_subdomain(name), f"{path}.serviceAccount.name")
        if field == "serviceAccount":
            namespace = value.get("namespace") or ""
            if namespace:
                yield from messages(namespace, names.is_dns1123_label(namespace), f"{path}.serviceAccount.namespace")
            else:
                yield required(f"{path}.serviceAccount.namespace", "must specify namespace for service account")
    for other, other_field in (("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")):
        if other != kind and subject.get(other_field) is not None:
            yield forbidden(f"{path}.{other_field}", f"{other_field} is forbidden when subject kind is not '{other}'")


def _verbs(verbs: list[str], path: str) -> Errors:
    if not verbs:
        yield required(f"{path}.verbs", "verbs must contain at least one value")
    elif "*" in verbs:
        if len(verbs) > 1:
            yield invalid(f"{path}.verbs", verbs, "if '*' is present, must not specify other verbs")
    elif not set(verbs) <= set(VERBS):
        yield not_supported(f"{path}.verbs", verbs, VERBS)


def _resource_rule(rule: Object, path: str) -> Errors:
    yield from _verbs(rule.get("verbs") or [], path)
    for field, one in (("apiGroups", "api group"), ("resources", "resource")):
        values = rule.get(field) or ()
        if not values:
            yield required(f"{path}.{field}", f"resource rules must supply at least one {one}")
        elif len(values) > 1 and "*" in values:
            yield invalid(f"{path}.{field}", values, f"if '*' is present, must not specify other {one}s")
    namespaces = rule.get("namespaces") or ()
    if not namespaces and not rule.get("clusterScope"):
        yield required(f"{path}.namespaces", "resource rules that are not cluster scoped must supply at least one namespace")
    elif "*" in namespaces:
        if len(namespaces) > 1:
            yield invalid(f"{path}.namespaces", namespaces, "if '*' is present, must not specify other namespaces")
    else:
        for i, namespace in enumerate(namespaces):
            for text in names.is_dns1123_label(namespace):
                yield invalid(f"{path}.namespaces[{i}]", namespace, f"each member of this list must be '*' or a DNS-1123 label; {text}")


def _path_rule(rule: Object, path: str) -> Errors:
    yield from _verbs(rule.get("verbs") or [], path)
    urls = rule.get("nonResourceURLs") or ()
    here = f"{path}.nonResourceURLs"
    if not urls:
        yield required(here, "nonResourceURLs must contain at least one value")
    elif "*" in urls:
        if len(urls) > 1:
            yield invalid(here, urls, "if '*' is present, must not specify other non-resource URLs")
    else:
        for i, url in enumerate(urls):
            if why := _url_error(url):
                yield invalid(f"{here}[{i}]", url, why)


def _url_error(url: str) -> str:
    if not url:
        return "must not be empty"
    if url == "/":
        return ""
    if not url.startswith("/"):
        return "must start with slash"
    if " " in url:
        return "must not contain white-space"
    if "//" in url:
        return "must not contain double slash"
    stars = url.count("*")
    return "wildcard can only do suffix matching" if stars > 1 or (stars == 1 and not url.endswith("/*")) else ""


def validate_status(obj: Object, old: Object | None = None) -> Errors:
    seen = set()
    for i, c in enumerate((obj.get("status") or {}).get("conditions") or ()):
        path, type_ = f"status.conditions[{i}].type", c.get("type") or ""
        if type_ in seen:
            yield duplicate(path, type_)
        seen.add(type_)
        if not type_:
            yield required(path)


# --- PriorityLevelConfiguration ---------------------------------------------------------------------------------------------------------

def validate_level(obj: Object, old: Object | None = None) -> Errors:
    spec, name = obj.get("spec") or {}, obj["metadata"].get("name") or ""
    if PRESERVE_ZERO in (obj["metadata"].get("annotations") or {}):
        yield forbidden("metadata.annotations", f"annotation '{PRESERVE_ZERO}' is forbidden")
    yield from _level_spec(spec, name)
    yield from _mandatory_level(spec, name)
    yield from validate_status(obj)


def _level_spec(spec: Object, name: str) -> Errors:
    type_, exempt, limited = spec.get("type") or "", spec.get("exempt"), spec.get("limited")
    if (name == "exempt") != (type_ == "Exempt"):
        yield invalid("spec.type", type_, "must be 'Exempt' if and only if `name` is 'exempt'")
    if type_ == "Exempt":
        if limited is not None:
            yield forbidden("spec.limited", "must be nil if the type is not Limited")
        if exempt is not None:
            if (exempt.get("nominalConcurrencyShares") or 0) < 0:
                yield invalid("spec.exempt.nominalConcurrencyShares", exempt["nominalConcurrencyShares"], "must be a non-negative integer")
            yield from _percent(exempt.get("lendablePercent"), "spec.exempt.lendablePercent")
    elif type_ == "Limited":
        if exempt is not None:
            yield forbidden("spec.exempt", "must be nil if the type is Limited")
        if limited is None:
            yield required("spec.limited", "must not be empty when type is Limited")
        else:
            yield from _limited(limited, "spec.limited")
    else:
        yield not_supported("spec.type", type_, ("Exempt", "Limited"))


def _percent(value: int | None, path: str) -> Errors:
    if value is not None and not 0 <= value <= 100:
        yield invalid(path, value, "must be between 0 and 100, inclusive")


def _limited(limited: Object, path: str) -> Errors:
    shares = limited.get("nominalConcurrencyShares") or 0
    if shares < 0:
        yield invalid(f"{path}.nominalConcurrencyShares", shares, "must be a non-negative integer")
    response = limited.get("limitResponse") or {}
    type_, queuing = response.get("type") or "", response.get("queuing")
    here = f"{path}.limitResponse"
    if type_ == "Reject":
        if queuing is not None:
            yield forbidden(f"{here}.queuing", "must be nil if limited.limitResponse.type is not Limited")
    elif type_ == "Queue":
        if queuing is None:
            yield required(f"{here}.queuing", "must not be empty if limited.limitResponse.type is Limited")
        else:
            yield from _queuing(queuing, f"{here}.queuing")
    else:
        yield not_supported(f"{here}.type", type_, ("Queue", "Reject"))
    yield from _percent(limited.get("lendablePercent"), f"{path}.lendablePercent")
    borrowing = limited.get("borrowingLimitPercent")
    if borrowing is not None and borrowing < 0:
        yield invalid(f"{path}.borrowingLimitPercent", borrowing, "if specified, must be a non-negative integer")


def _queuing(queuing: Object, path: str) -> Errors:
    length, queues, hand = (queuing.get(k) or 0 for k in ("queueLengthLimit", "queues", "handSize"))
    if length <= 0:
        yield invalid(f"{path}.queueLengthLimit", length, "must be positive")
    if queues <= 0:
        yield invalid(f"{path}.queues", queues, "must be positive")
    elif queues > QUEUES_MAX:
        yield invalid(f"{path}.queues", queues, f"must not be greater than {QUEUES_MAX}")
    error: FieldError | None = None
    if hand <= 0:
        error = invalid(f"{path}.handSize", hand, "must be positive")
    elif hand > queues:
        error = invalid(f"{path}.handSize", hand, f"should not be greater than queues ({queues})")
    elif math.ceil(math.log2(queues) * hand) > HASH_BITS_MAX:
        error = invalid(f"{path}.handSize", hand, f"required entropy bits of deckSize {queues} and handSize {hand} should not be greater than "
                                                  f"{HASH_BITS_MAX}")
    if error:
        yield error


def _mandatory_level(spec: Object, name: str) -> Errors:
    fixed = MANDATORY_LEVELS.get(name)
    if fixed is None:
        return
    if name == "exempt":
        if not same({**spec, "exempt": None}, {**fixed, "exempt": None}):
            yield invalid("spec", form(spec, "flowcontrol.PriorityLevelConfigurationSpec"),
                          f"spec of '{name}' except the 'spec.exempt' field must equal the fixed value")
    elif not same(spec, fixed):
        yield invalid("spec", form(spec, "flowcontrol.PriorityLevelConfigurationSpec"), f"spec of '{name}' must equal the fixed value")


GROUP = "flowcontrol.apiserver.k8s.io"
KINDS: KindTable = {
    (GROUP, "FlowSchema"): Kind(
        defaults=default_schema, prepare_create=zero_status({}), prepare_update=keep_status, prepare_status=_status,
        validate=listed(validate_schema), validate_update=listed(validate_schema), validate_status=listed(validate_status),
        has_generation=True, meta_again=1, meta_update=0),
    (GROUP, "PriorityLevelConfiguration"): Kind(
        defaults=default_level, prepare_create=zero_status({}), prepare_update=keep_status, prepare_status=_status,
        validate=listed(validate_level), validate_update=listed(validate_level), validate_status=listed(validate_status),
        has_generation=True),
}
