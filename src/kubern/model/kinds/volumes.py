"""Volumes of pods, and the volume sources that pods and PersistentVolumes share.

Generators of errors over the v1 shape, in upstream's order and with its paths (misspelt ones included: clients match on them).
Upstream: pkg/apis/core/validation (validateVolumeSource and its like).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kubern.model import names
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_supported, required, too_long
from kubern.model.kinds.claim_spec import validate_claim_template
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.labels import messages, validate_label_selector
from kubern.model.kinds.references import (
    is_kubernetes_signer,
    local_path,
    no_backsteps,
    object_field,
    pull_policy,
    relative_path,
    resource_field,
    signer_name,
    trust_bundle_name,
)
from kubern.model.object import Object
from kubern.model.quantity import compare

Errors = Iterator[FieldError]
Check = Callable[[Object, str], Errors]
MODE = "must be a number between 0 and 0777 (octal), both inclusive"
ONE_TYPE = "may not specify more than 1 volume type"
HOST_PATH_TYPES = ("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")
FIELD_PATHS = frozenset({"metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid"})
KEY_TYPES = ("RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")


@dataclass(frozen=True, slots=True)
class PodVolumes:
    """What the rest of a pod's validation needs of its volumes: those that are valid, by name."""

    by_name: Mapping[str, Object]
    errors: list[FieldError]


def validate_volumes(volumes: list[Object], path: str, pod_name: str, is_pod: bool, any_token_path: bool) -> PodVolumes:
    """`pod_name` is "" in templates; `is_pod` false there; `any_token_path`: a stored token path may be non-local."""
    errors: list[FieldError] = []
    valid: dict[str, Object] = {}
    made = {f"{pod_name}-{v.get('name', '')}" for v in volumes if v.get("ephemeral") is not None} if pod_name else ()
    for i, v in enumerate(volumes):
        here, name = f"{path}[{i}]", v.get("name", "")
        own = list(_pod_source(v, here, name, pod_name, is_pod, any_token_path))
        if not name:
            own.append(required(f"{here}.name"))
        else:
            own.extend(messages(f"{here}.name", name, names.is_dns1123_label(name)))
        if name in valid:
            own.append(duplicate(f"{here}.name", name))
        if own:
            errors.extend(own)
        else:
            valid[name] = v
        claim = (v.get("persistentVolumeClaim") or {}).get("claimName", "")
        if claim and claim in made:
            errors.append(invalid(f"{here}.persistentVolumeClaim.claimName", claim,
                                  "must not reference a PVC that gets created for an ephemeral volume"))
    return PodVolumes(valid, errors)


def _pod_source(v: Object, path: str, name: str, pod_name: str, is_pod: bool, any_token_path: bool) -> Errors:
    count = 0
    if (empty := v.get("emptyDir")) is not None:
        count += 1
        if empty.get("sizeLimit") is not None and compare(empty["sizeLimit"], "0") < 0:
            yield forbidden(f"{path}.emptyDir.sizeLimit", "SizeLimit field must be a valid resource quantity")
    given = [k for k in v if k in _POD_SOURCES and v[k] is not None]
    for kind in given if len(given) < 2 else [k for k in _POD_SOURCES if k in given]:
        source, (_, twice, own, check) = v[kind], _POD_SOURCES[kind]
        if count:
            yield forbidden(f"{path}.{twice}", ONE_TYPE)
        else:
            count += 1
            if kind == "projected":
                yield from _projected(source, f"{path}.{own}", any_token_path)
            elif kind == "image":
                yield from _image(source, f"{path}.{own}", is_pod)
            else:
                yield from check(source, f"{path}.{own}")
                if kind == "ephemeral" and pod_name and name:
                    claim = f"{pod_name}-{name}"
                    for text in names.is_dns1123_subdomain(claim):
                        yield invalid(f"{path}.name", name, f'PVC name "{claim}": {text}')
        if kind == "iscsi" and source.get("initiatorName") is not None and len(f"{name}:{source.get('targetPortal', '')}") > 64:
            yield invalid(f"{path}.name", name, ISCSI_TOO_LONG)
    if not count:
        yield required(path, "must specify a volume type")


# Sources with a rule or two ----------------------------------------------------------------------------------------------------

def needs(*fields: str) -> Check:
    """A source that only has required fields, strings or lists."""
    def check(source: Object, path: str) -> Errors:
        for field in fields:
            if not source.get(field):
                yield required(f"{path}.{field}")
    return check


def host_path(source: Object, path: str) -> Errors:
    if not source.get("path"):
        yield required(f"{path}.path")
        return
    yield from no_backsteps(source["path"], f"{path}.path")
    if source.get("type") is not None and source["type"] not in HOST_PATH_TYPES:
        yield not_supported(f"{path}.type", source["type"], HOST_PATH_TYPES)


def git_repo(source: Object, path: str) -> Errors:
    if not source.get("repository"):
        yield required(f"{path}.repository")
    yield from relative_path(source.get("directory", ""), f"{path}.directory")


def disk(id_field: str) -> Check:
    def check(source: Object, path: str) -> Errors:
        if not source.get(id_field):
            yield required(f"{path}.{id_field}")
        partition = source.get("partition", 0)
        if not 0 <= partition <= 255:
            yield invalid(f"{path}.partition", partition, names.between(1, 255))
    return check


def _mode(source: Object, path: str, field: str = "defaultMode") -> Errors:
    mode = source.get(field)
    if mode is not None and not 0 <= mode <= 0o777:
        yield invalid(f"{path}.{field}", mode, MODE)


def key_to_path(item: Object, path: str) -> Errors:
    for field in ("key", "path"):
        if not item.get(field):
            yield required(f"{path}.{field}")
    yield from local_path(item.get("path", ""), f"{path}.path")
    yield from _mode(item, path, "mode")


def keyed(name_field: str) -> Check:
    """Secret and ConfigMap volumes."""
    def check(source: Object, path: str) -> Errors:
        if not source.get(name_field):
            yield required(f"{path}.{name_field}")
        yield from _mode(source, path)
        for i, item in enumerate(source.get("items") or ()):
            yield from key_to_path(item, f"{path}.items[{i}]")
    return check


def nfs(source: Object, path: str) -> Errors:
    yield from needs("server", "path")(source, path)
    if not source.get("path", "").startswith("/"):
        yield invalid(f"{path}.path", source.get("path", ""), "must be an absolute path")


ISCSI_TOO_LONG = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified."
_IQN = {"iqn": re.compile(r"iqn\.\d{4}-\d{2}\.([A-Za-z0-9\-.]+)(:[^,;*&$|\s]+)\Z", re.ASCII).search,
        "eui": re.compile(r"eui.[A-Za-z0-9]{16}\Z", re.ASCII).match,
        "naa": re.compile(r"naa.[A-Za-z0-9]{32}\Z", re.ASCII).match}


def _iscsi_name(name: str, path: str, unknown: str) -> Errors:
    matches = _IQN.get(name[:3])
    if matches is None:
        yield invalid(path, name, unknown)
    elif not matches(name):
        yield invalid(path, name, "must be valid format")


def _iscsi(source: Object, path: str, unknown: str, cluster_secret: bool) -> Errors:
    if not source.get("iqn"):
        yield required(f"{path}.iqn")
    else:
        yield from _iscsi_name(source["iqn"], f"{path}.iqn", unknown)
    lun = source.get("lun", 0)
    if not 0 <= lun <= 255:
        yield invalid(f"{path}.lun", lun, names.between(0, 255))
    secret = source.get("secretRef")
    if (source.get("chapAuthDiscovery") or source.get("chapAuthSession")) and secret is None:
        yield required(f"{path}.secretRef")
    if cluster_secret and secret is not None and not secret.get("name"):
        yield required(f"{path}.secretRef.name")
    if source.get("initiatorName") is not None:
        yield from _iscsi_name(source["initiatorName"], f"{path}.initiatorname", unknown)


def iscsi(source: Object, path: str) -> Errors:
    yield from needs("targetPortal")(source, path)
    yield from _iscsi(source, path, "must be valid format starting with iqn, eui, or naa", False)


def iscsi_persistent(source: Object, path: str, volume_name: str) -> Errors:
    yield from needs("targetPortal")(source, path)
    portal = source.get("targetPortal", "")
    if source.get("initiatorName") is not None and len(f"{volume_name}:{portal}") > 64:
        yield invalid(f"{path}.targetportal", portal, ISCSI_TOO_LONG)
    yield from _iscsi(source, path, "must be valid format", True)


def fc(source: Object, path: str) -> Errors:
    targets, ids, lun = source.get("targetWWNs") or [], source.get("wwids") or [], source.get("lun")
    if not targets and not ids:
        yield required(f"{path}.targetWWNs", "must specify either targetWWNs or wwids, but not both")
    if targets and ids:
        yield invalid(f"{path}.targetWWNs", targets, "targetWWNs and wwids can not be specified simultaneously")
    if targets:
        if lun is None:
            yield required(f"{path}.lun", "lun is required if targetWWNs is specified")
        elif not 0 <= lun <= 255:
            yield invalid(f"{path}.lun", lun, names.between(0, 255))


def quobyte(source: Object, path: str) -> Errors:
    registry, hint = source.get("registry", ""), "must be a host:port pair or multiple pairs separated by commas"
    if not registry:
        yield required(f"{path}.registry", hint)
    elif names.size(source.get("tenant", "")) >= 65:
        yield required(f"{path}.tenant", "must be a UUID and may not exceed a length of 64 characters")
    else:
        for pair in registry.split(","):
            if not re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*):[^:\[\]]*", pair):
                yield invalid(f"{path}.registry", registry, hint)
    yield from needs("volume")(source, path)


def glusterfs_persistent(source: Object, path: str) -> Errors:
    yield from needs("endpoints", "path")(source, path)
    ns = source.get("endpointsNamespace")
    if ns == "":
        yield invalid(f"{path}.endpointsNamespace", ns, "if the endpointnamespace is set, it must be a valid namespace name")
    elif ns is not None:
        yield from messages(f"{path}.endpointsNamespace", ns, names.is_dns1123_label(ns))


def flocker(source: Object, path: str) -> Errors:
    name, uid = source.get("datasetName", ""), source.get("datasetUUID", "")
    if not name and not uid:
        yield required(path, "one of datasetName and datasetUUID is required")
    if name and uid:
        yield invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously")
    if "/" in name:
        yield invalid(f"{path}.datasetName", name, "must not contain '/'")


def with_secret(*fields: str, namespaced: bool = False) -> Check:
    """Required fields and a secretRef that must be whole."""
    def check(source: Object, path: str) -> Errors:
        yield from needs(*fields)(source, path)
        if (secret := source.get("secretRef")) is not None:
            yield from needs(*(("name", "namespace") if namespaced else ("name",)))(secret, f"{path}.secretRef")
    return check


def storage_os(source: Object, path: str, namespaced: bool = False) -> Errors:
    if not source.get("volumeName"):
        yield required(f"{path}.volumeName")
    else:
        yield from messages(f"{path}.volumeName", source["volumeName"], names.is_dns1123_label(source["volumeName"]))
    if source.get("volumeNamespace"):
        yield from messages(f"{path}.volumeNamespace", source["volumeNamespace"], names.is_dns1123_label(source["volumeNamespace"]))
    yield from with_secret(namespaced=namespaced)(source, path)


def storage_os_persistent(source: Object, path: str) -> Errors:
    return storage_os(source, path, namespaced=True)


def flex(source: Object, path: str) -> Errors:
    yield from needs("driver")(source, path)
    for key in source.get("options") or ():
        domain = "." + key.split("/", 1)[0].lower()
        if domain.endswith((".kubernetes.io", ".k8s.io")):
            yield invalid(f"{path}.options[{key}]", key, "kubernetes.io and k8s.io namespaces are reserved")


def azure_file_persistent(source: Object, path: str) -> Errors:
    yield from needs("secretName", "shareName")(source, path)
    if source.get("secretNamespace") == "":
        yield required(f"{path}.secretNamespace")


_AZURE_URIS = {True: ("/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"),
               False: ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")}


def azure_disk(source: Object, path: str) -> Errors:
    yield from needs("diskName", "diskURI")(source, path)
    caching, kind, uri = source.get("cachingMode"), source.get("kind"), source.get("diskURI", "")
    if caching is not None and caching not in ("None", "ReadOnly", "ReadWrite"):
        yield not_supported(f"{path}.cachingMode", caching, ("None", "ReadOnly", "ReadWrite"))
    if kind is not None and kind not in ("Dedicated", "Managed", "Shared"):
        yield not_supported(f"{path}.kind", kind, ("Dedicated", "Managed", "Shared"))
    if kind is not None:
        start, example = _AZURE_URIS[kind == "Managed"]
        if not uri.startswith(start):
            yield not_supported(f"{path}.diskURI", uri, (example,))


def local(source: Object, path: str) -> Errors:
    if not source.get("path"):
        yield required(f"{path}.path")
        return
    yield from no_backsteps(source["path"], f"{path}.path")


def csi_driver_name(name: str, path: str) -> Errors:
    if not name:
        yield required(path)
        return
    if names.size(name) > 63:
        yield too_long(path, 63)
    yield from messages(path, name, names.is_dns1123_subdomain(name.lower()))


def csi(source: Object, path: str) -> Errors:
    yield from csi_driver_name(source.get("driver", ""), f"{path}.driver")
    if (secret := source.get("nodePublishSecretRef")) is not None:
        if not secret.get("name"):
            yield required(f"{path}.nodePublishSecretRef.name")
        else:
            yield from messages(f"{path}.name", secret["name"], names.is_dns1123_subdomain(secret["name"]))


def csi_persistent(source: Object, path: str) -> Errors:
    yield from csi_driver_name(source.get("driver", ""), f"{path}.driver")
    yield from needs("volumeHandle")(source, path)
    for field in ("controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"):
        if (secret := source.get(field)) is not None:
            for part, check in (("name", names.is_dns1123_subdomain), ("namespace", names.is_dns1123_label)):
                if not secret.get(part):
                    yield required(f"{path}.{field}.{part}")
                else:
                    yield from messages(f"{path}.{field}.{part}", secret[part], check(secret[part]))


def ephemeral(source: Object, path: str) -> Errors:
    template = source.get("volumeClaimTemplate")
    if template is None:
        yield required(f"{path}.volumeClaimTemplate")
    else:
        yield from validate_claim_template(template, f"{path}.volumeClaimTemplate")


def _image(source: Object, path: str, is_pod: bool) -> Errors:
    if is_pod and not source.get("reference"):
        yield required(f"{path}.reference")
    yield from pull_policy(source.get("pullPolicy", ""), f"{path}.pullPolicy")


# Downward API and projected ----------------------------------------------------------------------------------------------------

def downward_file(item: Object, path: str) -> Errors:
    if not item.get("path"):
        yield required(f"{path}.path")
    yield from local_path(item.get("path", ""), f"{path}.path")
    field, resource = item.get("fieldRef"), item.get("resourceFieldRef")
    if field is not None:
        yield from object_field(field, f"{path}.fieldRef", FIELD_PATHS)
        if resource is not None:
            yield invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
    elif resource is not None:
        yield from resource_field(resource, f"{path}.resourceFieldRef", in_volume=True)
    else:
        yield required(path, "one of fieldRef and resourceFieldRef is required")
    yield from _mode(item, path, "mode")


def downward_api(source: Object, path: str) -> Errors:
    yield from _mode(source, path)
    for item in source.get("items") or ():
        yield from downward_file(item, path)


def _projected(source: Object, path: str, any_token_path: bool) -> Errors:
    yield from _mode(source, path)
    seen: set[str] = set()

    def once(target: str, value: str) -> Errors:
        if target in seen:
            yield invalid(path, value, "conflicting duplicate paths")
        seen.add(target)

    for i, part in enumerate(source.get("sources") or ()):
        here, count = f"{path}.sources[{i}]", 0
        for kind in ("secret", "configMap"):
            if (keys := part.get(kind)) is not None:
                count += 1
                if not keys.get("name"):
                    yield required(f"{here}.{kind}.name")
                for j, item in enumerate(keys.get("items") or ()):
                    yield from key_to_path(item, f"{here}.{kind}.items[{j}]")
                    if item.get("path"):
                        yield from once(item["path"], keys.get("name", ""))
        if (downward := part.get("downwardAPI")) is not None:
            count += 1
            for item in downward.get("items") or ():
                yield from downward_file(item, f"{here}.downwardAPI")
                if item.get("path"):
                    yield from once(item["path"], item["path"])
        if (token := part.get("serviceAccountToken")) is not None:
            count += 1
            yield from _token(token, path, f"{here}.serviceAccountToken", any_token_path)
        if (bundle := part.get("clusterTrustBundle")) is not None:
            count += 1
            yield from _trust_bundle(bundle, f"{here}.clusterTrustBundle")
            yield from once(bundle.get("path", ""), bundle.get("path", ""))
        if (certificate := part.get("podCertificate")) is not None:
            count += 1
            own = f"{here}.podCertificate"
            yield from _pod_certificate(certificate, own)
            targets = [(f, certificate[f]) for f in ("credentialBundlePath", "keyPath", "certificateChainPath") if certificate.get(f)]
            for field, target in targets:
                yield from local_path(target, f"{own}.{field}")
                yield from once(target, target)
            if not targets:
                yield required(own, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
        if count > 1:
            yield forbidden(here, "may not specify more than 1 volume type per source")


def _token(token: Object, volume_path: str, path: str, any_token_path: bool) -> Errors:
    seconds, target = token.get("expirationSeconds", 0), token.get("path", "")
    if seconds < 600:
        yield invalid(f"{path}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes")
    if seconds > 1 << 32:
        yield invalid(f"{path}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds")
    if not target:
        yield required(f"{volume_path}.path")
    elif not any_token_path:
        yield from local_path(target, f"{volume_path}.path")


def _trust_bundle(bundle: Object, path: str) -> Errors:
    name, signer = bundle.get("name"), bundle.get("signerName")
    if name is not None and signer is not None:
        yield invalid(path, struct("ClusterTrustBundleProjection", bundle), "only one of name and signerName may be used")
    elif name is not None:
        if not name:
            yield required(f"{path}.name", "must be a valid object name")
        for text in trust_bundle_name(name):
            yield invalid(f"{path}.name", name, f"not a valid clustertrustbundlename: {text}")
        if bundle.get("labelSelector") is not None:
            yield invalid(f"{path}.labelSelector", bundle["labelSelector"], "labelSelector must be unset if name is specified")
    elif signer is not None:
        if not signer:
            yield required(f"{path}.signerName", "must be a valid signer name")
        yield from signer_name(signer, f"{path}.signerName")
        yield from validate_label_selector(bundle.get("labelSelector"), f"{path}.labelSelector")
    else:
        yield required(path, "either name or signerName must be specified")
    if not bundle.get("path"):
        yield required(f"{path}.path")
    yield from local_path(bundle.get("path", ""), f"{path}.path")


def _pod_certificate(certificate: Object, path: str) -> Errors:
    signer, seconds = certificate.get("signerName", ""), certificate.get("maxExpirationSeconds")
    yield from signer_name(signer, f"{path}.signerName")
    for key in certificate.get("userAnnotations") or ():
        yield from names.is_domain_prefixed_key(f"{path}.userAnnotations", key.lower())
    if certificate.get("keyType", "") not in KEY_TYPES:
        yield not_supported(f"{path}.keyType", certificate.get("keyType", ""), KEY_TYPES)
    if seconds is not None:
        most = 86400 if is_kubernetes_signer(signer) else 91 * 86400
        if seconds < 3600:
            yield invalid(f"{path}.maxExpirationSeconds", seconds, "if provided, maxExpirationSeconds must be >= 3600")
        if seconds > most:
            yield invalid(f"{path}.maxExpirationSeconds", seconds, f"if provided, maxExpirationSeconds must be <= {most}")


# The tables: (field, its name in "more than 1 volume type", its name in its own errors, check), in the order upstream looks -------

SourceTable = tuple[tuple[str, str, str, Check], ...]


def _nothing(source: Object, path: str) -> Errors:
    return iter(())


POD_SOURCES: SourceTable = (
    ("hostPath", "hostPath", "hostPath", host_path),
    ("gitRepo", "gitRepo", "gitRepo", git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", disk("pdName")),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", disk("volumeID")),
    ("secret", "secret", "secret", keyed("secretName")),
    ("nfs", "nfs", "nfs", nfs),
    ("iscsi", "iscsi", "iscsi", iscsi),
    ("glusterfs", "glusterfs", "glusterfs", needs("endpoints", "path")),
    ("flocker", "flocker", "flocker", flocker),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim", needs("claimName")),
    ("rbd", "rbd", "rbd", needs("monitors", "image")),
    ("cinder", "cinder", "cinder", with_secret("volumeID")),
    ("cephfs", "cephFS", "cephfs", needs("monitors")),
    ("quobyte", "quobyte", "quobyte", quobyte),
    ("downwardAPI", "downwarAPI", "downwardAPI", downward_api),
    ("fc", "fc", "fc", fc),
    ("flexVolume", "flexVolume", "flexVolume", flex),
    ("configMap", "configMap", "configMap", keyed("name")),
    ("azureFile", "azureFile", "azureFile", needs("secretName", "shareName")),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", needs("volumePath")),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", needs("pdID")),
    ("portworxVolume", "portworxVolume", "portworxVolume", needs("volumeID")),
    ("azureDisk", "azureDisk", "azureDisk", azure_disk),
    ("storageos", "storageos", "storageos", storage_os),
    ("projected", "projected", "projected", _nothing),
    ("scaleIO", "scaleIO", "scaleIO", needs("gateway", "system", "volumeName")),
    ("csi", "csi", "csi", csi),
    ("ephemeral", "ephemeral", "ephemeral", ephemeral),
    ("image", "image", "image", _nothing),
)

_POD_SOURCES = {row[0]: row for row in POD_SOURCES}


PERSISTENT_SOURCES: SourceTable = (
    ("hostPath", "hostPath", "hostPath", host_path),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", disk("pdName")),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", disk("volumeID")),
    ("glusterfs", "glusterfs", "glusterfs", glusterfs_persistent),
    ("flocker", "flocker", "flocker", flocker),
    ("nfs", "nfs", "nfs", nfs),
    ("rbd", "rbd", "rbd", needs("monitors", "image")),
    ("quobyte", "quobyte", "quobyte", quobyte),
    ("cephfs", "cephFS", "cephfs", needs("monitors")),
    ("iscsi", "iscsi", "iscsi", _nothing),               # needs the volume's name: kinds/persistent_volume.py
    ("cinder", "cinder", "cinder", with_secret("volumeID", namespaced=True)),
    ("fc", "fc", "fc", fc),
    ("flexVolume", "", "flexVolume", flex),              # upstream never calls it one too many
    ("azureFile", "azureFile", "azureFile", azure_file_persistent),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", needs("volumePath")),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", needs("pdID")),
    ("portworxVolume", "portworxVolume", "portworxVolume", needs("volumeID")),
    ("azureDisk", "azureDisk", "azureDisk", azure_disk),
    ("scaleIO", "scaleIO", "scaleIO", needs("gateway", "system", "volumeName")),
    ("local", "local", "local", local),
    ("storageos", "storageos", "storageos", storage_os_persistent),
    ("csi", "csi", "csi", csi_persistent),
)
