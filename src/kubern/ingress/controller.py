"""The built-in Ingress controller: one decision over all Ingresses of its classes. It keeps a Secret with nginx' configuration, a DaemonSet of
nginx that reads it, a LoadBalancer Service in front, and the Ingresses' statuses. Nothing of it exists before the first Ingress.

nginx takes a new configuration when it passes its own test; if not, it goes on with the old one. Only Ingresses are looked at that name an
IngressClass with controller kubern.dev/ingress; `objects()` is the default class and the controller's rights.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from kubern.ingress import routes
from kubern.ingress.render import FOLDER, HEALTH, HTTP, HTTPS, nginx
from kubern.model.controller import SINGLE, Controller, Keys, Steps, Trigger
from kubern.model.intent import Create, Emit, Failed, Update
from kubern.model.object import Key, Object, labels, meta, name, namespace, notes, uid
from kubern.model.view import View

INGRESSES, CLASSES = "ingresses.networking.k8s.io", "ingressclasses.networking.k8s.io"
SERVICES, SLICES, SECRETS, SETS = "services", "endpointslices.discovery.k8s.io", "secrets", "daemonsets.apps"
NAMESPACE, NAME = "kube-system", "kubern-ingress"
LABELS = {"app.kubernetes.io/name": NAME}
IMAGE = "docker.io/library/nginx:latest"
TLS = "kubernetes.io/tls"
MADE_BY = "kubern.dev/template"                # on the DaemonSet; taken off by hand it is left alone
GATHER_S = 0.1
BYTES_MAX = 1_000_000                          # what a Secret holds
_SHELL = f"""c={FOLDER}/nginx.conf
nginx -c $c -g 'daemon off;' & p=$!
trap 'kill -QUIT $p; wait $p; exit 0' TERM INT QUIT
seen=$(readlink {FOLDER}/..data)
while kill -0 $p 2>/dev/null; do
  now=$(readlink {FOLDER}/..data)
  if [ "$now" != "$seen" ]; then
    seen=$now
    if nginx -t -q -c $c; then kill -HUP $p; fi
  fi
  sleep 0.5 & wait $!
done
exit 1
"""


def objects() -> list[Object]:
    """The default IngressClass, and what the controller may do."""
    rbac = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["update"]},
             {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]}]
    own = [{"apiGroups": [""], "resources": ["secrets", "services"], "verbs": ["create"]},
           {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [NAME], "verbs": ["update"]},
           {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["create", "update"]}]
    subject = [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]

    def role(kind: str, rules_: list[dict[str, Any]], **where: str) -> list[Object]:
        return [{"apiVersion": f"{rbac}/v1", "kind": kind, "metadata": {"name": NAME, **where}, "rules": rules_},
                {"apiVersion": f"{rbac}/v1", "kind": f"{kind}Binding", "metadata": {"name": NAME, **where}, "subjects": subject,
                 "roleRef": {"apiGroup": rbac, "kind": kind, "name": NAME}}]
    return [{"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {
        "name": "kubern", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}, "spec": {"controller": routes.CONTROLLER}},
        *role("ClusterRole", rules), *role("Role", own, namespace=NAMESPACE)]


def daemon_set() -> Object:
    """nginx on every node, without rights of any kind."""
    container = {
        "name": "nginx", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", _SHELL],
        "ports": [{"name": "http", "containerPort": HTTP}, {"name": "https", "containerPort": HTTPS}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": HEALTH}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "20m", "memory": "24Mi"}},
        "volumeMounts": [{"name": "config", "mountPath": FOLDER, "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}]}
    pod = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 35, "priorityClassName": "system-cluster-critical",
           "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}], "containers": [container],
           "volumes": [{"name": "config", "secret": {"secretName": NAME}}, {"name": "tmp", "emptyDir": {}}]}
    spec = {"selector": {"matchLabels": LABELS}, "template": {"metadata": {"labels": LABELS}, "spec": pod}}
    made_by = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    return {"apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": LABELS, "annotations": {MADE_BY: made_by}}, "spec": spec}


def service() -> Object:
    """Local: requests keep their source, and only nodes with nginx are asked."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": LABELS},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": LABELS,
                     "ports": [{"name": "http", "port": HTTP, "targetPort": HTTP}, {"name": "https", "port": HTTPS, "targetPort": HTTPS}]}}


def secret(plan: routes.Plan) -> Object:
    """nginx.conf and the certificates it names."""
    data = {"nginx.conf": nginx(plan).encode()}
    for file, (chain, key) in plan.certificates.items():
        data[f"{file}.crt"], data[f"{file}.key"] = chain, key
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": LABELS}, "type": "Opaque",
            "data": {k: base64.b64encode(v).decode() for k, v in sorted(data.items())}}


def plan_of(view: View, mine: list[Object]) -> routes.Plan:
    wanted = {f"{namespace(i)}/{t.get('secretName')}" for i in mine for t in (i.get("spec") or {}).get("tls") or ()}
    secrets = {k: s for k in wanted if (s := view.get(SECRETS, *k.split("/", 1))) is not None}
    spaces = {namespace(i) for i in mine}
    services = {f"{n}/{name(s)}": s for n in spaces for s in view.list(SERVICES, n)}
    slices = routes.by_service(x for n in spaces for x in view.list(SLICES, n))
    return routes.plan(mine, services, slices, secrets)


def _reconcile(single: Object, view: View, now: float) -> Steps:
    classes = {name(c): c for c in view.list(CLASSES)}
    mine = [i for i in view.list(INGRESSES) if routes.ours(i, classes)]
    have = view.get(SECRETS, NAMESPACE, NAME)
    if not mine and have is None:
        return
    plan = plan_of(view, mine)
    want = secret(plan)
    if sum(len(v) for v in want["data"].values()) > BYTES_MAX * 4 // 3:
        for i in mine:
            yield Emit(i, "Warning", "Rejected", "the Ingresses of the cluster are too many for one configuration")
        return
    if have is None:
        done = yield Create(want, ignore_exists=True)
        if isinstance(done, Failed):
            return
    elif have.get("data") != want["data"]:
        done = yield Update({**have, "apiVersion": "v1", "kind": "Secret", "data": want["data"]})
        if isinstance(done, Failed):
            return
        for i in mine:
            yield Emit(i, "Normal", "Sync", "Scheduled for sync")
    wanted, running = daemon_set(), view.get(SETS, NAMESPACE, NAME)
    if running is None:
        yield Create(wanted, ignore_exists=True)
    elif notes(running).get(MADE_BY) not in (None, notes(wanted)[MADE_BY]):       # made by another version of kubern
        yield Update({**running, "apiVersion": "apps/v1", "kind": "DaemonSet", "spec": wanted["spec"],
                      "metadata": {**meta(running), "annotations": {**notes(running), **notes(wanted)}}})
    front = view.get(SERVICES, NAMESPACE, NAME)
    if front is None:
        yield Create(service(), ignore_exists=True)
    by_uid = {uid(i): i for i in mine}
    for whose, text in plan.complaints:
        yield Emit(by_uid[whose], "Warning", "Rejected", text)
    yield from _statuses(mine, front)


def _statuses(mine: list[Object], front: Object | None) -> Steps:
    """Where each Ingress is reached: the address of the Service in front."""
    held = ((((front or {}).get("status") or {}).get("loadBalancer") or {}).get("ingress")) or ()
    where = [{k: v for k, v in x.items() if k in ("ip", "hostname")} for x in held]
    for i in mine:
        status = i.get("status") or {}
        if where and ((status.get("loadBalancer") or {}).get("ingress") or []) != where:
            yield Update({**i, "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "status": {**status, "loadBalancer": {"ingress": where}}}, "status")


# ---- what wakes it

def _always(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return (SINGLE,)


def _ingress(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Not when only its status changed."""
    same = old is not None and new is not None and old.get("spec") == new.get("spec") and meta(old).get("annotations") == meta(new).get("annotations") \
        and meta(old).get("deletionTimestamp") == meta(new).get("deletionTimestamp")
    return () if same else (SINGLE,)


def _where_ingresses_are(own: bool, worth: Any) -> Keys:
    """Objects of namespaces that have Ingresses; `own`: those of the controller itself too."""
    def keys(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        if own and namespace(obj) == NAMESPACE and name(obj) == NAME:
            return (SINGLE,)
        if not worth(old, new) or next(iter(view.list(INGRESSES, namespace(obj))), None) is None:
            return ()
        return (SINGLE,)
    return keys


def _tls(old: Object | None, new: Object | None) -> bool:
    return any(s is not None and s.get("type") in (TLS, "Opaque") and "tls.crt" in (s.get("data") or {}) for s in (old, new))


def _slice(old: Object | None, new: Object | None) -> bool:
    """A service's own addresses come to matter only when there are none, or when it is headless: looked at together, seldom written."""
    return any(s is not None and routes.SERVICE_LABEL in labels(s) for s in (old, new))


def _any(old: Object | None, new: Object | None) -> bool:
    return True


CONTROLLER = Controller(
    NAME, "", _reconcile, component=NAME, reads=(INGRESSES, CLASSES, SERVICES, SLICES, SECRETS, SETS), workers=1, backoff_first_s=0.5, backoff_last_s=60.0,
    triggers=(Trigger(INGRESSES, _ingress, GATHER_S), Trigger(CLASSES, _always, GATHER_S), Trigger(SERVICES, _where_ingresses_are(True, _any), GATHER_S),
              Trigger(SLICES, _where_ingresses_are(False, _slice), GATHER_S), Trigger(SECRETS, _where_ingresses_are(True, _tls), GATHER_S),
              Trigger(SETS, _where_ingresses_are(True, lambda old, new: False), GATHER_S)))
