"""The Ingress controller: golden files for what nginx gets (objects in NAME.yaml, configuration in NAME.conf), and what is written when.

KUBERN_GOLDEN=write writes the configurations anew: read the difference before it is committed.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubern import pki
from kubern.ingress import controller, front, render, routes
from kubern.ingress import plan as plan_
from kubern.model.controller import SINGLE
from kubern.model.intent import Create, Emit, Update

GOLDEN = Path(__file__).parent / "golden"
CLASS = {"metadata": {"name": "kubern"}, "spec": {"controller": "kubern.dev/ingress"}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any) -> tuple[bytes, bytes]:
    d = tmp_path_factory.mktemp("pki")
    p = pki.serving(d, "web", "web", ["a.example.com"], (), pki.authority(d, "ca", "ca"))
    return p.cert, p.key


def tls(name: str, cert: bytes, key: bytes) -> Any:
    return {"metadata": {"name": name, "namespace": "default"}, "type": "kubernetes.io/tls",
            "data": {"tls.crt": base64.b64encode(cert).decode(), "tls.key": base64.b64encode(key).decode()}}


@pytest.mark.parametrize("case", sorted(p.stem for p in GOLDEN.glob("*.yaml")))
def test_golden(case: str, pair: tuple[bytes, bytes]) -> None:
    doc = yaml.safe_load((GOLDEN / f"{case}.yaml").read_text())
    services = {f"default/{s['metadata']['name']}": s for s in doc["services"]}
    secrets = {"default/good": tls("good", *pair), "default/bad": tls("bad", pair[0], pair[0])}
    plan = routes.plan(reversed(doc["ingresses"]), services, plan_.by_service(doc["slices"]), secrets)
    assert [list(c) for c in plan.complaints] == doc["complaints"]
    text = render.nginx(plan)
    want = GOLDEN / f"{case}.conf"
    if os.environ.get("KUBERN_GOLDEN") == "write":
        want.write_text(text)
    assert text == want.read_text()


def test_a_key_of_another_certificate_is_refused(pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    other = pki.authority(tmp_path, "other", "other")
    assert plan_.pair_of(tls("x", *pair)) == pair
    assert plan_.pair_of(tls("x", pair[0], other.key)) is None
    assert plan_.pair_of({"data": {"tls.crt": "!", "tls.key": "!"}}) is None and plan_.pair_of(None) is None


def test_whose_ingress() -> None:
    classes = {"kubern": CLASS, "other": {"spec": {"controller": "example.com/x"}}}

    def of(cls: str = "", note: str = "") -> bool:
        m = {"name": "i", "annotations": {"kubernetes.io/ingress.class": note} if note else {}}
        return routes.ours({"metadata": m, "spec": {"ingressClassName": cls} if cls else {}}, classes)
    assert of("kubern") and of(note="kubern")
    assert not of() and not of("other") and not of("nosuch") and not of(note="other")


class View:
    def __init__(self, **all_: list[Any]) -> None:
        names = {"ingresses": controller.INGRESSES, "classes": controller.CLASSES, "slices": controller.SLICES, "sets": controller.SETS}
        self.all = {names.get(k, k): v for k, v in all_.items()}

    def list(self, resource: str, space: str | None = None) -> list[Any]:
        return [o for o in self.all.get(resource, []) if space is None or o["metadata"].get("namespace") == space]

    def get(self, resource: str, space: str, name: str) -> Any:
        return next((o for o in self.list(resource, space) if o["metadata"]["name"] == name), None)


def drive(view: View) -> list[Any]:
    steps, out, result = controller.CONTROLLER.reconcile({"key": SINGLE}, view, 0.0), [], None  # type: ignore[arg-type]
    while True:
        try:
            out.append(steps.send(result))
        except StopIteration:
            return out
        result = getattr(out[-1], "obj", None)


def golden(**more: Any) -> dict[str, Any]:
    doc = yaml.safe_load((GOLDEN / "hosts_and_paths.yaml").read_text())
    for i in doc["ingresses"]:
        i["spec"]["ingressClassName"] = "kubern"
    return {"classes": [CLASS], "ingresses": doc["ingresses"], "services": doc["services"], "slices": doc["slices"], **more}


def test_nothing_before_the_first_ingress() -> None:
    assert drive(View(classes=[CLASS])) == []
    assert drive(View(**golden(classes=[]))) == []


def test_what_is_made_and_kept() -> None:
    view = View(**golden())
    made = {i.obj["kind"]: i.obj for i in drive(view) if isinstance(i, Create)}
    assert set(made) == {"Secret", "DaemonSet", "Service"}
    answered = {**made["Service"], "status": {"loadBalancer": {"ingress": [{"ip": "10.9.9.9", "ipMode": "VIP"}]}}}
    view.all |= {"secrets": [made["Secret"]], "services": [*view.all["services"], answered], controller.SETS: [made["DaemonSet"]]}
    again = drive(view)
    assert [i.obj["status"] for i in again if isinstance(i, Update)] == [{"loadBalancer": {"ingress": [{"ip": "10.9.9.9"}]}}] * 2
    for i in view.all[controller.INGRESSES]:
        i["status"] = {"loadBalancer": {"ingress": [{"ip": "10.9.9.9"}]}}
    assert drive(view) == []
    old = made["DaemonSet"]
    view.all[controller.SETS] = [{**old, "metadata": {**old["metadata"], "annotations": {front.MADE_BY: "earlier"}}}]
    assert [i.obj["metadata"]["annotations"] for i in drive(view) if isinstance(i, Update)] == [old["metadata"]["annotations"]]
    view.all[controller.SETS] = [old]
    view.all[controller.INGRESSES].pop()
    assert [type(i) for i in drive(view)] == [Update, Emit]                # other paths, another configuration
