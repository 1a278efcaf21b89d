"""Whatever dies on or around a node: nothing is lost, and everything heals. KUBERN_FAULT_SECONDS makes the outages longer (120 for the full ones)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

AWAY_S = float(os.environ.get("KUBERN_FAULT_SECONDS", "8"))
NODE = "node-0"


def shell(text: str, name: str = "c", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", text], **more}


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 1, "nodeName": NODE, "containers": list(containers), **spec}}


def make(c: Any, *objects: dict[str, Any]) -> None:
    c.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def first(c: Any, name: str) -> dict[str, Any]:
    return (c.get("pod", name)["status"].get("containerStatuses") or [{}])[0]


def unit(c: Any, node: str = NODE) -> int:
    return int(json.loads((c.home / "nodes" / node / "unit.json").read_text())["pid"])


def processes(c: Any, *words: bytes) -> list[int]:
    """Processes of the node whose command line has all these words."""
    out, todo = [], [unit(c)]
    for pid in todo:
        for task in Path(f"/proc/{pid}/task").glob("*/children") if Path(f"/proc/{pid}").exists() else ():
            todo += [int(x) for x in task.read_text().split()]
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if all(w in line for w in words) and b"unshare" not in line and b"_node" not in line:
            out.append(pid)
    return out


def ready(c: Any, node: str = NODE) -> str:
    return next(x["status"] for x in c.get("node", node)["status"]["conditions"] if x["type"] == "Ready")


@pytest.fixture
def c(cluster: Any) -> Iterator[Any]:
    cluster.until(lambda: cluster.kubectl("get", "serviceaccount", "default", check=False), "no service account")
    yield cluster
    cluster.kubectl("delete", "pod", "--all", "--force", "--grace-period=0", "--wait=true", check=False)


def serves(c: Any, name: str) -> bool:
    return c.kubectl("exec", name, "--", "echo", "here", check=False) == "here\n"


@pytest.mark.parametrize("what", ["kubelet", "containerd"])
def test_a_killed_part_comes_back_and_the_pods_never_noticed(c: Any, what: str) -> None:
    words = {"kubelet": (b"kubern.agent",), "containerd": (b"containerd\0-c",)}[what]
    make(c, pod("stays", shell("i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done", livenessProbe={"exec": {"command": ["true"]}, "periodSeconds": 1})),
         pod("ends", shell("sleep 2; exit 3"), restartPolicy="Never"))
    c.wait("pod/stays")
    c.wait("pod/ends")
    before = first(c, "stays")
    killed = processes(c, *words)
    assert len(killed) == 1, killed
    os.kill(killed[0], signal.SIGKILL)
    ended = c.until(lambda: first(c, "ends").get("state", {}).get("terminated"), "its end was missed", 30)
    assert ended["exitCode"] == 3 and ended["reason"] == "Error"
    c.until(lambda: serves(c, "stays"), "no exec any more", 30)
    after = first(c, "stays")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    lines = [int(x) for x in c.kubectl("logs", "stays").split()]
    assert lines == list(range(len(lines))) and len(lines) > 10, "lines of the log are missing"
    assert processes(c, *words) != killed
    make(c, pod("new", shell("sleep 1000")))
    c.wait("pod/new")


def test_services_go_on_without_the_proxy_and_follow_when_it_is_back(c: Any) -> None:
    """The proxy lives in the agent; its rules are the kernel's."""
    def server(name: str) -> dict[str, Any]:
        made = pod(name, shell(f"while true; do echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\n{name}' | nc -l -p 8080; done"))
        made["metadata"]["labels"] = {"app": "served"}
        return made

    def answer() -> str:
        return c.kubectl("exec", "asks", "--", "timeout", "3", "wget", "-qO-", "http://served:8080", check=False).strip()
    make(c, server("first"), pod("asks", shell("sleep 1000")), {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "served"}, "spec": {
        "selector": {"app": "served"}, "ports": [{"port": 8080}]}})
    c.wait("pod/first")
    c.wait("pod/asks")
    c.until(lambda: answer() == "first", "no answer")
    address = c.get("service", "served")["spec"]["clusterIP"]
    agent, = processes(c, b"kubern.agent")
    asking = subprocess.Popen(["nsenter", f"--net=/proc/{unit(c)}/ns/net", "sh", "-c", f"sleep 0.2; curl -s -m 3 http://{address}:8080"],
                              stdout=subprocess.PIPE, text=True)
    os.kill(agent, signal.SIGKILL)
    assert asking.communicate(timeout=20)[0].strip() == "first", "the rules went with it"
    c.kubectl("delete", "pod", "first", "--force", "--grace-period=0")
    make(c, server("second"))
    c.until(lambda: answer() == "second", "it does not follow", 40)
    c.kubectl("delete", "service", "served")


def test_a_killed_shim_costs_one_restart(c: Any) -> None:
    make(c, pod("hit", shell("sleep 1000")), pod("beside", shell("sleep 1000")))
    c.wait("pod/hit")
    c.wait("pod/beside")
    uid = c.get("pod", "hit")["metadata"]["uid"]
    mine = [p for p in processes(c, b"sleep") if uid.encode() in Path(f"/proc/{p}/cgroup").read_bytes()]
    shim = int(Path(f"/proc/{mine[0]}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"shim" in Path(f"/proc/{shim}/cmdline").read_bytes()
    os.kill(shim, signal.SIGKILL)
    healed = c.until(lambda: (s := first(c, "hit")).get("restartCount", 0) >= 1 and "running" in s["state"] and s, "not restarted", 45)
    assert healed["restartCount"] <= 2
    c.until(lambda: serves(c, "hit"), "no exec any more", 20)
    assert first(c, "beside")["restartCount"] == 0


def test_an_image_that_comes_later(c: Any) -> None:
    """The registry lacks the image, then it has it: the back-off ends and the pod runs."""
    make(c, pod("late", {"name": "c", "image": "example.com/late:1", "command": ["sleep", "1000"]}))
    c.until(lambda: first(c, "late").get("state", {}).get("waiting", {}).get("reason") in ("ErrImagePull", "ImagePullBackOff"), "it found one", 40)
    index = c.home / "images/index.json"
    doc = json.loads(index.read_text())
    name = "io.containerd.image.name"
    busybox = next(m for m in doc["manifests"] if m.get("annotations", {}).get(name) == "docker.io/library/busybox:latest")
    doc["manifests"].append({**busybox, "annotations": {**busybox["annotations"], name: "example.com/late:1"}})
    index.write_text(json.dumps(doc))
    c.until(lambda: "running" in first(c, "late").get("state", {}), "it stays away", 60)


def test_the_unit_restarts_like_a_machine(c: Any) -> None:
    """Everything at once, the control plane too: what `up` then calls ready is ready, whatever old statuses say."""
    make(c, pod("reboots", shell("sleep 1000"), volumes=[{"name": "e", "emptyDir": {}}]), pod("done", shell("exit 0"), restartPolicy="Never"))
    c.wait("pod/reboots")
    c.until(lambda: c.get("pod", "done")["status"]["phase"] == "Succeeded", "not done")
    before, began = c.get("pod", "reboots"), datetime.now(UTC).isoformat()
    old = unit(c)
    for pid in (old, int((c.home / "kubern.lock").read_text())):
        os.kill(pid, signal.SIGKILL)                       # no goodbye: as if the power had gone
    c.up()
    assert unit(c) != old
    for node in (NODE, "node-1"):
        assert ready(c, node) == "True" and c.get("lease", node, "-n", "kube-node-lease")["spec"]["renewTime"] > began, f"{node} was not heard of since"
    after = c.until(lambda: (p := c.get("pod", "reboots")) and "running" in first(c, "reboots").get("state", {})
                    and first(c, "reboots")["restartCount"] >= 1 and p, "it does not run again", 60)
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "the same pod"
    c.until(lambda: serves(c, "reboots"), "no exec", 20)
    assert c.get("pod", "done")["status"]["phase"] == "Succeeded" and first(c, "done")["restartCount"] == 0, "what was done is not done again"


def test_without_the_control_plane_pods_are_looked_after(c: Any) -> None:
    make(c, pod("alone", shell("touch /tmp/ok; sleep 1000", livenessProbe={"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1}),
                shell("sleep 3; exit 1", "falls")))
    c.wait("pod/alone")
    before = first(c, "alone")
    control_plane = int((c.home / "kubern.lock").read_text())
    os.kill(control_plane, signal.SIGSTOP)
    time.sleep(AWAY_S)
    log = max((c.home / f"nodes/{NODE}/pods").glob("default_alone_*/falls/*.log"), key=lambda p: p.stat().st_mtime)
    os.kill(control_plane, signal.SIGCONT)
    assert int(log.name.split(".")[0]) >= 1, "nothing was restarted meanwhile"
    c.until(lambda: ready(c) == "True", "the node stays away", 40)
    after = c.until(lambda: (p := c.get("pod", "alone")["status"]["containerStatuses"]) and p[1]["restartCount"] >= 1 and p, "the API was not told", 30)
    assert (after[0]["containerID"], after[0]["restartCount"]) == (before["containerID"], 0)


def test_a_node_that_is_cut_off_loses_what_tolerates_no_longer_and_comes_back(c: Any) -> None:
    def toleration(seconds: int) -> list[dict[str, Any]]:
        return [{"key": f"node.kubernetes.io/{k}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
                for k in ("unreachable", "not-ready")]

    make(c, pod("leaves", shell("sleep 1000"), tolerations=toleration(2)), pod("waits", shell("sleep 1000"), tolerations=toleration(3600)))
    c.wait("pod/leaves")
    c.wait("pod/waits")
    before = first(c, "waits")

    def link(state: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{unit(c)}/ns/net", "ip", "link", "set", "eth0", state], check=True)

    link("down")
    try:
        c.until(lambda: ready(c) == "Unknown", "nobody noticed", 40)
        c.until(lambda: c.get("pod", "leaves")["metadata"].get("deletionTimestamp"), "not evicted", 30)
        assert c.get("pod", "leaves")["status"]["phase"] == "Running", "nobody knows whether it runs"
        assert not c.get("pod", "waits")["metadata"].get("deletionTimestamp")
    finally:
        link("up")
        record = json.loads((c.home / "nodes" / NODE / "unit.json").read_text())
        gateway = json.loads(Path(record["config"]).read_text())["gateway"]
        subprocess.run(["nsenter", f"--net=/proc/{unit(c)}/ns/net", "ip", "route", "replace", "default", "via", gateway], check=False)
    c.until(lambda: ready(c) == "True", "the node stays away", 60)
    c.until(lambda: not c.kubectl("get", "pod", "leaves", check=False), "it does not go", 40)
    after = c.until(lambda: (s := first(c, "waits")).get("ready") and s, "not ready", 30)
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    c.until(lambda: serves(c, "waits"), "no exec", 20)


class Clock:
    """The time as a node's agent sees it: libfaketime under it moves the wall clock, and only that."""

    def __init__(self, c: Any, library: Path) -> None:
        record = json.loads((c.home / "nodes" / NODE / "unit.json").read_text())
        self.library = library
        self.cluster, self.config, self.file = c, Path(record["config"]), Path(record["config"]).parent / "tmp/offset"
        self.usual, self.own = self.config.read_text(), c.home / "nodes" / NODE / "kubelet.yaml"

    def begin(self, offset_s: int = 0) -> None:
        """The agent starts anew with such a clock."""
        self.set(offset_s)
        self.own.write_text("crashLoopBackOff: {maxContainerRestartPeriod: 3s}\n")
        doc = json.loads(self.usual)
        doc["agent"] = ["env", f"LD_PRELOAD={self.library}", f"FAKETIME_TIMESTAMP_FILE={self.file}", "FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1",
                        "FAKETIME_DISABLE_SHM=1", *doc["agent"]]
        self._restart(json.dumps(doc))

    def set(self, offset_s: int) -> None:
        tmp = self.file.with_suffix(".new")
        tmp.write_text(f"{offset_s:+d}\n")
        tmp.rename(self.file)

    def end(self) -> None:
        self.own.unlink(missing_ok=True)
        self._restart(self.usual)

    def _restart(self, config: str) -> None:
        old = processes(self.cluster, b"kubern.agent")
        self.config.write_text(config)
        supervisor = int(Path(f"/proc/{unit(self.cluster)}/task/{unit(self.cluster)}/children").read_text().split()[0])
        os.kill(supervisor, signal.SIGHUP)
        self.cluster.until(lambda: (now := processes(self.cluster, b"kubern.agent")) and now != old, "the agent is not started anew", 30)


@pytest.fixture
def clock(c: Any) -> Iterator[Clock]:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("a node's clock is moved by libfaketime: apt-get install libfaketime")
    made = Clock(c, library)
    yield made
    made.end()


def test_a_clock_that_jumps_stops_nothing(c: Any, clock: Clock) -> None:
    """An hour forward, then back: probes, restarts and volumes go on, tokens are renewed, pods stay."""
    clock.begin()
    make(c, pod("stays", shell("sleep 1000", livenessProbe={"exec": {"command": ["true"]}, "periodSeconds": 1},
                               volumeMounts=[{"name": "t", "mountPath": "/t"}]),
                volumes=[{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}]),
         pod("falls", shell("sleep 2; exit 1")))
    c.wait("pod/stays")

    def token() -> str:
        return c.exec("stays", "cat", "/t/token", check=False)

    def restarts() -> int:
        return int(first(c, "falls").get("restartCount") or 0)
    before, old = first(c, "stays"), c.until(token, "no token")
    c.until(lambda: restarts() >= 1, "no restart")
    for offset in (3600, 0):
        clock.set(offset)
        had = restarts()
        c.until(lambda n=had: restarts() > n, f"no restart at {offset:+d} s", 60)
        make(c, pod(f"new{offset}", shell("sleep 1000")))
        c.wait(f"pod/new{offset}")
        assert ready(c) == "True"
    assert c.until(lambda: (t := token()) != old and t, "the token was not renewed", 30).count(".") == 2
    after = first(c, "stays")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


def test_certificates_are_renewed_before_they_end(c: Any, clock: Clock) -> None:
    """Most of a year passes for the agent: it asks for new identities, and goes on with them."""
    kubeconfigs = [c.home / "nodes" / NODE / f for f in ("kubelet.kubeconfig", "network.kubeconfig")]
    was = [k.read_text() for k in kubeconfigs]
    clock.begin(offset_s=340 * 86400)
    c.until(lambda: all(k.read_text() != w for k, w in zip(kubeconfigs, was, strict=True)), "not renewed", 40)
    signed = {r["spec"]["signerName"] for r in c.get("csr")["items"] if r["spec"]["username"] == f"system:node:{NODE}" and r["status"].get("certificate")}
    assert signed == {"kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kube-apiserver-client"}
    clock.end()
    make(c, pod("with-it", shell("sleep 1000")))
    c.wait("pod/with-it")
