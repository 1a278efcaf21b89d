"""Admission plugins, without a server: a few objects in, the changed object or the refusal out."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import pytest

from kubern.api.admission import CREATE, DELETE, UPDATE, Attributes, mutate, validate
from kubern.api.admission.pod_security_checks import BASELINE, CHECKS, NEWEST, RESTRICTED, detail_of, standards, violations
from kubern.model.object import Object, clone
from kubern.model.request import User
from kubern.model.resources import RESOURCES
from kubern.model.status import StatusError, invalid

ADMIN = User("admin", ("system:masters", "system:authenticated"))
NODE = User("system:node:w1", ("system:nodes", "system:authenticated"))
ROWS = {f"{r.plural}.{r.group}" if r.group else r.plural: r for r in RESOURCES}


class Cluster:
    """Objects by (resource, namespace, name): reader and writer of admission."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.add("namespaces", "", "n", status={"phase": "Active"})
        self.add("serviceaccounts", "n", "default")

    def add(self, resource: str, ns: str, name: str, meta: dict[str, Any] | None = None, **more: Any) -> Object:
        obj = {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", **({"namespace": ns} if ns else {}), **(meta or {})}, **more}
        self.objects[(resource, ns, name)] = obj
        return obj

    def changed(self, resource: str) -> int:
        return sum(r == resource for r, _, _ in self.objects)

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        return self.objects.get((resource, namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> Iterable[Object]:
        return [o for (r, ns, _), o in self.objects.items() if r == resource and namespace in (None, "", ns)]

    async def update(self, obj: Object, subresource: str = "") -> Object:
        assert subresource == "status"
        m = obj["metadata"]
        self.objects[("resourcequotas", m["namespace"], m["name"])] = {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}
        return obj

    async def run(self, resource: str, obj: Object | None, old: Object | None = None, operation: str = "", user: User = ADMIN, sub: str = "",
                  ns: str = "n", dry_run: bool = False) -> tuple[Any, list[str]]:
        """(the object or the refusal's message, warnings)"""
        warnings: list[str] = []
        obj = clone(obj)
        operation = operation or (UPDATE if old is not None else CREATE)
        name = ((obj or old or {}).get("metadata") or {}).get("name", "")
        a = Attributes(operation, ROWS[resource], sub, ns, name, obj, old, user, self, dry_run, {}, warnings.append, None, self)
        try:
            await mutate(a)
            if a.errors:
                raise invalid(a.resource.group, a.resource.kind, name, a.errors)
            await validate(a)
        except StatusError as e:
            return e.message, warnings
        return a.obj, warnings


def pod(name: str = "p", container: dict[str, Any] | None = None, **spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i", **(container or {})}], **spec}}


async def test_pod_gets_account_token_tolerations_and_priority() -> None:
    got, _ = await Cluster().run("pods", pod())
    spec = got["spec"]
    assert spec["serviceAccountName"] == spec["serviceAccount"] == "default"
    volume = spec["volumes"][0]
    assert volume["name"].startswith("kube-api-access-")
    assert volume["projected"]["sources"][0] == {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}
    assert spec["containers"][0]["volumeMounts"] == [
        {"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": volume["name"], "readOnly": True}]
    assert [t["key"] for t in spec["tolerations"]] == ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
    assert (spec["priority"], spec["preemptionPolicy"]) == (0, "PreemptLowerPriority")


async def test_account_rules() -> None:
    c = Cluster()
    c.add("serviceaccounts", "n", "s", automountServiceAccountToken=False, imagePullSecrets=[{"name": "pull"}])
    got, _ = await c.run("pods", pod(serviceAccountName="s"))
    assert "volumes" not in got["spec"]
    assert got["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    message, _ = await c.run("pods", pod(serviceAccountName="none"))
    assert message == 'pods "p" is forbidden: error looking up service account n/none: serviceaccount "none" not found'


async def test_namespace_lifecycle() -> None:
    c = Cluster()
    message, _ = await c.run("configmaps", {"metadata": {"name": "a"}}, ns="gone")
    assert message == 'namespaces "gone" not found'
    c.add("namespaces", "", "t", status={"phase": "Terminating"})
    message, _ = await c.run("configmaps", {"metadata": {"name": "a"}}, ns="t")
    assert message == ('configmaps "a" is forbidden: unable to create new content in namespace t because it is being terminated')
    message, _ = await c.run("namespaces", None, {"metadata": {"name": "default"}}, DELETE, ns="default")
    assert message == 'namespaces "default" is forbidden: this namespace may not be deleted'


async def test_limit_ranges() -> None:
    c = Cluster()
    c.add("limitranges", "n", "l", spec={"limits": [{"type": "Container", "default": {"cpu": "500m"},
                                                    "defaultRequest": {"cpu": "100m", "memory": "64Mi"}}]})
    got, _ = await c.run("pods", pod())
    assert got["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m", "memory": "64Mi"}}
    assert got["metadata"]["annotations"] == {
        "kubernetes.io/limit-ranger": "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c"}
    c.add("limitranges", "n", "l", spec={"limits": [{"type": "Pod", "max": {"cpu": "1"}, "min": {"memory": "100Mi"}}]})
    resources = {"requests": {"cpu": "600m", "memory": "10Mi"}, "limits": {"cpu": "600m", "memory": "10Mi"}}
    two = pod()
    two["spec"]["containers"] = [{"name": n, "image": "i", "resources": resources} for n in ("a", "b")]
    message, _ = await c.run("pods", two)
    assert message == ('pods "p" is forbidden: [minimum memory usage per Pod is 100Mi, but request is 20Mi, maximum cpu usage per Pod is 1, '
                       'but limit is 1200m]')


async def test_quota_is_charged_once_and_refuses_over_it() -> None:
    c = Cluster()
    hard = {"requests.cpu": "1", "limits.memory": "1Gi", "pods": "3"}
    c.add("resourcequotas", "n", "q", spec={"hard": hard}, status={"hard": hard, "used": dict.fromkeys(hard, "0")})
    message, _ = await c.run("pods", pod())
    assert message == 'pods "p" is forbidden: failed quota: q: must specify limits.memory for: c; requests.cpu for: c'
    big = pod(container={"resources": {"requests": {"cpu": "800m"}, "limits": {"memory": "512Mi"}}})
    await c.run("pods", big, dry_run=True)
    got, _ = await c.run("pods", big)
    assert isinstance(got, dict)
    quota = c.get("resourcequotas", "n", "q")
    assert quota and quota["status"]["used"] == {"limits.memory": "512Mi", "pods": "1", "requests.cpu": "800m"}
    message, _ = await c.run("pods", pod("q", {"resources": {"requests": {"cpu": "300m"}, "limits": {"memory": "768Mi"}}}))
    assert message == ('pods "q" is forbidden: exceeded quota: q, requested: limits.memory=768Mi,requests.cpu=300m, '
                       'used: limits.memory=512Mi,requests.cpu=800m, limited: limits.memory=1Gi,requests.cpu=1')


async def test_quota_scopes_counts_and_services() -> None:
    c = Cluster()
    c.add("resourcequotas", "n", "q", spec={"hard": {"pods": "0"}, "scopes": ["BestEffort"]}, status={"hard": {"pods": "0"}, "used": {"pods": "0"}})
    message, _ = await c.run("pods", pod())
    assert message == 'pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0'
    got, _ = await c.run("pods", pod(container={"resources": {"requests": {"cpu": "1m"}}}))
    assert isinstance(got, dict)
    hard = {"services.nodeports": "1", "services": "2", "count/widgets.example.com": "0"}
    c.add("resourcequotas", "n", "q", spec={"hard": hard}, status={"hard": hard, "used": dict.fromkeys(hard, "0")})
    message, _ = await c.run("services", {"metadata": {"name": "a"}, "spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}})
    assert message == 'services "a" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1'


async def test_priority() -> None:
    c = Cluster()
    c.add("priorityclasses.scheduling.k8s.io", "", "high", value=42, preemptionPolicy="Never")
    got, _ = await c.run("pods", pod(priorityClassName="high"))
    assert (got["spec"]["priority"], got["spec"]["preemptionPolicy"]) == (42, "Never")
    message, _ = await c.run("pods", pod(priority=5))
    assert message == ('pods "p" is forbidden: the integer value of priority (5) must not be provided in pod spec; priority admission '
                       'controller computed 0 from the given PriorityClass name')
    message, _ = await c.run("pods", pod(priorityClassName="none"))
    assert message == 'pods "p" is forbidden: no PriorityClass with name none was found'


async def test_storage() -> None:
    c = Cluster()
    claim = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    c.add("storageclasses.storage.k8s.io", "", "std", {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}})
    got, _ = await c.run("persistentvolumeclaims", claim)
    assert got["spec"]["storageClassName"] == "std"
    assert got["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    bigger = clone(got)
    bigger["spec"]["resources"]["requests"]["storage"] = "2Gi"
    message, _ = await c.run("persistentvolumeclaims", bigger, got)
    assert message == 'persistentvolumeclaims "p" is forbidden: Only bound persistent volume claims can be expanded'


async def test_binding_takes_the_nodes_zone() -> None:
    c = Cluster()
    c.add("nodes", "", "w1", {"labels": {"topology.kubernetes.io/zone": "z", "other": "x"}})
    got, _ = await c.run("pods", {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "w1"}}, sub="binding")
    assert got["metadata"]["labels"] == {"topology.kubernetes.io/zone": "z"}


@pytest.mark.parametrize(("labels", "message"), [
    ({"node-role.kubernetes.io/control-plane": ""}, 'nodes "w1" is forbidden: node "w1" is not allowed to set the following labels: '
                                                    'node-role.kubernetes.io/control-plane'),
    ({"kubernetes.io/hostname": "w1", "example.com/a": "b"}, ""),
])
async def test_node_registers_itself_with_its_own_labels(labels: dict[str, str], message: str) -> None:
    got, _ = await Cluster().run("nodes", {"metadata": {"name": "w1", "labels": labels}}, user=NODE, ns="")
    assert (got == message) if message else got["spec"]["taints"] == [{"effect": "NoSchedule", "key": "node.kubernetes.io/not-ready"}]


async def test_node_writes_only_its_own() -> None:
    c = Cluster()
    message, _ = await c.run("nodes", {"metadata": {"name": "w2"}}, user=NODE, ns="")
    assert message == 'nodes "w2" is forbidden: node "w1" is not allowed to modify node "w2"'
    message, _ = await c.run("pods", pod(), user=NODE)
    assert 'node "w1" can only create mirror pods' in message
    c.add("namespaces", "", "kube-node-lease")
    message, _ = await c.run("leases.coordination.k8s.io", {"metadata": {"name": "w2"}}, user=NODE, ns="kube-node-lease")
    assert "can only access node lease with the same name as the requesting node" in message
    there = c.add("pods", "n", "p", spec={"nodeName": "w2"})
    message, _ = await c.run("pods", None, there, DELETE, user=NODE)
    assert message == 'pods "p" is forbidden: node "w1" can only delete pods with spec.nodeName set to itself'
    request = {"metadata": {"name": "default"}, "spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-p"}}}
    message, _ = await c.run("serviceaccounts", request, user=NODE, sub="token")
    assert "scheduled on a different node" in message


async def test_csr_for_masters_is_refused() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"), x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    pem = x509.CertificateSigningRequestBuilder().subject_name(name).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    request = base64.b64encode(pem.public_bytes(serialization.Encoding.PEM)).decode()
    csr = {"metadata": {"name": "c"}, "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "request": request}}
    message, _ = await Cluster().run("certificatesigningrequests.certificates.k8s.io", csr, ns="")
    assert message == ('certificatesigningrequests.certificates.k8s.io "c" is forbidden: use of kubernetes.io/kube-apiserver-client signer '
                       'with system:masters group is not allowed')


async def test_pod_security_enforces_warns_and_looks_at_templates() -> None:
    c = Cluster()
    prefix = "pod-security.kubernetes.io/"
    c.add("namespaces", "", "n", {"labels": {f"{prefix}enforce": "baseline", f"{prefix}warn": "restricted"}}, status={"phase": "Active"})
    message, _ = await c.run("pods", pod(hostNetwork=True))
    assert message == 'pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)'
    got, warnings = await c.run("pods", pod())
    assert isinstance(got, dict)
    assert warnings[0].startswith('would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "c" must set')
    deployment = {"metadata": {"name": "d"}, "spec": {"template": {"spec": pod()["spec"]}}}
    got, warnings = await c.run("deployments.apps", deployment)
    assert isinstance(got, dict)
    assert warnings
    message, _ = await c.run("namespaces", {"metadata": {"name": "m", "labels": {f"{prefix}enforce": "x"}}}, ns="m")
    assert message == ('Namespace "m" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "x": must be one of '
                       'privileged, baseline, restricted')
    c.add("pods", "n", "a", spec=pod()["spec"])
    c.add("pods", "n", "b", spec=pod()["spec"])
    old = c.get("namespaces", "", "n")
    new = {"metadata": {"name": "n", "labels": {f"{prefix}enforce": "restricted"}}}
    _, warnings = await c.run("namespaces", new, old)
    assert warnings == ['existing pods in namespace "n" violate the new PodSecurity enforce level "restricted:latest"',
                        "a (and 1 other pod): allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile"]


def test_pod_security_versions_and_replacements() -> None:
    assert len({c.id for c in CHECKS}) == len(CHECKS) == 19
    assert len(standards(BASELINE, NEWEST)) == 12
    assert len(standards(RESTRICTED, NEWEST)) == 19 - 4
    sysctl = {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]}}
    assert detail_of(violations(BASELINE, 31, {}, sysctl)) == "forbidden sysctls (net.ipv4.tcp_rmem)"
    assert violations(BASELINE, 32, {}, sysctl) == []
    windows = {"os": {"name": "windows"}, "containers": [{"name": "c", "securityContext": {"runAsNonRoot": True}}]}
    assert violations(RESTRICTED, NEWEST, {}, windows) == []
    assert [r for r, _ in violations(RESTRICTED, 24, {}, windows)] == ["allowPrivilegeEscalation != false", "unrestricted capabilities",
                                                                       "seccompProfile"]


# --- devices ---

async def test_devices_for_administrators_are_for_labelled_namespaces():
    cluster = Cluster()
    cluster.add("namespaces", "", "admins", {"labels": {"resource.kubernetes.io/admin-access": "true"}}, status={"phase": "Active"})
    claims = "resourceclaims.resource.k8s.io"
    claim = {"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "d", "adminAccess": True}}]}}}
    refused, _ = await cluster.run(claims, claim)
    assert "spec.devices.requests[0].adminAccess: Forbidden: admin access to devices requires" in refused
    assert not isinstance((await cluster.run(claims, claim, ns="admins"))[0], str)
    granted = {**claim, "status": {"allocation": {"devices": {"results": [{"request": "r", "adminAccess": True}]}}}}
    assert "status.allocation.devices.results[0].adminAccess" in (await cluster.run(claims, granted, claim, sub="status"))[0]
    assert not isinstance((await cluster.run(claims, granted, granted, sub="status"))[0], str)


@pytest.mark.parametrize(("declared", "change", "missing"), [
    ([], {}, ""),
    ([], {"resources": {"requests": {"cpu": "1"}}}, "InPlacePodLevelResourcesVerticalScaling"),
    (["InPlacePodLevelResourcesVerticalScaling"], {"resources": {"requests": {"cpu": "1"}}}, ""),
    ([], {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}}]}, "InPlacePodVerticalScalingInitContainers"),
])
@pytest.mark.parametrize("sub", ["", "resize"])
async def test_a_bound_pod_is_not_changed_into_what_its_node_cannot_run(declared: list[str], change: Object, missing: str, sub: str) -> None:
    c = Cluster()
    c.add("nodes", "", "w1", status={"declaredFeatures": declared, "allocatable": {"cpu": "8", "memory": "8Gi"}})
    old = pod(nodeName="w1", initContainers=[{"name": "i"}])
    got, _ = await c.run("pods", {**old, "spec": {**old["spec"], **change}}, old, sub=sub)
    if missing:
        assert got == f'pods "p" is forbidden: pod update requires features {missing} which are not available on node "w1"'
    else:
        assert isinstance(got, dict)


async def test_a_sidecar_is_resized_without_a_declared_feature() -> None:
    c = Cluster()
    c.add("nodes", "", "w1", status={"allocatable": {"cpu": "8", "memory": "8Gi"}})
    old = pod(nodeName="w1", initContainers=[{"name": "i", "restartPolicy": "Always"}])
    new = pod(nodeName="w1", initContainers=[{"name": "i", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}])
    got, _ = await c.run("pods", new, old, sub="resize")
    assert isinstance(got, dict)
