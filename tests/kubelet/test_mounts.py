"""Disks: what is on them, what is made of an empty one, and what is refused. As far as this goes without mounting."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from kubern.kubelet import mounts, paths
from kubern.kubelet.projection import Missing

needs_tools = pytest.mark.skipif(not (shutil.which("mkfs.ext4") and shutil.which("blkid")), reason="needs mkfs.ext4 and blkid")


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    with open(path, "wb") as f:
        f.truncate(8 << 20)
    return str(path)


@needs_tools
def test_what_is_on_a_disk(disk: str) -> None:
    assert mounts.disk_format(disk) == ""
    subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
    assert mounts.disk_format(disk) == "ext4"


@needs_tools
def test_an_empty_disk_is_not_formatted_to_be_read(disk: str, tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"cannot mount unformatted disk .* in read-only mode"):
        mounts.mount_disk(disk, str(tmp_path / "m"), "ext4", ["ro"])
    assert mounts.disk_format(disk) == ""


@needs_tools
def test_a_file_system_nobody_knows(disk: str, tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"\(fstype: nosuchfs\), error this machine has no mkfs.nosuchfs"):
        mounts.mount_disk(disk, str(tmp_path / "m"), "nosuchfs", [])


def test_no_symlink_leads_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to("/etc")
    with pytest.raises(OSError):
        paths.safe_open(str(tmp_path / "in"), "out/passwd")
    with pytest.raises(OSError):
        paths.safe_make(str(tmp_path / "in"), "out/new")
    (tmp_path / "in").chmod(0o2775)
    paths.safe_make(str(tmp_path / "in"), "a/b")
    assert stat.S_IMODE((tmp_path / "in" / "a" / "b").stat().st_mode) == 0o2775
