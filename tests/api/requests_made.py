"""Requests nobody would send on purpose, made from the schemas: what a fuzzer needs to get past the first check of every kind.

`valid(rng)` objects are minimal and admitted; `mutate` breaks one thing or a few; `Mill.request()` puts them into any verb, path, query,
content type and encoding. The same seed makes the same requests.
"""

from __future__ import annotations

import copy
import random
from typing import Any
from urllib.parse import quote

import orjson
import yaml

from kubern.model import protobuf
from kubern.model import schema as s
from kubern.model.request import Request, User
from kubern.model.resource import Resource
from kubern.model.resources import RESOURCES

ROWS = tuple(r for r in RESOURCES if r.verbs)
POD = {"containers": [{"name": "c", "image": "i"}]}
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": POD}
SELECTOR = {"matchLabels": {"a": "b"}}
HOOK = {
    "name": "a.example.com",
    "clientConfig": {"url": "https://127.0.0.1:1/"},
    "sideEffects": "None",
    "admissionReviewVersions": ["v1"],
    "failurePolicy": "Ignore",
    "timeoutSeconds": 1,
    "rules": [{"apiGroups": ["none.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothings"]}],
}
SPECS: dict[str, dict[str, Any]] = {
    "Pod": {"spec": POD},
    "PodTemplate": {"template": TEMPLATE},
    "ReplicationController": {"spec": {"selector": {"a": "b"}, "template": TEMPLATE}},
    "Deployment": {"spec": {"selector": SELECTOR, "template": TEMPLATE}},
    "ReplicaSet": {"spec": {"selector": SELECTOR, "template": TEMPLATE}},
    "StatefulSet": {"spec": {"selector": SELECTOR, "template": TEMPLATE, "serviceName": "x"}},
    "DaemonSet": {"spec": {"selector": SELECTOR, "template": TEMPLATE}},
    "Job": {"spec": {"template": {"spec": {**POD, "restartPolicy": "Never"}}}},
    "CronJob": {"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": {**POD, "restartPolicy": "Never"}}}}}},
    "Service": {"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}},
    "ConfigMap": {"data": {"a": "b"}},
    "Secret": {"data": {"a": "YQ=="}},
    "PersistentVolumeClaim": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}},
    "PersistentVolume": {"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp"}}},
    "Endpoints": {"subsets": [{"addresses": [{"ip": "10.1.1.1"}], "ports": [{"port": 1}]}]},
    "LimitRange": {"spec": {"limits": [{"type": "Pod", "max": {"cpu": "9k"}}]}},
    "ResourceQuota": {"spec": {"hard": {"services": "900000"}}},
    "HorizontalPodAutoscaler": {"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "x"}, "maxReplicas": 3}},
    "Role": {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]},
    "ClusterRole": {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]},
    "RoleBinding": {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "x"},
        "subjects": [{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}],
    },
    "ClusterRoleBinding": {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "x"}, "subjects": []},
    "NetworkPolicy": {"spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": SELECTOR}]}]}},
    "Ingress": {"spec": {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}}},
    "IngressClass": {"spec": {"controller": "a.com/b"}},
    "EndpointSlice": {"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.1.1"]}], "ports": [{"port": 1}]},
    "PodDisruptionBudget": {"spec": {"minAvailable": 1, "selector": SELECTOR}},
    "PriorityClass": {"value": 5},
    "RuntimeClass": {"handler": "h"},
    "StorageClass": {"provisioner": "a.com/b"},
    "VolumeAttachment": {"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "x"}}},
    "CSIDriver": {"spec": {}},
    "CSINode": {"spec": {"drivers": []}},
    "CSIStorageCapacity": {"storageClassName": "x"},
    "VolumeAttributesClass": {"driverName": "a.com"},
    "Lease": {"spec": {"holderIdentity": "a", "leaseDurationSeconds": 5}},
    "ValidatingWebhookConfiguration": {"webhooks": [HOOK]},
    "MutatingWebhookConfiguration": {"webhooks": [HOOK]},
    "ValidatingAdmissionPolicy": {"spec": {"matchConstraints": {"resourceRules": HOOK["rules"]}, "validations": [{"expression": "object.x == 1"}]}},
    "ValidatingAdmissionPolicyBinding": {"spec": {"policyName": "x", "validationActions": ["Deny"]}},
    "MutatingAdmissionPolicy": {
        "spec": {
            "matchConstraints": {"resourceRules": HOOK["rules"]},
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}],
        }
    },
    "MutatingAdmissionPolicyBinding": {"spec": {"policyName": "x"}},
    "FlowSchema": {"spec": {"priorityLevelConfiguration": {"name": "x"}, "matchingPrecedence": 5}},
    "PriorityLevelConfiguration": {"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 3, "limitResponse": {"type": "Reject"}}}},
    "CertificateSigningRequest": {"spec": {"request": "YQ==", "signerName": "a.com/b", "usages": ["client auth"]}},
    "APIService": {
        "spec": {
            "group": "x.example.com",
            "version": "v1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": "x", "namespace": "d"},
        }
    },
    "CustomResourceDefinition": {
        "spec": {
            "group": "g.example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing", "singular": "thing", "listKind": "ThingList"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                    "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.replicas"}],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {
                                    "type": "object",
                                    "properties": {
                                        "replicas": {"type": "integer", "default": 1},
                                        "words": {"type": "array", "items": {"type": "string"}},
                                        "any": {"x-kubernetes-preserve-unknown-fields": True},
                                        "ios": {"x-kubernetes-int-or-string": True},
                                        "list": {
                                            "type": "array",
                                            "x-kubernetes-list-type": "map",
                                            "x-kubernetes-list-map-keys": ["k"],
                                            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "number"}}},
                                        },
                                    },
                                    "x-kubernetes-validations": [{"rule": "self.replicas < 100", "messageExpression": "self.replicas > 1000 ? 'very' : 'big'"}],
                                },
                                "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
                            },
                        }
                    },
                }
            ],
        }
    },
    "Thing": {"spec": {"replicas": 2, "words": ["a"], "any": {"a": 1}, "ios": 1, "list": [{"k": "a", "v": 1}]}, "status": {"replicas": 1}},
    "Event": {"involvedObject": {"kind": "Pod", "name": "x", "namespace": "d"}, "reason": "r", "message": "m"},
    "SubjectAccessReview": {"spec": {"user": "u", "resourceAttributes": {"verb": "get", "resource": "pods"}}},
    "SelfSubjectAccessReview": {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}},
    "LocalSubjectAccessReview": {
        "metadata": {"namespace": "d"},
        "spec": {"user": "u", "resourceAttributes": {"namespace": "d", "verb": "get", "resource": "pods"}},
    },
    "SelfSubjectRulesReview": {"spec": {"namespace": "d"}},
    "TokenReview": {"spec": {"token": "a.b.c"}},
    "SelfSubjectReview": {},
    "ServiceCIDR": {"spec": {"cidrs": ["10.90.0.0/24"]}},
    "IPAddress": {"spec": {"parentRef": {"resource": "services", "name": "x", "namespace": "d"}}},
    "ResourceClaim": {"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "x"}}]}}},
    "ResourceClaimTemplate": {"spec": {"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "x"}}]}}}},
    "DeviceClass": {"spec": {"selectors": [{"cel": {"expression": "device.driver == 'x'"}}]}},
    "ResourceSlice": {
        "spec": {"driver": "a.com", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "nodeName": "n", "devices": [{"name": "d"}]}
    },
    "ControllerRevision": {"revision": 1, "data": {"a": 1}},
    "Binding": {"target": {"kind": "Node", "name": "n"}},
}
NAMES = {"IPAddress": "10.96.0.77", "APIService": "v1.x.example.com", "CustomResourceDefinition": "things.g.example.com"}
TEXTS = (
    "",
    "a",
    "A_",
    "a/b",
    "*",
    "x" * 70,
    "x" * 300,
    "-1",
    "1Gi",
    "10%",
    "1.2.3.4",
    "example.com/a",
    "fd00::/8",
    "é",
    "\x00",
    "a\x00b",
    "\u202e",
    "\U0001f600",
    "{{",
    "$(x)",
    "../..",
    "..",
    ".",
    "%",
    "%s%n",
    "a=b,c",
    "a in (b",
    "!a",
    "0",
    "00",
    "1e999",
    "1" * 40,
    "1E3",
    "9223372036854775808",
    "-9223372036854775809",
    "2020-01-01T00:00:00Z",
    "9999-99-99T99:99:99Z",
    "0000-01-01T00:00:00Z",
    "self.x",
    "true",
    "null",
    "\n",
    "\t",
    " a ",
    "[",
    "(?:a*)*",
    "a" * 2000,
    "system:masters",
    "0.1.2.3/33",
    "::",
    "host",
    "1n",
    "1.5",
    ".5",
    "+1",
    "0x10",
    "١",
    "²",
    "½",
    "①",
    "k8s.io/x",
    "latest",
    "'",
    '"',
    "\\",
    "`",
    "\u2028",
)
NUMBERS = (0, 1, -1, 100, 65536, 1 << 31, -(1 << 31) - 1, 1 << 32, 1 << 53, 1 << 63, (1 << 63) - 1, -(1 << 63), 1 << 64, 0.0, 1.5, -0.0, 1e308, 1e-320)
ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], [{}], {"": ""}, {"a": None}, [1, "a", None], {"a": {"b": {"c": []}}})
PLAIN = {
    s.INT32: (0, 1, -1, 100),
    s.INT64: (0, 1, -1, 1 << 40),
    s.BOOL: (True, False),
    s.NUMBER: (0, 1.5),
    s.TIME: ("2020-01-01T00:00:00Z",),
    s.MICROTIME: ("2020-01-01T00:00:00.000000Z",),
    s.QUANTITY: ("0", "-1", "100Mi", "1e3", "1n", "99999999999999999999"),
    s.INT_OR_STRING: (0, -1, "10%", "a", "200%"),
    s.RAW: ({}, {"a": 1}, [], 1),
    s.ANY: ({}, 1, "a"),
    s.BYTES: ("", "YQ==", "!"),
    s.DURATION: ("1s", "", "-1h", "9999999h"),
}
TYPES = (
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
    "text/plain",
    "",
    "a",
    "application/json; charset=utf-8",
    ";",
    "*/*",
)
ACCEPTS = (
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "*/*",
    "",
    "application/json;as=Table;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "text/html",
    "application/cbor",
    "application/json;as=Table;v=v9;g=meta.k8s.io",
    "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json",
    ";;;",
    ",",
    "application/json;q=é",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/json;stream=watch",
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
)
SELECTORS = (
    "a=b",
    "a",
    "!a",
    "a in (b,c)",
    "a notin ()",
    "a>1",
    "a<x",
    "=",
    ",",
    "a==",
    "a in (",
    "a!=b,c",
    "(",
    "metadata.name=x",
    "metadata.namespace!=d",
    "status.phase=Running",
    "spec.nodeName=",
    "a.b.c=d",
    "metadata.name=x,metadata.name=y",
    "\\",
    "a=\\",
    "metadata.name",
    "é=é",
    "a" * 5000,
    "a in (" + ",".join("v" * 3 for _ in range(3000)) + ")",
    "a=b,," * 500,
)
VERSIONS = ("", "0", "1", "-1", "x", "5", "99999999999999999999999", "1.5", "9" * 5000, "²", "٣", "18446744073709551616")
QUERIES: dict[str, tuple[str, ...]] = {
    "labelSelector": SELECTORS,
    "fieldSelector": SELECTORS,
    "resourceVersion": VERSIONS,
    "resourceVersionMatch": ("Exact", "NotOlderThan", "", "x"),
    "limit": VERSIONS,
    "continue": (
        "",
        "x",
        "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhIn0",
        "bnVsbA",
        "W10",
        "MQ",
        "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiYVx1MDAwMCJ9",
        "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6OTIyMzM3MjAzNjg1NDc3NTgwODAwLCJzdGFydCI6ImEifQ",
        "é",
        "=",
        "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6dHJ1ZSwic3RhcnQiOiJhIn0",
    ),
    "watch": ("true", "1", "x", "", "false"),
    "timeoutSeconds": VERSIONS,
    "allowWatchBookmarks": ("true", "x"),
    "sendInitialEvents": ("true", "false", "x"),
    "dryRun": ("All", "x", ""),
    "fieldManager": ("m", "", "x" * 200, "\x00", "é"),
    "fieldValidation": ("Strict", "Warn", "Ignore", "x"),
    "force": ("true", "false", "x", ""),
    "propagationPolicy": ("Orphan", "Foreground", "Background", "x"),
    "gracePeriodSeconds": VERSIONS,
    "orphanDependents": ("true", "x"),
    "pretty": ("true", "x"),
    "includeObject": ("None", "Object", "Metadata", "x"),
    "export": ("true",),
    "timeout": ("1s", "x", "-1", "9" * 400),
    "container": ("c", "\x00"),
    "command": ("sh",),
    "stdin": ("true", "x"),
    "tailLines": VERSIONS,
    "sinceSeconds": VERSIONS,
    "limitBytes": VERSIONS,
    "sinceTime": ("x", "2020-01-01T00:00:00Z"),
    "previous": ("true", "x"),
    "follow": ("x",),
    "path": ("/a", ".."),
    "ports": ("80", "x", "-1"),
    "ignoreStoreReadErrorWithClusterBreakingPotential": ("true", "x"),
    "shardSelector": ("x",),
    "stream": ("All", "x"),
    "x": ("y",),
    "": ("",),
}
SUBRESOURCES = (
    "status",
    "scale",
    "eviction",
    "binding",
    "log",
    "exec",
    "attach",
    "portforward",
    "proxy",
    "token",
    "approval",
    "finalize",
    "resize",
    "ephemeralcontainers",
    "why",
    "x",
    "proxy/a/b",
    "status/x",
)
PATHS = (
    "/",
    "/api",
    "/apis",
    "/api/",
    "/api/v1",
    "/api/v2",
    "/apis/apps",
    "/apis/apps/v1",
    "/apis/apps/v9",
    "/apis/x.example.com/v1",
    "/apis/g.example.com/v1/namespaces/d/things",
    "/healthz",
    "/livez",
    "/readyz",
    "/readyz/ping",
    "/readyz/x",
    "/livez?verbose",
    "/metrics",
    "/version",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/apis/apps/v1",
    "/openapi/v3/x",
    "/logs",
    "/debug/pprof",
    "/.well-known/openid-configuration",
    "/openid/v1/jwks",
    "//api/v1/pods",
    "/api//v1/pods",
    "/api/v1/namespaces/d/pods/../secrets",
    "/api/v1/watch/pods",
    "/api/v1/watch/namespaces/d/pods/x",
    "/api/v1/namespaces//pods",
    "/api/v1/namespaces/d",
    "/api/v1/namespaces/d/finalize",
    "/api/v1/namespaces/d/status",
    "/apis/batch/v1/watch",
    "/api/v1/x/y/z/a/b/c/d",
    "/apis/metrics.k8s.io/v1beta1/nodes",
    "/" + "a/" * 2000,
    "/api/v1/pods/\x00",
    "/api/v1/nodes/n/proxy/..",
    "/api/v1/namespaces/d/services/https:x:80/proxy/a",
    "/api/v1/namespaces/d/pods/x:99999/proxy",
    "/api/v1/namespaces/d/services/::/proxy",
    "/apis/*/v1/x",
    "/é",
    "*",
)
VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "FOO")
USERS = (
    User("admin", ("system:masters", "system:authenticated")),
    User("u", ("system:authenticated",)),
    User("system:node:n", ("system:nodes", "system:authenticated")),
)


def some(schema: s.Schema, rng: random.Random, depth: int = 0) -> Any:
    """Anything of this schema's shape."""
    c = schema.code
    if c == s.STRUCT:
        return (
            {}
            if depth > 7 or not schema.props
            else {k: some(v, rng, depth + 1) for k, v in schema.props.items() if rng.random() < (0.3 if depth < 4 else 0.2)}
        )
    if c == s.LIST and schema.items is not None:
        return [some(schema.items, rng, depth + 1) for _ in range(rng.choice((0, 1, 1, 2)))]
    if c == s.MAP and schema.extra is not None:
        return {rng.choice(TEXTS): some(schema.extra, rng, depth + 1) for _ in range(rng.choice((0, 1, 2)))}
    return rng.choice(PLAIN.get(c, TEXTS))


def deep(depth: int, rng: random.Random) -> Any:
    out: Any = 1
    for _ in range(depth):
        out = [out] if rng.random() < 0.5 else {"a": out}
    return out


def spots(value: Any, schema: s.Schema | None, out: list[tuple[Any, Any, s.Schema | None]], depth: int = 0) -> None:
    """Every place in a value: its holder, its key, its schema."""
    if depth > 40 or len(out) > 3000:
        return
    if isinstance(value, dict):
        for k, v in value.items():
            child = None if schema is None else (schema.props or {}).get(k, schema.extra)
            out.append((value, k, child))
            spots(v, child, out, depth + 1)
    elif isinstance(value, list):
        for i, v in enumerate(value):
            out.append((value, i, schema.items if schema else None))
            spots(v, schema.items if schema else None, out, depth + 1)


class Mill:
    """Makes requests, one after the other, from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def valid(self, row: Resource) -> dict[str, Any]:
        name = NAMES.get(row.kind, self.rng.choice("xyz"))
        obj = copy.deepcopy(SPECS.get(row.kind, {}))
        meta = {"name": name, **({"namespace": "d"} if row.namespaced else {})}
        return {"apiVersion": row.api_version, "kind": row.kind, **obj, "metadata": {**meta, **obj.get("metadata", {})}}

    def value(self, schema: s.Schema | None) -> Any:
        rng, at = self.rng, self.rng.random()
        if at < 0.35 and schema is not None:
            return some(schema, rng, 3)
        if at < 0.6:
            return rng.choice(TEXTS)
        if at < 0.75:
            return rng.choice(NUMBERS)
        if at < 0.97:
            return copy.deepcopy(rng.choice(ODD))
        if at < 0.985:
            return deep(rng.choice((20, 200, 3000)), rng)
        return [rng.choice((1, "a", {}, {"name": "a"})) for _ in range(10_000)]

    def mutate(self, obj: dict[str, Any], schema: s.Schema | None) -> dict[str, Any]:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            found: list[tuple[Any, Any, s.Schema | None]] = []
            spots(obj, schema, found)
            if rng.random() < 0.5 and schema is not None and schema.props:
                holder: Any = obj
                at: s.Schema | None = schema
                while isinstance(holder, dict) and at is not None and at.props:  # a field the schema knows, wherever we come to
                    key = rng.choice(list(at.props))
                    below = at.props[key]
                    if isinstance(holder.get(key), dict) and rng.random() < 0.8:
                        holder, at = holder[key], below
                        continue
                    if (
                        isinstance(holder.get(key), list)
                        and holder[key]
                        and isinstance(holder[key][0], dict)
                        and below.items is not None
                        and rng.random() < 0.8
                    ):
                        holder, at = holder[key][0], below.items
                        continue
                    holder[key] = some(below, rng, 2) if rng.random() < 0.7 else self.value(below)
                    break
                continue
            if not found:
                break
            holder, key, below = rng.choice(found)
            act = rng.random()
            if act < 0.65:
                holder[key] = self.value(below)
            elif act < 0.75 and isinstance(holder, dict):
                del holder[key]
            elif act < 0.85 and isinstance(holder, dict):
                holder[rng.choice(TEXTS)] = self.value(None)
            elif isinstance(holder, list):
                holder.append(holder[key])
            else:
                holder[key] = [holder[key]] * 2
        return obj

    def encoded(self, obj: Any, type_: str) -> bytes:
        rng = self.rng
        try:
            if "protobuf" in type_ and isinstance(obj, dict) and obj.get("kind") != "Thing":
                body = protobuf.from_json(obj)
            elif "yaml" in type_ and rng.random() < 0.5:
                body = yaml.safe_dump(obj).encode()
            else:
                body = orjson.dumps(obj)
        except Exception:  # what cannot be encoded is sent as the JSON another library would make
            try:
                import json

                body = json.dumps(obj).encode("utf-8", "surrogatepass")
            except (RecursionError, ValueError, TypeError):
                depth = rng.choice((100, 5000, 100_000))
                body = b'{"metadata":' * depth + b"1" + b"}" * depth
        at = rng.random()
        if at < 0.1 and body:
            i = rng.randrange(len(body))
            body = (
                body[:i]
                + rng.choice(
                    (b"\x00", b"\xff", b"\xc3\x28", b'"', b"{", b"}", b"\xed\xa0\x80", b"&a *a", b"\\u0000", b"\\ud800", b"1e9999", b"NaN", rng.randbytes(4))
                )
                + body[i + rng.choice((0, 1, 5)) :]
            )
        elif at < 0.12:
            body = body[: rng.randrange(len(body) + 1)]
        elif at < 0.13:
            body = rng.choice(
                (
                    b"",
                    b"null",
                    b"[]",
                    b"1",
                    b'"a"',
                    b"{}",
                    b"---\n",
                    b"a: &a [*a]",
                    b"a: !!python/object:x.y {}",
                    b"k8s\x00",
                    b"k8s\x00" + rng.randbytes(50),
                    b"{" * 100_000,
                    b"[" * 100_000,
                    b"a: " * 5000,
                    b"- " * 20_000,
                    b"\xef\xbb\xbf{}",
                    b"{}{}",
                    b"x: |\n" + b" a\n" * 10_000,
                    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c]\n",
                )
            )
        return body

    def json_patch(self, row: Resource, schema: s.Schema | None) -> Any:
        rng = self.rng
        found: list[tuple[Any, Any, s.Schema | None]] = []
        obj = self.valid(row)
        paths: list[str] = [
            "",
            "/",
            "/metadata",
            "/metadata/labels",
            "/metadata/name",
            "/spec",
            "/status",
            "/-",
            "/spec/-",
            "/metadata/labels/a~1b",
            "/spec/containers/0",
            "/spec/containers/-",
            "/spec/containers/-1",
            "/spec/containers/00",
            "/spec/containers/" + "9" * 30,
            "/spec/containers/0/name",
            "~",
            "/~2",
            "a",
            "/kind",
            "/metadata/managedFields",
            "/spec/²",
        ]
        spots(obj, schema, found)
        return [
            {
                "op": rng.choice(("add", "remove", "replace", "move", "copy", "test", "x")),
                "path": rng.choice(paths),
                "from": rng.choice(paths),
                "value": self.value(schema),
            }
            if rng.random() < 0.9
            else copy.deepcopy(rng.choice(ODD))
            for _ in range(rng.choice((1, 1, 2, 3, 30)))
        ]

    def query(self) -> dict[str, list[str]]:
        rng = self.rng
        return {k: [rng.choice(QUERIES[k]) for _ in range(rng.choice((1, 1, 2)))] for k in rng.sample(list(QUERIES), rng.choice((0, 0, 0, 1, 1, 2, 3)))}

    def request(self, row: Resource, schema: s.Schema | None) -> Request:
        rng = self.rng
        verb = rng.choice(VERBS[:5]) if rng.random() < 0.97 else rng.choice(VERBS)
        obj = self.valid(row)
        base = f"/{'apis' if row.group else 'api'}/{row.api_version}"
        name = obj["metadata"]["name"]
        sub = rng.choice(SUBRESOURCES) if rng.random() < 0.15 else ""
        collection = verb == "POST" or (verb in ("GET", "DELETE") and rng.random() < 0.3)
        path = (
            f"{base}/{'namespaces/d/' if row.namespaced and rng.random() < 0.97 else ''}{row.plural}"
            + ("" if collection and not sub else f"/{name}")
            + (f"/{sub}" if sub else "")
        )
        if rng.random() < 0.02:
            path = rng.choice(PATHS)
        elif rng.random() < 0.02:
            path = path.replace(rng.choice(path.split("/")) or "/", rng.choice(TEXTS), 1)
        type_ = "application/json"
        doc: Any = obj
        if verb == "PATCH":
            type_ = rng.choice(TYPES[3:7])
            if type_.startswith("application/json-patch"):
                doc = self.json_patch(row, schema)
            else:
                doc = self.mutate(obj, schema)
                if "apply" not in type_ and rng.random() < 0.3:
                    found: list[tuple[Any, Any, s.Schema | None]] = []
                    spots(doc, None, found)
                    holder = rng.choice([h for h, _, _ in found if isinstance(h, dict)] or [doc])
                    holder[
                        rng.choice(
                            (
                                "$patch",
                                "$retainKeys",
                                "$setElementOrder/containers",
                                "$deleteFromPrimitiveList/finalizers",
                                "$setElementOrder/finalizers",
                                "$patch/x",
                            )
                        )
                    ] = rng.choice(("delete", "replace", "merge", "x", ["a"], [{"name": "c"}], 1, None, [1]))
        elif verb == "DELETE":
            doc = rng.choice(
                (
                    None,
                    {},
                    {
                        "kind": "DeleteOptions",
                        "apiVersion": "v1",
                        "gracePeriodSeconds": rng.choice(NUMBERS[:12]),
                        "preconditions": rng.choice(({}, {"uid": "x"}, {"resourceVersion": "²"}, 1)),
                    },
                    {"propagationPolicy": rng.choice(TEXTS)},
                    {"dryRun": ["All"]},
                    obj,
                )
            )
        elif rng.random() < 0.85:
            doc = self.mutate(obj, schema)
            if verb == "POST" and sub:
                kind = {"eviction": "Eviction", "binding": "Binding", "token": "TokenRequest"}.get(sub)
                if kind:
                    doc = self.mutate(
                        {
                            "apiVersion": {"Eviction": "policy/v1", "TokenRequest": "authentication.k8s.io/v1"}.get(kind, "v1"),
                            "kind": kind,
                            "metadata": {"name": name, "namespace": "d"},
                            "target": {"kind": "Node", "name": "n"},
                            "spec": {"expirationSeconds": 600, "audiences": ["a"]},
                            "deleteOptions": {"gracePeriodSeconds": 1},
                        },
                        None,
                    )
            elif sub == "scale":
                doc = self.mutate(
                    {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name, "namespace": "d"}, "spec": {"replicas": 2}}, None
                )
        if verb in ("POST", "PUT") and rng.random() < 0.25:
            type_ = rng.choice(TYPES[1:3])
        if rng.random() < 0.03:
            type_ = rng.choice(TYPES)
        headers = {"content-type": type_, "accept": rng.choice(ACCEPTS) if rng.random() < 0.25 else "application/json", "user-agent": "f/1"}
        if rng.random() < 0.02:
            headers[
                rng.choice(
                    (
                        "impersonate-user",
                        "audit-id",
                        "authorization",
                        "upgrade",
                        "connection",
                        "if-none-match",
                        "x-remote-user",
                        "sec-websocket-protocol",
                        "user-agent",
                    )
                )
            ] = rng.choice(TEXTS)
        body = b"" if doc is None or verb in ("GET", "HEAD") else self.encoded(doc, type_)
        return Request(verb, path, self.query(), headers, body, user=USERS[0] if rng.random() < 0.9 else rng.choice(USERS))


def wire(r: Request) -> bytes:
    """The request as HTTP/1.1 bytes."""
    query = "&".join(f"{quote(k)}={quote(v)}" for k, vs in r.query.items() for v in vs)
    head = f"{r.method} {quote(r.path)}{'?' + query if query else ''} HTTP/1.1\r\nHost: x\r\n" + "".join(f"{k}: {v}\r\n" for k, v in r.headers.items())
    return head.encode("utf-8", "replace") + b"Content-Length: %d\r\n\r\n" % len(r.body) + r.body
