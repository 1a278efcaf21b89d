"""Context: what controllers cannot decide by themselves and the composition root hands them. Keys stay with whoever signs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kubern.model.object import Object

Sign = Callable[[str, bytes, Sequence[str], int], bytes]      # (signer name, CSR PEM, usages, seconds) -> certificate PEM; raises ValueError
Token = Callable[[Object, Object], str]                       # (service account, secret) -> a token without end bound to the secret


@dataclass(frozen=True, slots=True)
class Context:
    """Every field has a neutral default: a controller whose means are missing does nothing."""

    root_ca: str = ""
    sign: Sign | None = None
    token: Token | None = None
    signing_duration_s: int = 365 * 24 * 3600
    pod_cidr: str = "10.244.0.0/16"
    node_cidr_bits: int = 24
    node_cidr_bits6: int = 64
    service_cidr: str = "10.96.0.0/16"
    node_grace_s: float = 50.0
    node_startup_grace_s: float = 60.0
    terminated_pods_max: int = 12500
    real_nodes: bool = False                                  # nodes that run containers can join: storage, load balancers, tokens are for them
    load_balancer_pool: str = ""                              # addresses of services of type LoadBalancer
    started_s: float = 0.0                                    # nothing that happened before counts as silence
