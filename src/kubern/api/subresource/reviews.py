"""Reviews: resources that only answer questions about users, tokens and rights, and service-account tokens on request.

VIRTUAL: (group, plural) -> `async (server, request, obj) -> obj`; `obj` is the decoded body with kind and apiVersion, the answer goes out
with 201. `token` answers serviceaccounts/NAME/token alike. `request` carries the user (a Request with `user` set, or a Call).
Upstream: pkg/registry/{authentication,authorization}, pkg/registry/core/serviceaccount/storage/token.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from kubern.api.authn.tokens import EXTENDED_S, WARN_ONLY_S, TokenError, claims
from kubern.api.authz import Attributes, from_request
from kubern.api.authz.node import identity
from kubern.api.authz.unanswered import settled
from kubern.model import invalid as field
from kubern.model.invalid import FieldError, aggregate, quote
from kubern.model.kinds.labels import validate_requirement
from kubern.model.object import Object, group_version
from kubern.model.request import ANONYMOUS, User, user_info
from kubern.model.selector import parse_fields, parse_labels
from kubern.model.status import StatusError, bad_request, conflict, invalid, not_found
from kubern.model.time import rfc3339

AUTHENTICATION, AUTHORIZATION = "authentication.k8s.io", "authorization.k8s.io"
TOKEN_SECONDS, TOKEN_SECONDS_MIN, TOKEN_SECONDS_MAX = 3600, 600, 1 << 32

Review = Callable[[Any, Any, Object], Awaitable[Object]]


def _user(request: Any) -> User:
    return request.user or ANONYMOUS


def _attributes(request: Any) -> Attributes:
    """Those of the request itself."""
    found: Attributes | None = getattr(request, "attributes", None)
    return found if found is not None else from_request(request)


# -- who is it?

async def token_review(server: Any, request: Any, obj: Object) -> Object:
    spec = obj.get("spec") or {}
    token, authn = spec.get("token") or "", server.authenticator
    if not token:
        raise bad_request("token is required for TokenReview in authentication")
    audiences = tuple(spec.get("audiences") or ()) or authn.audiences
    status: dict[str, Any] = {}
    invalid_token = "invalid bearer token"
    try:
        verified = await authn.verify(token, audiences)
    except TokenError as e:
        verified, status["error"] = None, aggregate((invalid_token, str(e)))
    else:
        if verified is None:
            status["error"] = invalid_token
    status["user"] = {}
    if verified is not None:
        status["authenticated"] = True
        status["user"] = user_info(verified.user)
        if verified.audiences:
            status["audiences"] = list(verified.audiences)
    return {**obj, "status": status}


async def self_subject_review(server: Any, request: Any, obj: Object) -> Object:
    return {"kind": obj["kind"], "apiVersion": obj["apiVersion"], "metadata": {"creationTimestamp": rfc3339(server.clock())},
            "status": {"userInfo": user_info(_user(request))}}


# -- what may they do?

def _label_term(r: Object) -> str:
    """A requirement of a label selector as text, "" where it cannot be said."""
    key, operator, values = r.get("key") or "", r.get("operator"), r.get("values") or []
    if operator in ("In", "NotIn"):
        return f"{key} {operator.lower()} ({','.join(values)})"
    return key if operator == "Exists" else f"!{key}" if operator == "DoesNotExist" else ""


def _field_term(r: Object) -> str:
    key, operator, values = r.get("key") or "", r.get("operator"), r.get("values") or []
    return f"{key}{'=' if operator == 'In' else '!='}{values[0]}" if operator in ("In", "NotIn") and len(values) == 1 else ""


_TERMS: dict[str, tuple[Callable[[Object], str], Callable[[str], Any]]] = {
    "fieldSelector": (_field_term, parse_fields), "labelSelector": (_label_term, parse_labels)}


def _selector(name: str, resource: Object) -> tuple[str, str]:
    """A selector of resource attributes as text, and what is to be said of what cannot be put so: that only widens the question."""
    selector = resource.get(name) or {}
    said, parse = _TERMS[name]
    requirements = selector.get("requirements") or ()
    terms = [t for t in map(said, requirements) if t]
    text, lost = ",".join(terms), len(terms) < len(requirements)
    if selector.get("rawSelector"):
        text = str(selector["rawSelector"])
        try:
            parse(text)
        except (StatusError, ValueError):
            text, lost = "", True
    return text, f"spec.resourceAttributes.{name} {'partially ' if text else ''}ignored due to parse error" if lost else ""


def _asked(user: User, spec: Object) -> tuple[Attributes, list[str]]:
    """What is asked, and what of it could not be understood."""
    r = spec.get("resourceAttributes")
    if r is None:
        n = spec.get("nonResourceAttributes") or {}
        return Attributes(user, n.get("verb") or "", path=n.get("path") or "", is_resource=False), []
    fields, no_fields = _selector("fieldSelector", r)
    labels, no_labels = _selector("labelSelector", r)
    return Attributes(user, r.get("verb") or "", r.get("group") or "", r.get("version") or "*", r.get("resource") or "", r.get("subresource") or "",
                      r.get("namespace") or "", r.get("name") or "", field_selector=fields, label_selector=labels), [
                          text for text in (no_fields, no_labels) if text]


def _check_selectors(resource: Mapping[str, Any] | None) -> Iterable[FieldError]:
    for name in ("fieldSelector", "labelSelector"):
        selector = (resource or {}).get(name)
        if selector is None:
            continue
        path = f"spec.resourceAttributes.{name}"
        raw, requirements = selector.get("rawSelector"), selector.get("requirements")
        if raw and requirements:
            yield field.invalid(f"{path}.rawSelector", raw, "may not specified at the same time as requirements")
        if not raw and not requirements:
            yield field.required(f"{path}.requirements", f"when {path} is specified, requirements or rawSelector is required")
        for i, r in enumerate(requirements or ()):
            here = f"{path}.requirements[{i}]"
            yield from _check_field_requirement(r, here) if name == "fieldSelector" else validate_requirement(r, here, any_operator=True)


def _check_field_requirement(r: Object, path: str) -> Iterable[FieldError]:
    if not r.get("key"):
        yield field.required(f"{path}.key", "must be specified")
    operator, values = r.get("operator"), r.get("values")
    if operator in ("In", "NotIn") and not values:
        yield field.required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    if operator in ("Exists", "DoesNotExist") and values:
        yield field.forbidden(f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")


def _check(obj: Object, subject: bool) -> list[FieldError]:
    spec = obj.get("spec") or {}
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    errors = []
    if resource is not None and path is not None:
        shown = field.Struct(Path=path.get("path") or "", Verb=path.get("verb") or "")
        errors.append(field.invalid("spec.nonResourceAttributes", shown, "cannot be specified in combination with resourceAttributes"))
    if resource is None and path is None:
        errors.append(field.invalid("spec.resourceAttributes", None,
                                    "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
    if subject and not spec.get("user") and not spec.get("groups"):
        errors.append(field.invalid("spec.user", "", "at least one of user or group must be specified"))
    errors.extend(_check_selectors(resource))
    return errors


def _check_metadata(obj: Object, *but: str) -> Iterable[FieldError]:
    """Nothing may stand there but managedFields, and these."""
    metadata = obj.get("metadata") or {}
    if any(v and k not in ("managedFields", *but) for k, v in metadata.items()):
        shown = field.Struct((k, metadata[k]) for k in metadata if k != "managedFields")
        if metadata.get("managedFields"):
            shown["managedFields"] = [field.Struct(e) for e in metadata["managedFields"]]
        yield field.invalid("metadata", shown, f"must be empty except for {but[0]}" if but else "must be empty")


async def _decided(server: Any, obj: Object, user: User) -> Object:
    asked, ignored = _asked(user, obj.get("spec") or {})
    decision = await settled(lambda: server.authorizer.authorize(asked))
    status: dict[str, Any] = {"allowed": decision.allowed}
    if decision.denied:
        status["denied"] = True
    if decision.reason:
        status["reason"] = decision.reason
    if decision.error or ignored:
        status["evaluationError"] = "; ".join(filter(None, [decision.error, *ignored]))
    return {**obj, "status": status}


def _subject(spec: Object) -> User:
    extra = {k: tuple(v or ()) for k, v in (spec.get("extra") or {}).items()}
    return User(spec.get("user") or "", tuple(spec.get("groups") or ()), spec.get("uid") or "", extra)


async def subject_access_review(server: Any, request: Any, obj: Object) -> Object:
    errors = [*_check(obj, True), *_check_metadata(obj)]
    if errors:
        raise invalid(AUTHORIZATION, "", "", errors)
    return await _decided(server, obj, _subject(obj.get("spec") or {}))


async def local_subject_access_review(server: Any, request: Any, obj: Object) -> Object:
    namespace = _attributes(request).namespace
    metadata = dict(obj.get("metadata") or {})
    metadata.setdefault("namespace", namespace)
    obj = {**obj, "metadata": metadata}
    errors = [*_check(obj, True), *_check_metadata(obj, "namespace")]
    spec = obj.get("spec") or {}
    resource = spec.get("resourceAttributes")
    if resource is not None and (resource.get("namespace") or "") != metadata["namespace"]:
        errors.append(field.invalid("spec.resourceAttributes.namespace", resource.get("namespace") or "", "must match metadata.namespace"))
    if spec.get("nonResourceAttributes") is not None:
        errors.append(field.invalid("spec.nonResourceAttributes", spec["nonResourceAttributes"], "disallowed on this kind of request"))
    if errors:
        raise invalid(AUTHORIZATION, "", "", errors)
    if metadata["namespace"] != namespace:
        raise bad_request(f"spec.resourceAttributes.namespace must match namespace: {namespace}")
    return await _decided(server, obj, _subject(spec))


async def self_subject_access_review(server: Any, request: Any, obj: Object) -> Object:
    errors = [*_check(obj, False), *_check_metadata(obj)]
    if errors:
        raise invalid(AUTHORIZATION, "", "", errors)
    return await _decided(server, obj, _user(request))


async def self_subject_rules_review(server: Any, request: Any, obj: Object) -> Object:
    user, namespace = _user(request), (obj.get("spec") or {}).get("namespace") or ""
    if not namespace:
        raise bad_request("no namespace on request")
    rules, errors = server.authorizer.rbac.rules_for(user, namespace)
    resources = [{k: list(r[k]) for k in ("verbs", "apiGroups", "resources", "resourceNames") if r.get(k)} for r in rules if r.get("resources")]
    paths = [{k: list(r[k]) for k in ("verbs", "nonResourceURLs") if r.get(k)} for r in rules if r.get("nonResourceURLs")]
    is_node = identity(user)[1]
    if is_node:
        errors = ["node authorizer does not support user rule resolution", *errors]
    if server.authorizer.asks_outside:
        errors = [*errors, "webhook authorizer does not support user rule resolution"]
    status: dict[str, Any] = {"resourceRules": resources, "nonResourceRules": paths, "incomplete": is_node or server.authorizer.asks_outside}
    if errors:
        status["evaluationError"] = aggregate(errors)
    return {"kind": obj["kind"], "apiVersion": obj["apiVersion"], "metadata": {}, "spec": {}, "status": status}


VIRTUAL: dict[tuple[str, str], Review] = {
    (AUTHENTICATION, "tokenreviews"): token_review,
    (AUTHENTICATION, "selfsubjectreviews"): self_subject_review,
    (AUTHORIZATION, "subjectaccessreviews"): subject_access_review,
    (AUTHORIZATION, "localsubjectaccessreviews"): local_subject_access_review,
    (AUTHORIZATION, "selfsubjectaccessreviews"): self_subject_access_review,
    (AUTHORIZATION, "selfsubjectrulesreviews"): self_subject_rules_review,
}


# -- tokens on request

async def token(server: Any, request: Any, obj: Object) -> Object:
    """A TokenRequest answered. Admission has been asked before."""
    a = _attributes(request)
    namespace, name = a.namespace, a.name
    metadata = dict(obj.get("metadata") or {})
    for key, value, what in (("name", name, "name"), ("namespace", namespace, "namespace")):
        if metadata.get(key) and metadata[key] != value:
            error = field.invalid(f"metadata.{key}", metadata[key], f"must match the service account {what} if specified")
            raise invalid(AUTHENTICATION, "TokenRequest", name, [error])
    account = server.cache.get("serviceaccounts", namespace, name)
    if account is None:
        raise not_found("", "serviceaccounts", name)
    uid = account["metadata"].get("uid") or ""
    if metadata.get("uid") and metadata["uid"] != uid:
        raise conflict(AUTHENTICATION, "TokenRequest", name,
                       f"the UID in the token request ({metadata['uid']}) does not match the UID of the service account ({uid})")
    authn, now = server.authenticator, server.clock()
    given = obj.get("spec") or {}
    audiences = list(given.get("audiences") or ()) or list(authn.audiences)
    seconds = given.get("expirationSeconds")
    seconds = TOKEN_SECONDS if seconds is None else seconds
    if seconds < TOKEN_SECONDS_MIN:
        raise _bad_duration(seconds, "may not specify a duration less than 10 minutes")
    if seconds > TOKEN_SECONDS_MAX:
        raise _bad_duration(seconds, "may not specify a duration larger than 2^32 seconds")
    ref = given.get("boundObjectRef")
    bound = _bound(server, ref, namespace, name) if ref is not None else {}
    lifetime, warn = seconds, 0
    if bound.get("pod") and seconds == WARN_ONLY_S and set(audiences) <= set(authn.audiences):
        lifetime, warn = EXTENDED_S, seconds
    if authn.keys is None:
        raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
    text = authn.keys.sign(claims(account, audiences, lifetime, now, **bound, warn_after_s=warn))
    return {"kind": "TokenRequest", "apiVersion": f"{AUTHENTICATION}/v1",
            "metadata": {**metadata, "name": name, "namespace": namespace, "uid": uid, "creationTimestamp": rfc3339(now)},
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": ref},
            "status": {"token": text, "expirationTimestamp": rfc3339(now + seconds)}}


def _bad_duration(seconds: int, why: str) -> StatusError:
    return invalid(AUTHENTICATION, "TokenRequest", "", [field.invalid("spec.expirationSeconds", seconds, why)])


def _bound(server: Any, ref: Object, namespace: str, account: str) -> dict[str, Object | None]:
    """The objects a token is bound to, as arguments of `claims`."""
    api_version, kind, name = ref.get("apiVersion") or "", ref.get("kind") or "", ref.get("name") or ""
    group, version = group_version(api_version)
    plural = {"Pod": "pods", "Node": "nodes", "Secret": "secrets"}.get(kind, "") if not group else ""
    if not plural:
        raise bad_request(f"cannot bind token to object of type {group}/{version}, Kind={kind}")
    if not name:
        raise bad_request("Name parameter required.")
    obj = server.cache.get(plural, "" if kind == "Node" else namespace, name)
    if obj is None:
        raise not_found("", plural, name)
    out: dict[str, Object | None] = {kind.lower(): obj}
    if kind == "Pod":
        spec = obj.get("spec") or {}
        if spec.get("serviceAccountName") != account:
            raise bad_request(f"cannot bind token for serviceaccount {quote(account)} to pod running with different serviceaccount name.")
        node = spec.get("nodeName")
        if node:
            out["node"] = server.cache.get("nodes", "", node) or {"metadata": {"name": node}}
    if ref.get("uid") and ref["uid"] != obj["metadata"].get("uid"):
        raise conflict(group, kind, name, f"the UID in the bound object reference ({ref['uid']}) does not match the UID in record. The object "
                                          "might have been deleted and then recreated")
    return out
