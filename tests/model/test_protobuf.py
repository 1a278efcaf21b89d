"""The binary form: upstream's vectors there and back, refusals, watch frames."""

import json
from pathlib import Path

import pytest

from kubern.model import protobuf
from kubern.model.decode import decode
from kubern.model.resources import by_path
from kubern.model.schema import definition_of, schema_for
from kubern.model.status import StatusError
from kubern.model.strict import typed

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "data" / "api-objects"
GROUPS = {"core": ""}
SKIP = {"WatchEvent", "SerializedReference"}


def vectors():
    if not VECTORS.is_dir():
        return []
    out = []
    for path in sorted(VECTORS.glob("*.pb")):
        obj = json.loads(path.with_suffix(".json").read_text())
        if definition_of(obj.get("apiVersion", ""), obj.get("kind", "")) and obj["kind"] not in SKIP:
            out.append(path)
    return out


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no test vectors at {VECTORS}")
@pytest.mark.parametrize("path", vectors(), ids=lambda p: p.stem)
def test_vectors(path):
    body, want = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    got = protobuf.to_json(body)
    fitted, errors = typed(got, schema_for(want["apiVersion"], want["kind"]))
    assert not errors
    assert fitted == want
    assert protobuf.from_json(want) == body


def test_request_body():
    row = by_path[("", "v1", "secrets")]
    obj = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "labels": {"x": "y"}}, "data": {"k": "dg=="}, "type": "t"}
    got, warnings = decode(protobuf.from_json(obj), "application/vnd.kubernetes.protobuf", row, schema_for("v1", "Secret"), "Strict")
    assert (got, warnings) == (obj, [])
    assert protobuf.to_json(protobuf.from_json({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 404}))["code"] == 404


@pytest.mark.parametrize("body", [b"", b"k8s", b"{}", b"k8s\0\xff", b"k8s\0\x12\x7f", b"k8s\0\x12\x03\x0a\xff\xff", b"k8s\0" + b"\x0a\x00" * 5])
def test_refused(body):
    row = by_path[("", "v1", "secrets")]
    try:
        decode(body, "application/vnd.kubernetes.protobuf", row, schema_for("v1", "Secret"))
    except StatusError as e:
        assert e.code == 400
