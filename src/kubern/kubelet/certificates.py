"""Certificates a node asks for: its client certificate renewed before it ends, its server's signed by the cluster.

A new key for every request; the key never leaves the node. The kubeconfig file is replaced whole, the connections of the running
process go on with the new identity. Upstream: client-go util/certificate (70-90 % of a lifetime), pkg/kubelet/certificate;
"Configure Certificate Rotation for the Kubelet".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import logging
import os
import random
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubern.client.client import Client
from kubern.model import csr as request
from kubern.model.bootstrap import NETWORK_GROUP, NETWORK_USER
from kubern.model.resources import by_path
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.client.http import HttpSender

log = logging.getLogger(__name__)

CSRS = by_path["certificates.k8s.io", "v1", "certificatesigningrequests"]
CLIENT_USAGES = ["digital signature", "client auth"]
SERVING_USAGES = ["digital signature", "server auth"]
ANSWER_S = 60.0
POLL_FIRST_S, POLL_MAX_S = 0.05, 1.0
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 300.0
CHECK_MAX_S = 24 * 3600.0                   # a sleep longer than this is cut: clocks are set


class NotIssued(Exception):
    """No certificate came; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and the key that belongs to it, as PEM."""

    key: bytes
    csr: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.csr).hexdigest()


def ask(common_name: str, organizations: Sequence[str], dns: Sequence[str] = (), ips: Sequence[str] = ()) -> Asked:
    """A signing request with a new key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([*(x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations),
                         x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    names: list[x509.GeneralName] = [*(x509.DNSName(n) for n in dns), *(x509.IPAddress(ipaddress.ip_address(i)) for i in ips)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Asked(pem, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


async def obtain(client: Client, signer: str, usages: Sequence[str], asked: Asked, prefix: str = "csr-", wait_s: float = ANSWER_S,
                 seconds: int = 0) -> bytes:
    """The certificate (PEM) for a request: posts it and waits until somebody approved and signed it. Raises NotIssued, StatusError."""
    name = prefix + asked.digest[:43]
    spec: dict[str, Any] = {"signerName": signer, "usages": list(usages), "request": base64.b64encode(asked.csr).decode()}
    if seconds:
        spec["expirationSeconds"] = seconds
    await client.create({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name}, "spec": spec})
    pause = POLL_FIRST_S
    try:
        async with asyncio.timeout(wait_s):
            while True:
                status = (await client.get(CSRS, "", name)).get("status") or {}
                for c in status.get("conditions") or ():
                    if c.get("type") in ("Denied", "Failed"):
                        raise NotIssued(f"certificate signing request {name} is {c['type'].lower()}: {c.get('message') or c.get('reason')}")
                if status.get("certificate"):
                    return base64.b64decode(status["certificate"])
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, POLL_MAX_S)
    except TimeoutError:
        raise NotIssued(f"certificate signing request {name} was not approved and signed within {wait_s:.0f} s") from None


def renew_at(certificate: bytes, share: float) -> float:
    """When to renew a certificate (PEM): after this share of its life, as Unix seconds."""
    from cryptography import x509

    c = x509.load_pem_x509_certificate(certificate)
    begin, end = c.not_valid_before_utc.timestamp(), c.not_valid_after_utc.timestamp()
    return begin + (end - begin) * share


def identity_of(kubeconfig: Path) -> tuple[dict[str, Any], bytes]:
    """(the document, its client certificate) of a kubeconfig with an embedded identity. Raises ValueError."""
    import yaml

    doc = yaml.safe_load(kubeconfig.read_text())
    try:
        return doc, base64.b64decode(doc["users"][0]["user"]["client-certificate-data"])
    except (KeyError, IndexError, TypeError) as e:
        raise ValueError(f"{kubeconfig} holds no client certificate") from e


def replace_identity(kubeconfig: Path, doc: dict[str, Any], certificate: bytes, key: bytes) -> None:
    """Writes the kubeconfig with another certificate and key: whole or not at all, 0600."""
    from kubern.pki import write_kubeconfig

    doc["users"][0]["user"] = {"client-certificate-data": base64.b64encode(certificate).decode(), "client-key-data": base64.b64encode(key).decode()}
    write_kubeconfig(kubeconfig, doc)


# ---- what runs

async def _until(due: float, clock: Callable[[], float]) -> None:
    """Sleeps until this time by a clock that somebody may set."""
    while (wait := due - clock()) > 0:  # noqa: ASYNC110
        await asyncio.sleep(min(wait, CHECK_MAX_S))


async def renew_client(client: Client, kubeconfig: Path, sender: HttpSender, common_name: str, organization: str, signer: str) -> bytes:
    """One renewal; the new certificate. Raises NotIssued, StatusError."""
    asked = await asyncio.to_thread(ask, common_name, (organization,))
    certificate = await obtain(client, signer, CLIENT_USAGES, asked)
    doc, _ = identity_of(kubeconfig)
    await asyncio.to_thread(replace_identity, kubeconfig, doc, certificate, asked.key)
    sender.identify(certificate, asked.key)
    log.info("%s: new client certificate, renewed from %s on", common_name, time.strftime("%Y-%m-%d", time.gmtime(renew_at(certificate, 0.7))))
    return certificate


async def keep_client(client: Client, kubeconfig: Path, sender: HttpSender, common_name: str, organization: str, signer: str,
                      clock: Callable[[], float] = time.time) -> None:
    """Renews an identity before it ends, for ever. `client` asks: the node's own."""
    try:
        _, certificate = identity_of(kubeconfig)
    except ValueError as e:
        log.info("%s; it is not renewed", e)
        await asyncio.Event().wait()
        return
    retry = RETRY_FIRST_S
    while True:
        due = renew_at(certificate, random.uniform(0.7, 0.9))
        await _until(due, clock)
        try:
            certificate = await renew_client(client, kubeconfig, sender, common_name, organization, signer)
            retry = RETRY_FIRST_S
        except (NotIssued, StatusError, OSError, EOFError) as e:
            log.warning("renewing the client certificate of %s: %s", common_name, e)
            await asyncio.sleep(retry)
            retry = min(retry * 2, RETRY_MAX_S)


async def run(node: str, client: Client, sender: HttpSender, kubeconfig: str, network_sender: HttpSender, network_kubeconfig: str) -> None:
    """The role: both identities of a node are kept valid. Runs until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_client(client, Path(kubeconfig), sender, f"{request.NODE_PREFIX}{node}", request.NODES, request.KUBELET_CLIENT_SIGNER))
        if network_kubeconfig and network_kubeconfig != kubeconfig:
            group.create_task(keep_client(client, Path(network_kubeconfig), network_sender, NETWORK_USER + node, NETWORK_GROUP, request.CLIENT_SIGNER))


async def keep_serving(client: Client, node: str, addresses: Sequence[str], folder: str, context: ssl.SSLContext, registered: asyncio.Event,
                       clock: Callable[[], float] = time.time) -> None:
    """The kubelet server's certificate, signed by the cluster and renewed; until the first comes the server has one signed by itself."""
    from kubern.pki import write_private

    path = Path(folder) / "kubelet-server-current.pem"
    retry = RETRY_FIRST_S
    await registered.wait()
    while True:
        if path.exists():
            due = renew_at(path.read_bytes(), random.uniform(0.7, 0.9))
            if due > clock():
                context.load_cert_chain(path)
                await _until(due, clock)
        try:
            asked = await asyncio.to_thread(ask, f"{request.NODE_PREFIX}{node}", (request.NODES,), (node,), addresses)
            certificate = await obtain(client, request.KUBELET_SERVING_SIGNER, SERVING_USAGES, asked)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            await asyncio.to_thread(write_private, path, certificate + asked.key)
            retry = RETRY_FIRST_S
        except (NotIssued, StatusError, OSError, EOFError) as e:
            log.warning("the serving certificate: %s", e)
            await asyncio.sleep(retry)
            retry = min(retry * 2, RETRY_MAX_S)
