"""PodSecurity: the level a namespace's labels name is enforced, warned about and noted for the audit log.

Pods are refused, things with a pod template only warned about. Raising a namespace's level warns about the pods already there.
The standards themselves are in pod_security_checks.py. Upstream: pod-security-admission/admission, plugin/pkg/admission/security/podsecurity.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin, annotations_of
from kubern.api.admission.pod_security_checks import BASELINE, NEWEST, PRIVILEGED, RESTRICTED, detail_of, violations
from kubern.model import invalid as field
from kubern.model.invalid import FieldError
from kubern.model.object import Object
from kubern.model.object import labels as labels_of
from kubern.model.status import forbidden, invalid

PREFIX = "pod-security.kubernetes.io/"
LEVELS = (PRIVILEGED, BASELINE, RESTRICTED)      # from lax to strict
PODS_CHECKED_MAX = 3000
IGNORED_SUBRESOURCES = frozenset(("exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"))
_version = re.compile(r"v1\.([0-9]|[1-9][0-9]*)").fullmatch


class Level(NamedTuple):
    level: str = PRIVILEGED
    version: str = "latest"

    @property
    def minor(self) -> int:
        return NEWEST if self.version == "latest" else int(self.version[3:])

    def __str__(self) -> str:
        return f"{self.level}:{self.version}"


class Policy(NamedTuple):
    enforce: Level = Level()
    audit: Level = Level()
    warn: Level = Level()


def policy_of(labels: dict[str, str]) -> tuple[Policy, list[FieldError]]:
    """The policy of a namespace, and what is wrong with its labels (a wrong enforce level counts as restricted, others as none)."""
    errors: list[FieldError] = []
    found: dict[str, Level] = {}
    valid: set[str] = set()
    for mode in ("enforce", "audit", "warn"):
        level, version = PRIVILEGED, "latest"
        key = f"{PREFIX}{mode}"
        if key in labels:
            level = labels[key]
            if level in LEVELS:
                valid.add(mode)
            else:
                errors.append(field.invalid(f"metadata.labels[{key}]", level, f"must be one of {', '.join(LEVELS)}"))
                level = RESTRICTED if mode == "enforce" else PRIVILEGED
        key = f"{PREFIX}{mode}-version"
        if key in labels:
            version = labels[key]
            if version != "latest" and not _version(version):
                errors.append(field.invalid(f"metadata.labels[{key}]", version, 'must be "latest" or "v1.x"'))
                version = "latest"
        found[mode] = Level(level, version)
    if f"{PREFIX}warn" not in labels and "enforce" in valid and LEVELS.index(found["enforce"].level) > LEVELS.index(found["warn"].level):
        version = found["warn"].version if f"{PREFIX}warn-version" in labels else found["enforce"].version
        found["warn"] = Level(found["enforce"].level, version)
    return Policy(**found), errors


async def validate(a: Attributes) -> None:
    if a.obj is None:
        return
    plural = a.resource.plural
    if plural == "namespaces":
        if not a.subresource:
            _namespace(a)
        return
    if plural == "pods":
        if a.subresource in IGNORED_SUBRESOURCES:
            return
    elif a.subresource:
        return
    labels = labels_of(a.reader.get("namespaces", "", a.namespace) or {})
    if PREFIX not in "".join(labels):
        return                                                   # everything is privileged
    policy, _ = policy_of(labels)
    if plural == "pods":
        if all(mode.level == PRIVILEGED for mode in policy) or (a.operation == UPDATE and not _significant(a.obj, a.old or {})):
            return
        _evaluate(a, policy, annotations_of(a.obj), a.obj.get("spec") or {}, True)
    elif policy.warn.level != PRIVILEGED or policy.audit.level != PRIVILEGED:
        template = _template(a.obj, plural)
        if template is not None:
            _evaluate(a, policy, annotations_of(template), template.get("spec") or {}, False)


def _template(obj: Object, plural: str) -> Object | None:
    if plural == "podtemplates":
        return obj.get("template") or {}
    spec: Any = obj.get("spec") or {}
    if plural == "cronjobs":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    template: Object | None = spec.get("template")
    return template if template is not None or plural == "replicationcontrollers" else {}


def _evaluate(a: Attributes, policy: Policy, annotations: dict[str, str], spec: dict[str, Any], enforce: bool) -> None:
    if enforce:
        a.audit[f"{PREFIX}enforce-policy"] = str(policy.enforce)
        found = violations(policy.enforce.level, policy.enforce.minor, annotations, spec)
        if found:
            raise forbidden(a.resource.group, a.resource.plural, a.name, f'violates PodSecurity "{policy.enforce}": {detail_of(found)}')
    found = violations(policy.audit.level, policy.audit.minor, annotations, spec)
    if found:
        a.audit[f"{PREFIX}audit-violations"] = f'would violate PodSecurity "{policy.audit}": {detail_of(found)}'
    found = violations(policy.warn.level, policy.warn.minor, annotations, spec)
    if found:
        a.warn(f'would violate PodSecurity "{policy.warn}": {detail_of(found)}')


def _significant(new: Object, old: Object) -> bool:
    """Whether an update changes anything the standards look at: images, and which containers there are."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    for f in ("containers", "initContainers"):
        if [c.get("image") for c in after.get(f) or ()] != [c.get("image") for c in before.get(f) or ()]:
            return True
    images = {c.get("name"): c.get("image") for c in before.get("ephemeralContainers") or ()}
    return any(c.get("name") not in images or images[c.get("name")] != c.get("image") for c in after.get("ephemeralContainers") or ())


def _namespace(a: Attributes) -> None:
    assert a.obj is not None
    policy, errors = policy_of(labels_of(a.obj))
    if a.operation == CREATE:
        if errors:
            raise invalid("", "Namespace", a.name, errors)
        return
    before, old_errors = policy_of(labels_of(a.old or {}))
    if errors and errors != old_errors:
        raise invalid("", "Namespace", a.name, errors)
    new, old = policy.enforce, before.enforce
    if new == old or new.level == PRIVILEGED or (new.version == old.version and LEVELS.index(new.level) <= LEVELS.index(old.level)):
        return
    for warning in _pods(a, new):
        a.warn(warning)


def _pods(a: Attributes, enforce: Level) -> list[str]:
    """Warnings about pods that are there already; of a controller's pods one is looked at first."""
    first: list[Object] = []
    more: list[Object] = []
    seen: set[str] = set()
    for pod in a.reader.list("pods", a.name):
        owner = next((o.get("uid", "") for o in pod["metadata"].get("ownerReferences") or () if o.get("controller")), None)
        (more if owner is not None and owner in seen else first).append(pod)
        if owner is not None:
            seen.add(owner)
    pods = first + more
    by_reason: dict[str, list[str]] = {}
    for pod in pods[:PODS_CHECKED_MAX]:
        found = violations(enforce.level, enforce.minor, annotations_of(pod), pod.get("spec") or {})
        if found:
            by_reason.setdefault(", ".join(reason for reason, _ in found), []).append(pod["metadata"]["name"])
    out = []
    if len(pods) > PODS_CHECKED_MAX:
        out.append(f"new PodSecurity enforce level only checked against the first {PODS_CHECKED_MAX} of {len(pods)} existing pods")
    if by_reason:
        out.append(f'existing pods in namespace "{a.name}" violate the new PodSecurity enforce level "{enforce}"')
    lines = []
    for reason, names in by_reason.items():
        others = len(names) - 1
        more_text = "" if not others else " (and 1 other pod)" if others == 1 else f" (and {others} other pods)"
        lines.append(f"{min(names)}{more_text}: {reason}")
    return out + sorted(lines)


PLUGIN = Plugin("PodSecurity", (CREATE, UPDATE),
                ("namespaces", "pods", "pods/ephemeralcontainers", "pods/resize", "replicationcontrollers", "podtemplates", "replicasets.apps",
                 "deployments.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch", "cronjobs.batch"), validate=validate)
