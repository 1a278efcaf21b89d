"""events.k8s.io/v1 Event: stored as a core Event (model/convert.py) and checked in that shape, but more strictly than core/v1 does.

Upstream: pkg/apis/core/validation/events.go; KEP-383.
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.invalid import invalid, required
from kubern.model.kinds.checks import Errors, immutable, listed, messages, same
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.object import Object

INSTANCE_MAX = ACTION_MAX = REASON_MAX = 128
NOTE_MAX = 1024
_FIXED = (("involvedObject", "ObjectReference"), ("reason", ""), ("message", ""), ("source", "EventSource"), ("firstTimestamp", ""),
          ("lastTimestamp", ""), ("count", ""), ("reason", ""), ("type", ""), ("eventTime", ""), ("action", ""),
          ("related", "ObjectReference"), ("reportingComponent", ""), ("reportingInstance", ""))
_PRINTED = {"reportingComponent": "reportingController"}


def validate_legacy(obj: Object, reporter: str = "reportingController") -> Errors:
    """What both versions ask; core/v1 asks nothing else and calls the reporter reportingComponent."""
    namespace = obj["metadata"].get("namespace") or ""
    involved = (obj.get("involvedObject") or {}).get("namespace") or ""
    if not obj.get("eventTime"):
        if (namespace not in ("", "default")) if not involved else (namespace != involved):
            yield invalid("involvedObject.namespace", involved, "does not match event.namespace")
    else:
        if not involved and namespace not in ("default", "kube-system"):
            yield invalid("involvedObject.namespace", involved, "does not match event.namespace")
        component = obj.get("reportingComponent") or ""
        if not component:
            yield required(reporter)
        yield from messages(component, names.is_qualified_name(component), reporter)
        for field, limit, may_be_empty in (("reportingInstance", INSTANCE_MAX, False), ("action", ACTION_MAX, False),
                                           ("reason", REASON_MAX, False), ("message", NOTE_MAX, True)):
            text = obj.get(field) or ""
            if not text and not may_be_empty:
                yield required(field)
            if names.size(text) > limit:
                yield invalid(field, "", f"can have at most {limit} characters")
    yield from messages(namespace, names.is_dns1123_subdomain(namespace), "namespace")


def _series(obj: Object) -> Errors:
    series = obj.get("series")
    if series is not None:
        if (series.get("count") or 0) < 2:
            yield invalid("series.count", "", "should be at least 2")
        if not series.get("lastObservedTime"):
            yield required("series.lastObservedTime")


def validate_event(obj: Object) -> Errors:
    yield from validate_legacy(obj)
    yield from _series(obj)
    if not obj.get("eventTime"):
        yield required("eventTime")
    if obj.get("type") not in ("Normal", "Warning"):
        yield invalid("type", "", f"has invalid value: {obj.get('type') or ''}")
    for field in ("firstTimestamp", "lastTimestamp", "count"):
        if obj.get(field):
            yield invalid(field, "", "needs to be unset")
    source = obj.get("source") or {}
    if source.get("component") or source.get("host"):
        yield invalid("source", "", "needs to be unset")


def validate_event_update(new: Object, old: Object) -> Errors:
    yield from validate_legacy(new)
    if not same(new.get("series"), old.get("series")):
        yield from _series(new)
    for field, type_ in _FIXED:
        yield from immutable(new.get(field), old.get(field), _PRINTED.get(field, field), type_)


KINDS: KindTable = {
    ("events.k8s.io", "Event"): Kind(
        validate=listed(validate_event), validate_update=listed(validate_event_update), create_on_update=True),
}
