"""A node's certificates over a real server with TLS: renewed with the identity it has, refused when denied."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from pathlib import Path
from typing import Any

import pytest

from kubern import pki
from kubern.client.client import Client
from kubern.client.kubeconfig import sender_of
from kubern.client.loop import run_controllers
from kubern.kubelet import certificates
from kubern.model.request import User
from kubern.model.status import StatusError

ADMIN = User("admin", ("system:masters", "system:authenticated"))


def test_when_to_renew(tmp_path: Path) -> None:
    ca = pki.authority(tmp_path, "ca", "kubernetes")
    pair = pki.client(tmp_path, "c", "system:node:n", ("system:nodes",), ca, dt.datetime(2030, 1, 1, tzinfo=dt.UTC))
    begin, end = (t.timestamp() for t in (pair.certificate.not_valid_before_utc, pair.certificate.not_valid_after_utc))
    assert certificates.renew_at(pair.cert, 0.0) == begin and certificates.renew_at(pair.cert, 1.0) == end
    assert begin < certificates.renew_at(pair.cert, 0.8) < end


async def served(tmp_path: Path) -> tuple[Any, Any, pki.Pki, str]:
    from kubern.api import http
    from kubern.api.handle import Server
    from kubern.api.settings import ApiSettings
    from kubern.store.memory import MemoryStore

    keys = pki.ensure(tmp_path / "pki")
    server = Server(MemoryStore(), settings=ApiSettings(client_ca=keys.ca.cert))
    await server.start()
    context = http.ssl_context(str(keys.apiserver.cert_path), str(keys.apiserver.key_path), keys.ca.cert)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    listening = await http.serve(server.handle, "127.0.0.1", port, context)
    return server, listening, keys, f"https://127.0.0.1:{port}"


async def test_a_node_renews_its_certificate(tmp_path: Path) -> None:
    from kubern.controllers import certificates as controllers
    from kubern.controllers.context import Context
    from kubern.model.bootstrap import access

    server, listening, keys, url = await served(tmp_path)
    admin = Client(server.handle, ADMIN)
    for obj in access():
        if obj["metadata"].get("namespace") is None:
            await admin.create(obj)
    means = Context(sign=lambda signer, csr, usages, seconds: pki.sign_request(keys.ca, csr, usages, seconds))
    ready = asyncio.Event()
    work = asyncio.create_task(run_controllers([controllers.APPROVER, controllers.signer(means)], lambda user, agent: Client(server.handle, user, agent),
                                               ready=ready.set))
    await asyncio.wait_for(ready.wait(), 10)
    path = tmp_path / "kubelet.kubeconfig"
    pki.write_kubeconfig(path, pki.kubeconfig("kubern", url, keys.ca.cert, keys.node_client("n"), user="system:node:n"))
    sender = sender_of(path)
    client = Client(sender.send)
    try:
        _, before = certificates.identity_of(path)
        made = await certificates.renew_client(client, path, sender, "system:node:n", "system:nodes", "kubernetes.io/kube-apiserver-client-kubelet")
        _, after = certificates.identity_of(path)
        assert after == made != before and path.stat().st_mode & 0o777 == 0o600
        who = await client.create({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {}})
        assert who["status"]["userInfo"]["username"] == "system:node:n"

        late = asyncio.create_task(certificates.keep_client(client, path, sender, "system:node:n", "system:nodes",
                                                            "kubernetes.io/kube-apiserver-client-kubelet",
                                                            clock=lambda: certificates.renew_at(after, 0.95)))
        async with asyncio.timeout(10):
            while certificates.identity_of(path)[1] == after:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        late.cancel()

        other = certificates.ask("system:node:other", ("system:nodes",))
        with pytest.raises(StatusError, match="can only create a node CSR with CN=system:node:n"):
            await certificates.obtain(client, "kubernetes.io/kube-apiserver-client-kubelet", certificates.CLIENT_USAGES, other)
        asked = certificates.ask("system:node:n", ("system:nodes",), ("n",))       # serving: nobody here approves it
        with pytest.raises(certificates.NotIssued, match="was not approved"):
            await certificates.obtain(client, "kubernetes.io/kubelet-serving", certificates.SERVING_USAGES, asked, wait_s=0.5)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await sender.close()
        await listening.close()
        await server.stop()
