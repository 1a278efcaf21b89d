"""Join: how a machine without credentials becomes a node, and the tokens that let it.

On the cluster's side `token create|list|delete`, and what must lie in the cluster for it (`ensure`). On the other side `kubern join`:
cluster-info is fetched unverified, must be signed by the token and its CA have the given hash, and is fetched again over that CA; then the
token buys a certificate request for the node's identity, and the node's identity those of its proxy. The machine (or the network
namespace it is run in) becomes the node. Joining again with the same data directory starts the node with what it has.
Upstream: kubeadm join, phases preflight to kubelet-start; "kubeadm token".
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets as random
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kubern.client.client import Client
from kubern.config import Settings
from kubern.daemon import ask, say
from kubern.model import bootstrap
from kubern.model import csr as request
from kubern.model.object import Object, condition
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.model.time import rfc3339

if TYPE_CHECKING:
    from kubern.cluster import Context

CONFIG_MAP, SECRET, NODE = by_kind["v1", "ConfigMap"], by_kind["v1", "Secret"], by_kind["v1", "Node"]
INFO_PATH = f"/api/v1/namespaces/{bootstrap.PUBLIC}/configmaps/{bootstrap.CLUSTER_INFO}"
DISCOVERY_S, POLL_S = 60.0, 0.5
READY_S = 120.0


class CannotJoin(RuntimeError):
    """The message says what is wrong and what to do."""


# ---- the cluster's side

async def ensure(ctx: Context, registry: str) -> None:
    """Puts cluster-info, the nodes' common settings and the access rules in place; objects somebody changed stay, addresses are kept true."""
    from kubern.cluster import MASTERS, cluster_dns

    s, client = ctx.settings, ctx.client(MASTERS)
    for obj in bootstrap.access():
        await create(client, obj)
    config = {"podCIDR": s.pod_cidr, "serviceCIDR": s.service_cidr, "clusterDNS": cluster_dns(s.service_cidr), "clusterDomain": s.cluster_domain,
              "registry": registry}
    for obj in (bootstrap.cluster_info(f"https://{url_host(ctx.public_address)}:{s.port}", ctx.pki.ca.cert), bootstrap.node_config(config)):
        have = await create(client, obj)
        data = {**(have.get("data") or {}), **obj["data"]} if have else {}
        if have and data != have.get("data"):
            await client.update({**have, "apiVersion": "v1", "kind": "ConfigMap", "data": data})


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def create(client: Client, obj: Object) -> Object | None:
    """Creates it; what is there already, if something is."""
    try:
        await client.create(obj)
    except StatusError as e:
        if e.code != 409:
            raise
        return await client.get(client.row(obj["apiVersion"], obj["kind"]), obj["metadata"].get("namespace") or "", obj["metadata"]["name"])
    return None


def new_token() -> str:
    return "".join(random.choice(bootstrap.LETTERS) for _ in range(6)) + "." + "".join(random.choice(bootstrap.LETTERS) for _ in range(16))


def token_create(s: Settings, text: str, ttl: str, description: str, print_join_command: bool, usages: Iterable[str] = bootstrap.USAGES,
                 groups: Iterable[str] = (bootstrap.DEFAULT_GROUP,)) -> int:
    """Make a token and print it, or the command that joins with it."""
    try:
        id_, secret = bootstrap.parse(text or new_token())
        seconds = bootstrap.ttl_seconds(ttl)
    except ValueError as e:
        say(f"kubern: {e}")
        return 1
    token = bootstrap.Token(id_, secret, time.time() + seconds if seconds else 0.0, tuple(usages), tuple(groups), description)
    failure: list[str] = []

    async def make(client: Client) -> Object | None:
        try:
            await client.create(bootstrap.secret_of(token))
        except StatusError as e:
            failure.append(f"a token with id {id_} already exists" if e.code == 409 else e.message)
            return None
        return await client.get(CONFIG_MAP, bootstrap.PUBLIC, bootstrap.CLUSTER_INFO)
    info = ask(s, make)
    if failure or (info is None and ask(s, lambda c: c.get(SECRET, bootstrap.SYSTEM, bootstrap.SECRET_PREFIX + id_)) is None):
        say(f"kubern: {failure[0] if failure else f'no cluster is running in {s.data_dir}; start one with: kubern up'}")
        return 1
    if not print_join_command:
        say(token.text)
        return 0
    if info is None:
        say("kubern: this cluster takes no other machines: it has simulated nodes; start one with: kubern up --runtime none")
        return 1
    server, ca = read_info(info["data"][bootstrap.KUBECONFIG])
    say(f"kubern join {server.removeprefix('https://')} --token {token.text} --discovery-token-ca-cert-hash {bootstrap.ca_hash(ca)}")
    return 0


def token_list(s: Settings) -> int:
    """Print the tokens, as `kubeadm token list` does."""
    found = ask(s, lambda client: client.list(SECRET, bootstrap.SYSTEM, fields=f"type={bootstrap.SECRET_TYPE}"))
    if found is None:
        say(f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up")
        return 1
    tokens = sorted((t for t in map(bootstrap.token_of, found[0]) if t), key=lambda t: t.id)
    rows = [("TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS")]
    for t in tokens:
        rows.append((t.text, _left(t.expires_s, time.time()), rfc3339(t.expires_s) if t.expires_s else "<never>", ",".join(t.usages) or "<none>",
                     t.description or "<none>", ",".join(t.groups) or "<none>"))
    widths = [max(len(r[i]) for r in rows) for i in range(6)]
    for r in rows:
        say("   ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip())
    return 0


def _left(expires_s: float, now: float) -> str:
    left = int(expires_s - now)
    if not expires_s:
        return "<forever>"
    if left <= 0:
        return "<invalid>"
    return f"{left // 3600}h" if left >= 3600 else f"{left // 60}m" if left >= 60 else f"{left}s"


def token_delete(s: Settings, text: str) -> int:
    """Delete a token by its id or the whole of it."""
    id_ = text.partition(".")[0]
    done: list[int] = []

    async def drop(client: Client) -> bool:
        try:
            await client.delete(SECRET, bootstrap.SYSTEM, bootstrap.SECRET_PREFIX + id_)
        except StatusError as e:
            done.append(e.code)
            return False
        return True
    if ask(s, drop):
        say(f'bootstrap token "{id_}" deleted')
        return 0
    say(f"kubern: there is no bootstrap token {id_}" if done else f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up")
    return 1


# ---- discovery

def read_info(kubeconfig: str) -> tuple[str, bytes]:
    """(server, CA in PEM) of cluster-info's kubeconfig. Raises CannotJoin."""
    import yaml

    try:
        cluster = yaml.safe_load(kubeconfig)["clusters"][0]["cluster"]
        return str(cluster["server"]), base64.b64decode(cluster["certificate-authority-data"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as e:
        raise CannotJoin(f"cluster-info holds no usable kubeconfig: {e}") from None


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
    _, ca = read_info(content)
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


# ---- the machine's side

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
