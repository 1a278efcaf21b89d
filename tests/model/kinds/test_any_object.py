"""Whatever decodes is judged, defaulted and printed without an exception: random objects of every kind, made from the schemas."""

import json
import random

import pytest

from kubern.model import schema as s
from kubern.model.decode import decode
from kubern.model.kinds import kind_of
from kubern.model.object import clone
from kubern.model.resources import RESOURCES
from kubern.model.status import StatusError
from kubern.model.table import row

ROWS = [r for r in RESOURCES if "list" in r.verbs and "create" in r.verbs]
TEXTS = ("", "a", "A_", "a/b", "*", "x" * 70, "-1", "1Gi", "10%", "1.2.3.4", "example.com/a", "fd00::/8", "é")
VALUES = {
    s.INT32: (0, 1, -1, 100), s.INT64: (0, 1, -1, 1 << 40), s.BOOL: (True, False), s.NUMBER: (0, 1.5), s.TIME: ("2020-01-01T00:00:00Z",),
    s.MICROTIME: ("2020-01-01T00:00:00.000000Z",), s.QUANTITY: ("0", "-1", "100Mi"), s.INT_OR_STRING: (0, -1, "10%", "a"),
    s.RAW: ({}, {"a": 1}), s.ANY: ({},), s.BYTES: ("", "YQ=="), s.DURATION: ("1s",)}


def some(schema, rng, depth=0):
    c = schema.code
    if c == s.STRUCT:
        return {} if depth > 7 else {k: some(v, rng, depth + 1) for k, v in schema.props.items() if rng.random() < (0.6 if depth < 4 else 0.2)}
    if c == s.LIST:
        return [some(schema.items, rng, depth + 1) for _ in range(rng.choice((0, 1, 1, 2)))]
    if c == s.MAP:
        return {rng.choice(TEXTS): some(schema.extra, rng, depth + 1) for _ in range(rng.choice((0, 1, 2)))}
    return rng.choice(VALUES.get(c, TEXTS))


def made(r, schema, rng):
    body = {**some(schema, rng), "apiVersion": r.api_version, "kind": r.kind, "metadata": {"name": "x", "namespace": "n", "uid": "u"}}
    try:
        return decode(json.dumps(body).encode(), "application/json", r, schema, "Ignore")[0]
    except StatusError:
        return None


@pytest.mark.parametrize("r", ROWS, ids=lambda r: f"{r.api_version} {r.kind}")
def test_any_object(r):
    rng, schema, kind = random.Random(r.kind), s.schema_for(r.api_version, r.kind), kind_of(r.storage[0], r.kind)
    old = None
    for _ in range(12):
        obj = made(r, schema, rng)
        if obj is None:
            continue
        kind.defaults(obj)
        if old is not None:
            for prepare, check in ((kind.prepare_update, kind.validate_update), (kind.prepare_status, kind.validate_status)):
                new = clone(obj)
                if prepare is not None:
                    prepare(new, old)
                assert all(e.text() for e in check(new, old))
            assert all(isinstance(w, str) for w in kind.warnings(clone(obj), old))
        kind.prepare_create(obj)
        assert all(e.text() for e in kind.validate(obj))
        kind.warnings(obj, None)
        json.dumps(row(kind, obj, "Metadata", 1.7e9))
        old = obj
    assert old is not None
