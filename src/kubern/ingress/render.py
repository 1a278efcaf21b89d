"""Render: a Plan as nginx' configuration. Pure: the same plan gives the same text.

Text from users reaches the configuration only as host names (validated by the API, and again here) and quoted, with what means something to
nginx escaped. A site whose routes are decided by the path alone becomes locations: a prefix needs two, itself and everything below it. Else the
request line, the headers and parameters asked for are joined into one string, and the first pattern of a map that fits it names the location:
the order of the patterns is the routes' precedence. One address stands several times in an upstream so that a refused connection is tried
again: behind it the node's proxy picks another endpoint. Written for nginx 1.22 and later.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from urllib.parse import quote

from kubern.ingress.plan import Action, Address, Backend, Condition, Headers, Match, Plan, Port, Route, Site

FOLDER = "/etc/kubern-ingress"
HEALTH = 10254
FAILURES = {500: 10500, 503: 10503}                  # servers of our own that answer with an error, for shares of a weighted choice
OWN_PORTS = (HEALTH, *FAILURES.values())
TRIES = 3
HOST = re.compile(r"(\*\*?\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
DISPATCH = 418                                       # never leaves nginx: it stands for "go to the location the map names"
FORWARDED = (
    ("Host", "$http_host"),
    ("X-Request-ID", "$request_name"),
    ("X-Real-IP", "$remote_addr"),
    ("X-Forwarded-For", "$remote_addr"),
    ("X-Forwarded-Host", "$http_host"),
    ("X-Forwarded-Port", "$server_port"),
    ("X-Forwarded-Proto", "$scheme"),
    ("X-Forwarded-Scheme", "$scheme"),
    ("X-Scheme", "$scheme"),
    ("Upgrade", "$http_upgrade"),
    ("Connection", "$connection_upgrade"))
_FORWARDED = "".join(f"  proxy_set_header {name} {value};\n" for name, value in FORWARDED)

_HEAD = f"""# Made by kubern from Ingresses and Gateways; changes are lost.
worker_processes 1;
worker_shutdown_timeout 30s;
error_log stderr warn;
pid /tmp/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server_tokens off;
  server_names_hash_bucket_size 128;
  variables_hash_max_size 2048;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  client_max_body_size 0;
  proxy_http_version 1.1;
  proxy_connect_timeout 5s;
  proxy_read_timeout 60s;
  proxy_send_timeout 60s;
  proxy_next_upstream error timeout;
  proxy_next_upstream_tries {TRIES};
  proxy_buffer_size 8k;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  map $http_x_request_id $request_name {{ default $http_x_request_id; "" $request_id; }}
{_FORWARDED}  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:tls:4m;
  ssl_session_timeout 10m;
"""


_DOLLAR = '  geo $dollar { default "$"; }\n'

def nginx(plan: Plan, ipv6: bool = False) -> str:
    """The whole nginx.conf. Certificates are files FOLDER/NAME.crt and .key. `ipv6`: listen there as well; not every kernel has it."""
    text = _Text(ipv6)
    servers = []
    for port in plan.ports:
        if not any(s.host == "" and port in s.ports for s in plan.sites):
            last = "    ssl_reject_handshake on;\n" if port.tls else "    location / { return 404; }\n"
            servers.append(_block(text.listen(port, " default_server") + last))
    servers += [text.server(s) for s in plan.sites if s.host == "" or HOST.fullmatch(s.host)]
    blocks = [*text.failures(), *(text.upstreams[k] for k in sorted(text.upstreams)), *text.maps.values(), *servers, "}\n"]
    health = "".join(f"    listen {host}{HEALTH};\n" for host in text.hosts) + "    location / { return 404; }\n    location = /healthz { return 200; }\n"
    return "".join([_HEAD, _block(health), *([_DOLLAR] if any("${dollar}" in b for b in blocks) else []), *blocks])


def _block(body: str) -> str:
    return f"  server {{\n{body}  }}\n"


def _name(host: str) -> str:
    """"*.x" stands for one label (nginx' own would take several), "**.x" for several."""
    if host.startswith("**."):
        return host[1:]
    return host if not host.startswith("*.") else f'"~^[^.]+\\.{re.escape(host[2:])}$"'


def _quoted(text: str) -> str:
    """A string in nginx' quotes that is nothing but itself."""
    return '"' + _escaped(text).replace("$", "${dollar}") + '"'


def _escaped(text: str) -> str:
    """For quotes in which variables do not live."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "").replace("\n", "")


def _tag(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _pattern(regex: str) -> str:
    """A regular expression as the key of a map."""
    return f'"~{_escaped(regex)}"'


class _Text:
    """Blocks outside of servers, found while servers are written: each once."""

    def __init__(self, ipv6: bool) -> None:
        self.hosts = ("", "[::]:") if ipv6 else ("",)
        self.upstreams: dict[str, str] = {}
        self.maps: dict[str, str] = {}
        self.failing: set[int] = set()

    def failures(self) -> list[str]:
        return [_block(f"    listen 127.0.0.1:{FAILURES[code]};\n    location / {{ return {code}; }}\n") for code in sorted(self.failing)]

    def variable(self, kind: str, source: str, rows: Iterable[str]) -> str:
        """A variable that a map makes of a source; returns its name."""
        rows = list(rows)
        name = f"${kind}_{_tag(source, rows)}"
        self.maps[name] = f"  map {source} {name} {{\n" + "".join(f"    {r};\n" for r in rows) + "  }\n"
        return name

    # ---- upstreams

    def upstream(self, backends: tuple[Backend, ...]) -> str:
        """The upstream for a choice by weight; of one backend it has its name."""
        if len(backends) == 1:
            b = backends[0]
            servers = b.servers * TRIES if len(b.servers) == 1 else b.servers
            lines = "".join(f"    server {s} max_fails=0;\n" for s in servers)
            name = b.id
        else:
            parts = [(b.servers or (self.failure(b.error),), b.weight) for b in backends if b.weight]
            shares = math.lcm(*(len(servers) for servers, _ in parts))
            rows = [(s, weight * shares // len(servers)) for servers, weight in parts for s in servers]
            common = math.gcd(*(w for _, w in rows))
            lines = "".join(f"    server {s} weight={w // common} max_fails=0;\n" for s, w in rows)
            name = f"mix_{_tag(lines)}"
        self.upstreams[name] = f"  upstream {name} {{\n{lines}  }}\n"
        return name

    def failure(self, code: int) -> str:
        self.failing.add(code)
        return f"127.0.0.1:{FAILURES[code]}"

    # ---- servers

    def listen(self, port: Port, default: str) -> str:
        return "".join(f"    listen {host}{port.number}{' ssl' if port.tls else ''}{default};\n" for host in self.hosts)

    def server(self, s: Site) -> str:
        default = " default_server" if s.host == "" else ""
        lines = [self.listen(p, default) for p in s.ports]
        if any(p.tls for p in s.ports):
            lines += [f"    ssl_certificate {FOLDER}/{s.certificate}.crt;\n", f"    ssl_certificate_key {FOLDER}/{s.certificate}.key;\n"]
        if s.host:
            lines.append(f"    server_name {_name(s.host)};\n")
        lines += self.by_path(s) if all(r.match.plain for r in s.routes) else self.by_map(s)
        return _block("".join(lines))

    def by_path(self, s: Site) -> list[str]:
        exact = {r.match.path for r in s.routes if r.match.kind == "exact"}
        out: list[str] = []
        for r in s.routes:
            body = self.body(r, s)
            path = _escaped(r.match.path)
            if r.match.kind == "exact":
                out.append(f'    location = "{path}" {body}')
            elif path == "":
                out.append(f"    location / {body}")
            else:                                    # an Exact path may have the very text of this prefix
                out += [f'    location = "{path}" {body}'] * (r.match.path not in exact) + [f'    location "{path}/" {body}']
        if not any(r.match.path == "" and r.match.kind == "prefix" for r in s.routes):
            out.append("    location / { return 404; }\n")
        return [*out, *self.mirrors(s)]

    def by_map(self, s: Site) -> list[str]:
        headers = sorted({c.name.lower() for r in s.routes for c in r.match.headers})
        source = "\n".join(["$request_method", *(f"$http_{h.replace('-', '_')}" for h in headers), "&$args&", "$uri"])
        rows = ["default @none", *(f"{_pattern(_regex(r.match, headers))} @r{i}" for i, r in enumerate(s.routes))]
        route = self.variable("route", f'"{source}"', rows)
        out = [f"    error_page {DISPATCH} = {route};\n", f"    location / {{ return {DISPATCH}; }}\n", "    location @none { return 404; }\n"]
        return [*out, *(f"    location @r{i} {self.body(r, s)}" for i, r in enumerate(s.routes)), *self.mirrors(s)]

    def mirrors(self, s: Site) -> list[str]:
        every = {b.id: b for r in s.routes for b in r.action.mirrors if b.servers}
        return [f"    location = /.mirror/{b.id} {{ internal; proxy_pass http://{self.upstream((b,))}$request_uri; }}\n" for b in every.values()]

    # ---- what is done with a request

    def body(self, r: Route, s: Site) -> str:
        """The inside of a location, in its braces."""
        lines = self.action(r.action, s)
        return f"{{ {lines[0]} }}\n" if len(lines) == 1 else "{\n" + "".join(f"      {line}\n" for line in lines) + "    }\n"

    def action(self, a: Action, s: Site) -> list[str]:
        answer = self.answer_headers(a.response)
        if a.redirect is not None:
            return [*answer, f"return {a.code} {self.location(a.redirect, s.ports[0])};"]
        live = [b for b in a.backends if b.weight]
        if not live or not any(b.servers for b in live):
            return [*answer, f"return {a.code or (live[0].error if live else 500)};"]
        out = [f"mirror /.mirror/{b.id};" for b in a.mirrors if b.servers]
        if a.timeout_ms:
            out += [f"proxy_read_timeout {a.timeout_ms}ms;", f"proxy_send_timeout {a.timeout_ms}ms;"]
        host = a.rewrite.host if a.rewrite else None
        if host or a.request != Headers():
            out += self.request_headers(a.request, host)
        path = "" if a.rewrite is None or a.rewrite.path is None else self.path(a.rewrite) + "$is_args$args"
        target = f"http://{self.upstream(tuple(live))}{path}"
        return [*out, *answer, f"proxy_pass {target if not path else _raw(target)};"]

    def request_headers(self, change: Headers, host: str | None) -> list[str]:
        """All of them: what a location sets replaces what stands outside."""
        rows = {name.lower(): (name, value) for name, value in FORWARDED}
        if host:
            rows["host"] = ("Host", _quoted(host))
        rows |= {name.lower(): (name, _quoted(value)) for name, value in change.set}
        for name, value in change.add:
            have = f"$http_{name.lower().replace('-', '_')}"
            both = self.variable("added", have, [f'"" {_quoted(value)}', f'default "{have},{_quoted(value)[1:]}'])
            rows[name.lower()] = (name, both)
        rows |= {name.lower(): (name, '""') for name in change.remove}
        return [f"proxy_set_header {name} {value};" for name, value in rows.values()]

    def answer_headers(self, change: Headers) -> list[str]:
        hidden = dict.fromkeys([*(name for name, _ in change.set), *change.remove])
        shown = (*change.set, *change.add)
        return [*(f"proxy_hide_header {name};" for name in hidden), *(f"add_header {name} {_quoted(value)} always;" for name, value in shown)]

    def location(self, to: Address, port: Port) -> str:
        """Where a redirect leads; a port that goes without saying is left out."""
        scheme = to.scheme or ("https" if port.tls else "http")
        usual = 443 if scheme == "https" else 80
        number = to.port or (usual if to.scheme else port.number)
        path = "$request_uri" if to.path is None else f"{self.path(to)}$is_args$args"
        text = f"{scheme}://{to.host or '$host'}{'' if number == usual else f':{number}'}{path}"
        return text if to.path is None else _raw(text)

    def path(self, to: Address) -> str:
        """The new path: as it was written, or with what followed the replaced prefix as the client wrote it."""
        assert to.path is not None
        if to.prefix is None:
            return _quoted(to.path)[1:-1]
        base = to.path.rstrip("/")
        regex = f"^{re.escape(to.prefix.rstrip('/'))}(?<tail>/[^?]*)"
        return self.variable("path", "$request_uri", [f'{_pattern(regex)} "{_quoted(base)[1:-1]}$tail"', f"default {_quoted(base or '/')}"])


def _raw(text: str) -> str:
    """In quotes, its variables alive."""
    return f'"{text}"'


def _regex(m: Match, headers: list[str]) -> str:
    """The pattern of a match over the joined string: method, each header, the parameters, the path."""
    wanted = {c.name.lower(): c for c in m.headers}
    fields = [re.escape(m.method) if m.method else "[^\\n]*"]
    fields += [_value(wanted[h]) if h in wanted else "[^\\n]*" for h in headers]
    query = "".join(f"(?=[^\\n]*&{re.escape(c.name)}={_parameter(c)}&)" for c in m.query)
    path = {"exact": f"{re.escape(m.path)}\\z", "prefix": f"{re.escape(m.path)}(?:/|\\z)", "regex": f"(?:{m.path})\\z"}[m.kind]
    return "^" + "\\n".join([*fields, f"{query}[^\\n]*", path])


def _value(c: Condition) -> str:
    return f"(?:{c.value})" if c.regex else re.escape(c.value)


def _parameter(c: Condition) -> str:
    """As it may stand in a URL: plain, or with characters escaped."""
    return f"(?:{c.value})" if c.regex else f"(?:{re.escape(c.value)}|{re.escape(quote(c.value, safe=''))})"
