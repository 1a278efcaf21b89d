"""Local volumes: directories on this node that the local-path provisioner has made and removed (controllers/localpath.py).

It asks the kubelet's server, /localvolumes/NAME, by way of the API server's nodes/proxy: so nobody but the API server can, and a node needs to
see no PersistentVolumes. POST makes the directory (and says where it is), DELETE removes it with all it holds; both may be repeated.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import Any

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?")
FOLDER = "local-volumes"


def folder(root: str) -> str:
    return f"{root}/{FOLDER}"


def make(root: str, name: str) -> dict[str, Any]:
    """The directory of a volume, open to every user: who may write is the pods' matter. Raises ValueError, OSError. Blocking."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a volume")
    path = f"{folder(root)}/{name}"
    os.makedirs(folder(root), mode=0o711, exist_ok=True)
    if not os.path.isdir(path):
        os.mkdir(path, 0o777)
        os.chmod(path, 0o777)
    return {"path": path}


def remove(root: str, name: str) -> dict[str, Any]:
    """Out of sight at once, then file by file; what a crash left of earlier removals too. Raises ValueError, OSError. Blocking."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a volume")
    trash = f"{folder(root)}/.trash"
    path = f"{folder(root)}/{name}"
    if os.path.isdir(path):
        os.makedirs(trash, mode=0o700, exist_ok=True)
        shutil.rmtree(f"{trash}/{name}", ignore_errors=True)
        os.rename(path, f"{trash}/{name}")
    if os.path.isdir(trash):
        shutil.rmtree(trash)
    return {}
