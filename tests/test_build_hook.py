"""The build hook makes the data files of the wheel from published packages, and leaves them alone where they are right."""

import importlib.util
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[1]


def test_products(tmp_path):
    spec = importlib.util.spec_from_file_location("build_hook", ROOT / "build_hook.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    for package in ("kubernetes_validate", "cri_api"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, which only the build needs, is not installed")
    schemas, cri = hook.write(tmp_path)
    assert schemas.read_bytes()[:8] == hook.MAGIC
    files = descriptor_pb2.FileDescriptorSet.FromString(cri.read_bytes()).file
    assert [(f.package, [s.name for s in f.service]) for f in files] == [("runtime.v1", ["RuntimeService", "ImageService"])]
    before = schemas.stat().st_mtime_ns
    hook.write(tmp_path)
    assert schemas.stat().st_mtime_ns == before
    assert schemas.read_bytes() == (ROOT / hook.SCHEMAS).read_bytes(), "the checkout's file is of another build: python build_hook.py"
