"""Agent: the composition root of a node: kubelet, network, proxy and DNS in one process (`python -m kubern.agent CONFIG.json`).

Started and kept alive by the unit's supervisor, in the unit's namespaces. If a role dies the process ends and is started again;
pods, routes and rules stay meanwhile. Not the supervisor (kubelet/unit.py).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kubern import KUBERNETES_VERSION
from kubern.client.client import Client
from kubern.client.kubeconfig import sender_of
from kubern.client.mirror import Mirrors
from kubern.kubelet.configuration import BadConfiguration
from kubern.kubelet.unit import FOLDERS, SHUTDOWN_FILE, UnitConfig, read_config

if TYPE_CHECKING:
    from kubern.kubelet.run import KubeletSettings

log = logging.getLogger("kubern.agent")


def kubelet_settings(c: UnitConfig) -> KubeletSettings:
    """The kubelet's view of the unit's configuration."""
    from kubern.kubelet.configuration import read
    from kubern.kubelet.run import KubeletSettings

    taints = []
    for t in c.taints:                                   # "key=value:Effect" or "key:Effect"
        key, _, effect = t.rpartition(":")
        key, _, value = key.partition("=")
        taints.append({"key": key, "effect": effect, **({"value": value} if value else {})})
    data = Path(c.data_dir)
    ca = data / "ca.crt"
    root, log_root = ((usual if same(usual, f"{c.data_dir}/{ours}") else f"{c.data_dir}/{ours}") for usual, ours in FOLDERS[:2])
    configuration, document = read((str(data.parent.parent / "kubelet.yaml"), str(data / "kubelet.yaml")))     # of the cluster, of this node
    return KubeletSettings(
        name=c.name, addresses=tuple(a for f in families_of(c) if (a := address_of(c, f))), listen="" if 6 in families_of(c) else "0.0.0.0", socket=c.socket,
        root=root, log_root=log_root, container_logs=FOLDERS[2][0] if same(FOLDERS[2][0], f"{c.data_dir}/{FOLDERS[2][1]}") else "",
        cgroup_root=c.cgroup_root, cluster_dns=(c.cluster_dns,),
        cluster_domain=c.cluster_domain, labels=c.labels, taints=tuple(taints), version=KUBERNETES_VERSION,
        resolv_conf=f"{c.run_dir}/resolv.conf" if not c.host else "/etc/resolv.conf", client_ca=str(ca) if ca.exists() else "",
        static_pods=f"{c.data_dir}/manifests", serving_csr=c.serving_csr, lease_s=c.lease_s,
        configuration=configuration, document=document)


def families_of(c: UnitConfig) -> list[int]:
    """Of the pods' ranges, in their order: it is the order of all addresses."""
    return [6 if ":" in cidr else 4 for cidr in c.pod_cidr.split(",")]


def address_of(c: UnitConfig, family: int) -> str:
    """The node's address of a family, "" if it has none."""
    return c.address6.partition("/")[0] if family == 6 else c.address


def same(a: str, b: str) -> bool:
    """Both paths lead to one directory: the unit has it where programs expect it."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


async def run(config: UnitConfig) -> None:
    """All roles of the node, until SIGTERM or the first that fails."""
    from kubern.dns import run as dns
    from kubern.kubelet import certificates, network
    from kubern.kubelet.run import run as kubelet
    from kubern.proxy import run as proxy

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop.set)
    leaving = asyncio.Event()                             # the whole node goes: pods are told first
    loop.add_signal_handler(signal.SIGUSR1, leaving.set)
    try:
        settings = kubelet_settings(config)
    except BadConfiguration as e:
        log.error("kubelet.yaml: %s", e)
        raise SystemExit(1) from None
    (Path(config.run_dir) / SHUTDOWN_FILE).write_text(str(settings.configuration.shutdown_s))
    sender, network_sender = sender_of(config.kubeconfig), sender_of(config.network_kubeconfig or config.kubeconfig)
    client = Client(sender.send, agent=f"kubelet/{config.name}")
    mirrors = Mirrors(Client(network_sender.send, agent=f"kube-proxy/{config.name}"))
    pods, services = tuple(config.pod_cidr.split(",")), tuple(config.service_cidr.split(","))
    roles = {
        "kubelet": kubelet(settings, client, leaving=leaving),
        "certificates": certificates.run(config.name, client, sender, config.kubeconfig, network_sender, config.network_kubeconfig),
        "network": network.run(mirrors, config),
        "proxy": proxy.run(mirrors, config.name, pods, services, tuple(sorted(families_of(config)))),
        "dns": dns.run(mirrors, config.name, address_of(config, 6 if ":" in config.cluster_dns else 4) or config.address, config.cluster_dns,
                       config.cluster_domain, config.gateway, (*pods, *services, f"{config.address}/{config.prefix}")),
    }
    tasks = {asyncio.create_task(work, name=name) for name, work in roles.items()}
    stopping = asyncio.create_task(stop.wait(), name="stop")
    loop.call_later(5.0, gc.freeze)
    done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, stopping):
        task.cancel()
    await asyncio.gather(*tasks, stopping, return_exceptions=True)
    for task in done - {stopping} if not leaving.is_set() else ():
        log.error("%s ended", task.get_name(), exc_info=None if task.cancelled() else task.exception())
        raise SystemExit(1)


def main(args: list[str]) -> None:
    config = read_config(args[0])
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stderr, level=config.log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    try:
        import uvloop
    except ImportError:
        asyncio.run(run(config))
    else:
        uvloop.run(run(config))


if __name__ == "__main__":
    main(sys.argv[1:])
