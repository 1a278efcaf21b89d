"""Privilege escalation by writing roles and bindings, as a step of the chain; the rules are in api/authz/escalation.py."""

from __future__ import annotations

from functools import partial

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin
from kubern.api.authz import escalation
from kubern.api.authz.rbac import WATCHED
from kubern.api.authz.unanswered import settled


async def mutate(a: Attributes) -> None:
    if a.authorizer is not None and a.obj is not None:
        name = a.name if a.operation == UPDATE else ""
        await settled(partial(escalation.check, a.user, a.resource.plural, a.namespace, name, a.obj, a.old, a.authorizer))


PLUGIN = Plugin("RBACEscalation", (CREATE, UPDATE), tuple(f"{plural}.{group}" for group, plural in WATCHED), mutate=mutate)
