"""Authorization: request attributes, RBAC, nodes, bootstrap roles, escalation."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.api.authz import Attributes, Authorizer, forbid, from_request
from kubern.api.authz.bootstrap import defaults, reconcile
from kubern.api.authz.escalation import check
from kubern.api.authz.node import NodeGraph
from kubern.model.intent import Create, Delete, Update
from kubern.model.request import Request, User
from kubern.model.status import StatusError

RBAC = "rbac.authorization.k8s.io"
JANE = User("jane", ("system:authenticated",))


@pytest.mark.parametrize(("method", "path", "query", "expected"), [
    ("GET", "/api/v1/namespaces/n/pods", {}, ("list", "", "pods", "", "n", "")),
    ("GET", "/api/v1/namespaces/n/pods", {"watch": ["1"]}, ("watch", "", "pods", "", "n", "")),
    ("GET", "/api/v1/namespaces/n/pods", {"watch": ["nope"]}, ("watch", "", "pods", "", "n", "")),
    ("GET", "/api/v1/namespaces/n/pods", {"watch": ["false"]}, ("list", "", "pods", "", "n", "")),
    ("GET", "/api/v1/namespaces/n/pods", {"fieldSelector": ["metadata.name=a"]}, ("list", "", "pods", "", "n", "a")),
    ("GET", "/api/v1/namespaces/n", {}, ("get", "", "namespaces", "", "n", "n")),
    ("PUT", "/api/v1/namespaces/n/finalize", {}, ("update", "", "namespaces", "finalize", "n", "n")),
    ("GET", "/api/v1/namespaces", {}, ("list", "", "namespaces", "", "", "")),
    ("DELETE", "/api/v1/namespaces/n/pods", {}, ("deletecollection", "", "pods", "", "n", "")),
    ("POST", "/api/v1/namespaces/n/pods/a/exec", {}, ("create", "", "pods", "exec", "n", "a")),
    ("GET", "/apis/apps/v1/namespaces/n/deployments/a/scale", {}, ("get", "apps", "deployments", "scale", "n", "a")),
    ("GET", "/apis/apps/v1/x/y/z", {}, ("get", "apps", "x", "z", "", "y")),
    ("GET", "/api/v1/watch/namespaces/n/pods", {}, ("watch", "", "pods", "", "n", "")),
])
def test_attributes_of_resource_requests(method: str, path: str, query: dict[str, list[str]], expected: tuple[str, ...]) -> None:
    a = from_request(Request(method, path, query), JANE)
    assert a.is_resource
    assert (a.verb, a.group, a.resource, a.subresource, a.namespace, a.name) == expected


@pytest.mark.parametrize("path", ["/", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v3", "/metrics"])
def test_attributes_of_other_paths(path: str) -> None:
    a = from_request(Request("POST", path), JANE)
    assert not a.is_resource
    assert (a.verb, a.path) == ("post", path)


class World:
    def __init__(self) -> None:
        self.authz = Authorizer()

    def role(self, name: str, *rules: tuple[str, str, str], ns: str = "", **more: Any) -> None:
        obj = {"rules": [{"verbs": v.split(), "apiGroups": [g], "resources": r.split(), **more} for v, g, r in rules]}
        self.authz.observe(RBAC, "roles" if ns else "clusterroles", ns, name, obj)

    def bind(self, name: str, role: str, subject: dict[str, str], ns: str = "", kind: str = "ClusterRole") -> None:
        obj = {"roleRef": {"kind": kind, "name": role, "apiGroup": RBAC}, "subjects": [subject]}
        self.authz.observe(RBAC, "rolebindings" if ns else "clusterrolebindings", ns, name, obj)

    def ask(self, verb: str, resource: str, ns: str = "", name: str = "", sub: str = "", group: str = "", user: User = JANE) -> Any:
        return self.authz.authorize(Attributes(user, verb, group, "v1", resource, sub, ns, name))


def test_rbac_allows_by_binding_and_says_why() -> None:
    w = World()
    w.role("r", ("get", "", "pods"), ns="n")
    w.bind("b", "r", {"kind": "User", "name": "jane"}, ns="n", kind="Role")
    assert w.ask("get", "pods", "n")[:3] == (True, 'RBAC: allowed by RoleBinding "b/n" of Role "r" to User "jane"', False)
    assert not w.ask("get", "pods", "m").allowed
    assert not w.ask("get", "pods", "n", sub="log").allowed
    w.authz.observe(RBAC, "rolebindings", "n", "b", None)
    assert not w.ask("get", "pods", "n").allowed


def test_rbac_wildcards_names_and_subresources() -> None:
    w = World()
    w.role("scale", ("*", "*", "*/scale"))
    w.bind("scale", "scale", {"kind": "User", "name": "jane"})
    assert w.ask("get", "deployments", "n", "a", "scale", "apps").allowed
    assert not w.ask("get", "deployments", "n", "a", "", "apps").allowed
    w.role("named", ("get list", "", "configmaps"), resourceNames=["mine"])
    w.bind("named", "named", {"kind": "User", "name": "jane"})
    assert w.ask("get", "configmaps", "n", "mine").allowed
    assert not w.ask("list", "configmaps", "n").allowed


def test_rbac_subjects() -> None:
    w = World()
    w.role("r", ("get", "", "pods"))
    w.bind("g", "r", {"kind": "Group", "name": "devs"}, ns="n")
    w.bind("s", "r", {"kind": "ServiceAccount", "name": "sa"}, ns="n")
    assert w.ask("get", "pods", "n", user=User("x", ("devs",))).allowed
    account = w.ask("get", "pods", "n", user=User("system:serviceaccount:n:sa"))
    assert account.reason == 'RBAC: allowed by RoleBinding "s/n" of ClusterRole "r" to ServiceAccount "sa/n"'
    assert not w.ask("get", "pods", "n").allowed


def test_rbac_names_missing_roles() -> None:
    w = World()
    w.bind("b", "gone", {"kind": "User", "name": "jane"}, ns="n", kind="Role")
    assert w.ask("get", "pods", "n").reason == 'RBAC: role.rbac.authorization.k8s.io "gone" not found'


def test_refusal_texts() -> None:
    e = forbid(Attributes(JANE, "get", "apps", "v1", "deployments", "scale", "n", "a"))
    assert e.message == ('deployments.apps "a" is forbidden: User "jane" cannot get resource "deployments/scale" in API group "apps" '
                         'in the namespace "n"')
    assert forbid(Attributes(JANE, "get", path="/x<y", is_resource=False)).message == 'forbidden: User "jane" cannot get path "/x&lt;y"'


def test_node_reads_what_its_pods_need() -> None:
    w = World()
    node = User("system:node:w1", ("system:nodes", "system:authenticated"))
    pod = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "w1", "serviceAccountName": "sa", "containers": [
        {"name": "c", "envFrom": [{"configMapRef": {"name": "cm"}}]}], "volumes": [
            {"name": "s", "secret": {"secretName": "sec"}}, {"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}]}}
    w.authz.observe("", "pods", "n", "p", pod)
    w.authz.observe("", "persistentvolumes", "", "pv", {"spec": {"claimRef": {"namespace": "n", "name": "claim"}, "csi": {
        "nodeStageSecretRef": {"namespace": "sys", "name": "stage"}}}})
    for resource, ns, name in (("secrets", "n", "sec"), ("configmaps", "n", "cm"), ("persistentvolumeclaims", "n", "claim"),
                               ("persistentvolumes", "", "pv"), ("secrets", "sys", "stage"), ("pods", "n", "p")):
        assert w.ask("get", resource, ns, name, user=node).allowed, resource
    assert w.ask("create", "serviceaccounts", "n", "sa", "token", user=node).allowed
    assert not w.ask("get", "secrets", "n", "sec", user=User("system:node:w2", ("system:nodes",))).allowed
    refused = w.ask("get", "secrets", "n", "other", user=node)
    assert refused.reason == "no relationship found between node 'w1' and this object"
    assert w.ask("list", "pods", user=node).reason == "can only list/watch pods with spec.nodeName field selector"
    assert w.authz.authorize(Attributes(node, "list", "", "v1", "pods", field_selector="spec.nodeName=w1")).allowed
    w.authz.observe("", "pods", "n", "p", None)
    assert not w.ask("get", "secrets", "n", "sec", user=node).allowed
    assert not w.ask("get", "persistentvolumes", "", "pv", user=node).allowed


def test_bootstrap_is_idempotent_and_only_adds() -> None:
    made: dict[tuple[str, str, str], Any] = {}

    def get(kind: str, ns: str, name: str) -> Any:
        return made.get((kind, ns, name))

    for intent in reconcile(get):
        assert isinstance(intent, Create)
        m = intent.obj["metadata"]
        made[(intent.obj["kind"], m.get("namespace", ""), m["name"])] = intent.obj
    assert len(made) == len(list(defaults())) == 133
    assert list(reconcile(get)) == []
    view = made[("ClusterRole", "", "system:discovery")]
    made[("ClusterRole", "", "system:discovery")] = {**view, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/mine"]}]}
    made[("ClusterRole", "", "system:monitoring")]["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "false"
    made[("ClusterRole", "", "system:monitoring")]["rules"] = []
    made[("ClusterRoleBinding", "", "system:basic-user")]["roleRef"]["name"] = "other"
    intents = list(reconcile(get))
    assert [type(i) for i in intents] == [Update, Delete, Create]
    assert isinstance(intents[0], Update)
    assert intents[0].obj["rules"][0] == {"verbs": ["get"], "nonResourceURLs": ["/mine"]}
    assert len(intents[0].obj["rules"]) == 12


def test_escalation() -> None:
    w = World()
    w.role("r", ("create get update", RBAC, "roles rolebindings"), ("get", "", "configmaps"), ns="n")
    w.bind("b", "r", {"kind": "User", "name": "jane"}, ns="n", kind="Role")

    def write(plural: str, obj: Any, old: Any = None) -> str:
        try:
            check(JANE, plural, "n", "", {"metadata": {"name": "x"}, **obj}, old, w.authz)
        except StatusError as e:
            return e.message
        return ""

    assert write("roles", {"rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]}) == ""
    assert write("roles", {"rules": [
        {"apiGroups": [""], "resources": ["configmaps", "secrets"], "resourceNames": ["n"], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"]}]}) == (
        'roles.rbac.authorization.k8s.io "x" is forbidden: user "jane" (groups=["system:authenticated"]) is attempting to grant RBAC '
        'permissions not currently held:\n{APIGroups:[""], Resources:["secrets"], ResourceNames:["n"], Verbs:["get"]}\n'
        '{APIGroups:["apps"], Resources:["*"], Verbs:["*"]}')
    ref = {"apiGroup": RBAC, "kind": "Role", "name": "none"}
    assert write("rolebindings", {"roleRef": ref}) == 'rolebindings.rbac.authorization.k8s.io "none" not found'
    assert write("rolebindings", {"roleRef": {**ref, "name": "r"}}) == ""
    old = {"metadata": {"name": "x", "finalizers": ["a"]}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}
    assert write("roles", {"rules": old["rules"]}, old) == ""
    w.role("escalator", ("escalate", RBAC, "roles"))
    w.bind("escalator", "escalator", {"kind": "User", "name": "jane"})
    assert write("roles", {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}) == ""


@pytest.mark.parametrize(("verb", "group", "resource", "sub", "ns", "name", "selector", "answer"), [
    ("get", "", "secrets", "", "n", "s", "", True), ("list", "", "secrets", "", "n", "s", "", True),
    ("list", "", "secrets", "", "n", "", "", "No Object name found"), ("update", "", "secrets", "", "n", "s", "", "can only read resources of this type"),
    ("get", "", "secrets", "x", "n", "s", "", "cannot read subresource"),
    ("get", "", "secrets", "", "", "s", "", "can only read namespaced object of this type"),
    ("get", "", "secrets", "", "n", "t", "", "no relationship found between node 'w1' and this object"),
    ("list", "", "persistentvolumes", "", "", "v", "", "can only get individual resources of this type"),
    ("get", "", "persistentvolumeclaims", "x", "n", "c", "", "cannot get subresource"),
    ("update", "", "persistentvolumeclaims", "status", "n", "c", "", True),
    ("get", "", "persistentvolumeclaims", "status", "n", "c", "", "can only get/update/patch this type"),
    ("get", "", "serviceaccounts", "", "n", "a", "", True), ("create", "", "serviceaccounts", "token", "n", "a", "", True),
    ("create", "", "serviceaccounts", "", "n", "a", "", "can only create token subresource of serviceaccount"),
    ("list", "", "serviceaccounts", "", "n", "", "", "can only create tokens for individual service accounts"),
    ("create", "coordination.k8s.io", "leases", "", "kube-node-lease", "", "", True),
    ("get", "coordination.k8s.io", "leases", "", "kube-node-lease", "w1", "", True),
    ("get", "coordination.k8s.io", "leases", "", "n", "w1", "", 'can only access leases in the "kube-node-lease" system namespace'),
    ("get", "coordination.k8s.io", "leases", "", "kube-node-lease", "w2", "", "can only access node lease with the same name as the requesting node"),
    ("list", "storage.k8s.io", "csinodes", "", "", "", "", "can only get, create, update, patch, or delete a CSINode"),
    ("list", "resource.k8s.io", "resourceslices", "", "", "", "spec.nodeName=w1", True),
    ("list", "resource.k8s.io", "resourceslices", "", "", "", "", "can only list/watch/deletecollection resourceslices with nodeName field selector"),
    ("get", "", "nodes", "", "", "w1", "", True), ("list", "", "nodes", "", "", "", "", "node 'w1' cannot read all nodes, only its own Node object"),
    ("get", "", "nodes", "", "", "w2", "", "node 'w1' cannot read 'w2', only its own Node object"), ("patch", "", "nodes", "status", "", "w1", "", True),
    ("delete", "", "nodes", "", "", "w1", "", ""), ("watch", "", "pods", "", "", "", "spec.nodeName=w1", True), ("get", "", "pods", "", "n", "p", "", True),
    ("list", "", "pods", "", "", "", "spec.nodeName=w2", "can only list/watch pods with spec.nodeName field selector"),
    ("create", "", "pods", "eviction", "n", "p", "", True), ("get", "", "pods", "log", "n", "p", "", ""),
    ("get", "", "endpoints", "", "n", "e", "", True), ("list", "", "endpoints", "", "n", "", "", ""), ("get", "apps", "deployments", "", "n", "d", "", "")])
def test_what_a_node_may_and_why_not(verb: str, group: str, resource: str, sub: str, ns: str, name: str, selector: str, answer: bool | str) -> None:
    graph = NodeGraph()
    graph.observe("", "pods", "n", "p", {"metadata": {}, "spec": {"nodeName": "w1", "serviceAccountName": "a", "volumes": [
        {"name": "s", "secret": {"secretName": "s"}}, {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}]}})
    user = User("system:node:w1", ("system:nodes", "system:authenticated"))
    decision = graph.authorize(Attributes(user, verb, group, "v1", resource, sub, ns, name, field_selector=selector))
    assert decision.allowed is (answer is True) and (decision.allowed or decision.reason == answer)
