import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kubern.proxy.conntrack import Flow, stale
from kubern.proxy.endpoints import Node
from kubern.proxy.health import Check, Figures, HealthServers, own_answer, service_answer, status_answer
from kubern.proxy.policy import SKELETON
from kubern.proxy.render import Settings, skeleton
from kubern.proxy.run import Proxy
from kubern.proxy.trace import trace
from tests.proxy.proxy_objects import endpoint, service, slice_

S = Settings(Node("n1", addresses=("172.30.0.11",)))


def proxy() -> Proxy:
    p = Proxy(S, (4,))
    p.service_changed(None, service())
    p.slice_changed(None, slice_("web", [endpoint("10.244.1.2", "n1")]))
    p.pending()
    return p


def test_first_text_is_the_whole_and_later_ones_are_changes() -> None:
    p = proxy()
    assert p.pending() == ""
    p.slice_changed(slice_("web", []), slice_("web", [endpoint("10.244.1.3", "n1")]))
    messages = p.pending()
    assert isinstance(messages, bytes) and b"endpoints" in messages and b"services" not in messages       # one element of one map
    p.slice_changed(slice_("web", []), slice_("web", [endpoint("10.244.1.3", "n1"), endpoint("10.244.1.4", "n1")]))
    text = p.pending()
    assert isinstance(text, str) and "table ip" not in text and "10.244.1.4 . 8080" in text and "chain ip kubern-proxy mod-2" in text


def test_a_slice_that_moves_to_another_service_leaves_the_old_one() -> None:
    p = proxy()
    p.service_changed(None, service("api", "10.96.0.30"))
    old = p.slices["default/web"]["web-x"]
    new = slice_("api", [endpoint("10.244.1.2", "n1")], "web-x")
    p.slice_changed(old, new)
    p.pending()
    assert p.rules.elements("ip", "refused") == {"10.96.0.20 . tcp . 80": "goto refuse"}
    assert p.rules.elements("ip", "services") == {"10.96.0.30 . tcp . 80": "goto mod-1"}


def test_a_new_zone_of_our_node_renders_everything_again() -> None:
    p = proxy()
    p.node_changed(None, {"metadata": {"name": "n2", "labels": {"topology.kubernetes.io/zone": "z"}}})
    assert not p.dirty
    p.node_changed(None, {"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}}})
    assert p.dirty == {"default/web"} and p.settings.node.zone == "z"


def test_udp_flows_of_gone_endpoints_are_stale() -> None:
    fronts = {("10.96.0.10", 53): frozenset({("10.244.1.2", 53)}), ("", 30053): frozenset({("10.244.1.2", 53)})}
    good = Flow("10.244.1.9", 7, "10.96.0.10", 53, "10.244.1.2", 53)
    gone = good._replace(answers="10.244.1.3")
    untranslated = good._replace(answers="10.96.0.10")
    by_node_port = Flow("10.9.9.9", 7, "172.30.0.11", 30053, "10.244.1.3", 53)
    not_ours = Flow("10.9.9.9", 7, "8.8.8.8", 30053, "8.8.8.8", 30053)
    assert stale([good, gone, untranslated, by_node_port, not_ours], fronts) == [gone, untranslated, by_node_port]


def test_health_answers() -> None:
    assert service_answer(Check("d", "web", 2)) == (200, b'{"service":{"namespace":"d","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}')
    assert service_answer(Check("d", "web", 0))[0] == 503


def test_what_the_proxy_says_of_itself() -> None:
    f = Figures(changes=3, spent_s=0.5, written_at_s=5.0, healthy=True)
    at = "1970-01-01T00:00:09Z"
    assert own_answer("/healthz", f, 9.0) == (200, f'{{"lastUpdated":"{at}","currentTime":"{at}","healthy":true,"nodeEligible":true}}'.encode())
    f.eligible = False                                        # traffic shall go elsewhere, but nothing is wrong with the proxy
    assert own_answer("/healthz", f, 9.0)[0] == 503 and own_answer("/livez", f, 9.0)[0] == 200 and own_answer("/x", f, 9.0)[0] == 404
    assert status_answer("/proxyMode", f) == (200, b"nftables") and status_answer("/x", f)[0] == 404
    assert b"kubeproxy_sync_proxy_rules_duration_seconds_count 3\n" in status_answer("/metrics", f)[1]


def test_a_node_that_is_about_to_go_says_so() -> None:
    p = proxy()
    me = {"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}
    p.node_changed(None, me)
    assert not p.figures.eligible
    p.node_changed(me, {"metadata": {"name": "n1"}})
    assert p.figures.eligible


async def test_health_servers_open_and_close(unused_tcp_port: int) -> None:
    servers = HealthServers("127.0.0.1")
    await servers.set({unused_tcp_port: Check("d", "web", 1)})
    reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
    writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await servers.set({})
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", unused_tcp_port)


def test_checks_are_for_load_balancers_with_the_local_policy() -> None:
    p = proxy()
    p.service_changed(None, service(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=31000))
    p.pending()
    assert p.checks() == {31000: Check("default", "web", 1)}
    p.service_changed(service(), None)
    p.pending()
    assert p.checks() == {}


def test_trace_says_where_a_connection_goes() -> None:
    p = proxy()
    slices = {k: list(v.values()) for k, v in p.slices.items()}
    lines = trace(p.services.values(), slices, S, "10.96.0.20", 80)
    assert "cluster IP of service default/web" in lines[0] and "10.244.1.2:8080" in lines[-1]
    assert "refused" in trace(p.services.values(), {}, S, "10.96.0.20", 80)[-1]
    assert "no address of a service" in trace(p.services.values(), slices, S, "8.8.8.8", 80)[0]


@pytest.mark.skipif(not shutil.which("nft") or subprocess.run(["unshare", "-rn", "nft", "list", "ruleset"], capture_output=True).returncode != 0,
                    reason="needs nft and user namespaces")
def test_nft_takes_what_is_rendered() -> None:
    p = Proxy(S, (4, 6))
    wide = {"type": "LoadBalancer", "externalIPs": ["198.51.100.7"], "ingress": [{"ip": "203.0.113.5"}], "sessionAffinity": "ClientIP",
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalTrafficPolicy": "Local", "clusterIPs": ["10.96.0.20", "fd00::20"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}]}
    p.service_changed(None, service(**wide))
    p.service_changed(None, service("plain", "10.96.0.21", ports=wide["ports"][1:]))
    p.slice_changed(None, slice_("web", [endpoint("10.244.1.2", "n1"), endpoint("10.244.1.3")]))
    p.slice_changed(None, slice_("web", [endpoint("fd00::2", "n1")], "v6", kind="IPv6"))
    steps = [p.pending()]
    p.service_changed(None, service(type="NodePort", ports=wide["ports"]))
    steps.append(p.pending())
    steps = [s for s in steps if isinstance(s, str)]
    assert len(steps) == 2
    from kubern.proxy.policy import TABLE, render_policies
    from kubern.proxy.ruleset import Ruleset
    from tests.proxy.test_policy import NAMESPACES, PODS, policy

    rules = Ruleset()
    spec = {"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}],
                                                                "ports": [{"port": 80, "endPort": 90}, {"protocol": "UDP"}, {"port": "http"}]}],
            "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}]}
    rules.update({"policies": render_policies([policy(**spec)], PODS, NAMESPACES, "n1")})
    steps.append(SKELETON + rules.everything().text(TABLE))
    steps.append(rules.update({"policies": None}).text(TABLE))
    script = "set -e\n" + "\n".join(f"nft -f - <<'EOF'\n{s}\nEOF" for s in steps)
    done = subprocess.run(["unshare", "-rn", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert skeleton(S, 4) in steps[0]


@pytest.mark.skipif(not shutil.which("nft") or subprocess.run(["unshare", "-rn", "nft", "list", "ruleset"], capture_output=True).returncode != 0,
                    reason="needs nft and user namespaces")
def test_what_is_handed_to_the_kernel_is_what_nft_would_have_written() -> None:
    done = subprocess.run(["unshare", "-rn", sys.executable, "-m", "tests.proxy.in_kernel"], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["what"] for r in rows] == ["services", "policies", "guarded"]
    for r in rows:
        assert r["differs"] == {} and r["by_netlink"] >= 1 and r["elements"] > 5, r
    assert rows[2]["by_netlink"] == 4                       # all that was taken away was noticed
