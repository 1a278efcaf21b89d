"""The server over the memory store, in process: verbs, lists, deletion, watches. No HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from tests.api.inside import NS, Api


async def test_what_is_created_can_be_read(api: Api) -> None:
    made = await api.map("a", labels={"x": "y"})
    assert made["metadata"]["uid"] and made["metadata"]["creationTimestamp"] and made["metadata"]["resourceVersion"]
    status, got = await api("GET", f"{NS}/configmaps/a")
    assert status == 200 and got == made
    assert (await api("POST", f"{NS}/configmaps", {"metadata": {"name": "a"}}))[1]["reason"] == "AlreadyExists"
    assert (await api("GET", f"{NS}/configmaps/b"))[1]["message"] == 'configmaps "b" not found'


async def test_a_put_with_an_old_version_conflicts(api: Api) -> None:
    first = await api.map("a")
    status, second = await api("PUT", f"{NS}/configmaps/a", {**first, "data": {"k": "1"}})
    assert status == 200 and second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
    status, why = await api("PUT", f"{NS}/configmaps/a", {**first, "data": {"k": "2"}})
    assert status == 409 and why["reason"] == "Conflict"
    status, third = await api("PUT", f"{NS}/configmaps/a", {"metadata": {"name": "a"}, "data": {"k": "2"}})
    assert status == 200 and third["metadata"]["uid"] == first["metadata"]["uid"]


async def test_a_write_that_changes_nothing_is_no_write(api: Api) -> None:
    first = await api.map("a")
    _, same = await api("PUT", f"{NS}/configmaps/a", first)
    assert same["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    revision = api.server.cache.revision
    await api("PATCH", f"{NS}/configmaps/a", {"metadata": {"name": "a"}}, type="application/merge-patch+json")
    assert api.server.cache.revision == revision


async def test_unconditional_patches_that_race_all_land(api: Api) -> None:
    await api.map("a")
    answers = await asyncio.gather(*[
        api("PATCH", f"{NS}/configmaps/a", {"data": {f"k{i}": "v"}}, type="application/merge-patch+json") for i in range(20)])
    assert {s for s, _ in answers} == {200}
    assert len((await api("GET", f"{NS}/configmaps/a"))[1]["data"]) == 20


async def test_pages_show_one_moment(api: Api) -> None:
    for name in "abcde":
        await api.map(name)
    _, page = await api("GET", f"{NS}/configmaps?limit=2")
    assert [i["metadata"]["name"] for i in page["items"]] == ["a", "b"] and page["metadata"]["remainingItemCount"] == 3
    await api("DELETE", f"{NS}/configmaps/d")
    await api.map("cc")
    _, rest = await api("GET", f"{NS}/configmaps?limit=9&continue={page['metadata']['continue']}")
    assert [i["metadata"]["name"] for i in rest["items"]] == ["c", "d", "e"]
    assert rest["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"]
    _, past = await api("GET", f"{NS}/configmaps?resourceVersion={page['metadata']['resourceVersion']}&resourceVersionMatch=Exact")
    assert [i["metadata"]["name"] for i in past["items"]] == list("abcde")
    status, why = await api("GET", f"{NS}/configmaps?resourceVersion=99999999")
    assert status == 504 and why["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert (await api("GET", f"{NS}/configmaps?continue=nonsense"))[0] == 400


async def test_an_expired_page_offers_an_inconsistent_rest(api: Api) -> None:
    for name in "abc":
        await api.map(name)
    _, page = await api("GET", f"{NS}/configmaps?limit=1")
    for i in range(5):
        await api("PATCH", f"{NS}/configmaps/c", {"data": {"k": str(i)}}, type="application/merge-patch+json")
    await api.server.store.compact(api.server.store.revision)
    status, why = await api("GET", f"{NS}/configmaps?limit=1&continue={page['metadata']['continue']}")
    assert status == 410 and why["reason"] == "Expired"
    _, rest = await api("GET", f"{NS}/configmaps?continue={why['metadata']['continue']}")
    assert [i["metadata"]["name"] for i in rest["items"]] == ["b", "c"]


async def test_a_page_expires_even_where_nothing_changed(api: Api) -> None:
    for name in "abc":
        await api.map(name)
    _, page = await api("GET", f"{NS}/configmaps?limit=1")
    await api("POST", f"{NS}/secrets", {"metadata": {"name": "later"}})
    again = f"{NS}/configmaps?limit=1&continue={page['metadata']['continue']}"
    assert (await api("GET", again))[1]["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"]
    await api.server.store.compact(api.server.store.revision)
    status, why = await api("GET", again)
    assert status == 410
    _, rest = await api("GET", f"{NS}/configmaps?limit=1&continue={why['metadata']['continue']}")
    assert [i["metadata"]["name"] for i in rest["items"]] == ["b"] and rest["metadata"]["resourceVersion"] != page["metadata"]["resourceVersion"]


async def test_selectors(api: Api) -> None:
    await api.map("a", labels={"x": "1"})
    await api.map("b", labels={"x": "2"})
    names = [i["metadata"]["name"] for i in (await api("GET", f"{NS}/configmaps?labelSelector=x%21=1".replace("%21", "!")))[1]["items"]]
    assert names == ["b"]
    assert [i["metadata"]["name"] for i in (await api("GET", "/api/v1/configmaps?fieldSelector=metadata.name=a"))[1]["items"]] == ["a"]
    assert (await api("GET", f"{NS}/configmaps?fieldSelector=data=x"))[0] == 400


async def test_finalizers_hold_an_object(api: Api) -> None:
    await api.map("a", finalizers=["example.com/f"])
    status, obj = await api("DELETE", f"{NS}/configmaps/a")
    assert status == 200 and obj["metadata"]["deletionGracePeriodSeconds"] == 0
    _, why = await api("POST", f"{NS}/configmaps", {"metadata": {"name": "a"}})
    assert why["message"] == 'object is being deleted: configmaps "a" already exists'
    status, _ = await api("PATCH", f"{NS}/configmaps/a", {"metadata": {"finalizers": ["example.com/f", "example.com/g"]}},
                          type="application/merge-patch+json")
    assert status == 422
    assert (await api("PATCH", f"{NS}/configmaps/a", {"metadata": {"finalizers": None}}, type="application/merge-patch+json"))[0] == 200
    assert (await api("GET", f"{NS}/configmaps/a"))[0] == 404


async def test_delete_preconditions_and_options(api: Api) -> None:
    await api.map("a")
    assert (await api("DELETE", f"{NS}/configmaps/a", {"preconditions": {"uid": "x"}}))[0] == 409
    assert (await api("DELETE", f"{NS}/configmaps/a?propagationPolicy=Nope"))[0] == 422
    assert (await api("DELETE", f"{NS}/configmaps/a?dryRun=All"))[0] == 200
    _, done = await api("DELETE", f"{NS}/configmaps/a")
    assert done["status"] == "Success" and done["details"]["kind"] == "configmaps"


async def test_generated_names_differ(api: Api) -> None:
    names = {(await api("POST", f"{NS}/configmaps", {"metadata": {"generateName": "g-"}}))[1]["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20 and all(n.startswith("g-") and len(n) == 7 for n in names)


async def test_bad_requests_never_break_it(api: Api) -> None:
    for method, path, body, type_ in [
            ("POST", f"{NS}/configmaps", b"\xff\xfe", "application/json"), ("POST", f"{NS}/configmaps", b"[" * 20000, "application/json"),
            ("PATCH", f"{NS}/configmaps/a", b"{", "application/merge-patch+json"), ("PUT", f"{NS}/configmaps/a", b"null", "application/json"),
            ("GET", f"{NS}/configmaps?limit=x", None, ""), ("GET", f"{NS}/configmaps?watch=1&resourceVersion=-1", None, ""),
            ("DELETE", f"{NS}/configmaps/a", b'{"preconditions":{"uid":5}}', "application/json"), ("GET", f"{NS}/configmaps/..", None, ""),
            ("GET", "/apis/a//b", None, ""), ("POST", "/api/v1/namespaces", b'{"metadata":{"name":7}}', "application/json")]:
        status, _ = await api(method, path, body, type=type_)
        assert 400 <= status < 500, (method, path, status)


async def lines(body: AsyncIterator[bytes], count: int) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    async with asyncio.timeout(5):
        async for chunk in body:
            out += [orjson.loads(line) for line in chunk.splitlines()]
            if len(out) >= count:
                break
    return out


async def test_a_watch_starts_with_the_state_and_goes_on(api: Api) -> None:
    await api.map("a")
    _, body = await api("GET", f"{NS}/configmaps?watch=1")
    task = asyncio.create_task(lines(body, 4))
    await asyncio.sleep(0)
    await api.map("b")
    await api("PATCH", f"{NS}/configmaps/b", {"data": {"k": "v"}}, type="application/merge-patch+json")
    await api("DELETE", f"{NS}/configmaps/a")
    events = await task
    assert [(e["type"], e["object"]["metadata"]["name"]) for e in events] == [
        ("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a")]
    revisions = [int(e["object"]["metadata"]["resourceVersion"]) for e in events]
    assert revisions == sorted(revisions)


async def test_initial_events_end_with_the_bookmark(api: Api) -> None:
    await api.map("a")
    _, body = await api("GET", f"{NS}/configmaps?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
    events = await lines(body, 2)
    assert [e["type"] for e in events] == ["ADDED", "BOOKMARK"]
    assert events[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert int(events[1]["object"]["metadata"]["resourceVersion"]) >= int(events[0]["object"]["metadata"]["resourceVersion"])


async def test_objects_come_and_go_by_the_selector(api: Api) -> None:
    made = await api.map("a")
    _, body = await api("GET", f"{NS}/configmaps?watch=1&resourceVersion={made['metadata']['resourceVersion']}&labelSelector=x=1")
    task = asyncio.create_task(lines(body, 2))
    await asyncio.sleep(0)
    for value in ("1", "2"):
        await api("PATCH", f"{NS}/configmaps/a", {"metadata": {"labels": {"x": value}}}, type="application/merge-patch+json")
    events = await task
    assert [e["type"] for e in events] == ["ADDED", "DELETED"]
    assert events[1]["object"]["metadata"]["labels"] == {"x": "1"}


@pytest.mark.parametrize("window", [True, False])
async def test_a_watch_resumes_from_history(api: Api, window: bool) -> None:
    made = await api.map("a")
    for i in range(5):
        await api("PATCH", f"{NS}/configmaps/a", {"data": {"k": str(i)}}, type="application/merge-patch+json")
    collection = api.server.cache.collection("", "configmaps")
    if not window:                      # as after a restart: only the store knows
        collection.window.clear()
        collection.window_after = api.server.cache.revision
    _, body = await api("GET", f"{NS}/configmaps?watch=1&resourceVersion={made['metadata']['resourceVersion']}")
    task = asyncio.create_task(lines(body, 6))
    await asyncio.sleep(0.05)
    await api("DELETE", f"{NS}/configmaps/a")
    events = await task
    assert [e["object"].get("data", {}).get("k") for e in events] == ["0", "1", "2", "3", "4", "4"]


async def test_a_forgotten_revision_is_an_error_event(api: Api) -> None:
    made = await api.map("a")
    for i in range(3):
        await api("PATCH", f"{NS}/configmaps/a", {"data": {"k": str(i)}}, type="application/merge-patch+json")
    await api.server.store.compact(api.server.store.revision)
    collection = api.server.cache.collection("", "configmaps")
    collection.window.clear()
    collection.window_after = api.server.cache.revision
    status, body = await api("GET", f"{NS}/configmaps?watch=1&resourceVersion={made['metadata']['resourceVersion']}")
    [event] = await lines(body, 1)
    assert status == 200 and event["type"] == "ERROR" and event["object"]["code"] == 410


async def test_a_watch_ends_in_time_and_leaves_nothing(api: Api) -> None:
    _, body = await api("GET", f"{NS}/configmaps?watch=1&resourceVersion=0&timeoutSeconds=1")
    assert [chunk async for chunk in body] == []
    assert api.server.watches == 0 and not api.server.cache.collection("", "configmaps").listeners


async def test_tables_and_metadata(api: Api) -> None:
    await api.map("a", labels={"x": "y"})
    _, table = await api("GET", f"{NS}/configmaps", accept="application/json;as=Table;v=v1;g=meta.k8s.io")
    assert table["kind"] == "Table" and table["rows"][0]["cells"][0] == "a" and table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    _, partial = await api("GET", f"{NS}/configmaps/a", accept="application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")
    assert partial["kind"] == "PartialObjectMetadata" and "data" not in partial
    assert (await api("GET", f"{NS}/configmaps", accept="text/html"))[0] == 406


async def test_the_store_outlives_the_server(api: Api) -> None:
    made = await api.map("a")
    second = Server(api.server.store, settings=ApiSettings(bootstrap=False))
    await second.start()
    assert (await Api(second)("GET", f"{NS}/configmaps/a"))[1] == made
    await second.stop()


async def test_service_addresses_and_ports(api: Api) -> None:
    async def service(name: str, **spec: Any) -> tuple[int, Any]:
        return await api("POST", f"{NS}/services", {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}})

    _, a = await service("a", type="NodePort")
    ip, port = a["spec"]["clusterIP"], a["spec"]["ports"][0]["nodePort"]
    assert ip.startswith("10.96.") and 30000 <= port <= 32767
    status, why = await service("b", clusterIP=ip)
    assert status == 422 and why["details"]["causes"][0]["message"].endswith("provided IP is already allocated")
    status, why = await service("b", type="NodePort", ports=[{"port": 80, "nodePort": port}])
    assert status == 422 and why["details"]["causes"][0]["message"].endswith("provided port is already allocated")
    assert (await api("GET", f"/apis/networking.k8s.io/v1/ipaddresses/{ip}"))[0] == 200
    assert (await api("DELETE", f"{NS}/services/a"))[0] == 200
    assert (await api("GET", f"/apis/networking.k8s.io/v1/ipaddresses/{ip}"))[0] == 404
    assert (await service("b", clusterIP=ip, type="NodePort", ports=[{"port": 80, "nodePort": port}]))[0] == 201


async def test_health(api: Api) -> None:
    assert await api("GET", "/readyz") == (200, b"ok")
    assert b"[+]etcd ok" in (await api("GET", "/livez?verbose="))[1]
    assert (await api("GET", "/healthz/nope"))[0] == 404


META = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
APPS = "/apis/apps/v1/namespaces/default"
POD = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


async def test_metadata_alone_is_without_what_stands_for_fields(api: Api) -> None:
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": POD}
    assert (await api("POST", f"{APPS}/deployments", {"metadata": {"name": "d"}, "spec": spec}))[0] == 201
    _, scale = await api("GET", f"{APPS}/deployments/d/scale", accept=META)
    assert scale["kind"] == "PartialObjectMetadata" and set(scale) == {"kind", "apiVersion", "metadata"}
    _, made = await api("POST", f"{APPS}/daemonsets", {"metadata": {"name": "d"}, "spec": spec})
    assert "deprecated.daemonset.template.generation" in made["metadata"]["annotations"]
    _, alone = await api("GET", f"{APPS}/daemonsets/d", accept=META)
    assert "annotations" not in alone["metadata"]


async def test_a_table_of_an_older_version_is_made_of_what_is_stored(api: Api) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}
    hpa = {"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target,
                                               "targetCPUUtilizationPercentage": 10}}
    status, answer = await api("POST", "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", hpa)
    assert status == 201, answer.get("message")
    _, table = await api("GET", "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/h", accept=TABLE)
    assert table["rows"][0]["cells"][2] == "cpu: <unknown>/10%"


async def test_what_was_given_as_empty_is_shown_as_empty(api: Api) -> None:
    """Empty lists and maps are not kept; a refusal shows them as upstream's types hold them."""
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {}}, "spec": POD["spec"]}}
    _, why = await api("POST", f"{APPS}/daemonsets", {"metadata": {"name": "d"}, "spec": spec})
    assert why["message"].endswith("spec.template.metadata.labels: Invalid value: {}: `selector` does not match template `labels`")
    spec["template"] = {"spec": POD["spec"]}
    _, why = await api("POST", f"{APPS}/daemonsets", {"metadata": {"name": "d"}, "spec": spec})
    assert why["message"].endswith("spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`")


async def test_creates_that_are_odd_in_their_metadata(api: Api) -> None:
    assert (await api("POST", f"{NS}/configmaps", {"metadata": {"name": "a", "resourceVersion": "abc"}}))[0] == 201
    assert (await api("POST", f"{NS}/configmaps", {"metadata": {"name": "b", "resourceVersion": "7"}}))[0] == 400
    _, why = await api("POST", f"{NS}/services", {"spec": {"ports": [{"port": 80}]}})
    assert why["message"].startswith('Service "" is invalid: spec.clusterIPs: Invalid value: [""]: failed to allocate IP: IPAddress.networking.k8s.io "10.')
    job = {"spec": {"completionMode": "Indexed", "completions": 2, "template": {"spec": {"restartPolicy": "Never", **POD["spec"]}}}}
    _, why = await api("POST", "/apis/batch/v1/namespaces/default/jobs", job)
    assert why["message"].endswith('metadata.name: Invalid value: "": will not able to create pod with invalid DNS label: -1]')


async def test_bytes_may_be_a_list_of_numbers(api: Api) -> None:
    _, secret = await api("POST", f"{NS}/secrets", {"metadata": {"name": "a"}, "data": {"a": [104, 105], "b": []}})
    assert secret["data"] == {"a": "aGk=", "b": ""}
    for bad, what in (("x", "string"), (256, "number 256"), (1.5, "number 1.5")):
        _, why = await api("POST", f"{NS}/secrets", {"metadata": {"name": "b"}, "data": {"a": [bad]}})
        assert why["message"].endswith(f"json: cannot unmarshal {what} into Go struct field Secret.data of type uint8")


@pytest.mark.parametrize(("options", "message"), [
    ({"gracePeriodSeconds": "x"}, "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64"),
    ({"gracePeriodSeconds": 1.5}, "json: cannot unmarshal number 1.5 into Go struct field DeleteOptions.gracePeriodSeconds of type int64"),
    ({"preconditions": {"uid": 5}}, "json: cannot unmarshal number into Go struct field Preconditions.preconditions.uid of type types.UID"),
    ({"dryRun": ["All", None]}, 'DeleteOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["All",""]: supported values: "All"'),
    ({"apiVersion": 5}, "couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .apiVersion of type string"),
    ({"bogus": 1}, 'configmaps "no" not found')])
async def test_delete_options_that_do_not_fit(api: Api, options: dict[str, Any], message: str) -> None:
    assert (await api("DELETE", f"{NS}/configmaps/no", options))[1]["message"] == message


async def test_lists_that_tell_what_is_left_or_nothing(api: Api) -> None:
    for name in "abc":
        await api.map(name)
    _, deleted = await api("DELETE", f"{NS}/configmaps?limit=1")
    assert deleted["metadata"]["remainingItemCount"] == 2 and deleted["metadata"]["continue"]
    _, none = await api("GET", f"{NS}/configmaps?labelSelector=x", accept="application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
    assert none["items"] is None


async def test_an_apply_may_not_name_the_uid_of_what_is_not_there(api: Api) -> None:
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "uid": "u"}}
    status, why = await api("PATCH", f"{NS}/configmaps/a?fieldManager=m", wanted, type="application/apply-patch+yaml")
    assert status == 409 and why["message"].endswith("uid mismatch: the provided object specified uid u, and no existing object was found")
    wanted["metadata"] = "x"
    _, why = await api("PATCH", f"{NS}/configmaps/a?fieldManager=m", wanted, type="application/apply-patch+yaml")
    assert why["message"] == "failed to create typed patch object (/; /v1, Kind=ConfigMap): .metadata: expected map, got &{x}"


async def test_a_jobs_name_that_is_no_label_is_told_once(api: Api) -> None:
    job = {"metadata": {"name": "a" * 70}, "spec": {"template": {"spec": {"restartPolicy": "Never", **POD["spec"]}}}}
    _, why = await api("POST", "/apis/batch/v1/namespaces/default/jobs", job)
    assert [c["field"] for c in why["details"]["causes"]] == ["spec.template.labels"] * 2
    job["metadata"]["name"] = "j"
    _, made = await api("POST", "/apis/batch/v1/namespaces/default/jobs", job)
    assert made["metadata"]["labels"] == made["spec"]["template"]["metadata"]["labels"]


async def test_an_empty_text_is_no_share_of_a_rolling_update(api: Api) -> None:
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": POD, "updateStrategy": {"rollingUpdate": {"maxUnavailable": "", "maxSurge": 1}}}
    _, why = await api("POST", f"{APPS}/daemonsets", {"metadata": {"name": "d"}, "spec": spec})
    assert why["message"].startswith('DaemonSet.apps "d" is invalid: spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "": a valid percent')


async def test_a_deletion_that_waits_is_answered_in_the_form_asked_for(api: Api) -> None:
    await api.map("a", finalizers=["x.io/y"])
    _, table = await api("DELETE", f"{NS}/configmaps/a", accept=TABLE)
    assert table["kind"] == "Table" and table["rows"][0]["cells"][0] == "a"
    await api.map("b")
    assert (await api("DELETE", f"{NS}/configmaps/b", accept=TABLE))[1]["kind"] == "Status"


async def test_namespaces_begin_to_go_without_grace(api: Api) -> None:
    await api("POST", "/api/v1/namespaces", {"metadata": {"name": "n"}})
    _, first = await api("DELETE", "/api/v1/namespaces/n")
    assert first["status"] == {"phase": "Terminating"} and "deletionTimestamp" in first["metadata"]
    assert "deletionGracePeriodSeconds" not in first["metadata"]
    assert (await api("DELETE", "/api/v1/namespaces/n"))[1] == first


async def test_deleted_classes_are_shown_once_more(api: Api) -> None:
    path = "/apis/storage.k8s.io/v1/storageclasses"
    _, made = await api("POST", path, {"metadata": {"name": "c"}, "provisioner": "x"})
    _, gone = await api("DELETE", f"{path}/c")
    assert gone["kind"] == "StorageClass" and gone["metadata"]["uid"] == made["metadata"]["uid"]


async def test_statuses_that_have_no_columns(api: Api) -> None:
    path = "/apis/apiregistration.k8s.io/v1/apiservices"
    await api("POST", path, {"metadata": {"name": "v1.x.io"}, "spec": {"group": "x.io", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}})
    assert (await api("GET", f"{path}/v1.x.io/status", accept=f"{TABLE},application/json"))[1]["kind"] == "APIService"
    assert (await api("GET", f"{path}/v1.x.io", accept=TABLE))[1]["kind"] == "Table"


async def test_what_version_1_of_an_autoscaler_fills_in_belongs_to_its_writer(api: Api) -> None:
    path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers"
    hpa = {"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}
    _, made = await api("POST", path, hpa)
    assert made["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"] == {"f:maxReplicas": {}, "f:minReplicas": {}, "f:scaleTargetRef": {}}
    _, back = await api("GET", f"{path}/h")
    assert back["spec"]["minReplicas"] == 1


async def test_a_jobs_labels_survive_a_status_without_any(api: Api) -> None:
    path = "/apis/batch/v1/namespaces/default/jobs"
    job = {"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", **POD["spec"]}}}}
    _, made = await api("POST", path, job)
    _, told = await api("PUT", f"{path}/j/status", {**made, "metadata": {"name": "j"}, "status": {}})
    assert told["metadata"]["labels"] == made["metadata"]["labels"]


async def test_a_namespace_is_finalized_by_its_name(api: Api) -> None:
    for metadata, why in (({}, "was undeterminable: name must be provided"), ({"name": "x"}, "(x) does not match the name on the URL (default)")):
        assert why in (await api("PUT", "/api/v1/namespaces/default/finalize", {"metadata": metadata}))[1]["message"]
    assert (await api("PUT", "/api/v1/namespaces/default/finalize", {"metadata": {"name": "default"}, "spec": {"finalizers": ["a/b"]}}))[0] == 200


async def test_admin_access_is_refused_with_all_else_that_is_wrong(api: Api) -> None:
    claim = {"metadata": {"name": "Bad_"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c", "adminAccess": True}}]}}}
    _, why = await api("POST", "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims", claim)
    assert [c["field"] for c in why["details"]["causes"]][:2] == ["spec.devices.requests[0].adminAccess", "metadata.name"]


async def test_a_timeout_must_be_a_duration(api: Api) -> None:
    for text, status in (("", 200), ("0s", 200), ("32s", 200), ("1h30m", 200), ("5", 400), ("invalid", 400)):
        found, why = await api("GET", f"{NS}/configmaps?timeout={text}")
        assert (text, found) == (text, status)
    assert why["message"] == 'invalid timeout specified in the request URL - time: invalid duration "invalid"' and why["reason"] == "BadRequest"


async def test_a_version_on_create_is_refused_last(api: Api) -> None:
    body = {"metadata": {"name": "b", "resourceVersion": "7"}}
    status, why = await api("POST", f"{NS}/configmaps", body)
    assert status == 400 and why["message"] == "resourceVersion should not be set on objects to be created"
    assert (await api("POST", f"{NS}/configmaps", {**body, "data": {"no key!": ""}}))[0] == 422
    assert (await api("GET", f"{NS}/configmaps/b"))[0] == 404
