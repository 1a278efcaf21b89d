"""The example everybody starts with: nginx and redis in one pod over localhost, three replicas, a Service, and a client that asks it by name.

Uses the real kubectl, as the reader will. Not part of the cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from shutil import which

from kubern.commands.terminal import say
from kubern.config import Settings
from kubern.daemon import running_pid, saved

READY_TIMEOUT_S = 180


def kubectl_binary() -> str:
    """The kubectl installed beside this Python, or the one on PATH; "" if there is none."""
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else which("kubectl") or ""


def run(s: Settings) -> int:
    """Apply the example, wait for it, show it. Returns the exit code."""
    binary = kubectl_binary()
    if not binary:
        say("kubern: the example needs kubectl; get it with: pip install 'kubern[kubectl]'")
        return 1
    if not running_pid(s.home):
        say(f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up --nodes 2 --detach")
        return 1
    env = {**os.environ, "KUBECONFIG": str(s.home / "admin.kubeconfig")}

    def kubectl(*args: str, show: bool = True, stdin: str = "") -> tuple[int, str]:
        if show:
            say(f"$ kubectl {' '.join(args)}")
        done = subprocess.run([binary, *args], env=env, input=stdin or None, capture_output=True, text=True)
        if show:
            say((done.stdout + done.stderr).rstrip())
        return done.returncode, done.stdout

    began = time.monotonic()
    say("\nthe example: a Deployment of nginx + redis pods that share a volume, behind a Service")
    code, _ = kubectl("apply", "-f", "-", stdin=(files("kubern") / "examples" / "web.yaml").read_text())
    if code:
        return code
    for what in ("deployment/web", "pod/client"):
        say(f"waiting for {what} …")
        wait = ["rollout", "status", what] if what.startswith("deployment") else ["wait", "--for=condition=Ready", what]
        code, _ = kubectl(*wait, f"--timeout={READY_TIMEOUT_S}s", show=False)
        if code:
            say(f"kubern: {what} did not become ready; what the cluster says of it:")
            kubectl("get", "pods", "-o", "wide")
            kubectl("events")
            return code
    kubectl("get", "nodes")
    kubectl("get", "pods", "-o", "wide")
    if saved(s.home).get("runtime") == "simulated":
        say("\nthese nodes are simulated: the pods are Running in the API, but no container answers")
    else:
        say("\nfrom the client pod, through the Service, by its name:")
        code, _ = kubectl("exec", "client", "--", "wget", "-qO-", "http://web")
        if code:
            return code
    say(f"""
the example took {time.monotonic() - began:.1f} s. Next, try:
  kubern kubectl get pods -o wide                     where everything runs
  kubern kubectl scale deployment/web --replicas=6    more of it
  kubern kubectl logs -f deployment/web -c nginx      what it says
  kubern kubectl delete pod -l app=web                it heals itself
  kubern down                                         take all of it away""")
    return 0
