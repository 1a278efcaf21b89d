"""Paths that are no resources: health, version, metrics, discovery and OpenAPI, token issuer, the index of it all.

Upstream: apiserver server/healthz, server/routes; KEP-1753 (health), KEP-1393 (issuer discovery).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import orjson

from kubern import KUBERNETES_VERSION
from kubern.api import fairness_report
from kubern.api.call import answer
from kubern.api.negotiate import Accept, router_not_acceptable
from kubern.model.request import Request, Response, User
from kubern.model.status import StatusError
from kubern.store.protocol import Broken, Unavailable

if TYPE_CHECKING:
    from kubern.api.handle import Server

STORE_CHECK_S = 2.0
TEXT = ("Content-Type", "text/plain; charset=utf-8")
NOSNIFF = ("X-Content-Type-Options", "nosniff")
_HOOKS = (
    "start-apiserver-admission-initializer", "generic-apiserver-start-informers", "priority-and-fairness-config-consumer",
    "priority-and-fairness-filter", "storage-object-count-tracker-hook", "start-apiextensions-informers", "start-apiextensions-controllers",
    "crd-informer-synced", "start-system-namespaces-controller", "peer-endpoint-reconciler-controller", "start-cluster-authentication-info-controller",
    "start-kube-apiserver-identity-lease-controller", "start-kube-apiserver-identity-lease-garbage-collector",
    "storage-readiness", "start-legacy-token-tracking-controller", "start-service-ip-repair-controllers", "rbac/bootstrap-roles",
    "scheduling/bootstrap-system-priority-classes", "priority-and-fairness-config-producer", "bootstrap-controller",
    "start-kubernetes-service-cidr-controller", "aggregator-reload-proxy-client-cert", "start-kube-aggregator-informers",
    "apiservice-status-local-available-controller", "apiservice-status-remote-available-controller", "apiservice-registration-controller",
    "apiservice-wait-for-first-sync", "apiservice-discovery-controller", "kube-apiserver-autoregistration")
_AFTER = ("autoregister-completion", "apiservice-openapi-controller", "apiservice-openapiv3-controller")
_LATE = (*(f"poststarthook/{h}" for h in _HOOKS), "autoregister-completion", *(f"poststarthook/{h}" for h in _AFTER[1:]))
CHECKS = {
    "healthz": ("ping", "log", "etcd", *_LATE),
    "livez": ("ping", "log", "etcd", *_LATE),
    "readyz": ("ping", "log", "etcd", "etcd-readiness", "informer-sync", *_LATE, "shutdown"),
}


def not_found() -> Response:
    return Response(404, [TEXT, NOSNIFF], b"404 page not found\n")


async def respond(server: Server, request: Request, user: User) -> Response:
    path = request.path
    head = path[1:].split("/", 1)[0]
    if head in CHECKS:
        return _health(server, request, head, await _store_problem(server))
    if path in ("/flagz", "/statusz"):
        return _page(server, request, path[1:])
    if path in ("/version", "/version/"):
        if request.method not in ("GET", "HEAD"):
            raise StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})
        wanted = [part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")]
        if any(wanted) and not {"application/json", "application/*", "*/*"} & set(wanted):
            raise router_not_acceptable(("application/json",))
        return answer(version(), Accept("application/json", pretty=True))
    if path == "/metrics":
        from kubern.api import metrics_report

        return Response(200, [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")], metrics_report.page(server))
    if path.startswith(fairness_report.PREFIX):
        table = fairness_report.dump(server.fairness, path)
        return Response(200, [TEXT], table) if table is not None else not_found()
    if path == "/metrics/slis":
        return Response(200, [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")], _slis(server, await _store_problem(server)))
    if path in ("/.well-known/openid-configuration", "/openid/v1/jwks"):
        return _issuer(server, path)
    if head in ("api", "apis", "openapi"):
        from kubern.api import discovery

        found = await discovery.respond(server, request)
        if found is not None:
            return found
    if path in ("/", ""):
        if request.method not in ("GET", "HEAD"):
            return not_found()
        return answer({"paths": index(server)}, Accept("application/json", pretty=True))
    special = server.extra_paths.get(path)
    if special is not None:
        return await special(request, user)
    return not_found()


def version() -> dict[str, str]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    return {"major": major, "minor": minor, "emulationMajor": major, "emulationMinor": minor, "minCompatibilityMajor": major,
            "minCompatibilityMinor": str(int(minor) - 1), "gitVersion": "v" + KUBERNETES_VERSION.removeprefix("v"),
            "gitCommit": "0000000000000000000000000000000000000000", "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z",
            "goVersion": "python3", "compiler": "cpython", "platform": "linux/amd64"}


async def _store_problem(server: Server) -> str:
    """Why the store cannot be used, "" where it can. One that others share is asked."""
    if not hasattr(server.store, "caught_up"):
        return ""
    try:
        async with asyncio.timeout(STORE_CHECK_S):
            await server.store.get("/registry/health")
    except TimeoutError:
        return "etcd failed: context deadline exceeded"
    except (Unavailable, Broken) as e:
        return f"error getting data from etcd: {e}"
    return ""


def checks(server: Server, head: str) -> tuple[str, ...]:
    """The names of the checks, in order."""
    plugins = getattr(server.store, "problems", None)
    return CHECKS[head] if plugins is None else (*CHECKS[head][:3], "kms-providers", *CHECKS[head][3:])


def _failing(server: Server, head: str, name: str, store: str) -> str:
    """Why a check fails, "" where it passes. `store`: why the store does."""
    if name in ("etcd", "etcd-readiness"):
        return store
    if name == "kms-providers":
        return "; ".join(server.store.problems())            # type: ignore[attr-defined]
    if head == "readyz" and name == "shutdown" and server.stopping:
        return "process is shutting down"
    if name.startswith("poststarthook/") or name in ("informer-sync", "autoregister-completion"):
        return "" if server.ready or head == "livez" else "not finished"
    return ""


def _health(server: Server, request: Request, head: str, store: str) -> Response:
    names = checks(server, head)
    _, _, one = request.path[1:].partition("/")
    if one or request.path.endswith("/"):
        if one not in names:
            return not_found()
        why = _failing(server, head, one, store)
        if why:
            return Response(500, [TEXT, NOSNIFF], f"internal server error: {why}\n".encode())
        return Response(200, [TEXT, NOSNIFF], b"ok")
    excluded = {e for v in request.query.get("exclude") or () for e in v.split(",") if e}
    lines, failed = [], False
    for name in names:
        if name in excluded:
            lines.append(f"[+]{name} excluded: ok")
            continue
        why = _failing(server, head, name, store)
        failed = failed or bool(why)
        lines.append(f"[-]{name} failed: reason withheld" if why else f"[+]{name} ok")
    unknown = sorted(excluded - set(names))
    if unknown:
        lines.append("warn: some health checks cannot be excluded: no matches for " + ", ".join(f'"{u}"' for u in unknown))
    if failed:
        return Response(500, [TEXT, NOSNIFF], ("\n".join([*lines, f"{head} check failed"]) + "\n").encode())
    if "verbose" in request.query:
        return Response(200, [TEXT, NOSNIFF], ("\n".join([*lines, f"{head} check passed"]) + "\n").encode())
    return Response(200, [TEXT, NOSNIFF], b"ok")


def _slis(server: Server, store: str) -> bytes:
    out = ["# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n# TYPE kubernetes_healthcheck gauge\n"]
    for head in ("healthz", "livez", "readyz"):
        for name in checks(server, head):
            out.append(f'kubernetes_healthcheck{{name="{name}",type="{head}"}} {0 if _failing(server, head, name, store) else 1}\n')
    return "".join(out).encode()


def _page(server: Server, request: Request, name: str) -> Response:
    """/flagz and /statusz: for people who look for what is wrong. KEP-4828, KEP-4827."""
    accept = request.headers.get("accept", "")
    if accept and not any(t.split(";")[0].strip() in ("*/*", "text/*", "text/plain") for t in accept.split(",")):
        raise StatusError(406, "NotAcceptable", "only the following media types are accepted: text/plain", {})
    lines = [f"{k}: {v}" for k, v in sorted(server.flags.items())]
    if name == "statusz":
        up_s = int(server.clock() - server.metrics.started_s)
        started = time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(server.metrics.started_s))
        lines = ["", f"Started: {started}", f"Up: {up_s // 3600} hr {up_s // 60 % 60:02} min {up_s % 60:02} sec", f"Go version: {version()['goVersion']}",
                 f"Binary version: {KUBERNETES_VERSION.removeprefix('v')}", f"Emulation version: {version()['major']}.{version()['minor']}",
                 "Paths: /flagz /healthz /livez /metrics /readyz /statusz /version"]
    head = f"\napiserver {name}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for " \
           "debugging purposes only.\n"
    return Response(200, [TEXT], (head + "\n".join(lines) + "\n").encode())


def _issuer(server: Server, path: str) -> Response:
    keys = server.authenticator.keys
    if keys is None:
        return not_found()
    if path == "/openid/v1/jwks":
        return Response(200, [("Content-Type", "application/jwk-set+json"), ("Cache-Control", "public, max-age=3600")], orjson.dumps(keys.jwks()))
    doc = {"issuer": server.settings.service_account_issuer, "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
           "jwks_uri": f"https://{server.settings.advertise_address}:{server.settings.advertise_port}/openid/v1/jwks",
           "id_token_signing_alg_values_supported": ["RS256"]}
    return Response(200, [("Content-Type", "application/json"), ("Cache-Control", "public, max-age=3600")], orjson.dumps(doc))


def index(server: Server) -> list[str]:
    """Every path there is, as / lists them."""
    out = {"/.well-known/openid-configuration", "/api", "/apis", "/apis/", "/openapi/v2", "/openapi/v3", "/openapi/v3/", "/openid/v1/jwks",
           "/flagz", "/statusz", "/version", "/metrics", "/metrics/slis", "/debug/api_priority_and_fairness/dump_priority_levels",
           "/debug/api_priority_and_fairness/dump_queues", "/debug/api_priority_and_fairness/dump_requests"}
    for group, v, _ in server.rows.by_path:
        if group:
            out |= {f"/apis/{group}", f"/apis/{group}/{v}"}
        else:
            out.add(f"/api/{v}")
    for head in CHECKS:
        out |= {f"/{head}", *(f"/{head}/{c}" for c in checks(server, head))}
    return sorted(out)
