"""Log: audit events in a file, one JSON line each, rotated by size.

Encoding and writing is a thread's work behind a bounded queue. A disk that cannot keep up costs events (counted, and told in the log once a
minute), never requests. Upstream: apiserver plugin/pkg/audit/log; the options --audit-log-*.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from kubern.model.invalid import quote
from kubern.model.object import Object

log = logging.getLogger(__name__)

QUEUE_EVENTS_MAX = 20_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
BATCH_EVENTS_MAX = 500
COMPLAIN_EVERY_S = 60.0
MILLISECOND = timedelta(milliseconds=1)


class Log:
    """Where events go: a file that is rotated, or standard output ("-"). `put` never waits."""

    plugin = "log"

    def __init__(self, path: str, max_bytes: int = 100 << 20, backups: int = 100, age_days: int = 366, compress: bool = False,
                 format: str = "json") -> None:
        """`backups` and `age_days`: how many files put aside are kept, and for how long; 0: all, for ever."""
        self.path, self.max_bytes, self.backups, self.age_s, self.compress = path, max_bytes, backups, age_days * 86400, compress
        self._encode = _FORMATS[format]
        self.written = self.lost = 0
        self._queue: deque[tuple[Object, int]] = deque()
        self._bytes = 0
        self._wake = threading.Event()
        self._stop = False
        self._complained = 0.0
        self._put_aside = datetime.min.replace(tzinfo=UTC)  # when the newest of the files put aside says it ends
        self._file: Any = None
        self._size = 0
        self._open()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, event: Object, weight: int = 1024) -> None:
        """`weight`: about how many bytes it holds on to."""
        if len(self._queue) >= QUEUE_EVENTS_MAX or self._bytes > QUEUE_BYTES_MAX or self._stop:
            self._lose(1, "the disk does not keep up")
            return
        self._bytes += weight
        self._queue.append((event, weight))
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Writes what is there, then closes."""
        self._stop = True
        self._wake.set()
        self._thread.join(10)

    def _lose(self, n: int, why: str) -> None:
        self.lost += n
        now = time.monotonic()
        if now - self._complained > COMPLAIN_EVERY_S:
            self._complained = now
            log.error("audit events are lost, %d so far: %s", self.lost, why)

    def _open(self) -> None:
        if self.path == "-":
            self._file = sys.stdout.buffer
            return
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        self._size = self._file.tell()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                lines = []
                for _ in range(min(len(self._queue), BATCH_EVENTS_MAX)):
                    event, weight = self._queue.popleft()
                    self._bytes -= weight
                    try:
                        lines.append(self._encode(event))
                    except TypeError as e:
                        self._lose(1, str(e))
                self._write(lines)
            if self._stop:
                if self.path != "-" and self._file is not None:
                    with contextlib.suppress(OSError):
                        self._file.close()
                return

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        try:
            if self.path != "-" and self._size and self._size + len(data) > self.max_bytes:
                self._rotate()
            self._file.write(data)
            self._file.flush()
            self._size += len(data)
            self.written += len(lines)
        except (OSError, ValueError) as e:
            self._lose(len(lines), str(e))
            if self.path != "-":
                with contextlib.suppress(OSError, ValueError):
                    self._file.close()
                with contextlib.suppress(OSError):
                    self._open()

    def _rotate(self) -> None:
        """audit.log -> audit-2026-01-02T03-04-05.678.log; the oldest go."""
        self._file.close()
        path = Path(self.path)
        target = self._aside(path)
        path.rename(target)
        self._open()
        if self.compress:
            self._shrink(target)
        self._clean(path)

    def _aside(self, path: Path) -> Path:
        """A name that sorts behind those already given: within one millisecond the next one is taken."""
        self._put_aside = max(datetime.now(UTC), self._put_aside + MILLISECOND)
        while True:
            target = path.with_name(f"{path.stem}-{self._put_aside.strftime('%Y-%m-%dT%H-%M-%S.%f')[:-3]}{path.suffix}")
            if not target.exists() and not target.with_name(target.name + ".gz").exists():
                return target
            self._put_aside += MILLISECOND

    @staticmethod
    def _shrink(path: Path) -> None:
        draft = path.with_name(path.name + ".gz.part")
        with open(path, "rb") as f, gzip.open(draft, "wb") as out:
            os.chmod(draft, 0o600)
            shutil.copyfileobj(f, out)
        draft.rename(path.with_name(path.name + ".gz"))
        path.unlink()

    def _clean(self, path: Path) -> None:
        """The oldest go, and those too old."""
        aside = sorted(p for p in path.parent.glob(f"{path.stem}-*{path.suffix}*") if p.name.endswith((path.suffix, path.suffix + ".gz")))
        gone = aside[:-self.backups] if self.backups > 0 else []
        if self.age_s > 0:
            oldest_s = time.time() - self.age_s
            gone += [p for p in aside if p.stat().st_mtime < oldest_s]
        for p in gone:
            p.unlink(missing_ok=True)


def _json(event: Object) -> bytes:
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)


def _legacy(event: Object) -> bytes:
    """One line of text, as servers before 1.9 wrote."""
    user, acting, ref = event.get("user") or {}, event.get("impersonatedUser") or {}, event.get("objectRef") or {}

    def quoted(values: Any) -> str:
        return ",".join(quote(str(v)) for v in values)
    groups = quoted(user["groups"]) if user.get("groups") else quote("<none>")
    as_groups = quoted(acting["groups"]) if acting.get("groups") else quote("<lookup>")
    code = (event.get("responseStatus") or {}).get("code")
    ips = event.get("sourceIPs") or ["<unknown>"]
    return (f'{event["requestReceivedTimestamp"]} AUDIT: id={quote(event["auditID"])} stage={quote(event["stage"])} ip={quote(ips[0])} '
            f'method={quote(event["verb"])} user={quote(user.get("username") or "<none>")} groups={groups} as={quote(acting.get("username") or "<self>")} '
            f'asgroups={as_groups} user-agent={quote(event.get("userAgent") or "")} namespace={quote(ref.get("namespace") or "<none>")} '
            f'uri={quote(event["requestURI"])} response="{code or "<deferred>"}"\n').encode()


_FORMATS: dict[str, Callable[[Object], bytes]] = {"json": _json, "legacy": _legacy}
FORMATS = tuple(_FORMATS)
