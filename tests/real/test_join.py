"""A machine joins: a network namespace of its own, one cable to the cluster, a token and a hash."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubern.kubelet import certificates
from tests.real.cluster import KUBECTL

pytestmark = pytest.mark.real

SPACE, CABLE = "kn-test-join", "kn-tjoin"


def sh(*words: str, check: bool = True) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=check).stdout


@pytest.fixture(scope="module")
def command(cluster: Any) -> list[str]:
    """`kubern join …`, as the cluster prints it."""
    return list(cluster.kubern("token", "create", "--print-join-command", "--ttl", "1h").split())


def box_in(space: str) -> subprocess.Popen[str]:
    """A shell with mount and process namespaces of its own in a network namespace: as on a machine."""
    return subprocess.Popen(["nsenter", f"--net=/run/netns/{space}", "unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc", "--propagation", "shared",
                             "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(box: subprocess.Popen[str], command: str) -> tuple[int, str]:
    """(exit code, output) of a command in a box."""
    assert box.stdin and box.stdout
    box.stdin.write(f"{command}; code=$?; echo; echo END $code\n")
    box.stdin.flush()
    out = ""
    for line in box.stdout:
        if line.startswith("END "):
            return int(line.split()[1]), out
        out += line
    raise AssertionError(out)


@pytest.fixture(scope="module")
def machine(cluster: Any) -> Iterator[Any]:
    """A namespace on the cluster's segment; calling it runs a command there, as on a machine of its own."""
    fabric = json.loads((cluster.home / "fabric.json").read_text())
    gateway = fabric["subnet"].replace("0/24", "1")
    address = fabric["subnet"].replace("0/24", "200")
    home = Path(tempfile.mkdtemp(prefix="kj"))
    sh("ip", "netns", "del", SPACE, check=False)
    sh("ip", "netns", "add", SPACE)
    sh("ip", "link", "add", CABLE, "type", "veth", "peer", "name", "eth0", "netns", SPACE)
    sh("ip", "link", "set", CABLE, "master", fabric["bridge"], "up")
    for line in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up", f"route add default via {gateway}"):
        sh("ip", "-n", SPACE, *line.split())
    box = box_in(SPACE)

    def run(*words: str, named: bool = True) -> tuple[int, str]:
        return said(box, " ".join(words) + f" --data-dir {home}{' --node-name far' if named else ''}")
    try:
        yield run
    finally:
        box.kill()
        box.communicate()
        with contextlib.suppress(subprocess.CalledProcessError):
            sh("ip", "netns", "del", SPACE)
        sh(sys.executable, "-m", "kubern", "down", "--purge", "--data-dir", str(home), check=False)


def kubern(words: list[str]) -> list[str]:
    return [sys.executable, "-m", *words]


def test_a_wrong_hash_and_a_wrong_token_are_refused(machine: Any, command: list[str]) -> None:
    code, out = machine(*kubern([*command[:-1], "sha256:" + "0" * 64]))
    assert code == 1 and "CA has the hash" in out
    forged = [w if "." not in w or ":" in w else w[:7] + "0" * 16 for w in command]
    code, out = machine(*kubern(forged))
    assert code == 1 and "signature" in out


def test_it_joins_and_runs_pods(cluster: Any, machine: Any, command: list[str]) -> None:
    code, out = machine(*kubern(command))
    assert code == 0, out
    assert "is Ready" in out
    far = cluster.get("node", "far")
    assert next(a["address"] for a in far["status"]["addresses"] if a["type"] == "InternalIP").endswith(".200")
    for name, node in (("web-far", "far"), ("web-near", "node-0")):
        cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "nginx"}]}}))
        cluster.kubectl("expose", "pod", name, "--port=80")
    for name in ("web-far", "web-near"):
        cluster.wait(f"pod/{name}")
    for asking, asked in (("web-far", "web-near"), ("web-near", "web-far"), ("web-far", "web-far")):
        assert "nginx" in cluster.exec(asking, "wget", "-qO-", f"http://{asked}")
    assert "start worker" in cluster.kubectl("logs", "web-far")


def test_its_identity_and_its_serving_certificate(cluster: Any, machine: Any) -> None:
    def issued() -> dict[str, str]:
        csrs = cluster.get("csr")["items"]
        return {c["spec"]["signerName"]: c["spec"]["username"] for c in csrs if c["status"].get("certificate")}
    cluster.until(lambda: len(issued()) == 3, "three certificates")
    assert issued()["kubernetes.io/kube-apiserver-client-kubelet"].startswith("system:bootstrap:")
    assert issued()["kubernetes.io/kubelet-serving"] == "system:node:far"
    address = cluster.node_address("far")
    ca = cluster.home / "pki" / "ca.crt"
    shown = sh("sh", "-c", f"echo | openssl s_client -connect {address}:10250 -CAfile {ca} -verify_ip {address} 2>/dev/null", check=False)
    assert "Verify return code: 0" in shown


def test_a_kubelets_own_bootstrap(cluster: Any, machine: Any, command: list[str]) -> None:
    """What any kubelet does with the kubeconfig that `kubeadm join` writes: a token at first, then the certificate it was given, nobody else's."""
    token = command[command.index("--token") + 1]
    info = yaml.safe_load(cluster.get("cm", "cluster-info", "-n", "kube-public")["data"]["kubeconfig"])
    name, folder = "elsewhere", Path(tempfile.mkdtemp(prefix="kj"))

    def kubeconfig(**user: str) -> str:
        """clusters from cluster-info, as kubeadm's bootstrap-kubelet.conf."""
        path = folder / f"{len(list(folder.iterdir()))}.conf"
        path.write_text(yaml.safe_dump({**info, "users": [{"name": "u", "user": user}], "current-context": "c",
                                        "contexts": [{"name": "c", "context": {"cluster": info["clusters"][0].get("name") or "", "user": "u"}}]}))
        return f"--kubeconfig={path}"
    first = kubeconfig(token=token)
    assert "system:bootstrappers:kubeadm:default-node-token" in cluster.kubectl(first, "auth", "whoami")
    asked = certificates.ask(f"system:node:{name}", ("system:nodes",))
    cluster.kubectl(first, "create", "-f", "-", stdin=json.dumps({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "csr-elsewhere"}, "spec": {
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["digital signature", "client auth"],
            "request": base64.b64encode(asked.csr).decode()}}))
    given = cluster.until(lambda: cluster.kubectl(first, "get", "csr", "csr-elsewhere", "-o", "jsonpath={.status.certificate}"), "no certificate")
    own = kubeconfig(**{"client-certificate-data": given, "client-key-data": base64.b64encode(asked.key).decode()})
    made = json.loads(cluster.kubectl(own, "create", "-o", "json", "-f", "-", stdin=json.dumps({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})))
    assert made["metadata"]["name"] == name
    cluster.kubectl(own, "create", "-f", "-", stdin=json.dumps({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {
        "name": name, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}}))
    for verb in (["get", "secrets", "-A"], ["delete", "node", "far"], ["label", "node", "far", "mine=1"]):
        assert "forbidden" in cluster.kubectl_error(own, *verb)
    cluster.kubectl("delete", "node", name)
    shutil.rmtree(folder)


def test_it_starts_again_without_a_token(cluster: Any, machine: Any, command: list[str]) -> None:
    """As after a reboot: with what it has. Its pods go on."""
    before = cluster.get("pod", "web-far")["status"]["containerStatuses"][0]["containerID"]
    machine("kill $(pgrep -of 'kubern _node'); sleep 3; true")
    code, out = machine(*kubern(command[:3]))
    assert code == 0 and "is Ready" in out, out
    cluster.until(lambda: "nginx" in cluster.exec("web-near", "wget", "-qO-", "http://web-far", check=False), "web-far answers")
    assert cluster.get("pod", "web-far")["status"]["containerStatuses"][0]["containerID"] == before


def test_a_token_ends(cluster: Any, machine: Any) -> None:
    brief = cluster.kubern("token", "create", "--print-join-command", "--ttl", "2s").split()
    id_ = brief[brief.index("--token") + 1].partition(".")[0]
    cluster.until(lambda: not cluster.kubectl("get", "secret", "-n", "kube-system", f"bootstrap-token-{id_}", "--ignore-not-found"), "its secret goes")
    cluster.until(lambda: f"jws-kubeconfig-{id_}" not in cluster.get("cm", "cluster-info", "-n", "kube-public")["data"], "its signature goes")


def test_leaving_takes_everything_away(cluster: Any, machine: Any) -> None:
    """`kubern down` on the machine: no process, link, route, rule or address of it stays."""
    code, out = machine(*kubern(["kubern", "down"]), named=False)
    assert code == 0, out

    def inside(*words: str) -> str:
        return sh("nsenter", f"--net=/run/netns/{SPACE}", *words)
    assert [line.split(":")[1].strip().partition("@")[0] for line in inside("ip", "-o", "link").splitlines()] == ["lo", "eth0"]
    assert inside("nft", "list", "tables") == "" and "proto 75" not in inside("ip", "route")
    assert inside("ip", "route", "show", "table", "local", "proto", "76") == ""


def test_tokens_are_listed_and_deleted(cluster: Any, command: list[str]) -> None:
    id_ = command[command.index("--token") + 1].partition(".")[0]
    assert id_ in cluster.kubern("token", "list")
    cluster.kubern("token", "delete", id_)
    assert id_ not in cluster.kubern("token", "list")
    cluster.until(lambda: f"jws-kubeconfig-{id_}" not in cluster.get("cm", "cluster-info", "-n", "kube-public")["data"], "its signature goes")


def test_the_clusters_own_machine_as_a_node(cluster: Any) -> None:
    """`up --host-node`, on a machine alone: its node is Ready, runs a pod, is taken up again, and goes with the cluster."""
    space, home = "kn-test-host", Path(tempfile.mkdtemp(prefix="kj"))
    sh("ip", "netns", "del", space, check=False)
    sh("ip", "netns", "add", space)
    sh("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", "away")
    for line in ("addr add 192.0.2.50/24 dev eth0", "link set eth0 up", "link set away up", "link set lo up", "route add default via 192.0.2.1"):
        sh("ip", "-n", space, *line.split())
    box = box_in(space)
    up = f"{sys.executable} -m kubern up --host-node --detach --port 6443 --data-dir {home}"
    kubectl = f"{KUBECTL} --kubeconfig {home}/admin.kubeconfig"
    try:
        code, out = said(box, up)
        assert code == 0 and "is Ready" in out, out
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "localhost/kubern/pause:1", "imagePullPolicy": "Never"}]}}
        (home / "p.json").write_text(json.dumps(pod))
        said(box, f"until {kubectl} get serviceaccount default; do sleep 0.2; done; {kubectl} apply -f {home}/p.json")
        code, out = said(box, f"{kubectl} wait --for=condition=Ready pod/p --timeout=60s")
        assert code == 0, out + said(box, f"{kubectl} describe pod p")[1]
        code, out = said(box, up)
        assert code == 0 and "already running" in out, out
        assert said(box, f"{sys.executable} -m kubern down --data-dir {home}")[0] == 0
        assert {x.split(":")[1].strip().partition("@")[0] for x in sh("ip", "-n", space, "-o", "link").splitlines()} == {"lo", "eth0", "away"}
    finally:
        box.kill()
        box.communicate()
        sh("ip", "netns", "del", space, check=False)
        sh(sys.executable, "-m", "kubern", "down", "--purge", "--data-dir", str(home), check=False)
