"""Build: recipes to images. Needs apt-get (Debian and its kin) for packages; pause needs nothing, busybox a static busybox.

What was built is kept in the cache library (library.cache_dir()), so a second cluster has its images in milliseconds.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from kubern.images import oci
from kubern.images.library import RECIPE, Library, cache_dir
from kubern.images.recipes import DEMO, GROUPS, USERS, Layer, Recipe

Progress = Callable[[str], None]
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SKIP = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/bug/", "usr/share/info/",
         "usr/lib/systemd/", "usr/share/bash-completion/", "usr/share/perl5/", "etc/init.d/", "etc/logrotate.d/")
_MERGED = ("bin", "sbin", "lib", "lib64")
_BASE = ("root", "tmp", "etc", "proc", "sys", "dev", "run", "var", "var/log", "var/lib", "usr", "usr/bin", "usr/sbin", "usr/lib",
         "usr/lib64", "home", "mnt")
APT_S = 300


class CannotBuild(RuntimeError):
    """Something a recipe needs is not to be had here; the message says what to do."""


def architecture() -> str:
    """This machine's, as OCI names it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def ensure(library: Library, recipes: Iterable[Recipe] = DEMO, progress: Progress = lambda text: None,
           cache: Library | None = None) -> list[str]:
    """Have every recipe's image in the library, building what is missing or outdated; returns the names. Raises CannotBuild."""
    cache = cache or Library(cache_dir() / "images")
    names = []
    layers: dict[str, oci.Blob] = {}
    wanted = [r for r in recipes if not _has(library, r)]
    to_build = [r for r in wanted if not _has(cache, r)]
    if to_build:
        needed = {x for r in to_build for x in r.layers if not (x.special == "busybox" and _own_busybox())}
        debs = download(sorted({p for x in needed for p in x.packages}), progress)
        for r in to_build:
            progress(f"building {r.name}")
            images = []
            for arch in r.architectures or (architecture(),):
                parts = []
                for x in r.layers:
                    k = f"{x.name}/{arch}"
                    if k not in layers:
                        layers[k] = cook(x, debs, arch)
                    parts.append(layers[k])
                images.append(oci.image(parts, r.config, arch))
            cache.add(r.name, images, r.key())
    for r in wanted:
        if cache.path != library.path:
            library.take(cache, r.name)
        names.append(r.name)
    return names


def _has(library: Library, recipe: Recipe) -> bool:
    m = library.find(recipe.name)
    return m is not None and (m.get("annotations") or {}).get(RECIPE) == recipe.key()


def _own_busybox() -> str:
    """A static busybox of this machine, "" if there is none."""
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path):
            with open(path, "rb") as f:
                if b"/ld-linux" not in f.read(4096):
                    return path
    return ""


def download(packages: list[str], progress: Progress) -> dict[str, Path]:
    """Package name -> .deb file, from the cache or by `apt-get download`."""
    if not packages:
        return {}
    folder = cache_dir() / "debs"
    folder.mkdir(parents=True, exist_ok=True)
    have = {f.name.split("_")[0]: f for f in sorted(folder.glob("*.deb"))}
    missing = [p for p in packages if p not in have]
    if missing:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise CannotBuild("building images needs apt-get and dpkg-deb (Debian or Ubuntu); "
                              "import an archive with `kubern image import` instead")
        progress(f"downloading {len(missing)} packages")
        done = _apt(["download", "-q", *missing], folder)
        if done.returncode and os.geteuid() == 0:                    # a fresh machine has no package lists yet
            progress("updating package lists")
            _apt(["update", "-q"], folder)
            done = _apt(["download", "-q", *missing], folder)
        if done.returncode:
            raise CannotBuild(f"apt-get download failed: {done.stderr.decode(errors='replace').strip()[-400:]}")
        have = {f.name.split("_")[0]: f for f in sorted(folder.glob("*.deb"))}
    return {p: have[p] for p in packages}


def _apt(args: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["apt-get", *args], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=APT_S, check=False)


def cook(x: Layer, debs: dict[str, Path], arch: str) -> oci.Blob:
    """One layer of a recipe."""
    if x.special == "pause":
        return oci.layer(lambda w: w.file("pause", oci.pause_program(arch), 0o755))
    if x.special == "busybox":
        return oci.layer(lambda w: _busybox(w, debs))

    def fill(w: oci.LayerWriter) -> None:
        for name, mode in x.dirs:
            w.dir(name, mode)
        for name, data in x.files:
            w.file(name, data)
        for name, target in x.links:
            w.link(name, target)
        for p in x.packages:
            unpack(w, debs[p])
    return oci.layer(fill)


def unpack(w: oci.LayerWriter, deb: Path) -> None:
    """The files of a package into a layer, /bin, /sbin and /lib merged into /usr; documentation and init files are left out."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tf:
        for info in tf:
            name = merged(info.name)
            if not name or name in _BASE or (name + "/").startswith(_SKIP):
                continue
            info.name = name
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            if info.islnk():
                info.linkname = merged(info.linkname)
            w.entry(info, tf.extractfile(info) if info.isreg() else None)


def merged(name: str) -> str:
    """A package's path in a usr-merged tree, without leading "./"."""
    name = name.removeprefix("./").strip("/")
    return "usr/" + name if name.split("/")[0] in _MERGED else name


def _busybox(w: oci.LayerWriter, debs: dict[str, Path]) -> None:
    for d in _BASE:
        w.dir(d, 0o1777 if d == "tmp" else 0o755)
    for d in _MERGED:
        w.link(d, "usr/" + d)
    w.file("etc/passwd", USERS)
    w.file("etc/group", GROUPS)
    own = _own_busybox()
    if own:
        program = Path(own).read_bytes()
    else:
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(debs["busybox-static"])], stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as tf:
            member = next(m for m in tf if merged(m.name) == "usr/bin/busybox")
            file = tf.extractfile(member)
            assert file is not None
            program = file.read()
    w.file("usr/bin/busybox", program, 0o755)
    for applet in _applets(program):
        if applet != "busybox":
            w.link("usr/bin/" + applet, "busybox")


def _applets(program: bytes) -> list[str]:
    """The names busybox answers to, asked of the program itself."""
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "busybox"
        path.write_bytes(program)
        path.chmod(0o755)
        return subprocess.run([str(path), "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
