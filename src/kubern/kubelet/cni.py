"""CNI: the network configuration of a node's pods: the reference plugins bridge, host-local, portmap and bandwidth.

Pure text here; `write` is the one shell. containerd watches the directory by inotify and only sees files made or renamed in it.
Source: CNI spec 1.0.0.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path

FILE = "10-kubern.conflist"


def conflist(pod_cidrs: Sequence[str], data_dir: str, mtu: int, bandwidth: bool = True) -> str:
    """The configuration for these podCIDRs (one, or one a family). No ipMasq: the proxy decides what is masqueraded."""
    routes = [{"dst": "::/0" if ipaddress.ip_network(c).version == 6 else "0.0.0.0/0"} for c in pod_cidrs]
    plugins: list[dict[str, object]] = [
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "mtu": mtu,
         "ipam": {"type": "host-local", "dataDir": f"{data_dir}/ipam", "ranges": [[{"subnet": c}] for c in pod_cidrs], "routes": routes}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}]
    if bandwidth:
        plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    return json.dumps({"cniVersion": "1.0.0", "name": "kubern", "plugins": plugins}, indent=1)


def write(conf_dir: str, text: str) -> bool:
    """Puts the configuration in place; False if it stood there already."""
    path = Path(conf_dir) / FILE
    if path.exists() and path.read_text() == text:
        return False
    tmp = path.with_suffix(".tmp")          # the same directory: a rename from elsewhere goes unnoticed
    tmp.write_text(text)
    os.replace(tmp, path)
    return True
