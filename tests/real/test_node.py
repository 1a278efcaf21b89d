"""A node with a KubeletConfiguration of its own on a disk of its own: devices, claims, whole cpus, logs, pressure, shutdown and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubelet.drivers import DevicePlugin, DraDriver

pytestmark = [pytest.mark.real, pytest.mark.slow]

DISK_MB = 600
PODS_MB = 900                      # what all pods together may use: the rest of the machine is reserved
HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
HUGE_PAGES = 8
CONFIGURATION = """
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 40
podPidsLimit: 64
cpuManagerPolicy: static
reservedSystemCPUs: "0"
systemReserved: {memory: RESERVED}
memoryManagerPolicy: Static
reservedMemory: [{numaNode: 0, limits: {memory: WITHHELD}}]      # what is reserved and what eviction keeps free
topologyManagerPolicy: single-numa-node
cpuManagerPolicyOptions: {full-pcpus-only: "true"}
containerLogMaxSize: 20Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 1s
allowedUnsafeSysctls: ["net.core.somaxconn"]
evictionHard: {"memory.available": "150Mi", "nodefs.available": "40%"}
evictionPressureTransitionPeriod: 3s
shutdownGracePeriod: 12s
shutdownGracePeriodCriticalPods: 4s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
nodeStatusUpdateFrequency: 2s
"""


def shell(text: str, name: str = "c", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", text], **more}


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 1, "containers": list(containers), **spec}}


def reserved_mb() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1]) // 1024 - PODS_MB


@pytest.fixture(scope="module")
def huge_pages() -> Iterator[int]:
    """Sets some aside where the machine has none; 0 where it cannot."""
    had = int(HUGE.read_text()) if HUGE.exists() else -1
    if had == 0:
        with contextlib.suppress(OSError):
            HUGE.write_text(str(HUGE_PAGES))
    yield int(HUGE.read_text()) if HUGE.exists() else 0
    if had == 0:
        HUGE.write_text("0")


@pytest.fixture(scope="module")
def c(module_cluster: Any, huge_pages: int) -> Iterator[Any]:
    """One node whose files lie on a small disk."""
    home = Path(tempfile.mkdtemp(prefix="kt"))
    disk = home / "nodes" / "node-0"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "kubern-test", str(disk)], check=True)
    (home / "kubelet.yaml").write_text(CONFIGURATION.replace("RESERVED", f"{reserved_mb()}Mi").replace("WITHHELD", f"{reserved_mb() + 150}Mi"))
    made = module_cluster(home, "--nodes", "1", "--node-grace", "6")
    try:
        made.up()
        made.until(lambda: made.kubectl("get", "serviceaccount", "default", check=False), "no service account")
        yield made
    finally:
        made.down()
        ctypes.CDLL(None).umount2(str(disk).encode(), 2)
        made.down()


def make(c: Any, *objects: dict[str, Any]) -> None:
    c.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def status(c: Any, name: str) -> dict[str, Any]:
    return c.get("pod", name)["status"]


def images(c: Any) -> str:
    return json.dumps(c.get("node", "node-0")["status"].get("images"))


def condition(c: Any, type_: str, what: str = "status") -> str:
    return next(x[what] for x in c.get("node", "node-0")["status"]["conditions"] if x["type"] == type_)


def test_the_configuration_is_in_force(c: Any) -> None:
    node = c.get("node", "node-0")["status"]
    assert node["capacity"]["pods"] == "40" and int(node["allocatable"]["cpu"]) == int(node["capacity"]["cpu"]) - 1
    shown = json.loads(c.kubectl("get", "--raw", "/api/v1/nodes/node-0/proxy/configz"))["kubeletconfig"]
    assert shown["maxPods"] == 40 and shown["kind"] == "KubeletConfiguration" and shown["syncFrequency"] == "1m0s"
    files = (*Path("/sys/fs/cgroup").glob("memory/kubern/*/node-0/kubepods/memory.limit_in_bytes"),
             *Path("/sys/fs/cgroup").glob("kubern/*/node-0/kubepods/memory.max"))
    found = [f.read_text().strip() for f in files]
    total = int(node["capacity"]["memory"].removesuffix("Ki")) * 1024 - (reserved_mb() << 20)
    assert any(abs(int(x) - total) < 1 << 20 for x in found if x.isdigit()), (found, total)


def test_whole_cpus_and_limits_of_processes(c: Any) -> None:
    if os.cpu_count() == 1:
        pytest.skip("one cpu, and that is reserved")
    limits = {"resources": {"limits": {"cpu": "1", "memory": "32Mi"}}}
    make(c, pod("whole", shell("grep Cpus_allowed_list /proc/self/status; sleep 1000", **limits)), pod("shares", shell("sleep 1000")))
    c.wait("pod/whole")
    c.wait("pod/shares")
    own = c.until(lambda: c.kubectl("logs", "whole").split(), "no log")[-1]
    assert own.isdigit() and own != "0"
    rest = c.until(lambda: own not in (s := c.exec("shares", "grep", "Cpus_allowed_list", "/proc/1/status").split()[-1].split(",")) and s, "shares it", 20)
    assert rest[0].startswith("0")
    said = c.exec("shares", "sh", "-c", "(i=0; while [ $i -lt 80 ]; do sleep 5 & i=$((i+1)); done) 2>&1; true", check=False)
    assert "fork" in said, "more processes than podPidsLimit"
    make(c, pod("too-many", shell("true", resources={"limits": {"cpu": str(os.cpu_count()), "memory": "32Mi"}}), nodeName="node-0"))
    refused = c.until(lambda: (s := status(c, "too-many")).get("phase") == "Failed" and s, "not refused")
    assert refused["reason"] in ("OutOfcpu", "UnexpectedAdmissionError")
    c.kubectl("delete", "pod", "whole", "too-many", "shares")             # waits: until they are gone their cpus are theirs


def test_memory_of_a_numa_node(c: Any) -> None:
    """This machine has one: what several are like is decided on made-up ones, in tests/kubelet/test_numa.py."""
    resources = {"resources": {"limits": {"cpu": "100m", "memory": "32Mi"}}}
    make(c, pod("local", shell("grep Mems_allowed_list /proc/self/status; sleep 1000", **resources)))
    c.wait("pod/local")
    assert c.until(lambda: c.kubectl("logs", "local"), "no log").split() == ["Mems_allowed_list:", "0"]
    uid = c.get("pod", "local")["metadata"]["uid"]
    kept = json.loads((c.home / "nodes/node-0/kubelet/memory_manager_state").read_text())
    assert kept["entries"][uid]["c"] == [{"numaAffinity": [0], "type": "memory", "size": 32 << 20}]
    c.kubectl("delete", "pod", "local", "--grace-period=0", "--force")
    c.until(lambda: uid not in (c.home / "nodes/node-0/kubelet/memory_manager_state").read_text(), "not given back", 20)


def test_huge_pages(c: Any, huge_pages: int) -> None:
    if not huge_pages:
        pytest.skip("this machine sets no huge pages aside")
    assert c.get("node", "node-0")["status"]["capacity"]["hugepages-2Mi"] == f"{2 * huge_pages}Mi"
    make(c, pod("huge", shell("mount | grep /huge; fallocate -l 4194304 /huge/f && echo taken; sleep 1000", volumeMounts=[{"name": "h", "mountPath": "/huge"}],
                              resources={"limits": {"hugepages-2Mi": "8Mi", "memory": "32Mi", "cpu": "100m"}}),
                volumes=[{"name": "h", "emptyDir": {"medium": "HugePages"}}]))
    c.wait("pod/huge")
    said = c.until(lambda: (t := c.kubectl("logs", "huge")) and "taken" in t and t, "no log")
    assert "hugetlbfs" in said and "pagesize=2M" in said
    c.kubectl("delete", "pod", "huge", "--grace-period=0", "--force")


def test_logs_rotate_and_read_as_one(c: Any) -> None:
    make(c, pod("talks", shell("i=0; while [ $i -lt 3000 ]; do echo line $i some text to fill it up; i=$((i+1)); done; sleep 1000")))
    c.wait("pod/talks")
    base = c.home / "nodes/node-0/pods"
    c.until(lambda: len(list(base.glob("*talks*/c/0.log*"))) >= 2, "not rotated", 20)
    assert sum(f.stat().st_size for f in base.glob("*talks*/c/0.log")) < 100 << 10
    assert c.exec("talks", "true") == ""
    links = [p for p in (c.home / "nodes/node-0/container-logs").iterdir() if p.name.startswith("talks_default_c-")]
    assert len(links) == 1 and os.readlink(links[0]).startswith("/var/log/pods/")
    c.kubectl("delete", "pod", "talks", "--grace-period=0", "--force")


def test_unsafe_sysctls_that_are_allowed_and_user_namespaces_that_are_not(c: Any) -> None:
    make(c, pod("sysctl", shell("cat /proc/sys/net/core/somaxconn; sleep 1000"), securityContext={"sysctls": [{"name": "net.core.somaxconn", "value": "77"}]}),
         pod("forbidden", shell("true"), securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "77"}]}),
         pod("userns", shell("true"), hostUsers=False))
    c.wait("pod/sysctl")
    assert c.until(lambda: c.kubectl("logs", "sysctl"), "no log") == "77\n"
    for name, reason in (("forbidden", "SysctlForbidden"), ("userns", "UserNamespacesNotSupported")):
        s = c.until(lambda n=name: (s := status(c, n)).get("phase") == "Failed" and s, f"{name} was let in")
        assert s["reason"] == reason and s["message"]
    c.kubectl("delete", "pod", "--all", "--grace-period=0", "--force")


def test_crash_loops_wait_no_longer_than_the_configuration_says(c: Any) -> None:
    make(c, pod("loop", shell("exit 1")))
    c.until(lambda: (status(c, "loop").get("containerStatuses") or [{}])[0].get("restartCount", 0) >= 4, "it waits longer", 30)
    c.kubectl("delete", "pod", "loop", "--grace-period=0", "--force")


# --- plugins ---

class Background:
    """Plugins in a thread with a loop of its own: the tests themselves block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


@pytest.fixture
def background() -> Iterator[Background]:
    b = Background()
    yield b
    b.close()


def test_device_plugin(c: Any, background: Background) -> None:
    plugin = DevicePlugin(c.home / "nodes/node-0/kubelet", "example.com/thing", ["t0", "t1"])
    background.do(plugin.start())
    background.do(plugin.register())
    try:
        c.until(lambda: c.get("node", "node-0")["status"]["allocatable"].get("example.com/thing") == "2", "not offered")
        make(c, pod("has", shell("echo $DEVICES; ls /dev; sleep 1000", resources={"limits": {"example.com/thing": "1"}})))
        c.wait("pod/has")
        log = c.until(lambda: c.kubectl("logs", "has"), "no log").split()
        assert log[0] in ("t0", "t1") and log[0] in log[1:] and plugin.started == [[log[0]]]
        assert c.exec("has", "sh", "-c", f"echo x > /dev/{log[0]} && echo written") == "written\n"
        make(c, pod("waits", shell("sleep 1000", resources={"limits": {"example.com/thing": "2"}})))
        c.until(lambda: "Insufficient example.com/thing" in json.dumps(status(c, "waits")), "scheduled without devices")
    finally:
        c.kubectl("delete", "pod", "--all", "--grace-period=0", "--force")
        background.do(plugin.stop())
    c.until(lambda: c.get("node", "node-0")["status"]["allocatable"].get("example.com/thing") == "0", "offered without a plugin")


def test_resource_claims(c: Any, background: Background) -> None:
    driver = DraDriver(c.home / "nodes/node-0/kubelet", "d.example.com", "example.com/dra=one")
    spec = Path("/var/run/cdi/kubern-test.json")
    made_folder = not spec.parent.exists()
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": "example.com/dra", "devices": [{"name": "one", "containerEdits": {
        "env": ["CLAIMED=yes"], "deviceNodes": [{"path": "/dev/claimed", "hostPath": "/dev/null"}]}}]}))
    background.do(driver.start())
    try:
        c.until(lambda: driver.told, "the driver is not registered")
        make(c, {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "d"}, "spec": {
            "selectors": [{"cel": {"expression": 'device.driver == "d.example.com"'}}]}},
            {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "d-node-0"}, "spec": {
                "nodeName": "node-0", "driver": "d.example.com", "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "d0"}]}},
            {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": "t"}, "spec": {"spec": {
                "devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "d"}}]}}}},
            pod("claims", shell("echo $CLAIMED; test -c /dev/claimed && echo device; sleep 1000", resources={"claims": [{"name": "x"}]}),
                resourceClaims=[{"name": "x", "resourceClaimTemplateName": "t"}]))
        c.wait("pod/claims")
        assert c.until(lambda: c.kubectl("logs", "claims"), "no log") == "yes\ndevice\n"
        assert [x for x, _ in driver.calls] == ["prepare"]
        c.kubectl("delete", "pod", "claims")
        c.until(lambda: [x for x, _ in driver.calls] == ["prepare", "unprepare"], "not given back")
    finally:
        c.kubectl("delete", "pod", "--all", "--grace-period=0", "--force")
        background.do(driver.stop())
        spec.unlink()
        if made_folder:
            spec.parent.rmdir()


# --- pressure and the end ---

def test_pods_that_use_more_memory_than_there_is_go_and_the_node_heals(c: Any) -> None:
    calm = condition(c, "MemoryPressure", "lastTransitionTime")
    make(c, pod("modest", shell("sleep 1000", resources={"requests": {"memory": "64Mi"}})),
         pod("greedy", shell(f"sleep 2; dd if=/dev/zero of=/dev/null bs={PODS_MB - 100}M count=1000000", resources={"requests": {"memory": "16Mi"}})))
    evicted = c.until(lambda: (s := status(c, "greedy")).get("reason") == "Evicted" and s, "not evicted", 60)
    assert "The node was low on resource: memory." in evicted["message"] and "Container c was using" in evicted["message"]
    c.until(lambda: condition(c, "MemoryPressure", "lastTransitionTime") != calm, "no pressure was told")
    c.until(lambda: condition(c, "MemoryPressure") == "False" and "memory-pressure" not in json.dumps(c.get("node", "node-0")["spec"]), "it does not heal", 40)
    assert status(c, "modest")["phase"] == "Running"
    c.kubectl("delete", "pod", "--all", "--grace-period=0", "--force")


def test_too_few_processes_left_costs_who_has_most(c: Any) -> None:
    """The threshold is set above what there is: no process table is filled for it."""
    own = c.home / "nodes/node-0/kubelet.yaml"
    make(c, pod("few", shell("sleep 1000")), pod("many", shell("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait")))
    c.wait("pod/few")
    c.wait("pod/many")
    own.write_text('evictionHard: {"memory.available": "150Mi", "pid.available": "100%"}\nevictionPressureTransitionPeriod: 1s\n')
    try:
        restart_agent(c)
        evicted = c.until(lambda: (s := status(c, "many")).get("reason") == "Evicted" and s, "not evicted", 40)
        assert "The node was low on resource: pids" in evicted["message"]
        c.until(lambda: condition(c, "PIDPressure") == "True", "no pressure is told", 20)
    finally:
        own.unlink()
        restart_agent(c)
    c.until(lambda: condition(c, "PIDPressure") == "False", "it does not heal", 40)
    c.kubectl("delete", "pod", "--all", "--grace-period=0", "--force")


def restart_agent(c: Any) -> None:
    record = json.loads((c.home / "nodes/node-0/unit.json").read_text())
    supervisor = Path(f"/proc/{record['pid']}/task/{record['pid']}/children").read_text().split()[0]
    os.kill(int(supervisor), 1)


def test_a_full_disk_costs_the_pod_that_filled_it_and_heals(c: Any) -> None:
    make(c, pod("once", {"name": "c", "image": "nginx", "imagePullPolicy": "IfNotPresent", "command": ["true"]}, restartPolicy="Never"))
    c.until(lambda: status(c, "once").get("phase") == "Succeeded", "not over")
    c.kubectl("delete", "pod", "once")
    c.until(lambda: "nginx" in images(c), "the image is not told of")
    make(c, pod("modest", shell("sleep 1000")), pod("greedy", shell("dd if=/dev/zero of=/e/x bs=1M count=420; sleep 1000",
                                                                  volumeMounts=[{"name": "e", "mountPath": "/e"}]), volumes=[{"name": "e", "emptyDir": {}}]))
    evicted = c.until(lambda: (s := status(c, "greedy")).get("reason") == "Evicted" and s, "not evicted", 60)
    assert evicted["phase"] == "Failed" and "The node was low on resource: ephemeral-storage" in evicted["message"]
    assert any(x["type"] == "DisruptionTarget" and x["reason"] == "TerminationByKubelet" for x in evicted["conditions"])
    assert status(c, "modest")["phase"] == "Running"
    c.until(lambda: "nginx" not in images(c), "an image nobody used was kept")
    c.until(lambda: condition(c, "DiskPressure") == "False" and "disk-pressure" not in json.dumps(c.get("node", "node-0")["spec"]), "it does not heal", 40)
    make(c, pod("after", shell("sleep 1000")))
    c.wait("pod/after")
    c.kubectl("delete", "pod", "--all", "--grace-period=0", "--force")


def test_a_node_that_shuts_down_ends_its_pods_in_order(c: Any) -> None:
    talk = "trap 'echo ended at $(date +%s); exit 0' TERM; while true; do sleep 0.1; done"
    make(c, pod("low", shell(talk), terminationGracePeriodSeconds=20),
         {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "high", "namespace": "kube-system"}, "spec": {
             "priorityClassName": "system-node-critical", "terminationGracePeriodSeconds": 20, "containers": [shell(talk)]}})
    c.wait("pod/low")
    c.wait("pod/high", namespace="kube-system")
    record = json.loads((c.home / "nodes/node-0/unit.json").read_text())
    supervisor = int(Path(f"/proc/{record['pid']}/task/{record['pid']}/children").read_text().split()[0])
    os.kill(supervisor, 15)
    for name, space in (("low", "default"), ("high", "kube-system")):
        s = c.until(lambda n=name, ns=space: (s := c.get("pod", n, "-n", ns)["status"])["phase"] in ("Failed", "Succeeded") and s, f"{name} is not ended", 30)
        assert s["reason"] == "Terminated" and s["message"] == "Pod was terminated in response to imminent node shutdown."
    times = [c.get("pod", n, "-n", ns)["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
             for n, ns in (("low", "default"), ("high", "kube-system"))]
    assert times == sorted(times)
    end = time.monotonic() + 20
    while Path(f"/proc/{record['pid']}").exists() and Path(f"/proc/{record['pid']}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end, "the unit goes on"
        time.sleep(0.1)
