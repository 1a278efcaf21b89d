"""An nginx that tells what reached it, and the asking by a host's name: what the tests of Ingress and Gateways share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

_POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {0}, labels: {{app: {0}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: nginx
    command:
    - sh
    - -c
    - |
      echo 'server {{ listen 80; location / {{ {2} return 200 "{0} $request_uri {1}\\n"; }} }}' > /etc/nginx/conf.d/default.conf
      exec nginx -g 'daemon off;'
    readinessProbe: {{httpGet: {{port: 80}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {0}}}
spec: {{selector: {{app: {0}}}, ports: [{{name: http, port: 80}}]}}
"""


def speakers(*names: str, says: str, before: str = "") -> str:
    """A pod and a service for each name; it answers its name, the path and `says` (nginx' variables), after the directives `before`."""
    return "---".join(_POD.format(name, says, before) for name in names)


def curl(address: str, host: str, path: str, *flags: str, port: int, scheme: str = "http") -> str:
    """The answer's body and code, asked at an address by a host's name; "000" where there is no answer."""
    return subprocess.run(["curl", "-s", "-m", "5", "-w", "%{http_code}", "--resolve", f"{host}:{port}:{address}", *flags,
                           f"{scheme}://{host}:{port}{path}"], capture_output=True, text=True, check=False).stdout


def steady(cluster: Any, answered: Callable[[], bool], what: str) -> None:
    """Waits until it holds several times in a row: either node's proxy may answer, and each learns of a change by itself."""
    cluster.until(lambda: all(answered() for _ in range(6)), what)
