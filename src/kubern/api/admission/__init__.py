"""Admission: the last word on a write before it is stored. ADMISSION is the chain, in upstream's order.

The API asks `mutate(a)` after defaulting, then validates the object, then asks `validate(a)`; on delete and connect both follow
each other. A plugin refuses by raising StatusError. Which plugins look at what is settled once per (resource, subresource,
operation), so that a write most plugins do not care for pays nothing for them.
Upstream: pkg/kubeapiserver/options/plugins.go (those on by default; OwnerReferencesPermissionEnforcement and others are off).
"""

from __future__ import annotations

import time
from bisect import bisect_left

from kubern.api.admission import (
    certificates,
    claim_status,
    default_ingress_class,
    default_tolerations,
    device_admin,
    escalation,
    limit_ranger,
    mutating_policy,
    namespace_lifecycle,
    node_features,
    node_restriction,
    node_taint,
    pod_resize,
    pod_security,
    priority,
    resource_quota,
    runtime_class,
    service_account,
    storage,
    topology_labels,
    validating_policy,
    webhooks,
)
from kubern.api.admission.attributes import CONNECT, CREATE, DELETE, UPDATE, Attributes, Plugin, Reader, Step, Writer
from kubern.api.metrics import ADMISSION_S, PLUGINS, STEPS

__all__ = ["ADMISSION", "CONNECT", "CREATE", "DELETE", "UPDATE", "Attributes", "Plugin", "Reader", "Writer", "mutate", "validate"]

ADMISSION: tuple[Plugin, ...] = (
    namespace_lifecycle.PLUGIN,
    limit_ranger.PLUGIN,
    service_account.PLUGIN,
    node_restriction.PLUGIN,
    node_taint.PLUGIN,
    pod_security.PLUGIN,
    priority.POD,
    priority.CLASS,
    default_tolerations.PLUGIN,
    storage.DEFAULT_CLASS,
    storage.IN_USE,
    storage.RESIZE,
    runtime_class.PLUGIN,
    certificates.APPROVAL,
    certificates.SIGNING,
    certificates.ATTEST,
    certificates.SUBJECT,
    default_ingress_class.PLUGIN,
    topology_labels.PLUGIN,
    node_features.PLUGIN,
    pod_resize.PLUGIN,
    mutating_policy.PLUGIN,
    webhooks.MUTATING,
    validating_policy.PLUGIN,
    webhooks.VALIDATING,
    resource_quota.PLUGIN,
    escalation.PLUGIN,      # no plugin upstream: its registry checks at the same moment, after mutation and before validation
    device_admin.PLUGIN,    # likewise
    claim_status.PLUGIN,    # likewise
)

Timed = tuple[str, Step, list[float]]       # name, what it does, its cells of PLUGINS
_steps: dict[tuple[str, str], tuple[tuple[Timed, ...], tuple[Timed, ...]]] = {}
STEPS_MAX = 10_000


def _chain(a: Attributes) -> tuple[tuple[Timed, ...], tuple[Timed, ...]]:
    key = (a.what, a.operation)
    steps = _steps.get(key)
    if steps is None:
        chosen = [p for p in ADMISSION if a.operation in p.operations and ("*" in p.handles or key[0] in p.handles)]
        if len(_steps) >= STEPS_MAX:
            _steps.clear()
        cells = PLUGINS.cells
        steps = _steps[key] = (tuple((p.name, p.mutate, cells((p.name, a.operation, "false", "admit"))) for p in chosen if p.mutate),
                               tuple((p.name, p.validate, cells((p.name, a.operation, "false", "validate"))) for p in chosen if p.validate))
    return steps


async def _run(a: Attributes, steps: tuple[Timed, ...], kind: str) -> None:
    """All of them in order, with the time each one takes."""
    began = at = time.perf_counter()
    rejected = "true"
    name = ""
    try:
        for name, step, cells in steps:      # noqa: B007  (told of the one that refuses)
            await step(a)
            now = time.perf_counter()
            took = now - at
            cells[0 if took <= ADMISSION_S[0] else bisect_left(ADMISSION_S, took)] += 1
            cells[-1] += took
            at = now
        rejected = "false"
    finally:
        now = time.perf_counter()
        if rejected == "true" and name:
            PLUGINS.observe((name, a.operation, rejected, kind), now - at)
        STEPS.observe((a.operation, rejected, kind), now - began)


async def mutate(a: Attributes) -> None:
    """The mutating half of the chain; once more when a policy or a webhook changed the object."""
    steps = _chain(a)[0]
    await _run(a, steps, "admit")
    if a.passes is not None and a.passes.wanted:
        a.passes.again = True
        await _run(a, steps, "admit")


async def validate(a: Attributes) -> None:
    """The validating half, after the object itself was found valid."""
    await _run(a, _chain(a)[1], "validate")
