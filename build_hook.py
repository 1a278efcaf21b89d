"""Build hook: turns two published packages into the compact data files of the wheel. Nothing it writes is committed.

In:  kubernetes-validate (Kubernetes' definitions of one release, JSON schema) -> src/kubern/model/schemas.bin
     container-runtime-interface-api (the CRI v1 protocol)                     -> src/kubern/kubelet/cri.bin
Runs under hatchling for wheels and editable installs, and by hand: `python build_hook.py`.

schemas.bin: a 16-byte header ("KUBERN1\\n", two big-endian uint32 lengths), then two zlib streams. Each holds lines of
`name<TAB>JSON`, sorted by name: first the definitions without descriptions (under the empty name an index
apiVersion/kind -> definition), then the descriptions as
{"": of the definition, "property": …}. Readers: model/schema.py, api/openapi.py.
cri.bin: a serialized google.protobuf.FileDescriptorSet with one file, runtime.v1. Reader: kubelet/cri.py.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import struct
import zlib
from pathlib import Path
from typing import Any

RELEASE = "v1.36.0"
MAGIC = b"KUBERN1\n"
ROOT = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
SCHEMAS = Path("src/kubern/model/schemas.bin")
CRI = Path("src/kubern/kubelet/cri.bin")


def package_dir(package: str) -> Path:
    """Where a package is installed, found without importing it (its imports are heavy or need more than we do)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{package} is not installed: the build needs it")
    return Path(next(iter(spec.submodule_search_locations)))


def _shape(node: dict[str, Any]) -> dict[str, Any]:
    """A schema node without what the wheel does not need: descriptions (kept apart), titles, the null in optional types."""
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("description", "title"):
            continue
        if key == "type" and isinstance(value, list):
            value = next(t for t in value if t != "null")
        elif key == "$ref":
            value = value.rsplit("/", 1)[-1]
        elif key == "properties":
            value = {name: _shape(p) for name, p in sorted(value.items())}
            for name in ("apiVersion", "kind"):    # the package's own addition: these pinned to what the kind is
                value.get(name, {}).pop("enum", None)
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            value = _shape(value)
        elif key == "oneOf":
            value = [_shape(v) for v in value]
        elif key == "enum":
            value = [v for v in value if v is not None]
        out[key] = value
    return out


def _descriptions(node: dict[str, Any]) -> dict[str, str]:
    return {name: p["description"] for name, p in (node.get("properties") or {}).items() if p.get("description")}


def _lines(table: dict[str, Any]) -> bytes:
    text = "".join(f"{name}\t{json.dumps(value, separators=(',', ':'), ensure_ascii=False)}\n" for name, value in sorted(table.items()))
    return zlib.compress(text.encode(), 9)


def schemas(source: Path) -> bytes:
    """The bytes of schemas.bin from a `_definitions.json`."""
    definitions: dict[str, Any] = json.loads(source.read_text())["$defs"]
    shapes = {name: _shape(node) for name, node in definitions.items()}
    texts = {name: {"": node.get("description", ""), **_descriptions(node)} for name, node in definitions.items()}
    shapes[""] = {
        f"{gvk['group']}/{gvk['version']}/{gvk['kind']}".lstrip("/"): name
        for name, node in sorted(definitions.items()) for gvk in node.get("x-kubernetes-group-version-kind", ())
    }
    a, b = _lines(shapes), _lines(texts)
    return MAGIC + struct.pack(">II", len(a), len(b)) + a + b


def cri(source: Path) -> bytes:
    """The bytes of cri.bin from a generated `api_pb2.py`: the descriptor is read from its text, so that its runtime is not needed."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "AddSerializedFile":
            serialized = ast.literal_eval(node.args[0])
            return b"\x0a" + _varint(len(serialized)) + serialized       # FileDescriptorSet.file = 1
    raise RuntimeError(f"{source}: no serialized descriptor")


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def write(root: Path) -> list[Path]:
    """Write both files under a source tree, only where the bytes differ."""
    definitions = package_dir("kubernetes_validate") / "kubernetes-json-schema" / f"{RELEASE}-local" / "_definitions.json"
    products = {SCHEMAS: schemas(definitions), CRI: cri(package_dir("cri_api") / "v1" / "api_pb2.py")}
    for path, data in products.items():
        target = root / path
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return [root / p for p in products]


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:                                # run by hand where hatchling is not installed
    pass
else:

    class DataFilesHook(BuildHookInterface):  # type: ignore[type-arg]
        """hatchling's entry: the files must exist before the wheel (or the editable one) is put together."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name == "wheel":
                write(Path(self.root))


if __name__ == "__main__":
    for written in write(ROOT):
        print(f"{written.relative_to(ROOT)}  {written.stat().st_size} bytes")
