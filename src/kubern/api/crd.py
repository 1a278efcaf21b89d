"""CRDs: CustomResourceDefinitions become rows that are served like any other, and go again.

Two halves. The rows follow the definitions at once, in the cache's listener. What upstream's controllers write back (names accepted,
established, terminating) and the clean-up of a deleted definition's objects is one worker's affair. What a value may be is in
model/custom.py. Upstream: apiextensions-apiserver pkg/apiserver/customresource_handler.go, pkg/controller/{status,establish,finalizer,apiapproval}.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kubern.api.cache import Change, Item
from kubern.api.call import Call
from kubern.api.conversion import Webhook
from kubern.model import custom as values
from kubern.model import table
from kubern.model.invalid import FieldError, quote
from kubern.model.kinds.kind import Kind
from kubern.model.names import is_qualified_name
from kubern.model.object import Object, condition
from kubern.model.resource import ALL_VERBS, Resource, Subresource
from kubern.model.schema import from_openapi
from kubern.model.status import StatusError
from kubern.model.time import rfc3339

if TYPE_CHECKING:
    from kubern.api.handle import Server

log = logging.getLogger(__name__)

GROUP, PLURAL = "apiextensions.k8s.io", "customresourcedefinitions"
FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
RETRY_S = 0.5
_WRITE = ("get", "patch", "update")


@dataclass(frozen=True, slots=True)
class Custom:
    """What a row of a CRD carries with it (Served.custom)."""

    name: str                         # of the definition
    scale: dict[str, Any] | None      # the paths of the scale subresource
    deprecation: str                  # the warning of a deprecated version
    terminating: bool
    conversion: Object | None         # spec.conversion of a definition that converts by webhook


def _established(crd: Object) -> bool:
    c = condition(crd, "Established")
    return c is not None and c.get("status") == "True"


# --- rows ---

def rows_of(crd: Object) -> list[tuple[Resource, Kind, Object, Custom]]:
    """(row, kind, schema as it stands in the CRD, custom) of every served version."""
    spec, meta = crd["spec"], crd["metadata"]
    status = crd.get("status") or {}
    accepted = status.get("acceptedNames") or {}
    names = {**spec["names"], **{k: v for k, v in accepted.items() if v}}
    stored = next((v["name"] for v in spec["versions"] if v.get("storage")), "")
    out = []
    for v in spec["versions"]:
        if not v.get("served"):
            continue
        sub = v.get("subresources") or {}
        subresources: list[Subresource] = []
        if sub.get("status") is not None:
            subresources.append(Subresource("status", _WRITE))
        if sub.get("scale"):
            subresources.append(Subresource("scale", _WRITE, "Scale", "autoscaling", "v1"))
        fields = tuple(f["jsonPath"].lstrip(".") for f in v.get("selectableFields") or ())
        row = Resource(
            spec["group"], v["name"], names["plural"], names["kind"], names.get("singular") or names["kind"].lower(),
            spec.get("scope") == "Namespaced", ALL_VERBS, tuple(names.get("shortNames") or ()), tuple(names.get("categories") or ()),
            tuple(subresources), stored, fields=fields, custom=True, list_kind=names.get("listKind") or names["kind"] + "List")
        deprecation = ""
        if v.get("deprecated"):
            deprecation = v.get("deprecationWarning") or f"{spec['group']}/{v['name']} {names['kind']} is deprecated"
        conversion = spec.get("conversion") or {}
        schema = (v.get("schema") or {}).get("openAPIV3Schema") or {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        info = Custom(meta["name"], sub.get("scale") or None, deprecation, bool(meta.get("deletionTimestamp")),
                      conversion if conversion.get("strategy") == "Webhook" else None)
        out.append((row, kind_of(v, schema, row, info), schema, info))
    return out


def kind_of(version: Object, schema: Object, row: Resource, info: Custom) -> Kind:
    """The rules of a custom kind."""
    has_status = row.subresource("status") is not None
    rules = _rules(schema)
    let_be: list[str] = []                    # rules that were broken before the update already: asked for right after `judge`
    defaulting = values.has_defaults(schema)

    def defaults(obj: Object) -> None:
        values.apply_defaults(obj, schema)

    def prepare_create(obj: Object) -> None:
        if has_status:
            obj.pop("status", None)

    def prepare_update(new: Object, old: Object) -> None:
        if has_status:
            if "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status", None)

    ignored = ("metadata", "kind", "apiVersion", "status") if has_status else ("metadata", "kind", "apiVersion")

    def changed(new: Object, old: Object) -> bool:
        return {k: v for k, v in new.items() if k not in ignored} != {k: v for k, v in old.items() if k not in ignored}

    def scale_errors(obj: Object) -> list[FieldError]:
        from kubern.model.invalid import invalid

        out: list[FieldError] = []
        for path in (info.scale["specReplicasPath"], info.scale["statusReplicasPath"]) if info.scale else ():
            value: Any = obj
            for part in path.lstrip(".").split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, int) and not isinstance(value, bool):
                if value < 0:
                    out.append(invalid(path, value, "should be a non-negative integer"))
                elif value > 2147483647:
                    out.append(invalid(path, value, "should be less than or equal to 2147483647"))
        return out

    def judge(obj: Object, old: Object | None) -> list[FieldError]:
        errors = values.validate(obj, schema, old) + scale_errors(obj)
        let_be.clear()
        if rules is not None:
            errors += values.blocking(errors) or rules(obj, old, let_be.append)
        return errors

    def warnings(obj: Object, old: Object | None) -> list[str]:
        return finalizer_warnings(obj, old) + let_be

    base = table.custom(version.get("additionalPrinterColumns") or [])
    return replace(
        base, defaults=defaults if defaulting or _nulls(schema) else base.defaults, prepare_create=prepare_create, prepare_update=prepare_update,
        warnings=warnings, validate=lambda obj: judge(obj, None), validate_update=judge, validate_status=judge, unconditional_update=False,
        has_generation=True, generation_changed=changed)


_STANDARD_FINALIZERS = ("orphan", "foregroundDeletion", "kubernetes")


def finalizer_warnings(new: Object, old: Object | None) -> list[str]:
    """About new finalizers that are not qualified by a domain."""
    had = set(((old or {}).get("metadata") or {}).get("finalizers") or ())
    out: list[str] = []
    for f in (new.get("metadata") or {}).get("finalizers") or ():
        if f in had:
            continue
        out += [f"metadata.finalizers: {quote(f)}: {why}" for why in is_qualified_name(f)]
        if "/" not in f and f not in _STANDARD_FINALIZERS:
            more = " including a path (/)" if "." in f else ""
            out.append(f"metadata.finalizers: {quote(f)}: prefer a domain-qualified finalizer name{more} to avoid accidental conflicts "
                       "with other finalizer writers")
    return out


def _nulls(schema: Object) -> bool:
    """Whether the schema has properties at all: nulls in them are dropped."""
    return bool(schema.get("properties"))


Rules = Callable[[Object, "Object | None", Callable[[str], None]], list[FieldError]]


def _rules(schema: Object) -> Rules | None:
    """The rules in CEL of a schema, compiled; None where there are none."""
    from kubern.model.kinds.crd_schema import walk

    if not any(n.get("x-kubernetes-validations") for n in walk(schema)):
        return None
    from kubern.model.cel import schema_rules

    compiled: Rules | None = schema_rules(schema)
    return compiled


def _reader(schema: Object, api_version: str) -> Callable[[Object, Resource], Object]:
    """Reads what another version, or an older schema, wrote: pruned and defaulted as this version would."""
    from kubern.model.kinds.crd_schema import prune

    def read(obj: Object, row: Resource) -> Object:
        kept = {k: obj[k] for k in ("kind", "apiVersion", "metadata") if k in obj}
        out = {**kept, **prune({k: v for k, v in obj.items() if k not in kept}, schema)}
        out["apiVersion"], out["kind"] = api_version, row.kind
        values.apply_defaults(out, schema)
        return out
    return read


class Definitions:
    """The engine: rows in step with the definitions, their status, and the end of those deleted."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.collection = server.cache.collection(GROUP, PLURAL)
        self._installed: dict[str, dict[tuple[str, str, str], Any]] = {}      # definition -> its rows' keys and what they were made of
        self._schema_revision: dict[tuple[str, str, str], int] = {}           # row -> from which revision on its schema holds
        self._webhooks: dict[str, tuple[Any, Webhook]] = {}
        self._due: dict[str, None] = {}
        self._wake = asyncio.Event()
        self.collection.listeners.insert(0, self._follow)
        for item in self.collection.range():
            self._rows(item)
            self._due[item.name] = None

    def _follow(self, changes: list[Change]) -> None:
        for c in changes:
            if c.type == "DELETED":
                self._forget(c.item.name)
                group = c.item.name.partition(".")[2]
                for name in self.collection.items:           # a name may have become free
                    if name.endswith("." + group):
                        self._due[name] = None
            else:
                self._rows(c.item)
            self._due[c.item.name] = None
        self._wake.set()

    def _forget(self, name: str) -> None:
        self._webhooks.pop(name, None)
        for key in self._installed.pop(name, {}):
            self.server.rows.remove(*key)

    def _rows(self, item: Item) -> None:
        """Brings the rows of a definition to its newest state."""
        crd = item.parse()
        if not _established(crd):
            return
        rows = self.server.rows
        have = self._installed.setdefault(item.name, {})
        wanted: dict[tuple[str, str, str], Any] = {}
        for row, kind, schema, info in rows_of(crd):
            key = (row.group, row.version, row.plural)
            made_of = (row, schema, info, _columns(crd, row.version))
            wanted[key] = made_of
            if have.get(key) == made_of:
                continue
            stored, read = f"{row.group}/{row.storage_version}", _reader(schema, row.api_version)
            webhook = self._webhook(info, row.kind)
            served = rows.install(row, kind, schema=partial(from_openapi, schema), custom=info, stored=(stored, row.kind) if webhook else None,
                                  convert=read)
            served.webhook = webhook
            if row.version == row.storage_version:
                if key not in have or have[key][1] != schema or have[key][0].storage_version != row.version:
                    self._schema_revision[key] = item.revision
                served.convert_before = self._schema_revision[key]
        for key in have.keys() - wanted.keys():
            rows.remove(*key)
        self._installed[item.name] = wanted

    def _webhook(self, info: Custom, kind: str) -> Webhook | None:
        """The one webhook of a definition, whatever its versions."""
        if info.conversion is None:
            self._webhooks.pop(info.name, None)
            return None
        known = self._webhooks.get(info.name)
        if known is None or known[0] != (info.conversion, kind):
            known = self._webhooks[info.name] = ((info.conversion, kind), Webhook(self.server.cache, info.conversion, info.name, kind))
        return known[1]

    # --- status and clean-up ---

    async def run(self) -> None:
        while True:
            while self._due:
                name = next(iter(self._due))
                del self._due[name]
                try:
                    await self._settle(name)
                except StatusError as e:
                    if e.code != 404:
                        log.debug("definition %s: %s", name, e.message)
                        self._later(name)
                except Exception:
                    log.exception("definition %s", name)
            self._wake.clear()
            if not self._due:
                await self._wake.wait()

    def _later(self, name: str) -> None:
        def due() -> None:
            self._due[name] = None
            self._wake.set()
        asyncio.get_running_loop().call_later(RETRY_S, due)

    async def _settle(self, name: str) -> None:
        item = self.collection.get(name)
        if item is None:
            return
        crd = {"kind": "CustomResourceDefinition", "apiVersion": f"{GROUP}/v1", **item.parse()}
        if crd["metadata"].get("deletionTimestamp"):
            if FINALIZER in (crd["metadata"].get("finalizers") or ()):
                await self._clean(crd)
            return
        status = self._status(crd)
        if status != crd.get("status"):
            await self.server.client.update({**crd, "status": status}, "status")

    def _status(self, crd: Object) -> Object:
        """The status a definition should have: names, conditions."""
        now = rfc3339(self.server.clock())
        status = {**(crd.get("status") or {})}
        wanted = crd["spec"]["names"]
        accepted = {**(status.get("acceptedNames") or {})}
        resources, kinds = self._names_in_use(crd)
        names: Object = {"plural": accepted.get("plural") or "", "kind": accepted.get("kind") or ""}
        for k in ("singular", "listKind", "shortNames", "categories"):
            if accepted.get(k):
                names[k] = accepted[k]
        conflict: tuple[str, str] | None = None
        for field, reason, used in (("plural", "PluralConflict", resources), ("singular", "SingularConflict", resources),
                                    ("shortNames", "ShortNamesConflict", resources), ("kind", "KindConflict", kinds),
                                    ("listKind", "ListKindConflict", kinds)):
            want, have = wanted.get(field), accepted.get(field)
            if field == "shortNames":
                taken = [n for n in want or () if n in used and n not in (have or ())]
                if taken:
                    text = ", ".join(f'"{n}" is already in use' for n in taken)
                    conflict = (reason, text if len(taken) == 1 else f"[{text}]")
                    continue
            elif want != have and want in used:
                conflict = (reason, f'"{want}" is already in use')
                continue
            if want:
                names[field] = want
            else:
                names.pop(field, None)
        if conflict is None and wanted.get("categories"):
            names["categories"] = wanted["categories"]
        status["acceptedNames"] = names
        conditions = list(status.get("conditions") or ())
        if conflict is None:
            _set(conditions, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now)
        else:
            _set(conditions, "NamesAccepted", "False", conflict[0], conflict[1], now)
        established = next((c for c in conditions if c["type"] == "Established"), None)
        if established is None or established["status"] != "True":
            if conflict is None:
                _set(conditions, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted", now)
            else:
                _set(conditions, "Established", "False", "NotAccepted", "not all names are accepted", now)
        _approval(crd, conditions, now)
        status["conditions"] = conditions
        return status

    def _names_in_use(self, crd: Object) -> tuple[set[str], set[str]]:
        """Names that other definitions of the group hold."""
        resources: set[str] = set()
        kinds: set[str] = set()
        group = crd["spec"]["group"]
        for item in self.collection.items.values():
            if item.name == crd["metadata"]["name"] or not item.name.endswith("." + group):
                continue
            other = item.parse()
            if other["spec"]["group"] != group:
                continue
            held = (other.get("status") or {}).get("acceptedNames") or {}
            resources |= {held.get("plural") or "", held.get("singular") or "", *(held.get("shortNames") or ())}
            kinds |= {held.get("kind") or "", held.get("listKind") or ""}
        return resources - {""}, kinds - {""}

    async def _clean(self, crd: Object) -> None:
        """Deletes the objects of a definition that is going; lets it go when none is left."""
        client, name = self.server.client, crd["metadata"]["name"]
        spec = crd["spec"]
        now = rfc3339(self.server.clock())
        conditions = list((crd.get("status") or {}).get("conditions") or ())
        collection = self.server.cache.collection(spec["group"], spec["names"]["plural"])
        served = self.server.rows.of_resource(spec["group"], spec["names"]["plural"])
        if collection.items and served is not None:
            if _set(conditions, "Terminating", "True", "InstanceDeletionInProgress", "CustomResource deletion is in progress", now):
                await client.update({**crd, "status": {**crd["status"], "conditions": conditions}}, "status")
            for item in collection.range():
                if b'"deletionTimestamp"' in item.body and item.parse()["metadata"].get("deletionTimestamp"):
                    continue
                try:
                    await client.delete(served.row, item.namespace, item.name)
                except StatusError as e:
                    if e.code != 404:
                        log.debug("cleaning %s of %s: %s", item.key, name, e.message)
            if collection.items:
                self._later(name)
                return
        found = self.collection.get(name)
        if found is None:
            return
        newest = {"kind": crd["kind"], "apiVersion": crd["apiVersion"], **found.parse()}
        meta = newest["metadata"]
        meta["finalizers"] = [f for f in meta.get("finalizers") or () if f != FINALIZER]
        await client.update(newest)


def _columns(crd: Object, version: str) -> Any:
    return next((v.get("additionalPrinterColumns") for v in crd["spec"]["versions"] if v["name"] == version), None)


def _set(conditions: list[Object], type_: str, status: str, reason: str, message: str, now: str) -> bool:
    """Puts a condition into its place; whether that changed anything. Its time moves with its status."""
    for i, c in enumerate(conditions):
        if c["type"] == type_:
            new = {"type": type_, "status": status, "lastTransitionTime": c.get("lastTransitionTime") if c["status"] == status else now,
                   "reason": reason, "message": message}
            changed = any(c.get(k) != v for k, v in new.items())
            if changed:
                conditions[i] = new
            return changed
    conditions.append({"type": type_, "status": status, "lastTransitionTime": now, "reason": reason, "message": message})
    return True


def _approval(crd: Object, conditions: list[Object], now: str) -> None:
    """KubernetesAPIApprovalPolicyConformant, for groups under k8s.io and kubernetes.io."""
    group = crd["spec"]["group"]
    if not (group in ("k8s.io", "kubernetes.io") or group.endswith((".k8s.io", ".kubernetes.io"))):
        return
    text = (crd["metadata"].get("annotations") or {}).get("api-approved.kubernetes.io") or ""
    type_ = "KubernetesAPIApprovalPolicyConformant"
    if not text:
        _set(conditions, type_, "False", "MissingAnnotation", 'protected groups must have approval annotation "api-approved.kubernetes.io", see '
             "https://github.com/kubernetes/enhancements/pull/1111", now)
    elif text.startswith("unapproved"):
        _set(conditions, type_, "False", "UnapprovedAnnotation", f"not approved: \"{text}\"", now)
    elif text.startswith(("http://", "https://")):
        _set(conditions, type_, "True", "ApprovedAnnotation", f"approved in {text}", now)
    else:
        _set(conditions, type_, "False", "InvalidAnnotation", f'protected groups must have approval annotation "api-approved.kubernetes.io" with '
             f'either a URL or a reason starting with "unapproved", see https://github.com/kubernetes/enhancements/pull/1111: "{text}"', now)


def before_delete(call: Call, crd: Object) -> None:
    """A definition is deleted after its objects: the finalizer that waits for them, and the condition that says so."""
    meta = crd["metadata"]
    if meta.get("deletionTimestamp"):
        return
    if FINALIZER not in (meta.get("finalizers") or ()):
        meta["finalizers"] = [*(meta.get("finalizers") or ()), FINALIZER]
    status = crd["status"] = {**(crd.get("status") or {})}
    conditions = status["conditions"] = list(status.get("conditions") or ())
    _set(conditions, "Terminating", "True", "InstanceDeletionPending",
         "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon", rfc3339(call.now_s))


def wire(server: Server) -> Definitions:
    server.before_delete[GROUP, PLURAL] = before_delete
    return Definitions(server)
