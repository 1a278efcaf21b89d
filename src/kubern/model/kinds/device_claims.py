"""resource.k8s.io/v1: ResourceClaim, ResourceClaimTemplate, DeviceClass.

Upstream: pkg/apis/resource/{v1/defaults.go,validation/validation.go}, pkg/registry/resource, KEP-4381 and those after it.
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.addresses import parse_cidr
from kubern.model.invalid import Struct, forbidden, invalid, not_supported, quote, required, too_long, too_many
from kubern.model.kinds.checks import Errors, conditions, immutable, messages, same
from kubern.model.kinds.claim_spec import validate_template_metadata
from kubern.model.kinds.device_rules import (
    binding_conditions,
    configuration,
    driver_name,
    each,
    each_once,
    fully_qualified_name,
    itself,
    label,
    name_of,
    pool_name,
    raw_object,
    selectors,
    toleration,
    uuid,
)
from kubern.model.kinds.placement import validate_node_selector
from kubern.model.kinds.resource_rules import is_extended
from kubern.model.object import Object

REQUESTS_MAX, FIRST_AVAILABLE_MAX, CONSTRAINTS_MAX, CONFIG_MAX = 32, 8, 32, 32
RESULTS_MAX, RESERVED_FOR_MAX = 32, 256
CONDITIONS_MAX, DATA_MAX, IPS_MAX, INTERFACE_NAME_MAX, HARDWARE_ADDRESS_MAX = 8, 10 * 1024, 16, 256, 128
ALLOCATION_MODES = ("All", "ExactCount")
CONFIG_SOURCES = ("FromClaim", "FromClass")
NOT_A_REQUEST = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
ONE_OF_TWO = "exactly one of `exactly` or `firstAvailable` is required"

RequestNames = dict[str, set[str]]
DeviceId = tuple[str, str, str, str]


# --- defaults ---------------------------------------------------------------------------------------------------------------------------

def default_claim_spec(spec: Object | None) -> None:
    for r in ((spec or {}).get("devices") or {}).get("requests") or ():
        for asked in ([r["exactly"]] if r.get("exactly") is not None else []) + (r.get("firstAvailable") or []):
            if not asked.get("allocationMode"):
                asked["allocationMode"] = "ExactCount"
            if asked["allocationMode"] == "ExactCount" and not asked.get("count"):
                asked["count"] = 1
            for t in asked.get("tolerations") or ():
                if not t.get("operator"):
                    t["operator"] = "Equal"


# --- the spec of a claim ----------------------------------------------------------------------------------------------------------------

def validate_claim_spec(spec: Object, path: str) -> Errors:
    devices, path = spec.get("devices") or {}, f"{path}.devices"
    known = request_names(devices)
    yield from each_once(devices.get("requests"), REQUESTS_MAX, _request, name_of, f"{path}.requests")

    def constraint(c: Object, here: str) -> Errors:
        yield from _references(c.get("requests"), f"{here}.requests", known)
        if c.get("matchAttribute") is not None:
            yield from fully_qualified_name(c["matchAttribute"], f"{here}.matchAttribute")
        elif c.get("distinctAttribute") is not None:
            yield from fully_qualified_name(c["distinctAttribute"], f"{here}.distinctAttribute")
        else:
            yield required(here, 'exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set')

    def config(c: Object, here: str) -> Errors:
        yield from _references(c.get("requests"), f"{here}.requests", known)
        yield from configuration(c, here)

    yield from each(devices.get("constraints"), CONSTRAINTS_MAX, constraint, f"{path}.constraints")
    yield from each(devices.get("config"), CONFIG_MAX, config, f"{path}.config")


def request_names(devices: Object) -> RequestNames:
    """Every request with its subrequests."""
    return {name_of(r): {name_of(s) for s in r.get("firstAvailable") or ()} for r in devices.get("requests") or ()}


def _references(requests: list[str] | None, path: str, known: RequestNames) -> Errors:
    yield from each_once(requests, REQUESTS_MAX, lambda name, here: _reference(name, here, known), itself, path)


def _reference(name: str, path: str, known: RequestNames) -> Errors:
    parts = name.split("/")
    if len(parts) > 2:
        yield invalid(path, name, NOT_A_REQUEST)
        return
    for part in parts:
        yield from label(part, path)
    if parts[0] not in known or (len(parts) == 2 and parts[1] not in known[parts[0]]):
        yield invalid(path, name, NOT_A_REQUEST)


def _request(r: Object, path: str) -> Errors:
    yield from label(r.get("name"), f"{path}.name")
    exactly, first = r.get("exactly"), r.get("firstAvailable")
    if first and exactly is not None:
        yield invalid(path, None, f"{ONE_OF_TWO}, but multiple fields are set")
    elif first:
        yield from each_once(first, FIRST_AVAILABLE_MAX, _subrequest, name_of, f"{path}.firstAvailable")
    elif exactly is not None:
        yield from _asked(exactly, f"{path}.exactly")
    else:
        yield required(path, ONE_OF_TWO)


def _subrequest(r: Object, path: str) -> Errors:
    yield from label(r.get("name"), f"{path}.name")
    yield from _asked(r, path)


def _asked(r: Object, path: str) -> Errors:
    name = r.get("deviceClassName") or ""
    if not name:
        yield required(f"{path}.deviceClassName")
    else:
        yield from messages(name, names.is_dns1123_subdomain(name), f"{path}.deviceClassName")
    yield from selectors(r.get("selectors"), f"{path}.selectors")
    mode, count = r.get("allocationMode") or "", r.get("count") or 0
    if mode not in ALLOCATION_MODES:
        yield not_supported(f"{path}.allocationMode", mode, ALLOCATION_MODES)
    elif mode == "All" and count:
        yield invalid(f"{path}.count", count, "must not be specified when allocationMode is 'All'")
    elif mode == "ExactCount" and count <= 0:
        yield invalid(f"{path}.count", count, "must be greater than zero")
    for i, t in enumerate(r.get("tolerations") or ()):
        yield from toleration(t, f"{path}.tolerations[{i}]")


# --- ResourceClaim ----------------------------------------------------------------------------------------------------------------------

def default_claim(obj: Object) -> None:
    default_claim_spec(obj.get("spec"))


def validate_claim(obj: Object) -> Errors:
    yield from validate_claim_spec(obj.get("spec") or {}, "spec")


def validate_claim_update(new: Object, old: Object) -> Errors:
    yield from immutable(new.get("spec") or {}, old.get("spec") or {}, "spec", "resource.ResourceClaimSpec")


def drop_deallocated(new: Object, old: Object) -> None:
    """Statuses of devices that this update deallocates go with them."""
    status = new.get("status") or {}
    if not status.get("devices"):
        return
    gone = _allocated(old) - _allocated(new)
    status["devices"] = [d for d in status["devices"] if _device_id(d) not in gone]
    if not status["devices"]:
        del status["devices"]


def _device_id(d: Object) -> DeviceId:
    return d.get("driver") or "", d.get("pool") or "", d.get("device") or "", d.get("shareID") or ""


def _allocated(claim: Object) -> set[DeviceId]:
    allocation = (claim.get("status") or {}).get("allocation") or {}
    return {_device_id(r) for r in (allocation.get("devices") or {}).get("results") or ()}


def _shown(d: Object) -> Struct:
    """A device's identity as its Go type prints."""
    return Struct(zip(("Driver", "Pool", "Device", "ShareID"), _device_id(d), strict=True))


def validate_claim_status(new: Object, old: Object) -> Errors:
    status, before = new.get("status") or {}, old.get("status") or {}
    reserved, allocation, allocated = status.get("reservedFor") or [], status.get("allocation"), _allocated(new)
    known = request_names((new.get("spec") or {}).get("devices") or {})
    yield from each_once(reserved, RESERVED_FOR_MAX, _consumer, lambda r: r.get("uid") or "", "status.reservedFor")
    yield from each_once(status.get("devices"), -1, lambda d, here: _device_status(d, here, allocated), _device_id, "status.devices", _shown)
    if reserved and allocation is None:
        yield forbidden("status.reservedFor", "may not be specified when `allocated` is not set")
    elif reserved and new["metadata"].get("deletionTimestamp") and any(r not in (before.get("reservedFor") or ()) for r in reserved):
        yield forbidden("status.reservedFor", "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set")
    if allocation is None:
        return
    if before.get("allocation") is not None:
        yield from immutable(allocation, before["allocation"], "status.allocation", "resource.AllocationResult")
    else:
        yield from _allocation(allocation, "status.allocation", known)


def _consumer(ref: Object, path: str) -> Errors:
    for field in ("resource", "name", "uid"):
        if not ref.get(field):
            yield required(f"{path}.{field}")


def _allocation(allocation: Object, path: str, known: RequestNames) -> Errors:
    devices = allocation.get("devices") or {}

    def result(r: Object, here: str) -> Errors:
        yield from _reference(r.get("request") or "", f"{here}.request", known)
        yield from _device(r, here)
        yield from binding_conditions(r, here)
        if r.get("shareID") is not None:
            yield from uuid(r["shareID"], f"{here}.shareID")

    def config(c: Object, here: str) -> Errors:
        source = c.get("source") or ""
        if not source:
            yield required(f"{here}.source")
        elif source not in CONFIG_SOURCES:
            yield not_supported(f"{here}.source", source, CONFIG_SOURCES)
        yield from _references(c.get("requests"), f"{here}.requests", known)
        yield from configuration(c, here)

    yield from each(devices.get("results"), RESULTS_MAX, result, f"{path}.devices.results")
    yield from each(devices.get("config"), 2 * CONFIG_MAX, config, f"{path}.devices.config")
    if allocation.get("nodeSelector") is not None:
        yield from validate_node_selector(allocation["nodeSelector"], f"{path}.nodeSelector")


def _device(d: Object, path: str) -> Errors:
    yield from driver_name(d.get("driver") or "", f"{path}.driver")
    yield from pool_name(d.get("pool") or "", f"{path}.pool")
    yield from label(d.get("device"), f"{path}.device")


def _device_status(d: Object, path: str, allocated: set[DeviceId]) -> Errors:
    yield from _device(d, path)
    if d.get("shareID") is not None:
        yield from uuid(d["shareID"], f"{path}.shareID")
    if _device_id(d) not in allocated:
        yield invalid(path, _shown(d), "must be an allocated device in the claim")
    found = d.get("conditions") or []
    if len(found) > CONDITIONS_MAX:
        yield too_many(f"{path}.conditions", len(found), CONDITIONS_MAX)
    yield from conditions(found, f"{path}.conditions")
    if "data" in d:
        yield from raw_object(d["data"], f"{path}.data", DATA_MAX)
    network = d.get("networkData") or {}
    for field, limit in (("interfaceName", INTERFACE_NAME_MAX), ("hardwareAddress", HARDWARE_ADDRESS_MAX)):
        if names.size(network.get(field) or "") > limit:
            yield too_long(f"{path}.networkData.{field}", limit)
    yield from each_once(network.get("ips"), IPS_MAX, _interface_address, itself, f"{path}.networkData.ips")


def _interface_address(value: str, path: str) -> Errors:
    parsed = parse_cidr(value)
    if parsed is None:
        yield invalid(path, value, "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)")
        return
    address, network = parsed
    mapped, length = getattr(address, "ipv4_mapped", None), network.prefixlen
    canonical = f"{mapped}/{max(length - 96, 0)}" if mapped else f"{address}/{length}"
    if value != canonical:
        yield invalid(path, value, f"must be in canonical form ({quote(canonical)})")


# --- ResourceClaimTemplate, DeviceClass -------------------------------------------------------------------------------------------------

def default_template(obj: Object) -> None:
    default_claim_spec((obj.get("spec") or {}).get("spec"))


def validate_template(obj: Object) -> Errors:
    spec = obj.get("spec") or {}
    yield from validate_template_metadata(spec.get("metadata") or {}, "spec.metadata")
    yield from validate_claim_spec(spec.get("spec") or {}, "spec.spec")


def validate_template_update(new: Object, old: Object) -> Errors:
    yield from validate_template(new)
    yield from immutable(new.get("spec") or {}, old.get("spec") or {}, "spec", "resource.ResourceClaimTemplateSpec")


def validate_class(obj: Object, old: Object | None = None) -> Errors:
    spec, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
    stored = old is not None and same(spec.get("selectors"), before.get("selectors"))
    yield from selectors(spec.get("selectors"), "spec.selectors", stored)
    stored = old is not None and same(spec.get("config"), before.get("config"))
    yield from each(spec.get("config"), CONFIG_MAX, lambda c, here: configuration(c, here, stored), "spec.config")
    extended = spec.get("extendedResourceName")
    if extended is not None and not is_extended(extended):
        yield invalid("spec.extendedResourceName", extended, "must be a valid extended resource name")


