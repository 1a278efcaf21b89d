"""Kind: what upstream's Go code knows of a kind and no schema holds. A kind = a row in model/resources.py + one of these.

All functions are pure over dicts in the storage version's shape. `defaults` and the `prepare_*` ones change the dict they
are given (it is freshly parsed and owned by the request); validators and printers never do. Order on the write path
(api/write.py): decode → defaults → [create: prepare_create | update: prepare_update] → mutating admission → validate →
validating admission → store. Upstream: pkg/registry/*/strategy.go, pkg/apis/*/{v1/defaults.go,validation/validation.go}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kubern.model.invalid import FieldError
from kubern.model.object import Object

Errors = list[FieldError]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the Table form. `cell(obj, now_s)` gives the JSON cell; ages are for the printer: a string like "5m"."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0


def _nothing(obj: Object) -> None:
    return None


def _nothing2(new: Object, old: Object) -> None:
    return None


def _valid(obj: Object) -> Errors:
    return []


def _valid2(new: Object, old: Object) -> Errors:
    return []


def _no_warnings(new: Object, old: Object | None) -> list[str]:
    return []


def _no_status_warnings(new: Object) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Kind:
    """The rules of one kind. Every field has a neutral default, so a row states only what is special."""

    defaults: Callable[[Object], None] = _nothing
    # strategy: what a client may not set (status on create, spec on a status update, generation …)
    prepare_create: Callable[[Object], None] = _nothing
    prepare_update: Callable[[Object, Object], None] = _nothing2              # (new, old)
    prepare_status: Callable[[Object, Object], None] | None = None            # None: default, spec and metadata are kept from old
    # validation, metadata excluded (api/write.py validates metadata for every kind by model/metadata.py)
    validate: Callable[[Object], Errors] = _valid
    validate_update: Callable[[Object, Object], Errors] = _valid2             # (new, old); must call validate itself if upstream does
    validate_status: Callable[[Object, Object], Errors] = _valid2
    name_check: Callable[[str, bool], list[str]] | None = None                # (name, is a prefix) -> messages; None: DNS-1123 subdomain
    qualified_finalizers: bool = True                                         # finalizers need a domain, unless they are standard ones
    # how often upstream's own update checks of the kind ask for metadata's, as of a new object and as of a changed one: causes repeat so often
    meta_again: int = 0
    meta_update: int = 1
    meta_status: int | None = None                                            # of a changed one on an update of the status; None: once if ever
    warnings: Callable[[Object, Object | None], list[str]] = _no_warnings     # (new, old or None on create) -> Warning headers
    status_warnings: Callable[[Object], list[str]] = _no_status_warnings      # on an update of the status
    field_annotations: tuple[str, ...] = ()                                   # stand for fields of the kind: not shown where metadata stands alone
    # Table form: columns after upstream's printers; `cells(obj, now_s)` has one cell a column
    columns: tuple[Column, ...] = ()
    cells: Callable[[Object, float], list[Any]] | None = None
    # how PUT and DELETE behave
    create_on_update: bool = False                                            # PUT of a missing object creates it (Lease)
    unconditional_update: bool = True                                         # PUT without resourceVersion is allowed
    has_generation: bool = False                                              # metadata.generation is kept (1 on create)
    generation_changed: Callable[[Object, Object], bool] | None = None        # None: spec differs
    grace_s: Callable[[Object, int | None], int] | None = None                # graceful deletion: (obj, asked) -> seconds; None: immediate
    delete_returns_object: bool = False                                       # DELETE answers with the object, not a Status
    default_propagation: str = "Background"                                   # "Orphan" for Job and ReplicationController


KindTable = dict[tuple[str, str], Kind]  # (group, kind) -> Kind


def merge(*tables: KindTable) -> KindTable:
    """One table of several; a key that stands in two is a mistake."""
    out: KindTable = {}
    for t in tables:
        twice = out.keys() & t.keys()
        assert not twice, f"kinds defined twice: {sorted(twice)}"
        out.update(t)
    return out


def columns(*rows: Sequence[Any]) -> tuple[Column, ...]:
    """Columns from rows of (name, type, format, description, priority), shorter rows filled with the defaults."""
    return tuple(Column(*r) for r in rows)
