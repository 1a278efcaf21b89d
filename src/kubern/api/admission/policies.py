"""Policies: what ValidatingAdmissionPolicy and MutatingAdmissionPolicy share: policies with their bindings, and the parameters of those.

Kept compiled until a policy or a binding changes. Only bound policies exist here. Upstream: apiserver admission/plugin/policy/generic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from kubern.api.admission.attributes import Attributes, Reader
from kubern.api.admission.match import CRDS, Criteria
from kubern.model.cel import CelProblem, Program, compile_for_admission
from kubern.model.cel.types import DYN
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.selector import from_label_selector

GROUP = "admissionregistration.k8s.io"


class Misconfigured(Exception):
    """A policy or binding that cannot be used for a request."""


class Binding:
    def __init__(self, obj: Object) -> None:
        self.name: str = obj["metadata"]["name"]
        self.spec: Object = obj["spec"]
        resources = self.spec.get("matchResources")
        self._criteria = Criteria(resources) if resources else None
        self.actions: list[str] = self.spec.get("validationActions") or []

    def matches(self, a: Attributes) -> bool:
        return self._criteria is None or self._criteria.match(a) is not None


class Policy:
    """What both kinds of policy have."""

    def __init__(self, obj: Object) -> None:
        self.name: str = obj["metadata"]["name"]
        self.spec: Object = obj["spec"]
        self.fail = self.spec.get("failurePolicy") != "Ignore"
        self.criteria = Criteria(self.spec.get("matchConstraints") or {})
        self.param_kind: Object | None = self.spec.get("paramKind")
        self.bindings: list[Binding] = []
        self.programs: dict[str, Program] = {}
        self._types: dict[str, Any] = {}
        for variable in self.spec.get("variables") or ():
            try:
                program = self.compile(variable["expression"], "any")
            except CelProblem:
                self._types[variable["name"]] = DYN  # what names it compiles, and fails when it is asked for
                continue
            self.programs[variable["name"]] = program
            self._types[variable["name"]] = program.type

    def compile(self, source: str, returns: str, *, authorizer: bool = True, patch: bool = False) -> Program:
        return compile_for_admission(source, returns, params=self.param_kind is not None, authorizer=authorizer, patch_types=patch,
                                     variables=self._types if self.spec.get("variables") else None)

    def params(self, a: Attributes, binding: Binding) -> list[Object | None]:
        """What the policy is evaluated with, one after the other; [None]: once, without. Raises Misconfigured."""
        kind, ref = self.param_kind, binding.spec.get("paramRef")
        if kind is None or ref is None:
            return [None]
        row = param_row(a.reader, kind)
        if row is None:
            raise AssertionError("asked for before the policy itself was")
        resource = f"{row.storage[1]}.{row.storage[0]}" if row.storage[0] else row.storage[1]
        namespace = ref.get("namespace") or a.namespace if row.namespaced else ""
        if row.namespaced and not namespace:
            raise Misconfigured("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
        if not row.namespaced and ref.get("namespace"):
            raise Misconfigured("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
        found: list[Object | None] = []
        if ref.get("name"):
            one = a.reader.get(resource, namespace, ref["name"])
            found = [one] if one is not None else []
        else:
            selector = from_label_selector(ref.get("selector"))
            found = [o for o in a.reader.list(resource, namespace or None) if selector.matches(o["metadata"].get("labels"))]
        if not found and ref.get("parameterNotFoundAction") == "Deny":
            raise Misconfigured("no params found for policy binding with `Deny` parameterNotFoundAction")
        return [o if o is None else {"kind": kind["kind"], "apiVersion": kind["apiVersion"], **o} for o in found]

    def check_params(self, a: Attributes) -> None:
        """Raises Misconfigured where the kind of its parameters is not served."""
        kind = self.param_kind
        if kind is not None and param_row(a.reader, kind) is None:
            group, _, version = kind["apiVersion"].rpartition("/")
            raise Misconfigured(f"failed to find resource referenced by paramKind: '{group}/{version}, Kind={kind['kind']}'")


def param_row(reader: Reader, kind: Object) -> Resource | None:
    """The row that serves a kind: built in or of a CRD."""
    from kubern.model.resources import RESOURCES

    version, name = kind["apiVersion"], kind["kind"]
    for row in RESOURCES:
        if row.kind == name and row.api_version == version:
            return row
    group, _, wanted = version.rpartition("/")
    for crd in reader.list(CRDS):
        spec = crd["spec"]
        if spec["group"] == group and spec["names"]["kind"] == name and any(v["name"] == wanted and v.get("served") for v in spec["versions"]):
            return Resource(group, wanted, spec["names"]["plural"], name, namespaced=spec.get("scope") == "Namespaced", custom=True)
    return None


P = TypeVar("P", bound=Policy)


class Source(Generic[P]):
    """The bound policies of a kind, in the order of their names, compiled again whenever one changes."""

    def __init__(self, plural: str, make: Callable[[Object], P]) -> None:
        self._policies, self._bindings, self._make = f"{plural}.{GROUP}", f"{plural[:-3]}ybindings.{GROUP}", make
        self._kept: WeakKeyDictionary[Reader, tuple[tuple[int, int], list[P], dict[str, tuple[Any, P]]]] = WeakKeyDictionary()

    def policies(self, reader: Reader) -> list[P]:
        bound = reader.changed(self._bindings)
        if not bound:
            return []
        key = (reader.changed(self._policies), bound)
        kept = self._kept.get(reader)
        if kept is not None and kept[0] == key:
            return kept[1]
        before = kept[2] if kept is not None else {}
        compiled: dict[str, tuple[Any, P]] = {}
        bindings: dict[str, list[Binding]] = {}
        for b in reader.list(self._bindings):
            bindings.setdefault(b["spec"].get("policyName") or "", []).append(Binding(b))
        out = []
        for obj in reader.list(self._policies):
            m = obj["metadata"]
            if m["name"] not in bindings:
                continue
            state = (m.get("uid"), m.get("generation"), m.get("resourceVersion"))
            had = before.get(m["name"])
            policy = had[1] if had is not None and had[0] == state else self._make(obj)
            compiled[m["name"]] = (state, policy)
            policy.bindings = bindings[m["name"]]
            out.append(policy)
        self._kept[reader] = (key, out, compiled)
        return out
