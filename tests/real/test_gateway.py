"""Gateway API on real nodes: matches, filters, weights, TLS, references and statuses, asked from the machine itself through nginx."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kubern import pki
from tests.real.speaker import curl, speakers, steady

pytestmark = pytest.mark.real


def gateway(name: str, listeners: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name},
            "spec": {"gatewayClassName": "kubern", "listeners": listeners, **spec}}


def listener(name: str, port: int, protocol: str = "HTTP", **more: Any) -> dict[str, Any]:
    return {"name": name, "port": port, "protocol": protocol, **more}


def route(name: str, rules: list[dict[str, Any]], hosts: tuple[str, ...] = (), parent: str = "main", namespace: str = "default", **ref: Any) -> dict[str, Any]:
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name, "namespace": namespace}, "spec": {
        "parentRefs": [{"name": parent, **ref}], **({"hostnames": list(hosts)} if hosts else {}), "rules": rules}}


def rule(*backends: Any, path: str = "", kind: str = "PathPrefix", filters: tuple[Any, ...] = (), **match: Any) -> dict[str, Any]:
    """backends: names, or (name, weight)."""
    found = {**({"path": {"type": kind, "value": path}} if path else {}), **match}
    refs = [{"name": b, "port": 80} if isinstance(b, str) else {"name": b[0], "port": 80, "weight": b[1]} for b in backends]
    return {**({"matches": [found]} if found else {}), **({"filters": list(filters)} if filters else {}), **({"backendRefs": refs} if refs else {})}


def apply(cluster: Any, *objects: dict[str, Any]) -> None:
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def said(cluster: Any, what: str, type_: str, namespace: str = "default") -> tuple[str, str]:
    """(status, reason) of a condition of a Gateway, a Gateway's listener ("gateway/x:listener"), or the first parent of a route."""
    kind, _, name = what.partition("/")
    name, _, section = name.partition(":")
    status = cluster.get(kind, name, "-n", namespace).get("status") or {}
    holder = (status.get("parents") or [{}])[0] if kind == "httproute" else status
    if section:
        holder = next((x for x in status.get("listeners") or () if x["name"] == section), {})
    return next(((c["status"], c["reason"]) for c in holder.get("conditions") or () if c["type"] == type_), ("", ""))


def address(cluster: Any, name: str = "main") -> str:
    return str((cluster.get("gateway", name).get("status") or {}).get("addresses", [{}])[0].get("value") or "")


def ask(cluster: Any, path: str, host: str = "any.example.com", *flags: str, port: int = 80, scheme: str = "http", to: str = "main") -> str:
    """Body and code."""
    return curl(address(cluster, to), host, path, *flags, port=port, scheme=scheme)


@pytest.fixture(scope="module")
def web(cluster: Any) -> Any:
    cluster.kubectl("apply", "-f", "-", stdin=subprocess.run([sys.executable, "-m", "kubern", "manifest", "gateway-api"], capture_output=True, text=True,
                                                             check=True).stdout)
    cluster.apply(speakers("one", "two", says="host=$host set=$http_x_set add=$http_x_add gone=$http_x_gone",
                           before="add_header X-Old old; add_header X-Keep keep;"))
    cluster.until(lambda: cluster.kubectl("get", "gatewayclass", "kubern", check=False), "the class")
    apply(cluster, gateway("main", [listener("http", 80)]),
          route("first", [rule("one"), rule("two", path="/two"), rule("two", path="/exact", kind="Exact")], ("foo.example.com",)))
    cluster.wait("pod/one")
    cluster.wait("pod/two")
    cluster.wait("gateway/main", "condition=Programmed")
    steady(cluster, lambda: all(ask(cluster, p, "foo.example.com").startswith(w) for p, w in (("/", "one"), ("/two", "two"))), "first answers")
    return cluster


def test_paths_and_hosts(web: Any) -> None:
    for path, who in (("/two/deep?q=1", "two /two/deep?q=1 "), ("/twofold", "one /twofold "), ("/exact", "two /exact "), ("/exact/", "one /exact/ ")):
        assert ask(web, path, "foo.example.com").startswith(who), path
    assert ask(web, "/", "else.example.com").endswith("404")
    assert said(web, "httproute/first", "Accepted") == ("True", "Accepted") and said(web, "httproute/first", "ResolvedRefs")[0] == "True"
    status = web.get("gateway", "main")["status"]
    assert status["listeners"][0]["attachedRoutes"] == 1
    assert {(c["type"], c["status"]) for c in status["listeners"][0]["conditions"]} == {
        ("Accepted", "True"), ("Conflicted", "False"), ("ResolvedRefs", "True"), ("Programmed", "True")}


def test_methods_headers_and_parameters(web: Any) -> None:
    header = [{"name": "Version", "value": "two"}]
    apply(web, route("matches", [
        rule("one", path="/"), rule("two", path="/", headers=header), rule("two", path="/", method="PUT"),
        rule("two", path="/", queryParams=[{"name": "animal", "value": "blue whale"}]),
        rule("two", path="/v/[0-9]+", kind="RegularExpression"), rule("two", path="/deep", headers=[{"name": "Version", "value": "^t.*$", "type":
                                                                                                     "RegularExpression"}])], ("match.example.com",)))
    steady(web, lambda: ask(web, "/", "match.example.com").startswith("one"), "the route")

    def who(path: str, *flags: str) -> str:
        return ask(web, path, "match.example.com", *flags)[:3]
    assert who("/", "-H", "version: two") == "two" and who("/", "-H", "version: Two") == "one" and who("/x", "-H", "version: two") == "two"
    assert who("/", "-X", "PUT", "-d", "body") == "two" and who("/", "-X", "POST", "-d", "body") == "one"
    assert who("/?animal=blue%20whale&x=1") == "two" and who("/?x=1&animal=dolphin") == "one"
    assert who("/v/12") == "two" and who("/v/x") == "one"
    assert who("/deep", "-H", "Version: ten") == "two" and who("/deep", "-H", "Version: one") == "one"


def test_headers_change_on_the_way(web: Any) -> None:
    request = {"set": [{"name": "X-Set", "value": 'new "$value"'}], "add": [{"name": "X-Add", "value": "more"}], "remove": ["X-Gone"]}
    response = {"set": [{"name": "X-Old", "value": "new"}], "add": [{"name": "X-New", "value": "more"}], "remove": ["X-Keep"]}
    apply(web, route("headers", [rule("one", filters=({"type": "RequestHeaderModifier", "requestHeaderModifier": request},
                                                      {"type": "ResponseHeaderModifier", "responseHeaderModifier": response}))], ("headers.example.com",)))
    steady(web, lambda: ask(web, "/", "headers.example.com").startswith("one"), "the route")
    got = ask(web, "/", "headers.example.com", "-i", "-H", "X-Set: old", "-H", "X-Add: have", "-H", "X-Gone: gone")
    assert 'set=new "$value" add=have,more gone=\n' in got, got
    assert "X-Old: new" in got and "X-Old: old" not in got and "X-New: more" in got and "X-Keep" not in got
    assert "add=more" in ask(web, "/", "headers.example.com")


def test_redirects_and_rewrites(web: Any) -> None:
    def redirect(**to: Any) -> dict[str, Any]:
        return {"type": "RequestRedirect", "requestRedirect": to}

    def rewrite(**to: Any) -> dict[str, Any]:
        return {"type": "URLRewrite", "urlRewrite": to}
    prefix, full = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}, {"type": "ReplaceFullPath", "replaceFullPath": "/whole"}
    apply(web, route("moves", [
        rule(path="/host", filters=(redirect(hostname="other.example.com", statusCode=301),)),
        rule(path="/tls", filters=(redirect(scheme="https", port=8443, path=prefix),)),
        rule(path="/secure", filters=(redirect(scheme="https"),)),
        rule(path="/full", filters=(redirect(path=full, statusCode=308),)),
        rule("one", path="/old", filters=(rewrite(hostname="inner.example.com", path=prefix),)),
        rule("one", path="/strip", filters=(rewrite(path={"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}),)),
        rule("one", path="/all", filters=(rewrite(path=full),))], ("moves.example.com",)))
    steady(web, lambda: ask(web, "/old", "moves.example.com").startswith("one"), "the route")

    def goes(path: str) -> str:
        return ask(web, path, "moves.example.com", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}")
    assert goes("/host/x?a=1").endswith("301 http://other.example.com/host/x?a=1")
    assert goes("/tls/x/y?a=1").endswith("302 https://moves.example.com:8443/new/x/y?a=1")
    assert goes("/secure").endswith("302 https://moves.example.com/secure") and goes("/full/x").endswith("308 http://moves.example.com/whole")
    assert "/new/x%20y?a=1 host=inner.example.com" in ask(web, "/old/x%20y?a=1", "moves.example.com")
    assert ask(web, "/strip/x", "moves.example.com").startswith("one /x ") and ask(web, "/strip", "moves.example.com").startswith("one / ")
    assert ask(web, "/all/x?a=1", "moves.example.com").startswith("one /whole?a=1 ")


def test_weights_and_mirrors(web: Any) -> None:
    apply(web, route("weights", [rule(("one", 9), ("two", 1)), rule(("one", 0), ("two", 0), path="/none"),
                                 rule(("one", 1), ("nosuch", 1), path="/half")], ("weights.example.com",)),
          route("mirror", [rule("one", filters=({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "two", "port": 80}}},))],
                ("mirror.example.com",)))
    steady(web, lambda: ask(web, "/", "weights.example.com").endswith("200") and ask(web, "/", "mirror.example.com").endswith("200"), "the routes")
    nginx = web.get("pods", "-n", "kube-system", "-l", "gateway.networking.k8s.io/gateway-name=main")["items"]
    assert len(nginx) == 2 and all(p["status"]["phase"] == "Running" for p in nginx)
    seen = Counter(ask(web, "/", "weights.example.com")[:3] for _ in range(40))
    assert seen["one"] == 36 and seen["two"] == 4, seen
    assert ask(web, "/none", "weights.example.com").endswith("500")
    codes = Counter(ask(web, "/half", "weights.example.com")[-3:] for _ in range(10))
    assert codes == {"200": 5, "500": 5}
    assert said(web, "httproute/weights", "ResolvedRefs") == ("False", "BackendNotFound") and said(web, "httproute/weights", "Accepted")[0] == "True"
    ask(web, "/mirrored-once", "mirror.example.com")
    web.until(lambda: "/mirrored-once" in web.kubectl("logs", "two"), "the copy of a request")


def test_tls_from_secrets_also_of_other_namespaces(web: Any, tmp_path: Path) -> None:
    ca = pki.authority(tmp_path, "ca", "test")
    pair = pki.serving(tmp_path, "cert", "cert", ["tls.example.com"], (), ca)
    web.kubectl("create", "namespace", "keys")
    apply(web, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cert", "namespace": "keys"}, "type": "kubernetes.io/tls", "data": {
        "tls.crt": base64.b64encode(pair.cert).decode(), "tls.key": base64.b64encode(pair.key).decode()}})
    tls = {"certificateRefs": [{"name": "cert", "namespace": "keys"}]}
    apply(web, gateway("main", [listener("http", 80), listener("https", 443, "HTTPS", hostname="tls.example.com", tls=tls)]),
          route("tls", [rule("one")], ("tls.example.com",), sectionName="https"))
    web.until(lambda: said(web, "gateway/main:https", "ResolvedRefs") == ("False", "RefNotPermitted"), "a refusal without a grant")
    apply(web, {"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"name": "g", "namespace": "keys"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "default"}], "to": [{"group": "", "kind": "Secret"}]}})
    trust = ("--cacert", str(ca.cert_path))
    steady(web, lambda: ask(web, "/s", "tls.example.com", *trust, port=443, scheme="https").startswith("one /s"), "an answer over TLS")
    assert said(web, "gateway/main:https", "Programmed")[0] == "True"
    assert ask(web, "/s", "tls.example.com").endswith("404")                                # bound to the other listener
    assert ask(web, "/", "foo.example.com", "-k", port=443, scheme="https").endswith("000")  # no listener for that name


def test_who_may_attach_and_refer(web: Any) -> None:
    web.kubectl("create", "namespace", "other")
    web.kubectl("label", "namespace", "other", "team=a")
    selector = {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}}
    apply(web, gateway("second", [listener("same", 8080), listener("chosen", 8081, allowedRoutes=selector, hostname="*.wild.example.com"),
                                  listener("odd", 8082, "TCP")]))
    across = {"name": "one", "namespace": "default", "port": 80}
    apply(web, route_in("other", "same-only", [{"backendRefs": [across]}], (), sectionName="same"),
          route_in("other", "chosen", [{"backendRefs": [across]}], ("a.b.wild.example.com",), sectionName="chosen"),
          route_in("other", "misfit", [{"backendRefs": [across]}], ("wild.example.com",), sectionName="chosen"),
          route_in("other", "nowhere", [{"backendRefs": [across]}], (), sectionName="nosuch"))
    for name, why in (("same-only", "NotAllowedByListeners"), ("misfit", "NoMatchingListenerHostname"), ("nowhere", "NoMatchingParent")):
        web.until(lambda n=name, w=why: said(web, f"httproute/{n}", "Accepted", "other") == ("False", w), why)
    web.until(lambda: said(web, "httproute/chosen", "ResolvedRefs", "other") == ("False", "RefNotPermitted"), "no grant")
    assert said(web, "gateway/second:odd", "Accepted") == ("False", "UnsupportedProtocol")
    assert said(web, "gateway/second", "Accepted") == ("True", "ListenersNotValid")
    web.wait("gateway/second", "condition=Programmed")
    steady(web, lambda: ask(web, "/", "a.b.wild.example.com", port=8081, to="second").endswith("500"), "500 without a grant")
    apply(web, {"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"name": "g"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "other"}], "to": [{"group": "", "kind": "Service", "name": "one"}]}})
    steady(web, lambda: ask(web, "/", "a.b.wild.example.com", port=8081, to="second").startswith("one"), "an answer with one")


def route_in(space: str, name: str, rules: list[dict[str, Any]], hosts: tuple[str, ...], **ref: Any) -> dict[str, Any]:
    made = route(name, rules, hosts, parent="second", namespace=space, **ref)
    made["spec"]["parentRefs"][0]["namespace"] = "default"
    return made


def test_routes_share_hosts_and_lead_to_services_of_every_kind(web: Any) -> None:
    """Matches of two routes for one host, the older and more specific first; a headless service, and one whose endpoints are made by hand."""
    two = web.get("pod", "two")["status"]["podIP"]
    apply(web, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "headless"}, "spec": {
        "clusterIP": "None", "selector": {"app": "one"}, "ports": [{"port": 80}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "manual"}, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "manual-1", "labels": {"kubernetes.io/service-name": "manual"}},
         "addressType": "IPv4", "endpoints": [{"addresses": [two], "conditions": {"ready": True}}], "ports": [{"port": 80, "protocol": "TCP"}]})
    apply(web, route("part1", [rule("headless", path="/"), rule("two", path="/", headers=[{"name": "Version", "value": "two"}])], ("share.example.com",)),
          route("part2", [rule("manual", path="/v2"), rule("one", path="/v2/exact", kind="Exact")], ("share.example.com", "*.share.example.com")))
    steady(web, lambda: all(ask(web, p, "share.example.com").startswith(w) for p, w in (("/", "one / "), ("/v2", "two /v2 "))), "both routes")
    assert ask(web, "/x", "share.example.com", "-H", "Version: two").startswith("two") and ask(web, "/v2/exact", "share.example.com").startswith("one")
    assert ask(web, "/v2/x", "a.b.share.example.com").startswith("two") and ask(web, "/x", "a.share.example.com").endswith("404")


def test_statuses_follow_what_is_asked(web: Any) -> None:
    """Generations of routes and Gateways, listeners that come and go."""
    def seen(what: str, name: str) -> bool:
        obj = web.get(what, name)
        status = obj["status"] if what == "gateway" else obj["status"]["parents"][0]
        return all(c["observedGeneration"] == obj["metadata"]["generation"] for c in status["conditions"])
    before = web.get("httproute", "part1")["metadata"]["generation"]
    web.kubectl("patch", "httproute", "part1", "--type=merge", "-p", '{"spec": {"hostnames": ["moved.example.com"]}}')
    web.until(lambda: web.get("httproute", "part1")["metadata"]["generation"] > before and seen("httproute", "part1"), "the route's generation")
    listeners = web.get("gateway", "main")["spec"]["listeners"]
    apply(web, gateway("main", [*listeners, listener("more", 8090, hostname="*.more.example.com")]))
    web.until(lambda: {x["name"] for x in web.get("gateway", "main")["status"]["listeners"]} == {"more", *(x["name"] for x in listeners)}, "its status")
    web.until(lambda: seen("gateway", "main") and said(web, "gateway/main:more", "Programmed")[0] == "True", "the listener is programmed")
    steady(web, lambda: ask(web, "/", "a.more.example.com", port=8090).endswith("404"), "the new port answers")
    apply(web, gateway("main", listeners))
    web.until(lambda: len(web.get("gateway", "main")["status"]["listeners"]) == len(listeners), "one less")


def test_what_cannot_be_done_is_said(web: Any) -> None:
    apply(web, route("odd", [rule("one", filters=({"type": "ExtensionRef", "extensionRef": {"group": "x.io", "kind": "X", "name": "x"}},))],
                     ("odd.example.com",)))
    web.until(lambda: said(web, "httproute/odd", "Accepted") == ("False", "UnsupportedValue"), "a refusal")
    bad = {**route("bad", [rule("one", path="no-slash")])}
    assert "must be an absolute path" in web.kubectl_error("apply", "-f", "-", stdin=json.dumps(bad))


def test_a_gateway_takes_its_nginx_with_it(web: Any) -> None:
    web.kubectl("delete", "gateway", "second")
    web.until(lambda: not any(web.get(kind, "-n", "kube-system", "-l", "gateway.networking.k8s.io/gateway-name=second")["items"]
                              for kind in ("daemonset", "service", "secret")), "nothing left")
    web.until(lambda: not (web.get("httproute", "chosen", "-n", "other").get("status") or {}).get("parents"), "nothing said of it any more")
    web.kubectl("delete", "crd", "gateways.gateway.networking.k8s.io", "--timeout=30s")                # with every Gateway, whoever made them
    web.until(lambda: not web.get("daemonset", "-n", "kube-system", "-l", "gateway.networking.k8s.io/gateway-name")["items"], "nothing left of the others")
