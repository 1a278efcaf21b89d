"""Bootstrap tokens at work: cluster-info is signed by every token that may sign, tokens that ended are removed, and what a joined node
asks for itself (its serving certificate, the identity of its proxy) is approved.

Upstream: pkg/controller/bootstrap/{bootstrapsigner,tokencleaner}.go. Upstream leaves kubelet serving certificates to somebody else; here
a node gets one for its own name and the addresses its Node object has.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from kubern.controllers.context import Context
from kubern.model import bootstrap
from kubern.model import csr as request
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Delete, Requeue, Update
from kubern.model.object import Key, Object, condition, deleting, key, meta, name, namespace, uid
from kubern.model.view import View

SECRETS, CONFIG_MAPS, NODES = "secrets", "configmaps", "nodes"
CSRS = "certificatesigningrequests.certificates.k8s.io"


def _is_token(secret: Object) -> bool:
    return secret.get("type") == bootstrap.SECRET_TYPE and namespace(secret) == bootstrap.SYSTEM


# ---- signer

def signed(info: Object, tokens: Iterable[bootstrap.Token]) -> dict[str, str]:
    """The data of cluster-info with exactly these tokens' signatures."""
    data = {k: v for k, v in (info.get("data") or {}).items() if not k.startswith(bootstrap.SIGNATURE_PREFIX)}
    content = data.get(bootstrap.KUBECONFIG)
    if content is not None:
        data.update({bootstrap.SIGNATURE_PREFIX + t.id: bootstrap.signature(content, t.id, t.secret) for t in tokens})
    return data


def _sign(single: Object, view: View, now: float) -> Steps:
    info = view.get(CONFIG_MAPS, bootstrap.PUBLIC, bootstrap.CLUSTER_INFO)
    if info is None or deleting(info):
        return
    tokens = [t for s in view.list(SECRETS, bootstrap.SYSTEM) if _is_token(s) and not deleting(s) and (t := bootstrap.token_of(s)) is not None
              and "signing" in t.usages and not 0 < t.expires_s <= now]
    data = signed(info, tokens)
    if data != (info.get("data") or {}):
        yield Update({**info, "data": data})
    ends = [t.expires_s for t in tokens if t.expires_s]
    if ends:
        yield Requeue(min(ends) - now + 0.1)


def _info_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    cm = new or old
    return [("", "")] if cm is not None and key(cm) == (bootstrap.PUBLIC, bootstrap.CLUSTER_INFO) else ()


def _token_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return [("", "")] if any(s is not None and _is_token(s) for s in (old, new)) else ()


SIGNER = Controller("bootstrap-signer", "", _sign, triggers=(Trigger(CONFIG_MAPS, _info_changed), Trigger(SECRETS, _token_changed)))


# ---- cleaner

def _clean(secret: Object, view: View, now: float) -> Steps:
    if not _is_token(secret) or deleting(secret):
        return
    end = bootstrap.expiration(secret)
    if end and end <= now:
        yield Delete("v1", "Secret", namespace(secret), name(secret), uid=uid(secret))
    elif end:
        yield Requeue(end - now + 0.01)


def _worth(old: Object, new: Object) -> bool:
    return _is_token(new)


CLEANER = Controller("token-cleaner", SECRETS, _clean, changed=_worth)


# ---- approver of what nodes ask for themselves

def refusal(csr: Object, node: Object | None) -> str | None:
    """Why a node may not have this certificate; "" if it may; None if it is not for us to say."""
    spec = csr["spec"]
    signer, user = spec.get("signerName"), spec.get("username") or ""
    if signer not in (request.CLIENT_SIGNER, request.KUBELET_SERVING_SIGNER) or not user.startswith(request.NODE_PREFIX) or \
            request.NODES not in (spec.get("groups") or ()):
        return None
    try:
        r = request.parse(base64.b64decode(spec.get("request") or ""))
    except ValueError:
        return None
    node_name = user.removeprefix(request.NODE_PREFIX)
    if signer == request.CLIENT_SIGNER:
        if r.common_name != bootstrap.NETWORK_USER + node_name or r.organizations != (bootstrap.NETWORK_GROUP,):
            return None
        return request.client_error(spec.get("usages") or ()) or ("alternative names are not allowed" if r.dns or r.ips or r.emails or r.uris else "")
    if r.common_name != user:
        return "a node may only ask for a certificate of its own"
    why = request.kubelet_serving_error(r, spec.get("usages") or ())
    if why:
        return why
    if node is None:
        return "there is no such node yet"
    addresses = {a.get("address") for a in (node.get("status") or {}).get("addresses") or ()} | {node_name}
    strange = [x for x in (*r.dns, *r.ips) if x not in addresses]
    return f"the node has no address {strange[0]}" if strange else ""


def node_approver(context: Context) -> Controller:
    """Only where real nodes can join: elsewhere nobody approves these."""
    def reconcile(csr: Object, view: View, now: float) -> Steps:
        if not context.real_nodes or deleting(csr) or condition(csr, "Approved") or condition(csr, "Denied"):
            return
        user = (csr["spec"].get("username") or "").removeprefix(request.NODE_PREFIX)
        if refusal(csr, view.get(NODES, "", user)) == "":
            status = csr.get("status") or {}
            done = {"type": "Approved", "status": "True", "reason": "AutoApproved", "message": "Auto approving a certificate the node asked for itself."}
            yield Update({**csr, "status": {**status, "conditions": [*(status.get("conditions") or ()), done]}}, "approval")

    def node_came(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        """Addresses decide, and may be written after the request."""
        if not context.real_nodes or new is None or (old is not None and _addresses(old) == _addresses(new)):
            return ()
        wanted = request.NODE_PREFIX + name(new)
        return [key(c) for c in view.list(CSRS) if c["spec"].get("username") == wanted]

    return Controller(bootstrap.APPROVER, CSRS, reconcile, reads=(NODES,), triggers=(Trigger(NODES, node_came),), backoff_first_s=0.2)


def _addresses(node: Object) -> object:
    return (meta(node).get("uid"), (node.get("status") or {}).get("addresses"))
