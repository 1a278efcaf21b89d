"""NodeDeclaredFeatureValidator: a bound pod may not be changed into one that its node cannot run.

What a change needs stands in NEEDS; what a node can do, in its status.declaredFeatures. Fields that never change need nothing here: for them the
scheduler has looked. Upstream: plugin/pkg/admission/nodedeclaredfeatures, component-helpers nodedeclaredfeatures; KEP-5328.
"""

from __future__ import annotations

from collections.abc import Callable

from kubern.api.admission.attributes import UPDATE, Attributes, Plugin
from kubern.model.invalid import quote
from kubern.model.object import Object


def _pod_resources(new: Object, old: Object) -> bool:
    return (new.get("resources") or {}) != (old.get("resources") or {})


def _init_resources(new: Object, old: Object) -> bool:
    """Those of init containers that end; sidecars are resized as containers are."""
    return any(before.get("restartPolicy") != "Always" and (before.get("resources") or {}) != (after.get("resources") or {})
               for before, after in zip(old.get("initContainers") or (), new.get("initContainers") or (), strict=False))


NEEDS: tuple[tuple[str, Callable[[Object, Object], bool]], ...] = (
    ("InPlacePodLevelResourcesVerticalScaling", _pod_resources),
    ("InPlacePodVerticalScalingInitContainers", _init_resources),
)


async def validate(a: Attributes) -> None:
    new, old = (a.obj or {}).get("spec") or {}, (a.old or {}).get("spec") or {}
    name = new.get("nodeName")
    if not name:
        return
    needed = [feature for feature, changed in NEEDS if changed(new, old)]
    if not needed:
        return
    node = a.reader.get("nodes", "", name)
    if node is None:
        raise a.refuse(f"node {quote(name)} not found")
    declared = (node.get("status") or {}).get("declaredFeatures") or ()
    missing = [f for f in needed if f not in declared]
    if missing:
        raise a.refuse(f"pod update requires features {', '.join(missing)} which are not available on node {quote(name)}")


PLUGIN = Plugin("NodeDeclaredFeatureValidator", (UPDATE,), ("pods", "pods/resize"), validate=validate)
