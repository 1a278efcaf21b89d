"""Impersonation: Impersonate-* headers, and whether the requestor may use them.

Several modes are tried: the constrained ones (node, service account, user info), which ask twice, for the identity
(`impersonate:MODE`) and for what is done under it (`impersonate-on:MODE:VERB`), then the plain `impersonate` verb. The first
denial is the one shown. Constrained modes never give system:masters.
Upstream: apiserver endpoints/filters/impersonation; KEP-5284.
"""

from __future__ import annotations

from collections.abc import Callable

from kubern.api.authn.certificates import extra_of, values
from kubern.api.authz import Attributes, Authorizer, forbid
from kubern.model.invalid import quote
from kubern.model.names import is_dns1123_subdomain
from kubern.model.request import Request, User
from kubern.model.status import StatusError, bad_request

GROUP = "authentication.k8s.io"
MANY = 4          # from so many groups or extras on, one check for "*" is tried first
PREFIX = "impersonate-"


def asked(request: Request) -> bool:
    return any(name.startswith(PREFIX) for name in request.headers)


def wanted(request: Request) -> User | None:
    """The user the headers ask for, as they stand; None if they name nobody."""
    name, uid = request.headers.get("impersonate-user") or "", request.headers.get("impersonate-uid") or ""
    groups = tuple(values(request, "impersonate-group"))
    extra = extra_of(request, "impersonate-extra-")
    if name:
        return User(name, groups, uid, extra)
    if uid or groups or extra:
        listed = "[]string{" + ", ".join(quote(g) for g in groups) + "}" if groups else "[]string(nil)"
        mapped = "map[string][]string(nil)"
        if extra:
            pairs = (f"{quote(k)}:[]string{{{', '.join(quote(v) for v in extra[k])}}}" for k in sorted(extra))
            mapped = "map[string][]string{" + ", ".join(pairs) + "}"
        raise bad_request(f'requested &user.DefaultInfo{{Name:"", UID:{quote(uid)}, Groups:{listed}, Extra:{mapped}}} '
                          "without impersonating a user name")
    return None


def impersonate(request: Request, a: Attributes, authorizer: Authorizer) -> User:
    """The user this request runs as; `a` are its attributes with the requestor. Raises 400 and 403."""
    want = wanted(request)
    if want is None:
        return a.user
    first: StatusError | None = None
    for mode, applies in _MODES:
        if mode and not applies(want, a.user):
            continue
        try:
            if mode:
                on = a._replace(verb=f"impersonate-on:{mode}:{a.verb}")
                authorizer.check(_hide_extra(on) if mode == "associated-node" else on)
            user = _become(want, a.user, mode, authorizer)
            request.impersonation = mode
            return user
        except StatusError as e:
            first = first or e
    assert first is not None    # the last mode applies to everybody
    raise first


def _become(want: User, who: User, mode: str, authorizer: Authorizer) -> User:
    verb, group, version = (f"impersonate:{mode}", GROUP, "v1") if mode else ("impersonate", "", "v1")
    groups = want.groups

    def ask(resource: str, name: str, namespace: str = "", subresource: str = "", group: str = group) -> None:
        attributes = Attributes(who, verb, group, version, resource, subresource, namespace, name)
        authorizer.check(_hide_extra(attributes) if mode == "associated-node" else attributes)

    def may(resource: str, name: str, subresource: str = "") -> bool:
        return bool(mode) and authorizer.authorize(Attributes(who, verb, GROUP, "v1", resource, subresource, "", name)).allowed

    account = service_account(want.name)
    node = node_name(want.name) if mode else ""
    if node:
        ask("nodes", "*" if mode == "associated-node" else node)
        groups = ("system:nodes",)
    elif account:
        ask("serviceaccounts", account[1], account[0])
        if not groups:
            groups = ("system:serviceaccounts", f"system:serviceaccounts:{account[0]}")
    else:
        ask("users", want.name)
    if want.uid:
        ask("uids", want.uid, group=GROUP)
    if want.groups:
        if mode:
            base = Attributes(who, verb, group, version, "groups")
            if "" in want.groups:
                raise forbid(base, "impersonating the empty string group is not allowed")
            if "system:masters" in want.groups:
                raise forbid(base._replace(name="system:masters"), "impersonating the system:masters group is not allowed")
        if not (len(want.groups) >= MANY and may("groups", "*")):
            for g in want.groups:
                ask("groups", g)
    if want.extra:
        if mode:
            _check_extra(want, Attributes(who, verb, GROUP, version, "userextras"))
        many = len(want.extra) >= MANY or sum(len(v) for v in want.extra.values()) >= MANY
        if not (many and may("userextras", "*", "*")):
            for key, vs in want.extra.items():
                for v in vs:
                    ask("userextras", v, subresource=key, group=GROUP)
    if want.name == "system:anonymous":
        if "system:unauthenticated" not in groups:
            groups = (*groups, "system:unauthenticated")
    elif "system:unauthenticated" not in groups and "system:authenticated" not in groups:
        groups = (*groups, "system:authenticated")
    return User(want.name, groups, want.uid, want.extra)


def _check_extra(want: User, a: Attributes) -> None:
    for key, vs in want.extra.items():
        if not key:
            raise forbid(a, "impersonating the empty string key in extra is not allowed")
        domain, slash, path = key.partition("/")
        problem = "must be a domain-prefixed path (such as \"acme.io/foo\")" if not (slash and domain and path) else \
            next(iter(is_dns1123_subdomain(domain)), "")
        if problem:
            raise forbid(a, f"impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {quote(key)}: {problem}")
        if key != key.lower():
            raise forbid(a, f"impersonating a non-lowercase key in extra is not allowed: {quote(key)}")
        if not vs:
            raise forbid(a, "impersonating empty values in extra is not allowed")
        if "" in vs:
            raise forbid(a, "impersonating the empty string value in extra is not allowed")


def _hide_extra(a: Attributes) -> Attributes:
    """The associated node is settled before anybody is asked; authorizers see only which extras the requestor has."""
    keys = tuple(sorted(a.user.extra))
    return a._replace(user=User(a.user.name, a.user.groups, a.user.uid, {"authentication.kubernetes.io/associated-node-keys": keys}))


def service_account(name: str) -> tuple[str, str] | None:
    """(namespace, name) of a service account's user name."""
    parts = name.split(":")
    if len(parts) == 4 and parts[0] == "system" and parts[1] == "serviceaccount" and parts[2] and parts[3]:
        return parts[2], parts[3]
    return None


def node_name(name: str) -> str:
    node = name.removeprefix("system:node:")
    return node if node != name and node and not is_dns1123_subdomain(node) else ""


def _bare(want: User) -> bool:
    return not (want.uid or want.groups or want.extra)


def _associated(want: User, who: User) -> bool:
    node = node_name(want.name)
    return bool(node) and _bare(want) and service_account(who.name) is not None and \
        tuple(who.extra.get("authentication.kubernetes.io/node-name", ())) == (node,)


_MODES: tuple[tuple[str, Callable[[User, User], bool]], ...] = (
    ("associated-node", _associated),
    ("arbitrary-node", lambda want, who: _bare(want) and bool(node_name(want.name))),
    ("serviceaccount", lambda want, who: _bare(want) and service_account(want.name) is not None),
    ("user-info", lambda want, who: not node_name(want.name) and service_account(want.name) is None),
    ("", lambda want, who: True),
)
