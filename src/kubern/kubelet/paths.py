"""Paths inside volumes and on the machine: whose they are, and how to get to one without being led astray by a symlink. Blocking.

Upstream: pkg/volume/volume_linux.go (fsGroup), pkg/volume/hostpath (types), pkg/volume/util/subpath (no symlink may lead out of a volume).
"""

from __future__ import annotations

import os
import stat

from kubern.kubelet.projection import Missing

RW_MASK, DIR_MASK = 0o660, 0o2110


def own(path: str, group: int, policy: str) -> None:
    """fsGroup: everything in the volume belongs to the group, directories hand it on."""
    top = os.lstat(path)
    if policy == "OnRootMismatch" and top.st_gid == group and (top.st_mode & DIR_MASK) == DIR_MASK:
        return
    for d, folders, files in os.walk(path):
        for name in (*files, *(f for f in folders if os.path.islink(os.path.join(d, f)))):
            at = os.path.join(d, name)
            os.lchown(at, -1, group)
            mode = os.lstat(at).st_mode
            if not stat.S_ISLNK(mode):
                os.chmod(at, stat.S_IMODE(mode) | RW_MASK)
        os.chown(d, -1, group)
        os.chmod(d, stat.S_IMODE(os.lstat(d).st_mode) | RW_MASK | DIR_MASK)


def check_host_path(path: str, kind: str) -> None:
    """Makes or checks a hostPath after its type. Raises Missing."""
    if not kind:
        return
    if kind == "DirectoryOrCreate" and not os.path.exists(path):
        os.makedirs(path, 0o755)
    elif kind == "FileOrCreate" and not os.path.exists(path):
        with open(path, "x"):
            os.chmod(path, 0o644)
    tests = {"Directory": (os.path.isdir, "a directory"), "File": (os.path.isfile, "a file"),
             "Socket": (lambda p: stat.S_ISSOCK(os.stat(p).st_mode), "a socket file"),
             "CharDevice": (lambda p: stat.S_ISCHR(os.stat(p).st_mode), "a character device"),
             "BlockDevice": (lambda p: stat.S_ISBLK(os.stat(p).st_mode), "a block device")}
    test, words = tests[kind.removesuffix("OrCreate")]
    if not os.path.exists(path) or not test(path):
        raise Missing(f"hostPath type check failed: {path} is not {words}")


def safe_open(base: str, relative: str) -> int:
    """A descriptor of base/relative, no component of which is a symlink."""
    fd = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    for part in relative.split("/"):
        if part in ("", "."):
            continue
        try:
            deeper = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(40, "a symlink where none may be", relative)
    return fd


def safe_make(base: str, relative: str) -> None:
    """Makes the directories of base/relative that are missing, with the volume's mode, following no symlink."""
    mode = stat.S_IMODE(os.stat(base).st_mode)
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for part in relative.split("/"):
            if part in ("", "."):
                continue
            try:
                os.mkdir(part, dir_fd=fd)
                made = True
            except FileExistsError:
                made = False
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = deeper
            if made:
                os.fchmod(fd, mode)
    finally:
        os.close(fd)
