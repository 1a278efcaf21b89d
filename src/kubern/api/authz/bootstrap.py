"""The roles and bindings every cluster starts with, as a table, and how they are kept.

Rules read `verbs | groups | resources | names`, or `verbs | url | paths`; `core` is the empty group, a backslash continues a line.
A heading is a role's name; `→ x` labels it as part of the aggregated role x, `← x` makes it the aggregate. `:name` is
system:controller:name and is bound to the service account kube-system/name.
At every start what is missing is added; what somebody added stays; an object with the annotation
rbac.authorization.kubernetes.io/autoupdate: "false" is left alone.
Upstream: plugin/pkg/auth/authorizer/rbac/bootstrappolicy, component-helpers/auth/rbac/reconciliation; RBAC, "Default roles".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kubern.api.authz.rbac import GROUP, Rule, uncovered
from kubern.model.intent import Create, Delete, Intent, Update
from kubern.model.object import Object

API_VERSION = f"{GROUP}/v1"
AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
BOOTSTRAPPING = "kubernetes.io/bootstrapping"
AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"

CLUSTER_ROLES = r"""
admin ← admin
cluster-admin
    * | * | *
    * | url | *
edit → admin ← edit
system:aggregate-to-admin → admin
    create | authorization.k8s.io | localsubjectaccessreviews
    create delete deletecollection get list patch update watch | rbac.authorization.k8s.io | rolebindings roles
system:aggregate-to-edit → edit
    get list watch | core | pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy
    impersonate | core | serviceaccounts
    create delete deletecollection patch update | core | pods pods/attach pods/exec pods/portforward pods/proxy
    create | core | pods/eviction
    create delete deletecollection patch update | core | configmaps persistentvolumeclaims replicationcontrollers \
        replicationcontrollers/scale secrets serviceaccounts services services/proxy
    create | core | serviceaccounts/token
    create delete deletecollection patch update | core events.k8s.io | events
    create delete deletecollection patch update | apps | daemonsets deployments deployments/rollback deployments/scale replicasets \
        replicasets/scale statefulsets statefulsets/scale
    create delete deletecollection patch update | autoscaling | horizontalpodautoscalers
    create delete deletecollection patch update | batch | cronjobs jobs
    create delete deletecollection patch update | extensions | daemonsets deployments deployments/rollback deployments/scale \
        ingresses networkpolicies replicasets replicasets/scale replicationcontrollers/scale
    create delete deletecollection patch update | policy | poddisruptionbudgets
    create delete deletecollection patch update | networking.k8s.io | ingresses networkpolicies
    create delete deletecollection get list patch update watch | coordination.k8s.io | leases
    create delete deletecollection patch update | resource.k8s.io | resourceclaims resourceclaimtemplates
system:aggregate-to-view → view
    get list watch | core | configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
        replicationcontrollers/scale serviceaccounts services services/status
    get list watch | core | bindings limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas \
        resourcequotas/status
    get list watch | core | namespaces
    get list watch | core events.k8s.io | events
    get list watch | discovery.k8s.io | endpointslices
    get list watch | apps | controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
        replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status
    get list watch | autoscaling | horizontalpodautoscalers horizontalpodautoscalers/status
    get list watch | batch | cronjobs cronjobs/status jobs jobs/status
    get list watch | extensions | daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses \
        ingresses/status networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale
    get list watch | policy | poddisruptionbudgets poddisruptionbudgets/status
    get list watch | networking.k8s.io | ingresses ingresses/status networkpolicies
    get list watch | resource.k8s.io | resourceclaims resourceclaims/status resourceclaimtemplates
system:auth-delegator
    create | authentication.k8s.io | tokenreviews
    create | authorization.k8s.io | subjectaccessreviews
system:basic-user
    create | authorization.k8s.io | selfsubjectaccessreviews selfsubjectrulesreviews
    create | authentication.k8s.io | selfsubjectreviews
system:certificates.k8s.io:certificatesigningrequests:nodeclient
    create | certificates.k8s.io | certificatesigningrequests/nodeclient
system:certificates.k8s.io:certificatesigningrequests:selfnodeclient
    create | certificates.k8s.io | certificatesigningrequests/selfnodeclient
system:certificates.k8s.io:kube-apiserver-client-approver
    approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client
system:certificates.k8s.io:kube-apiserver-client-kubelet-approver
    approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client-kubelet
system:certificates.k8s.io:kubelet-serving-approver
    approve | certificates.k8s.io | signers | kubernetes.io/kubelet-serving
system:certificates.k8s.io:legacy-unknown-approver
    approve | certificates.k8s.io | signers | kubernetes.io/legacy-unknown
system:discovery
    get | url | /api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/
system:heapster
    get list watch | core | events namespaces nodes pods
    get list watch | extensions | deployments
system:kube-aggregator
    get list watch | core | endpoints services
system:kube-controller-manager
    create patch update | core events.k8s.io | events
    create | coordination.k8s.io | leases
    get update | coordination.k8s.io | leases | kube-controller-manager
    create | core | secrets serviceaccounts
    delete | core | secrets
    get | core | configmaps namespaces secrets serviceaccounts
    update | core | secrets serviceaccounts
    create | authentication.k8s.io | tokenreviews
    create | authorization.k8s.io | subjectaccessreviews
    list watch | * | *
    create | core | serviceaccounts/token
system:kube-dns
    list watch | core | endpoints services
system:kube-scheduler
    create patch update | core events.k8s.io | events
    create | coordination.k8s.io | leases
    get list update watch | coordination.k8s.io | leases | kube-scheduler
    create delete deletecollection get list patch update watch | coordination.k8s.io | leasecandidates
    get list watch | core | nodes
    delete get list watch | core | pods
    create | core | bindings pods/binding
    patch update | core | pods/status
    get list watch | core | replicationcontrollers services
    get list watch | apps extensions | replicasets
    get list watch | apps | statefulsets
    get list watch | policy | poddisruptionbudgets
    get list watch | core | persistentvolumeclaims persistentvolumes
    create | authentication.k8s.io | tokenreviews
    create | authorization.k8s.io | subjectaccessreviews
    get list watch | storage.k8s.io | csinodes
    get list watch | storage.k8s.io | volumeattachments
    get list watch | core | namespaces
    get list watch | storage.k8s.io | csidrivers
    get list watch | storage.k8s.io | csistoragecapacities
    get list watch | resource.k8s.io | deviceclasses
    get list patch update watch | resource.k8s.io | resourceclaims
    get list patch update watch | resource.k8s.io | resourceclaims/status
    update | core | pods/finalizers
    get list watch | resource.k8s.io | resourceslices
    create delete | resource.k8s.io | resourceclaims
    patch update | resource.k8s.io | resourceclaims/binding
system:kubelet-api-admin
    get list watch | core | nodes
    proxy | core | nodes
    * | core | nodes/log nodes/metrics nodes/proxy nodes/stats
    * | core | nodes/configz nodes/healthz nodes/pods
system:monitoring
    get | url | /flagz /healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/* /statusz
    get | core | nodes/metrics
system:node
    create | authentication.k8s.io | tokenreviews
    create | authorization.k8s.io | localsubjectaccessreviews subjectaccessreviews
    get list watch | core | services
    create get list watch | core | nodes
    patch update | core | nodes/status
    patch update | core | nodes
    create patch update | core events.k8s.io | events
    get list watch | core | pods
    create delete | core | pods
    patch update | core | pods/status
    create | core | pods/eviction
    get list watch | core | configmaps secrets
    get | core | persistentvolumeclaims persistentvolumes
    get | core | endpoints
    create get list watch | certificates.k8s.io | certificatesigningrequests
    create delete get patch update | coordination.k8s.io | leases
    get | storage.k8s.io | volumeattachments
    create | core | serviceaccounts/token
    get patch update | core | persistentvolumeclaims/status
    get list watch | storage.k8s.io | csidrivers
    create delete get patch update | storage.k8s.io | csinodes
    get list watch | node.k8s.io | runtimeclasses
    get | resource.k8s.io | resourceclaims
    deletecollection | resource.k8s.io | resourceslices
    get | core | serviceaccounts
system:node-bootstrapper
    create get list watch | certificates.k8s.io | certificatesigningrequests
system:node-problem-detector
    get | core | nodes
    patch | core | nodes/status
    create patch update | core events.k8s.io | events
system:node-proxier
    list watch | core | endpoints services
    get list watch | core | nodes
    create patch update | core events.k8s.io | events
    list watch | networking.k8s.io | servicecidrs
    list watch | discovery.k8s.io | endpointslices
system:persistent-volume-provisioner
    create delete get list watch | core | persistentvolumes
    get list update watch | core | persistentvolumeclaims
    get list watch | storage.k8s.io | storageclasses
    watch | core | events
    create patch update | core events.k8s.io | events
system:public-info-viewer
    get | url | /healthz /livez /readyz /version /version/
system:service-account-issuer-discovery
    get | url | /.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/
system:volume-scheduler
    get list patch update watch | core | persistentvolumes
    get list watch | storage.k8s.io | storageclasses
    get list patch update watch | core | persistentvolumeclaims
view → edit ← view
"""

CONTROLLER_ROLES = r"""
:attachdetach-controller
    list watch | core | persistentvolumeclaims persistentvolumes
    get list watch | core | nodes
    patch update | core | nodes/status
    list watch | core | pods
    create patch update | core events.k8s.io | events
    create delete get list watch | storage.k8s.io | volumeattachments
    get list watch | storage.k8s.io | csidrivers
    get list watch | storage.k8s.io | csinodes
:certificate-controller
    delete get list watch | certificates.k8s.io | certificatesigningrequests
    update | certificates.k8s.io | certificatesigningrequests/approval certificatesigningrequests/status
    approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client-kubelet
    sign | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client kubernetes.io/kube-apiserver-client-kubelet \
        kubernetes.io/kubelet-serving kubernetes.io/legacy-unknown
    create | authorization.k8s.io | subjectaccessreviews
    create patch update | core events.k8s.io | events
:clusterrole-aggregation-controller
    escalate get list patch update watch | rbac.authorization.k8s.io | clusterroles
:cronjob-controller
    get list update watch | batch | cronjobs
    create delete get list patch update watch | batch | jobs
    update | batch | cronjobs/status
    update | batch | cronjobs/finalizers
    delete list watch | core | pods
    create patch update | core events.k8s.io | events
:daemon-set-controller
    get list watch | apps extensions | daemonsets
    update | apps extensions | daemonsets/status
    update | apps extensions | daemonsets/finalizers
    list watch | core | nodes
    create delete list patch watch | core | pods
    create | core | pods/binding
    create delete get list patch update watch | apps | controllerrevisions
    create patch update | core events.k8s.io | events
:deployment-controller
    get list update watch | apps extensions | deployments
    update | apps extensions | deployments/status
    update | apps extensions | deployments/finalizers
    create delete get list patch update watch | apps extensions | replicasets
    get list update watch | core | pods
    create patch update | core events.k8s.io | events
:device-taint-eviction-controller
    delete get list watch | core | pods
    patch update | core | pods/status
    get list watch | resource.k8s.io | resourceclaims
    get list watch | resource.k8s.io | resourceslices
    get list watch | resource.k8s.io | deviceclasses
    create patch update | core events.k8s.io | events
:disruption-controller
    get list watch | apps extensions | deployments
    get list watch | apps extensions | replicasets
    get list watch | core | replicationcontrollers
    get list watch | policy | poddisruptionbudgets
    get list watch | apps | statefulsets
    update | policy | poddisruptionbudgets/status
    patch update | core | pods/status
    get | * | */scale
    create patch update | core events.k8s.io | events
:endpoint-controller
    get list watch | core | pods services
    create delete get list update watch | core | endpoints
    create | core | endpoints/restricted
    create patch update | core events.k8s.io | events
:endpointslice-controller
    get list watch | core | nodes pods services
    update | core | services/finalizers
    create delete get list update watch | discovery.k8s.io | endpointslices
    create | discovery.k8s.io | endpointslices/restricted
    create patch update | core events.k8s.io | events
:endpointslicemirroring-controller
    get list watch | core | endpoints services
    update | core | services/finalizers
    update | core | endpoints/finalizers
    create delete get list update watch | discovery.k8s.io | endpointslices
    create | discovery.k8s.io | endpointslices/restricted
    create patch update | core events.k8s.io | events
:ephemeral-volume-controller
    get list watch | core | pods
    update | core | pods/finalizers
    create get list watch | core | persistentvolumeclaims
    create patch update | core events.k8s.io | events
:expand-controller
    get list patch update watch | core | persistentvolumes
    patch update | core | persistentvolumeclaims/status
    get list watch | core | persistentvolumeclaims
    create patch update | core events.k8s.io | events
:generic-garbage-collector
    delete get list patch update watch | * | *
    create patch update | core events.k8s.io | events
:horizontal-pod-autoscaler
    get list watch | autoscaling | horizontalpodautoscalers
    update | autoscaling | horizontalpodautoscalers/status
    get update | * | */scale
    list watch | core | pods
    list watch | metrics.k8s.io | pods
    get list watch | custom.metrics.k8s.io | *
    get list watch | external.metrics.k8s.io | *
    create patch update | core events.k8s.io | events
:job-controller
    get list patch update watch | batch | jobs
    update | batch | jobs/status
    update | batch | jobs/finalizers
    create delete list patch watch | core | pods
    create patch update | core events.k8s.io | events
:legacy-service-account-token-cleaner
    get | core | configmaps | kube-apiserver-legacy-service-account-token-tracking
    delete patch | core | secrets
:namespace-controller
    delete get list watch | core | namespaces
    update | core | namespaces/finalize namespaces/status
    delete deletecollection get list watch | * | *
:node-controller
    delete get list patch update watch | core | nodes
    patch update | core | nodes/status
    patch update | core | pods/status
    delete get list watch | core | pods
    create patch update | core events.k8s.io | events
:persistent-volume-binder
    create delete get list update watch | core | persistentvolumes
    update | core | persistentvolumes/status
    get list update watch | core | persistentvolumeclaims
    update | core | persistentvolumeclaims/status
    create delete get list watch | core | pods
    get list watch | storage.k8s.io | storageclasses
    list watch | core | nodes
    create patch update | core events.k8s.io | events
    watch | core | events
:pod-garbage-collector
    delete list watch | core | pods
    get list watch | core | nodes
    patch | core | pods/status
:pv-protection-controller
    get list update watch | core | persistentvolumes
    create patch update | core events.k8s.io | events
:pvc-protection-controller
    get list update watch | core | persistentvolumeclaims
    update | core | persistentvolumeclaims/status
    get list watch | core | pods
    create patch update | core events.k8s.io | events
:replicaset-controller
    get list update watch | apps extensions | replicasets
    update | apps extensions | replicasets/status
    update | apps extensions | replicasets/finalizers
    create delete list patch watch | core | pods
    create patch update | core events.k8s.io | events
:replication-controller
    get list update watch | core | replicationcontrollers
    update | core | replicationcontrollers/status
    update | core | replicationcontrollers/finalizers
    create delete list patch watch | core | pods
    create patch update | core events.k8s.io | events
:resource-claim-controller
    get list watch | core | pods
    update | core | pods/finalizers
    create delete get list watch | resource.k8s.io | resourceclaims
    patch update | resource.k8s.io | resourceclaims resourceclaims/status
    patch update | core | pods/status
    create patch update | core events.k8s.io | events
    patch update | resource.k8s.io | resourceclaims/binding
:resourcequota-controller
    list watch | * | *
    update | core | resourcequotas/status
    create patch update | core events.k8s.io | events
:root-ca-cert-publisher
    create update | core | configmaps
    create patch update | core events.k8s.io | events
:route-controller
    list watch | core | nodes
    patch | core | nodes/status
    create patch update | core events.k8s.io | events
:selinux-warning-controller
    create patch update | core events.k8s.io | events
    get list watch | core | persistentvolumes
    get list watch | core | persistentvolumeclaims
    get list watch | core | pods
    get list watch | storage.k8s.io | csidrivers
:service-account-controller
    create | core | serviceaccounts
    create patch update | core events.k8s.io | events
:service-cidrs-controller
    get list patch update watch | networking.k8s.io | servicecidrs
    patch update | networking.k8s.io | servicecidrs/finalizers
    patch update | networking.k8s.io | servicecidrs/status
    get list watch | networking.k8s.io | ipaddresses
    create patch update | core events.k8s.io | events
:service-controller
    get list watch | core | services
    patch update | core | services/status
    list watch | core | nodes
    create patch update | core events.k8s.io | events
:statefulset-controller
    list watch | core | pods
    get list watch | apps | statefulsets
    update | apps | statefulsets/status
    update | apps | statefulsets/finalizers
    create delete get patch update | core | pods
    create delete get list patch update watch | apps | controllerrevisions
    create get list watch | core | persistentvolumeclaims
    delete update | core | persistentvolumeclaims
    update | core | pods/finalizers
    create patch update | core events.k8s.io | events
:ttl-after-finished-controller
    delete get list watch | batch | jobs
    create patch update | core events.k8s.io | events
:ttl-controller
    list patch update watch | core | nodes
    create patch update | core events.k8s.io | events
:validatingadmissionpolicy-status-controller
    get list watch | admissionregistration.k8s.io | validatingadmissionpolicies
    get patch update | admissionregistration.k8s.io | validatingadmissionpolicies/status
    create patch update | core events.k8s.io | events
:volumeattributesclass-protection-controller
    get list watch | core | persistentvolumeclaims
    get list watch | core | persistentvolumes
    get list update watch | storage.k8s.io | volumeattributesclasses
    create patch update | core events.k8s.io | events
"""

ROLES = r"""
kube-public/system:controller:bootstrap-signer
    get list watch | core | configmaps
    update | core | configmaps | cluster-info
    create patch update | core events.k8s.io | events
kube-system/extension-apiserver-authentication-reader
    get list watch | core | configmaps | extension-apiserver-authentication
kube-system/system::leader-locking-kube-controller-manager
    create get list update watch | coordination.k8s.io | leases
    create get list update watch | coordination.k8s.io | leasecandidates
kube-system/system::leader-locking-kube-scheduler
    create get list update watch | coordination.k8s.io | leases
    create get list update watch | coordination.k8s.io | leasecandidates
kube-system/system:controller:bootstrap-signer
    get list watch | core | secrets
kube-system/system:controller:cloud-provider
    create get list watch | core | configmaps
kube-system/system:controller:token-cleaner
    delete get list watch | core | secrets
    create patch update | core events.k8s.io | events
"""

# name | role ("=" for one of the same name) | subjects
CLUSTER_ROLE_BINDINGS = r"""
cluster-admin | = | group/system:masters
system:basic-user | = | group/system:authenticated
system:discovery | = | group/system:authenticated
system:kube-controller-manager | = | user/system:kube-controller-manager
system:kube-dns | = | sa/kube-system/kube-dns
system:kube-scheduler | = | user/system:kube-scheduler
system:monitoring | = | group/system:monitoring
system:node | = |
system:node-proxier | = | user/system:kube-proxy
system:public-info-viewer | = | group/system:authenticated group/system:unauthenticated
system:service-account-issuer-discovery | = | group/system:serviceaccounts
system:volume-scheduler | = | user/system:kube-scheduler
"""

ROLE_BINDINGS = r"""
kube-public/system:controller:bootstrap-signer | = | sa/kube-system/bootstrap-signer
kube-system/system::extension-apiserver-authentication-reader | extension-apiserver-authentication-reader | \
    user/system:kube-controller-manager user/system:kube-scheduler
kube-system/system::leader-locking-kube-controller-manager | = | \
    user/system:kube-controller-manager sa/kube-system/kube-controller-manager sa/kube-system/leader-election-controller
kube-system/system::leader-locking-kube-scheduler | = | user/system:kube-scheduler sa/kube-system/kube-scheduler
kube-system/system:controller:bootstrap-signer | = | sa/kube-system/bootstrap-signer
kube-system/system:controller:cloud-provider | = | sa/kube-system/cloud-provider
kube-system/system:controller:token-cleaner | = | sa/kube-system/token-cleaner
"""


def _rule(line: str) -> Rule:
    columns = [c.split() for c in line.split("|")]
    if columns[1] == ["url"]:
        return {"verbs": columns[0], "nonResourceURLs": columns[2]}
    rule: Rule = {"verbs": columns[0], "apiGroups": ["" if g == "core" else g for g in columns[1]], "resources": columns[2]}
    if len(columns) > 3:
        rule["resourceNames"] = columns[3]
    return rule


def _metadata(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    namespace = ""
    if name.startswith("kube-") and "/" in name:
        namespace, _, name = name.partition("/")
    if name.startswith(":"):
        name = f"system:controller{name}"
    out: dict[str, Any] = {"name": name, "labels": {BOOTSTRAPPING: "rbac-defaults", **(labels or {})}, "annotations": {AUTOUPDATE: "true"}}
    if namespace:
        out["namespace"] = namespace
    return out


def _roles(table: str, kind: str) -> Iterator[Object]:
    role: Object | None = None
    for line in table.replace("\\\n", " ").strip().splitlines():
        if line.startswith(" "):
            assert role is not None
            role["rules"].append(_rule(line))
            continue
        if role is not None:
            yield role
        words = line.split()
        labels = {f"{AGGREGATE}{words[i + 1]}": "true" for i, w in enumerate(words) if w == "→"}
        role = {"apiVersion": API_VERSION, "kind": kind, "metadata": _metadata(words[0], labels), "rules": []}
        if "←" in words:
            target = words[words.index("←") + 1]
            role["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {f"{AGGREGATE}{target}": "true"}}]}
    assert role is not None
    yield role


def _subject(word: str) -> dict[str, str]:
    kind, _, name = word.partition("/")
    if kind == "sa":
        namespace, _, name = name.partition("/")
        return {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    return {"apiGroup": GROUP, "kind": kind.capitalize(), "name": name}


def _binding(kind: str, name: str, role: str, subjects: list[dict[str, str]]) -> Object:
    out: Object = {"apiVersion": API_VERSION, "kind": kind, "metadata": _metadata(name),
                   "roleRef": {"apiGroup": GROUP, "kind": kind.removesuffix("Binding"), "name": role}}
    if subjects:
        out["subjects"] = subjects
    return out


def _bindings(table: str, kind: str) -> Iterator[Object]:
    for line in table.replace("\\\n", " ").strip().splitlines():
        name, role, who = (c.strip() for c in line.split("|"))
        role = name.rpartition("/")[2] if role == "=" else role
        yield _binding(kind, name, role, [_subject(w) for w in who.split()])


def defaults() -> Iterator[Object]:
    """Every default object, in the order they are made."""
    yield from _roles(CLUSTER_ROLES, "ClusterRole")
    controllers = list(_roles(CONTROLLER_ROLES, "ClusterRole"))
    yield from controllers
    yield from _bindings(CLUSTER_ROLE_BINDINGS, "ClusterRoleBinding")
    for role in controllers:
        name = role["metadata"]["name"]
        account = name.removeprefix("system:controller:")
        yield _binding("ClusterRoleBinding", name, name, [{"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}])
    yield from _roles(ROLES, "Role")
    yield from _bindings(ROLE_BINDINGS, "RoleBinding")


# -- keeping

Get = Callable[[str, str, str], Object | None]    # (kind, namespace, name)


def reconcile(get: Get) -> Iterator[Intent]:
    """What to write so that every default is there, given what is there."""
    for want in defaults():
        m = want["metadata"]
        have = get(want["kind"], m.get("namespace", ""), m["name"])
        if have is None:
            yield Create(want, ignore_exists=True)
        elif (have["metadata"].get("annotations") or {}).get(AUTOUPDATE) != "false":
            yield from _role(have, want) if want["kind"].endswith("Role") else _rebind(have, want)


def _merged(have: Object, want: Object) -> dict[str, Any]:
    """Metadata with the expected labels and annotations filled in; what is there wins."""
    m = dict(have["metadata"])
    for field in ("labels", "annotations"):
        m[field] = {**want["metadata"][field], **(m.get(field) or {})}
    return m


def _role(have: Object, want: Object) -> Iterator[Intent]:
    new = {**have, "apiVersion": want["apiVersion"], "kind": want["kind"], "metadata": _merged(have, want)}
    missing = uncovered(have.get("rules") or (), want["rules"])
    if missing:
        new["rules"] = [*(have.get("rules") or ()), *missing]
    if "aggregationRule" not in want:
        new.pop("aggregationRule", None)
    else:
        selectors = list((have.get("aggregationRule") or {}).get("clusterRoleSelectors") or ())
        lacking = [s for s in want["aggregationRule"]["clusterRoleSelectors"] if s not in selectors]
        if lacking:
            new["aggregationRule"] = {"clusterRoleSelectors": selectors + lacking}
    if any(new.get(k) != have.get(k) for k in ("metadata", "rules", "aggregationRule")):
        yield Update(new)


def _rebind(have: Object, want: Object) -> Iterator[Intent]:
    metadata = _merged(have, want)
    if have.get("roleRef") != want["roleRef"]:      # a roleRef cannot change: the binding is made anew
        yield Delete(want["apiVersion"], want["kind"], metadata.get("namespace", ""), metadata["name"], uid=metadata.get("uid", ""))
        yield Create({**want, "metadata": {k: v for k, v in metadata.items() if k in ("name", "namespace", "labels", "annotations")}})
        return
    subjects = list(have.get("subjects") or ())
    missing = [s for s in want.get("subjects", ()) if s not in subjects]
    new = {**have, "apiVersion": want["apiVersion"], "kind": want["kind"], "metadata": metadata}
    if missing:
        new["subjects"] = subjects + missing
    if any(new.get(k) != have.get(k) for k in ("metadata", "subjects")):
        yield Update(new)
