"""ServiceAccount: every pod runs as one, and gets its token mounted.

On create the account is defaulted, must exist, lends its pull secrets, and its token is projected into every container that
mounts nothing at the same path. Updates are not touched, except that ephemeral containers must keep to mountable secrets.
Upstream: plugin/pkg/admission/serviceaccount.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin, annotations_of, is_true, spec_of
from kubern.api.authz.node import MIRROR, pod_secrets
from kubern.model.invalid import quote
from kubern.model.object import Object

MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
VOLUME_PREFIX = "kube-api-access-"
TOKEN_S = 3607
ENFORCE_MOUNTABLE = "kubernetes.io/enforce-mountable-secrets"
SUFFIX_CHARS = "bcdfghjklmnpqrstvwxz2456789"
DEFAULT_TRIES, TRY_EVERY_S = 10, 0.15      # a new namespace's default account is made by a controller, a moment later

_SOURCES: list[dict[str, Any]] = [
    {"serviceAccountToken": {"expirationSeconds": TOKEN_S, "path": "token"}},
    {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
    {"downwardAPI": {"items": [{"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}, "path": "namespace"}]}},
]


async def _account(a: Attributes, name: str) -> Object:
    tries = DEFAULT_TRIES if name == "default" else 1
    for i in range(tries):
        account = a.reader.get("serviceaccounts", a.namespace, name)
        if account is not None:
            return account
        if i + 1 < tries:
            await asyncio.sleep(TRY_EVERY_S)
    raise a.refuse(f"error looking up service account {a.namespace}/{name}: serviceaccount {quote(name)} not found")


async def mutate(a: Attributes) -> None:
    if a.operation != CREATE or a.subresource or a.obj is None:
        return
    if MIRROR in annotations_of(a.obj):
        await validate(a)
        return
    spec = spec_of(a.obj)
    name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = name
    account = await _account(a, name)
    wanted = spec.get("automountServiceAccountToken")
    if wanted is None:
        wanted = account.get("automountServiceAccountToken", True)
    if wanted:
        _mount(spec)
    if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
        spec["imagePullSecrets"] = [{"name": s.get("name", "")} for s in account["imagePullSecrets"]]
    await _check(a, spec, account)


def _mount(spec: dict[str, Any]) -> None:
    volumes = spec.get("volumes") or []
    existing = next((v["name"] for v in volumes if str(v.get("name", "")).startswith(VOLUME_PREFIX)), "")
    name = existing or VOLUME_PREFIX + "".join(random.choices(SUFFIX_CHARS, k=5))
    needed = False
    for field in ("initContainers", "containers"):
        for c in spec.get(field) or ():
            mounts = c.get("volumeMounts") or []
            if all(m.get("mountPath") != MOUNT_PATH for m in mounts):
                c["volumeMounts"] = [*mounts, {"mountPath": MOUNT_PATH, "name": name, "readOnly": True}]
                needed = True
    if needed and not existing:
        spec["volumes"] = [*volumes, {"name": name, "projected": {"defaultMode": 420, "sources": [dict(s) for s in _SOURCES]}}]


async def validate(a: Attributes) -> None:
    if a.obj is None:
        return
    spec = spec_of(a.obj)
    if a.operation == UPDATE:
        if a.subresource == "ephemeralcontainers":
            await _check_ephemeral(a, spec)
        return
    if a.subresource:
        return
    if MIRROR in annotations_of(a.obj):
        if spec.get("serviceAccountName") or spec.get("serviceAccount"):
            raise a.refuse("a mirror pod may not reference service accounts")
        if any(pod_secrets(spec)):
            raise a.refuse("a mirror pod may not reference secrets")
        for v in spec.get("volumes") or ():
            if any(s.get("serviceAccountToken") for s in (v.get("projected") or {}).get("sources") or ()):
                raise a.refuse("a mirror pod may not use ServiceAccountToken volume projections")
        return
    name = spec.get("serviceAccountName") or ""
    if not name:
        raise a.refuse(f"no service account specified for pod {a.namespace}/{a.shown_name()}")
    await _check(a, spec, await _account(a, name))


async def _check(a: Attributes, spec: dict[str, Any], account: Object) -> None:
    """With enforced mountable secrets, a pod refers to no secret its account does not list."""
    if not is_true(annotations_of(account).get(ENFORCE_MOUNTABLE)):
        return
    name, mountable = account["metadata"]["name"], {s.get("name") for s in account.get("secrets") or ()}
    tail = f"is not allowed because service account {name} does not reference that secret"
    for v in spec.get("volumes") or ():
        secret = (v.get("secret") or {}).get("secretName", "")
        if v.get("secret") is not None and secret not in mountable:
            raise a.refuse(f'volume with secret.secretName="{secret}" {tail}')
    for field, word in (("initContainers", "init container"), ("containers", "container")):
        _check_containers(a, spec.get(field) or (), word, mountable, tail)
    pulls = {s.get("name") for s in account.get("imagePullSecrets") or ()}
    for i, ref in enumerate(spec.get("imagePullSecrets") or ()):
        if ref.get("name") not in pulls:
            raise a.refuse(f'imagePullSecrets[{i}].name="{ref.get("name", "")}" is not allowed because service account {name} '
                           "does not reference that imagePullSecret")


def _check_containers(a: Attributes, containers: Any, word: str, mountable: set[Any], tail: str) -> None:
    for c in containers:
        for env in c.get("env") or ():
            ref = (env.get("valueFrom") or {}).get("secretKeyRef")
            if ref and ref.get("name") not in mountable:
                raise a.refuse(f'{word} {c.get("name")} with envVar {env.get("name")} referencing '
                               f'secret.secretName="{ref.get("name", "")}" {tail}')
        for source in c.get("envFrom") or ():
            ref = source.get("secretRef")
            if ref and ref.get("name") not in mountable:
                raise a.refuse(f'{word} {c.get("name")} with envFrom referencing secret.secretName="{ref.get("name", "")}" {tail}')


async def _check_ephemeral(a: Attributes, spec: dict[str, Any]) -> None:
    name = spec.get("serviceAccountName") or ""
    if not name:
        raise a.refuse(f"no service account specified for pod {a.namespace}/{a.shown_name()}")
    account = await _account(a, name)
    if is_true(annotations_of(account).get(ENFORCE_MOUNTABLE)):
        mountable = {s.get("name") for s in account.get("secrets") or ()}
        tail = f"is not allowed because service account {name} does not reference that secret"
        _check_containers(a, spec.get("ephemeralContainers") or (), "ephemeral container", mountable, tail)


PLUGIN = Plugin("ServiceAccount", (CREATE, UPDATE), ("pods", "pods/ephemeralcontainers"), mutate=mutate, validate=validate)
