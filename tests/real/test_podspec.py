"""What a pod may ask for, and what it then sees: a table. All pods run side by side on a cluster of two nodes; each test reads one pod's words."""

from __future__ import annotations

import base64
import http.server
import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

BUSYBOX = {"image": "busybox", "imagePullPolicy": "IfNotPresent"}
HOST_PORT = 18088
PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}
CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"COLOUR": "blue", "SIZE": "7"}}
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden"}, "stringData": {"pw": "s3cret"}}


def shell(text: str, name: str = "c", **more: Any) -> dict[str, Any]:
    return {"name": name, **BUSYBOX, "command": ["sh", "-c", text], **more}


@dataclass(frozen=True)
class Asks:
    """A pod's spec, and what its log (or its end) must hold: regular expressions, in this order."""

    container: dict[str, Any]
    says: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)

    def pod(self, name: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 1, "restartPolicy": "Never", "containers": [self.container], "nodeName": "node-0", **self.spec}}


def volume(name: str, **source: Any) -> dict[str, Any]:
    return {"name": name, **source}


PODS: dict[str, Asks] = {
    "environment": Asks(shell(
        'echo $COLOUR $P_SIZE $PW $ME $NODE $IP; echo $CPU $SUM; echo "$HELLO" "$ESCAPED" $FILED; echo $1', args=["x", "arg-$(COLOUR)"],
        resources={"requests": {"cpu": "10m"}, "limits": {"cpu": "1500m", "memory": "32Mi"}},
        envFrom=[{"configMapRef": {"name": "conf"}}, {"prefix": "P_", "configMapRef": {"name": "conf"}}, {"secretRef": {"name": "none", "optional": True}}],
        env=[{"name": "PW", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "pw"}}},
             {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
             {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
             {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
             {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
             {"name": "SUM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
             {"name": "HELLO", "value": "hello-$(ME)"}, {"name": "ESCAPED", "value": "$$(ME)-$(NOBODY)"},
             {"name": "FILED", "valueFrom": {"fileKeyRef": {"volumeName": "made", "path": "env", "key": "FILED"}}}]),
        (r"blue 7 s3cret environment node-0 10\.", "1500 32", r"hello-environment \$\(ME\)-\$\(NOBODY\) yes", "arg-blue"),
        {"volumes": [volume("made", emptyDir={})],
         "initContainers": [shell("echo FILED=yes > /made/env", "writes", volumeMounts=[{"name": "made", "mountPath": "/made"}])]}),
    "subpathexpr": Asks(shell("echo here > /own/f; find /whole -name f", env=[{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                              volumeMounts=[{"name": "e", "mountPath": "/whole"}, {"name": "e", "mountPath": "/own", "subPathExpr": "of/$(ME)"}]),
                        ("/whole/of/subpathexpr/f",), {"volumes": [volume("e", emptyDir={})]}),
    "projected": Asks(shell("cat /all/colour /all/pw; echo; cat /all/name; echo; cut -d. -f2 /all/token", volumeMounts=[{"name": "all", "mountPath": "/all"}]),
                      ("blues3cret", "projected", "[A-Za-z0-9_-]{80}"), {"volumes": [volume("all", projected={"sources": [
                          {"configMap": {"name": "conf", "items": [{"key": "COLOUR", "path": "colour"}]}}, {"secret": {"name": "hidden"}},
                          {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                          {"serviceAccountToken": {"path": "token", "audience": "somebody", "expirationSeconds": 600}}]})]}),
    "imagevolume": Asks(shell("ls /image/etc/nginx/nginx.conf; touch /image/x || echo read-only", volumeMounts=[{"name": "i", "mountPath": "/image"}]),
                        ("/image/etc/nginx/nginx.conf", "read-only"),
                        {"volumes": [volume("i", image={"reference": "nginx", "pullPolicy": "IfNotPresent"})]}),
    "hostpid": Asks(shell("tr '\\0' ' ' < /proc/1/cmdline; [ $(readlink /proc/1/ns/ipc) = $(readlink /proc/self/ns/ipc) ] && echo one ipc",
                          securityContext={"privileged": True}), ("_node", "one ipc"), {"hostPID": True, "hostIPC": True}),
    "ownipc": Asks(shell("[ $(readlink /proc/1/ns/ipc) = $(readlink /proc/self/ns/ipc) ] || echo own ipc", securityContext={"privileged": True}),
                   ("own ipc",), {"hostPID": True}),
    "hostnetwork": Asks(shell("hostname; ip -4 -o addr show eth0; cat /etc/resolv.conf"), ("node-0", r"172\.30\.", r"search default\.svc\.cluster\.local"),
                        {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}),
    "shared": Asks(shell(""), ("/pause", "sleep 4242"), {"shareProcessNamespace": True, "containers": [
        shell("until ps | grep -q '[s]leep 4242'; do sleep 0.2; done; ps"), shell("sleep 4242 & sleep 5", "other")]}),
    "hosts": Asks(shell("cat /etc/hosts; hostname; hostname -f"),
                  (r"10\.[\d.]+\s+front\.crew\.default\.svc\.cluster\.local\s+front", r"192\.0\.2\.9\s+far\s+away", "front.crew.default.svc.cluster.local"),
                  {"hostname": "front", "subdomain": "crew", "setHostnameAsFQDN": True, "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["far", "away"]}]}),
    "resolver": Asks(shell("cat /etc/resolv.conf"), (r"search a\.example b\.example", r"nameserver 192\.0\.2\.53", "options ndots:2 edns0"),
                     {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["a.example", "b.example"],
                                                         "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
    "capabilities": Asks(shell("grep CapEff /proc/self/status; touch /proc/sys/kernel/hostname || echo masked",
                               securityContext={"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}), (r"CapEff:\s+0000000000001000", "masked")),
    "privileged": Asks(shell("grep CapEff /proc/self/status; ls /dev/kmsg; [ -w /proc/sys/kernel/hostname ] && echo unmasked",
                             securityContext={"privileged": True}), (r"CapEff:\s+000001f", "/dev/kmsg", "unmasked")),
    "groups": Asks(shell("id -u; id -g; id -G; touch /e/f; stat -c %g /e/f", volumeMounts=[{"name": "e", "mountPath": "/e"}]),
                   ("1000", "3000", "3000 2000 4000|3000 4000 2000", "2000"),
                   {"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [4000]},
                    "volumes": [volume("e", emptyDir={})]}),
    "seccomp": Asks(shell("grep Seccomp: /proc/self/status; mkdir /tmp/x || echo refused", securityContext={
        "seccompProfile": {"type": "Localhost", "localhostProfile": "no-mkdir.json"}}), (r"Seccomp:\s+2", "refused")),
    "runtimeclass": Asks(shell("echo runs"), ("runs",), {"runtimeClassName": "plain"}),
    "private": Asks({"name": "c", "image": "PRIVATE/secret/busybox:1", "command": ["echo", "let in"]}, ("let in",),
                    {"imagePullSecrets": [{"name": "registry"}]}),
}
# what ends, or does not begin: name -> (spec's container, more of the spec)
OTHERS: dict[str, Asks] = {
    "signal": Asks({"name": "c", "image": "nginx", "imagePullPolicy": "IfNotPresent", "command": [       # the image says SIGQUIT
        "sh", "-c", "trap 'exit 9' QUIT; trap 'exit 3' TERM; while true; do sleep 0.1; done"]}, spec={"activeDeadlineSeconds": 2}),
    "stubborn": Asks(shell("trap '' TERM; while true; do sleep 0.1; done"), spec={"activeDeadlineSeconds": 2, "terminationGracePeriodSeconds": 2}),
    "onfailure": Asks(shell("[ -e /e/f ] || { touch /e/f; exit 1; }", volumeMounts=[{"name": "e", "mountPath": "/e"}]),
                      spec={"restartPolicy": "OnFailure", "volumes": [volume("e", emptyDir={})]}),
    "rules": Asks(shell("[ -e /e/f ] || { touch /e/f; exit 42; }; exit 5", volumeMounts=[{"name": "e", "mountPath": "/e"}], restartPolicy="Never",
                        restartPolicyRules=[{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]),
                  spec={"volumes": [volume("e", emptyDir={})]}),
    "together": Asks(shell(""), spec={"volumes": [volume("e", emptyDir={})], "containers": [
        shell("[ -e /e/f ] || { touch /e/f; sleep 1; exit 42; }; sleep 1", volumeMounts=[{"name": "e", "mountPath": "/e"}], restartPolicy="Never",
              restartPolicyRules=[{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]),
        shell("sleep 2", "beside")]}),
    "nosuchclass": Asks(shell("true"), spec={"runtimeClassName": "odd"}),
    "apparmor": Asks(shell("true", securityContext={"appArmorProfile": {"type": "RuntimeDefault"}})),
    "strictgroups": Asks(shell("true"), spec={"securityContext": {"supplementalGroupsPolicy": "Strict"}}),
    "unmasked": Asks(shell("true", securityContext={"procMount": "Unmasked"}), spec={"hostUsers": False}),
    "deepreadonly": Asks(shell("true", volumeMounts=[{"name": "e", "mountPath": "/e", "readOnly": True, "recursiveReadOnly": "Enabled"}]),
                         spec={"volumes": [volume("e", emptyDir={})]}),
    "neverpulled": Asks({"name": "c", "image": "example.com/none:1", "imagePullPolicy": "Never"}),
    "unlet": Asks({"name": "c", "image": "PRIVATE/secret/busybox:2", "command": ["true"]}),
    "listens": Asks(shell("while true; do echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nby host port' | nc -l -p 80; done",
                          ports=[{"containerPort": 80, "hostPort": HOST_PORT}])),
    "burstable": Asks(shell("sleep 1000", resources={"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"memory": "48Mi", "cpu": "500m"}})),
}


class Registry(http.server.ThreadingHTTPServer):
    """The cluster's registry once more, for those who know the password."""

    ACCEPTS = "Basic " + base64.b64encode(b"me:pw").decode()

    def __init__(self, gateway: str) -> None:
        outer = f"http://{gateway}:5001"

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Authorization") != Registry.ACCEPTS:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="private"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                path = re.sub(r"manifests/\d$", "manifests/latest", self.path.replace("secret/busybox", "library/busybox"))
                asked = urllib.request.Request(outer + path, method=self.command, headers={"Accept": self.headers.get("Accept") or "*/*"})
                with urllib.request.urlopen(asked, timeout=20) as got:
                    body = got.read()
                    self.send_response(got.status)
                    for k in ("Content-Type", "Docker-Content-Digest", "Content-Length"):
                        if got.headers.get(k):
                            self.send_header(k, got.headers[k])
                    self.end_headers()
                    self.wfile.write(body)
            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass
        super().__init__((gateway, 0), Handler)
        self.name = f"{gateway}:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def c(cluster: Any) -> Iterator[Any]:
    """All the pods, made at once."""
    cluster.until(lambda: cluster.kubectl("get", "serviceaccount", "default", check=False), "no service account")
    node = cluster.home / "nodes/node-0"
    (node / "kubelet/seccomp").mkdir(exist_ok=True)
    (node / "kubelet/seccomp/no-mkdir.json").write_text(json.dumps(PROFILE))
    registry = Registry(json.loads((cluster.home / "fabric.json").read_text())["subnet"].replace("0/24", "1"))
    hosts = Path(json.loads((node / "unit.json").read_text())["config"]).parent / "certs.d" / registry.name / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f'server = "http://{registry.name}"\n[host."http://{registry.name}"]\n  capabilities = ["pull", "resolve"]\n')
    keys = {"auths": {registry.name: {"auth": base64.b64encode(b"me:pw").decode()}}}
    things = [CONFIG, SECRET, {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "plain"}, "handler": "runc"},
              {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "odd"}, "handler": "nosuch"},
              {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry"}, "type": "kubernetes.io/dockerconfigjson",
               "data": {".dockerconfigjson": base64.b64encode(json.dumps(keys).encode()).decode()}}]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*things, *(a.pod(n) for n, a in {**PODS, **OTHERS}.items())]})
    cluster.kubectl("apply", "-f", "-", stdin=text.replace("PRIVATE/", registry.name + "/"))
    yield cluster
    registry.shutdown()
    registry.server_close()


@pytest.mark.parametrize("name", PODS)
def test_what_it_sees(c: Any, name: str) -> None:
    def log() -> str:
        over = c.get("pod", name)["status"].get("phase") in ("Succeeded", "Failed")
        return c.kubectl("logs", name, "-c", "c") if over else ""
    text = at = c.until(log, f"{name} said nothing")
    for wanted in PODS[name].says:
        found = re.search(wanted, at)
        assert found, f"no {wanted} in:\n{text}"
        at = at[found.end():]


def ended(c: Any, name: str, container: int = 0) -> dict[str, Any]:
    status = c.until(lambda: (s := c.get("pod", name)["status"])["phase"] in ("Succeeded", "Failed") and s, f"{name} does not end", 40)
    return {**status["containerStatuses"][container], "phase": status["phase"]}


def waits(c: Any, name: str, reason: str) -> str:
    """Until the container waits for this reason; the message."""
    def state() -> dict[str, Any]:
        return (c.get("pod", name)["status"].get("containerStatuses") or [{}])[0].get("state", {}).get("waiting") or {}
    return str(c.until(lambda: re.search(reason, state().get("reason", "")) and state(), f"{name} does not wait").get("message"))


def test_the_images_stop_signal(c: Any) -> None:
    assert ended(c, "signal")["state"]["terminated"]["exitCode"] == 9


def test_who_ignores_the_signal_is_killed_when_its_grace_is_over(c: Any) -> None:
    end = ended(c, "stubborn")["state"]["terminated"]
    assert (end["exitCode"], end["reason"]) == (137, "Error")


@pytest.mark.parametrize(("name", "phase", "code", "restarts"), [("onfailure", "Succeeded", 0, 1), ("rules", "Failed", 5, 1), ("together", "Succeeded", 0, 1)])
def test_who_is_started_again(c: Any, name: str, phase: str, code: int, restarts: int) -> None:
    s = ended(c, name)
    assert (s["phase"], s["state"]["terminated"]["exitCode"], s["restartCount"]) == (phase, code, restarts)
    if name == "together":
        assert ended(c, name, 1)["restartCount"] == 1, "its neighbour was not started anew with it"


@pytest.mark.parametrize(("name", "reason"), [("apparmor", "AppArmor"), ("strictgroups", "SupplementalGroupsPolicyNotSupported"),
                                              ("unmasked", "UserNamespacesNotSupported")])
def test_what_the_machine_cannot_is_refused(c: Any, name: str, reason: str) -> None:
    s = c.until(lambda: (s := c.get("pod", name)["status"]).get("phase") == "Failed" and s, f"{name} was let in")
    assert s["reason"] == reason and s["message"].startswith("Pod was rejected: ")


def test_why_it_does_not_begin(c: Any) -> None:
    assert "not supported by the runtime" in waits(c, "deepreadonly", "CreateContainerConfigError")
    assert waits(c, "neverpulled", "ErrImageNeverPull").endswith('is not present with pull policy of Never')
    assert "401 Unauthorized" in waits(c, "unlet", "ErrImagePull")
    c.until(lambda: 'no runtime for "nosuch"' in c.kubectl("get", "events", "--field-selector=involvedObject.name=nosuchclass"), "no word of the handler")


def test_a_port_of_the_node_leads_to_the_pod(c: Any) -> None:
    address = c.node_address("node-0")
    asked = ["curl", "-s", "-m", "2", f"http://{address}:{HOST_PORT}"]
    c.until(lambda: "by host port" in subprocess.run(asked, capture_output=True, text=True).stdout, "no answer")


def test_a_pods_cgroup_holds_its_limits(c: Any) -> None:
    c.wait("pod/burstable")
    uid = c.get("pod", "burstable")["metadata"]["uid"]

    def read(*names: str) -> str:
        found = [f for n in names for f in Path("/sys/fs/cgroup").glob(n.format(f"kubern/*/node-0/kubepods/burstable/pod{uid}"))]
        assert found, "no such cgroup"
        return found[0].read_text().strip()
    assert read("memory/{}/memory.limit_in_bytes", "{}/memory.max") == str(48 << 20)
    assert read("cpu/{}/cpu.cfs_quota_us", "{}/cpu.max").split()[0] == "50000"
    c.kubectl("delete", "pod", "burstable", "--grace-period=0", "--force")
