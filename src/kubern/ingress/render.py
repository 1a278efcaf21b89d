"""Render: a Plan as nginx' configuration. Pure: the same plan gives the same text.

Text from users reaches the configuration only as host names (validated by the API, and again here) and as paths of a narrow alphabet in
quotes. A Prefix path needs two locations: itself, and everything below it. One address stands several times in an upstream so that a refused
connection is tried again: behind it the node's proxy picks another endpoint. Written for nginx 1.22 and later.
"""

from __future__ import annotations

import re

from kubern.ingress.routes import Backend, Location, Plan, Site

FOLDER = "/etc/kubern-ingress"
HTTP, HTTPS, HEALTH = 80, 443, 10254
TRIES = 3
HOST = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

_HEAD = f"""# Made by kubern from Ingress objects; changes are lost.
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
  proxy_set_header Host $http_host;
  proxy_set_header X-Request-ID $request_name;
  proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Host $http_host;
  proxy_set_header X-Forwarded-Port $server_port;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header X-Forwarded-Scheme $scheme;
  proxy_set_header X-Scheme $scheme;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:tls:4m;
  ssl_session_timeout 10m;
  server {{
    listen {HEALTH};
    location / {{ return 404; }}
    location = /healthz {{ return 200; }}
  }}
"""


def nginx(plan: Plan) -> str:
    """The whole nginx.conf. Certificates are files FOLDER/NAME.crt and .key."""
    backends: dict[str, Backend] = {}
    for site in plan.sites:
        for row in site.locations:
            if row.backend is not None and row.backend.servers:
                backends[row.backend.id] = row.backend
    out = [_HEAD]
    out += [_upstream(backends[i]) for i in sorted(backends)]
    if not any(s.host == "" for s in plan.sites):
        out.append(f"  server {{\n    listen {HTTP} default_server;\n    location / {{ return 404; }}\n  }}\n")
    if not any(s.host == "" and s.certificate for s in plan.sites):
        out.append(f"  server {{\n    listen {HTTPS} ssl default_server;\n    ssl_reject_handshake on;\n  }}\n")
    out += [_server(s) for s in plan.sites if s.host == "" or HOST.fullmatch(s.host)]
    return "".join(out) + "}\n"


def _upstream(b: Backend) -> str:
    servers = b.servers * TRIES if len(b.servers) == 1 else b.servers
    lines = "".join(f"    server {s} max_fails=0;\n" for s in servers)
    return f"  upstream {b.id} {{\n{lines}  }}\n"


def _server(s: Site) -> str:
    default = " default_server" if s.host == "" else ""
    plain = [f"    listen {HTTP}{default};\n"]
    secure = [f"    listen {HTTPS} ssl{default};\n", f"    ssl_certificate {FOLDER}/{s.certificate}.crt;\n",
              f"    ssl_certificate_key {FOLDER}/{s.certificate}.key;\n"]
    names = [f"    server_name {_name(s.host)};\n"] if s.host else []
    exact = {row.path for row in s.locations if row.exact}
    body = [_location(row, row.path in exact) for row in s.locations]
    if not s.certificate:
        return _block([*plain, *names, *body])
    if s.redirect:
        go = ["    location / { return 308 https://$host$request_uri; }\n"]
        return _block([*plain, *names, *go]) + _block([*secure, *names, *body])
    return _block([*plain, *secure, *names, *body])


def _block(lines: list[str]) -> str:
    return "  server {\n" + "".join(lines) + "  }\n"


def _name(host: str) -> str:
    """A wildcard stands for one label; nginx' own would take several."""
    return host if not host.startswith("*.") else f'"~^[^.]+\\.{re.escape(host[2:])}$"'


def _location(row: Location, taken: bool) -> str:
    """`taken`: an Exact path has the very text of this Prefix."""
    action = "return 404;" if row.backend is None else "return 503;" if not row.backend.servers else f"proxy_pass http://{row.backend.id};"
    if row.exact:
        return f'    location = "{row.path}" {{ {action} }}\n'
    if row.path == "":
        return f"    location / {{ {action} }}\n"
    below = f'    location "{row.path}/" {{ {action} }}\n'
    return below if taken else f'    location = "{row.path}" {{ {action} }}\n{below}'
