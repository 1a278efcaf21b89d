"""Gateways and HTTPRoutes to plans and statuses: precedence, isolation of listeners, references, and text that must not break out of nginx' quotes."""

from __future__ import annotations

from typing import Any

from kubern.ingress import render, statuses
from kubern.ingress.gateway import CONTROLLER, contains, decide, intersection
from kubern.ingress.gateways import front_of
from kubern.ingress.plan import Action, Backend, Condition, Headers, Match, Plan, Port, Route, Site
from kubern.ingress.references import World

NOW = "2030-01-01T00:00:00Z"


def a_gateway(*listeners: dict[str, Any], name: str = "g", **spec: Any) -> Any:
    rows = [{"name": f"l{i}", "protocol": "HTTP", "port": 80, **x} for i, x in enumerate(listeners)]
    return {"metadata": {"name": name, "namespace": "default", "generation": 3}, "spec": {"gatewayClassName": "kubern", "listeners": rows, **spec}}


def a_route(name: str, *rules: dict[str, Any], hosts: tuple[str, ...] = (), made: str = NOW, **ref: Any) -> Any:
    return {"metadata": {"name": name, "namespace": "default", "creationTimestamp": made, "generation": 2},
            "spec": {"parentRefs": [{"name": "g", **ref}], "hostnames": list(hosts), "rules": list(rules)}}


def rule(to: str, path: str = "/", kind: str = "PathPrefix", **match: Any) -> dict[str, Any]:
    return {"matches": [{"path": {"type": kind, "value": path}, **match}], "backendRefs": [{"name": to, "port": 80}]}


def world(*services: str) -> World:
    made = {f"default/{s}": {"metadata": {"name": s, "namespace": "default"}, "spec": {"clusterIP": f"10.96.0.{i}", "ports": [{"port": 80}]}}
            for i, s in enumerate(services, 1)}
    slices = {k: [{"ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.0.9"]}]}] for k in made}
    return World({}, made, slices, {})


def test_the_order_of_precedence() -> None:
    header = [{"name": "a", "value": "b"}]
    old, new = "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"
    routes = [a_route("b", rule("s1", "/x"), rule("s2", "/x", method="GET"), rule("s3", "/x", headers=header), rule("s4", "/x", "Exact"), made=new),
              a_route("a", rule("s5", "/longer"), rule("s6", "/x", headers=header), rule("s7", "/x"), made=old)]
    answer = decide([a_gateway({})], routes, world(*(f"s{i}" for i in range(1, 8))))
    (site,) = answer.gateways["default/g"].plan.sites
    order = [r.action.backends[0].id.split("_")[1] for r in site.routes]
    assert order == ["s4", "s5", "s2", "s6", "s7"]                # what asks for the same as an older route is left out


def test_hosts_meet() -> None:
    assert intersection("", ("a.com", "*.b.com")) == ["a.com", "*.b.com"] and intersection("*.a.com", ()) == ["*.a.com"]
    assert intersection("*.a.com", ("x.a.com", "y.x.a.com", "a.com", "b.com")) == ["x.a.com", "y.x.a.com"]
    assert intersection("x.a.com", ("*.a.com",)) == ["x.a.com"] and intersection("*.a.com", ("*.b.a.com", "*.com")) == ["*.b.a.com", "*.a.com"]
    assert contains("*.a.com", "*.b.a.com") and not contains("*.a.com", "a.com") and not contains("*.b.a.com", "*.a.com")


def test_a_request_belongs_to_the_most_specific_listener() -> None:
    g = a_gateway({}, {"hostname": "*.a.com"}, {"hostname": "x.a.com"})
    answer = decide([g], [a_route("r", rule("s"), hosts=("x.a.com", "y.a.com", "b.com"), sectionName="l0"), a_route("q", rule("s"), sectionName="l1")],
                    world("s"))
    sites = {s.host: len(s.routes) for s in answer.gateways["default/g"].plan.sites}
    assert sites == {"": 0, "b.com": 1, "**.a.com": 1, "x.a.com": 0}
    assert [x.attached for x in answer.gateways["default/g"].listeners] == [1, 1, 0]


def test_conflicts_and_protocols() -> None:
    g = a_gateway({}, {"port": 443, "protocol": "HTTPS"}, {"port": 443, "hostname": "a.com"}, {"port": 90, "protocol": "UDP"}, {"port": 10254})
    made = decide([g], [], world()).gateways["default/g"]
    said = {x.spec["name"]: x.conditions["Accepted"][1:3] for x in made.listeners}
    assert said == {"l0": ("True", "Accepted"), "l1": ("False", "ProtocolConflict"), "l2": ("False", "ProtocolConflict"),
                    "l3": ("False", "UnsupportedProtocol"), "l4": ("False", "PortUnavailable")}
    status = statuses.gateway_status(made, [{"ip": "10.0.0.1"}], NOW)
    assert [(c["type"], c["reason"], c["observedGeneration"]) for c in status["conditions"]] == [
        ("Accepted", "ListenersNotValid", 3), ("Programmed", "Programmed", 3)]
    assert status["addresses"] == [{"type": "IPAddress", "value": "10.0.0.1"}]
    nothing = decide([a_gateway({"protocol": "TCP"})], [], world()).gateways["default/g"]
    assert nothing.why_not and statuses.gateway_status(nothing, [], NOW)["conditions"][0]["status"] == "False"


def test_statuses_of_routes_keep_what_others_say() -> None:
    r = a_route("r", rule("nosuch"))
    theirs = {"parentRef": {"name": "x"}, "controllerName": "example.com/x", "conditions": []}
    old = {"type": "Accepted", "status": "True", "lastTransitionTime": "2000-01-01T00:00:00Z"}
    r["status"] = {"parents": [theirs, {"parentRef": {"name": "g"}, "controllerName": CONTROLLER, "conditions": [old]}]}
    answer = decide([a_gateway({})], [r], world())
    status = statuses.route_status(r, answer.routes["default/r"], NOW)
    assert status["parents"][0] == theirs and len(status["parents"]) == 2
    assert [(c["type"], c["status"], c["reason"], c["lastTransitionTime"]) for c in status["parents"][1]["conditions"]] == [
        ("Accepted", "True", "Accepted", "2000-01-01T00:00:00Z"), ("ResolvedRefs", "False", "BackendNotFound", NOW)]
    assert statuses.route_status(r, [], NOW) == {"parents": [theirs]}


def test_text_of_users_stays_in_its_quotes() -> None:
    evil = 'x"; } } $host \\'
    site = Site("a.com", (Route(Match("/" + evil, "exact"), Action(200, response=Headers(set=(("A", evil),)))),
                          Route(Match("/p", headers=(Condition("H", evil),), query=(Condition("q", evil),)),
                                Action(backends=(Backend("b", ("10.0.0.1:80",)),), request=Headers(set=(("B", evil),), add=(("C", evil),))))), (Port(80),))
    text = render.nginx(Plan((site,), (Port(80),)))
    assert '"; } }' not in text.replace('\\"; } }', "") and "$host" not in text.replace("${dollar}host", "").replace("$http_host", "").replace("\\\\$host", "")
    plain = Site("b.com", (Route(Match("/" + evil), Action(404)),), (Port(80),))
    assert 'location "/x\\"; } } $host \\\\/" { return 404; }' in render.nginx(Plan((plain,), (Port(80),)))


def test_names_of_fronts_fit_and_differ() -> None:
    a, b = front_of(a_gateway({}, name="n" * 200)), front_of(a_gateway({}, name="n" * 201))
    assert a.name != b.name and len(a.name) <= 50 and front_of(a_gateway({}, name="g")).name == "gateway-default-g"
