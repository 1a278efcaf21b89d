# ruff: noqa: E501
"""Client libraries as they are published: what they send by default, and what they make of the answers."""

# mypy: ignore-errors
from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import contextmanager

import pytest

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
}

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "toys.toys.example.com"},
    "spec": {
        "group": "toys.example.com",
        "scope": "Namespaced",
        "names": {"plural": "toys", "singular": "toy", "kind": "Toy", "listKind": "ToyList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:6]}"


@pytest.mark.filterwarnings("ignore")
def test_kubernetes(kubeconfig: str) -> None:
    """The official client: typed objects, watch, patches, delete, dynamic client, utils."""
    kubernetes = pytest.importorskip("kubernetes")
    from kubernetes import client, config, dynamic, utils, watch

    with config.new_client_from_config(kubeconfig) as api:
        core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
        ns = unique("official")
        core.create_namespace({"metadata": {"name": ns}})
        utils.create_from_dict(api, {**DEPLOYMENT, "metadata": {"name": "d", "namespace": ns}})
        seen = []
        for event in watch.Watch().stream(core.list_namespaced_pod, ns, timeout_seconds=30):
            seen.append(event["type"])
            pods = core.list_namespaced_pod(ns, label_selector="a=b").items
            if len(pods) == 2 and all(p.status.phase == "Running" for p in pods):
                break
        assert seen and apps.read_namespaced_deployment("d", ns).spec.replicas == 2
        apps.patch_namespaced_deployment_scale("d", ns, {"spec": {"replicas": 1}})
        apps.patch_namespaced_deployment("d", ns, [{"op": "add", "path": "/metadata/labels", "value": {"x": "y"}}])
        assert apps.read_namespaced_deployment("d", ns).metadata.labels == {"x": "y"}
        secret = core.create_namespaced_secret(ns, client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"a": "b"}))
        assert secret.data == {"a": "Yg=="}
        secret.string_data = {"a": "c"}
        assert core.replace_namespaced_secret("s", ns, secret).data == {"a": "Yw=="}
        with pytest.raises(client.ApiException) as e:
            core.read_namespaced_secret("none", ns)
        assert e.value.status == 404 and e.value.reason == "Not Found"
        found = dynamic.DynamicClient(api).resources.get(api_version="apps/v1", kind="Deployment")
        assert [d.metadata.name for d in found.get(namespace=ns).items] == ["d"]
        assert client.VersionApi(api).get_code().major == "1"
        core.delete_namespace(ns)
    assert kubernetes.__version__


def definition(group: str) -> dict:
    """A definition of Toys in a group of its own."""
    return {**CRD, "metadata": {"name": f"toys.{group}"}, "spec": {**CRD["spec"], "group": group}}


def until(condition, what):
    """The first true value; what() tells what went on when there is none for half a minute."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(what())


@pytest.mark.filterwarnings("ignore")
def test_kubernetes_dynamic(kubeconfig: str) -> None:
    """The official dynamic client finds a custom kind, creates, patches in every way, applies, watches and deletes objects of it."""
    pytest.importorskip("kubernetes")
    from kubernetes import client, config, dynamic

    group = f"{unique('dyn')}.example.com"
    with config.new_client_from_config(kubeconfig) as api:
        any_ = dynamic.DynamicClient(api)
        crds = any_.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
        crds.create(body=definition(group))
        until(lambda: any(c.type == "Established" and c.status == "True" for c in crds.get(f"toys.{group}").status.conditions or ()), lambda: "established")
        any_.resources.invalidate_cache()
        toys = any_.resources.get(api_version=f"{group}/v1", kind="Toy")
        at = {"namespace": "default"}

        def toy(name, size, **meta):
            return {"apiVersion": f"{group}/v1", "kind": "Toy", "metadata": {"name": name, **meta}, "spec": {"size": size}}

        made = toys.create(body=toy("bear", 1, labels={"a": "b"}), **at)
        assert toys.get("bear", **at).spec.size == 1
        merged = {"content_type": "application/merge-patch+json"}
        assert toys.patch(name="bear", body={"spec": {"size": 2}}, **at, **merged).spec.size == 2
        changed = toys.patch(name="bear", body=[{"op": "replace", "path": "/spec/size", "value": 3}], content_type="application/json-patch+json", **at)
        assert changed.spec.size == 3
        with pytest.raises(dynamic.exceptions.DynamicApiError) as refused:
            toys.patch(name="bear", body={"spec": {"size": 4}}, content_type="application/strategic-merge-patch+json", **at)
        assert refused.value.status == 415
        with pytest.raises(dynamic.exceptions.ConflictError):
            toys.server_side_apply(body=toy("bear", 5), field_manager="other", **at)
        applied = toys.server_side_apply(body=toy("bear", 5), field_manager="other", force_conflicts=True, **at)
        assert applied.spec.size == 5 and {m.manager for m in applied.metadata.managedFields} >= {"other"}
        with pytest.raises(dynamic.exceptions.UnprocessibleEntityError):
            toys.create(body={**toy("bad", 1), "spec": {"size": "big"}}, **at)
        toys.create(body=toy("duck", 1), **at)
        assert [t.metadata.name for t in toys.get(label_selector="a=b", **at).items] == ["bear"]
        toys.delete(name="bear", **at)
        seen = [(e["type"], e["object"].metadata.name, e["object"].spec.size)
                for e in toys.watch(resource_version=made.metadata.resourceVersion, timeout=1, **at)]
        assert seen == [("MODIFIED", "bear", 2), ("MODIFIED", "bear", 3), ("MODIFIED", "bear", 5), ("ADDED", "duck", 1), ("DELETED", "bear", 5)]
        with pytest.raises(dynamic.exceptions.NotFoundError):
            toys.get("bear", **at)
        toys.delete(label_selector="!nothing", **at)
        until(lambda: not toys.get(**at).items, lambda: "deletecollection")
        nodes = any_.resources.get(api_version="v1", kind="Node")
        assert nodes.get().items[0].status.capacity.cpu
        assert any_.resources.get(api_version="apps/v1", kind="Deployment").subresources["scale"]
        crds.delete(name=f"toys.{group}")
        with pytest.raises(client.ApiException):
            client.CustomObjectsApi(api).list_namespaced_custom_object(group, "v1", "default", "toys")


@pytest.mark.filterwarnings("ignore")
def test_kubernetes_watch(kubeconfig: str) -> None:
    """The official watch: from a list's revision, over a server-side end, by selectors, 410 for what is long forgotten."""
    pytest.importorskip("kubernetes")
    from kubernetes import client, config, watch

    with config.new_client_from_config(kubeconfig) as api:
        core, name = client.CoreV1Api(api), unique("watched")
        start = core.list_namespaced_config_map("default", label_selector=f"w={name}").metadata.resource_version
        core.create_namespaced_config_map("default", {"metadata": {"name": name, "labels": {"w": name}}, "data": {"n": "0"}})
        for n in range(1, 4):
            core.patch_namespaced_config_map(name, "default", {"data": {"n": str(n)}})
        core.delete_namespaced_config_map(name, "default")
        w = watch.Watch()
        seen = [(e["type"], e["object"].data["n"]) for e in w.stream(
            core.list_namespaced_config_map, "default", label_selector=f"w={name}", resource_version=start, timeout_seconds=1)]
        assert seen == [("ADDED", "0"), ("MODIFIED", "1"), ("MODIFIED", "2"), ("MODIFIED", "3"), ("DELETED", "3")]
        assert int(w.resource_version) > int(start)
        with pytest.raises(client.ApiException) as e:
            next(watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version="1", timeout_seconds=2))
        assert e.value.status == 410


@pytest.mark.filterwarnings("ignore")
async def test_kr8s(kubeconfig: str) -> None:
    """kr8s: asynchronous, by discovery."""
    kr8s = pytest.importorskip("kr8s")
    from kr8s.asyncio.objects import ConfigMap, Deployment

    api = await kr8s.asyncio.api(kubeconfig=kubeconfig)
    name = unique("kr8s")
    made = await Deployment({**DEPLOYMENT, "metadata": {"name": name, "namespace": "default"}}, api=api)
    await made.create()
    await made.wait("condition=Available", timeout=30)
    assert len([p async for p in api.get("pods", namespace="default", label_selector={"a": "b"})]) >= 2
    await made.scale(1)
    await made.delete()
    m = await ConfigMap({"metadata": {"name": name, "namespace": "default"}, "data": {"a": "b"}}, api=api)
    await m.create()
    await m.patch({"data": {"a": "c"}})
    await m.refresh()
    assert m.data.a == "c"
    await m.label(x="y")
    await m.delete()


@pytest.mark.filterwarnings("ignore")
async def test_lightkube(kubeconfig: str) -> None:
    """lightkube: typed models, server-side apply, watch."""
    lightkube = pytest.importorskip("lightkube")
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.core_v1 import ConfigMap

    api = lightkube.AsyncClient(config=lightkube.KubeConfig.from_file(kubeconfig), field_manager="tests")
    name = unique("light")
    first = await api.apply(ConfigMap(apiVersion="v1", kind="ConfigMap", metadata=ObjectMeta(name=name, namespace="default"), data={"a": "b"}))

    async def change() -> None:
        await asyncio.sleep(0.2)
        await api.patch(ConfigMap, name, {"data": {"a": "c"}})

    changing = asyncio.ensure_future(change())
    async for op, obj in api.watch(ConfigMap, namespace="default", fields={"metadata.name": name}, resource_version=first.metadata.resourceVersion, server_timeout=20):
        assert (op, obj.data["a"]) == ("MODIFIED", "c")
        break
    await changing
    assert name in [m.metadata.name async for m in api.list(ConfigMap, namespace="default")]
    await api.delete(ConfigMap, name)
    await api.close()


@pytest.mark.filterwarnings("ignore")
def test_kopf(kubeconfig: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator: its handlers run at create, update and delete, its finalizer holds the object until the last has run, and after a restart it
    finds what changed while it was away, and resumes what did not."""
    kopf = pytest.importorskip("kopf")
    import threading

    from kubernetes import client, config

    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    seen: list[tuple[str, object]] = []
    registry, group = kopf.OperatorRegistry(), f"{unique('kopf')}.example.com"

    @kopf.on.startup(registry=registry)
    def quiet(settings, **_):
        settings.posting.enabled = True
        settings.watching.server_timeout = 60

    @kopf.on.login(registry=registry)
    def login(**more):
        return kopf.login_with_kubeconfig(**more)

    @kopf.on.create(group, "v1", "toys", registry=registry, id="created")
    def created(spec, body, **_):
        seen.append(("create", spec["size"]))
        kopf.info(body, reason="Made", message=f"of size {spec['size']}")
        return {"made": True}

    @kopf.on.resume(group, "v1", "toys", registry=registry)
    def resumed(name, **_):
        seen.append(("resume", name))

    @kopf.on.update(group, "v1", "toys", registry=registry)
    def updated(diff, **_):
        seen.append(("update", [tuple(d) for d in diff]))

    @kopf.on.delete(group, "v1", "toys", registry=registry)
    def deleted(name, **_):
        seen.append(("delete", name))

    @contextmanager
    def operator():
        ready, stop = threading.Event(), threading.Event()
        more = {"registry": registry, "standalone": True, "namespaces": ["default"], "ready_flag": ready, "stop_flag": stop}
        thread = threading.Thread(target=lambda: kopf.run(**more), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    def told():
        return str(seen)

    with config.new_client_from_config(kubeconfig) as api:
        ext, custom, core = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api), client.CoreV1Api(api)
        ext.create_custom_resource_definition(definition(group))
        until(lambda: any(c.type == "Established" and c.status == "True" for c in ext.read_custom_resource_definition(f"toys.{group}").status.conditions or ()), told)
        at = (group, "v1", "default", "toys")

        def toy(name, size):
            return {"apiVersion": f"{group}/v1", "kind": "Toy", "metadata": {"name": name}, "spec": {"size": size}}

        with operator():
            custom.create_namespaced_custom_object(*at, toy("bear", 1))
            custom.create_namespaced_custom_object(*at, toy("duck", 7))
            until(lambda: {("create", 1), ("create", 7)} <= set(seen), told)
            for name in ("bear", "duck"):
                until(lambda name=name: custom.get_namespaced_custom_object(*at, name).get("status", {}).get("created") == {"made": True}, told)
            assert custom.get_namespaced_custom_object(*at, "bear")["metadata"]["finalizers"]
            custom.patch_namespaced_custom_object(*at, "bear", {"spec": {"size": 2}})
            until(lambda: ("update", [("change", ("spec", "size"), 1, 2)]) in seen, told)
            until(lambda: [e for e in core.list_namespaced_event("default", field_selector="reason=Made").items if e.involved_object.kind == "Toy"], told)
        seen.clear()
        custom.patch_namespaced_custom_object(*at, "bear", {"spec": {"size": 3}})       # while nobody looks
        custom.create_namespaced_custom_object(*at, toy("late", 9))
        custom.delete_namespaced_custom_object(*at, "duck")
        assert custom.get_namespaced_custom_object(*at, "duck")["metadata"]["deletionTimestamp"], "the finalizer holds it"
        with operator():
            until(lambda: ("update", [("change", ("spec", "size"), 2, 3)]) in seen and ("create", 9) in seen and ("delete", "duck") in seen, told)
            until(lambda: ("resume", "bear") in seen, told)
            until(lambda: {t["metadata"]["name"] for t in custom.list_namespaced_custom_object(*at)["items"]} == {"bear", "late"}, told)
            custom.delete_namespaced_custom_object(*at, "bear")
            custom.delete_namespaced_custom_object(*at, "late")
            until(lambda: {("delete", "bear"), ("delete", "late")} <= {s for s in seen if s[0] == "delete"}, told)
            until(lambda: not custom.list_namespaced_custom_object(*at)["items"], told)
        ext.delete_custom_resource_definition(f"toys.{group}")
