"""Mounts of images as containerd words them; volumes that the runtime mounts itself."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.kubelet.cri import _version
from kubern.kubelet.runtime import MountPoint
from kubern.kubelet.snapshots import mount_point
from kubern.kubelet.volumes import Needs, Volumes

POD: dict[str, Any] = {"metadata": {"uid": "u", "name": "p", "namespace": "n"}, "spec": {"volumes": [{"name": "v", "image": {"reference": "busybox"}}]}}


def test_options_are_flags_or_data() -> None:
    assert mount_point("bind", "/layers/1/fs", ["ro", "rbind"]) == MountPoint("bind", "/layers/1/fs", 1 | 4096 | 16384)
    assert mount_point("overlay", "overlay", ["index=off", "lowerdir=/b:/a"]) == MountPoint("overlay", "overlay", 0, "index=off,lowerdir=/b:/a")


@pytest.mark.parametrize(("text", "wanted"), [("v1.6.20~ds1", (1, 6)), ("2.1.0", (2, 1)), ("unknown", ())])
def test_versions_of_runtimes(text: str, wanted: tuple[int, ...]) -> None:
    assert _version(text) == wanted


async def test_a_runtime_that_mounts_images_is_told_which(tmp_path: Any) -> None:
    async def itself(image: str, key: str) -> None:
        assert (image, key) == ("sha256:1", "kubern-u-v")

    volumes = Volumes(str(tmp_path), Needs(lambda *a: None, image_mounts=itself))
    assert await volumes.set_up(POD, None) == {}                       # type: ignore[arg-type]
    await volumes.set_up_image(POD, "v", "sha256:1")
    mounts = volumes.mounts(POD, {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "etc"}]}, {})
    assert mounts == [{"container_path": "/v", "image": {"image": "sha256:1", "user_specified_image": "sha256:1"}, "image_sub_path": "etc",
                       "readonly": True, "propagation": 0}]
    await volumes.tear_down("u")
    assert not volumes.ready
