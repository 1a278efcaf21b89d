"""CDI: what a device's name (vendor.com/class=name) adds to a container, where the runtime does not know CDI itself (containerd before 2.0).

`read` takes the specifications from the directories vendors write them to; `apply` is pure: a container's configuration and names in, the
configuration with environment, devices, mounts and groups out. Hooks need the runtime: such devices are refused. Spec: CNCF CDI 1.0.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
Specs = Mapping[str, list[Mapping[str, Any]]]            # device name -> the edits it brings


class NoSuchDevice(Exception):
    """A device cannot be injected; the message says why."""


def read(directories: Sequence[str] = DIRECTORIES) -> Specs:
    """Every device there is; later directories win. Files that are none are left out."""
    import yaml

    out: dict[str, list[Mapping[str, Any]]] = {}
    for folder in directories:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            if not name.endswith((".json", ".yaml")):
                continue
            try:
                with open(f"{folder}/{name}") as f:
                    spec = json.load(f) if name.endswith(".json") else yaml.safe_load(f)
                common = spec.get("containerEdits") or {}
                for device in spec.get("devices") or ():
                    out[f"{spec['kind']}={device['name']}"] = [e for e in (common, device.get("containerEdits") or {}) if e]
            except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
                continue
    return out


def native(runtime: str, version: str) -> bool:
    """Whether a runtime injects CDI devices by itself."""
    if runtime != "containerd":
        return True
    major = version.lstrip("v").partition(".")[0]
    return not major.isdigit() or int(major) >= 2


def apply(config: Mapping[str, Any], names: Iterable[str], specs: Specs) -> dict[str, Any]:
    """The container's configuration (CRI) with these devices. Raises NoSuchDevice."""
    wanted = list(names)
    missing = [n for n in wanted if n not in specs]
    if missing:
        raise NoSuchDevice(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}")
    envs, mounts, devices, groups = list(config.get("envs") or ()), list(config.get("mounts") or ()), list(config.get("devices") or ()), []
    seen: list[int] = []
    for name in wanted:
        for edits in specs[name]:
            if id(edits) in seen:                        # what a file has in common for its devices is applied once
                continue
            seen.append(id(edits))
            if edits.get("hooks"):
                raise NoSuchDevice(f"CDI device injection failed: {name} needs hooks of the runtime, which has no CDI support")
            for text in edits.get("env") or ():
                key, _, value = text.partition("=")
                envs = [e for e in envs if e["key"] != key] + [{"key": key, "value": value.encode()}]
            for d in edits.get("deviceNodes") or ():
                host = d.get("hostPath") or d["path"]
                if not _is_device(host):
                    raise NoSuchDevice(f"CDI device injection failed: failed to stat CDI host device {host}")
                devices.append({"container_path": d["path"], "host_path": host, "permissions": d.get("permissions") or "rw"})
            for m in edits.get("mounts") or ():
                mounts.append({"container_path": m["containerPath"], "host_path": m["hostPath"], "readonly": "ro" in (m.get("options") or ())})
            groups += [g for g in edits.get("additionalGids") or () if g]
    out = {**config, "envs": envs, "mounts": mounts, "devices": devices}
    if groups:
        linux = config.get("linux") or {}
        security = linux.get("security_context") or {}
        have = list(security.get("supplemental_groups") or ())
        out["linux"] = {**linux, "security_context": {**security, "supplemental_groups": have + [g for g in groups if g not in have]}}
    return out


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
