from typing import Any

from kubern.proxy.policy import PodFacts, facts, render_policies
from kubern.proxy.ruleset import Part

NAMESPACES = {"default": {"team": "a"}, "other": {"team": "b"}}


def pod(name: str, ip: str, node: str = "n1", namespace: str = "default", ports: tuple[tuple[str, str, int], ...] = (), **labels: str) -> PodFacts:
    return PodFacts(namespace, name, tuple(sorted({"app": name, **labels}.items())), (ip,), node, ports)


PODS = [pod("web", "10.1.0.1", ports=(("http", "TCP", 8080),)), pod("db", "10.1.0.2"), pod("far", "10.2.0.1", "n2"),
        pod("web", "10.2.0.2", "n2", "other", (("http", "TCP", 9090),))]


def policy(name: str = "p", select: dict[str, str] | None = None, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": {"matchLabels": select} if select else {}, **spec}}


def render(*policies: dict[str, Any]) -> Part:
    return render_policies(policies, PODS, NAMESPACES, "n1")


def keys(p: Part, set_: str) -> dict[str, str]:
    return {k: v for (_, s, k), v in p.elements.items() if s == set_}


def rules(p: Part, ip: str, direction: str = "ingress4") -> tuple[str, ...]:
    return p.chains["inet", keys(p, direction)[ip].removeprefix("jump ")]


def peers(p: Part, rule: str) -> set[str]:
    return set(keys(p, rule.split("@")[1].split()[0]))


def test_default_deny_isolates_the_selected_pods_of_this_node_in_that_direction() -> None:
    p = render(policy(select={"app": "web"}, policyTypes=["Ingress"]))
    assert set(keys(p, "ingress4")) == {"10.1.0.1"} and keys(p, "egress4") == {}
    assert rules(p, "10.1.0.1") == ("drop",)
    assert keys(p, "self4") == {"10.1.0.1 . 10.1.0.1": ""}
    everyone = render(policy(policyTypes=["Ingress", "Egress"]))
    assert set(keys(everyone, "ingress4")) == set(keys(everyone, "egress4")) == {"10.1.0.1", "10.1.0.2"}


def test_no_policy_no_rules() -> None:
    assert render() == Part()


def test_an_empty_rule_allows_everything() -> None:
    assert rules(render(policy(ingress=[{}])), "10.1.0.1") == ("return", "drop")


def test_peers_by_pod_namespace_and_both() -> None:
    p = render(policy(ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "far"}}}]}]))
    assert peers(p, rules(p, "10.1.0.1")[0]) == {"10.2.0.1"}
    p = render(policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}]))
    assert peers(p, rules(p, "10.1.0.1")[0]) == {"10.2.0.2"}
    p = render(policy(ingress=[{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]}]))
    assert peers(p, rules(p, "10.1.0.1")[0]) == {"10.1.0.1", "10.2.0.2"}


def test_ip_block_with_exceptions() -> None:
    p = render(policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16", "10.9.1.0/24"]}}]}]))
    assert rules(p, "10.1.0.1")[0] == "ip saddr 10.0.0.0/8 ip saddr != { 10.9.0.0/16 } return"
    p = render(policy(policyTypes=["Egress"], egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]))
    assert rules(p, "10.1.0.1", "egress4")[0] == "meta nfproto ipv4 return"


def test_ports_ranges_and_protocols() -> None:
    p = render(policy(ingress=[{"ports": [{"port": 80}, {"port": 8000, "endPort": 8080}, {"port": 8050}, {"protocol": "UDP", "port": 53},
                                          {"protocol": "SCTP"}]}]))
    assert set(rules(p, "10.1.0.1")) == {"tcp dport { 80, 8000-8080 } return", "udp dport { 53 } return", "meta l4proto sctp return", "drop"}


def test_a_named_port_is_the_target_pods_own() -> None:
    p = render(policy(ingress=[{"ports": [{"port": "http"}]}]))
    assert rules(p, "10.1.0.1")[0] == "tcp dport { 8080 } return"
    assert rules(p, "10.1.0.2") == ("drop",)
    p = render(policy(policyTypes=["Egress"], egress=[{"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}]))
    assert peers(p, rules(p, "10.1.0.2", "egress4")[0]) == {"10.1.0.1 . 8080", "10.2.0.2 . 9090"}


def test_policies_add_up() -> None:
    p = render(policy("a", ingress=[{"ports": [{"port": 1}]}]), policy("b", ingress=[{"ports": [{"port": 2}]}]))
    assert rules(p, "10.1.0.1") == ("tcp dport { 1 } return", "tcp dport { 2 } return", "drop")
    assert keys(p, "ingress4")["10.1.0.1"] == keys(p, "ingress4")["10.1.0.2"]          # the same combination, the same chain


def test_policies_of_another_namespace_do_not_select() -> None:
    assert render(policy(namespace="other")) == Part()


def test_host_network_and_ended_pods_are_nobodys_concern() -> None:
    obj = {"metadata": {"name": "a", "namespace": "default"}, "spec": {"nodeName": "n1", "containers": []},
           "status": {"phase": "Running", "podIPs": [{"ip": "10.1.0.9"}]}}
    assert facts(obj)
    assert facts({**obj, "spec": {**obj["spec"], "hostNetwork": True}}) is None  # type: ignore[dict-item]
    assert facts({**obj, "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.1.0.9"}]}}) is None
    assert facts({**obj, "status": {"phase": "Pending"}}) is None
