from typing import Any

from kubern.proxy.endpoints import Node
from kubern.proxy.render import LOCAL, MASQUERADE, Settings, render_service, skeleton
from kubern.proxy.ruleset import EMPTY, Part, Ruleset
from tests.proxy.proxy_objects import endpoint, service, slice_

S = Settings(Node("n1", "z1", ("172.30.0.11",)))
LB = [{"ip": "203.0.113.5", "ipMode": "VIP"}]


def keys(part: Part, set_: str, ip: str = "ip") -> dict[str, str]:
    return {k: v for (f, s, k), v in part.elements.items() if (f, s) == (ip, set_)}


def two(**spec: Any) -> Part:
    ingress = spec.pop("ingress", None)
    ports = spec.pop("ports", None)
    return render_service(service(ingress=ingress, ports=ports, **spec), [slice_("web", [endpoint("10.244.1.2", "n1"), endpoint("10.244.2.2", "n2")])], S)


def test_cluster_ip() -> None:
    p = two()
    assert keys(p, "services") == {"10.96.0.20 . tcp . 80": "goto mod-2"}
    assert keys(p, "endpoints") == {"10.96.0.20 . tcp . 80 . 0": "10.244.1.2 . 8080", "10.96.0.20 . tcp . 80 . 1": "10.244.2.2 . 8080"}
    assert keys(p, "hairpin") == {"10.244.1.2 . 10.244.1.2": ""}
    assert keys(p, "cluster-ips") == {"10.96.0.20": ""}
    assert p.shared["ip", "mod-2"] == ("meta mark set numgen random mod 2", "goto pick")
    assert not p.chains and not p.sets


def test_no_endpoints_is_refused() -> None:
    p = render_service(service(ports=[{"name": "http", "port": 80, "nodePort": 30080}], type="NodePort"), [], S)
    assert keys(p, "services") == {} and keys(p, "nodeports") == {}
    assert keys(p, "refused") == {"10.96.0.20 . tcp . 80": "goto refuse"}
    assert keys(p, "nprefused") == {"tcp . 30080": "goto refuse"}


def test_node_port_masquerades() -> None:
    p = two(ports=[{"name": "http", "port": 80, "nodePort": 30080}], type="NodePort")
    assert keys(p, "nodeports") == {"tcp . 30080": "goto nxmod-2"}
    assert keys(p, "npendpoints") == {f"tcp . 30080 . {MASQUERADE}": "10.244.1.2 . 8080", f"tcp . 30080 . {MASQUERADE | 1}": "10.244.2.2 . 8080"}
    assert p.shared["ip", "nxmod-2"] == (f"meta mark set numgen random mod 2 offset {MASQUERADE}", "goto nppick")


def test_external_local_policy_short_circuits_pods_and_this_node() -> None:
    p = two(ports=[{"name": "http", "port": 80, "nodePort": 30080}], type="LoadBalancer", externalTrafficPolicy="Local", ingress=LB)
    assert keys(p, "services")["203.0.113.5 . tcp . 80"] == "goto out-2-1"
    assert p.shared["ip", "out-2-1"] == ("ip saddr { 10.244.0.0/16 } goto mod-2", "fib saddr type local goto xmod-2", "goto lmod-1")
    e = keys(p, "endpoints")
    assert e[f"203.0.113.5 . tcp . 80 . {LOCAL}"] == "10.244.1.2 . 8080"
    assert e["203.0.113.5 . tcp . 80 . 1"] == e[f"203.0.113.5 . tcp . 80 . {MASQUERADE | 1}"] == "10.244.2.2 . 8080"


def test_external_local_without_local_endpoint_drops_strangers_but_not_pods() -> None:
    far = [slice_("web", [endpoint("10.244.2.2", "n2")])]
    p = render_service(service(type="LoadBalancer", externalTrafficPolicy="Local", ingress=LB), far, S)
    assert keys(p, "refused") == {"203.0.113.5 . tcp . 80": "drop"}
    assert keys(p, "services")["203.0.113.5 . tcp . 80"] == "goto out-1-0"
    assert not any("lmod" in r for r in p.shared["ip", "out-1-0"])


def test_internal_local_policy() -> None:
    p = two(internalTrafficPolicy="Local")
    assert keys(p, "services") == {"10.96.0.20 . tcp . 80": "goto lmod-1"}
    far = render_service(service(internalTrafficPolicy="Local"), [slice_("web", [endpoint("10.244.2.2", "n2")])], S)
    assert keys(far, "refused") == {"10.96.0.20 . tcp . 80": "drop"} and keys(far, "services") == {}


def test_affinity_has_chains_and_client_sets_of_its_own() -> None:
    p = two(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}})
    [chain] = [c for (_, c) in p.chains if c.startswith("sticky-")]
    assert keys(p, "services") == {"10.96.0.20 . tcp . 80": f"goto {chain}"}
    assert len(p.sets) == 2 and all("timeout 60s" in d for d in p.sets.values())
    assert p.chains["ip", chain][-1].startswith("numgen random mod 2 vmap")
    assert keys(p, "endpoints") == {}


def test_source_ranges_guard_the_load_balancer_address_only() -> None:
    p = two(type="LoadBalancer", loadBalancerSourceRanges=[" 10.0.0.0/8", "10.1.0.0/16"], ingress=LB)
    [name] = [c for (_, c) in p.chains if c.startswith("from-")]
    assert p.chains["ip", name] == ("ip saddr != { 10.0.0.0/8 } drop",)
    assert keys(p, "firewall") == {"203.0.113.5 . tcp . 80": f"goto {name}"}
    everyone = two(type="LoadBalancer", loadBalancerSourceRanges=["0.0.0.0/0"], ingress=LB)
    assert keys(everyone, "firewall") == {}
    mine = two(type="LoadBalancer", loadBalancerSourceRanges=["172.30.0.0/24"], ingress=LB)
    assert "203.0.113.5" in next(iter(mine.chains.values()))[0]


def test_proxy_mode_ingress_is_not_ours() -> None:
    assert "203.0.113.5 . tcp . 80" not in keys(two(type="LoadBalancer", ingress=[{"ip": "203.0.113.5", "ipMode": "Proxy"}]), "services")


def test_headless_external_name_and_other_proxies_render_nothing() -> None:
    rows = [slice_("web", [endpoint("10.244.1.2")])]
    assert render_service(service(ip="None"), rows, S) is EMPTY
    assert render_service(service(type="ExternalName", clusterIP=""), rows, S) is EMPTY
    other = service()
    other["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "x"}
    assert render_service(other, rows, S) is EMPTY


def test_dual_stack_goes_into_both_tables() -> None:
    both = service(clusterIPs=["10.96.0.20", "fd00:96::20"])
    rows = [slice_("web", [endpoint("10.244.1.2")]), slice_("web", [endpoint("fd00:244::2")], "v6", kind="IPv6")]
    p = render_service(both, rows, S)
    assert keys(p, "services", "ip6") == {"fd00:96::20 . tcp . 80": "goto mod-1"}
    assert keys(p, "endpoints", "ip6") == {"fd00:96::20 . tcp . 80 . 0": "fd00:244::2 . 8080"}


def test_an_update_costs_what_changed() -> None:
    rules = Ruleset()
    rules.update({"default/web": two()})
    d = rules.update({"default/web": render_service(service(), [slice_("web", [endpoint("10.244.1.2", "n1"), endpoint("10.244.9.9", "n2")])], S)})
    assert [e[2] for e, _ in d.removed] == ["10.96.0.20 . tcp . 80 . 1"]
    assert list(d.added.values()) == ["10.244.9.9 . 8080"]
    assert not d.chains
    assert not rules.update({"default/web": rules.parts["default/web"]})
    gone = rules.update({"default/web": None})
    assert gone.removed and not gone.added and rules.everything().added == {}


def test_two_owners_of_one_element_and_the_order_does_not_matter() -> None:
    a, b = (Part({("ip", "services", "1.2.3.4 . tcp . 80"): v}) for v in ("goto mod-1", "goto mod-2"))
    for first, second in (("a", "b"), ("b", "a")):
        rules = Ruleset()
        parts = {"a": a, "b": b}
        rules.update({first: parts[first]})
        rules.update({second: parts[second]})
        assert rules.elements("ip", "services") == {"1.2.3.4 . tcp . 80": "goto mod-1"}
        d = rules.update({"a": None})
        assert list(d.added.values()) == ["goto mod-2"]


def test_chains_and_sets_of_affinity_go_when_it_goes() -> None:
    rules = Ruleset()
    rules.update({"default/web": two(sessionAffinity="ClientIP")})
    text = rules.update({"default/web": two()}).text("kubern-proxy")
    assert text.count("delete chain") == 3 and text.count("delete set") == 2
    assert text.index("delete element") < text.index("delete chain") < text.index("delete set")


def test_skeleton_names_the_ranges_of_its_family_only() -> None:
    s = Settings(Node("n1"), ("10.244.0.0/16", "fd00:244::/56"), ("10.96.0.0/16",))
    assert "fd00" not in skeleton(s, 4) and "10.244" not in skeleton(s, 6)


def test_old_spellings_of_addresses_become_plain() -> None:
    p = render_service(service(externalIPs=["198.051.100.007", "rubbish"]), [slice_("web", [endpoint("010.244.001.002")])], S)
    assert set(keys(p, "services")) == {"10.96.0.20 . tcp . 80", "198.51.100.7 . tcp . 80"}
    assert set(keys(p, "endpoints").values()) == {"10.244.1.2 . 8080"}
