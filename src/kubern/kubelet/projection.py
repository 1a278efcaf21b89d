"""Files made of API objects: what configMap, secret, downwardAPI and projected volumes hold, and the writer that changes them at once.

`payload` is pure: a volume and a lookup in, {path: (bytes, mode)} out, raising Missing with the words of the event. `write` is the atomic
writer: `..data` points to the present directory, visible names point through it, so readers see all of one version or all of the next.
Upstream: pkg/volume/{configmap,secret,downwardapi,projected}, pkg/volume/util/atomic_writer.go.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kubern.kubelet.env import BadEnv, Lookup, Values, field_value, resource_value
from kubern.model.invalid import quote
from kubern.model.object import Object

Payload = dict[str, tuple[bytes, int]]
Token = Callable[[Mapping[str, Any]], str]            # a serviceAccountToken projection -> the token
DEFAULT_MODE = 0o644
DATA = "..data"
SOURCES = ("configMap", "secret", "downwardAPI", "projected")


class Missing(Exception):
    """A volume refers to something that is not there (yet)."""


def payload(pod: Object, source: str, spec: Mapping[str, Any], lookup: Lookup, values: Values, token: Token | None = None,
            token_mode: int | None = None) -> Payload:
    """The files of one volume source (a name of SOURCES and what stands under it)."""
    mode = spec.get("defaultMode") or DEFAULT_MODE
    namespace = pod["metadata"].get("namespace") or ""
    if source == "configMap":
        return _config_map(spec, namespace, spec.get("name") or "", mode, lookup)
    if source == "secret":
        return _secret(spec, namespace, spec.get("secretName") or spec.get("name") or "", mode, lookup)
    if source == "downwardAPI":
        return _downward(pod, spec, mode, values)
    out: Payload = {}
    for part in spec.get("sources") or ():
        if part.get("configMap"):
            out |= _config_map(part["configMap"], namespace, part["configMap"].get("name") or "", mode, lookup)
        elif part.get("secret"):
            out |= _secret(part["secret"], namespace, part["secret"].get("name") or "", mode, lookup)
        elif part.get("downwardAPI"):
            out |= _downward(pod, part["downwardAPI"], mode, values)
        elif part.get("serviceAccountToken"):
            if token is None:
                raise Missing("no service account tokens without an API server")
            out[part["serviceAccountToken"]["path"]] = (token(part["serviceAccountToken"]).encode(), token_mode or mode)
        elif part.get("clusterTrustBundle"):
            ref = part["clusterTrustBundle"]
            bundle = lookup("clustertrustbundles", "", ref.get("name") or "")
            if bundle is None and not ref.get("optional"):
                raise Missing(f"clustertrustbundle {quote(ref.get('name') or '')} not found")
            out[ref["path"]] = (((bundle or {}).get("spec") or {}).get("trustBundle", "").encode(), mode)
    return out


def _config_map(spec: Mapping[str, Any], namespace: str, name: str, mode: int, lookup: Lookup) -> Payload:
    obj = lookup("configmaps", namespace, name)
    if obj is None:
        if spec.get("optional"):
            return {}
        raise Missing(f"configmap {quote(name)} not found")
    data = {k: v.encode() for k, v in (obj.get("data") or {}).items()}
    data |= {k: base64.b64decode(v) for k, v in (obj.get("binaryData") or {}).items()}
    return _items(spec, data, mode, "configmap references non-existent config key: ")


def _secret(spec: Mapping[str, Any], namespace: str, name: str, mode: int, lookup: Lookup) -> Payload:
    obj = lookup("secrets", namespace, name)
    if obj is None:
        if spec.get("optional"):
            return {}
        raise Missing(f"secret {quote(name)} not found")
    return _items(spec, {k: base64.b64decode(v) for k, v in (obj.get("data") or {}).items()}, mode, "references non-existent secret key: ")


def _items(spec: Mapping[str, Any], data: Mapping[str, bytes], mode: int, complaint: str) -> Payload:
    items = spec.get("items")
    if not items:
        return {k: (v, mode) for k, v in data.items()}
    out: Payload = {}
    for item in items:
        if item["key"] not in data:
            if spec.get("optional"):
                continue
            raise Missing(complaint + item["key"])
        out[item["path"]] = (data[item["key"]], item["mode"] if item.get("mode") is not None else mode)
    return out


def _downward(pod: Object, spec: Mapping[str, Any], mode: int, values: Values) -> Payload:
    out: Payload = {}
    for item in spec.get("items") or ():
        try:
            if item.get("fieldRef"):
                text = field_value(pod, item["fieldRef"]["fieldPath"], values)
            else:
                text = resource_value(pod, {}, item["resourceFieldRef"], values)
        except BadEnv as e:
            raise Missing(str(e)) from None
        out[item["path"]] = (text.encode(), item["mode"] if item.get("mode") is not None else mode)
    return out


def write(target: Path, files: Payload, group: int | None = None, user: int | None = None, owned: Mapping[str, int] | None = None) -> bool:
    """Makes `target` hold exactly these files; True if anything changed. Called in a thread."""
    link = target / DATA
    old = os.readlink(link) if link.is_symlink() else ""
    if old and _same(target / old, files):
        _links(target, files)
        return False
    fresh = Path(tempfile.mkdtemp(prefix=time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime()), dir=target))
    os.chmod(fresh, 0o755)
    for path, (data, mode) in files.items():
        at = fresh / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(data)
        os.chmod(at, mode)
        if user is not None and owned and path in owned:
            os.chown(at, owned[path], -1)
        if group is not None:
            os.chown(at, -1, group)
            os.chmod(at, mode | 0o440)
    if group is not None:
        for d in (fresh, *(p for p in fresh.rglob("*") if p.is_dir())):
            os.chown(d, -1, group)
            os.chmod(d, 0o2755 if d == fresh else 0o2775)
    next_link = target / "..data_tmp"
    next_link.unlink(missing_ok=True)
    next_link.symlink_to(fresh.name)
    os.rename(next_link, link)
    _links(target, files)
    tops = {p.split("/", 1)[0] for p in files}
    for entry in os.listdir(target):
        if not entry.startswith("..") and entry not in tops:
            (target / entry).unlink(missing_ok=True)
    if old:
        shutil.rmtree(target / old, ignore_errors=True)
    return True


def _same(at: Path, files: Payload) -> bool:
    have = {str(p.relative_to(at)) for p in at.rglob("*") if p.is_file()}
    if have != {os.path.normpath(p) for p in files}:
        return False
    return all((at / p).read_bytes() == data for p, (data, _) in files.items())


def _links(target: Path, files: Payload) -> None:
    for top in {p.split("/", 1)[0] for p in files}:
        at = target / top
        if not at.is_symlink():
            at.symlink_to(f"{DATA}/{top}")
