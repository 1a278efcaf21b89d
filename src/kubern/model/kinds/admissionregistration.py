"""admissionregistration.k8s.io/v1: webhook configurations and admission policies with their bindings. Shared rules: admission_rules.py.

Upstream: pkg/apis/admissionregistration/{v1/defaults.go,validation}, pkg/registry/admissionregistration; KEP-3488 (validating policies),
KEP-3962 (mutating policies).
"""

from __future__ import annotations

import re

from kubern.model import names
from kubern.model.invalid import duplicate, forbidden, invalid, not_supported, required
from kubern.model.kinds.admission_rules import (
    FAILURE_POLICIES,
    MATCH_POLICIES,
    MUTATING_OPERATIONS,
    REINVOCATION_POLICIES,
    default_match_resources,
    default_rule,
    default_selectors,
    match_conditions,
    match_resources,
    rule_with_operations,
    static_suffix_warnings,
)
from kubern.model.kinds.checks import Errors, conditions, form, keep_spec_and_metadata, keep_status, listed, messages, same, zero_status
from kubern.model.kinds.expressions import compiles
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import selector_is_valid, validate_label_selector
from kubern.model.kinds.webhook_client import client_config, default_service_port
from kubern.model.object import Object

TIMEOUT_S_DEFAULT, TIMEOUT_S_MAX = 10, 30
NO_SIDE_EFFECTS = ("None", "NoneOnDryRun")
SIDE_EFFECTS = ("None", "NoneOnDryRun", "Some", "Unknown")
REVIEW_VERSIONS = ("v1", "v1beta1")
REASONS = ("Forbidden", "Invalid", "RequestEntityTooLarge")
ACTIONS = ("Audit", "Deny", "Warn")
AUDIT_ANNOTATIONS_MAX, AUDIT_EXPRESSION_MAX = 20, 5 * 1024
_identifier = re.compile("[_a-zA-Z][_a-zA-Z0-9]*").fullmatch
RESERVED = frozenset(("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let",
                      "loop", "package", "namespace", "return", "var", "void", "while"))


# --- webhooks ---------------------------------------------------------------------------------------------------------------------------

def default_webhooks(obj: Object, mutating: bool = False) -> None:
    for hook in obj.get("webhooks") or ():
        if hook.get("failurePolicy") is None:
            hook["failurePolicy"] = "Fail"
        default_selectors(hook)
        if hook.get("timeoutSeconds") is None:
            hook["timeoutSeconds"] = TIMEOUT_S_DEFAULT
        if mutating and hook.get("reinvocationPolicy") is None:
            hook["reinvocationPolicy"] = "Never"
        for rule in hook.get("rules") or ():
            default_rule(rule)
        default_service_port(hook.get("clientConfig"))


def default_mutating_webhooks(obj: Object) -> None:
    default_webhooks(obj, True)


def validate_webhooks(obj: Object, old: Object | None = None) -> Errors:
    """Both kinds of configuration. What was wrong before may stay wrong."""
    before = (old or {}).get("webhooks") or []
    hooks = obj.get("webhooks") or []
    no_effects = old is None or all(h.get("sideEffects") in NO_SIDE_EFFECTS for h in before)
    recognized = old is None or all(not h.get("admissionReviewVersions") or set(h["admissionReviewVersions"]) & set(REVIEW_VERSIONS)
                                    for h in before)
    unique = old is None or len({h.get("name") for h in before}) == len(before)
    any_value = old is not None and any(not selector_is_valid(h.get(f)) for h in before for f in ("namespaceSelector", "objectSelector"))
    same_conditions = old is not None and len(hooks) == len(before) and all(
        same(a.get("matchConditions"), b.get("matchConditions")) for a, b in zip(hooks, before, strict=True))
    seen = set()
    for i, hook in enumerate(hooks):
        path, name = f"webhooks[{i}]", hook.get("name") or ""
        yield from _webhook(hook, path, NO_SIDE_EFFECTS if no_effects else SIDE_EFFECTS, any_value, not same_conditions)
        yield from _review_versions(hook.get("admissionReviewVersions") or [], recognized, f"{path}.admissionReviewVersions")
        if unique and name:
            if name in seen:
                yield duplicate(f"{path}.name", name)
            seen.add(name)


def _webhook(hook: Object, path: str, side_effects: tuple[str, ...], any_value: bool, check_conditions: bool) -> Errors:
    yield from names.is_fully_qualified_name(f"{path}.name", hook.get("name") or "")
    for i, rule in enumerate(hook.get("rules") or ()):
        yield from rule_with_operations(rule, f"{path}.rules[{i}]")
    failure, match, effects = hook.get("failurePolicy"), hook.get("matchPolicy"), hook.get("sideEffects")
    if failure is not None and failure not in FAILURE_POLICIES:
        yield not_supported(f"{path}.failurePolicy", failure, FAILURE_POLICIES)
    if match is not None and match not in MATCH_POLICIES:
        yield not_supported(f"{path}.matchPolicy", match, MATCH_POLICIES)
    if effects is None:
        yield required(f"{path}.sideEffects", f"must specify one of {', '.join(side_effects)}")
    elif effects not in side_effects:
        yield not_supported(f"{path}.sideEffects", effects, side_effects)
    timeout = hook.get("timeoutSeconds")
    if timeout is not None and not 1 <= timeout <= TIMEOUT_S_MAX:
        yield invalid(f"{path}.timeoutSeconds", timeout, f"the timeout value must be between 1 and {TIMEOUT_S_MAX} seconds")
    for field in ("namespaceSelector", "objectSelector"):
        yield from validate_label_selector(hook.get(field), f"{path}.{field}", any_value)
    again = hook.get("reinvocationPolicy")
    if again is not None and again not in REINVOCATION_POLICIES:
        yield not_supported(f"{path}.reinvocationPolicy", again, REINVOCATION_POLICIES)
    yield from client_config(hook.get("clientConfig") or {}, f"{path}.clientConfig")
    if check_conditions:
        yield from match_conditions(hook.get("matchConditions") or [], f"{path}.matchConditions")


def _review_versions(versions: list[str], recognized: bool, path: str) -> Errors:
    if not versions:
        yield required(path, f"must specify one of {', '.join(REVIEW_VERSIONS)}")
        return
    seen = set()
    for i, version in enumerate(versions):
        if version in seen:
            yield invalid(f"{path}[{i}]", version, "duplicate version")
            continue
        seen.add(version)
        yield from messages(version, names.is_dns1035_label(version), f"{path}[{i}]")
    if recognized and not seen & set(REVIEW_VERSIONS):
        yield invalid(path, versions, f"must include at least one of {', '.join(REVIEW_VERSIONS)}")


def _webhooks_changed(new: Object, old: Object) -> bool:
    return not same(new.get("webhooks"), old.get("webhooks"))


# --- policies ---------------------------------------------------------------------------------------------------------------------------

def default_policy(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if spec.get("failurePolicy") is None:
        spec["failurePolicy"] = "Fail"
    default_match_resources(spec.get("matchConstraints"))


def default_binding(obj: Object) -> None:
    default_match_resources((obj.get("spec") or {}).get("matchResources"))


def _policy_head(spec: Object, old: Object | None, mutating: bool) -> Errors:
    failure, constraints = spec.get("failurePolicy"), spec.get("matchConstraints")
    if failure is None:
        yield required("spec.failurePolicy")
    elif failure not in FAILURE_POLICIES:
        yield not_supported("spec.failurePolicy", failure, FAILURE_POLICIES)
    if spec.get("paramKind") is not None:
        yield from _param_kind(spec["paramKind"], "spec.paramKind")
    if constraints is None:
        yield required("spec.matchConstraints")
    else:
        yield from match_resources(constraints, "spec.matchConstraints")
        if not constraints.get("resourceRules"):
            yield required("spec.matchConstraints.resourceRules")
        if mutating:
            yield from _mutating_operations(constraints, "spec.matchConstraints")
    unchanged = old is not None and same(spec.get("paramKind"), old.get("paramKind")) \
        and same(spec.get("matchConditions"), old.get("matchConditions"))
    if not unchanged:
        yield from match_conditions(spec.get("matchConditions") or [], "spec.matchConditions", spec.get("paramKind") is not None)
    known: dict[str, str] = {}
    for i, variable in enumerate(spec.get("variables") or ()):
        yield from _variable(variable, f"spec.variables[{i}]", spec.get("paramKind") is not None, known)


def _mutating_operations(match: Object, path: str) -> Errors:
    for rule in match.get("resourceRules") or ():
        for operation in rule.get("operations") or ():
            if operation not in MUTATING_OPERATIONS:
                yield not_supported(f"{path}.resourceRules.operations", operation, MUTATING_OPERATIONS)


def _param_kind(kind: Object, path: str) -> Errors:
    version, name = kind.get("apiVersion") or "", kind.get("kind") or ""
    here = f"{path}.apiVersion"
    if not version:
        yield required(here)
    elif version.count("/") > 1:
        yield invalid(here, version, f"unexpected GroupVersion string: {version}")
    else:
        group, _, short = ("", "", "") if version == "/" else version.rpartition("/")
        if group and (errors := names.is_dns1123_subdomain(group)):
            yield invalid(here, group, ",".join(errors))
        if not short:
            yield invalid(here, version, "version must be specified")
        elif errors := names.is_dns1035_label(short):
            yield invalid(here, short, ",".join(errors))
    if not name:
        yield required(f"{path}.kind")
    elif errors := names.is_dns1035_label(name.lower()):
        yield invalid(f"{path}.kind", name, "may have mixed case, but should otherwise match: " + ",".join(errors))


def _variable(variable: Object, path: str, params: bool, known: dict[str, str]) -> Errors:
    name, expression = variable.get("name") or "", variable.get("expression") or ""
    if not name.strip():
        yield required(f"{path}.name", "name is not specified")
    elif not _identifier(name) or name in RESERVED:
        yield invalid(f"{path}.name", name, "must be a valid CEL identifier")
    if not expression.strip():
        yield required(f"{path}.expression", "expression is not specified")
    else:
        yield from compiles(expression, f"{path}.expression", "any", params=params, variables=known)
        known[name] = expression


def _variables(spec: Object) -> dict[str, str] | None:
    if not spec.get("variables"):
        return None
    return {v.get("name") or "": v["expression"] for v in spec["variables"] if (v.get("expression") or "").strip()}


def validate_validating_policy(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    yield from _policy_head(spec, None if old is None else old.get("spec") or {}, False)
    validations, annotations = spec.get("validations") or [], spec.get("auditAnnotations") or []
    params, known = spec.get("paramKind") is not None, _variables(spec)
    if not validations and not annotations:
        for field in ("validations", "auditAnnotations"):
            yield required(f"spec.{field}", "validations or auditAnnotations must contain at least one item")
    for i, v in enumerate(validations):
        yield from _validation(v, f"spec.validations[{i}]", params, known)
    if len(annotations) > AUDIT_ANNOTATIONS_MAX:
        yield invalid("spec.auditAnnotations", form(annotations, "admissionregistration.AuditAnnotation"),
                      f"must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations")
    seen = set()
    for i, a in enumerate(annotations):
        path, key = f"spec.auditAnnotations[{i}]", a.get("key") or ""
        yield from _audit_annotation(a, path, obj["metadata"].get("name") or "", params, known)
        if key in seen:
            yield duplicate(f"{path}.key", key)
        seen.add(key)


def _validation(v: Object, path: str, params: bool, known: dict[str, str] | None) -> Errors:
    expression, message, message_expression = (v.get(k) or "" for k in ("expression", "message", "messageExpression"))
    if not expression.strip():
        yield required(f"{path}.expression", "expression is not specified")
    else:
        yield from compiles(expression, f"{path}.expression", "bool", params=params, variables=known)
    if message_expression and not message_expression.strip():
        yield invalid(f"{path}.messageExpression", message_expression, "must be non-empty if specified")
    elif message_expression.strip():
        yield from compiles(message_expression, f"{path}.messageExpression", "string", params=params, authorizer=False, variables=known)
    if message and not message.strip():
        yield invalid(f"{path}.message", message, "must be non-empty if specified")
    elif re.search(r"[\n\r]", message.strip()):
        yield invalid(f"{path}.message", message, "must not contain line breaks")
    reason = v.get("reason")
    if reason is not None and reason not in REASONS:
        yield not_supported(f"{path}.reason", reason, REASONS)


def _audit_annotation(a: Object, path: str, policy: str, params: bool, known: dict[str, str] | None) -> Errors:
    key, expression = a.get("key") or "", (a.get("valueExpression") or "").strip()
    if policy:
        whole = f"{policy}/{key}"
        yield from messages(whole, names.is_qualified_name(whole), f"{path}.key")
    else:
        yield invalid(f"{path}.key", key, "requires metadata.name be non-empty")
    if not expression:
        yield required(f"{path}.valueExpression", "valueExpression is not specified")
    elif len(expression) > AUDIT_EXPRESSION_MAX:
        yield required(f"{path}.valueExpression", f"must not exceed {AUDIT_EXPRESSION_MAX} bytes in length")
    else:
        yield from compiles(expression, f"{path}.valueExpression", "string or null", params=params, variables=known,
                            shown=a.get("valueExpression"))


def validate_policy_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    for i, w in enumerate((status.get("typeChecking") or {}).get("expressionWarnings") or ()):
        path = f"status.typeChecking.expressionWarnings[{i}]"
        if not w.get("warning"):
            yield required(f"{path}.warning")
        if not (w.get("fieldRef") or "").strip():
            yield required(f"{path}.fieldRef")
    yield from conditions(status.get("conditions"), "status.conditions")


def validate_mutating_policy(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    yield from _policy_head(spec, None if old is None else old.get("spec") or {}, True)
    params, known = spec.get("paramKind") is not None, _variables(spec) or {}
    if not spec.get("mutations"):
        yield required("spec.mutations", "mutations must contain at least one item")
    for i, m in enumerate(spec.get("mutations") or ()):
        yield from _mutation(m, f"spec.mutations[{i}]", params, known)
    again = spec.get("reinvocationPolicy") or ""
    if not again:
        yield required("spec.reinvocationPolicy")
    elif again not in REINVOCATION_POLICIES:
        yield not_supported("spec.reinvocationPolicy", again, REINVOCATION_POLICIES)


_PATCHES = {"JSONPatch": ("jsonPatch", "patch"), "ApplyConfiguration": ("applyConfiguration", "object")}


def _mutation(m: Object, path: str, params: bool, known: dict[str, str] | None) -> Errors:
    type_ = m.get("patchType") or ""
    if not type_:
        yield required(f"{path}.patchType")
        return
    if type_ not in _PATCHES:
        yield not_supported(f"{path}.patchType", type_, tuple(sorted(_PATCHES)))
        return
    field, returns = _PATCHES[type_]
    if m.get(field) is None:
        yield required(f"{path}.{field}", f"must be specified when patchType is {type_}")
    else:
        expression = (m[field].get("expression") or "").strip()
        if not expression:
            yield required(f"{path}.{field}.expression")
        else:
            yield from compiles(expression, f"{path}.{field}.expression", returns, params=params, patch_types=True, variables=known)
    for other, _ in _PATCHES.values():
        if other != field and m.get(other) is not None:
            yield invalid(f"{path}.{other}", f"{{{other}}}", f"must not be specified when patchType is {type_}")


# --- bindings ---------------------------------------------------------------------------------------------------------------------------

def _binding(spec: Object) -> Errors:
    policy = spec.get("policyName") or ""
    if not policy:
        yield required("spec.policyName")
    else:
        yield from messages(policy, names.is_dns1123_subdomain(policy), "spec.policyName")
    yield from _param_ref(spec.get("paramRef"), "spec.paramRef")
    yield from match_resources(spec.get("matchResources"), "spec.matchResources")


def _param_ref(ref: Object | None, path: str) -> Errors:
    if ref is None:
        return
    name, selector, missing = ref.get("name") or "", ref.get("selector"), ref.get("parameterNotFoundAction") or ""
    if name:
        yield from messages(name, names.is_path_segment_name(name), f"{path}.name")
        if selector is not None:
            yield forbidden(f"{path}.name", "name and selector are mutually exclusive")
    if selector is not None:
        yield from validate_label_selector(selector, f"{path}.selector")
        if name:
            yield forbidden(f"{path}.selector", "name and selector are mutually exclusive")
    if not name and selector is None:
        yield required(path, "one of name or selector must be specified")
    if not missing:
        yield required(f"{path}.parameterNotFoundAction")
    elif missing not in ("Deny", "Allow"):
        yield not_supported(f"{path}.parameterNotFoundAction", missing, ("Deny", "Allow"))


def validate_validating_binding(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    yield from _binding(spec)
    actions, path = spec.get("validationActions") or [], "spec.validationActions"
    seen = set()
    for i, action in enumerate(actions):
        if action not in ACTIONS:
            yield not_supported(f"{path}[{i}]", action, ACTIONS)
        if action in seen:
            yield duplicate(f"{path}[{i}]", action)
        seen.add(action)
    if {"Deny", "Warn"} <= seen:
        yield invalid(path, actions, "must not contain both Deny and Warn (repeating the same validation failure information in the API "
                                     "response and headers serves no purpose)")
    if not seen:
        yield required(path, "at least one validation action is required")


def validate_mutating_binding(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    yield from _binding(spec)
    yield from _mutating_operations(spec.get("matchResources") or {}, "spec.matchResources")


GROUP = "admissionregistration.k8s.io"
KINDS: KindTable = {
    (GROUP, "ValidatingWebhookConfiguration"): Kind(
        defaults=default_webhooks, validate=listed(validate_webhooks), validate_update=listed(validate_webhooks),
        warnings=static_suffix_warnings, unconditional_update=False, has_generation=True,
        qualified_finalizers=False, meta_again=1, meta_update=0, generation_changed=_webhooks_changed),
    (GROUP, "MutatingWebhookConfiguration"): Kind(
        defaults=default_mutating_webhooks, validate=listed(validate_webhooks), validate_update=listed(validate_webhooks),
        warnings=static_suffix_warnings, unconditional_update=False, has_generation=True,
        qualified_finalizers=False, meta_again=1, meta_update=0, generation_changed=_webhooks_changed),
    (GROUP, "ValidatingAdmissionPolicy"): Kind(
        defaults=default_policy, prepare_create=zero_status({}), prepare_update=keep_status, prepare_status=keep_spec_and_metadata,
        validate=listed(validate_validating_policy), validate_update=listed(validate_validating_policy),
        validate_status=listed(validate_policy_status), warnings=static_suffix_warnings,
        unconditional_update=False, has_generation=True, qualified_finalizers=False, meta_again=1, meta_update=0, meta_status=0),
    (GROUP, "MutatingAdmissionPolicy"): Kind(
        defaults=default_policy, validate=listed(validate_mutating_policy), validate_update=listed(validate_mutating_policy),
        warnings=static_suffix_warnings, unconditional_update=False, has_generation=True, qualified_finalizers=False, meta_again=1, meta_update=0),
    (GROUP, "ValidatingAdmissionPolicyBinding"): Kind(
        defaults=default_binding, validate=listed(validate_validating_binding), validate_update=listed(validate_validating_binding),
        warnings=static_suffix_warnings, unconditional_update=False, has_generation=True, qualified_finalizers=False, meta_again=1, meta_update=0),
    (GROUP, "MutatingAdmissionPolicyBinding"): Kind(
        defaults=default_binding, validate=listed(validate_mutating_binding), validate_update=listed(validate_mutating_binding),
        warnings=static_suffix_warnings, unconditional_update=False, has_generation=True, qualified_finalizers=False, meta_again=1, meta_update=0),
}
