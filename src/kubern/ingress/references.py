"""References: what Gateways and HTTPRoutes name, and whether they may (GEP-709, ReferenceGrant). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kubern.ingress.plan import Slices
from kubern.model.object import Object, namespace

GROUP = "gateway.networking.k8s.io"


@dataclass(frozen=True, slots=True)
class World:
    """What references lead to; Services, Secrets by "namespace/name"."""

    namespaces: Mapping[str, Object]
    services: Mapping[str, Object]
    slices: Slices
    secrets: Mapping[str, Object]
    grants: Iterable[Object] = ()

    def granted(self, kind: str, space: str, to_kind: str, to_space: str, to_name: str) -> bool:
        """Whether objects of that kind and namespace may refer to this Service or Secret of another namespace."""
        return space == to_space or any(
            namespace(g) == to_space
            and any((f.get("group"), f.get("kind"), f.get("namespace")) == (GROUP, kind, space) for f in g["spec"].get("from") or ())
            and any((t.get("group") or "", t.get("kind")) == ("", to_kind) and t.get("name") in (None, "", to_name) for t in g["spec"].get("to") or ())
            for g in self.grants)
