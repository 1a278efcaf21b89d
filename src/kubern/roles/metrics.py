"""metrics.k8s.io, mounted like any aggregated API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kubern.roles.context import MASTERS, Context


@asynccontextmanager
async def run(ctx: Context) -> AsyncIterator[None]:
    """metrics.k8s.io, for kubectl top and the autoscaler."""
    from kubern.metrics_api import MetricsApi

    assert ctx.server is not None
    certificate = ctx.pki.clients["apiserver-kubelet-client"]
    api = MetricsApi(ctx.client(MASTERS, "metrics-server"), certificate.cert_path.read_bytes(), certificate.key_path.read_bytes(), ctx.clock)
    await api.mount(ctx.server.extra_paths, ctx.server.remote_rows)
    try:
        yield
    finally:
        await api.close()
