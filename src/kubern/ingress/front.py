"""Front: the nginx that serves a Plan: a Secret with its configuration, a DaemonSet that reads it, a LoadBalancer Service before it.

One for all Ingresses, one for every Gateway, all in kube-system: certificates from other namespaces shall be seen by nobody else. nginx takes
a new configuration when it passes its own test; if not, it goes on with the old one. The pods have no rights of any kind.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubern.ingress.plan import Plan
from kubern.ingress.render import FOLDER, HEALTH, nginx
from kubern.model.intent import Create, Failed, Update
from kubern.model.object import Object, meta, notes
from kubern.model.view import View

SERVICES, SECRETS, SETS = "services", "secrets", "daemonsets.apps"
NAMESPACE = "kube-system"
IMAGE = "docker.io/library/nginx:latest"
MADE_BY = "kubern.dev/template"                # a hash of what was made; taken off by hand the object is left alone
APP = "app.kubernetes.io/name"
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


@dataclass(frozen=True, slots=True)
class Front:
    """`ports`: name -> number, the same in the pod and outside; labels and notes go onto all of it."""

    name: str
    ports: Mapping[str, int]
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()            # asked for


def secret(f: Front, plan: Plan, view: View) -> Object:
    """nginx.conf and the certificates it names."""
    made = view.get(SERVICES, NAMESPACE, f.name)
    dual = any(":" in ip for ip in ((made or {}).get("spec") or {}).get("clusterIPs") or ())
    data = {"nginx.conf": nginx(plan, dual).encode()}
    for file, (chain, key) in plan.certificates.items():
        data[f"{file}.crt"], data[f"{file}.key"] = chain, key
    return {"apiVersion": "v1", "kind": "Secret", "metadata": _meta(f), "type": "Opaque",
            "data": {k: base64.b64encode(v).decode() for k, v in sorted(data.items())}}


def fits(made: Object) -> bool:
    return sum(len(v) for v in made["data"].values()) <= BYTES_MAX * 4 // 3


def daemon_set(f: Front) -> Object:
    """nginx on every node."""
    container = {
        "name": "nginx", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", _SHELL],
        "ports": [{"name": n, "containerPort": p} for n, p in f.ports.items()],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": HEALTH}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "20m", "memory": "24Mi"}},
        "volumeMounts": [{"name": "config", "mountPath": FOLDER, "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}]}
    pod = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 35, "priorityClassName": "system-cluster-critical",
           "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}], "containers": [container],
           "volumes": [{"name": "config", "secret": {"secretName": f.name}}, {"name": "tmp", "emptyDir": {}}]}
    head = {"labels": {**f.labels, APP: f.name}, **({"annotations": dict(f.notes)} if f.notes else {})}
    return _stamped(f, {"apiVersion": "apps/v1", "kind": "DaemonSet",
                        "spec": {"selector": {"matchLabels": {APP: f.name}}, "template": {"metadata": head, "spec": pod}}})


def service(f: Front) -> Object:
    """Local: requests keep their source, and only nodes with nginx are asked."""
    spec: dict[str, Any] = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": {APP: f.name}, "ipFamilyPolicy": "PreferDualStack",
                            "ports": [{"name": n, "port": p, "targetPort": p, "protocol": "TCP"} for n, p in f.ports.items()]}
    if f.addresses:
        spec["loadBalancerIP"] = f.addresses[0]
    return _stamped(f, {"apiVersion": "v1", "kind": "Service", "spec": spec})


def _meta(f: Front) -> dict[str, Any]:
    return {"name": f.name, "namespace": NAMESPACE, "labels": {**f.labels, APP: f.name}, **({"annotations": dict(f.notes)} if f.notes else {})}


def _stamped(f: Front, obj: Object) -> Object:
    m = _meta(f)
    stamp = hashlib.sha256(json.dumps([m, obj["spec"]], sort_keys=True).encode()).hexdigest()[:16]
    return {**obj, "metadata": {**m, "annotations": {**f.notes, MADE_BY: stamp}}}


def keep(view: View, f: Front, want: Object) -> Generator[Any, Any, bool]:
    """Makes it so. The answer: whether the configuration is another than before."""
    have = view.get(SECRETS, NAMESPACE, f.name)
    changed = False
    if have is None or have.get("data") != want["data"]:
        done = yield Create(want, ignore_exists=True) if have is None else Update({**have, "apiVersion": "v1", "kind": "Secret", "data": want["data"]})
        if isinstance(done, Failed):
            return False
        changed = have is not None
    for resource, wanted in ((SETS, daemon_set(f)), (SERVICES, service(f))):
        running = view.get(resource, NAMESPACE, f.name)
        if running is None:
            yield Create(wanted, ignore_exists=True)
        elif notes(running).get(MADE_BY) not in (None, notes(wanted)[MADE_BY]):
            spec = wanted["spec"] if resource == SETS else {**running["spec"], **wanted["spec"]}
            m = {**meta(running), "labels": meta(wanted)["labels"], "annotations": {**notes(running), **notes(wanted)}}
            yield Update({**running, "apiVersion": wanted["apiVersion"], "kind": wanted["kind"], "spec": spec, "metadata": m})
    return changed


def reached_at(view: View, f: Front) -> list[dict[str, str]]:
    """Where it is reached: the load balancer's addresses, as an ingress status lists them."""
    found = view.get(SERVICES, NAMESPACE, f.name)
    held = ((((found or {}).get("status") or {}).get("loadBalancer") or {}).get("ingress")) or ()
    return [{k: v for k, v in x.items() if k in ("ip", "hostname")} for x in held]
