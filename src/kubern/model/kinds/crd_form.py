"""JSON schemas of CRDs as upstream's internal type prints them, for messages that show a whole version.

Upstream: apiextensions-apiserver pkg/apis/apiextensions/types_jsonschema.go.
"""

from __future__ import annotations

from typing import Any

from kubern.model.invalid import Struct
from kubern.model.kinds.internal_form import struct
from kubern.model.object import Object


def schema_form(schema: Object | None) -> Struct | None:
    out = struct("apiextensions.JSONSchemaProps", schema)
    if out is None:
        return None
    for field in ("AllOf", "OneOf", "AnyOf"):
        out[field] = _each(out[field])
    for field in ("Properties", "PatternProperties", "Definitions"):
        out[field] = None if out[field] is None else {k: schema_form(v) for k, v in out[field].items()}
    for field in ("AdditionalProperties", "AdditionalItems"):
        v = out[field]
        if v is not None:
            out[field] = Struct(Allows=v is not False, Schema=schema_form(v) if isinstance(v, dict) else None)
    items = out["Items"]
    if items is not None:
        out["Items"] = Struct(Schema=schema_form(items) if isinstance(items, dict) else None, JSONSchemas=_each(items))
    if out["Dependencies"] is not None:
        out["Dependencies"] = {k: Struct(Schema=schema_form(v) if isinstance(v, dict) else None, Property=v if isinstance(v, list) else None)
                               for k, v in out["Dependencies"].items()}
    out["Not"] = schema_form(out["Not"])
    return out


def _each(schemas: Any) -> Any:
    return [schema_form(s) for s in schemas] if isinstance(schemas, list) else None
