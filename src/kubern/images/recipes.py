"""Recipes: what the images of `kubern image build` are made of. Tables; build.py cooks them.

Packages are Debian's; layers are shared, so three images cost one C library. No maintainer scripts run: what they would have
made (configuration, users, directories) stands here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from kubern.images.oci import PATH

PAUSE = "localhost/kubern/pause:1"

USERS = (b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n"
         b"redis:x:101:101::/var/lib/redis:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
GROUPS = b"root:x:0:\nadm:x:4:\nwww-data:x:33:\nredis:x:101:\nnogroup:x:65534:\n"
WELCOME = b"<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n"
NGINX_CONF = b"""user www-data;
worker_processes 1;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
  include mime.types;
  default_type application/octet-stream;
  access_log /var/log/nginx/access.log combined;
  sendfile on;
  include conf.d/*.conf;
}
"""
NGINX_SITE = b"""server {
  listen 80;
  listen [::]:80;
  server_name localhost;
  location / { root /usr/share/nginx/html; index index.html; }
}
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """Packages unpacked over each other, then directories, files and links of our own (ours win)."""

    name: str
    packages: tuple[str, ...] = ()
    dirs: tuple[tuple[str, int], ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    special: str = ""                      # "pause" or "busybox": made by build.py itself


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str                              # full image name
    layers: tuple[Layer, ...]
    config: dict[str, Any] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()    # () = that of this machine

    def key(self) -> str:
        """Changes when the recipe does; an image in the library with the same key need not be built again."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


_PAUSE = Layer("pause", special="pause")
_BUSYBOX = Layer("busybox", ("busybox-static",), special="busybox")
_LIBS = Layer("libs", ("libc6", "libcrypt1", "libgcc-s1", "libstdc++6", "zlib1g", "libssl3", "libpcre2-8-0"))
_NGINX = Layer("nginx", ("nginx", "nginx-common"),
               dirs=(("etc/nginx/conf.d", 0o755), ("var/lib/nginx", 0o755), ("var/log/nginx", 0o755)),
               files=(("usr/share/nginx/html/index.html", WELCOME), ("etc/nginx/conf.d/default.conf", NGINX_SITE),
                      ("etc/nginx/nginx.conf", NGINX_CONF)),
               links=(("var/log/nginx/access.log", "/dev/stdout"), ("var/log/nginx/error.log", "/dev/stderr")))
_REDIS = Layer("redis", ("redis-server", "redis-tools", "libjemalloc2", "liblua5.1-0", "liblzf1", "libatomic1", "lua-bitop", "lua-cjson",
                         "libsystemd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblz4-1", "liblzma5",
                         "libzstd1"), dirs=(("data", 0o777),))
_PYTHON = Layer("python", ("python3", "python3-minimal", "python3.11", "python3.11-minimal", "libpython3.11-minimal",
                           "libpython3.11-stdlib", "libpython3-stdlib", "libbz2-1.0", "liblzma5", "libffi8", "libexpat1", "libsqlite3-0",
                           "libuuid1",
                           "libreadline8", "libncursesw6", "libtinfo6", "media-types", "ca-certificates"))

DEMO = (
    Recipe(PAUSE, (_PAUSE,), {"Entrypoint": ["/pause"], "User": "65535:65535"}, ("amd64", "arm64")),
    Recipe("docker.io/library/busybox:latest", (_BUSYBOX,), {"Cmd": ["sh"], "Env": [PATH]}),
    Recipe("docker.io/library/nginx:latest", (_BUSYBOX, _LIBS, _NGINX),
           {"Cmd": ["nginx", "-g", "daemon off;"], "Env": [PATH], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"}),
    Recipe("docker.io/library/redis:latest", (_BUSYBOX, _LIBS, _REDIS),
           {"Cmd": ["redis-server", "--protected-mode", "no", "--save", ""], "Env": [PATH], "WorkingDir": "/data",
            "ExposedPorts": {"6379/tcp": {}}}),
)
EXTRA = (
    Recipe("docker.io/library/python:3.11", (_BUSYBOX, _LIBS, _PYTHON), {"Cmd": ["python3"], "Env": [PATH, "PYTHONUNBUFFERED=1"]}),
)
