"""Storage: three plugins over claims and volumes.

DefaultStorageClass fills in the default class of a claim that names none. StorageObjectInUseProtection puts the finalizer on
claims, volumes and attribute classes that keeps them while they are in use. PersistentVolumeClaimResize lets only bound claims of
expandable classes grow. Upstream: plugin/pkg/admission/storage/*.
"""

from __future__ import annotations

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin, annotations_of, spec_of
from kubern.model.object import Object
from kubern.model.quantity import compare

CLASSES = "storageclasses.storage.k8s.io"
IS_DEFAULT = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"
FINALIZERS = {"persistentvolumes": "kubernetes.io/pv-protection", "persistentvolumeclaims": "kubernetes.io/pvc-protection",
              "volumeattributesclasses": "kubernetes.io/vac-protection"}


async def default_class(a: Attributes) -> None:
    assert a.obj is not None
    spec = spec_of(a.obj)
    if CLASS_ANNOTATION in annotations_of(a.obj) or spec.get("storageClassName") is not None:
        return
    found = [c for c in a.reader.list(CLASSES) if any(annotations_of(c).get(k) == "true" for k in IS_DEFAULT)]
    if found:
        found.sort(key=lambda c: c["metadata"]["name"])
        newest = max(found, key=lambda c: c["metadata"].get("creationTimestamp") or "")
        spec["storageClassName"] = newest["metadata"]["name"]


async def protect(a: Attributes) -> None:
    assert a.obj is not None
    finalizer = FINALIZERS[a.resource.plural]
    m = a.obj["metadata"]
    have = m.get("finalizers") or []
    if finalizer not in have:
        m["finalizers"] = [*have, finalizer]


def _class_of(claim: Object) -> str:
    return annotations_of(claim).get(CLASS_ANNOTATION) or (claim.get("spec") or {}).get("storageClassName") or ""


def _size(claim: Object) -> str:
    return (((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage") or "0"


async def resize(a: Attributes) -> None:
    if a.obj is None or a.old is None or compare(_size(a.obj), _size(a.old)) <= 0:
        return
    if (a.old.get("status") or {}).get("phase") != "Bound":
        raise a.refuse("Only bound persistent volume claims can be expanded")
    name = _class_of(a.obj)
    cls = a.reader.get(CLASSES, "", name) if name and name == _class_of(a.old) else None
    if not (cls or {}).get("allowVolumeExpansion"):
        raise a.refuse("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")


DEFAULT_CLASS = Plugin("DefaultStorageClass", (CREATE,), ("persistentvolumeclaims",), mutate=default_class)
IN_USE = Plugin("StorageObjectInUseProtection", (CREATE,),
                ("persistentvolumes", "persistentvolumeclaims", "volumeattributesclasses.storage.k8s.io"), mutate=protect)
RESIZE = Plugin("PersistentVolumeClaimResize", (UPDATE,), ("persistentvolumeclaims",), validate=resize)
