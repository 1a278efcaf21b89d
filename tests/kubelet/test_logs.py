"""Log files of the CRI: reading, following, rotation; image names and credentials."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest

from kubern.kubelet import logs
from kubern.kubelet.pull import credentials, go_time, registry_and_path, with_tag

LINES = (b"2026-11-23T03:04:59.1Z stdout F one\n2026-11-23T03:05:00Z stderr F two\n2026-11-23T03:05:00.25Z stdout P thr\n"
         b"2026-11-23T03:05:01Z stdout F ee\n2026-11-23T03:05:02Z stdout F four\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "0.log"
    path.write_bytes(LINES)
    return path


async def text(path: Path, o: logs.Options) -> bytes:
    return b"".join([chunk async for chunk in logs.read(str(path), o)])


@pytest.mark.parametrize(("options", "out"), [
    (logs.Options(), b"one\ntwo\nthree\nfour\n"), (logs.Options(tail=1), b"four\n"), (logs.Options(tail=2), b"three\nfour\n"),
    (logs.Options(tail=0), b""), (logs.Options(tail=99), b"one\ntwo\nthree\nfour\n"), (logs.Options(stream="stderr"), b"two\n"),
    (logs.Options(stream="stdout", tail=2), b"three\nfour\n"), (logs.Options(limit_bytes=6), b"one\ntw"),
    (logs.Options(timestamps=True, tail=1), b"2026-11-23T03:05:02Z four\n"),
    (logs.Options(since_s=logs.moment(b"2026-11-23T03:05:01.5Z")), b"four\n")])
async def test_reading(file: Path, options: logs.Options, out: bytes) -> None:
    assert await text(file, options) == out


async def test_tail_over_block_borders(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"".join(b"2026-11-23T03:04:59Z stdout F %d %s\n" % (i, b"x" * 300) for i in range(1000)))
    got = await text(path, logs.Options(tail=700))
    assert got.startswith(b"300 ") and got.count(b"\n") == 700


async def test_following_over_a_rotation(file: Path) -> None:
    alive = True
    got: list[bytes] = []

    async def follow() -> None:
        async for chunk in logs.read(str(file), logs.Options(follow=True, tail=0), lambda: alive):
            got.append(chunk)

    async def until(text: bytes) -> None:
        async with asyncio.timeout(10):
            while b"".join(got) != text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.3)
    with file.open("ab") as f:
        f.write(b"2026-11-23T03:06:00Z stdout F five\n")
    await until(b"five\n")
    reopened: list[str] = []

    async def reopen(id_: str) -> None:
        reopened.append(id_)
        file.write_bytes(b"2026-11-23T03:07:00Z stdout F six\n")  # noqa: ASYNC240

    await logs.rotate([("c1", str(file))], reopen, max_bytes=10)
    await until(b"five\nsix\n")
    alive = False
    await asyncio.wait_for(task, 3)
    assert b"".join(got) == b"five\nsix\n" and reopened == ["c1"]
    assert len(list(file.parent.iterdir())) == 2


@pytest.mark.parametrize(("stamp", "seconds"), [(b"1970-01-01T00:00:01Z", 1.0), (b"1970-01-01T00:00:01.5Z", 1.5), (b"1970-01-01T01:00:01+01:00", 1.0),
                                                (b"nonsense", 0.0)])
def test_moments(stamp: bytes, seconds: float) -> None:
    assert logs.moment(stamp) == seconds


@pytest.mark.parametrize(("name", "full"), [("nginx", "nginx:latest"), ("r.io:5000/a/b", "r.io:5000/a/b:latest"), ("a:1", "a:1"),
                                            ("a@sha256:" + "0" * 64, "a@sha256:" + "0" * 64)])
def test_default_tag(name: str, full: str) -> None:
    assert with_tag(name) == full


@pytest.mark.parametrize("name", ["", "UPPER", "a b", ":tag", "a:"])
def test_bad_image_names(name: str) -> None:
    with pytest.raises(ValueError, match="couldn't parse image name"):
        with_tag(name)


def test_credentials_by_registry_and_path() -> None:
    assert registry_and_path("nginx:1") == ("docker.io", "library/nginx")
    assert registry_and_path("r.io/a/b@sha256:0") == ("r.io", "a/b")
    auths = {"https://r.io/v1/": {"auth": base64.b64encode(b"u:p").decode()}, "r.io/a": {"username": "x", "password": "y"}, "?.io": {"username": "z"},
             "other": {"username": "no"}}
    secret = {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": base64.b64encode(json.dumps({"auths": auths}).encode()).decode()}}
    assert credentials("r.io/a/b", [secret]) == [{"username": "x", "password": "y"}, {"username": "u", "password": "p"}, {"username": "z"}]
    assert credentials("docker.io/nginx", [secret, {"type": "Opaque"}]) == []


@pytest.mark.parametrize(("seconds", "shown"), [(0.0421, "42ms"), (1.2, "1.2s"), (61.5, "1m1.5s"), (2.0, "2s")])
def test_durations(seconds: float, shown: str) -> None:
    assert go_time(seconds) == shown
