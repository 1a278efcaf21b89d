"""The pure parts of node units: subnets, routes, containerd's and CNI's configuration, the record of a unit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubern import agent
from kubern.config import BadSettings, Settings, check
from kubern.kubelet import announce, cni, containerd, fabric, network, node
from kubern.kubelet.unit import UnitConfig, read_config, rotate

CONFIG = UnitConfig(
    name="n0", cluster="abcde", run_dir="/run/kubern/abcde/n0", data_dir="/data/nodes/n0", address="172.30.0.11", prefix=24, gateway="172.30.0.1",
    mtu=1500, pod_cidr="10.244.0.0/16", service_cidr="10.96.0.0/16", cluster_dns="10.96.0.10", cluster_domain="cluster.local",
    registry="http://172.30.0.1:5001", sandbox_image="localhost/kubern/pause:1", cgroup_root="/kubern/abcde/n0", server="https://172.30.0.1:6443",
    kubeconfig="/k", network_kubeconfig="", containerd=("containerd",), agent=("python",))


def a_node(name: str, address: str, *cidrs: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": name}, "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {},
            "status": {"addresses": [{"type": "InternalIP", "address": a} for a in address.split(",")] + [{"type": "Hostname", "address": name}]}}


def test_the_first_free_subnet_is_taken() -> None:
    assert fabric.pick_subnet([]) == "172.30.0.0/24"
    assert fabric.pick_subnet(["0.0.0.0/0", "172.30.0.5/32", "172.30.1.0/25", "fd00::/64"]) == "172.30.2.0/24"
    with pytest.raises(LookupError):
        fabric.pick_subnet(["172.16.0.0/12"])


def test_pods_of_another_cluster_have_other_addresses_unless_told() -> None:
    assert fabric.pick_pod_cidr("10.244.0.0/16", ["192.0.2.0/24"]) == "10.244.0.0/16"
    assert fabric.pick_pod_cidr("10.244.0.0/16", ["10.244.3.0/24", "10.245.0.0/16"]) == "10.246.0.0/16"
    assert fabric.pick_pod_cidr("10.9.0.0/16", ["10.9.0.0/16"]) == "10.9.0.0/16"


def test_names_fit_the_kernels_limit() -> None:
    c = fabric.cluster_id("/var/lib/kubern")
    assert len(c) == 5 and c != fabric.cluster_id("/elsewhere")
    assert len(fabric.bridge_name(c)) <= 15 and len(fabric.veth_name(c, 4999)) <= 15


def test_hardware_addresses_stay_and_are_one_interfaces_own() -> None:
    found = [fabric.hardware_address(c, end) for c in ("abcde", "abcdf") for end in ("bridge", "0", "1")]
    assert len(set(found)) == 6 and all(a.startswith("02:") and len(a) == 17 for a in found)
    assert fabric.hardware_address("abcde", "1") == found[2]


def test_fabric_addresses() -> None:
    f = fabric.Fabric("abcde", "kn-abcde", "172.30.3.0/24")
    assert (f.gateway, f.address(0), f.address(1), f.prefix) == ("172.30.3.1", "172.30.3.11", "172.30.3.12", 24)


def test_the_second_family() -> None:
    f = fabric.Fabric("abcde", "kn-abcde", "172.30.3.0/24", subnet6=fabric.local_subnet("abcde"))
    assert f.subnet6.startswith("fd") and f.subnet6.endswith("::/64") and f.subnet6 != fabric.local_subnet("abcdf")
    assert f.gateway6 == f.subnet6.replace("::/64", "::1") and f.address6(0) == f.subnet6.replace("::/64", "::b/64")
    assert fabric.pick_pod_cidr("10.244.0.0/16,fd00::/56", ["10.244.1.0/24"]) == "10.245.0.0/16,fd00::/56"


@pytest.mark.parametrize(("services", "pods", "complaint"), [
    ("fd00:96::/112", "fd00:244::/56", ""), ("fd00:96::/112,10.96.0.0/16", "fd00:244::/56,10.244.0.0/16", ""), ("10.96.0.0/16", "10.244.0.0/16,fd00::/56", ""),
    ("fd00:96::/112", "10.244.0.0/16", "--pod-cidr needs an IPv6 range too"), ("10.96.0.0/16", "fd00::/56", "--pod-cidr needs an IPv4 range too"),
    ("10.96.0.0/16,fd00:96::/112", "fd00::/56,10.244.0.0/16", "begin with ranges of different families")])
def test_ranges_of_either_family_may_come_first(services: str, pods: str, complaint: str) -> None:
    settings = replace(Settings(), service_cidr=services, pod_cidr=pods)
    if not complaint:
        check(settings)
        return
    with pytest.raises(BadSettings, match=re.escape(complaint)):
        check(settings)


def test_a_nodes_addresses_are_in_the_order_of_the_pods_ranges() -> None:
    two = replace(CONFIG, address6="fd00::b/64")
    assert agent.kubelet_settings(replace(two, pod_cidr="fd00:1::/56,10.244.0.0/16")).addresses == ("fd00::b", "172.30.0.11")
    assert agent.kubelet_settings(replace(two, pod_cidr="fd00:1::/56")).addresses == ("fd00::b",)
    assert agent.kubelet_settings(replace(CONFIG, pod_cidr="10.244.0.0/16,fd00:1::/56")).addresses == ("172.30.0.11",)       # a machine without IPv6
    assert agent.kubelet_settings(CONFIG).addresses == ("172.30.0.11",)


def test_routes_to_other_nodes_only_and_by_family() -> None:
    nodes = [a_node("a", "172.30.0.11", "10.244.0.0/24"), a_node("b", "172.30.0.12,fd00::12", "10.244.1.0/24", "fd00:244:1::/64"), a_node("c", "172.30.0.13")]
    assert fabric.node_routes(nodes, "a") == {"10.244.1.0/24": "172.30.0.12", "fd00:244:1::/64": "fd00::12"}
    assert "10.244.0.0/24" in fabric.node_routes(nodes, "")


@pytest.mark.skipif(subprocess.run(["unshare", "-rn", "ip", "-V"], capture_output=True).returncode != 0, reason="needs a network namespace")
def test_a_machine_that_leaves_lets_units_of_other_clusters_be() -> None:
    """The machine as a node beside units of another cluster: its routes come and go, those into their fabric stay."""
    script = """
from kubern.kubelet import fabric
mark = f"proto {fabric.ROUTE_PROTOCOL}"
lines = [f"link add {n} type bridge" for n in ("kn-other", "far")] + ["addr add 172.30.5.1/24 dev kn-other", "addr add 192.0.2.1/24 dev far"]
lines += ["link set kn-other up", "link set far up"]
fabric.batch([*lines, f"route add 10.240.0.0/16 dev kn-other {mark}", f"route add 10.240.1.0/24 via 172.30.5.11 {mark}"])
def left():
    return sorted(r["dst"] for r in fabric.show("-4", "route", "show", "proto", str(fabric.ROUTE_PROTOCOL)))
fabric.sync_routes({"10.250.1.0/24": "192.0.2.11"})
assert left() == ["10.240.0.0/16", "10.240.1.0/24", "10.250.1.0/24"], left()
fabric.remove_host("")
assert left() == ["10.240.0.0/16", "10.240.1.0/24"], left()
"""
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_next_hops_that_are_not_near_lead_by_way_of_who_knows_them() -> None:
    routes = {"10.244.0.0/24": "172.30.0.11", "10.244.9.0/24": "192.0.2.7", "fd00::/64": "fd01::b"}
    assert fabric.by_way_of(routes, ["172.30.0.12/24"], "") == {"10.244.0.0/24": "172.30.0.11"}                  # a unit: its default route
    assert fabric.by_way_of(routes, ["192.0.2.8/24"], "192.0.2.2") == {"10.244.0.0/24": "192.0.2.2", "10.244.9.0/24": "192.0.2.7"}


def test_announcing() -> None:
    assert announce.changes({"a", "b"}, {"b", "c"}) == (["a"], ["c"])
    mac, ip = bytes(range(6)), bytes((10, 0, 0, 1))
    frame = announce.arp(mac, ip)
    assert len(frame) == 42 and frame[:6] == b"\xff" * 6 and frame[12:14] == b"\x08\x06" and frame.count(mac) == 3 and frame.count(ip) == 2
    assert announce.advertisement(mac, bytes(15) + b"\1")[0] == 136


def test_route_changes() -> None:
    assert fabric.route_changes({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == ({"a": "1", "b": "2"}, ["c"])
    assert fabric.route_changes({"a": "1"}, {"a": "1"}) == ({}, [])


def test_containerd_configuration_is_toml_with_what_matters() -> None:
    text = containerd.config_toml(CONFIG, runc="/usr/sbin/runc", cni_bin="/usr/lib/cni", restrict_oom=True)
    doc = tomllib.loads(text)
    cri = doc["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True and cri["cni"]["conf_dir"] == "/run/kubern/abcde/n0/cni"
    options = {"BinaryName": "/usr/sbin/runc", "Root": "/run/kubern/abcde/n0/state/runc", "SystemdCgroup": False}
    assert cri["containerd"]["runtimes"]["runc"]["options"] == options
    assert doc["root"] == "/data/nodes/n0/containerd" and doc["grpc"]["address"] == CONFIG.socket
    mirror = tomllib.loads(containerd.hosts_toml("http://172.30.0.1:5001"))
    assert mirror["host"]["http://172.30.0.1:5001"]["capabilities"] == ["pull", "resolve"]


def test_the_missing_capability_is_seen() -> None:
    assert containerd.may_raise_limits("Name:\tx\nCapEff:\t000001ffffffffff\n") is True
    assert containerd.may_raise_limits("Name:\tx\nCapEff:\t000001fffeffffff\n") is False


def test_cni_configuration(tmp_path: Path) -> None:
    text = cni.conflist(["10.244.1.0/24", "fd00:244:1::/64"], "/run/x", 1400)
    bridge = json.loads(text)["plugins"][0]
    assert bridge["mtu"] == 1400 and bridge["hairpinMode"] is True and bridge["ipMasq"] is False
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:1::/64"}]]
    assert bridge["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert cni.write(str(tmp_path), text) is True
    assert cni.write(str(tmp_path), text) is False
    assert os.listdir(tmp_path) == [cni.FILE]


def test_configuration_survives_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(CONFIG.dump())
    assert read_config(str(tmp_path / "c.json")) == CONFIG


def test_a_record_of_another_process_is_not_alive(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "nodes/n0").mkdir(parents=True)
    from dataclasses import replace

    config = replace(CONFIG, run_dir=str(run))
    (run / "config.json").write_text(config.dump())
    node.save_unit(tmp_path, node.Unit(config, os.getpid(), 12345, 0))
    unit = node.load_unit(tmp_path, "n0")
    assert unit is not None and not unit.alive()
    node.save_unit(tmp_path, node.Unit(config, os.getpid(), node._start_time(os.getpid()), 0))
    [unit] = node.list_units(tmp_path)
    assert unit.alive() and unit.index == 0
    (tmp_path / "nodes" / "new").mkdir(exist_ok=True)
    assert node._index(tmp_path / "nodes", "new") == 1


def test_damaged_records_are_none(tmp_path: Path) -> None:
    (tmp_path / "nodes/n0").mkdir(parents=True)
    for text in ("", "{", "{}", '{"config": "/nowhere", "pid": 1, "started": 1, "index": 0}'):
        (tmp_path / "nodes/n0/unit.json").write_text(text)
        assert node.load_unit(tmp_path, "n0") is None and node.list_units(tmp_path) == []


def test_logs_do_not_grow_without_end(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("wb") as f:
        f.truncate((16 << 20) + 1)
    rotate(str(log))
    assert log.stat().st_size == 0 and (tmp_path / "x.log.1").stat().st_size == (16 << 20) + 1
    rotate(str(tmp_path / "none.log"))


def test_access_of_the_network_roles_writes_nothing_but_dns() -> None:
    writes = [r for o in network.access() for r in o.get("rules") or () if set(r["verbs"]) - {"get", "list", "watch"}]
    assert all(set(r["resources"]) <= {"services", "endpointslices"} for r in writes)
    assert [o["metadata"].get("namespace") for o in network.access() if o["kind"] == "Role"] == ["kube-system"]


def test_units_made_at_once_get_addresses_of_their_own(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(16)]
    for name in names:
        (tmp_path / name).mkdir()
    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(lambda name: node._index(tmp_path, name), names)) == list(range(16))
    assert node._index(tmp_path, "n3") == node._index(tmp_path, "n3")
