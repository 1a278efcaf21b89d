"""Bootstrap tokens: what lets a machine without credentials trust a cluster, and a cluster trust that machine. Pure.

A token `id.secret` is a Secret kube-system/bootstrap-token-ID. The ConfigMap kube-public/cluster-info holds a kubeconfig without
identity, signed by each token (detached JWS, HS256), so whoever knows a token can tell a true one; the hash of the CA's public key
tells it even from somebody else who knows the token. Not the authentication by such a token: api/authn/tokens.py.
Upstream: "Authenticating with Bootstrap Tokens"; cluster-bootstrap/token; kubeadm, phases/bootstraptoken; KEP-0659.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubern.model.object import Object
from kubern.model.time import rfc3339, seconds_of

SECRET_TYPE, SECRET_PREFIX = "bootstrap.kubernetes.io/token", "bootstrap-token-"
SYSTEM, PUBLIC = "kube-system", "kube-public"
CLUSTER_INFO, KUBECONFIG, SIGNATURE_PREFIX = "cluster-info", "kubeconfig", "jws-kubeconfig-"
NODE_CONFIG = "kubern-config"
DEFAULT_GROUP = "system:bootstrappers:kubeadm:default-node-token"
USAGES = ("authentication", "signing")
TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
NETWORK_GROUP, NETWORK_USER = "kubern:node-network", "kubern:network:"      # identities of the nodes' proxies and DNS
APPROVER = "kubern-node-approver"
RBAC = "rbac.authorization.k8s.io"


# ---- tokens

@dataclass(frozen=True, slots=True)
class Token:
    """A token as its Secret tells it. `expires_s` 0: never."""

    id: str
    secret: str
    expires_s: float = 0.0
    usages: tuple[str, ...] = USAGES
    groups: tuple[str, ...] = (DEFAULT_GROUP,)
    description: str = ""

    @property
    def text(self) -> str:
        return f"{self.id}.{self.secret}"


def parse(text: str) -> tuple[str, str]:
    """(id, secret). Raises ValueError."""
    match = TOKEN.fullmatch(text)
    if not match:
        raise ValueError(f"the bootstrap token {text!r} was not of the form \"\\A([a-z0-9]{{6}})\\.([a-z0-9]{{16}})\\z\"")
    return match[1], match[2]


def secret_of(t: Token) -> Object:
    data = {"token-id": t.id, "token-secret": t.secret, **{f"usage-bootstrap-{u}": "true" for u in t.usages}}
    if t.expires_s:
        data["expiration"] = rfc3339(t.expires_s)
    if t.groups:
        data["auth-extra-groups"] = ",".join(t.groups)
    if t.description:
        data["description"] = t.description
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET_PREFIX + t.id, "namespace": SYSTEM}, "type": SECRET_TYPE,
            "data": {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}}


def values(secret: Object) -> dict[str, str]:
    """The Secret's data as text; what is no text is left out."""
    out = {}
    for k, v in (secret.get("data") or {}).items():
        try:
            out[k] = base64.b64decode(v).decode()
        except (ValueError, TypeError):
            continue
    return out


def token_of(secret: Object) -> Token | None:
    """The token of a Secret; None where it holds none: another type, or a name that is not its id's."""
    if secret.get("type") != SECRET_TYPE or not secret["metadata"]["name"].startswith(SECRET_PREFIX):
        return None
    v = values(secret)
    id_, text = v.get("token-id") or "", v.get("token-secret") or ""
    if not TOKEN.fullmatch(f"{id_}.{text}") or secret["metadata"]["name"] != SECRET_PREFIX + id_:
        return None
    usages = tuple(sorted(k.removeprefix("usage-bootstrap-") for k, x in v.items() if k.startswith("usage-bootstrap-") and x == "true"))
    return Token(id_, text, expiration(secret), usages, tuple(filter(None, (v.get("auth-extra-groups") or "").split(","))), v.get("description") or "")


def expiration(secret: Object) -> float:
    """When a token's Secret ends; 0 for never. One that cannot be read has ended long ago."""
    text = values(secret).get("expiration")
    if not text:
        return 0.0
    try:
        return max(seconds_of(text), 1.0)
    except ValueError:
        return 1.0


def ttl_seconds(text: str) -> int:
    """"24h", "1h30m", "90s", "2d" or plain seconds; 0 is for ever. Raises ValueError."""
    if text.isdigit():
        return int(text)
    parts = re.findall(r"(\d+)([dhms])", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write for example 24h, 90m or 0 for a token that never expires")
    return sum(int(n) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[u] for n, u in parts)


# ---- signatures

def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signature(content: str, token_id: str, token_secret: str) -> str:
    """The detached JWS (RFC 7515, appendix F) of a text by a token: "header..mac"."""
    header = _b64(json.dumps({"alg": "HS256", "kid": token_id}, separators=(",", ":")).encode())
    mac = hmac.new(token_secret.encode(), f"{header}.{_b64(content.encode())}".encode(), hashlib.sha256).digest()
    return f"{header}..{_b64(mac)}"


def is_signed(content: str, found: str, token_id: str, token_secret: str) -> bool:
    """Whether this signature is the token's, whoever ordered its header."""
    head, _, rest = found.partition(".")
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return False
    if not isinstance(header, dict) or header.get("alg") != "HS256" or header.get("kid") != token_id or not rest.startswith("."):
        return False
    mac = hmac.new(token_secret.encode(), f"{head}.{_b64(content.encode())}".encode(), hashlib.sha256).digest()
    return hmac.compare_digest(_b64(mac), rest[1:])


def ca_hash(ca: bytes) -> str:
    """"sha256:HEX" of the public key of a CA certificate in PEM, as kubeadm prints and takes it."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = x509.load_pem_x509_certificate(ca).public_key()
    return "sha256:" + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


# ---- what a cluster that takes nodes has

def cluster_info(server: str, ca: bytes) -> Object:
    """kube-public/cluster-info, unsigned: the signer adds the signatures."""
    doc: Object = {"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": {
        "certificate-authority-data": base64.b64encode(ca).decode(), "server": server}}], "contexts": None, "current-context": "",
        "preferences": {}, "users": None}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CLUSTER_INFO, "namespace": PUBLIC},
            "data": {KUBECONFIG: json.dumps(doc, indent=1) + "\n"}}


def node_config(values_: Mapping[str, str]) -> Object:
    """kube-system/kubern-config: what every node of the cluster has to agree about."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NODE_CONFIG, "namespace": SYSTEM}, "data": dict(values_)}


def _role(name: str, rules: list[dict[str, Any]], namespace: str = "") -> Object:
    return {"apiVersion": f"{RBAC}/v1", "kind": "Role" if namespace else "ClusterRole",
            "metadata": {"name": name, **({"namespace": namespace} if namespace else {})}, "rules": rules}


def _binding(name: str, role: str, subjects: list[tuple[str, str]], namespace: str = "", cluster_role: bool = False) -> Object:
    rows = [{"apiGroup": RBAC, "kind": kind, "name": n} if kind != "ServiceAccount" else {"kind": kind, "name": n, "namespace": SYSTEM}
            for kind, n in subjects]
    return {"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
            "metadata": {"name": name, **({"namespace": namespace} if namespace else {})}, "subjects": rows,
            "roleRef": {"apiGroup": RBAC, "kind": "Role" if namespace and not cluster_role else "ClusterRole", "name": role}}


def access() -> list[Object]:
    """Roles and bindings that let machines with a token become nodes, by kubeadm's names where kubeadm has them."""
    csrs = "certificates.k8s.io"
    nodeclient = "system:certificates.k8s.io:certificatesigningrequests"
    read_config = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}
    tokens, nodes = [("Group", DEFAULT_GROUP)], [("Group", "system:nodes")]
    return [
        _role("kubeadm:bootstrap-signer-clusterinfo", [{**read_config, "resourceNames": [CLUSTER_INFO]}], PUBLIC),
        _binding("kubeadm:bootstrap-signer-clusterinfo", "kubeadm:bootstrap-signer-clusterinfo", [("User", "system:anonymous")], PUBLIC),
        _binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", tokens),
        _binding("kubeadm:node-autoapprove-bootstrap", f"{nodeclient}:nodeclient", tokens),
        _binding("kubeadm:node-autoapprove-certificate-rotation", f"{nodeclient}:selfnodeclient", nodes),
        _role("kubeadm:get-nodes", [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]),
        _binding("kubeadm:get-nodes", "kubeadm:get-nodes", tokens),
        _role("kubern:node-config", [{**read_config, "resourceNames": [NODE_CONFIG]}], SYSTEM),
        _binding("kubern:node-config", "kubern:node-config", [*tokens, *nodes], SYSTEM),
        _role("kubern:node-approver", [
            {"apiGroups": [csrs], "resources": ["certificatesigningrequests"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [csrs], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]},
            {"apiGroups": [csrs], "resources": ["signers"], "verbs": ["approve"], "resourceNames": [
                "kubernetes.io/kube-apiserver-client", "kubernetes.io/kubelet-serving"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]),
        _binding("kubern:node-approver", "kubern:node-approver", [("ServiceAccount", APPROVER)])]


def cluster_of(kubeconfig: str) -> tuple[str, bytes]:
    """(server, CA in PEM) of cluster-info's kubeconfig. Raises ValueError."""
    import yaml

    try:
        cluster = yaml.safe_load(kubeconfig)["clusters"][0]["cluster"]
        return str(cluster["server"]), base64.b64decode(cluster["certificate-authority-data"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as e:
        raise ValueError(f"cluster-info holds no usable kubeconfig: {e}") from None
