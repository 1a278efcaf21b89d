"""Helm, the real program, 4 and 3: what it sends by default (server-side apply here, three-way patches there), how it waits, and its hooks."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import tools

CHART = str(Path(__file__).with_name("chart"))
WAIT = ("--wait", "--timeout", "60s")


class Helm:
    """helm and kubectl in a namespace of their own."""

    def __init__(self, age: str, kubeconfig: str, home: Path) -> None:
        self.age, self.namespace = age, f"helm-{uuid.uuid4().hex[:6]}"
        self.helm, self.kubectl = tools.program("helm", age), tools.program("kubectl", age)
        self.env = {**os.environ, "KUBECONFIG": kubeconfig, "HOME": str(home), "HELM_NAMESPACE": self.namespace}

    def __call__(self, *args: str, fails: str = "") -> str:
        done = subprocess.run([self.helm, *args], env=self.env, capture_output=True, text=True, timeout=120)
        text = done.stdout + done.stderr
        assert (done.returncode != 0) == bool(fails) and fails in text, f"helm {' '.join(args)}: exit {done.returncode}\n{text}"
        return done.stdout

    def get(self, *args: str) -> str:
        """What kubectl get shows; "" for nothing."""
        command = [self.kubectl, "get", "-n", self.namespace, "--ignore-not-found", *args]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert not done.returncode, done.stderr
        return done.stdout

    def data(self, release: str) -> dict[str, str]:
        return json.loads(self.get("configmap", release, "-o", "json"))["data"]


@pytest.fixture(params=["new", "old"])
def helm(request: pytest.FixtureRequest, kubeconfig: str, tmp_path: Path) -> Iterator[Helm]:
    made = Helm(request.param, kubeconfig, tmp_path)
    assert tools.VERSIONS["helm", request.param] in made("version", "--short")
    yield made
    subprocess.run([made.kubectl, "delete", "namespace", made.namespace, "--ignore-not-found", "--wait=false"], env=made.env, capture_output=True, timeout=60)


def test_release(helm: Helm) -> None:
    """Install with a definition and an object of it, hooks, test, upgrade, rollback, uninstall; each waited for."""
    assert "hello from shop" in helm("install", "shop", CHART, "--create-namespace", *WAIT)
    data = helm.data("shop")
    assert data == {"greeting": "hello", "revision": "1", "server": data["server"], "toys": "true", "found": "kube-system"}
    assert data["server"].startswith("v1.36.")
    assert helm.get("toy", "shop", "-o", "jsonpath={.spec}") == '{"colour":"red","size":1}'
    assert helm.get("deployment,statefulset", "-o", "jsonpath={.items[*].status.readyReplicas}") == "1 1"
    assert helm.get("jobs", "-o", "name").split() == ["job.batch/shop-post-install"], "the other hooks go when they succeeded"
    assert "Succeeded" in helm("test", "shop")
    assert helm.get("pod", "shop-test", "-o", "jsonpath={.status.phase}") == "Succeeded"

    helm("upgrade", "shop", CHART, "--set", "replicas=2,greeting=bye,size=3", *WAIT)
    assert (helm.data("shop")["greeting"], helm.data("shop")["revision"]) == ("bye", "2")
    assert helm.get("deployment,statefulset", "-o", "jsonpath={.items[*].status.readyReplicas}") == "2 2"
    assert json.loads(helm("get", "values", "shop", "-o", "json")) == {"replicas": 2, "greeting": "bye", "size": 3}

    helm("upgrade", "shop", CHART, "--reuse-values", "--set", "size=0", fails="should be greater than or equal to 1")
    assert json.loads(helm("status", "shop", "-o", "json"))["info"]["status"] == "failed"
    helm("rollback", "shop", "1", *WAIT)
    assert (helm.data("shop")["greeting"], helm.get("toy", "shop", "-o", "jsonpath={.spec.size}")) == ("hello", "1")
    history = [r["status"] for r in json.loads(helm("history", "shop", "-o", "json"))]
    assert history[-1] == "deployed" and len(history) == 4
    assert [r["name"] for r in json.loads(helm("list", "-o", "json"))] == ["shop"]

    helm("uninstall", "shop", *WAIT)
    assert json.loads(helm("list", "-o", "json")) == []
    assert helm.get("deployments,statefulsets,services,toys,pdb,secrets", "-o", "name") == ""
    assert helm.get("crd", "toys.shop.example.com", "-o", "name"), "helm leaves definitions"


def test_what_fails(helm: Helm) -> None:
    """A hook that fails, a pod that never gets ready, a release that exists, an upgrade that is taken back."""
    helm("install", "bad", CHART, "--create-namespace", "--set", "hookCommand=exit:1", *WAIT, fails="pre-install")
    helm("uninstall", "bad", "--no-hooks")
    helm("install", "some", CHART, *WAIT)
    helm("install", "some", CHART, fails="cannot re-use a name that is still in use" if helm.age == "old" else "in use")
    undo = "--rollback-on-failure" if helm.age == "new" else "--atomic"
    values = helm("get", "values", "some", "--all", "-o", "yaml")
    path = Path(helm.env["HOME"], "values.yaml")
    path.write_text(values)
    helm("upgrade", "some", CHART, "-f", str(path), "--set", "image=nginx,size=0", undo, "--timeout", "30s", fails="should be greater than or equal to 1")
    assert json.loads(helm("status", "some", "-o", "json"))["info"]["status"] == "deployed"
    assert helm.get("toy", "some", "-o", "jsonpath={.spec.size}") == "1"
    helm("uninstall", "some")
    helm("uninstall", "some", fails="not found")


def test_starter_chart(helm: Helm, tmp_path: Path) -> None:
    """The chart `helm create` writes; a server-side dry run leaves nothing."""
    helm("create", str(tmp_path / "web"))
    chart = str(tmp_path / "web")
    helm("lint", chart)
    assert "kind: Deployment" in helm("install", "dry", chart, "--dry-run=server", "--namespace", "default")
    values = ("--set", "livenessProbe=null,readinessProbe=null,autoscaling.enabled=true,ingress.enabled=true")
    helm("upgrade", "--install", "web", chart, "--create-namespace", *values, *WAIT)
    assert helm.get("hpa,ingress,service,serviceaccount", "-o", "name").count("/web") == 4
    helm("upgrade", "--install", "web", chart, *values, "--set", "service.type=NodePort", *WAIT)
    assert helm.get("service", "web", "-o", "jsonpath={.spec.type}") == "NodePort"
    helm("uninstall", "web", *WAIT)
