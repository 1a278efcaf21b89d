"""Bodies: where a request's body is decoded. In the event loop, as JSON is; large YAML, at 2 ms a kilobyte, in a thread, so that others are answered
meanwhile. What decodes is pure: model/{decode,yamltree,fields}.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
YAML_INLINE_MAX_BYTES = 8192
JSON_INLINE_MAX_BYTES = 1 << 17          # of what is called YAML
THREADS = 1                    # decoding holds the interpreter: more of them would only take turns; what waits is bounded by the requests in flight


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "decode")


def looks_like_yaml(body: bytes) -> bool:
    """Of a body that is called YAML whatever it is: false for JSON, unless it is so large that reading it as YAML after all would take long."""
    return body.lstrip()[:1] != b"{" or len(body) > JSON_INLINE_MAX_BYTES


async def decoded(body: bytes, yaml: bool, decode: Callable[[], T]) -> T:
    """What `decode` makes of a body; it may run in another thread, and raises what it raises."""
    if not yaml or len(body) <= YAML_INLINE_MAX_BYTES:
        return decode()
    return await asyncio.get_running_loop().run_in_executor(_threads(), decode)
