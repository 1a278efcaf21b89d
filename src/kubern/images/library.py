"""Library: the images a cluster can hand to its nodes, kept as an OCI image layout on disk (image-spec 1.1, image-layout.md).

A directory with blobs/sha256/…, oci-layout and index.json; index.json's manifests carry the full image name. Blobs are
written once and never change, index.json is replaced atomically: readers need no lock. Reads OCI layouts and `docker save`
archives (tar, also gzipped).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from kubern.images import oci

NAME = "io.containerd.image.name"
RECIPE = "io.kubern.recipe"
ARCHIVE_BYTES_MAX = 16 << 30
_COPY_BYTES = 1 << 20


class BadArchive(ValueError):
    """The file is no image archive, or a damaged one; the message says what is wrong."""


def cache_dir() -> Path:
    """Where built images and downloaded packages are kept between clusters."""
    given = os.environ.get("KUBERN_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kubern"


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of `kubern image list`."""

    name: str
    digest: str
    size: int                  # bytes a node pulls: config and layers
    architectures: tuple[str, ...]


class Library:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._index: dict[str, Any] = {}
        self._stamp: tuple[int, int] = (0, 0)

    # ---- reading
    def manifests(self) -> list[dict[str, Any]]:
        """The descriptors of index.json, read again when the file changed."""
        try:
            st = (self.path / "index.json").stat()
        except FileNotFoundError:
            return []
        stamp = st.st_mtime_ns, st.st_ino
        if stamp != self._stamp:
            self._index = orjson.loads((self.path / "index.json").read_bytes())
            self._stamp = stamp
        return list(self._index.get("manifests") or ())

    def find(self, ref: str) -> dict[str, Any] | None:
        """The descriptor of an image by its full name (oci.normalize)."""
        for m in self.manifests():
            if (m.get("annotations") or {}).get(NAME) == ref:
                return m
        return None

    def blob_path(self, digest: str) -> Path | None:
        """Where a blob lies, None if the library has none of this digest (or it is no digest at all)."""
        kind, _, value = digest.partition(":")
        if kind != "sha256" or len(value) != 64 or not value.isalnum():
            return None
        path = self.path / "blobs/sha256" / value
        return path if path.exists() else None

    def blob(self, digest: str) -> bytes:
        path = self.blob_path(digest)
        if path is None:
            raise KeyError(digest)
        return path.read_bytes()

    def images(self) -> list[Listed]:
        out = []
        for m in self.manifests():
            name = (m.get("annotations") or {}).get(NAME)
            if not name:
                continue
            doc = orjson.loads(self.blob(m["digest"]))
            arches: list[str] = []
            size = 0
            parts = doc.get("manifests")
            if parts is None:
                size = _pull_size(doc)
                arches = [orjson.loads(self.blob(doc["config"]["digest"])).get("architecture", "")]
            else:
                for p in parts:
                    if self.blob_path(p["digest"]) and (p.get("platform") or {}).get("os") == "linux":
                        arches.append(p["platform"].get("architecture", ""))
                        size = max(size, _pull_size(orjson.loads(self.blob(p["digest"]))))
            out.append(Listed(name, m["digest"], size, tuple(arches)))
        return sorted(out, key=lambda x: x.name)

    # ---- writing
    def put(self, data: bytes) -> str:
        digest = oci.digest(data)
        path = self.path / "blobs/sha256" / digest[7:]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            tmp = path.with_name(f".{path.name}.{os.getpid()}")
            tmp.write_bytes(data)
            tmp.rename(path)
        return digest

    def put_stream(self, source: IO[bytes]) -> str:
        """A blob of any size, in constant memory."""
        folder = self.path / "blobs/sha256"
        folder.mkdir(parents=True, exist_ok=True)
        tmp = folder / f".incoming.{os.getpid()}"
        h = hashlib.sha256()
        with tmp.open("wb") as f:
            while chunk := source.read(_COPY_BYTES):
                h.update(chunk)
                f.write(chunk)
        tmp.rename(folder / h.hexdigest())
        return "sha256:" + h.hexdigest()

    def add(self, name: str, images: list[oci.Image], recipe: str = "") -> dict[str, Any]:
        """Keep an image under its full name, several platforms as an index. Replaces what had the name."""
        for i in images:
            for b in (i.manifest, *i.blobs):
                self.put(b.data)
        top = images[0].manifest if len(images) == 1 else oci.index(images)
        self.put(top.data)
        notes = {NAME: name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
        if recipe:
            notes[RECIPE] = recipe
        return self._name({**top.descriptor(), "annotations": notes})

    def _name(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        name = descriptor["annotations"][NAME]
        with self._locked():
            self._stamp = (0, 0)
            kept = [m for m in self.manifests() if (m.get("annotations") or {}).get(NAME) != name]
            self._write([*kept, descriptor])
        return descriptor

    def remove(self, name: str) -> bool:
        """Forget a name; its blobs go when no name needs them."""
        with self._locked():
            self._stamp = (0, 0)
            before = self.manifests()
            kept = [m for m in before if (m.get("annotations") or {}).get(NAME) != name]
            self._write(kept)
            used = set().union(*(_reach(self, m["digest"]) for m in kept)) if kept else set()
            for path in (self.path / "blobs/sha256").glob("*"):
                if f"sha256:{path.name}" not in used:
                    path.unlink()
        return len(kept) < len(before)

    def take(self, other: Library, name: str) -> None:
        """Have an image of another library too; blobs are hard-linked where the file system allows."""
        m = other.find(name)
        if m is None:
            raise KeyError(name)
        for digest in _reach(other, m["digest"]):
            source, target = other.blob_path(digest), self.path / "blobs/sha256" / digest[7:]
            if source is None or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        self._name(m)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    def _write(self, manifests: list[dict[str, Any]]) -> None:
        layout = self.path / "oci-layout"
        if not layout.exists():
            layout.write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
        tmp = self.path / ".index.json"
        tmp.write_bytes(orjson.dumps({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": manifests}))
        tmp.rename(self.path / "index.json")

    # ---- archives
    def import_archive(self, file: Path | str) -> list[str]:
        """Take every named image of an OCI archive or of `docker save`; returns their full names. Raises BadArchive."""
        try:
            with tarfile.open(file) as tf:
                names = {m.name.removeprefix("./"): m for m in tf if m.isfile() or m.islnk() or m.issym()}
                if "index.json" in names and "oci-layout" in names:
                    return self._import_oci(tf, names)
                if "manifest.json" in names:
                    return self._import_docker(tf, names)
        except (tarfile.TarError, EOFError, OSError) as e:
            raise BadArchive(f"{file} cannot be read as a tar archive: {str(e).splitlines()[0]}") from None
        except (KeyError, orjson.JSONDecodeError, TypeError) as e:
            raise BadArchive(f"{file} is a damaged image archive: {e}") from None
        raise BadArchive(f"{file} is no image archive: it has neither index.json with oci-layout nor manifest.json")

    def _import_oci(self, tf: tarfile.TarFile, names: dict[str, tarfile.TarInfo]) -> list[str]:
        for name, info in names.items():
            if name.startswith("blobs/sha256/"):
                got = self.put_stream(_open(tf, info))
                if got[7:] != name.rpartition("/")[2]:
                    raise BadArchive(f"{name} does not have the content its name says")
        done = []
        for m in orjson.loads(_open(tf, names["index.json"]).read())["manifests"]:
            notes = m.get("annotations") or {}
            given = notes.get(NAME) or notes.get("org.opencontainers.image.ref.name")
            if given and m.get("mediaType") in (oci.MANIFEST, oci.INDEX, oci.DOCKER_MANIFEST, oci.DOCKER_LIST):
                full = oci.normalize(given)
                self._name({"mediaType": m["mediaType"], "digest": m["digest"], "size": m["size"], "annotations": {NAME: full}})
                done.append(full)
        if not done:
            raise BadArchive("no image in the archive has a name (annotation org.opencontainers.image.ref.name)")
        return done

    def _import_docker(self, tf: tarfile.TarFile, names: dict[str, tarfile.TarInfo]) -> list[str]:
        done = []
        for entry in orjson.loads(_open(tf, names["manifest.json"]).read()):
            config = _open(tf, names[entry["Config"]]).read()
            layers = []
            for path in entry["Layers"]:
                info = names[path]
                if info.issym():                                     # old docker save links equal layers
                    info = names[os.path.normpath(os.path.join(os.path.dirname(path), info.linkname))]
                digest = self.put_stream(_open(tf, info))
                blob = self.path / "blobs/sha256" / digest[7:]
                with blob.open("rb") as f:
                    gzipped = f.read(2) == b"\x1f\x8b"
                layers.append({"mediaType": oci.LAYER_GZIP if gzipped else oci.LAYER, "digest": digest, "size": blob.stat().st_size})
            manifest = oci.Blob(orjson.dumps({"schemaVersion": 2, "mediaType": oci.MANIFEST, "layers": layers, "config": {
                "mediaType": oci.CONFIG, "digest": self.put(config), "size": len(config)}}), oci.MANIFEST)
            self.put(manifest.data)
            for tag in entry.get("RepoTags") or ():
                full = oci.normalize(tag)
                self._name({**manifest.descriptor(), "annotations": {NAME: full}})
                done.append(full)
        if not done:
            raise BadArchive("no image in the archive has a name (RepoTags)")
        return done


def _open(tf: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    f = tf.extractfile(info)
    if f is None or info.size > ARCHIVE_BYTES_MAX:
        raise BadArchive(f"{info.name} cannot be read")
    return f


def _pull_size(manifest: dict[str, Any]) -> int:
    return int(manifest["config"]["size"]) + sum(int(x["size"]) for x in manifest["layers"])


def _reach(library: Library, digest: str) -> set[str]:
    """All digests an index or manifest needs, itself included; platforms that are not there are left out."""
    out = {digest}
    path = library.blob_path(digest)
    if path is None:
        return out
    doc = orjson.loads(path.read_bytes())
    for m in doc.get("manifests") or ():
        out |= _reach(library, m["digest"])
    if "config" in doc:
        out |= {doc["config"]["digest"], *(x["digest"] for x in doc["layers"])}
    return out
