"""Images for containers: names, pull policies, back-off, credentials. Not where images come from: that is the runtime's configuration.

Upstream: pkg/kubelet/images/image_manager.go, pkg/credentialprovider.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import fnmatch
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from kubern.kubelet.backoff import Backoff
from kubern.kubelet.measure import Measures
from kubern.kubelet.runtime import Config, Image, Runtime, RuntimeFailure
from kubern.model.invalid import quote
from kubern.model.object import Object

log = logging.getLogger(__name__)

PARALLEL_PULLS = 5
_NAME = re.compile(r"^(?:(?P<host>[a-zA-Z0-9.-]+(?::[0-9]+)?|\[[0-9a-fA-F:]+\](?::[0-9]+)?)/)?"
                   r"(?P<path>[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*)*)"
                   r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?$")

Tell = Callable[[str, str, str], None]               # (type, reason, message) about the container


class PullFailure(Exception):
    """No image. `reason` and `message` are those of the waiting state."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def with_tag(name: str) -> str:
    """The name with :latest where it has neither tag nor digest. Raises ValueError."""
    m = _NAME.match(name)
    if m is None:
        why = "invalid reference format"
        if _NAME.match(name.lower()):
            path = name.partition("@")[0].rpartition(":")[0] or name
            why = f"repository name ({path if '/' in path else f'library/{path}'}) must be lowercase"
        if why != "invalid reference format":
            why = f"invalid reference format: {why}"
        raise ValueError(f"couldn't parse image name {quote(name)}: {why}")
    return name if m.group("tag") or m.group("digest") else name + ":latest"


def registry_and_path(name: str) -> tuple[str, str]:
    """("docker.io", "library/nginx") of "nginx"."""
    first, _, rest = name.partition("/")
    if rest and ("." in first or ":" in first or first == "localhost"):
        host, path = first, rest
    else:
        host, path = "docker.io", name if rest else f"library/{name}"
    path = path.partition("@")[0]
    head, _, last = path.rpartition("/")
    return host, (head + "/" if head else "") + last.partition(":")[0]


def credentials(name: str, secrets: Iterable[Object]) -> list[dict[str, str]]:
    """AuthConfigs of pull secrets that fit the image, the most specific first."""
    host, path = registry_and_path(name)
    found: list[tuple[int, dict[str, str]]] = []
    for s in secrets:
        data = s.get("data") or {}
        try:
            if s.get("type") == "kubernetes.io/dockerconfigjson" and ".dockerconfigjson" in data:
                auths = orjson.loads(base64.b64decode(data[".dockerconfigjson"])).get("auths") or {}
            elif s.get("type") == "kubernetes.io/dockercfg" and ".dockercfg" in data:
                auths = orjson.loads(base64.b64decode(data[".dockercfg"]))
            else:
                continue
        except (ValueError, binascii.Error, AttributeError):
            continue
        for key, auth in auths.items():
            where = re.sub(r"^https?://", "", key).rstrip("/")
            where = re.sub(r"/v[12]$", "", where)
            there, _, prefix = where.partition("/")
            if there in ("index.docker.io", "registry-1.docker.io"):
                there = "docker.io"
            if fnmatch.fnmatchcase(host, there) and (not prefix or path == prefix or path.startswith(prefix + "/")) and isinstance(auth, dict):
                found.append((len(where), _auth_config(auth)))
    found.sort(key=lambda f: -f[0])
    return [f[1] for f in found]


def _auth_config(auth: Mapping[str, Any]) -> dict[str, str]:
    user, password = auth.get("username") or "", auth.get("password") or ""
    if auth.get("auth") and not user:
        try:
            user, _, password = base64.b64decode(auth["auth"]).decode().partition(":")
        except (ValueError, binascii.Error):
            pass
    out = {"username": user, "password": password, "identity_token": auth.get("identitytoken") or "", "registry_token": auth.get("registrytoken") or ""}
    return {k: v for k, v in out.items() if v}


def go_time(seconds: float) -> str:
    """A duration in whole milliseconds as Go prints it: 742ms, 1.204s."""
    ms = int(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    rest = ms - ms // 60_000 * 60_000
    return f"{ms // 60_000}m" + f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"


SIZES = tuple((int(n * unit), f"{n:g}{name}") for n, unit, name in (
    (10, 1 << 20, "MB"), (100, 1 << 20, "MB"), (500, 1 << 20, "MB"), (1, 1 << 30, "GB"), (5, 1 << 30, "GB"), (10, 1 << 30, "GB"), (20, 1 << 30, "GB"),
    (30, 1 << 30, "GB"), (40, 1 << 30, "GB"), (60, 1 << 30, "GB"), (100, 1 << 30, "GB")))


def size_class(size: int) -> str:
    """10MB-100MB, as metrics tell an image's size."""
    if not size:
        return "N/A"
    low = "0"
    for limit, name in SIZES:
        if size <= limit:
            return f"{low}-{name}"
        low = name
    return f"GT{low}"


class Puller:
    def __init__(self, runtime: Runtime, clock: Callable[[], float], parallel: int = PARALLEL_PULLS, measures: Measures | None = None) -> None:
        self.runtime, self.clock, self.measures = runtime, clock, measures or Measures()
        self.pulled_s: dict[str, float] = {}                            # pod uid -> how long it waited for images
        self.backoff = Backoff()
        self._why: dict[str, str] = {}
        self._slots = asyncio.Semaphore(parallel)
        self._under_way: dict[str, asyncio.Lock] = {}

    async def ensure(self, pod: Object, name: str, policy: str, secrets: list[Object], sandbox: Config | None, tell: Tell) -> Image:
        """The image, pulled if the policy asks for it. Raises PullFailure."""
        try:
            ref = with_tag(name)
        except ValueError as e:
            text = f"Failed to apply default image tag {quote(name)}: {e}"
            tell("Warning", "InspectFailed", text)
            raise PullFailure("InvalidImageName", text) from None
        try:
            have = await self.runtime.image(ref)
        except RuntimeFailure as e:
            text = f"Failed to inspect image {quote(name)}: {e}"
            tell("Warning", "InspectFailed", text)
            raise PullFailure("ImageInspectError", text) from None
        policy = policy or ("Always" if ref.endswith(":latest") and ":latest" not in name else "IfNotPresent")
        if have is None and policy == "Never":
            text = f"Container image {quote(name)} is not present with pull policy of Never"
            tell("Warning", "ErrImageNeverPull", text)
            raise PullFailure("ErrImageNeverPull", text)
        if have is not None and policy != "Always":
            tell("Normal", "Pulled", f"Container image {quote(name)} already present on machine and can be accessed by the pod")
            return have
        return await self._pull(pod, name, ref, secrets, sandbox, tell)

    async def _pull(self, pod: Object, name: str, ref: str, secrets: list[Object], sandbox: Config | None, tell: Tell) -> Image:
        key = f"{pod['metadata']['uid']}_{name}"
        if self.backoff.waiting_since_update(key, self.clock()):
            text = f"Back-off pulling image {quote(name)}"
            tell("Normal", "BackOff", text)
            why = self._why.get(key)
            raise PullFailure("ImagePullBackOff", f"{text}: {why}" if why else text)
        self._why.pop(key, None)
        tell("Normal", "Pulling", f"Pulling image {quote(name)}")
        began = time.monotonic()
        auths: list[dict[str, str] | None] = [*credentials(name, secrets)] or [None]
        lock = self._under_way.setdefault(ref, asyncio.Lock())
        failure: RuntimeFailure | None = None
        async with lock, self._slots:
            pulling = time.monotonic()
            for auth in auths:
                try:
                    id_ = await self.runtime.pull(ref, auth, sandbox)
                    failure = None
                    break
                except RuntimeFailure as e:
                    failure = e
        if not getattr(lock, "_waiters", None):
            self._under_way.pop(ref, None)
        if failure is not None:
            words = failure.message if failure.code == "UNKNOWN" else str(failure)       # an unknown code says nothing
            tell("Warning", "Failed", f"Failed to pull image {quote(name)}: {words}")
            self.backoff.next(key, self.clock(), self.clock())
            self._why[key] = f"ErrImagePull: {words}"
            raise PullFailure("ErrImagePull", words)
        now = time.monotonic()
        image = await self.runtime.image(ref) or await self.runtime.image(id_) or Image(id_)
        self.pulled_s[pod["metadata"]["uid"]] = self.pulled_s.get(pod["metadata"]["uid"], 0.0) + now - began
        self.measures.pull.observe(now - pulling, size_class(image.size))
        tell("Normal", "Pulled", f"Successfully pulled image {quote(name)} in {go_time(now - pulling)} ({go_time(now - began)} including waiting). "
                                 f"Image size: {image.size} bytes.")
        return image

    def forget(self, uid: str) -> None:
        self.pulled_s.pop(uid, None)
        self.backoff.forget(uid)
        for key in [k for k in self._why if k.startswith(uid)]:
            del self._why[key]

    def next_try_s(self, uid: str, name: str) -> float:
        """Seconds until the back-off of a pod's image is over."""
        entry = self.backoff.entries.get(f"{uid}_{name}")
        return min(entry[0], max(0.0, entry[1] + entry[0] - self.clock())) if entry else 0.0
