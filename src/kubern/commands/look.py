"""What runs, why a pod waits, what the logs say."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from kubern.commands.terminal import ask, say
from kubern.config import Settings
from kubern.daemon import running_pid, saved, tail


def status(s: Settings) -> int:
    """Print what runs; exit code 0 if the API server answers."""
    from kubern.model.object import condition
    from kubern.model.resources import by_kind

    pid = running_pid(s.home)
    if not pid:
        say(f"no cluster is running in {s.data_dir}; start one with: kubern up")
        return 1
    say(f"control plane   process {pid}, {resident_mb(pid):.0f} MB, port {saved(s.home).get('port')}, data in {s.data_dir}")

    async def look(client: Any) -> Any:
        nodes, _ = await client.list(by_kind[("v1", "Node")])
        pods, _ = await client.list(by_kind[("v1", "Pod")])
        return nodes, pods
    found = ask(s, look)
    if found is None:
        say("the API server does not answer (yet); see: kubern logs")
        return 1
    nodes, pods = found
    for n in nodes:
        name = n["metadata"]["name"]
        ready = (condition(n, "Ready") or {}).get("status") == "True"
        here = [p for p in pods if (p.get("spec") or {}).get("nodeName") == name]
        running = sum((p.get("status") or {}).get("phase") == "Running" for p in here)
        say(f"node {name:<15}{'Ready' if ready else 'NotReady':<10}{running} of {len(here)} pods running")
    if not nodes:
        say("no nodes; add one with: kubern node add")
    waiting = sum(not (p.get("spec") or {}).get("nodeName") for p in pods)
    if waiting:
        say(f"{waiting} pods wait for a node; ask why with: kubern why pod/NAME")
    return 0


def resident_mb(pid: int) -> float:
    """Memory of a process, in MB."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        return 0.0


def why(s: Settings, what: str, namespace: str) -> int:
    """Print why a pod is not placed."""
    kind, _, name = what.rpartition("/")
    if kind not in ("", "pod", "pods", "po"):
        say(f"kubern: why answers for pods, not {what!r}; for example: kubern why pod/web")
        return 1
    found = ask(s, lambda client: client.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}/why"))
    if not found:
        if not running_pid(s.home):
            say(f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up")
        else:
            say(f"kubern: there is no pod {name} in namespace {namespace}; see: kubern kubectl get pods -A")
        return 1
    say(found["text"])
    return 0


def logs(s: Settings, component: str, follow: bool, lines: int) -> int:
    """Print the end of a component's log."""
    if component == "control-plane":
        path = s.home / "kubern.log"
    else:
        files = sorted((s.home / "nodes" / component / "logs").glob("*.log"), key=lambda p: p.stat().st_mtime)
        agent = [p for p in files if p.name == "agent.log"]
        path = agent[0] if agent else files[-1] if files else s.home / "nodes" / component / "logs" / "agent.log"
    if not path.exists():
        known = ["control-plane", *(p.name for p in sorted((s.home / "nodes").glob("*")))]
        say(f"kubern: no log at {path}; there are logs of {', '.join(known)} (a cluster in the foreground logs to its terminal)")
        return 1
    say(tail(path, lines))
    if follow:
        try:
            with open(path, errors="replace") as f:
                f.seek(0, os.SEEK_END)
                while True:
                    line = f.readline()
                    if line:
                        print(line, end="", flush=True)
                    else:
                        time.sleep(0.2)
        except KeyboardInterrupt:
            pass
    return 0
