"""Tokens sign cluster-info and go when they end; nodes get the certificates they may have."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from kubern.controllers import bootstrap as controllers
from kubern.controllers.context import Context
from kubern.kubelet.certificates import CLIENT_USAGES, SERVING_USAGES, ask
from kubern.model import bootstrap
from kubern.model.bootstrap import Token
from kubern.model.intent import Delete, Requeue, Update
from kubern.model.rows import BUILT_IN
from tests.controllers.conftest import ListView, drive, of

NOW = 1893456000.0


def info(**data: str) -> Any:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": {"kubeconfig": "K", **data}}


def secret(id_: str, expires_s: float = 0.0, usages: tuple[str, ...] = bootstrap.USAGES) -> Any:
    return bootstrap.secret_of(Token(id_, "0123456789abcdef", expires_s, usages))


def test_exactly_the_valid_tokens_sign() -> None:
    view = ListView(configmaps=[info(**{"jws-kubeconfig-gone00": "x", "other": "stays"})], secrets=[
        secret("aaaaaa", NOW + 60), secret("bbbbbb", NOW - 1), secret("cccccc", usages=("authentication",)), secret("dddddd")])
    done = drive(controllers.SIGNER.reconcile({"key": ("", "")}, view, NOW))
    data = of(done, Update)[0].obj["data"]
    assert set(data) == {"kubeconfig", "other", "jws-kubeconfig-aaaaaa", "jws-kubeconfig-dddddd"}
    assert bootstrap.is_signed("K", data["jws-kubeconfig-aaaaaa"], "aaaaaa", "0123456789abcdef")
    assert 59 < of(done, Requeue)[0].after_s < 62
    view.all["configmaps"] = [info() | {"data": data}]
    assert not of(drive(controllers.SIGNER.reconcile({"key": ("", "")}, view, NOW)), Update)


def test_tokens_that_ended_are_removed() -> None:
    def clean(s: Any) -> Any:
        return drive(controllers.CLEANER.reconcile(s, ListView(), NOW))
    assert of(clean(secret("aaaaaa", NOW - 1)), Delete)[0].name == "bootstrap-token-aaaaaa"
    assert [type(x) for x in clean(secret("aaaaaa", NOW + 5))] == [Requeue]
    assert clean(secret("aaaaaa")) == []
    assert clean({**secret("aaaaaa", NOW - 1), "type": "Opaque"}) == []


def csr(signer: str, user: str, asked: Any, usages: list[str], groups: tuple[str, ...] = ("system:nodes",)) -> Any:
    return {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "c"}, "spec": {
        "signerName": signer, "username": user, "groups": list(groups), "usages": usages, "request": base64.b64encode(asked.csr).decode()}}


NODE = {"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"}]}}
SERVING, CLIENT = "kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client"


@pytest.mark.parametrize(("signer", "user", "name", "group", "dns", "ips", "verdict"), [
    (SERVING, "system:node:n", "system:node:n", "system:nodes", ["n"], ["10.0.0.1"], ""),
    (SERVING, "system:node:n", "system:node:n", "system:nodes", ["n"], ["10.0.0.2"], "the node has no address 10.0.0.2"),
    (SERVING, "system:node:m", "system:node:n", "system:nodes", ["n"], [], "a node may only ask for a certificate of its own"),
    (SERVING, "alice", "system:node:n", "system:nodes", ["n"], [], None),
    (CLIENT, "system:node:n", "kubern:network:n", "kubern:node-network", [], [], ""),
    (CLIENT, "system:node:n", "kubern:network:m", "kubern:node-network", [], [], None),
    (CLIENT, "system:node:n", "kubern:network:n", "system:masters", [], [], None),
    (CLIENT, "system:node:n", "kubern:network:n", "kubern:node-network", ["x"], [], "alternative names are not allowed")])
def test_what_a_node_may_have(signer: str, user: str, name: str, group: str, dns: list[str], ips: list[str], verdict: str | None) -> None:
    usages = SERVING_USAGES if signer == SERVING else CLIENT_USAGES
    request = csr(signer, user, ask(name, (group,), dns, ips), usages)
    assert controllers.refusal(request, NODE) == verdict
    view = ListView(nodes=[NODE])
    assert bool(of(drive(controllers.node_approver(Context(real_nodes=True)).reconcile(request, view, NOW)), Update)) == (verdict == "")
    assert not drive(controllers.node_approver(Context()).reconcile(request, view, NOW))


async def test_signed_in_a_server(cluster: Any) -> None:
    c = await cluster(controllers.SIGNER, controllers.CLEANER)
    for space in ("kube-system", "kube-public"):
        await c.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
    await c.client.create(info())
    await c.client.create(secret("aaaaaa", time.time() + 2))
    await c.client.create(secret("bbbbbb"))

    async def signatures() -> set[str]:
        return {k for k in (await c.get("configmaps", "cluster-info", "kube-public"))["data"] if k.startswith("jws")}

    async def are(*ids: str) -> bool:
        return await signatures() == {f"jws-kubeconfig-{i}" for i in ids}
    await c.until(lambda: are("aaaaaa", "bbbbbb"))
    await c.until(lambda: are("bbbbbb"))
    assert [s["metadata"]["name"] for s in (await c.client.list(BUILT_IN["secrets"], "kube-system"))[0]] == ["bootstrap-token-bbbbbb"]
