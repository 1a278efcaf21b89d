"""Environment, names and files made for containers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from kubern.kubelet import identity
from kubern.kubelet.container import CannotCreate, Node, container_config, sandbox_config
from kubern.kubelet.env import BadEnv, Values, environment, expand, field_value, resource_value, service_variables
from kubern.kubelet.projection import Missing, payload, write
from kubern.kubelet.runtime import Image

POD: dict[str, Any] = {"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": 'x"y'}},
                       "spec": {"containers": [], "nodeName": "node", "serviceAccountName": "sa"}, "status": {}}
CONFIG = {"data": {"k": "v", "other": "w"}, "binaryData": {"bin": base64.b64encode(b"\xff").decode()}}
SECRET = {"data": {"pw": base64.b64encode(b"s3cret").decode()}}
NODE = Node("node", "/kubern/x/node", "/logs", cluster_dns=("10.96.0.10",), memory_bytes=8 << 30)


def lookup(resource: str, namespace: str, name: str) -> dict[str, Any] | None:
    return {("configmaps", "cm"): CONFIG, ("secrets", "s"): SECRET}.get((resource, name))


@pytest.mark.parametrize(("text", "out"), [
    ("$(A)", "1"), ("$$(A)", "$(A)"), ("$(NO)", "$(NO)"), ("$(A", "$(A"), ("$", "$"), ("$A", "$A"), ("x$(A)y$(A)", "x1y1"), ("$$$(A)", "$1"),
    ("$$$$(A)", "$$(A)"), ("$()", "$()")])
def test_expansion(text: str, out: str) -> None:
    assert expand(text, {"A": "1"}) == out


def test_environment_in_order_of_precedence() -> None:
    c = {"name": "c", "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"}, {"secretRef": {"name": "s"}},
                                  {"configMapRef": {"name": "gone", "optional": True}}],
         "env": [{"name": "P_k", "value": "own"}, {"name": "X", "value": "$(P_k)-$(pw)-$(LATER)"}, {"name": "LATER", "value": "l"},
                 {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['b']"}}},
                 {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                 {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": True}}}]}
    env = environment(POD, c, Values(("10.0.0.1",)), (), lookup)
    assert env == {"P_k": "own", "P_other": "w", "pw": "s3cret", "X": "own-s3cret-$(LATER)", "LATER": "l", "F": "2", "S": "s3cret"}


@pytest.mark.parametrize(("source", "text"), [
    ({"configMapKeyRef": {"name": "gone", "key": "k"}}, 'configmap "gone" not found'),
    ({"secretKeyRef": {"name": "s", "key": "none"}}, "couldn't find key none in Secret n/s"),
    ({"resourceFieldRef": {"containerName": "no", "resource": "limits.cpu"}}, "container no not found")])
def test_references_that_lead_nowhere(source: dict[str, Any], text: str) -> None:
    with pytest.raises(BadEnv, match=text):
        environment(POD, {"name": "c", "env": [{"name": "A", "valueFrom": source}]}, Values(), (), lookup)


def test_service_variables() -> None:
    def service(name: str, namespace: str, ip: str, *ports: dict[str, Any]) -> dict[str, Any]:
        return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": list(ports)}}
    every = [service("kubernetes", "default", "10.96.0.1", {"port": 443, "name": "https"}), service("my-db", "n", "10.96.0.9", {"port": 5, "protocol": "UDP"}),
             service("headless", "n", "None", {"port": 1}), service("far", "other", "10.96.0.8", {"port": 1})]
    env = service_variables("n", True, every)
    assert env["KUBERNETES_SERVICE_HOST"] == "10.96.0.1" and env["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
    assert env["MY_DB_PORT"] == "udp://10.96.0.9:5" and env["MY_DB_PORT_5_UDP_ADDR"] == "10.96.0.9"
    assert not any(k.startswith(("HEADLESS", "FAR")) for k in env)
    assert not any(k.startswith("MY_DB") for k in service_variables("n", False, every))


@pytest.mark.parametrize(("path", "text"), [
    ("metadata.labels", 'a="x\\"y"\nb="2"'), ("spec.nodeName", "node"), ("status.podIPs", "10.0.0.1,fd00::1"), ("metadata.uid", "u"),
    ("spec.serviceAccountName", "sa"), ("metadata.annotations['none']", "")])
def test_fields(path: str, text: str) -> None:
    assert field_value(POD, path, Values(("10.0.0.1", "fd00::1"))) == text


@pytest.mark.parametrize(("resource", "divisor", "text"), [
    ("limits.cpu", "1m", "1500"), ("limits.cpu", "1", "2"), ("requests.memory", "1Mi", "64"), ("requests.memory", "0", "67108864"),
    ("limits.memory", "1Gi", "7"), ("requests.cpu", "1", "0")])
def test_resources_are_rounded_up(resource: str, divisor: str, text: str) -> None:
    c = {"resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}
    assert resource_value(POD, c, {"resource": resource, "divisor": divisor}, Values(allocatable={"memory": "7Gi"})) == text


def test_names_and_hosts() -> None:
    pod = {**POD, "spec": {**POD["spec"], "hostname": "h", "subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}
    assert identity.hostname(pod, "cluster.local") == ("h", "sub.n.svc.cluster.local")
    text = identity.hosts_file(pod, ["10.0.0.1"], "cluster.local")
    assert "10.0.0.1\th.sub.n.svc.cluster.local\th\n" in text
    assert text.endswith("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n")
    assert identity.hostname({**POD, "metadata": {**POD["metadata"], "name": "x" * 62 + "-y"}}, "")[0] == "x" * 62


def test_resolver_follows_the_policy() -> None:
    node = identity.parse_resolver("search a.example\nnameserver 192.0.2.53 # ours\noptions timeout:1 ndots:2\n")

    def of(**spec: Any) -> identity.Resolver:
        return identity.resolver({"metadata": {"namespace": "n"}, "spec": spec}, ("10.96.0.10",), "cluster.local", node)
    own = ("n.svc.cluster.local", "svc.cluster.local", "cluster.local", "a.example")
    assert of() == identity.Resolver(("10.96.0.10",), own, ("ndots:5",))
    assert of(hostNetwork=True) == node == of(dnsPolicy="Default")
    assert of(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet").searches == own
    more = {"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]}
    assert of(dnsPolicy="None", dnsConfig=more) == identity.Resolver(("1.1.1.1",), ("x",), ("ndots:1", "edns0"))


def test_files_of_volumes() -> None:
    assert payload(POD, "configMap", {"name": "cm"}, lookup, Values()) == {"k": (b"v", 0o644), "other": (b"w", 0o644), "bin": (b"\xff", 0o644)}
    spec = {"name": "cm", "defaultMode": 0o400, "items": [{"key": "k", "path": "d/f", "mode": 0o600}, {"key": "other", "path": "o"}]}
    assert payload(POD, "configMap", spec, lookup, Values()) == {"d/f": (b"v", 0o600), "o": (b"w", 0o400)}
    projected = {"sources": [{"secret": {"name": "s"}}, {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                             {"serviceAccountToken": {"path": "token"}}]}
    assert payload(POD, "projected", projected, lookup, Values(), lambda part: "T", 0o600) == {
        "pw": (b"s3cret", 0o644), "l": (b"p", 0o644), "token": (b"T", 0o600)}
    for source, spec, text in (("configMap", {"name": "gone"}, 'configmap "gone" not found'), ("secret", {"secretName": "x"}, 'secret "x" not found'),
                               ("configMap", {"name": "cm", "items": [{"key": "no", "path": "p"}]}, "references non-existent config key: no")):
        with pytest.raises(Missing, match=text):
            payload(POD, source, spec, lookup, Values())
    assert payload(POD, "secret", {"secretName": "x", "optional": True}, lookup, Values()) == {}


def test_the_atomic_writer(tmp_path: Path) -> None:
    assert write(tmp_path, {"a": (b"1", 0o644), "d/x": (b"2", 0o400)})
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "a").is_symlink()
    assert (tmp_path / "d" / "x").stat().st_mode & 0o777 == 0o400
    before = (tmp_path / "..data").readlink()
    assert not write(tmp_path, {"a": (b"1", 0o644), "d/x": (b"2", 0o400)})
    assert (tmp_path / "..data").readlink() == before
    assert write(tmp_path, {"a": (b"3", 0o644)})
    assert (tmp_path / "a").read_bytes() == b"3"
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("..2")) == ["..data", "a"]
    assert len([p for p in tmp_path.iterdir() if p.name.startswith("..2")]) == 1


def test_configurations() -> None:
    pod = {"metadata": {**POD["metadata"], "annotations": {"n": "v"}}, "status": {}, "spec": {
        "hostNetwork": False, "shareProcessNamespace": True, "securityContext": {"runAsUser": 5, "fsGroup": 7, "supplementalGroups": [8],
                                                                                 "sysctls": [{"name": "net/x", "value": "1"}]},
        "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}]}]}}
    s = sandbox_config(pod, NODE, 2)
    assert (s["metadata"]["attempt"], s["hostname"], s["log_directory"]) == (2, "p", "/logs/n_p_u")
    assert s["port_mappings"] == [{"protocol": 1, "container_port": 80, "host_port": 8080, "host_ip": ""}]
    assert s["linux"]["cgroup_parent"] == "/kubern/x/node/kubepods/besteffort/podu"
    assert s["linux"]["sysctls"] == {"net.x": "1"}
    assert s["linux"]["security_context"]["namespace_options"] == {"network": 0, "ipc": 0, "pid": 0}
    c = {"name": "c", "image": "i", "command": ["$(A)"], "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
         "securityContext": {"runAsGroup": 9, "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]}, "allowPrivilegeEscalation": False,
                             "readOnlyRootFilesystem": True, "seccompProfile": {"type": "RuntimeDefault"}}}
    made = container_config(pod, c, NODE, Image("sha256:1"), 3, {"A": "x"}, [])
    assert (made["command"], made["log_path"], made["image"]["image"]) == (["x"], "c/3.log", "sha256:1")
    assert made["linux"]["resources"] == {"cpu_period": 100000, "cpu_quota": 20000, "cpu_shares": 102, "oom_score_adj": 1000,
                                          "memory_limit_in_bytes": 64 << 20}
    sc = made["linux"]["security_context"]
    assert (sc["run_as_user"], sc["run_as_group"], sc["supplemental_groups"]) == ({"value": 5}, {"value": 9}, [7, 8])
    assert (sc["no_new_privs"], sc["readonly_rootfs"], sc["seccomp"]) == (True, True, {"profile_type": 0})
    assert sc["capabilities"] == {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["ALL"]}


@pytest.mark.parametrize(("image", "text"), [
    (Image("i", uid=0), "image will run as root"), (Image("i", username="nobody"), r"non-numeric user \(nobody\)"), (Image("i"), "image will run as root")])
def test_non_root(image: Image, text: str) -> None:
    c = {"name": "c", "securityContext": {"runAsNonRoot": True}}
    with pytest.raises(CannotCreate, match=text):
        container_config(POD, c, NODE, image, 0, {}, [])
