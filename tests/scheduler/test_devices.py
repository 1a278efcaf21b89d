"""Devices for claims: what each feature means, and the search against trying everything."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from typing import Any

import pytest

from kubern.scheduler import extended
from kubern.scheduler.allocate import allocate, preference
from kubern.scheduler.claims import DynamicResources
from kubern.scheduler.devices import BadClaim, Inventory, Used
from kubern.scheduler.pick import Decision, Extra, Rejection, best, feasible
from kubern.scheduler.pod import pod_info
from kubern.scheduler.table import NodeTable
from tests.controllers.conftest import ListView

CLASS = {"metadata": {"name": "gpu"}, "spec": {"selectors": [{"cel": {"expression": 'device.driver == "d"'}}], "config": [{"opaque": {"driver": "d"}}]}}
Doc = dict[str, Any]


def slice_(devices: list[Doc], name: str = "s", count: int = 1, **spec: Any) -> Doc:
    return {"metadata": {"name": name}, "spec": {"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": count},
                                                 **({} if "sharedCounters" in spec else {"devices": devices}), **(spec or {"nodeName": "n"})}}


def claim(*requests: Doc, **devices: Any) -> Doc:
    return {"metadata": {"name": "c", "namespace": "x", "uid": "c"}, "spec": {"devices": {"requests": list(requests), **devices}}}


def want(name: str = "r", **exactly: Any) -> Doc:
    return {"name": name, "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1, **exactly}}


def first(name: str, *subs: Doc) -> Doc:
    return {"name": name, "firstAvailable": [{"deviceClassName": "gpu", **s} for s in subs]}


def give(claims: list[Doc], slices: list[Doc], used: Used | None = None) -> Any:
    found = allocate(claims, Inventory(slices), used or Used(), lambda n: CLASS if n == "gpu" else None, "n", lambda s: True, lambda: "share")
    return found if isinstance(found, str) else [[r["device"] for r in a["devices"]["results"]] for a in found]


def whole(claims: list[Doc], slices: list[Doc], used: Used | None = None) -> list[Doc]:
    found = allocate(claims, Inventory(slices), used or Used(), lambda n: CLASS, "n", lambda s: True, lambda: "share")
    assert not isinstance(found, str), found
    return found


def cel(text: str) -> list[Doc]:
    return [{"cel": {"expression": text}}]


NONE = "cannot allocate all claims"
TWO = [{"name": "a", "attributes": {"model": {"string": "old"}, "version": {"version": "1.2.3"}}},
       {"name": "b", "attributes": {"model": {"string": "new"}, "version": {"version": "2.0.0"}}}]
PARTS = [slice_([], "counters", 2, sharedCounters=[{"name": "set", "counters": {"memory": {"value": "8Gi"}}}]),
         slice_([{"name": f"part-{i}", "consumesCounters": [{"counterSet": "set", "counters": {"memory": {"value": v}}}]}
                 for i, v in enumerate(("8Gi", "4Gi", "4Gi"))], "devices", 2, nodeName="n")]
SHARED = slice_([{"name": "net", "allowMultipleAllocations": True, "capacity": {
    "bandwidth": {"value": "10G", "requestPolicy": {"default": "1G", "validRange": {"min": "1G", "step": "1G", "max": "8G"}}}}}])


def test_selectors_and_attributes() -> None:
    assert give([claim(want(selectors=cel('device.attributes["d"].model == "new"')))], [slice_(TWO)]) == [["b"]]
    assert give([claim(want(selectors=cel('device.attributes["d"].version.compareTo(semver("1.9.9")) > 0')))], [slice_(TWO)]) == [["b"]]
    assert give([claim(want(selectors=cel('"nobody" in device.attributes && device.driver == "d"')))], [slice_(TWO)]) == [["a"]]
    with pytest.raises(BadClaim, match="claim x/c: selector #0: CEL runtime error"):
        give([claim(want(selectors=cel('device.attributes["nobody"].model == "new"')))], [slice_(TWO)])
    with pytest.raises(BadClaim, match="could not retrieve device class"):
        give([claim(want(deviceClassName="none"))], [slice_(TWO)])


def test_counts_and_all() -> None:
    assert give([claim(want(count=2))], [slice_(TWO)]) == [["a", "b"]]
    assert give([claim(want(count=3))], [slice_(TWO)]) == NONE
    assert give([claim(want(allocationMode="All"))], [slice_(TWO)]) == [["a", "b"]]
    assert give([claim(want(allocationMode="All"))], [slice_(TWO)], Used({("d", "p", "a")})) == NONE
    with pytest.raises(BadClaim, match="resource pool d/p is currently being updated"):
        give([claim(want(allocationMode="All"))], [slice_(TWO, count=2)])
    assert give([claim(want())], [slice_(TWO, count=2)]) == NONE                     # half a pool is none
    assert give([claim(want())], [slice_([*TWO, TWO[0]])]) == "invalid resource pools were encountered"


def test_constraints_hold_across_requests() -> None:
    same = {"constraints": [{"matchAttribute": "d/model"}]}
    assert give([claim(want("x"), want("y"), **same)], [slice_(TWO)]) == NONE
    twins = [*TWO, {**TWO[1], "name": "c"}]
    assert give([claim(want("x"), want("y"), **same)], [slice_(twins)]) == [["b", "c"]]
    assert give([claim(want(count=3), constraints=[{"distinctAttribute": "d/model"}])], [slice_(twins)]) == NONE
    assert give([claim(want("x"), want("y"), constraints=[{"distinctAttribute": "d/model", "requests": ["x"]}])], [slice_(twins)]) == [["a", "b"]]


def test_prioritized_lists_take_the_first_that_works() -> None:
    listed = first("r", {"name": "many", "count": 3}, {"name": "few", "count": 1})
    assert give([claim(listed)], [slice_(TWO)]) == [["a"]]
    config = [{"requests": ["r/few"], "opaque": {"driver": "d"}}, {"requests": ["r/many"], "opaque": {"driver": "d"}}]
    done = whole([claim(listed, config=config)], [slice_(TWO)])
    assert done[0]["devices"]["results"][0]["request"] == "r/few"
    assert [(c["source"], c["requests"]) for c in done[0]["devices"]["config"]] == [("FromClass", ["r/few"]), ("FromClaim", ["r/few"])]
    assert preference([claim(listed)], done) == 7


def test_taints_keep_devices_back() -> None:
    bad = [{**TWO[0], "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}, {**TWO[1], "taints": [{"key": "k", "effect": "None"}]}]
    assert give([claim(want())], [slice_(bad)]) == [["b"]]
    assert give([claim(want(tolerations=[{"key": "k", "value": "v"}]))], [slice_(bad)]) == [["a"]]
    assert whole([claim(want(tolerations=[{"operator": "Exists"}]))], [slice_(bad)])[0]["devices"]["results"][0]["tolerations"] == [{"operator": "Exists"}]


def test_admin_access_takes_nothing() -> None:
    busy = Used({("d", "p", "a"), ("d", "p", "b")})
    assert give([claim(want(adminAccess=True, allocationMode="All"))], [slice_(TWO)], busy) == [["a", "b"]]
    assert give([claim(want("x", adminAccess=True), want("y"))], [slice_(TWO)]) == [["a", "a"]]
    assert whole([claim(want(adminAccess=True))], [slice_(TWO)], busy)[0]["devices"]["results"][0]["adminAccess"] is True
    again = Used()
    again.add(whole([claim(want(adminAccess=True))], [slice_(TWO)])[0])
    assert not again.whole


def test_partitions_share_counters() -> None:
    assert give([claim(want(count=2))], PARTS) == [["part-1", "part-2"]]
    assert give([claim(want(count=3))], PARTS) == NONE
    assert give([claim(want())], PARTS, Used({("d", "p", "part-1")})) == [["part-2"]]
    assert give([claim(want())], PARTS, Used({("d", "p", "part-0")})) == NONE
    lost = [PARTS[0], slice_([{"name": "x", "consumesCounters": [{"counterSet": "other", "counters": {"memory": {"value": "1"}}}]}], "s", 2, nodeName="n")]
    assert give([claim(want())], lost) == "invalid resource pools were encountered"


def test_shared_devices_give_parts_of_themselves() -> None:
    asks = [want(f"r{i}", capacity={"requests": {"bandwidth": "2500M"}}) for i in range(4)]
    done = whole([claim(*asks[:3])], [SHARED])
    parts = [r["consumedCapacity"] for r in done[0]["devices"]["results"]]
    assert parts == [{"bandwidth": "3000000000"}] * 3                                # rounded up, in the binary format
    assert give([claim(*asks)], [SHARED]) == NONE
    used = Used()
    used.add(done[0])
    assert used.parts == {("d", "p", "net"): {"bandwidth": Fraction(9 * 10**9)}}
    assert give([claim(want())], [SHARED], used) == [["net"]]                        # the default: what is left
    assert give([claim(want(capacity={"requests": {"bandwidth": "9G"}}))], [SHARED]) == NONE      # more than the policy allows
    assert give([claim(want(capacity={"requests": {"other": "1"}}))], [SHARED]) == NONE


def test_where_an_allocation_can_be_used() -> None:
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}
    assert whole([claim(want())], [slice_(TWO)])[0]["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0]["values"] == ["n"]
    assert "nodeSelector" not in whole([claim(want())], [slice_(TWO, allNodes=True)])[0]
    assert whole([claim(want())], [slice_(TWO, nodeSelector={"nodeSelectorTerms": [term]})])[0]["nodeSelector"] == {"nodeSelectorTerms": [term]}
    own = [{"name": "far", "nodeName": "m"}, {"name": "near", "nodeName": "n"}]
    assert give([claim(want())], [slice_(own, perDeviceNodeSelection=True)]) == [["near"]]
    bound = [{"name": "b", "bindsToNode": True, "bindingConditions": ["ready"], "bindingFailureConditions": ["broken"]}]
    done = whole([claim(want())], [slice_(bound, allNodes=True)])[0]
    assert done["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"] and done["devices"]["results"][0]["bindingConditions"] == ["ready"]


def _brute(counts: list[int], fits: list[set[int]], free: set[int], cost: list[int], counter: int, same: list[int] | None) -> bool:
    """Whether there is any way at all."""
    ways = [list(itertools.combinations(sorted(f & free), n)) for n, f in zip(counts, fits, strict=True)]
    for way in itertools.product(*ways):
        taken = [d for part in way for d in part]
        if len(taken) == len(set(taken)) and sum(cost[d] for d in taken) <= counter and (same is None or len({same[d] for d in taken}) <= 1):
            return True
    return False


@pytest.mark.parametrize("seed", range(150))
def test_the_search_finds_a_way_if_there_is_one(seed: int) -> None:
    r = random.Random(seed)
    n, counter = r.randint(1, 6), r.randint(1, 6)
    models, cost = [r.choice((0, 1)) for _ in range(n)], [r.randint(0, 3) for _ in range(n)]
    devices = [{"name": f"d{i}", "attributes": {"model": {"int": models[i]}, "n": {"int": i}},
                "consumesCounters": [{"counterSet": "set", "counters": {"m": {"value": str(cost[i])}}}]} for i in range(n)]
    slices = [slice_([], "counters", 2, sharedCounters=[{"name": "set", "counters": {"m": {"value": str(counter)}}}]),
              slice_(devices, "devices", 2, nodeName="n")]
    busy = {i for i in range(n) if r.random() < 0.2}
    left = counter - sum(cost[i] for i in busy)
    limits, counts = [r.randint(0, n) for _ in range(3)], [r.randint(1, 2) for _ in range(3)]
    requests = [want(f"r{k}", count=counts[k], selectors=cel(f'device.attributes["d"].n < {limits[k]}')) for k in range(3)]
    same = r.random() < 0.5
    claims = [claim(*requests, constraints=[{"matchAttribute": "d/model"}] if same else [])]
    found = give(claims, slices, Used({("d", "p", f"d{i}") for i in busy}))
    expected = left >= 0 and _brute(counts, [set(range(x)) for x in limits], set(range(n)) - busy, cost, left, models if same else None)
    assert (found != NONE) == expected, found
    if expected:
        assert len(set(found[0])) == sum(counts) and not {f"d{i}" for i in busy} & set(found[0])


# --- the plugin ---------------------------------------------------------------------------------------------------------

def _cluster(slices: list[Doc], claims: list[Doc], classes: list[Doc]) -> tuple[NodeTable, ListView]:
    t = NodeTable()
    for n in ("n", "m"):
        t.set_node({"metadata": {"name": n}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "9", **({"x.com/gpu": "1"} if n == "m" else {})}}})
    return t, ListView(resourceslices__resource__k8s__io=slices, resourceclaims__resource__k8s__io=claims, deviceclasses__resource__k8s__io=classes)


def _place(p: Any, t: NodeTable, plugin: DynamicResources) -> Decision | Rejection:
    assert plugin.concerns(p)
    extra = Extra(prefilters=(("DynamicResources", plugin.prefilter),), late_filters=(("DynamicResources", plugin.filter),),
                  late_scores=(("DynamicResources", plugin.score),))
    ok, rejection = feasible(p, t, extra)
    return best(p, t, ok, extra, lambda n: 0) if ok.any() else rejection


def test_a_pod_goes_where_its_devices_are_and_the_better_alternative_wins() -> None:
    listed = first("r", {"name": "new", "selectors": cel('device.attributes["d"].model == "new"')}, {"name": "any"})
    there = {**slice_([TWO[1]]), "metadata": {"name": "m"}}
    there["spec"] = {**there["spec"], "nodeName": "m", "pool": {"name": "q", "generation": 1, "resourceSliceCount": 1}}
    t, view = _cluster([slice_([TWO[0]]), there], [claim(listed)], [CLASS])
    p = pod_info({"metadata": {"name": "p", "namespace": "x", "uid": "u"}, "spec": {"resourceClaims": [{"name": "g", "resourceClaimName": "c"}]}})
    plugin = DynamicResources(view, {}, lambda: 0.0)
    found = _place(p, t, plugin)
    assert isinstance(found, Decision) and found.node == "m"
    reserved = plugin.reserve(p, t, found.slot)
    assert reserved.claims[0][1]["devices"]["results"][0]["request"] == "r/new" and set(plugin.pending) == {"c"}
    again = _place(p, t, plugin)
    assert isinstance(again, Rejection) and again.message == "resource claim x/c is in the process of being allocated"


def test_a_claim_whose_device_failed_keeps_the_pod_away_until_it_is_given_up() -> None:
    given = claim(want())
    given["status"] = {"allocation": {"allocationTimestamp": "2030-01-01T00:00:00Z", "devices": {"results": [
        {"request": "r", "driver": "d", "pool": "p", "device": "a", "bindingConditions": ["ready"], "bindingFailureConditions": ["broken"]}]}}}
    t, view = _cluster([slice_(TWO)], [given], [CLASS])
    p = pod_info({"metadata": {"name": "p", "namespace": "x", "uid": "u"}, "spec": {"resourceClaims": [{"name": "g", "resourceClaimName": "c"}]}})
    now = [1893456000.0]
    plugin = DynamicResources(view, {}, lambda: now[0])
    assert isinstance(_place(p, t, plugin), Decision)                                # there is time yet
    now[0] += 601
    late = _place(p, t, plugin)
    assert isinstance(late, Rejection) and late.reasons == {"resourceclaim not available on the node": 2} and plugin.unavailable == [given]
    now[0] -= 601
    given["status"]["devices"] = [{"driver": "d", "pool": "p", "device": "a", "conditions": [{"type": "broken", "status": "True"}]}]
    assert isinstance(_place(p, t, plugin), Rejection)


def test_extended_resources_become_a_claim_where_no_plugin_offers_them() -> None:
    backing = {**CLASS, "spec": {**CLASS["spec"], "extendedResourceName": "x.com/gpu"}}

    def asks(n: int, restart: str = "") -> Doc:
        return {"name": f"c{n}", "resources": {"requests": {"cpu": "1", "x.com/gpu": str(n)}}, **({"restartPolicy": restart} if restart else {})}
    t, view = _cluster([slice_([*TWO, {**TWO[0], "name": "c"}])], [], [backing])
    p = pod_info({"metadata": {"name": "p", "namespace": "x", "uid": "u"}, "spec": {"initContainers": [asks(3)], "containers": [asks(1), asks(2)]}})
    plugin = DynamicResources(view, {}, lambda: 0.0)
    found = _place(p, t, plugin)
    assert isinstance(found, Decision) and found.node == "n"                         # m's plugin has one only
    reserved = plugin.reserve(p, t, found.slot)
    assert reserved.made is not None
    assert [(r["name"], r["exactly"]["count"]) for r in reserved.made["spec"]["devices"]["requests"]] == [
        ("container-1-request-1", 1), ("container-2-request-1", 2)]                 # the init container uses what the others will have
    assert [(m["containerName"], m["requestName"]) for m in reserved.mappings] == [
        ("c1", "container-1-request-1"), ("c2", "container-2-request-1"), ("c3", "container-1-request-1"), ("c3", "container-2-request-1")]
    assert len(reserved.allocation["devices"]["results"]) == 3
    implicit = pod_info({"metadata": {"name": "p", "namespace": "x"}, "spec": {"containers": [
        {"name": "c", "resources": {"requests": {"deviceclass.resource.kubernetes.io/gpu": "1"}}}]}})
    assert extended.classes(implicit, view) == {"deviceclass.resource.kubernetes.io/gpu": "gpu"}
