"""Protobuf: `application/vnd.kubernetes.protobuf`, the binary form of built-in kinds, driven by the wire table (model/wire.py).

In: bytes -> JSON data (model/decode.py makes it fit); an object -> bytes. A body is "k8s\\0" and a runtime.Unknown that names apiVersion and kind
and holds the message; a watch is frames of a length and a WatchEvent. Custom resources have no binary form.
Fields are written as upstream's generated code writes them: in the order of their numbers, scalars by value even when zero.
Sources: apimachinery runtime/serializer/protobuf, protocol buffers encoding (proto2).
"""

from __future__ import annotations

import base64
import binascii
import struct
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import orjson

from kubern.model import wire
from kubern.model.object import Object
from kubern.model.schema import META, definition_of
from kubern.model.time import duration_ns, duration_text

MAGIC = b"k8s\0"
DEPTH_MAX = 200
_RAW = "io.k8s.apimachinery.pkg.runtime.RawExtension"
_APIEXT = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_WRAPPED = ("ExtraValue", "Verbs")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ProtobufFault(ValueError):
    """The bytes are not what they should be, or the kind has no binary form."""


class _Field(NamedTuple):
    name: str
    number: int
    wrap: str            # "", "[]", "{}", "{}[]"
    type: str            # scalar code or definition
    pointer: bool
    special: str         # "time", "micro", "quantity", "intorstring", "raw", "duration", "or…", "wrapped" or ""
    tag: bytes


def _special(type_: str) -> str:
    named = {META + "Time": "time", META + "MicroTime": "micro", META + "Duration": "duration", META + "FieldsV1": "raw", _QUANTITY: "quantity",
             _INT_OR_STRING: "intorstring", _RAW: "raw", _APIEXT + "JSON": "raw"}
    found = named.get(type_, "")
    if not found and type_.startswith(_APIEXT + "JSONSchemaPropsOr"):
        found = "or" + type_[len(_APIEXT + "JSONSchemaPropsOr"):]
    if not found and type_.rsplit(".", 1)[-1] in _WRAPPED:
        found = "wrapped"
    return found


@cache
def _fields(definition: str) -> tuple[_Field, ...]:
    """The fields of a message in the order of their numbers; embedded ones are called "<"."""
    out = []
    for f in wire.fields(definition):
        if not f.number:
            continue
        special = "" if f.scalar else _special(f.type)
        varint = not f.wrap and f.type in ("i", "l", "b")
        packed_type = _VARINT if varint or (f.wrap == "[]" and f.type in ("i", "l", "b")) else _FIXED64 if f.type == "d" and f.wrap != "{}" else (
            _FIXED32 if f.type == "f" and f.wrap != "{}" else _BYTES)
        out.append(_Field(f.name, f.number, f.wrap, f.type, f.pointer, special, varint_bytes(f.number << 3 | packed_type)))
    return tuple(sorted(out, key=lambda f: f.number))


@cache
def _by_number(definition: str) -> dict[int, _Field]:
    return {f.number: f for f in _fields(definition)}


def definition_for(api_version: str, kind: str) -> str:
    """The message of a kind; raises ProtobufFault where it has none."""
    name = definition_of(api_version, kind)
    if name is None and api_version in ("v1", "meta.k8s.io/v1") and wire.known(META + kind):
        name = META + kind
    if name is None:                                     # kinds that are read and written but served no more, or only as options
        group, _, version = api_version.rpartition("/")
        if "." not in group or group.endswith(".k8s.io"):
            name = f"io.k8s.api.{group.split('.')[0] or 'core'}.{version}.{kind}"
    if name is None or not wire.known(name):
        raise ProtobufFault(f'no kind "{kind}" is registered for version "{api_version}" in protobuf')
    return name


# ---------------------------------------------------------------- writing

def varint_bytes(n: int) -> bytes:
    if n < 0:
        n += 1 << 64
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _put(out: bytearray, tag: bytes, data: bytes | bytearray) -> None:
    out += tag
    out += varint_bytes(len(data))
    out += data


def from_json(obj: Object) -> bytes:
    """An object with apiVersion and kind as a body."""
    api_version, kind = obj.get("apiVersion") or "", obj.get("kind") or ""
    return envelope(api_version, kind, message(obj, definition_for(api_version, kind)))


def envelope(api_version: str, kind: str, raw: bytes | bytearray) -> bytes:
    meta = bytearray()
    _put(meta, b"\x0a", api_version.encode())
    _put(meta, b"\x12", kind.encode())
    out = bytearray(MAGIC)
    _put(out, b"\x0a", meta)
    _put(out, b"\x12", raw)
    out += b"\x1a\x00\x22\x00"
    return bytes(out)


def message(obj: dict[str, Any], definition: str) -> bytearray:
    """A struct as a message."""
    out = bytearray()
    for f in _fields(definition):
        if f.name == "<":
            inner = message(obj, f.type)
            if inner or not f.pointer:
                _put(out, f.tag, inner)
            continue
        value = obj.get(f.name)
        if f.wrap:
            if value:
                _collection(out, f, value)
        elif value is None:
            if not f.pointer:
                _zero(out, f)
        else:
            _single(out, f, value)
    return out


def _collection(out: bytearray, f: _Field, value: Any) -> None:
    if f.wrap == "[]":
        for item in value:
            _single(out, f, item if item is not None else _empty(f))
        return
    for key in sorted(value):
        entry = bytearray()
        _put(entry, b"\x0a", key.encode())
        item = value[key]
        inner = _Field("", 2, "", f.type, False, f.special, b"\x10" if f.type in ("i", "l", "b") else b"\x12")
        if f.wrap == "{}[]":
            for x in item or ():
                _single(entry, inner, x)
        elif item is None:
            _zero(entry, inner)
        else:
            _single(entry, inner, item)
        _put(out, f.tag, entry)


def _empty(f: _Field) -> Any:
    if f.type in ("s", "y"):
        return ""
    return {} if f.type not in wire.SCALARS and not f.special else 0


def _zero(out: bytearray, f: _Field) -> None:
    """A field by value that is not there: its zero is written all the same, as upstream does."""
    t = f.type
    if t == "s":
        _put(out, f.tag, b"")
    elif t in ("i", "l", "b"):
        out += f.tag + b"\x00"
    elif t == "d":
        out += f.tag + bytes(8)
    elif t == "f":
        out += f.tag + bytes(4)
    elif t == "y":
        return
    elif f.special in ("time", "micro", "raw"):
        _put(out, f.tag, b"")
    elif f.special == "quantity":
        _put(out, f.tag, b"\x0a\x010")
    elif f.special == "intorstring":
        _put(out, f.tag, b"\x08\x00\x10\x00\x1a\x00")
    elif f.special == "duration":
        _put(out, f.tag, b"\x08\x00")
    elif f.special.startswith("or") or f.special == "wrapped":
        return
    else:
        _put(out, f.tag, message({}, t))


def _single(out: bytearray, f: _Field, value: Any) -> None:
    t = f.type
    if t == "s":
        _put(out, f.tag, str(value).encode("utf-8", "surrogatepass"))
    elif t in ("i", "l"):
        out += f.tag + varint_bytes(int(value))
    elif t == "b":
        out += f.tag + (b"\x01" if value else b"\x00")
    elif t == "d":
        out += f.tag + struct.pack("<d", value)
    elif t == "f":
        out += f.tag + struct.pack("<f", value)
    elif t == "y":
        _put(out, f.tag, binascii.a2b_base64(value))
    elif not f.special:
        _put(out, f.tag, message(value, t))
    else:
        _put(out, f.tag, _special_bytes(f, value))


def _special_bytes(f: _Field, value: Any) -> bytes | bytearray:
    kind = f.special
    out = bytearray()
    if kind in ("time", "micro"):
        return _time(value)
    if kind == "quantity":
        _put(out, b"\x0a", str(value).encode())
    elif kind == "intorstring":
        is_text = isinstance(value, str)
        out += b"\x08" + (b"\x01" if is_text else b"\x00") + b"\x10" + (b"\x00" if is_text else varint_bytes(int(value)))
        _put(out, b"\x1a", value.encode() if is_text else b"")
    elif kind == "raw":
        _put(out, b"\x0a", orjson.dumps(value))
    elif kind == "duration":
        out += b"\x08" + varint_bytes(duration_ns(value))
    elif kind == "wrapped":
        for item in value:
            _put(out, b"\x0a", str(item).encode())
    elif kind == "orBool":
        out += b"\x08" + (b"\x00" if value is False else b"\x01")
        if isinstance(value, dict):
            _put(out, b"\x12", message(value, _APIEXT + "JSONSchemaProps"))
    elif isinstance(value, dict):
        _put(out, b"\x0a", message(value, _APIEXT + "JSONSchemaProps"))
    else:
        for item in value:
            _put(out, b"\x12", message(item, _APIEXT + "JSONSchemaProps") if isinstance(item, dict) else str(item).encode())
    return out


def _time(value: str) -> bytes:
    t = datetime.fromisoformat(value)
    delta = t - _EPOCH
    seconds, nanos = delta.days * 86400 + delta.seconds, delta.microseconds * 1000
    return b"\x08" + varint_bytes(seconds) + b"\x10" + varint_bytes(nanos)


# ---------------------------------------------------------------- reading

def to_json(body: bytes, api_version: str = "", kind: str = "") -> Object:
    """A body as JSON data with apiVersion and kind; the arguments stand in where the body does not say. Raises ProtobufFault."""
    if body[:4] != MAGIC:
        raise ProtobufFault(f"provided data does not appear to be a protobuf message, expected prefix {[*MAGIC]}".replace(",", ""))
    try:
        have_version, have_kind, raw = api_version, kind, b""
        for number, _, value in _parts(body, 4, len(body)):
            if number == 1:
                for n, _, v in _parts(value, 0, len(value)):
                    if n == 1:
                        have_version = v.decode() or have_version
                    elif n == 2:
                        have_kind = v.decode() or have_kind
            elif number == 2:
                raw = value
        out = read(raw, definition_for(have_version, have_kind))
    except (IndexError, UnicodeDecodeError, struct.error, OverflowError) as e:
        raise ProtobufFault(f"proto: {e}") from None
    return {"apiVersion": have_version, "kind": have_kind, **out}


def _varint(data: bytes, i: int) -> tuple[int, int]:
    n = shift = 0
    while True:
        b = data[i]
        i += 1
        n |= (b & 0x7F) << shift
        if b < 0x80:
            return n & 0xFFFFFFFFFFFFFFFF, i
        shift += 7
        if shift > 63:
            raise ProtobufFault("proto: integer overflow")


def _parts(data: bytes, i: int, end: int) -> list[tuple[int, int, Any]]:
    """(number, wire type, int or bytes) of a message."""
    out: list[tuple[int, int, Any]] = []
    while i < end:
        key, i = _varint(data, i)
        number, type_ = key >> 3, key & 7
        if not number:
            raise ProtobufFault("proto: illegal tag 0")
        value: Any
        if type_ == _VARINT:
            value, i = _varint(data, i)
        elif type_ == _BYTES:
            size, i = _varint(data, i)
            if size > end - i:
                raise ProtobufFault("unexpected EOF")
            value = data[i : i + size]
            i += size
        elif type_ == _FIXED64:
            if end - i < 8:
                raise ProtobufFault("unexpected EOF")
            value = data[i : i + 8]
            i += 8
        elif type_ == _FIXED32:
            if end - i < 4:
                raise ProtobufFault("unexpected EOF")
            value = data[i : i + 4]
            i += 4
        else:
            raise ProtobufFault(f"proto: wrong wireType = {type_}")
        out.append((number, type_, value))
    return out


def _signed(n: int, code: str) -> int:
    if n >= 1 << 63:
        n -= 1 << 64
    if code == "i":
        n = (n + (1 << 31)) % (1 << 32) - (1 << 31)
    return n


def read(data: bytes, definition: str, depth: int = 0) -> dict[str, Any]:
    """A message as a struct."""
    if depth > DEPTH_MAX:
        raise ProtobufFault("proto: exceeded max depth")
    fields = _by_number(definition)
    out: dict[str, Any] = {}
    for number, type_, value in _parts(data, 0, len(data)):
        f = fields.get(number)
        if f is None:
            continue
        if f.name == "<":
            _need(type_, _BYTES, f)
            out.update(read(value, f.type, depth + 1))
        elif f.wrap == "[]":
            if f.type in ("i", "l", "b") and type_ == _BYTES:      # packed
                i = 0
                while i < len(value):
                    n, i = _varint(value, i)
                    out.setdefault(f.name, []).append(_signed(n, f.type) if f.type != "b" else bool(n))
            else:
                out.setdefault(f.name, []).append(_value(f, type_, value, depth))
        elif f.wrap:
            _need(type_, _BYTES, f)
            key, item = "", None
            items: list[Any] = []
            for n, t, v in _parts(value, 0, len(value)):
                if n == 1:
                    key = v.decode()
                elif n == 2:
                    item = _value(f, t, v, depth)
                    items.append(item)
            if f.wrap == "{}[]":
                item = items
            elif item is None:
                item = "" if f.type in ("s", "y") else _value(f, _BYTES, b"", depth) if f.type not in wire.SCALARS else 0
            out.setdefault(f.name, {})[key] = item
        else:
            new = _value(f, type_, value, depth)
            if new is not None:
                out[f.name] = new
    return out


def _need(have: int, want: int, f: _Field) -> None:
    if have != want:
        raise ProtobufFault(f"proto: wrong wireType = {have} for field {f.name[:1].upper()}{f.name[1:]}")


def _value(f: _Field, type_: int, value: Any, depth: int) -> Any:
    t = f.type
    if t in ("i", "l", "b"):
        _need(type_, _VARINT, f)
        return bool(value) if t == "b" else _signed(value, t)
    if t == "d":
        _need(type_, _FIXED64, f)
        return struct.unpack("<d", value)[0]
    if t == "f":
        _need(type_, _FIXED32, f)
        return struct.unpack("<f", value)[0]
    _need(type_, _BYTES, f)
    if t == "s":
        return value.decode("utf-8", "replace")
    if t == "y":
        return base64.b64encode(value).decode()
    if not f.special:
        return read(value, t, depth + 1)
    return _special_value(f.special, value, depth)


def _special_value(kind: str, data: bytes, depth: int) -> Any:
    parts = _parts(data, 0, len(data))
    if kind in ("time", "micro"):
        if not data:
            return None
        got = {n: _signed(v, "l") for n, t, v in parts if t == _VARINT}
        try:
            t = _EPOCH + timedelta(seconds=got.get(1, 0), microseconds=got.get(2, 0) // 1000)
        except OverflowError:
            raise ProtobufFault("proto: time out of range") from None
        text = f"{t.year:04d}-{t.month:02d}-{t.day:02d}T{t.hour:02d}:{t.minute:02d}:{t.second:02d}"
        return f"{text}.{t.microsecond:06d}Z" if kind == "micro" else text + "Z"
    if kind == "quantity":
        return next((v.decode() for n, _, v in parts if n == 1), "0") or "0"
    if kind == "intorstring":
        values: dict[int, Any] = {n: v for n, _, v in parts}
        return values.get(3, b"").decode() if values.get(1) else _signed(values.get(2, 0), "i")
    if kind == "raw":
        raw = next((v for n, _, v in parts if n == 1), b"")
        if not raw:
            return None
        try:
            return to_json(raw) if raw[:4] == MAGIC else orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise ProtobufFault("couldn't get version/kind; json parse error: invalid raw extension") from None
    if kind == "duration":
        return duration_text(next((_signed(v, "l") for n, _, v in parts if n == 1), 0))
    if kind == "wrapped":
        return [v.decode() for n, _, v in parts if n == 1]
    inner = _APIEXT + "JSONSchemaProps"
    if kind == "orBool":
        schema = next((v for n, _, v in parts if n == 2), None)
        if schema is not None:
            return read(schema, inner, depth + 1)
        return bool(next((v for n, _, v in parts if n == 1), 0))
    schema = next((v for n, _, v in parts if n == 1), None)
    if schema is not None:
        return read(schema, inner, depth + 1)
    many = [v for n, _, v in parts if n == 2]
    return [v.decode() for v in many] if kind == "orStringArray" else [read(v, inner, depth + 1) for v in many]
