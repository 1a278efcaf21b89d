"""The controllers: one file, one decision. CONTROLLERS is the table; `controllers(context)` makes the rows that need means or a
memory of their own: what a controller remembers between passes never outlives the loop that runs it.

A controller imports kubern.model and its neighbours here, nothing else; the loop that runs them is client/loop.py.
"""

from __future__ import annotations

from collections.abc import Callable

from kubern.controllers import (
    aggregation,
    attach,
    autoscaler,
    bootstrap,
    certificates,
    claims,
    cronjob,
    daemonset,
    deployment,
    devicetaint,
    disruption,
    endpoints,
    endpointslice,
    garbage,
    ipam,
    job,
    loadbalancer,
    localpath,
    mirroring,
    namespace,
    nodes,
    podgc,
    policystatus,
    protection,
    quota,
    replicaset,
    serviceaccount,
    servicecidr,
    statefulset,
    tainteviction,
    tokens,
    ttl,
    volumes,
)
from kubern.controllers.context import Context
from kubern.model.controller import Controller

CONTROLLERS: tuple[Controller | Callable[[Context], Controller], ...] = (
    # workloads
    deployment.CONTROLLER,
    replicaset.CONTROLLER,
    replicaset.REPLICATION,
    statefulset.CONTROLLER,
    daemonset.controller,
    job.controller,
    job.ORPHANS,
    cronjob.controller,
    cronjob.EXPIRY,
    disruption.CONTROLLER,
    disruption.STALE,
    autoscaler.controller,
    # services
    endpointslice.controller,
    endpoints.controller,
    mirroring.CONTROLLER,
    servicecidr.CONTROLLER,
    loadbalancer.controller,
    # namespaces and identities
    namespace.CONTROLLER,
    serviceaccount.ACCOUNTS,
    serviceaccount.root_ca,
    tokens.controller,
    tokens.LEGACY,
    certificates.APPROVER,
    certificates.signer,
    certificates.CLEANER,
    bootstrap.SIGNER,
    bootstrap.CLEANER,
    bootstrap.node_approver,
    aggregation.CONTROLLER,
    # nodes and pods
    nodes.controller,
    ipam.controller,
    ttl.CONTROLLER,
    tainteviction.controller,
    devicetaint.controller,
    podgc.controller,
    podgc.finished_pods,
    # storage and devices
    volumes.CLAIM,
    volumes.VOLUME,
    protection.CLAIM,
    protection.VOLUME,
    protection.CLASS,
    claims.EPHEMERAL,
    claims.EXPAND,
    claims.PODS,
    claims.RELEASE,
    attach.CONTROLLER,
    localpath.claims,
    localpath.volumes,
    # policies
    policystatus.CONTROLLER,
    # everything
    quota.CONTROLLER,
    garbage.CONTROLLER,
)


def controllers(context: Context) -> tuple[Controller, ...]:
    """The rows to run."""
    return tuple(row if isinstance(row, Controller) else row(context) for row in CONTROLLERS)
