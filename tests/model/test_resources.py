"""The resource table against two outside sources: lightkube-models, and the discovery documents where this machine has them."""

import base64
import hashlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from kubern.model.resources import FIELDS, RESOURCES, by_kind, by_path, field_path, field_value

DISCOVERY = Path(__file__).parents[3] / "shared" / "data" / "discovery"


def documents():
    for group, version in dict.fromkeys((r.group, r.version) for r in RESOURCES):
        yield group, version, f"api__{version}" if not group else f"apis__{group}__{version}"


@pytest.mark.skipif(not DISCOVERY.is_dir(), reason="the discovery documents are not on this machine")
@pytest.mark.parametrize(("group", "version", "file"), list(documents()))
def test_rows_equal_discovery(group, version, file):
    want = json.loads((DISCOVERY / f"{file}.json").read_text())["resources"]
    got = []
    for r in RESOURCES:
        if (r.group, r.version) != (group, version):
            continue
        row = {"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": sorted(r.verbs)}
        if r.short_names:
            row["shortNames"] = list(r.short_names)
        if r.categories:
            row["categories"] = list(r.categories)
        if "get" in r.verbs and "create" in r.verbs:
            text = f"{r.storage[0]}/{r.hash_version or r.storage_version or r.version}/{r.kind}"
            row["storageVersionHash"] = base64.b64encode(hashlib.sha256(text.encode()).digest()[:8]).decode()
        got.append(row)
        for s in r.subresources:
            sub = {"name": f"{r.plural}/{s.name}", "singularName": "", "namespaced": r.namespaced, "kind": s.kind or r.kind,
                   "verbs": sorted(s.verbs)}
            got.append(sub | ({"group": s.group, "version": s.version} if s.version else {}))
    assert got == [{**w, "verbs": sorted(w["verbs"])} for w in want]


def test_rows_agree_with_lightkube():
    """Every generated client resource of a served version is here with its plural, scope, verbs and subresources, and back."""
    models = importlib.util.find_spec("lightkube")
    if models is None or not models.submodule_search_locations:
        pytest.skip("lightkube-models is not installed")
    folder = Path(models.submodule_search_locations[0]) / "resources"
    want, got = set(), set()
    served = {(r.group, r.version) for r in RESOURCES}
    for file in folder.glob("*_v*.py"):
        for base, body in re.findall(r"class \w+\(res\.(\w+).*?ApiInfo\((.*?)\n    \)", file.read_text(), re.DOTALL):
            parent = re.search(r"parent=res\.ResourceDef\('(.*?)', '(.*?)', '(.*?)'\)", body)
            own = re.search(r"resource=res\.ResourceDef\('(.*?)', '(.*?)', '(.*?)'\)", body)
            group, version, kind = (parent or own).groups()
            action = re.search(r"action='(.*?)'", body)
            if (group, version) in served:
                verbs = set(re.findall(r"'(\w+)'", re.search(r"verbs=\[(.*?)\]", body).group(1))) - {"global_list", "global_watch", "watch"}
                want.add((group, version, kind, re.search(r"plural='(.*?)'", body).group(1), action.group(1) if action else "",
                          base.startswith("Namespaced"), frozenset({"post": "create", "put": "update"}.get(v, v) for v in verbs)))
    for r in RESOURCES:
        # every list counts as watchable there, so "watch" is left out
        got.add((r.group, r.version, r.kind, r.plural, "", r.namespaced, frozenset(r.verbs) - {"watch"}))
        for s in r.subresources:  # the streaming ones are methods there, not resources
            if s.name not in ("proxy", "exec", "attach", "portforward", "log"):
                got.add((r.group, r.version, r.kind, r.plural, s.name, r.namespaced, frozenset(s.verbs)))
    assert {w for w in want if w[4] not in ("proxy", "exec", "attach", "portforward", "log")} == got


def test_indexes():
    assert by_path["apps", "v1", "deployments"].kind == "Deployment"
    assert by_kind["v1", "Pod"].plural == "pods"
    assert by_path["events.k8s.io", "v1", "events"].storage == ("", "events") == by_path["", "v1", "events"].storage
    assert by_path["autoscaling", "v1", "horizontalpodautoscalers"].storage_version == "v2"
    assert all((g, k) in {(r.group, r.kind) for r in RESOURCES} for g, k in FIELDS)


def test_field_labels():
    pods, jobs = by_path["", "v1", "pods"], by_path["batch", "v1", "jobs"]
    assert field_path(pods, "spec.host") == "spec.nodeName"
    assert field_value({"spec": {}}, "spec.hostNetwork") == "false"
    assert field_value({"status": {"succeeded": 3}}, field_path(jobs, "status.successful")) == "3"
    assert field_value({"reportingComponent": "x"}, "source") == "x"
    for resource, label, text in (
            (pods, "x", "field label not supported: x"),
            (jobs, "x", 'field label "x" not supported for Job'),
            (by_path["", "v1", "nodes"], "metadata.namespace", "field label not supported: metadata.namespace"),
            (by_path["apps", "v1", "replicasets"], "status.replicas",
             '"status.replicas" is not a known field selector: only "metadata.name", "metadata.namespace"')):
        with pytest.raises(ValueError, match=re.escape(text)) as e:
            field_path(resource, label)
        assert str(e.value) == text
