from __future__ import annotations

import uuid

from kubern.model import metadata as m
from kubern.model.time import rfc3339


def test_names_labels_and_finalizers_are_checked_in_upstreams_order() -> None:
    errors = m.validate_meta({"name": "A", "namespace": "n", "labels": {"bad key!": "-x-"}, "finalizers": ["orphan", "foregroundDeletion"]},
                             True, None)
    assert [e.field for e in errors] == ["metadata.name", "metadata.labels", "metadata.labels", "metadata.finalizers"]
    assert [e.text() for e in m.validate_meta({}, True, None)][:2] == [
        "metadata.name: Required value: name or generateName is required", "metadata.namespace: Required value"]
    assert m.validate_meta({"name": "a", "namespace": "n"}, False, None)[0].text() == "metadata.namespace: Forbidden: not allowed on this type"


def test_updates_keep_identity() -> None:
    old = {"name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}
    new = {"name": "b", "resourceVersion": "1", "finalizers": ["a/b", "c/d"]}
    m.keep_system_fields(new, old)
    assert [e.text() for e in m.validate_meta_update(new, old)] == [
        'metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"c/d"}',
        'metadata.name: Invalid value: "b": field is immutable']


def test_deletion_finalizers_follow_options_then_the_object_then_the_kind() -> None:
    f = m.deletion_finalizers
    assert f({}, None, "Foreground", "Background") == ["foregroundDeletion"]
    assert f({"finalizers": ["x/y", "foregroundDeletion"]}, None, "Orphan", "Background") == ["x/y", "orphan"]
    assert f({"finalizers": ["orphan"]}, None, "Background", "Orphan") == []
    assert f({"finalizers": ["orphan"]}, None, None, "Background") is None
    assert f({}, None, None, "Orphan") == ["orphan"]
    assert f({}, True, None, "Unsupported") is None


def test_grace_only_shrinks_and_never_into_the_past() -> None:
    now = 1_700_000_000.0
    meta = {"generation": 1}
    m.mark_graceful(meta, 30, now)
    assert meta == {"generation": 2, "deletionTimestamp": rfc3339(now + 30), "deletionGracePeriodSeconds": 30}
    m.shorten_grace(meta, 10, now)
    assert meta["deletionTimestamp"] == rfc3339(now + 10)
    m.shorten_grace(meta, 5, now + 60)
    assert meta["deletionTimestamp"] == rfc3339(now + 60) and meta["deletionGracePeriodSeconds"] == 1


def test_generated_names_fit_and_uids_are_version_4() -> None:
    name = m.generate_name("x" * 80, lambda n: n - 1)
    assert len(name) == 63 and name.endswith("99999")
    assert uuid.UUID(m.uid(12345678901234567890)).version == 4


def test_owner_references() -> None:
    good = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": True}
    assert m.validate_owner_references([good], "f") == []
    assert "Only one reference" in m.validate_owner_references([good, {**good, "name": "q"}], "f")[0].text()
    assert [e.field for e in m.validate_owner_references([{}], "f")] == ["f.apiVersion", "f.kind", "f.name", "f.uid"]
    meta = {"ownerReferences": [good, good]}
    assert m.dedup_owner_references(meta) == ["u"] and meta == {"ownerReferences": [good]}
