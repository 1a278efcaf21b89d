"""What names mean: the cases of the Kubernetes DNS specification, asked and read with dnspython as an independent codec."""

from __future__ import annotations

from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from kubern.dns.answer import Answerer, from_dashed, reverse_ip

ZONE = "cluster.local"


def service(name: str, ip: str | None, namespace: str = "default", ports: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {
        **({"clusterIP": ip, "clusterIPs": spec.pop("ips", [ip])} if ip else {}),
        "ports": ports or [{"name": "http", "port": 80, "protocol": "TCP"}], **spec}}


def slice_(service_name: str, *endpoints: dict[str, Any], name: str = "x", kind: str = "IPv4", namespace: str = "default") -> dict[str, Any]:
    return {"metadata": {"name": f"{service_name}-{name}", "namespace": namespace, "labels": {"kubernetes.io/service-name": service_name}},
            "addressType": kind, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": list(endpoints)}


def at(ip: str, hostname: str = "", ready: bool = True) -> dict[str, Any]:
    return {"addresses": [ip], "conditions": {"ready": ready}, **({"hostname": hostname} if hostname else {})}


@pytest.fixture
def a() -> Answerer:
    out = Answerer(ZONE)
    r = out.records
    r.namespace_changed(None, {"metadata": {"name": "default"}})
    r.namespace_changed(None, {"metadata": {"name": "empty"}})
    r.service_changed(None, service("web", "10.96.0.20"))
    r.service_changed(None, service("head", "None"))
    r.slice_changed(None, slice_("web", at("10.244.1.9")))
    r.slice_changed(None, slice_("head", at("10.244.1.2", "one"), at("10.244.2.3"), at("10.244.2.4", "dead", ready=False)))
    r.service_changed(None, service("ext", None, type="ExternalName", externalName="www.example.com"))
    r.service_changed(None, service("alias", None, type="ExternalName", externalName=f"web.default.svc.{ZONE}."))
    return out


def ask(a: Answerer, name: str, type_: str = "A", udp: bool = True, **how: Any) -> dns.message.Message:
    query = dns.message.make_query(name, type_, **how)
    reply = a.answer(query.to_wire(), udp)
    assert isinstance(reply, bytes), reply
    got = dns.message.from_wire(reply)
    assert query.is_response(got)
    return got


def values(m: dns.message.Message) -> set[str]:
    return {str(x) for rr in m.answer for x in rr}


def test_cluster_ip(a: Answerer) -> None:
    m = ask(a, f"web.default.svc.{ZONE}")
    assert values(m) == {"10.96.0.20"} and m.rcode() == 0 and m.flags & dns.flags.AA


def test_no_data_and_no_such_name_differ_and_carry_the_soa(a: Answerer) -> None:
    for name, type_, code in ((f"web.default.svc.{ZONE}", "AAAA", 0), (f"nope.default.svc.{ZONE}", "A", 3), (f"empty.svc.{ZONE}", "A", 0),
                              (f"nowhere.svc.{ZONE}", "A", 3), (f"svc.{ZONE}", "A", 0), (ZONE, "A", 0), (f"x.{ZONE}", "A", 3),
                              (f"a.b.c.web.default.svc.{ZONE}", "A", 3)):
        m = ask(a, name, type_)
        assert (m.rcode(), m.answer) == (code, []), name
        assert m.authority[0].rdtype == dns.rdatatype.SOA and str(m.authority[0].name) == f"{ZONE}."


def test_headless_gives_the_ready_endpoints(a: Answerer) -> None:
    assert values(ask(a, f"head.default.svc.{ZONE}")) == {"10.244.1.2", "10.244.2.3"}


def test_endpoint_names_by_hostname_or_dashed_address(a: Answerer) -> None:
    assert values(ask(a, f"one.head.default.svc.{ZONE}")) == {"10.244.1.2"}
    assert values(ask(a, f"10-244-2-3.head.default.svc.{ZONE}")) == {"10.244.2.3"}
    assert ask(a, f"dead.head.default.svc.{ZONE}").rcode() == 3


def test_srv_of_a_cluster_ip_service(a: Answerer) -> None:
    m = ask(a, f"_http._tcp.web.default.svc.{ZONE}", "SRV")
    assert values(m) == {f"0 100 80 web.default.svc.{ZONE}."}
    assert {str(x) for rr in m.additional for x in rr} == {"10.96.0.20"}
    assert ask(a, f"_http._udp.web.default.svc.{ZONE}", "SRV").rcode() == 3
    assert ask(a, f"_http._tcp.web.default.svc.{ZONE}", "A").rcode() == 0


def test_srv_of_a_headless_service_has_one_target_an_endpoint(a: Answerer) -> None:
    m = ask(a, f"_http._tcp.head.default.svc.{ZONE}", "SRV")
    assert values(m) == {f"0 50 8080 one.head.default.svc.{ZONE}.", f"0 50 8080 10-244-2-3.head.default.svc.{ZONE}."}
    assert {str(x) for rr in m.additional for x in rr} == {"10.244.1.2", "10.244.2.3"}


def test_reverse(a: Answerer) -> None:
    assert values(ask(a, "20.0.96.10.in-addr.arpa", "PTR")) == {f"web.default.svc.{ZONE}."}
    assert values(ask(a, "2.1.244.10.in-addr.arpa", "PTR")) == {f"one.head.default.svc.{ZONE}."}
    query = dns.message.make_query("9.1.244.10.in-addr.arpa", "PTR").to_wire()
    assert not isinstance(a.answer(query, True), bytes)                    # no headless endpoint: upstream may know


def test_external_name_is_a_cname_followed_inside_the_zone_and_left_to_others_outside(a: Answerer) -> None:
    m = ask(a, f"alias.default.svc.{ZONE}")
    assert [rr.rdtype for rr in m.answer] == [dns.rdatatype.CNAME, dns.rdatatype.A] and values(m) == {f"web.default.svc.{ZONE}.", "10.96.0.20"}
    _, found = a.answer(dns.message.make_query(f"ext.default.svc.{ZONE}", "A").to_wire(), True)  # type: ignore[misc]
    assert found.chase == ("www", "example", "com") and found.answers[0].type == dns.rdatatype.CNAME
    assert values(ask(a, f"ext.default.svc.{ZONE}", "CNAME")) == {"www.example.com."}


def test_a_ring_of_external_names_ends(a: Answerer) -> None:
    for x, y in (("r1", "r2"), ("r2", "r1")):
        a.records.service_changed(None, service(x, None, type="ExternalName", externalName=f"{y}.default.svc.{ZONE}"))
    assert ask(a, f"r1.default.svc.{ZONE}").rcode() in (0, 2)


def test_pod_names_hold_their_address(a: Answerer) -> None:
    assert values(ask(a, f"10-244-1-2.default.pod.{ZONE}")) == {"10.244.1.2"}
    assert values(ask(a, f"fd00--1.default.pod.{ZONE}", "AAAA")) == {"fd00::1"}
    assert ask(a, f"web.default.pod.{ZONE}").rcode() == 3


def test_dual_stack(a: Answerer) -> None:
    a.records.service_changed(None, service("ds", "10.96.0.30", ips=["10.96.0.30", "fd00:96:0::30"]))
    assert values(ask(a, f"ds.default.svc.{ZONE}", "AAAA")) == {"fd00:96::30"}
    assert values(ask(a, "0.3." + "0.0." * 10 + "0.0.6.9.0.0.0.0.d.f.ip6.arpa", "PTR")) == {f"ds.default.svc.{ZONE}."}


def test_version_and_zone_records(a: Answerer) -> None:
    assert values(ask(a, f"dns-version.{ZONE}", "TXT")) == {'"1.1.0"'}
    assert ask(a, ZONE, "SOA").answer and ask(a, ZONE, "NS").answer


def test_names_are_compared_without_case_and_echoed_with_it(a: Answerer) -> None:
    m = ask(a, f"WeB.Default.SVC.{ZONE}")
    assert values(m) == {"10.96.0.20"} and str(m.question[0].name) == f"WeB.Default.SVC.{ZONE}."


def test_changes_are_seen_at_once_through_the_cache(a: Answerer) -> None:
    name = f"new.default.svc.{ZONE}"
    assert ask(a, name).rcode() == 3
    first = service("new", "10.96.0.40")
    a.records.service_changed(None, first)
    assert values(ask(a, name)) == {"10.96.0.40"}
    a.records.service_changed(first, service("new", "10.96.0.41"))
    assert values(ask(a, name)) == {"10.96.0.41"}
    assert not isinstance(a.answer(dns.message.make_query("40.0.96.10.in-addr.arpa", "PTR").to_wire(), True), bytes)
    a.records.service_changed(first, None)
    assert ask(a, name).rcode() == 3
    head = f"head.default.svc.{ZONE}"
    before = slice_("head", at("10.244.1.2", "one"))
    assert len(values(ask(a, head))) == 2
    a.records.slice_changed(before, slice_("head", at("10.244.7.7")))
    assert values(ask(a, head)) == {"10.244.7.7"}
    assert values(ask(a, "7.7.244.10.in-addr.arpa", "PTR")) == {f"10-244-7-7.head.default.svc.{ZONE}."}
    a.records.slice_changed(slice_("head"), None)
    assert ask(a, head).rcode() == 3


def test_a_slice_before_its_service(a: Answerer) -> None:
    a.records.slice_changed(None, slice_("late", at("10.244.5.5")))
    a.records.service_changed(None, service("late", "None"))
    assert values(ask(a, f"late.default.svc.{ZONE}")) == {"10.244.5.5"}
    assert values(ask(a, "5.5.244.10.in-addr.arpa", "PTR"))


def test_truncation_and_edns(a: Answerer) -> None:
    a.records.service_changed(None, service("big", "None"))
    a.records.slice_changed(None, slice_("big", *(at(f"10.244.9.{i}") for i in range(100))))
    name = f"big.default.svc.{ZONE}"
    assert ask(a, name).flags & dns.flags.TC and len(ask(a, name).to_wire()) <= 512
    assert not ask(a, name, udp=False).flags & dns.flags.TC and len(values(ask(a, name, udp=False))) == 100
    large = ask(a, name, use_edns=0, payload=4096)
    assert large.edns == 0 and len(values(large)) == 100


def test_answers_take_turns(a: Answerer) -> None:
    first = {str(next(iter(ask(a, f"head.default.svc.{ZONE}").answer[0]))) for _ in range(40)}
    assert len(first) == 2


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 11, b"\0" * 12, b"\1\2\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
                                  b"\1\2\1\0\0\2\0\0\0\0\0\0\0\0\1\0\1\0\0\1\0\1", b"\1\2\1\0\0\1\0\0\0\0\0\0\x40aaa\0\0\1\0\1"])
def test_bad_queries_are_answered_with_formerr_or_not_at_all(a: Answerer, data: bytes) -> None:
    reply = a.answer(data, True)
    assert isinstance(reply, bytes)
    assert reply == b"" or (reply[:2] == data[:2] and reply[3] & 15 == 1)


def test_a_reply_is_never_answered(a: Answerer) -> None:
    m = dns.message.make_response(dns.message.make_query("a.b", "A")).to_wire()
    assert a.answer(m, True) == b""


def test_parts() -> None:
    assert from_dashed("1-2-3-4") == "1.2.3.4" and from_dashed("x") == ""
    assert reverse_ip(("4", "3", "2", "1", "in-addr", "arpa")) == "1.2.3.4" and reverse_ip(("x", "in-addr", "arpa")) == ""
