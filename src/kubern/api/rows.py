"""Rows: what this server serves right now: the built-in rows, and those that CRDs make while it runs.

Discovery and OpenAPI read it; `version` changes whenever a row comes or goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubern.api.cache import Cache
from kubern.api.forms import Converter, Served
from kubern.model.kinds.kind import Kind
from kubern.model.object import Object
from kubern.model.resource import Resource


class Rows:
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.by_path: dict[tuple[str, str, str], Served] = {}
        self.by_kind: dict[tuple[str, str], Served] = {}       # (apiVersion, kind)
        self.groups: set[str] = {""}
        self.version = 0
        self.changed: list[Callable[[], None]] = []

    def install(self, row: Resource, kind: Kind, *, schema: Callable[[], Any] | None = None, convert: Converter | None = None,
                to_storage: Converter | None = None, custom: Any = None, stored: tuple[str, str] | None = None) -> Served:
        """Serves a row from now on; one that is served already is replaced."""
        served = Served(row, kind, self.cache.collection(*row.storage), schema=schema, convert=convert, to_storage=to_storage,
                        custom=custom, stored=stored)
        self.by_path[row.group, row.version, row.plural] = served
        self.by_kind[row.api_version, row.kind] = served
        self.groups.add(row.group)
        self._touch()
        return served

    def remove(self, group: str, version: str, plural: str) -> None:
        served = self.by_path.pop((group, version, plural), None)
        if served is not None:
            self.by_kind.pop((served.row.api_version, served.row.kind), None)
            if not any(g == group for g, _, _ in self.by_path):
                self.groups.discard(group)
            self._touch()

    def _touch(self) -> None:
        self.version += 1
        for callback in tuple(self.changed):
            callback()

    def resources(self) -> list[Resource]:
        return [s.row for s in self.by_path.values()]

    def of_kind(self, api_version: str, kind: str) -> Served | None:
        return self.by_kind.get((api_version, kind))

    def of_resource(self, group: str, plural: str) -> Served | None:
        """Any version of a resource, the first installed."""
        for (g, _, p), served in self.by_path.items():
            if g == group and p == plural:
                return served
        return None


def _from_storage(obj: Object, row: Resource) -> Object:
    from kubern.model.convert import from_storage

    return from_storage(obj, row)


def _to_storage(obj: Object, row: Resource) -> Object:
    from kubern.model.convert import to_storage

    return to_storage(obj, row)


def install_built_in(rows: Rows) -> None:
    """Every row of RESOURCES."""
    from functools import partial

    from kubern.model.kinds import kind_of
    from kubern.model.resources import RESOURCES
    from kubern.model.schema import schema_for

    stored_kinds = {(r.storage, r.version): r for r in RESOURCES if not r.storage_version and r.storage_group is None}
    for row in RESOURCES:
        stored = None
        convert: Converter | None = None
        to_storage: Converter | None = None
        other_version = row.storage_version and row.storage_version != row.version
        if other_version or (row.storage_group is not None and row.storage_group != row.group):
            convert, to_storage = _from_storage, _to_storage
            main = stored_kinds.get((row.storage, row.storage_version or row.version))
            stored = (main.api_version, main.kind) if main else None
        rows.install(row, kind_of(row.group, row.kind), schema=partial(schema_for, row.api_version, row.kind), convert=convert,
                     to_storage=to_storage, stored=stored)
