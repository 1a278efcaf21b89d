from kubern.proxy.endpoints import Endpoint, Node, choose, collect, topology
from tests.proxy.proxy_objects import endpoint, slice_

PORT = {"name": "http", "port": 80, "protocol": "TCP"}
HERE = Node("n1", "z1")


def ips(found: object) -> list[str]:
    return [e.ip for e in found]  # type: ignore[attr-defined]


def test_collect_matches_port_by_name_and_protocol_and_family() -> None:
    rows = [slice_("web", [endpoint("10.0.0.2"), endpoint("10.0.0.1", "n1")]),
            slice_("web", [endpoint("10.0.0.9")], ports=[{"name": "other", "port": 1, "protocol": "TCP"}]),
            slice_("web", [endpoint("10.0.0.8")], ports=[{"name": "http", "port": 1, "protocol": "UDP"}]),
            slice_("web", [endpoint("fd00::1")], kind="IPv6"), slice_("web", [endpoint("x.example")], kind="FQDN")]
    assert collect(rows, PORT, 4, "n1") == [Endpoint("10.0.0.1", 8080, local=True), Endpoint("10.0.0.2", 8080)]
    assert ips(collect(rows, PORT, 6, "n1")) == ["fd00::1"]


def test_an_address_in_two_slices_counts_once_and_the_ready_one_wins() -> None:
    rows = [slice_("web", [endpoint("10.0.0.1", ready=False)], "a"), slice_("web", [endpoint("10.0.0.1")], "b")]
    assert [e.ready for e in collect(rows, PORT, 4, "n1")] == [True]
    assert [e.ready for e in collect(rows[::-1], PORT, 4, "n1")] == [True]


def test_missing_conditions_mean_ready_and_serving_follows_ready() -> None:
    [e] = collect([slice_("web", [endpoint("10.0.0.1", ready=None)])], PORT, 4, "n1")
    assert (e.ready, e.serving, e.terminating) == (True, True, False)
    [e] = collect([slice_("web", [endpoint("10.0.0.1", ready=False)])], PORT, 4, "n1")
    assert (e.ready, e.serving) == (False, False)


def test_terminating_endpoints_serve_only_when_no_other_is_ready() -> None:
    dying = Endpoint("10.0.0.1", 80, ready=False, serving=True, terminating=True, local=True)
    dead = Endpoint("10.0.0.3", 80, ready=False, serving=False, terminating=True)
    assert ips(choose([dying, dead, Endpoint("10.0.0.2", 80)], HERE, True, False).cluster) == ["10.0.0.2"]
    assert ips(choose([dying, dead], HERE, True, True).cluster) == ["10.0.0.1"]
    assert choose([dead], HERE, True, True).anywhere is False


def test_local_falls_back_to_terminating_ones_of_this_node_by_itself() -> None:
    dying = Endpoint("10.0.0.1", 80, ready=False, serving=True, terminating=True, local=True)
    far = Endpoint("10.0.0.2", 80)
    got = choose([dying, far], HERE, True, True)
    assert (ips(got.cluster), ips(got.local)) == (["10.0.0.2"], ["10.0.0.1"])


def test_hints_hold_only_if_all_ready_endpoints_have_them_and_one_is_for_us() -> None:
    z1, z2 = Endpoint("10.0.0.1", 80, zones=("z1",)), Endpoint("10.0.0.2", 80, zones=("z2",))
    bare = Endpoint("10.0.0.3", 80)
    assert topology([z1, z2], HERE) == "zone"
    assert topology([z1, z2, bare], HERE) == ""
    assert topology([z2], HERE) == ""
    assert ips(choose([z1, z2], HERE, True, False).cluster) == ["10.0.0.1"]
    assert ips(choose([z1, z2, bare], HERE, True, False).cluster) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    unready = Endpoint("10.0.0.4", 80, ready=False, serving=False)
    assert topology([z1, unready], HERE) == "zone"


def test_node_hints_come_before_zone_hints() -> None:
    mine = Endpoint("10.0.0.1", 80, zones=("z1",), nodes=("n1",))
    other = Endpoint("10.0.0.2", 80, zones=("z1",), nodes=("n2",))
    assert ips(choose([mine, other], HERE, True, False).cluster) == ["10.0.0.1"]
    assert ips(choose([mine, other], Node("n3", "z1"), True, False).cluster) == ["10.0.0.1", "10.0.0.2"]
