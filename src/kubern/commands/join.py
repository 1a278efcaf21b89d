"""`kubern join`: how a machine without credentials becomes a node.

cluster-info is fetched unverified, must be signed by the token and its CA have the given hash, and is fetched again over that CA; then the
token buys a certificate request for the node's identity, and the node's identity those of its proxy. The machine (or the network
namespace it is run in) becomes the node. Joining again with the same data directory starts the node with what it has.
Upstream: kubeadm join, phases preflight to kubelet-start.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kubern.client.client import Client
from kubern.commands.terminal import ask, say
from kubern.config import Settings
from kubern.model import bootstrap
from kubern.model import csr as request
from kubern.model.object import Object, condition
from kubern.model.resources import by_kind
from kubern.model.status import StatusError

CONFIG_MAP, NODE = by_kind["v1", "ConfigMap"], by_kind["v1", "Node"]

INFO_PATH = f"/api/v1/namespaces/{bootstrap.PUBLIC}/configmaps/{bootstrap.CLUSTER_INFO}"
DISCOVERY_S, POLL_S = 60.0, 0.5
READY_S = 120.0
HOST_TOKEN_S = 600


class CannotJoin(RuntimeError):
    """The message says what is wrong and what to do."""


def verify_info(info: Object, token: str, hashes: Iterable[str], any_ca: bool) -> bytes:
    """The CA (PEM) of a cluster-info that may be trusted. Raises CannotJoin; LookupError while the token's signature is missing."""
    id_, secret = bootstrap.parse(token)
    data = info.get("data") or {}
    content = data.get(bootstrap.KUBECONFIG)
    if not content:
        raise CannotJoin("the cluster's cluster-info is empty")
    found = data.get(bootstrap.SIGNATURE_PREFIX + id_)
    if not found:
        raise LookupError(f"cluster-info is not signed by token {id_}")
    if not bootstrap.is_signed(content, found, id_, secret):
        raise CannotJoin("the signature of cluster-info is not this token's: wrong token, or somebody in between")
    try:
        _, ca = bootstrap.cluster_of(content)
    except ValueError as e:
        raise CannotJoin(str(e)) from None
    pins = [h.lower() for h in hashes]
    if not any_ca and bootstrap.ca_hash(ca) not in pins:
        raise CannotJoin(f"the cluster's CA has the hash {bootstrap.ca_hash(ca)}, not {' or '.join(pins) or 'one that was given'}")
    return ca


async def discover(server: str, token: str, hashes: Iterable[str], any_ca: bool) -> bytes:
    """The CA of the cluster at this address, once it is proven. Raises CannotJoin."""
    from kubern.client.http import HttpSender

    end = time.monotonic() + DISCOVERY_S
    sender = HttpSender(server, insecure=True)
    try:
        while True:
            try:
                info = await Client(sender.send, agent="kubern-join").call("GET", INFO_PATH)
                ca = verify_info(info, token, hashes, any_ca)
                break
            except (OSError, EOFError, TimeoutError, LookupError) as e:
                why = f"could not be reached: {e}" if not isinstance(e, LookupError) else f"{e.args[0]}; is the token still valid?"
            except StatusError as e:
                why = f"does not show cluster-info: {e.message}"
            if time.monotonic() > end:
                raise CannotJoin(f"{server} {why}")
            await asyncio.sleep(POLL_S)
    finally:
        await sender.close()
    proven = HttpSender(server, ca)
    try:
        again = await Client(proven.send, agent="kubern-join").call("GET", INFO_PATH)
    except OSError as e:
        raise CannotJoin(f"{server} shows a certificate its CA did not sign for this address: {e} (kubern up --sans adds names)") from None
    finally:
        await proven.close()
    if (again.get("data") or {}).get(bootstrap.KUBECONFIG) != info["data"][bootstrap.KUBECONFIG]:
        raise CannotJoin("cluster-info changed between the first and the verified look")
    return ca


@dataclass(frozen=True, slots=True)
class Wish:
    """What `kubern join` was told."""

    server: str
    token: str
    hashes: tuple[str, ...]
    any_ca: bool = False
    name: str = ""
    address: str = ""
    registry: str = ""
    labels: tuple[str, ...] = ()
    taints: tuple[str, ...] = ()


def join(s: Settings, w: Wish) -> int:
    """Make this machine a node. Returns the exit code."""
    from kubern.kubelet import node

    name = (w.name or socket.gethostname()).lower()
    try:
        node.check_machine()
        old = node.load_unit(s.home, name)
        if old and old.alive():
            say(f"{name} is already running (process {old.pid})")
            return 0
        home = s.home / "nodes" / name
        server = w.server if "://" in w.server else f"https://{w.server}"
        if not (home / "network.kubeconfig").exists():
            if not w.token:
                raise CannotJoin("--token is needed; on the cluster's machine: kubern token create --print-join-command")
            bootstrap.parse(w.token)
            if not w.hashes and not w.any_ca:
                raise CannotJoin("--discovery-token-ca-cert-hash is needed (or --discovery-token-unsafe-skip-ca-verification)")
            asyncio.run(credentials(home, name, server, w))
        return start(s, home, name, server, w)
    except (CannotJoin, node.CannotRun, StatusError, ValueError, OSError) as e:
        say(f"kubern: {getattr(e, 'message', None) or e}")
        return 1


def host_node(s: Settings, text: str) -> int:
    """`kubern up --host-node`: this machine itself becomes a node of the cluster it runs, by this token, which holds for some minutes."""
    id_, secret = bootstrap.parse(text)
    token = bootstrap.Token(id_, secret, time.time() + HOST_TOKEN_S, bootstrap.USAGES, (bootstrap.DEFAULT_GROUP,), "up --host-node")

    async def invite(client: Client) -> Object:
        await client.create(bootstrap.secret_of(token))
        return await client.get(CONFIG_MAP, bootstrap.PUBLIC, bootstrap.CLUSTER_INFO)
    info = ask(s, invite)
    if info is None:
        say("kubern: the cluster does not let this machine in: it has simulated nodes, or went away")
        return 1
    server, ca = bootstrap.cluster_of(info["data"][bootstrap.KUBECONFIG])
    return join(s, Wish(server, token.text, (bootstrap.ca_hash(ca),)))


async def credentials(home: Path, name: str, server: str, w: Wish) -> None:
    """Everything a node needs to speak to the cluster, into its directory. Raises CannotJoin, StatusError."""
    from kubern import pki
    from kubern.client.http import HttpSender
    from kubern.kubelet.certificates import CLIENT_USAGES, Asked, NotIssued, obtain
    from kubern.kubelet.certificates import ask as new_request

    say(f"looking at {server}")
    ca = await discover(server, w.token, w.hashes, w.any_ca)

    async def identity(client: Client, signer: str, user: str, group: str, prefix: str) -> tuple[Asked, bytes]:
        asked = new_request(user, (group,))
        try:
            return asked, await obtain(client, signer, CLIENT_USAGES, asked, prefix)
        except NotIssued as e:
            raise CannotJoin(str(e)) from None

    def keep(file: str, user: str, asked: Asked, certificate: bytes) -> None:
        doc = pki.kubeconfig("kubern", server, ca, pki.Pair(certificate, asked.key, home, home), user=user)
        pki.write_kubeconfig(home / file, doc)

    sender = HttpSender(server, ca, token=w.token)
    try:
        client = Client(sender.send, agent="kubern-join")
        try:
            have = await client.get(NODE, "", name)
        except StatusError as e:
            if e.code != 404:
                raise CannotJoin(f"the token is not accepted: {e.message}") from None
        else:
            if (condition(have, "Ready") or {}).get("status") == "True":
                raise CannotJoin(f'a Node with name "{name}" and status "Ready" already exists in the cluster; choose another with --node-name')
        config = (await client.get(CONFIG_MAP, bootstrap.SYSTEM, bootstrap.NODE_CONFIG)).get("data") or {}
        user = f"{request.NODE_PREFIX}{name}"
        asked, certificate = await identity(client, request.KUBELET_CLIENT_SIGNER, user, request.NODES, "node-csr-")
    finally:
        await sender.close()
    pki.write_private(home / "ca.crt", ca)
    pki.write_private(home / "join.json", json.dumps(config).encode())
    keep("kubelet.kubeconfig", user, asked, certificate)
    say(f"certificate for {user}")
    own = HttpSender(server, ca, certificate, asked.key)
    try:
        network = bootstrap.NETWORK_USER + name
        asked, certificate = await identity(Client(own.send, agent="kubern-join"), request.CLIENT_SIGNER, network, bootstrap.NETWORK_GROUP, "network-csr-")
    finally:
        await own.close()
    keep("network.kubeconfig", network, asked, certificate)


def own_address(server: str) -> str:
    """The address of this machine by which it reaches the server."""
    from urllib.parse import urlsplit

    parts = urlsplit(server)
    with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=10) as c:
        return str(c.getsockname()[0])


def own_address6(address: str) -> str:
    """A global IPv6 address, with its prefix length, of the interface that has this address; "" if it has none."""
    from kubern.kubelet import fabric

    for link in fabric.show("addr", "show", "scope", "global"):
        held = link.get("addr_info") or ()
        if any(a.get("local") == address for a in held):
            return next((f"{a['local']}/{a['prefixlen']}" for a in held if a.get("family") == "inet6"), "")
    return ""


def start(s: Settings, home: Path, name: str, server: str, w: Wish) -> int:
    """Start the node with the credentials it has and wait until it is Ready."""
    from kubern.client.kubeconfig import sender_of
    from kubern.kubelet import node

    config = json.loads((home / "join.json").read_text())
    server = sender_server(home / "kubelet.kubeconfig") or server
    registry = w.registry or config.get("registry") or ""
    if registry and not reachable(registry):
        say(f"the cluster's registry {registry} cannot be reached from here: images come from the real ones")
        registry = ""
    labels = dict(x.partition("=")[::2] for x in w.labels)
    address = w.address or own_address(server)
    unit = node.create_unit(node.UnitSettings(
        home=s.home, name=name, server=server, kubeconfig=str(home / "kubelet.kubeconfig"), network_kubeconfig=str(home / "network.kubeconfig"),
        registry=registry, pod_cidr=config["podCIDR"], service_cidr=config["serviceCIDR"], cluster_dns=config["clusterDNS"],
        cluster_domain=config["clusterDomain"], labels=labels, taints=w.taints, log_level=s.log_level, host=True,
        address=address, address6=own_address6(address) if ":" in config["podCIDR"] else "", serving_csr=True))
    if not registry:
        import_pause(unit.config.socket, s.home / "images")
    say(f"the node runs as process {unit.pid}; logs in {home / 'logs'}")

    async def wait() -> bool:
        sender = sender_of(home / "kubelet.kubeconfig")
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    try:
                        found = await Client(sender.send).get(NODE, "", name)
                        if (condition(found, "Ready") or {}).get("status") == "True":
                            return True
                    except (StatusError, OSError, EOFError):
                        pass
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return False
        finally:
            await sender.close()
    if not asyncio.run(wait()):
        say(f"kubern: {name} did not become Ready within {READY_S:.0f} s; see: kubern logs {name}")
        return 1
    say(f"{name} has joined the cluster and is Ready; `kubern down` here takes it away again")
    return 0


def sender_server(kubeconfig: Path) -> str:
    import yaml

    return str(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


def reachable(url: str) -> bool:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=3).close()
    except OSError:
        return False
    return True


def import_pause(containerd_socket: str, library_dir: Path) -> None:
    """The image every pod's sandbox needs, straight into containerd: it is made here and lies in no registry."""
    from kubern.images import build
    from kubern.images.library import Library
    from kubern.images.recipes import DEMO, PAUSE

    library = Library(library_dir)
    build.ensure(library, [r for r in DEMO if r.name == PAUSE])
    archive = library_dir.parent / f".pause-{os.getpid()}.tar"
    try:
        with tarfile.open(archive, "w") as tf:
            for entry in ("oci-layout", "index.json", "blobs"):
                tf.add(library_dir / entry, entry)
        done = subprocess.run(["ctr", "-a", containerd_socket, "-n", "k8s.io", "images", "import", "--all-platforms", str(archive)],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotJoin(f"importing the pause image: {done.stderr.strip()}")
    finally:
        archive.unlink(missing_ok=True)
