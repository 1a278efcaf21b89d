"""OCI: layers, image configs, manifests and indexes as bytes with digests. Pure; nothing is read or written here but memory.

Sources: OCI image-spec 1.1 (manifest.md, config.md, layer.md), Docker image manifest v2 schema 2.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
EPOCH = "1970-01-01T00:00:00Z"                     # every build of the same input gives the same bytes
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes with what a descriptor says of them; `diff_id` is the digest of the uncompressed tar, for layers."""

    data: bytes
    media_type: str
    diff_id: str = ""

    @property
    def digest(self) -> str:
        return digest(self.data)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data), **more}


@dataclass(frozen=True, slots=True)
class Image:
    """One image for one platform: the manifest and all it refers to."""

    manifest: Blob
    blobs: tuple[Blob, ...]
    platform: dict[str, str]


class LayerWriter:
    """Collects files of one layer. Owners are root, times are the epoch, so that equal content has an equal digest."""

    def __init__(self) -> None:
        self._raw = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._raw, mode="w", format=tarfile.PAX_FORMAT)
        self._seen: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._seen

    def entry(self, info: tarfile.TarInfo, body: Any = None) -> None:
        if info.name not in self._seen:
            self._seen.add(info.name)
            self._tar.addfile(info, body)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), mode
        self.entry(info, io.BytesIO(data))

    def dir(self, name: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, uid, gid
        self.entry(info)

    def link(self, name: str, target: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        self.entry(info)

    def blob(self) -> Blob:
        self._tar.close()
        raw = self._raw.getvalue()
        return Blob(gzip.compress(raw, 1, mtime=0), LAYER_GZIP, digest(raw))


def layer(fill: Callable[[LayerWriter], None]) -> Blob:
    writer = LayerWriter()
    fill(writer)
    return writer.blob()


def image(layers: Sequence[Blob], config: dict[str, Any], architecture: str) -> Image:
    """An image of these layers, lowest first, with the run configuration as docker words it (Entrypoint, Cmd, Env …)."""
    platform = {"architecture": architecture, "os": "linux"}
    body = {**platform, "created": EPOCH, "config": config, "rootfs": {"type": "layers", "diff_ids": [b.diff_id for b in layers]},
            "history": [{"created": EPOCH, "created_by": "kubern image build"} for _ in layers]}
    cfg = Blob(orjson.dumps(body), CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": cfg.descriptor(), "layers": [b.descriptor() for b in layers]}
    return Image(Blob(orjson.dumps(manifest), MANIFEST), (cfg, *layers), platform)


def index(images: Sequence[Image]) -> Blob:
    """A multi-platform index of images that differ in platform."""
    body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [i.manifest.descriptor(platform=i.platform) for i in images]}
    return Blob(orjson.dumps(body), INDEX)


def normalize(ref: str) -> str:
    """The full name of an image as containerd has it: "nginx" -> "docker.io/library/nginx:latest" (distribution/reference)."""
    name, _, wanted = ref.partition("@")
    head, slash, rest = name.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost"):
        name = "docker.io/" + (name if slash else "library/" + name)
    elif head == "docker.io" and "/" not in rest:
        name = f"docker.io/library/{rest}"
    if wanted:
        return f"{name}@{wanted}"
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


# ---- the pause program -------------------------------------------------------------------------------------------------------------------

_PAUSE = {
    # mov eax,13 (rt_sigaction); mov edi,17 (SIGCHLD); mov esi,ACT; xor edx,edx; mov r10d,8; syscall; 1: mov eax,34 (pause); syscall; jmp 1b
    "amd64": (62, bytes.fromhex("b80d000000 bf11000000 be00000000 31d2 41ba08000000 0f05 b822000000 0f05 ebf7"), 11),
    # mov x0,#17; adr x1,ACT; mov x2,#0; mov x3,#8; mov x8,#134 (rt_sigaction); svc 0;
    # 1: mov x0,#0; mov x1,#0; mov x2,#0; mov x3,#0; mov x8,#73 (ppoll); svc 0; b 1b
    "arm64": (183, b"".join(struct.pack("<I", w) for w in (
        0xD2800220, 0x10000181, 0xD2800002, 0xD2800103, 0xD28010C8, 0xD4000001,
        0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA)), -1),
}


def pause_program(architecture: str) -> bytes:
    """A static ELF of under 300 bytes that ignores SIGCHLD (so the kernel reaps orphans of a shared pid namespace) and sleeps for ever.

    System V ABI ELF-64; the struct sigaction {SIG_IGN, 0, 0, 0} follows the code.
    """
    machine, program, patch_at = _PAUSE[architecture]
    base, headers = 0x400000, 64 + 56
    code = bytearray(program)
    if architecture == "arm64":
        act = len(code)                                              # adr reaches +-1 MiB: immediate is the distance from the adr
        distance = act - 4
        code[4:8] = struct.pack("<I", 0x10000001 | (distance & 3) << 29 | (distance >> 2) << 5)
    else:
        code[patch_at:patch_at + 4] = struct.pack("<I", base + headers + len(code))
    code += struct.pack("<QQQQ", 1, 0, 0, 0)
    size = headers + len(code)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000) + bytes(code)
