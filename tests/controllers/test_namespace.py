"""Namespaces and aggregated APIs: what they hold is emptied, and while one does not answer the namespace stays."""

from __future__ import annotations

from typing import Any

from kubern.controllers import namespace
from kubern.model.intent import Again, Failed, Fetch, Update
from tests.controllers.conftest import ListView, drive, of

NOW = 1893456100.0
DELETED = "2030-01-01T00:01:00Z"


def _namespace_pass(answer: Any) -> list[Any]:
    ns = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "deletionTimestamp": DELETED}, "spec": {"finalizers": ["kubernetes"]},
          "status": {"phase": "Terminating"}}
    api = {"metadata": {"name": "v1.wardle.example.com"}, "spec": {"group": "wardle.example.com", "version": "v1", "service": {"name": "s", "namespace": "x"}}}
    view = ListView(apiservices__apiregistration__k8s__io=[api], pods=[], customresourcedefinitions__apiextensions__k8s__io=[])
    return drive(namespace.reconcile(ns, view, NOW), answer)


def test_a_namespace_empties_aggregated_apis_too() -> None:
    flunders = ["f"]

    def answer(intent: Any) -> Any:
        if isinstance(intent, Fetch) and intent.path == "/apis/wardle.example.com/v1":
            return {"resources": [{"name": "flunders", "namespaced": True, "kind": "Flunder", "verbs": ["list", "get", "delete"]},
                                  {"name": "fischers", "namespaced": False, "kind": "Fischer", "verbs": ["list", "get", "delete"]}]}
        if isinstance(intent, Fetch) and intent.method == "DELETE":
            flunders.remove(intent.path.rpartition("/")[2])
        if isinstance(intent, Fetch):
            return {"items": [{"metadata": {"name": x}} for x in flunders] if intent.path.endswith("/namespaces/n/flunders") else []}
        return getattr(intent, "obj", None)
    done = _namespace_pass(answer)
    assert flunders == []
    assert [u.subresource for u in of(done, Update)][-1] == "finalize"


def test_a_namespace_waits_for_an_aggregated_api_that_does_not_answer() -> None:
    def answer(intent: Any) -> Any:
        if isinstance(intent, Fetch):
            return Failed(intent, 503, "ServiceUnavailable", "no endpoints") if intent.path.startswith("/apis/wardle") else {"items": []}
        return getattr(intent, "obj", None)
    done = _namespace_pass(answer)
    condition = of(done, Update)[-1].obj["status"]["conditions"][0]
    assert (condition["type"], condition["status"], condition["reason"]) == ("NamespaceDeletionDiscoveryFailure", "True", "DiscoveryFailed")
    assert condition["message"] == ("Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: "
                                    "wardle.example.com/v1: stale GroupVersion discovery: wardle.example.com/v1")
    assert of(done, Again)
