import io
import subprocess
import tarfile
from pathlib import Path

import orjson
import pytest

from kubern.images import oci
from kubern.images.build import architecture, cook, ensure, merged
from kubern.images.library import NAME, BadArchive, Library
from kubern.images.recipes import DEMO, Layer, Recipe

PAUSE = DEMO[0]


def small(text: bytes = b"hi", arch: str = "amd64") -> oci.Image:
    return oci.image([oci.layer(lambda w: w.file("a", text))], {"Cmd": ["/a"]}, arch)


def tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tf:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tf.addfile(info, io.BytesIO(data))
    return raw.getvalue()


@pytest.mark.parametrize(("given", "full"), [
    ("nginx", "docker.io/library/nginx:latest"), ("nginx:1", "docker.io/library/nginx:1"), ("me/app", "docker.io/me/app:latest"),
    ("docker.io/nginx", "docker.io/library/nginx:latest"), ("quay.io/a/b:c", "quay.io/a/b:c"), ("localhost/x", "localhost/x:latest"),
    ("host:5000/x", "host:5000/x:latest"), ("nginx@sha256:ab", "docker.io/library/nginx@sha256:ab")])
def test_names_are_completed_as_containerd_does(given: str, full: str) -> None:
    assert oci.normalize(given) == full


def test_equal_content_has_equal_digests() -> None:
    assert small().manifest.digest == small().manifest.digest != small(b"ho").manifest.digest


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_pause_is_a_small_static_elf(arch: str) -> None:
    elf = oci.pause_program(arch)
    assert elf[:4] == b"\x7fELF" and len(elf) < 300
    assert int.from_bytes(elf[18:20], "little") == {"amd64": 62, "arm64": 183}[arch]


@pytest.mark.skipif(architecture() != "amd64", reason="runs the amd64 program")
def test_pause_runs_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pause"
    path.write_bytes(oci.pause_program("amd64"))
    path.chmod(0o755)
    p = subprocess.Popen([str(path)])
    with pytest.raises(subprocess.TimeoutExpired):
        p.wait(0.2)
    p.kill()
    assert p.wait() == -9


def test_add_find_list_remove(tmp_path: Path) -> None:
    lib = Library(tmp_path)
    lib.add("docker.io/library/a:1", [small()])
    lib.add("docker.io/library/b:1", [small(b"x", "amd64"), small(b"y", "arm64")])
    assert [(x.name, x.architectures) for x in lib.images()] == [("docker.io/library/a:1", ("amd64",)), ("docker.io/library/b:1", ("amd64", "arm64"))]
    assert Library(tmp_path).find("docker.io/library/a:1")
    assert lib.remove("docker.io/library/b:1") and not lib.remove("docker.io/library/b:1")
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 3


def test_take_shares_blobs(tmp_path: Path) -> None:
    a, b = Library(tmp_path / "a"), Library(tmp_path / "b")
    d = a.add("x.io/a:1", [small()])
    b.take(a, "x.io/a:1")
    assert b.find("x.io/a:1") == d
    assert b.blob(d["digest"]) == small().manifest.data


def test_digests_that_are_none_lead_nowhere(tmp_path: Path) -> None:
    lib = Library(tmp_path)
    for bad in ("", "sha256:../../etc/passwd", "sha256:" + "a" * 63, "md5:" + "a" * 64):
        assert lib.blob_path(bad) is None


def test_import_of_an_oci_archive(tmp_path: Path) -> None:
    i = small()
    index = {"schemaVersion": 2, "manifests": [{**i.manifest.descriptor(), "annotations": {"org.opencontainers.image.ref.name": "me/app:2"}}]}
    files = {f"blobs/sha256/{b.digest[7:]}": b.data for b in (i.manifest, *i.blobs)}
    (tmp_path / "x.tar").write_bytes(tar({"oci-layout": b"{}", "index.json": orjson.dumps(index), **files}))
    lib = Library(tmp_path / "lib")
    assert lib.import_archive(tmp_path / "x.tar") == ["docker.io/me/app:2"]
    assert lib.images()[0].digest == i.manifest.digest


def test_import_of_docker_save(tmp_path: Path) -> None:
    i = small()
    layer = i.blobs[1]
    config = i.blobs[0].data
    manifest = [{"Config": "c.json", "RepoTags": ["app:1", "app:2"], "Layers": ["l/layer.tar"]}]
    (tmp_path / "x.tar").write_bytes(tar({"c.json": config, "l/layer.tar": layer.data, "manifest.json": orjson.dumps(manifest)}))
    lib = Library(tmp_path / "lib")
    assert lib.import_archive(tmp_path / "x.tar") == ["docker.io/library/app:1", "docker.io/library/app:2"]
    m = orjson.loads(lib.blob(lib.images()[0].digest))
    assert m["layers"][0]["mediaType"] == oci.LAYER_GZIP and m["config"]["digest"] == oci.digest(config)


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, tar({"a": b"b"}), tar({"manifest.json": b"[]"}), tar({"manifest.json": b"{"}),
                                  tar({"oci-layout": b"{}", "index.json": b'{"manifests":[]}'}),
                                  tar({"oci-layout": b"{}", "index.json": b"{}", "blobs/sha256/" + "a" * 64: b"lies"})])
def test_bad_archives_are_refused_with_a_reason(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(BadArchive, match=r".+"):
        Library(tmp_path / "lib").import_archive(tmp_path / "x.tar")


def test_pause_is_built_once_and_taken_from_the_cache(tmp_path: Path) -> None:
    said: list[str] = []
    cache = Library(tmp_path / "cache")
    for n in ("a", "b"):
        ensure(Library(tmp_path / n), (PAUSE,), said.append, cache)
    assert said == [f"building {PAUSE.name}"]
    assert ensure(Library(tmp_path / "a"), (PAUSE,), said.append, cache) == []
    changed = Recipe(PAUSE.name, PAUSE.layers, {"Entrypoint": ["/pause"]}, PAUSE.architectures)
    assert ensure(Library(tmp_path / "a"), (changed,), said.append, cache) == [PAUSE.name]


def test_a_layer_of_our_own_files() -> None:
    blob = cook(Layer("x", dirs=(("data", 0o777),), files=(("etc/x", b"y"),), links=(("l", "etc/x"),)), {}, "amd64")
    with tarfile.open(fileobj=io.BytesIO(blob.data)) as tf:
        assert [(m.name, m.mode) for m in tf if m.isdir()] == [("data", 0o777)]
        assert tf.getmember("l").linkname == "etc/x"
    assert merged("./lib/x86_64/libc.so") == "usr/lib/x86_64/libc.so" and merged("./usr/bin/a") == "usr/bin/a"


def test_every_demo_image_has_a_full_name() -> None:
    assert all(oci.normalize(r.name) == r.name for r in DEMO) and NAME
