"""ApiSettings: everything the API server is told from outside. Data only; files are read by the composition root."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ApiSettings:
    service_cidr: str = "10.96.0.0/16"            # dual stack: a second one of the other family behind a comma
    node_ports: tuple[int, int] = (30000, 32767)
    advertise_address: str = "127.0.0.1"         # what the kubernetes Service's endpoint shows
    advertise_port: int = 6443
    cluster_domain: str = "cluster.local"
    client_ca: bytes = b""                       # PEM; certificates it signed are users
    front_proxy_ca: bytes = b""                  # PEM; certificates it signed may name users in X-Remote-* headers
    service_account_issuer: str = "https://kubernetes.default.svc.cluster.local"
    service_account_public_keys: tuple[bytes, ...] = ()   # PEM; tokens they verify are service accounts
    service_account_signing_key: bytes = b""     # PEM private key
    api_audiences: tuple[str, ...] = ()          # empty: the issuer
    static_tokens: tuple[tuple[str, str, tuple[str, ...]], ...] = ()   # (token, user, groups)
    kubelet_client_cert: str = ""                # file names: the certificate shown to kubelets
    kubelet_client_key: str = ""
    kubelet_ca: str = ""                         # "": kubelets' serving certificates are not verified, as upstream's default
    kubelet_port: int = 10250
    proxy_client_cert: str = ""                  # file names: the certificate shown to servers of aggregated APIs
    proxy_client_key: str = ""
    anonymous: bool = True
    authorization: bool = True                   # False: everything is allowed (tests of other parts)
    admission: bool = True
    events_ttl_s: float = 3600.0
    history_s: float = 300.0                     # how far back a watch or an exact list may reach
    max_in_flight: int = 600                     # read and write together, watches and streams apart
    watch_timeout_s: float = 1800.0              # shortest life of a watch without timeoutSeconds; the longest is twice that
    bootstrap: bool = True                       # create the objects every cluster starts with
