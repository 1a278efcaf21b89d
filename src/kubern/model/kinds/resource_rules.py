"""Resource names and amounts: which names may stand where, and what their quantities may be.

Generators of errors. Upstream: pkg/apis/core/validation (validateResourceRequirements and its like), pkg/apis/core/helper.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from functools import lru_cache

from kubern.model import names
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_supported, required
from kubern.model.kinds.labels import messages
from kubern.model.kinds.pod_resources import HUGE_PAGES, is_huge_page, is_native, is_overcommit_allowed, is_pod_level
from kubern.model.object import Object
from kubern.model.quantity import QuantityError, compare, milli, parse, value

Errors = Iterator[FieldError]
NameRule = Callable[[str, str], Errors]

COMPUTE = frozenset({"cpu", "memory", "ephemeral-storage"})
COUNTED = frozenset({"pods", "resourcequotas", "services", "replicationcontrollers", "secrets", "configmaps", "persistentvolumeclaims",
                     "services.nodeports", "services.loadbalancers"})
_SIDES = frozenset(f"{side}.{name}" for side in ("requests", "limits") for name in COMPUTE)
QUOTA_NAMES = COMPUTE | COUNTED | _SIDES | {"requests.storage"}
STANDARD_NAMES = QUOTA_NAMES | {"storage"}


def _is_quota_huge_page(name: str) -> bool:
    return name.startswith((HUGE_PAGES, "requests." + HUGE_PAGES))


def is_standard_quota_name(name: str) -> bool:
    return name in QUOTA_NAMES or _is_quota_huge_page(name)


@lru_cache(maxsize=4096)
def is_extended(name: str) -> bool:
    """A device plugin's resource: a domain that is not Kubernetes' own, and short enough to be quoted as requests.NAME."""
    return not is_native(name) and not name.startswith("requests.") and not names.is_qualified_name("requests." + name)


def is_integer(name: str) -> bool:
    return name in COUNTED or is_extended(name)


# Names -------------------------------------------------------------------------------------------------------------------------

def resource_name(name: str, path: str) -> Errors:
    if errors := names.is_qualified_name(name):
        yield from messages(path, name, errors)
    elif "/" not in name and not (name in STANDARD_NAMES or _is_quota_huge_page(name)):
        yield invalid(path, name, "must be a standard resource type or fully qualified")


def container_resource_name(name: str, path: str) -> Errors:
    if name in COMPUTE:
        return
    yield from resource_name(name, path)
    if "/" not in name:
        if not is_huge_page(name):
            yield invalid(path, name, "must be a standard resource for containers")
    elif not is_native(name) and not is_extended(name):
        yield invalid(path, name, "doesn't follow extended resource name standard")


def pod_resource_name(name: str, path: str) -> Errors:
    first = None
    for first in resource_name(name, path):
        yield first
    if first is None and not is_pod_level(name):
        yield not_supported(path, name, ("cpu", HUGE_PAGES, "memory"))


def quota_resource_name(name: str, path: str) -> Errors:
    yield from resource_name(name, path)
    if "/" not in name and not is_standard_quota_name(name):
        yield invalid(path, name, "must be a standard resource for quota")


# Amounts -----------------------------------------------------------------------------------------------------------------------

def quantity_value(name: str, text: str, path: str) -> Errors:
    """Not negative, and whole for what is counted."""
    q = parse(str(text))
    if q.amount.numerator < 0:
        yield invalid(path, q.text, names.NEGATIVE)
    if q.amount.denominator != 1 and is_integer(name) and milli(str(text)) % 1000:
        yield invalid(path, q.text, "must be an integer")


def positive_quantity(text: str, path: str) -> Errors:
    q = parse(str(text))
    if q.amount.numerator <= 0:
        yield invalid(path, q.text, "must be greater than zero")


def basic_quantity(text: str, path: str) -> Errors:
    if (whole := value(str(text))) < 0:
        yield invalid(path, whole, "must be a valid resource quantity")


def _huge_page_value(name: str, text: str, path: str, any_size: bool) -> Errors:
    q = parse(str(text))
    try:
        page = parse(name[len(HUGE_PAGES):]).amount
    except QuantityError:
        page = Fraction(0)
    if not any_size and (page <= 0 or page.denominator != 1 or q.amount % page):
        yield invalid(path, q.text, f"{q.text} is not positive integer multiple of {name}")


def requirements(resources: Object, path: str, claims: Collection[str], any_huge_page: bool = False,
                 name_rule: NameRule = container_resource_name) -> Errors:
    """limits, requests and claims of a container (or, with pod_resource_name, of a pod)."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, amount in limits.items():
        here = f"{path}.limits[{name}]"
        yield from name_rule(name, here)
        yield from quantity_value(name, amount, here)
        if is_huge_page(name):
            yield from _huge_page_value(name, amount, here, any_huge_page)
    for name, amount in requests.items():
        here = f"{path}.requests[{name}]"
        yield from name_rule(name, here)
        yield from quantity_value(name, amount, here)
        limit = limits.get(name)
        if limit is not None:
            order = 0 if limit == amount else compare(amount, limit)
            if order and not is_overcommit_allowed(name):
                yield invalid(f"{path}.requests", parse(str(amount)).text, f"must be equal to {name} limit of {parse(str(limit)).text}")
            elif order > 0:
                yield invalid(f"{path}.requests", parse(str(amount)).text,
                              f"must be less than or equal to {name} limit of {parse(str(limit)).text}")
        elif not is_overcommit_allowed(name):
            yield required(f"{path}.limits", "Limit must be set for non overcommitable resources")
        if is_huge_page(name):
            yield from _huge_page_value(name, amount, here, any_huge_page)
    together = limits.keys() | requests.keys()
    if any(map(is_huge_page, together)) and not together & {"cpu", "memory"}:
        yield forbidden(path, "HugePages require cpu or memory")
    if claimed := resources.get("claims"):
        yield from _claims(claimed, f"{path}.claims", claims)


def _claims(claimed: list[Object], path: str, claims: Collection[str]) -> Errors:
    seen: set[str] = set()
    for i, claim in enumerate(claimed):
        name, request, here = claim.get("name", ""), claim.get("request", ""), f"{path}[{i}]"
        if not name:
            yield required(here)
            continue
        if name in seen:
            yield duplicate(here, name)
        else:
            key = name
            if request:
                yield from messages(f"{here}.request", request, names.is_dns1123_label(request))
                key = f"{name}/{request}"
            if key in seen:
                yield duplicate(here, key)
            elif not request:
                for other in seen:
                    if other.startswith(name + "/"):
                        yield duplicate(here, name)
            seen.add(key)
        if name not in claims:
            known = f": {', '.join(sorted(claims))}" if claims else " which is empty"
            yield FieldError("FieldValueNotFound", here, name, "must be one of the names in pod.spec.resourceClaims" + known)
