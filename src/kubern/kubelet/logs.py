"""Container logs in the CRI's format: reading (tail, since, follow, limit), rotation, removal.

A line is `TIME STREAM P|F TEXT`; P is a part, glued to what follows. Upstream: pkg/kubelet/kuberuntime/logs, pkg/kubelet/logs;
KEP-3288 (stream selection).
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

BLOCK_BYTES = 65536
FOLLOW_POLL_S = 0.25
ROTATE_BYTES, ROTATE_FILES_MAX = 10 << 20, 5
_FRACTION = re.compile(rb"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)$")


@dataclass(frozen=True, slots=True)
class Options:
    """What the log subresource can be asked."""

    follow: bool = False
    tail: int | None = None
    since_s: float | None = None            # seconds since 1970; lines before it are left out
    timestamps: bool = False
    limit_bytes: int | None = None
    stream: str = ""                        # "" both, "stdout", "stderr"


def moment(stamp: bytes) -> float:
    """RFC 3339 with any number of decimals as seconds since 1970; 0 where it is none."""
    from datetime import datetime

    m = _FRACTION.match(stamp)
    if not m:
        return 0.0
    zone = m.group(3).decode().replace("Z", "+00:00")
    base = datetime.fromisoformat(m.group(1).decode() + zone).timestamp()
    return base + float(b"0." + m.group(2)) if m.group(2) else base


def parse(line: bytes) -> tuple[bytes, bytes, bool, bytes] | None:
    """(time, stream, whole, text with its newline) of one line of the file; None for garbage."""
    parts = line.split(b" ", 3)
    if len(parts) < 4 or parts[1] not in (b"stdout", b"stderr"):
        return None
    text = parts[3]
    if parts[2].startswith(b"P"):
        return parts[0], parts[1], False, text.rstrip(b"\n")
    return parts[0], parts[1], True, text if text.endswith(b"\n") else text + b"\n"


def tail_start(path: str, lines: int, stream: str = "") -> int:
    """Offset in the file where its last `lines` whole lines (of a stream) begin."""
    if lines <= 0:
        return os.path.getsize(path)
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        at, rest, count = size, b"", 0
        while at > 0:
            step = min(BLOCK_BYTES, at)
            at -= step
            f.seek(at)
            block = f.read(step) + rest
            pieces = block.split(b"\n")
            rest = pieces[0]
            offset = at + len(block)
            for piece in reversed(pieces[1:]):
                offset -= len(piece)
                if piece:
                    p = parse(piece)
                    if p and (not stream or p[1] == stream.encode()) and p[2]:
                        count += 1
                        if count > lines:
                            return offset + len(piece) + 1
                offset -= 1
        first = parse(rest)
        if first and first[2] and (not stream or first[1] == stream.encode()) and count + 1 > lines:
            return len(rest) + 1
    return 0


async def read(path: str, o: Options, alive: Callable[[], bool] | None = None) -> AsyncIterator[bytes]:
    """The log as text. With `follow` until `alive()` is False and all is read; rotation is followed. Raises OSError if there is no file."""
    left = o.limit_bytes
    f = await asyncio.to_thread(open, path, "rb")
    try:
        if o.tail is not None:
            f.seek(await asyncio.to_thread(tail_start, path, o.tail, o.stream))
        rest = b""
        wanted = o.stream.encode()
        while True:
            running = alive() if o.follow and alive else False
            data = await asyncio.to_thread(f.read, BLOCK_BYTES)
            if not data:
                if not o.follow:
                    if rest:
                        data = b"\n"
                    else:
                        return
                elif rotated(path, f.fileno()):
                    f.close()
                    f = await asyncio.to_thread(open, path, "rb")
                    continue
                elif not running:
                    return
                else:
                    await asyncio.sleep(FOLLOW_POLL_S)
                    continue
            pieces = (rest + data).split(b"\n")
            rest = pieces.pop()
            out: list[bytes] = []
            for piece in pieces:
                p = parse(piece + b"\n")
                if p is None or (wanted and p[1] != wanted):
                    continue
                if o.since_s is not None and moment(p[0]) < o.since_s:
                    continue
                out.append(p[0] + b" " + p[3] if o.timestamps else p[3])
            chunk = b"".join(out)
            if left is not None:
                chunk = chunk[:left]
                left -= len(chunk)
            if chunk:
                yield chunk
            if left == 0:
                return
    finally:
        f.close()


def rotated(path: str, fd: int) -> bool:
    """Another file has this name now."""
    try:
        return os.stat(path).st_ino != os.fstat(fd).st_ino
    except OSError:
        return False


def tail_for_message(path: str, lines: int, limit: int) -> str:
    """The last lines of a log, for a termination message."""
    try:
        with open(path, "rb") as f:
            f.seek(tail_start(path, lines))
            texts = [p[3] for line in f if (p := parse(line))]
    except OSError:
        return ""
    return b"".join(texts)[-limit:].decode(errors="replace")


async def rotate(paths: list[tuple[str, str]], reopen: Callable[[str], Awaitable[None]], max_bytes: int = ROTATE_BYTES,
                 max_files: int = ROTATE_FILES_MAX) -> None:
    """(container id, log file) of running containers: files over the size get a time in their name, older ones are compressed."""
    for id_, path in paths:
        if await asyncio.to_thread(_size, path) < max_bytes:
            continue
        old = f"{path}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        os.rename(path, old)
        try:
            await reopen(id_)
        except Exception:
            os.rename(old, path)
            raise
        await asyncio.to_thread(_tidy, path, max_files)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _tidy(path: str, max_files: int) -> None:
    folder, base = os.path.split(path)
    old = sorted(n for n in os.listdir(folder) if n.startswith(base + "."))
    for n in old[:max(0, len(old) - (max_files - 1))]:
        os.unlink(f"{folder}/{n}")
    for n in old[max(0, len(old) - (max_files - 1)):-1]:
        if not n.endswith(".gz"):
            with open(f"{folder}/{n}", "rb") as src, gzip.open(f"{folder}/{n}.tmp", "wb") as dst:
                shutil.copyfileobj(src, dst)
            os.rename(f"{folder}/{n}.tmp", f"{folder}/{n}.gz")
            os.unlink(f"{folder}/{n}")
