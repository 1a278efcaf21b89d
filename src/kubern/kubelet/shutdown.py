"""A node that is about to go: its pods end in order of priority, each group within the seconds it has, and nothing new begins.

In: the kubelet. The unit's supervisor asks for it before it stops (SIGUSR1), the configuration says how long it may take
(shutdownGracePeriod…). Spec: KEP-2000, KEP-2712; upstream pkg/kubelet/nodeshutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)

REASON, MESSAGE = "Terminated", "Pod was terminated in response to imminent node shutdown."
REFUSED = ("NodeShutdown", "Pod was rejected as the node is shutting down.")
NOT_READY = "node is shutting down"
LOOK_S = 0.1


def groups(rows: Sequence[tuple[int, int]], pods: Iterable[Any]) -> list[tuple[int, list[Any]]]:
    """(seconds, pods) from the lowest priority up; a pod belongs to the highest row that is not above it. Pure."""
    out: list[tuple[int, list[Any]]] = [(s, []) for _, s in rows]
    for p in pods:
        priority = p["spec"].get("priority") or 0
        at = max((i for i, (least, _) in enumerate(rows) if least <= priority), default=0)
        out[at][1].append(p)
    return out


async def shut_down(kubelet: Kubelet) -> None:
    """Returns when all pods have ended, or their time is over."""
    rows = kubelet.configuration.shutdown
    kubelet.shutting_down = True
    kubelet.presence.nudge()
    log.info("the node is shutting down: %d pods have %d s", len(kubelet.active_pods()), kubelet.configuration.shutdown_s)
    for seconds, pods in groups(rows, kubelet.active_pods()):
        workers = [kubelet.workers[p["metadata"]["uid"]] for p in pods]
        for w in workers:
            asked = w.pod["spec"].get("terminationGracePeriodSeconds")
            w.fail((REASON, MESSAGE), min(seconds, seconds if asked is None else int(asked)), MESSAGE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(w.terminated and not kubelet.reporter.busy(w.uid) for w in workers):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
