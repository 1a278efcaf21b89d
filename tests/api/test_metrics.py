"""What a server tells of itself: metrics by upstream's names and labels, health, flags and status."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubern.api.handle import MASTERS, Server
from kubern.api.metrics import Histogram, family
from kubern.api.settings import ApiSettings
from kubern.client.queue import Queue
from kubern.model.request import Request, Response
from kubern.store.encrypted import EncryptedStore
from kubern.store.encryption import parse
from kubern.store.memory import MemoryStore
from kubern.store.protocol import Unavailable
from kubern.store.sqlite import SqliteStore

NS = "/api/v1/namespaces/default"
# of test/instrumentation/testdata/stable-metrics-list.yaml what a server without clients serves besides requests
SERVED = ("apiserver_admission_controller_admission_duration_seconds", "apiserver_admission_step_admission_duration_seconds",
          "apiserver_admission_webhook_admission_duration_seconds", "apiserver_current_inflight_requests", "apiserver_longrunning_requests",
          "apiserver_request_duration_seconds", "apiserver_request_total", "apiserver_requested_deprecated_apis", "apiserver_response_sizes",
          "apiserver_storage_objects", "apiserver_storage_size_bytes", "apiserver_storage_events_received_total", "kubernetes_build_info",
          "apiserver_flowcontrol_current_executing_requests", "apiserver_flowcontrol_current_executing_seats",
          "apiserver_flowcontrol_current_inqueue_requests", "apiserver_flowcontrol_dispatched_requests_total", "apiserver_flowcontrol_nominal_limit_seats",
          "apiserver_flowcontrol_rejected_requests_total", "apiserver_flowcontrol_request_wait_duration_seconds",
          "apiserver_authentication_config_controller_automatic_reloads_total", "apiserver_authorization_config_controller_automatic_reloads_total",
          "apiserver_authentication_config_controller_automatic_reload_last_timestamp_seconds",
          "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds", "workqueue_adds_total", "workqueue_depth",
          "workqueue_retries_total")


async def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> Response:
    path, _, q = path.partition("?")
    query = {k: [v] for k, _, v in (p.partition("=") for p in q.split("&"))} if q else {}
    return await server.handle(Request(method, path, query, {"content-type": "application/json", **headers}, orjson.dumps(body) if body else b"",
                                       user=MASTERS))


async def page(server: Server, path: str = "/metrics") -> str:
    return bytes((await ask(server, "GET", path)).body).decode()  # type: ignore[arg-type]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    store = await SqliteStore.open(tmp_path / "s.db")
    out = Server(store, settings=ApiSettings())
    await out.start()
    yield out
    await out.stop()
    await store.close()


async def test_metrics_by_upstreams_names(server: Server) -> None:
    await ask(server, "POST", f"{NS}/configmaps", {"metadata": {"name": "m"}})
    await ask(server, "POST", f"{NS}/configmaps?dryRun=All", {"metadata": {"name": "n"}})
    await ask(server, "GET", f"{NS}/configmaps/m")
    await ask(server, "GET", f"{NS}/endpoints")
    await ask(server, "GET", f"{NS}/nosuch\"things")
    watch = await ask(server, "GET", f"{NS}/configmaps?watch=1")
    await ask(server, "GET", "/livez")
    text = await page(server)
    families = re.findall(r"^# TYPE (\S+)", text, re.M)
    assert not set(SERVED) - set(families) and len(families) == len(set(families))
    assert all(re.fullmatch(r'[a-z_]+(\{([a-z_]+="[^"]*",?)*\})? \S+', line) for line in text.splitlines() if not line.startswith("#"))
    about = 'component="apiserver",dry_run="{}",group="",resource="configmaps",scope="{}",subresource="",verb="{}",version="v1"'
    for line in (f'apiserver_request_total{{code="201",{about.format("", "namespace", "POST")}}} 1',
                 f'apiserver_request_total{{code="201",{about.format("All", "namespace", "POST")}}} 1',
                 f'apiserver_request_total{{code="200",{about.format("", "resource", "GET")}}} 1',
                 f'apiserver_request_duration_seconds_count{{{about.format("", "resource", "GET")}}} 1',
                 'apiserver_response_sizes_bucket{component="apiserver",group="",resource="configmaps",scope="resource",subresource="",verb="GET",version="v1",'
                 'le="1000"} 1',
                 'apiserver_longrunning_requests{component="apiserver",group="",resource="configmaps",scope="namespace",subresource="",verb="WATCH",'
                 'version="v1"} 1',
                 'apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1',
                 'apiserver_storage_objects{resource="configmaps"} 1', 'apiserver_flowcontrol_nominal_limit_seats{priority_level="exempt"} 0',
                 'apiserver_request_total{code="200",component="",dry_run="",group="",resource="",scope="",subresource="/livez",verb="GET",version=""} 1'):
        assert line in text.splitlines(), line
    assert "nosuch" not in text
    watch.body.end()  # type: ignore[union-attr]


def test_a_histogram_counts_up() -> None:
    h = Histogram("h", "help", ("a",), (1, 2))
    for value in (0.5, 1, 1.5, 7):
        h.observe(("x",), value)
    assert h.text().splitlines()[2:] == ['h_bucket{a="x",le="1"} 2', 'h_bucket{a="x",le="2"} 3', 'h_bucket{a="x",le="+Inf"} 4', 'h_sum{a="x"} 10',
                                         'h_count{a="x"} 4']


async def test_who_was_let_in_what_was_taken_and_what_waits(server: Server) -> None:
    queue = Queue[int](name="things")
    queue.add(1)
    queue.add(1)
    await ask(server, "POST", f"{NS}/services", {"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
    await server.handle(Request("GET", "/api", {}, {"authorization": "Bearer no"}, b""))
    await server.handle(Request("GET", f"{NS}/secrets", {}, {}, b""))
    lines = (await page(server)).splitlines()
    while 'kube_apiserver_clusterip_allocator_allocated_ips{cidr="10.96.0.0/16"} 2' not in lines:       # the cluster's own Service comes when it comes
        await asyncio.sleep(0.01)
        lines = (await page(server)).splitlines()
    for line in ('authentication_attempts{result="error"} 1', 'authorization_attempts_total{result="denied"} 1',
                 "kube_apiserver_nodeport_allocator_allocated_ports 1",
                 'apiserver_request_body_size_bytes_count{group="",resource="services",verb="create"} 2',          # the cluster's own is one
                 'workqueue_adds_total{name="things"} 1', 'workqueue_depth{name="things"} 1', 'workqueue_retries_total{name="things"} 0',
                 "apiserver_audit_event_total 0"):
        assert line in lines, line
    sli = [line for line in lines if line.startswith("apiserver_request_sli_duration_seconds_count{")]
    assert sli and not any("dry_run" in line for line in sli)


def test_large_counts_are_exact() -> None:
    assert family("c", "counter", "help", [((), 12345678), ((("a", "b"),), 0.25)]).splitlines()[2:] == ["c 12345678", 'c{a="b"} 0.25']


async def test_health_asks_the_store_and_the_key_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(MemoryStore):
        """A store others write to, and that may be away."""

        away = False

        async def caught_up(self) -> None:
            return None

        async def get(self, key: str, *, revision: int = 0) -> Any:
            if self.away:
                raise Unavailable("gone")
            return await super().get(key, revision=revision)
    driver = Shared()
    encryption = parse({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": [{"resources": ["foos.example.com"],
                        "providers": [{"kms": {"apiVersion": "v2", "name": "vault", "endpoint": "unix:///run/none"}}]}]})
    server = Server(EncryptedStore(driver, encryption), settings=ApiSettings(bootstrap=False))
    await server.start()
    encryption.plugins[0].problem = ""
    assert (await ask(server, "GET", "/readyz")).status == 200 and await page(server, "/livez/kms-providers") == "ok"
    driver.away = True
    assert (await ask(server, "GET", "/readyz/etcd")).status == 500
    text = await page(server, "/readyz?verbose")
    assert "[-]etcd failed: reason withheld\n" in text and "[-]etcd-readiness failed: reason withheld\n" in text and text.endswith("readyz check failed\n")
    assert (await ask(server, "GET", "/readyz?exclude=etcd&exclude=etcd-readiness")).status in (200, 500)
    assert 'kubernetes_healthcheck{name="etcd",type="readyz"} 0\n' in await page(server, "/metrics/slis")
    driver.away = False
    encryption.plugins[0].problem = "no"
    assert (await ask(server, "GET", "/healthz")).status == 500 and (await ask(server, "GET", "/healthz/ping")).status == 200
    await server.stop()


async def test_flags_and_status(server: Server) -> None:
    server.flags = {"port": "6443", "bind": "0.0.0.0"}
    assert (await page(server, "/flagz")).endswith("debugging purposes only.\nbind: 0.0.0.0\nport: 6443\n")
    status = await page(server, "/statusz")
    assert status.startswith("\napiserver statusz\nWarning: ") and "\nBinary version: 1.36.2\nEmulation version: 1.36\n" in status
    refused = await ask(server, "GET", "/statusz", accept="application/json")
    assert refused.status == 406 and (await ask(server, "GET", "/flagz", accept="text/plain")).status == 200
