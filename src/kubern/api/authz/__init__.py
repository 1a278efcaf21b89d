"""Authorization: one chain, asked in order until somebody has an opinion. No I/O: everything is answered from memory.

    system:masters → Node → RBAC        (or what an AuthorizationConfiguration says: configuration.py, webhook.py)

A link returns a Decision; `allowed` ends the chain, `denied` too, anything else leaves it to the next. The reasons of those
without opinion are joined by line feeds, as upstream's union does. What everybody may read (/healthz, /version …) is a matter of
the default roles. Upstream: apiserver authorization/union, authorizerfactory.
"""

from __future__ import annotations

from collections.abc import Callable

from kubern.api.authz import node, rbac
from kubern.api.authz.attributes import ALLOWED, NO_OPINION, Attributes, Decision, forbid, from_request, refusal
from kubern.api.authz.node import NodeGraph
from kubern.api.authz.rbac import Rbac
from kubern.model.object import Object
from kubern.model.request import User

__all__ = ["ALLOWED", "NO_OPINION", "WATCHED", "Attributes", "Authorizer", "Decision", "forbid", "from_request",
           "refusal"]

MASTERS = "system:masters"
WATCHED: frozenset[tuple[str, str]] = frozenset((*rbac.WATCHED, *node.WATCHED))


Link = Callable[[Attributes], Decision]


class Authorizer:
    """The chain, `links`, over its two indexes. The API's cache calls `observe` for every object of the collections in `watched`."""

    def __init__(self) -> None:
        self.rbac = Rbac()
        self.nodes = NodeGraph()
        self.links: tuple[Link, ...] = (self.nodes.authorize, self.rbac.authorize)
        self.asks_outside = False                # whether somebody is asked whose rules nobody can list

    @property
    def watched(self) -> frozenset[tuple[str, str]]:
        """(group, plural) of the collections it must be told about, before the first request and at every change."""
        return WATCHED

    def observe(self, group: str, plural: str, namespace: str, name: str, obj: Object | None) -> None:
        """An object was written, or deleted (None). Called in revision order, in the loop's thread."""
        if group == rbac.GROUP:
            self.rbac.observe(group, plural, namespace, name, obj)
        else:
            self.nodes.observe(group, plural, namespace, name, obj)

    def authorize(self, a: Attributes) -> Decision:
        """Raises Unanswered where a link must be asked outside first: see `settled`."""
        if MASTERS in a.user.groups:
            return ALLOWED
        reason = error = ""
        for link in self.links:
            decision = link(a)
            if decision.allowed or decision.denied:
                return decision
            if decision.reason or decision.error:
                reason, error = _joined(reason, decision.reason), _joined(error, decision.error)
        return Decision(False, reason, error=error) if reason or error else NO_OPINION

    def check(self, a: Attributes) -> None:
        """Returns if allowed, raises the 403 otherwise."""
        decision = self.authorize(a)
        if not decision.allowed:
            raise forbid(a, decision.reason)

    def allowed(self, user: User, verb: str, group: str, resource: str, namespace: str = "", name: str = "", subresource: str = "",
                version: str = "*") -> bool:
        """Shorthand for the checks that admission and reviews make."""
        return self.authorize(Attributes(user, verb, group, version, resource, subresource, namespace, name)).allowed


def _joined(a: str, b: str) -> str:
    return f"{a}\n{b}" if a and b else a or b
