# ruff: noqa: E501
"""Client libraries as they are published: what they send by default, and what they make of the answers."""

# mypy: ignore-errors
from __future__ import annotations

import asyncio
import time
import uuid

import pytest

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
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


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "toys.kopf.example.com"},
    "spec": {
        "group": "kopf.example.com",
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


@pytest.mark.filterwarnings("ignore")
def test_kopf(kubeconfig: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator: its handlers run at create, update and delete, its finalizer holds the object until the last has run."""
    kopf = pytest.importorskip("kopf")
    import threading

    from kubernetes import client, config

    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    seen: list[tuple[str, object]] = []
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    def quiet(settings, **_):
        settings.posting.enabled = True
        settings.watching.server_timeout = 60

    @kopf.on.login(registry=registry)
    def login(**more):
        return kopf.login_with_kubeconfig(**more)

    @kopf.on.create("kopf.example.com", "v1", "toys", registry=registry, id="created")
    def created(spec, patch, **_):
        seen.append(("create", spec["size"]))
        return {"made": True}

    @kopf.on.update("kopf.example.com", "v1", "toys", registry=registry)
    def updated(spec, **_):
        seen.append(("update", spec["size"]))

    @kopf.on.delete("kopf.example.com", "v1", "toys", registry=registry)
    def deleted(name, **_):
        seen.append(("delete", name))

    def until(condition, what):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"{what}: {seen}")

    with config.new_client_from_config(kubeconfig) as api:
        ext, custom = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api)
        ext.create_custom_resource_definition(CRD)
        until(lambda: any(c.type == "Established" and c.status == "True" for c in ext.read_custom_resource_definition(CRD["metadata"]["name"]).status.conditions or ()), "established")
        ready, stop = threading.Event(), threading.Event()
        operator = threading.Thread(
            target=lambda: kopf.run(registry=registry, standalone=True, namespaces=["default"], ready_flag=ready, stop_flag=stop, clusterwide=False), daemon=True
        )
        operator.start()
        assert ready.wait(30)
        at = ("kopf.example.com", "v1", "default", "toys")
        try:
            custom.create_namespaced_custom_object(*at, {"apiVersion": "kopf.example.com/v1", "kind": "Toy", "metadata": {"name": "bear"}, "spec": {"size": 1}})
            until(lambda: ("create", 1) in seen, "create")
            until(lambda: custom.get_namespaced_custom_object(*at, "bear").get("status", {}).get("created") == {"made": True}, "its result")
            assert custom.get_namespaced_custom_object(*at, "bear")["metadata"]["finalizers"]
            custom.patch_namespaced_custom_object(*at, "bear", {"spec": {"size": 2}})
            until(lambda: ("update", 2) in seen, "update")
            custom.delete_namespaced_custom_object(*at, "bear")
            until(lambda: ("delete", "bear") in seen, "delete")
            until(lambda: not custom.list_namespaced_custom_object(*at)["items"], "gone")
        finally:
            stop.set()
            operator.join(20)
        ext.delete_custom_resource_definition(CRD["metadata"]["name"])
