"""AuthorizationConfiguration: which authorizers are asked, in which order.

`parse(document)` gives rows of data, checked in upstream's words; `Links` makes the chain of an Authorizer from them, and makes it anew when
the file changes. Upstream: apiserver pkg/apis/apiserver/validation, pkg/kubeapiserver/authorizer/reload.go; KEP-3221.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubern.api.authz import Authorizer, Link
from kubern.api.authz.attributes import ALLOWED, Attributes, Decision
from kubern.api.authz.webhook import Policy, Webhook, condition
from kubern.api.configfile import Duration, decode, refuse
from kubern.api.remote import Remote
from kubern.model import invalid as field
from kubern.model.cel import CelProblem, Program
from kubern.model.invalid import FieldError
from kubern.model.kinds.checks import one_of, required_one_of
from kubern.model.names import is_dns1123_subdomain

VERSIONS = ("v1", "v1beta1", "v1alpha1")
TYPES = ("AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook")       # upstream has ABAC besides, which RBAC replaced
CONDITIONS_MAX = 64
TIMEOUT_MAX_S = 30.0
FORBIDDEN = Decision(False, "Everything is forbidden.")

SHAPE = {"authorizers": [{"type": str, "name": str, "webhook": {
    "authorizedTTL": Duration, "cacheAuthorizedRequests": bool, "unauthorizedTTL": Duration, "cacheUnauthorizedRequests": bool, "timeout": Duration,
    "subjectAccessReviewVersion": str, "matchConditionSubjectAccessReviewVersion": str, "failurePolicy": str,
    "connectionInfo": {"type": str, "kubeConfigFile": str}, "matchConditions": [{"expression": str}]}}]}


@dataclass(frozen=True, slots=True)
class Configured:
    """One authorizer. The rest is a webhook's."""

    type: str
    name: str = ""
    kubeconfig: str = ""
    timeout_s: float = 0.0
    policy: Policy | None = None


DEFAULT = (Configured("Node", "node"), Configured("RBAC", "rbac"))


def parse(doc: Any) -> tuple[Configured, ...]:
    """Raises BadFile."""
    given = decode(doc, "AuthorizationConfiguration", VERSIONS, SHAPE).get("authorizers") or []
    errors: list[FieldError] = []
    if not given:
        errors.append(field.required("authorizers", "at least one authorization mode must be defined"))
    types: set[str] = set()
    names: set[str] = set()
    out = []
    for i, authorizer in enumerate(given):
        at, kind, name = f"authorizers[{i}]", authorizer.get("type") or "", authorizer.get("name") or ""
        if not kind:
            errors.append(field.required(f"{at}.type"))
            continue
        if kind not in TYPES:
            errors.append(field.not_supported(f"{at}.type", kind, TYPES))
            continue
        if kind in types and kind != "Webhook":
            errors.append(field.duplicate(f"{at}.type", kind))
            continue
        types.add(kind)
        problems = is_dns1123_subdomain(name) if name else []
        if not name:
            errors.append(field.required(f"{at}.name"))
        elif name in names:
            errors.append(field.duplicate(f"{at}.name", name))
        elif problems:
            errors.append(field.invalid(f"{at}.name", name, f"authorizer name is invalid: {', '.join(problems)}"))
        names.add(name)
        webhook = authorizer.get("webhook")
        if kind != "Webhook":
            if webhook is not None:
                errors.append(field.invalid(f"{at}.webhook", "non-null", "may only be specified when type=Webhook"))
            out.append(Configured(kind, name))
        elif webhook is None:
            errors.append(field.required(f"{at}.webhook", "required when type=Webhook"))
        else:
            out.append(_webhook(name, webhook, at, errors))
    refuse("", errors)
    return tuple(out)


def _webhook(name: str, w: Mapping[str, Any], at: str, errors: list[FieldError]) -> Configured:
    ttl = {"authorizedTTL": w.get("authorizedTTL") or 300.0, "unauthorizedTTL": w.get("unauthorizedTTL") or 30.0}
    timeout = w.get("timeout") or 0.0
    if not timeout:
        errors.append(field.required(f"{at}.timeout"))
    elif not 0 < timeout <= TIMEOUT_MAX_S:
        errors.append(field.invalid(f"{at}.timeout", f"{timeout:g}s", "must be > 0s and <= 30s"))
    for key, value in ttl.items():
        if value < 0:
            errors.append(field.invalid(f"{at}.{key}", f"{value:g}s", "must be > 0s"))
    conditions = w.get("matchConditions") or []
    errors.extend(required_one_of(w.get("subjectAccessReviewVersion"), ("v1", "v1beta1"), f"{at}.subjectAccessReviewVersion"))
    if w.get("matchConditionSubjectAccessReviewVersion"):
        errors.extend(one_of(w["matchConditionSubjectAccessReviewVersion"], ("v1",), f"{at}.matchConditionSubjectAccessReviewVersion"))
    elif conditions:
        errors.append(field.required(f"{at}.matchConditionSubjectAccessReviewVersion", "required if match conditions are specified"))
    errors.extend(required_one_of(w.get("failurePolicy"), ("NoOpinion", "Deny"), f"{at}.failurePolicy"))
    info = w.get("connectionInfo") or {}
    errors.extend(_check_connection(info, f"{at}.connectionInfo"))
    programs = tuple(_conditions(conditions, f"{at}.matchConditions", errors))
    policy = Policy(name, w.get("subjectAccessReviewVersion") or "", ttl["authorizedTTL"] if w.get("cacheAuthorizedRequests", True) else 0.0,
                    ttl["unauthorizedTTL"] if w.get("cacheUnauthorizedRequests", True) else 0.0, w.get("failurePolicy") == "Deny", programs)
    return Configured("Webhook", name, info.get("kubeConfigFile") or "", timeout, policy)


def _check_connection(info: Mapping[str, Any], at: str) -> Iterator[FieldError]:
    kind, path = info.get("type") or "", info.get("kubeConfigFile")
    if not kind:
        yield field.required(f"{at}.type")
    elif kind == "InClusterConfig":
        if path is not None:
            yield field.invalid(f"{at}.kubeConfigFile", path, "can only be set when type=KubeConfigFile")
        else:
            yield field.invalid(f"{at}.type", kind, "the API server does not run in a pod of the cluster")
    elif kind != "KubeConfigFile":
        yield field.not_supported(f"{at}.type", kind, ("InClusterConfig", "KubeConfigFile"))
    elif not path:
        yield field.required(f"{at}.kubeConfigFile")
    elif not os.path.isabs(path):
        yield field.invalid(f"{at}.kubeConfigFile", path, "must be an absolute path")
    else:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                yield field.invalid(f"{at}.kubeConfigFile", path, "must be a regular file")
        except OSError as e:
            yield field.invalid(f"{at}.kubeConfigFile", path, f"error loading file: stat {path}: {(e.strerror or '').lower()}")


def _conditions(given: list[Any], at: str, errors: list[FieldError]) -> Iterator[Program]:
    if len(given) > CONDITIONS_MAX:
        errors.append(field.too_many(at, len(given), CONDITIONS_MAX))
        return
    seen: set[str] = set()
    for i, c in enumerate(given):
        source, where = c.get("expression") or "", f"{at}[{i}].expression"
        if not source.strip():
            errors.append(field.required(where))
        elif source in seen:
            errors.append(field.duplicate(where, source))
        else:
            seen.add(source)
            try:
                yield condition(source)
            except CelProblem as e:
                errors.append(field.invalid(where, source, str(e)))


class Links:
    """The chain of an Authorizer, as configured."""

    def __init__(self, authorizer: Authorizer, now: Callable[[], float] = time.time) -> None:
        self._authorizer, self._now = authorizer, now
        self.webhooks: list[Webhook] = []

    async def configure(self, rows: tuple[Configured, ...]) -> None:
        """Raises BadFile, then everything stays as it was. Answers that webhooks gave before are forgotten."""
        made: list[Webhook] = []
        links = tuple(self._link(row, made) for row in rows)
        before, self.webhooks = self.webhooks, made
        self._authorizer.links, self._authorizer.asks_outside = links, bool(made)
        for webhook in before:
            await webhook.close()

    async def close(self) -> None:
        for webhook in self.webhooks:
            await webhook.close()

    def _link(self, row: Configured, made: list[Webhook]) -> Link:
        match row.type:
            case "Node":
                return self._authorizer.nodes.authorize
            case "RBAC":
                return self._authorizer.rbac.authorize
            case "AlwaysAllow":
                return _always_allow
            case "AlwaysDeny":
                return _always_deny
        assert row.policy is not None
        made.append(Webhook(Remote(row.kubeconfig, row.timeout_s), row.policy, self._now))
        return made[-1].authorize


def _always_allow(a: Attributes) -> Decision:
    return ALLOWED


def _always_deny(a: Attributes) -> Decision:
    return FORBIDDEN
