"""containerd's configuration for a node unit. Pure: settings in, file texts out.

Written for containerd 1.6 and later 1.x/2.x (config version 2 is understood by both). Each deviation from its defaults says why.
"""

from __future__ import annotations

import os

from kubern.kubelet.unit import UnitConfig

_CAP_SYS_RESOURCE = 24
CNI_DIRS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")


def may_raise_limits(status: str = "") -> bool:
    """Whether this process has CAP_SYS_RESOURCE; without it no oom_score_adj can be lowered. `status`: text of /proc/self/status."""
    if not status:
        with open("/proc/self/status") as f:
            status = f.read()
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_SYS_RESOURCE & 1)


def cni_dir() -> str:
    """Where the CNI plugins lie."""
    return next((d for d in CNI_DIRS if os.path.exists(f"{d}/bridge")), CNI_DIRS[0])


def config_toml(c: UnitConfig, *, runc: str, cni_bin: str, restrict_oom: bool) -> str:
    """config.toml. State under run_dir (short paths, gone with the unit), images and snapshots under data_dir (kept)."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    skipped = ", ".join(f'"{p}"' for p in (
        "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"))
    return f"""version = 2
root = "{c.data_dir}/containerd"
state = "{c.run_dir}/state"
oom_score = 0
disabled_plugins = [{skipped}]
required_plugins = ["io.containerd.grpc.v1.cri"]
[debug]
  level = "warn"
[grpc]
  address = "{c.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{c.run_dir}/opt"
[{cri}]
  sandbox_image = "{c.sandbox_image}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  # without CAP_SYS_RESOURCE runc cannot write a negative oom_score_adj and every sandbox would fail
  restrict_oom_score_adj = {str(restrict_oom).lower()}
  netns_mounts_under_state_dir = true
  max_concurrent_downloads = 4
  [{cri}.cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{c.run_dir}/cni"
    max_conf_num = 1
    ip_pref = "cni"
  [{cri}.containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{cri}.containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        # the default, /run/containerd/runc, would be shared between units
        Root = "{c.run_dir}/state/runc"
        SystemdCgroup = false
  [{cri}.registry]
    config_path = "{c.run_dir}/certs.d"
"""


def hosts_toml(registry: str) -> str:
    """certs.d/_default/hosts.toml: every registry name is asked of the cluster's own first, which passes on what it lacks.

    `server` is the same: a unit has no way out, so going on to the real registry would only wait for a timeout.
    """
    return f'server = "{registry}"\n[host."{registry}"]\n  capabilities = ["pull", "resolve"]\n'
