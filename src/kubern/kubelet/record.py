"""Small files a kubelet must find whole after a crash."""

from __future__ import annotations

import os


def write_whole(path: str, data: bytes) -> None:
    """The file has the old text or the new one, never half of it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.tmp", "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(f"{path}.tmp", path)
