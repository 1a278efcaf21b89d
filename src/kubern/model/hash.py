"""Short stable names of JSON data: FNV-1a over the canonical text, in the alphabet that upstream uses for generated names.

Upstream hashes Go's dump of a struct (pkg/util/hash); clients treat the result as opaque, so only shape and stability matter.
"""

from __future__ import annotations

from typing import Any

import orjson

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def fnv32a_bytes(data: bytes, h: int = 0x811C9DC5) -> int:
    for byte in data:
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def fnv32a(value: Any, salt: int | None = None) -> int:
    """The hash of JSON data, whatever the order of its members."""
    h = fnv32a_bytes(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))
    return h if salt is None else fnv32a_bytes(salt.to_bytes(8, "little", signed=True), h)


def sorted_members(value: Any) -> Any:
    """A copy of JSON data with the members of every object in the order of their names, as Go writes a map."""
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def safe_encode(text: str) -> str:
    """Letters and digits that make no bad words; upstream: apimachinery util/rand SafeEncodeString."""
    return "".join(_ALPHABET[ord(c) % len(_ALPHABET)] for c in text)
