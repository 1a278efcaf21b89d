"""kubectl, today's and 1.28's: what people type, against nodes that run nothing. What needs containers stands in tests/real/test_kubectl.py."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import tools

APP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: web}}
data: {a: "1", b: "2"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: nginx, ports: [{containerPort: 80}], resources: {requests: {cpu: 10m, memory: 16Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


class Kubectl:
    def __init__(self, age: str, kubeconfig: str, home: Path) -> None:
        self.age, self.program, self.namespace = age, tools.program("kubectl", age), f"ctl-{uuid.uuid4().hex[:6]}"
        config = home / "kubeconfig"
        config.write_bytes(Path(kubeconfig).read_bytes())
        self.env = {**os.environ, "KUBECONFIG": str(config), "HOME": str(home)}

    def __call__(self, *args: str, stdin: str = "", fails: str | None = None, code: int = 1, env: dict[str, str] | None = None) -> str:
        """Output and errors; `fails` must be in them when it is given, and the exit code be `code`."""
        done = subprocess.run([self.program, *args], env={**self.env, **(env or {})}, input=stdin, capture_output=True, text=True, timeout=90)
        assert done.returncode == (0 if fails is None else code), f"kubectl {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert (fails or "") in done.stdout + done.stderr, done.stdout + done.stderr
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self("get", *args, "-o", "json"))

    def until(self, wanted: str, *args: str) -> None:
        end = time.monotonic() + 30
        while (got := self("get", *args)) != wanted:
            assert time.monotonic() < end, got
            time.sleep(0.05)


BOTH = pytest.mark.parametrize("age", ["new", "old"])


@pytest.fixture
def age() -> str:
    return "new"


@pytest.fixture
def kubectl(age: str, kubeconfig: str, tmp_path: Path) -> Iterator[Kubectl]:
    made = Kubectl(age, kubeconfig, tmp_path)
    assert tools.VERSIONS["kubectl", age] in made("version", "--client")
    made("create", "namespace", made.namespace)
    made("config", "set-context", "--current", "--namespace", made.namespace)
    yield made
    made("delete", "namespace", made.namespace, "--wait=false")


@BOTH
def test_from_create_to_delete(kubectl: Kubectl, tmp_path: Path) -> None:
    file = tmp_path / "app.yaml"
    file.write_text(APP)
    k = kubectl
    k("create", "-f", str(file), "--dry-run=server")
    k("apply", "-f", str(file), "--dry-run=client")
    assert k("apply", "-f", str(file)).count("created") == 3
    assert k("apply", "-f", str(file)).count("unchanged") == 3
    assert k("diff", "-f", str(file)) == ""
    file.write_text(APP.replace('b: "2"', 'c: "3"').replace("replicas: 2", "replicas: 3"))
    k("diff", "-f", str(file), fails='+  c: "3"')
    assert k("apply", "-f", str(file)).count("configured") == 2
    assert k.json("configmap", "settings")["data"] == {"a": "1", "c": "3"}
    k("rollout", "status", "deployment/web", "--timeout=60s")
    assert k("get", "deployment", "web", "--no-headers").split()[:4] == ["web", "3/3", "3", "3"]
    assert len(k("get", "pods", "-l", "app=web", "-o", "name").split()) == 3
    assert "app=web" in k("get", "pods", "-o", "wide", "--show-labels")
    k("wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=60s")
    described = k("describe", "deployment", "web") + k("describe", "pod", "-l", "app=web") + k("describe", "service", "web")
    for part in ("Pod Template:", "ScalingReplicaSet", "Node-Selectors:", "Endpoints:"):
        assert part in described
    k("apply", "-f", str(file), "--server-side")
    k("apply", "-f", "-", "--server-side", "--field-manager=other", stdin=APP.replace("replicas: 2", "replicas: 9"), fails=".spec.replicas")
    k("apply", "view-last-applied", "configmap/settings")
    file.write_text(APP.split("---")[0])
    pruned = k("apply", "-f", str(file), "--prune", "-l", "app=web", "--prune-allowlist=apps/v1/Deployment", "--namespace", k.namespace)
    assert "deployment.apps/web pruned" in pruned
    k("replace", "-f", str(file))
    k("replace", "--force", "-f", str(file))
    k("delete", "-f", str(file), "--ignore-not-found")
    k("delete", "service", "web", "--cascade=foreground")
    k("get", "configmap", "settings", fails='Error from server (NotFound): configmaps "settings" not found')


@BOTH
def test_small_changes(kubectl: Kubectl, tmp_path: Path) -> None:
    """label, annotate, patch of every type, set, edit, scale, autoscale, expose, rollout and its undo."""
    k = kubectl
    k("create", "deployment", "web", "--image=nginx", "--replicas=2", "--port=80")
    k("label", "deployment", "web", "tier=front", "app-")
    k("label", "deployment", "web", "tier=back", fails="already has a value")
    k("label", "--overwrite", "deployment", "web", "tier=back")
    k("annotate", "deployment", "web", "note=a b c", "--resource-version", k.json("deployment", "web")["metadata"]["resourceVersion"])
    k("patch", "deployment", "web", "-p", '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","env":[{"name":"A","value":"b"}]}]}}}}')
    k("patch", "deployment", "web", "--type=json", "-p", '[{"op":"test","path":"/spec/replicas","value":2},{"op":"replace","path":"/spec/replicas","value":1}]')
    k("patch", "deployment", "web", "--type=merge", "-p", '{"metadata":{"annotations":{"note":null}}}')
    k("patch", "deployment", "web", "--subresource=status", "--type=merge", "-p", '{"status":{"collisionCount":1}}')
    k("patch", "deployment", "web", "--type=json", "-p", '[{"op":"test","path":"/spec/replicas","value":7}]', fails="the server rejected our request")
    k("set", "image", "deployment/web", "nginx=nginx:2")
    k("set", "env", "deployment/web", "C=d", "A-")
    k("set", "resources", "deployment/web", "--limits=cpu=200m,memory=64Mi", "--requests=cpu=100m")
    k("set", "serviceaccount", "deployment/web", "default")
    container = k.json("deployment", "web")["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["env"]) == ("nginx:2", [{"name": "C", "value": "d"}])
    assert container["resources"] == {"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}
    k("rollout", "status", "deployment/web", "--timeout=60s")
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/nginx:2/nginx:3/' \"$1\"\n")
    editor.chmod(0o755)
    assert "edited" in k("edit", "deployment/web", env={"EDITOR": str(editor)})
    editor.write_text("#!/bin/sh\ntrue\n")
    k("edit", "deployment/web", env={"EDITOR": str(editor)})
    k("rollout", "pause", "deployment/web")
    k("rollout", "resume", "deployment/web")
    k("rollout", "restart", "deployment/web")
    k("rollout", "status", "deployment/web", "--timeout=60s")
    assert "REVISION" in k("rollout", "history", "deployment/web")
    k("rollout", "undo", "deployment/web", "--to-revision=1")
    assert k.json("deployment", "web")["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx"
    k("scale", "deployment/web", "--replicas=3", "--current-replicas=1")
    k("scale", "deployment/web", "--replicas=3", "--current-replicas=1", fails="Expected replicas to be 1, was 3")
    k("autoscale", "deployment", "web", "--min=1", "--max=5", *(["--cpu-percent=50"] if k.age == "old" else ["--cpu=50%"]))
    assert k.json("hpa", "web")["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 50
    k("expose", "deployment", "web", "--port=80", "--target-port=8080", "--name=front")
    assert k.json("service", "front")["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 8080}]


@BOTH
def test_create_of_every_sort(kubectl: Kubectl, tmp_path: Path) -> None:
    k = kubectl
    (tmp_path / "f.txt").write_text("text")
    for line in (
        "configmap m --from-literal=a=b --from-file={d}/f.txt",
        "secret generic s --from-literal=a=b",
        "secret docker-registry r --docker-server=x --docker-username=u --docker-password=p",
        "serviceaccount me",
        "role reader --verb=get,list --resource=pods,deployments.apps",
        "rolebinding mine --role=reader --serviceaccount={n}:me",
        "job once --image=busybox -- exit:0",
        "cronjob often --image=busybox --schedule=*/5_*_*_*_* -- exit:0",
        "quota q --hard=pods=20,services=5",
        "poddisruptionbudget p --selector=app=x --min-available=1",
        "ingress i --rule=a.example.com/*=svc:80 --class=none",
        "service clusterip c --tcp=80:8080",
        "service nodeport np --tcp=80",
        "service externalname en --external-name=example.com",
        "service loadbalancer lb --tcp=80",
    ):
        args = [a.replace("_", " ") if "schedule" in a else a for a in line.format(d=tmp_path, n=k.namespace).split()]
        assert "created" in k("create", *args), line
    token = k("create", "token", "me", "--duration=1h").strip()
    assert token.count(".") == 2
    k("create", "job", "again", "--from=cronjob/often")
    k("wait", "--for=condition=complete", "job/once", "job/again", "--timeout=60s")
    k("run", "one", "--image=busybox", "--restart=Never", "--labels=a=b", "--env=X=y", "--", "exit:0")
    k.until("Succeeded", "pod", "one", "-o", "jsonpath={.status.phase}")
    k("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/one", "--timeout=30s")
    assert k("auth", "can-i", "list", "pods", "--as", f"system:serviceaccount:{k.namespace}:me").strip() == "yes"
    k("auth", "can-i", "delete", "pods", "--as", f"system:serviceaccount:{k.namespace}:me", fails="no")
    assert "pods" in k("auth", "can-i", "--list", "--as", f"system:serviceaccount:{k.namespace}:me")
    assert "kubernetes-admin" in k("auth", "whoami")
    k("get", "secrets", "--as", f"system:serviceaccount:{k.namespace}:me", fails="Error from server (Forbidden)")
    k("auth", "reconcile", "-f", "-", stdin=k("get", "role", "reader", "-o", "yaml"))
    config = tmp_path / "robot"                              # as a robot would come: a token, no certificate
    config.write_bytes(Path(k.env["KUBECONFIG"]).read_bytes())
    robot = {"KUBECONFIG": str(config)}
    k("config", "set-credentials", "robot", f"--token={token}", env=robot)
    k("config", "set-context", "--current", "--user=robot", env=robot)
    k("get", "pods", env=robot)
    k("get", "configmaps", env=robot, fails="Forbidden")


@BOTH
def test_questions(kubectl: Kubectl) -> None:
    """explain, api-resources, api-versions, cluster-info, events, get in every form, top, raw."""
    k = kubectl
    assert "KIND:" in k("explain", "pod.spec.containers.livenessProbe") and "fieldManager" not in k("explain", "ingress.spec.rules", "--recursive")
    k("explain", "pod.spec.nonsense", fails='field "nonsense" does not exist')
    resources = k("api-resources", "--verbs=list", "-o", "wide")
    assert "deployments" in resources and "deploy" in resources and "apps/v1" in k("api-versions")
    assert "is running at" in k("cluster-info")
    assert k("get", "--raw", "/readyz").strip() == "ok" and "v1.36" in k("version")
    assert k("get", "nodes", "-o", "custom-columns=N:.metadata.name,R:.status.conditions[?(@.type==\"Ready\")].status", "--no-headers").split()[1] == "True"
    k("run", "a", "--image=x")
    k("run", "b", "--image=x")
    assert k("get", "pods", "--sort-by=.metadata.name", "-o", "name").split() == ["pod/a", "pod/b"]
    assert k("get", "pods", "-o", "go-template={{range .items}}{{.metadata.name}};{{end}}", "--chunk-size=1") == "a;b;"
    assert k("get", "pods", "--field-selector=metadata.name=b", "-o", "name").split() == ["pod/b"]
    k.until("2", "pods", "-o", "go-template={{$n := 0}}{{range .items}}{{if eq .status.phase \"Running\"}}{{$n = len $.items}}{{end}}{{end}}{{$n}}")
    assert "Scheduled" in k("events", "--for", "pod/a") and "Scheduled" in k("get", "events", "--field-selector=involvedObject.name=a")
    watching = subprocess.Popen([k.program, "get", "pods", "-w", "--output-watch-events", "-o", "json"], env=k.env, stdout=subprocess.PIPE, text=True)
    try:
        k("delete", "pod", "a", "--now")
        assert watching.stdout is not None
        for line in watching.stdout:
            if '"DELETED"' in line:
                break
    finally:
        watching.kill()
        watching.communicate()
    k("get", "nothings", fails='the server doesn\'t have a resource type "nothings"')
    k("get", "pods", "--all-namespaces", "--field-selector=spec.nonsense=1", fails="field label not supported")


def test_what_simulated_nodes_cannot(kubectl: Kubectl) -> None:
    """Nothing runs behind their pods, and they say so."""
    k = kubectl
    k("run", "a", "--image=x")
    k("wait", "--for=condition=Ready", "pod/a", "--timeout=60s")
    for command in (("logs", "a"), ("exec", "a", "--", "ls"), ("attach", "a"), ("port-forward", "a", ":80")):
        k(*command, fails="is simulated: nothing runs behind its pods")


def test_nodes(kubectl: Kubectl) -> None:
    """cordon, drain against a budget, taint; the node comes back as it was."""
    k = kubectl
    node = k("get", "nodes", "-o", "name").split()[0].removeprefix("node/")
    k("create", "deployment", "held", "--image=nginx")
    k("rollout", "status", "deployment/held", "--timeout=60s")
    try:
        k("cordon", node)
        assert "SchedulingDisabled" in k("get", "node", node)
        k("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--pod-selector", "app=held", "--timeout=60s")
        k("taint", "nodes", node, "a=b:NoSchedule")
        k("taint", "nodes", node, "a=b:NoSchedule", fails="already has a taint")
    finally:
        k("taint", "nodes", node, "a-")
        k("uncordon", node)
    k("rollout", "status", "deployment/held", "--timeout=60s")


def test_certificates(kubectl: Kubectl, tmp_path: Path) -> None:
    """A user's certificate, from the request to what he may do."""
    import base64

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    k, name = kubectl, kubectl.namespace
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "jane")])).sign(key, hashes.SHA256())
    k("create", "-f", "-", stdin=json.dumps({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": base64.b64encode(asked.public_bytes(serialization.Encoding.PEM)).decode(), "signerName": "kubernetes.io/kube-apiserver-client",
                 "usages": ["client auth"], "expirationSeconds": 3600}}))
    assert "Pending" in k("get", "csr", name)
    k("certificate", "approve", name)
    end = time.monotonic() + 30
    while not (text := k("get", "csr", name, "-o", "jsonpath={.status.certificate}")):
        assert time.monotonic() < end
        time.sleep(0.05)
    (tmp_path / "crt").write_bytes(base64.b64decode(text))
    (tmp_path / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    k("create", "rolebinding", "jane", "--clusterrole=view", "--user=jane")
    k("config", "set-credentials", "jane", f"--client-certificate={tmp_path / 'crt'}", f"--client-key={tmp_path / 'key'}")
    k("get", "pods", "--user=jane")
    k("get", "secrets", "--user=jane", fails='User "jane" cannot list resource "secrets"')
    k("delete", "csr", name)


def test_kustomize(kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text(APP)
    text = "resources: [app.yaml]\nnamePrefix: my-\nlabels: [{pairs: {made: kustomize}}]\nreplicas: [{name: web, count: 1}]\n"
    (tmp_path / "kustomization.yaml").write_text(text)
    assert "name: my-web" in kubectl("kustomize", str(tmp_path))
    assert kubectl("apply", "-k", str(tmp_path)).count("created") == 3
    assert kubectl.json("deployment", "my-web")["spec"]["replicas"] == 1
    assert len(kubectl("get", "all", "-l", "made=kustomize", "-o", "name").split()) >= 2
    kubectl("delete", "-k", str(tmp_path))


def huge(group: str, fields: int) -> dict[str, Any]:
    """A definition of more than a megabyte, of the shape real ones have: deep, described, with lists and rules."""
    words = "What this field is for, how it is read, and what happens when it is left out; generated definitions hold pages of this. " * 4

    def block(depth: int, width: int) -> dict[str, Any]:
        props: dict[str, Any] = {}
        for i in range(width):
            props[f"text{i}"] = {"type": "string", "description": words, "maxLength": 500}
            props[f"count{i}"] = {"type": "integer", "format": "int32", "description": words, "default": i, "minimum": 0}
            if depth:
                props[f"part{i}"] = {**block(depth - 1, width), "description": words}
                props[f"list{i}"] = {"type": "array", "maxItems": 50, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                                     "items": {"type": "object", "required": ["name"], "properties": {
                                         "name": {"type": "string", "maxLength": 63, "description": words}, "value": {"x-kubernetes-int-or-string": True}}}}
        return {"type": "object", "properties": props}

    spec = {**block(3, fields), "x-kubernetes-validations": [{"rule": "!has(self.count1) || self.count1 < 1000", "message": "count1 is too large"}]}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"giants.{group}"}, "spec": {
        "group": group, "scope": "Namespaced", "names": {"plural": "giants", "singular": "giant", "kind": "Giant", "listKind": "GiantList"},
        "versions": [{"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}}]}}


def test_a_huge_definition(kubectl: Kubectl, tmp_path: Path) -> None:
    """Over a megabyte: too large for the annotation of `kubectl apply`, applied server-side, applied again, and an object of it."""
    k, group = kubectl, f"{kubectl.namespace}.example.com"
    file = tmp_path / "crd.json"
    file.write_text(json.dumps(huge(group, 5)))
    assert file.stat().st_size > 1_000_000
    k("apply", "-f", str(file), fails="Too long")
    k("apply", "--server-side", "-f", str(file))
    k("apply", "--server-side", "-f", str(file))
    k("wait", "--for=condition=Established", f"crd/giants.{group}", "--timeout=60s")
    giant = {"apiVersion": f"{group}/v1", "kind": "Giant", "metadata": {"name": "g"},
             "spec": {"part0": {"part1": {"text2": "deep"}}, "list1": [{"name": "a", "value": 1}]}}
    k("apply", "--server-side", "-f", "-", stdin=json.dumps(giant))
    got = k.json("giant", "g")["spec"]
    assert got["part0"]["part1"]["text2"] == "deep" and (got["count4"], got["part0"]["count3"], got["part0"]["part1"]["count2"]) == (4, 3, 2)
    giant["spec"]["count1"] = 5000
    k("apply", "--server-side", "-f", "-", stdin=json.dumps(giant), fails="count1 is too large")
    giant["spec"] = {"list1": [{"name": "a", "valeu": 1}]}
    k("apply", "-f", "-", stdin=json.dumps(giant), fails='unknown field "spec.list1[0].valeu"')
    assert "count4" in k("explain", "giant.spec.part0", f"--api-version={group}/v1")
    k("delete", "crd", f"giants.{group}")
    k("get", "giants", fails="the server could not find the requested resource")      # kubectl remembers the kind, the server does not
