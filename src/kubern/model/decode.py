"""Decode: a request's body as an object that is shaped as upstream's Go types would write it back.

In: bytes, their media type, the resource's schema. Out: the object and warnings, or a 400 in upstream's words. On the way: unknown fields
are pruned, duplicate ones reported (fieldValidation), types and ranges checked, quantities and times made canonical, empty
values dropped and the ever-present ones added, so that two texts that mean the same become the same dict.

Two ways: the fast one is orjson and one walk (no paths, no texts); whatever is odd sends it to the slow one, which reads the text again,
keeps order, duplicates and number texts, and knows the exact words. The object is freshly made and belongs to the caller.
Behaviour: apimachinery runtime/serializer/json, sigs.k8s.io/json, apiserver handlers/rest.go; KEP-2885 (field validation).
"""

from __future__ import annotations

from typing import Any

import orjson

from kubern.model import gojson, shape, strict, yamltree
from kubern.model.gojson import Pairs, kind_of
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.schema import Schema, definitions
from kubern.model.status import StatusError, bad_request

JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
FIND_KIND = ('struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }')


# ---------------------------------------------------------------- entry points

def media_type(content_type: str) -> str:
    """"application/json; charset=utf-8" -> "application/json"; "" counts as JSON."""
    return content_type.partition(";")[0].strip().lower() or JSON


def unsupported(custom: bool = False) -> StatusError:
    types = [JSON, YAML] + ([] if custom else [PROTOBUF])
    return StatusError(415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted media types include: "
                       + ", ".join(types))


def decode(body: bytes, content_type: str, resource: Resource, schema: Schema, field_validation: str = "Warn", *,
           api_version: str = "", kind: str = "") -> tuple[Object, list[str]]:
    """(object, warnings). api_version and kind are of the body where it is not the resource's own (Scale, Eviction …)."""
    kind = kind or resource.kind
    api_version = api_version or resource.api_version
    type_ = media_type(content_type)
    careful = field_validation != "Ignore"
    complaint = ""
    tree: Any = None
    if type_ == JSON:
        try:
            obj = orjson.loads(body)
        except ValueError:
            tree = _parse_json(body, kind)
        else:
            if obj.__class__ is dict and obj.get("kind", kind) == kind and obj.get("apiVersion", api_version) == api_version:
                try:
                    keys = shape.custom(obj, schema) if schema.raw is not None else shape.struct(obj, schema)
                    if not careful or shape.key_count(body) == keys:
                        obj["apiVersion"], obj["kind"] = api_version, kind
                        return obj, []
                except shape.Odd:
                    pass
                except RecursionError:
                    raise _unrecognized(kind, "exceeded max depth", body) from None
            tree = _parse_json(body, kind)
    elif type_ == YAML:
        try:
            tree, complaint = yamltree.parse(body)
        except yamltree.YAMLFault as e:
            raise _unrecognized(kind, str(e), body) from None
    elif type_ == PROTOBUF and not resource.custom:
        from kubern.model import protobuf

        try:
            tree = protobuf.to_json(body, api_version, kind)
        except protobuf.ProtobufFault as e:
            raise _unrecognized(kind, str(e), body) from None
        if tree["kind"] == kind and tree["apiVersion"] == api_version:
            try:
                shape.struct(tree, schema)
                return tree, []
            except shape.Odd:                      # read again: the walk may have changed half of it
                tree = protobuf.to_json(body, api_version, kind)
    else:
        raise unsupported(resource.custom)

    have_version, have_kind = _identify(tree, kind, body)
    if not have_kind:
        have_kind = kind
    if not have_version:
        have_version = api_version
    _check_kind(have_version, have_kind, api_version, kind, resource)
    try:
        obj, errors = strict.typed(tree, schema, resource.custom, root=kind)
    except strict.Fault as e:
        raise _cannot(have_kind, have_version, kind, str(e)) from None
    if complaint:
        errors.insert(0, complaint)
    if errors and field_validation == "Strict":
        raise _cannot(have_kind, have_version, kind, "strict decoding error: " + ", ".join(errors))
    obj["apiVersion"], obj["kind"] = api_version, kind
    return obj, _warnings(errors) if field_validation == "Warn" else []


def _warnings(errors: list[str]) -> list[str]:
    """Strict errors as warnings: those of YAML one a line."""
    out = []
    for e in errors:
        if e.startswith("yaml: unmarshal errors:\n"):
            out += [line.strip() for line in e.split("\n")[1:]]
        else:
            out.append(e)
    return out


# ---------------------------------------------------------------- identity: apiVersion and kind

def _parse_json(body: bytes, kind: str) -> Any:
    try:
        return gojson.parse(body)
    except gojson.SyntaxFault as e:
        raise _unrecognized(kind, f"couldn't get version/kind; json parse error: {e}", body) from None


def _summary(body: bytes, length: int = 30) -> str:
    if not body:
        return "<empty>"
    if body[:1] == b"{":
        text = body[:length].decode("utf-8", "replace")
        return text + (" ..." if len(body) > length else "")
    return body[:length].hex() + (" ..." if len(body) > length else "")


def _unrecognized(kind: str, why: str, body: bytes) -> StatusError:
    return bad_request(f"the object provided is unrecognized (must be of type {kind}): {why} ({_summary(body)})")


def _cannot(have_kind: str, have_version: str, kind: str, why: str) -> StatusError:
    return bad_request(f'{have_kind} in version "{have_version.rpartition("/")[2]}" cannot be handled as a {kind}: {why}')


def _identify(tree: Any, kind: str, body: bytes) -> tuple[str, str]:
    """(apiVersion, kind) of a tree, "" where absent."""
    if tree is None:
        return "", ""
    if not isinstance(tree, (Pairs, dict)):
        why = f"json: cannot unmarshal {kind_of(tree)} into Go value of type {FIND_KIND}"
        raise _unrecognized(kind, f"couldn't get version/kind; json parse error: {why}", body)
    found = {"apiVersion": "", "kind": ""}
    for k, v in tree if isinstance(tree, Pairs) else tree.items():
        if k in found and v is not None:
            if not isinstance(v, str):
                why = f"json: cannot unmarshal {kind_of(v)} into Go struct field .{k} of type string"
                raise _unrecognized(kind, f"couldn't get version/kind; json parse error: {why}", body)
            found[k] = v
    found["apiVersion"] = found["apiVersion"].removeprefix("/")
    if found["apiVersion"].count("/") > 1:
        raise _unrecognized(kind, f"unexpected GroupVersion string: {found['apiVersion']}", body)
    return found["apiVersion"], found["kind"]


def internal_package(group: str) -> str:
    """The package of upstream's internal types of a group, as Go prints it."""
    return {"": "core", "events.k8s.io": "core", "internal.apiserver.k8s.io": "apiserverinternal"}.get(group, group.partition(".")[0])


# Versions that upstream still decodes and serves no more.
RETIRED = {
    "admissionregistration.k8s.io/v1alpha1": "ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding",
    "admissionregistration.k8s.io/v1beta1": "ValidatingWebhookConfiguration MutatingWebhookConfiguration ValidatingAdmissionPolicy "
                                            "ValidatingAdmissionPolicyBinding",
    "apps/v1beta1": "ControllerRevision Deployment StatefulSet", "batch/v1beta1": "CronJob", "certificates.k8s.io/v1beta1": "CertificateSigningRequest",
    "apps/v1beta2": "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet", "authentication.k8s.io/v1alpha1": "SelfSubjectReview",
    "authentication.k8s.io/v1beta1": "SelfSubjectReview TokenReview",
    "authorization.k8s.io/v1beta1": "SelfSubjectRulesReview SelfSubjectAccessReview SubjectAccessReview LocalSubjectAccessReview",
    "coordination.k8s.io/v1beta1": "Lease", "discovery.k8s.io/v1beta1": "EndpointSlice", "events.k8s.io/v1beta1": "Event",
    "extensions/v1beta1": "DaemonSet Deployment Ingress NetworkPolicy ReplicaSet",
    "flowcontrol.apiserver.k8s.io/v1beta1": "FlowSchema PriorityLevelConfiguration",
    "flowcontrol.apiserver.k8s.io/v1beta2": "FlowSchema PriorityLevelConfiguration",
    "flowcontrol.apiserver.k8s.io/v1beta3": "FlowSchema PriorityLevelConfiguration", "networking.k8s.io/v1beta1": "Ingress IngressClass",
    "node.k8s.io/v1alpha1": "RuntimeClass", "node.k8s.io/v1beta1": "RuntimeClass", "policy/v1beta1": "PodDisruptionBudget Eviction",
    "rbac.authorization.k8s.io/v1alpha1": "Role RoleBinding ClusterRole ClusterRoleBinding",
    "rbac.authorization.k8s.io/v1beta1": "Role RoleBinding ClusterRole ClusterRoleBinding", "scheduling.k8s.io/v1beta1": "PriorityClass",
    "storage.k8s.io/v1alpha1": "VolumeAttachment CSIStorageCapacity VolumeAttributesClass",
    "storage.k8s.io/v1beta1": "StorageClass VolumeAttachment CSIDriver CSINode CSIStorageCapacity"}


def _check_kind(have_version: str, have_kind: str, api_version: str, kind: str, resource: Resource) -> None:
    """Refuse a body of another kind or version, in upstream's words."""
    if have_kind == kind and have_version == api_version:
        return
    version = have_version.rpartition("/")[2]
    if resource.custom:
        if have_kind == kind and have_version.rpartition("/")[0] == resource.group:
            raise bad_request(f"the API version in the data ({have_version}) does not match the expected API version ({api_version})")
        group = resource.group
        raise _cannot(have_kind, have_version, kind, f"{have_version}, Kind={have_kind} is not a registered kind of {group}")
    if have_kind == kind and have_kind in RETIRED.get(have_version, "").split():
        raise bad_request(f"the API version in the data ({have_version}) does not match the expected API version ({api_version})")
    if f"{have_version}/{have_kind}" not in definitions().index:
        scheme = "pkg/api/legacyscheme/scheme.go:30"
        if resource.group == "apiextensions.k8s.io":
            scheme = "pkg/apiserver/apiserver.go:51"
        elif resource.group == "apiregistration.k8s.io":
            scheme = "pkg/apiserver/scheme/scheme.go:33"
        raise _cannot(have_kind, have_version, kind, f'no kind "{have_kind}" is registered for version "{have_version}" in scheme "{scheme}"')
    if have_kind == kind and (have_kind == "Event" or have_version.rpartition("/")[0] == api_version.rpartition("/")[0]):
        raise bad_request(f"the API version in the data ({have_version}) does not match the expected API version ({api_version})")
    into = f"{internal_package(api_version.rpartition('/')[0])}.{kind}"
    raise _cannot(have_kind, have_version, kind, f"converting ({version}.{have_kind}) to ({into}): unknown conversion")
