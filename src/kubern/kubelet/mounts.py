"""Mounts: what this process's mount namespace has, and how it gets more: file systems, binds, disks that are formatted first, NFS. Blocking.

Upstream: k8s.io/mount-utils (SafeFormatAndMount: an empty disk is formatted, one that is not is repaired; never one that is mounted read-only).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from kubern.kubelet.projection import Missing
from kubern.kubelet.runtime import MountPoint

_libc = ctypes.CDLL(None, use_errno=True)
BIND, REC, NOSUID, NODEV = 4096, 16384, 2, 4
_MNT_DETACH = 2
TOOL_S = 120
MKFS = {"ext4": ("-F", "-m0"), "ext3": ("-F", "-m0"), "xfs": ("-f",)}
BLKID_NOTHING, FSCK_UNCORRECTED = 2, 4         # exit codes


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None) != 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e), target)


def mounts_below(folder: str) -> list[str]:
    """Mount points under a directory, innermost first."""
    with open("/proc/self/mountinfo") as f:
        points = [line.split(" ", 5)[4].replace("\\040", " ") for line in f if folder in line]
    return sorted((p for p in points if p == folder or p.startswith(folder + "/")), reverse=True)


def unmount(path: str) -> None:
    """Out of sight at once; what is in use of it stays until it no longer is."""
    _libc.umount2(path.encode(), _MNT_DETACH)


def bind(source: str, target: str) -> None:
    """A directory of the machine at another place as well, with what is mounted in it."""
    os.makedirs(target, 0o750, exist_ok=True)
    if not os.path.ismount(target):
        mount(source, target, "", BIND | REC)


def mount_image(points: Sequence[MountPoint], path: str) -> None:
    os.makedirs(path, exist_ok=True)
    if not os.path.ismount(path):
        for p in points:
            mount(p.source, path, p.kind, p.flags, p.data)


# ---- what the machine's own programs mount

def mount_nfs(spec: Mapping[str, Any], path: str, options: Sequence[str] = ()) -> str:
    """By mount.nfs of the machine; where there is none its complaint says so. Raises Missing."""
    server = f"[{spec['server']}]" if ":" in spec["server"] else spec["server"]
    _by_program("nfs", f"{server}:{spec['path']}", path, [*(["ro"] if spec.get("readOnly") else []), *options])
    return path


def mount_disk(device: str, path: str, kind: str, options: Sequence[str]) -> None:
    """A disk's file system, made if there is none yet. Raises Missing."""
    if os.path.ismount(path):
        return
    kind = kind or "ext4"
    try:
        found = disk_format(device)
        if not found and "ro" in options:
            raise Missing(f"cannot mount unformatted disk {device} as we are manipulating it in read-only mode")
        if not found:
            _tool(f"mkfs.{kind}", *MKFS.get(kind, ()), device)
        elif "ro" not in options:
            _repair(device)
        _by_program(kind, device, path, [*options, "defaults"])
    except Missing as e:
        raise Missing(f"local: failed to mount device {device} at {path} (fstype: {kind}), error {e}") from None


def disk_format(device: str) -> str:
    """The type of what is on a disk, "" if nothing is. Raises Missing."""
    done = subprocess.run(["blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device], capture_output=True, text=True, timeout=TOOL_S, check=False)
    if done.returncode == BLKID_NOTHING:
        return ""
    rows = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if done.returncode:
        raise Missing(f"failed to get disk format of disk {device}: exit status {done.returncode}")
    return rows.get("TYPE") or ("unknown data, probably partitions" if "PTTYPE" in rows else "")


def _repair(device: str) -> None:
    try:
        done = subprocess.run(["fsck", "-a", device], capture_output=True, text=True, timeout=TOOL_S, check=False)
    except FileNotFoundError:
        return
    if done.returncode == FSCK_UNCORRECTED:
        raise Missing(f"'fsck' found errors on device {device} but could not correct them: {done.stdout}")


def _tool(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_S, check=False)
    except FileNotFoundError:
        raise Missing(f"this machine has no {words[0]}") from None
    if done.returncode:
        raise Missing(f"{words[0]}: exit status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")


def _by_program(kind: str, source: str, path: str, options: Sequence[str]) -> None:
    """By mount(8). Raises Missing with its complaint, and takes the directory away again."""
    os.makedirs(path, 0o750, exist_ok=True)
    if os.path.ismount(path):
        return
    arguments = ["-t", kind, *(["-o", ",".join(options)] if options else []), source, path]
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=TOOL_S, check=False)
    if done.returncode:
        os.rmdir(path)
        raise Missing(f"mount failed: exit status {done.returncode}\nMounting command: mount\nMounting arguments: {' '.join(arguments)}\n"
                      f"Output: {done.stderr.strip() or done.stdout.strip()}\n")
