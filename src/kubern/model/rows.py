"""Which resources there are: the built-in rows, those that CustomResourceDefinitions add, and those that other servers' discovery names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kubern.model.object import Object, condition
from kubern.model.resource import Resource, Subresource
from kubern.model.resources import RESOURCES, by_kind
from kubern.model.status import qualified
from kubern.model.view import View

CRDS, API_SERVICES = "customresourcedefinitions.apiextensions.k8s.io", "apiservices.apiregistration.k8s.io"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


def resource_name(row: Resource) -> str:
    return qualified(row.group, row.plural)


def path(row: Resource, namespace: str = "", name: str = "") -> str:
    space = f"/namespaces/{namespace}" if row.namespaced and namespace else ""
    return f"{row.prefix}{space}/{row.plural}" + (f"/{name}" if name else "")


def _built_in() -> dict[str, Resource]:
    out: dict[str, Resource] = {}
    for row in RESOURCES:
        if "delete" not in row.verbs or "list" not in row.verbs or (row.storage_group and row.storage_group != row.group):
            continue
        if row.group == "events.k8s.io":       # the same store as core events
            continue
        name = resource_name(row)
        if name not in out or row.storage_version in ("", row.version):
            out[name] = row
    return out


BUILT_IN = _built_in()


def of_crd(crd: Object) -> Resource | None:
    """The row of a custom resource, in the version it is stored in or else the first served; None while it is not established."""
    spec = crd.get("spec") or {}
    established = condition(crd, "Established")
    if established is None or established.get("status") != "True":
        return None
    names = (crd.get("status") or {}).get("acceptedNames") or spec.get("names") or {}
    served = [v for v in spec.get("versions") or () if v.get("served")]
    if not served or not names.get("plural"):
        return None
    version = next((v for v in served if v.get("storage")), served[0])
    return Resource(spec["group"], version["name"], names["plural"], names["kind"], namespaced=spec.get("scope") == "Namespaced", custom=True)


def deletable(view: View) -> Iterator[Resource]:
    """One row for every collection whose objects can be listed and deleted."""
    yield from BUILT_IN.values()
    for crd in view.list(CRDS):
        row = of_crd(crd)
        if row is not None:
            yield row


def _crds(view: View) -> Iterable[Object]:
    try:
        return view.list(CRDS)
    except KeyError:                  # nobody mirrors them
        return ()


def find(view: View, api_version: str, kind: str) -> Resource | None:
    """The row of a kind, served in whatever version, or None."""
    group, _, version = api_version.rpartition("/")
    row = by_kind.get((api_version, kind))
    if row is not None:
        return row
    for crd in _crds(view):
        spec = crd.get("spec") or {}
        if spec.get("group") == group and (spec.get("names") or {}).get("kind") == kind:
            row = of_crd(crd)
            if row is not None and any(v.get("name") == version and v.get("served") for v in spec.get("versions") or ()):
                return row
    return view.served_elsewhere(api_version, kind)


def remote_versions(services: Iterable[Object]) -> list[tuple[str, str]]:
    """(group, version) of the APIServices that other servers answer for, preferred versions first."""
    specs = [s.get("spec") or {} for s in services]
    return [(s.get("group") or "", s.get("version") or "")
            for s in sorted((s for s in specs if s.get("service")), key=lambda s: -int(s.get("versionPriority") or 0))]


def of_discovery(document: Any, group: str, version: str) -> list[Resource]:
    """Rows from another server's APIResourceList; whatever is malformed in it is left out."""
    entries = [r for r in (document.get("resources") if isinstance(document, dict) else None) or ()
               if isinstance(r, dict) and isinstance(r.get("name"), str) and isinstance(r.get("kind"), str)]
    below: dict[str, list[Subresource]] = {}
    for r in entries:
        name, slash, sub = r["name"].partition("/")
        if slash:
            below.setdefault(name, []).append(Subresource(sub, _texts(r.get("verbs")), r["kind"], str(r.get("group") or ""),
                                                          str(r.get("version") or "")))
    return [Resource(group, version, r["name"], r["kind"], str(r.get("singularName") or ""), bool(r.get("namespaced")), _texts(r.get("verbs")),
                     _texts(r.get("shortNames")), _texts(r.get("categories")), tuple(below.get(r["name"], ())), custom=True)
            for r in entries if "/" not in r["name"]]


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(v for v in values if isinstance(v, str)) if isinstance(values, list) else ()


def of_kind(view: View, group: str, kind: str) -> Resource | None:
    """The row of a kind in the version it is stored in, whichever version was meant, or None."""
    found = (r for r in BUILT_IN.values() if (r.group, r.kind) == (group, kind))
    custom = (r for crd in _crds(view) if (r := of_crd(crd)) is not None and (r.group, r.kind) == (group, kind))
    return next(found, None) or next(custom, None)
