"""Ingress on real nodes: hosts, paths, TLS and changes, asked from the machine itself through nginx."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kubern import pki
from tests.real.speaker import curl, speakers, steady

pytestmark = pytest.mark.real


def backend(name: str) -> dict[str, Any]:
    return {"service": {"name": name, "port": {"number": 80}}}


def rule(host: str, **paths: str) -> dict[str, Any]:
    """paths: service -> "TYPE PATH"."""
    rows = [{"path": p.split()[1], "pathType": p.split()[0], "backend": backend(s)} for s, p in paths.items()]
    return {**({"host": host} if host else {}), "http": {"paths": rows}}


def ingress(name: str, rules: list[Any], notes: dict[str, str] | None = None, **spec: Any) -> str:
    return json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name, "annotations": notes or {}},
                       "spec": {**({"rules": rules} if rules else {}), **spec}})


@pytest.fixture(scope="module")
def web(cluster: Any) -> Any:
    cluster.apply(speakers("one", "two", says="$http_x_forwarded_proto $http_x_real_ip $host"))
    cluster.apply(ingress("first", [rule("foo.example.com", one="Prefix /", two="Prefix /two"), rule("*.wild.example.com", two="Exact /exact")]))
    cluster.wait("pod/one")
    cluster.wait("pod/two")
    cluster.until(lambda: address(cluster, "first"), "an address for the Ingress")
    steady(cluster, lambda: all(ask(cluster, "foo.example.com", path).startswith(who) for path, who in (("/", "one"), ("/two", "two"))), "the first answers")
    return cluster


def address(cluster: Any, name: str) -> str:
    held = (cluster.get("ingress", name).get("status") or {}).get("loadBalancer", {}).get("ingress") or [{}]
    return str(held[0].get("ip") or "")


def ask(cluster: Any, host: str, path: str, *flags: str, scheme: str = "http") -> str:
    """The answer's body and code."""
    return curl(address(cluster, "first"), host, path, *flags, port=443 if scheme == "https" else 80, scheme=scheme)


def test_hosts_and_paths(web: Any) -> None:
    assert ask(web, "foo.example.com", "/").startswith("one / http")
    assert ask(web, "foo.example.com", "/two").startswith("two /two ")
    assert ask(web, "foo.example.com", "/two/deep?q=1").startswith("two /two/deep?q=1 ")
    assert ask(web, "foo.example.com", "/twofold").startswith("one /twofold ")
    assert ask(web, "a.wild.example.com", "/exact").startswith("two /exact ")
    for host, path in (("a.wild.example.com", "/exact/"), ("a.b.wild.example.com", "/exact"), ("wild.example.com", "/exact"), ("else.example.com", "/")):
        assert ask(web, host, path).endswith("404"), (host, path)


def test_the_source_and_the_host_arrive(web: Any) -> None:
    gateway = json.loads((web.home / "fabric.json").read_text())["subnet"].replace("0/24", "1")
    assert f"http {gateway} foo.example.com" in ask(web, "foo.example.com", "/")


def test_default_backend_and_missing_ones(web: Any) -> None:
    web.apply(ingress("rest", [rule("bar.example.com", nosuch="Prefix /")], defaultBackend=backend("two")))
    steady(web, lambda: ask(web, "else.example.com", "/x").startswith("two /x"), "the default backend")
    assert ask(web, "bar.example.com", "/").endswith("503")
    web.kubectl("delete", "ingress", "rest")
    steady(web, lambda: ask(web, "else.example.com", "/x").endswith("404"), "no default backend")


def test_tls(web: Any, tmp_path: Path) -> None:
    ca = pki.authority(tmp_path, "ca", "test")
    for name, dns in (("cert", "tls.example.com"), ("cert2", "tls.example.com")):
        pair = pki.serving(tmp_path, name, name, [dns], (), ca)
        web.apply(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls", "data": {
            "tls.crt": base64.b64encode(pair.cert).decode(), "tls.key": base64.b64encode(pair.key).decode()}}))
    tls = [{"hosts": ["tls.example.com"], "secretName": "cert"}]
    web.apply(ingress("tls", [rule("tls.example.com", one="Prefix /")], {"kubern.dev/ssl-redirect": "true"}, tls=tls))
    trust = ("--cacert", str(ca.cert_path))
    steady(web, lambda: ask(web, "tls.example.com", "/s", *trust, scheme="https").startswith("one /s https"), "an answer over TLS")
    assert ask(web, "tls.example.com", "/s").endswith("308")
    assert ask(web, "foo.example.com", "/", "-k", scheme="https").endswith("000")          # no certificate: no handshake
    web.apply(ingress("tls", [rule("tls.example.com", one="Prefix /")], tls=[{"hosts": ["tls.example.com"], "secretName": "cert2"}]))

    def renewed() -> bool:
        shown = subprocess.run(f"echo | openssl s_client -connect {address(web, 'first')}:443 -servername tls.example.com 2>/dev/null | "
                               "openssl x509 -noout -subject", shell=True, capture_output=True, text=True, check=False).stdout
        return "cert2" in shown
    web.until(renewed, "the other certificate")
    assert ask(web, "tls.example.com", "/s").startswith("one /s http ")


def test_changes_lose_no_request(web: Any) -> None:
    failed: list[str] = []
    done = threading.Event()

    def load() -> None:
        where = address(web, "first")
        while not done.is_set():
            answer = subprocess.run(["curl", "-s", "-m", "5", "-w", "%{http_code}", "-H", "Host: foo.example.com", f"http://{where}/"],
                                    capture_output=True, text=True, check=False).stdout
            if not answer.endswith("200"):
                failed.append(answer)
            time.sleep(0.02)
    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        for i in range(3):
            web.apply(ingress("more", [rule(f"more{i}.example.com", two="Prefix /")]))
            web.until(lambda i=i: ask(web, f"more{i}.example.com", "/").startswith("two"), f"host {i}")
    finally:
        done.set()
        thread.join()
    assert not failed, failed[:3]


def test_other_classes_and_bad_paths_are_left_out(web: Any) -> None:
    web.apply(ingress("theirs", [rule("theirs.example.com", one="Prefix /")], ingressClassName="example"))
    web.apply(json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "evil"}, "spec": {"rules": [
        {"host": "evil.example.com", "http": {"paths": [{"path": "/\"; } } evil", "pathType": "ImplementationSpecific", "backend": backend("one")},
                                                        {"path": "/fine", "pathType": "Prefix", "backend": backend("one")}]}}]}}))
    steady(web, lambda: ask(web, "evil.example.com", "/fine").startswith("one"), "what is right of it")
    assert ask(web, "theirs.example.com", "/").endswith("404")
    reasons = web.get("events", "--field-selector", "involvedObject.name=evil")["items"]
    assert any(e["reason"] == "Rejected" for e in reasons)
