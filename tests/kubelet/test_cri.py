"""CRI messages without generated code, containerd's events, cgroups in a directory of files, figures as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kubern.kubelet import cri, scrape, stats
from kubern.kubelet.cgroups import Cgroups, Hierarchies, discover, pod_limits, stalls
from kubern.kubelet.container import quota, shares
from kubern.kubelet.measure import Histogram, Measures
from kubern.kubelet.pull import size_class
from kubern.kubelet.stats import Figures, PodFigures, Sample, Volume


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def envelope(topic: str, container: str, process: str = "") -> bytes:
    task = field(1, container.encode()) + (field(2, process.encode()) if process else b"")
    return field(1, b"\x08\x01") + field(2, b"k8s.io") + field(3, topic.encode()) + field(4, field(1, b"x.TaskExit") + field(2, task))


def test_messages_round_trip() -> None:
    config = cri.message("ContainerConfig")(metadata={"name": "a", "attempt": 2}, envs=[{"key": "K", "value": b"\xff"}],
                                            linux={"security_context": {"run_as_user": {"value": 0}}})
    again = cri.message("ContainerConfig").FromString(config.SerializeToString())
    assert again == config and again.envs[0].value == b"\xff" and again.linux.security_context.HasField("run_as_user")


@pytest.mark.parametrize(("data", "container"), [
    (envelope("/tasks/exit", "abc", "abc"), "abc"), (envelope("/tasks/exit", "abc", "exec-1"), ""), (envelope("/tasks/start", "abc"), "abc"),
    (envelope("/images/create", "abc"), ""), (b"", ""), (b"\xff\xff", ""), (b"\x1a\x7f", "")])
def test_events(data: bytes, container: str) -> None:
    assert cri._event_container(data) == container


@pytest.mark.parametrize(("milli", "cpu_shares", "cpu_quota"), [(0, 2, 0), (1, 2, 1000), (100, 102, 10_000), (2000, 2048, 200_000), (10**9, 262_144, 10**11)])
def test_cpu_in_the_kernels_terms(milli: int, cpu_shares: int, cpu_quota: int) -> None:
    assert (shares(milli), quota(milli)) == (cpu_shares, cpu_quota)


def test_limits_of_a_pod_need_limits_of_all_containers() -> None:
    def pod(*limits: dict[str, str]) -> dict[str, object]:
        return {"spec": {"containers": [{"name": str(i), "resources": {"limits": x, "requests": x}} for i, x in enumerate(limits)]}}
    assert pod_limits(pod({"cpu": "1", "memory": "1Gi"}, {"cpu": "500m"})) == {"cpu_shares": 1536, "cpu_quota": 150_000}
    assert pod_limits(pod({"memory": "1Mi"}))["memory"] == 1 << 20
    assert pod_limits(pod({})) == {"cpu_shares": 2}


def test_cgroups_version_1(tmp_path: Path) -> None:
    for c in ("cpu", "memory", "pids", "cpuset"):
        (tmp_path / c).mkdir()
    (tmp_path / "cpuset" / "cpuset.cpus").write_text("0-1")
    groups = Cgroups("/k/n", discover(tmp_path))
    groups.setup()
    path = "/k/n/kubepods/burstable/podu"
    groups.ensure(path)
    groups.apply(path, {"cpu_shares": 512, "cpu_quota": 50_000, "memory": 1 << 20}, 100)
    at = tmp_path
    assert (at / f"cpu{path}/cpu.shares").read_text() == "512" and (at / f"cpu{path}/cpu.cfs_quota_us").read_text() == "50000"
    assert (at / f"memory{path}/memory.limit_in_bytes").read_text() == str(1 << 20) and (at / f"pids{path}/pids.max").read_text() == "100"
    assert groups.pods() == {"u": path} and groups.pod_exists(path)
    (at / f"memory{path}/memory.usage_in_bytes").write_text("5000")
    (at / f"memory{path}/memory.stat").write_text("cache 1\ntotal_inactive_file 1000\ntotal_rss 300\n")
    assert {k: v for k, v in groups.usage(path).items() if v} == {"rss": 300, "memory": 5000, "working_set": 4000}


def test_cgroups_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    groups = Cgroups("/k/n", discover(tmp_path))
    assert groups.h == Hierarchies(tmp_path, {})
    groups.ensure("/k/n/kubepods/podx")
    groups.apply("/k/n/kubepods/podx", {"cpu_shares": 1024, "cpu_quota": 0, "memory": 0})
    at = tmp_path / "k/n/kubepods/podx"
    assert [(at / f).read_text() for f in ("cpu.weight", "cpu.max", "memory.max")] == ["39", "max 100000", "max"]


SAMPLE = Sample(100.0, Figures(2_000_000_000, 5, 100, started_s=1.0), [PodFigures(
    "n", 'a"b', "u", "1970-01-01T00:00:01Z", Figures(7, 1, 10), {"c": Figures(3_000_000_000, 2, 10, started_s=50.0)}, {"rx_bytes": 4}, "/k/podu",
    {"data": Volume(3, 100, 97, claim="disk")})], {"rx_bytes": 1}, Volume(50, 100, 50), 10, 900)


def test_the_summary() -> None:
    doc = stats.summary(SAMPLE, "node")
    assert doc["node"]["cpu"] == {"time": "1970-01-01T00:01:40Z", "usageNanoCores": 5, "usageCoreNanoSeconds": 2_000_000_000}
    assert doc["node"]["memory"]["availableBytes"] == 900 and doc["pods"][0]["podRef"] == {"name": 'a"b', "namespace": "n", "uid": "u"}
    assert doc["pods"][0]["containers"][0]["memory"]["workingSetBytes"] == 10
    assert doc["pods"][0]["volume"][0] | {"time": ""} == {"time": "", "name": "data", "usedBytes": 3, "capacityBytes": 100, "availableBytes": 97, "inodes": 0,
                                                          "inodesFree": 0, "inodesUsed": 0, "pvcRef": {"name": "disk", "namespace": "n"}}
    assert "network" not in stats.summary(SAMPLE, "node", True)["node"]


def test_metrics_in_text() -> None:
    text = scrape.resource_metrics(SAMPLE)
    assert 'container_cpu_usage_seconds_total{container="c",namespace="n",pod="a\\"b"} 3 100000\n' in text
    assert "node_cpu_usage_seconds_total 2 100000\n" in text and "resource_scrape_error 0\n" in text
    text = scrape.cadvisor_metrics(SAMPLE, {"/k/podu": scrape.Details({"user": 1.5}, {"8:0": {"read_bytes": 7, "writes": 2}})})
    assert 'container_network_receive_bytes_total{container="",id="/k/podu",image="",interface="eth0",name="",namespace="n",pod="a\\"b"} 4 100000\n' in text
    assert 'container_cpu_user_seconds_total{container="",id="/k/podu",image="",name="",namespace="n",pod="a\\"b"} 1.5 100000\n' in text
    assert 'container_fs_reads_bytes_total{container="",id="/k/podu",image="",name="",namespace="n",pod="a\\"b",device="' in text
    assert 'container_blkio_device_usage_total{' in text and ',major="8",minor="0",operation="Read"} 7 100000\n' in text
    assert 'kubelet_volume_stats_used_bytes{namespace="n",persistentvolumeclaim="disk"} 3\n' in scrape.volume_metrics(SAMPLE)


def test_pressure_and_disks_as_the_kernel_tells_them(tmp_path: Path) -> None:
    told = "some avg10=1.50 avg60=0.20 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3"
    assert stalls(told) == {"some": {"avg10": 1.5, "avg60": 0.2, "avg300": 0.0, "total": 12}, "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 3}}
    (tmp_path / "two/p").mkdir(parents=True)
    (tmp_path / "two/p/cpu.pressure").write_text(told + "\n")
    (tmp_path / "two/p/io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n")
    v2 = Cgroups("", Hierarchies(tmp_path / "two", {}))
    assert v2.pressure("/p") == {"cpu": stalls(told)} and v2.disk("/p") == {"8:0": {"read_bytes": 10, "write_bytes": 20, "reads": 1, "writes": 2}}
    (tmp_path / "one/p").mkdir(parents=True)
    (tmp_path / "one/p/blkio.throttle.io_service_bytes_recursive").write_text("8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n")
    v1 = Cgroups("", Hierarchies(None, {"blkio": tmp_path / "one"}))
    assert v1.pressure("/p") == {} and v1.disk("/p") == {"8:0": {"read_bytes": 10, "write_bytes": 20}}
    f = stats.Figures(pressure={"cpu": stalls(told), "io": stalls(told)})
    doc = stats.summary(replace(SAMPLE, node=f), "node")["node"]
    assert doc["cpu"]["psi"]["some"]["avg10"] == 1.5 and doc["io"]["psi"]["full"]["total"] == 3 and "psi" not in doc["memory"]


def test_what_is_counted() -> None:
    m = Measures()
    m.count("admission_rejections_total", "OutOfcpu")
    m.count("admission_rejections_total", "OutOfcpu")
    text = m.text()
    assert 'kubelet_admission_rejections_total{reason="OutOfcpu"} 2\n' in text and "kubelet_started_pods_total 0\n" in text
    assert "kubelet_image_garbage_collected_total" not in text and size_class(11 << 20) == "10MB-100MB" and size_class(0) == "N/A"


def test_histograms() -> None:
    h = Histogram("x", "help", "op", (0.1, 1.0))
    for seconds, failed in ((0.1, False), (0.5, True), (5.0, False)):
        h.observe(seconds, "a", failed)
    assert 'x_bucket{op="a",le="0.1"} 1\nx_bucket{op="a",le="1"} 2\nx_bucket{op="a",le="+Inf"} 3\nx_sum{op="a"} 5.6\nx_count{op="a"} 3\n' in h.text()
    assert 'x_errors{op="a"} 1\n' in h.counters("x_errors", "e", True)
