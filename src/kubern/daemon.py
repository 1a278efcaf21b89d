"""The cluster as a process on this machine: start it, find it, wait for it, stop it. Not what runs inside: that is cluster.py.

The running process holds a lock on D/kubern.lock, so "is it running" is never guessed from a stale pid. Progress goes from the
background process to the waiting command through a pipe: one line a step, "ready" at the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kubern.config import Settings

READY_TIMEOUT_S = 180
STOP_TIMEOUT_S = 20
END_WAIT_S = 12.0                      # for a process that gave up starting to be gone


def say(text: str) -> None:
    print(text, flush=True)


# --- who runs ---------------------------------------------------------------------------------------------------------

class Running(Exception):
    """Another process runs this cluster; `pid` is its id."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"already running as process {pid}")
        self.pid = pid


def lock(home: Path) -> int:
    """Take the cluster's lock for this process and write our pid into it; returns the descriptor to keep open. Raises Running."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(home / "kubern.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = int(os.read(fd, 32) or b"0")
        os.close(fd)
        raise Running(pid) from None
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def running_pid(home: Path) -> int:
    """The pid of the process that runs this cluster, 0 if none does."""
    try:
        fd = os.open(home / "kubern.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return int(os.read(fd, 32) or b"0")
    else:
        return 0
    finally:
        os.close(fd)


def saved(home: Path) -> dict[str, Any]:
    """The settings the cluster was last started with (D/cluster.json), {} if never."""
    try:
        return json.loads((home / "cluster.json").read_text())
    except (OSError, ValueError):
        return {}


def progress() -> Any:
    """The function that reports a step: to the waiting command when there is one, else to our own output."""
    fd = os.environ.pop("KUBERN_NOTIFY_FD", "")
    if not fd:
        return say
    pipe = os.fdopen(int(fd), "w", buffering=1)
    os.set_inheritable(pipe.fileno(), False)

    def tell(text: str) -> None:
        try:
            pipe.write(text + "\n")
        except (OSError, ValueError):                        # the waiting command has gone; nobody listens any more
            return
        if text == "ready":
            pipe.close()
    return tell


# --- commands ---------------------------------------------------------------------------------------------------------

def up(s: Settings, *, detach: bool, merge: bool) -> int:
    """Start the cluster in this process, or in the background. Returns the exit code."""
    try:
        s.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(s.home, os.W_OK | os.X_OK):
            raise PermissionError(f"{s.home} is not writable")
    except OSError as e:
        say(f"kubern: the data directory cannot be used ({e}); choose another with --data-dir")
        return 1
    pid = running_pid(s.home)
    if pid:
        say(f"the cluster in {s.data_dir} is already running (process {pid})")
        return ensure_nodes(s)
    if not detach:
        return run_here(s)
    code = start_background(s)
    if code == 0 and merge:
        merge_context(s)
    return code


def run_here(s: Settings) -> int:
    """The cluster in this process, under its lock, until it is told to stop."""
    from kubern import cluster

    try:
        held = lock(s.home)
    except Running as e:
        say(f"kubern: {e}")
        return 1
    try:
        return cluster.run(s, progress())
    finally:
        os.close(held)


def merge_context(s: Settings) -> None:
    """Add this cluster's context to the user's own kubeconfig, the first file of KUBECONFIG, and say so."""
    import yaml

    from kubern.pki import merge_kubeconfig

    target = Path((os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")).split(os.pathsep)[0])
    config = yaml.safe_load((s.home / "admin.kubeconfig").read_text())
    merge_kubeconfig(target, config)
    say(f"context {config['current-context']} is now in {target}")


def start_background(s: Settings) -> int:
    """Start `kubern up` as a process of its own session and wait until it reports ready."""
    s.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    read, write = os.pipe()
    log = open(s.home / "kubern.log", "ab")                  # noqa: SIM115  (the child keeps it)
    before = log.tell()
    os.chmod(s.home / "kubern.log", 0o600)
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "kubern", "_up", s.data_dir], stdin=subprocess.PIPE, stdout=log, stderr=log,
                             start_new_session=True, pass_fds=[write], env={**os.environ, "KUBERN_NOTIFY_FD": str(write)})
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(s)).encode())
    child.stdin.close()
    os.close(write)
    log.close()
    for line in _lines(read, began + READY_TIMEOUT_S):
        if line == "ready":
            say(f"ready in {time.monotonic() - began:.1f} s; kubeconfig: {s.home / 'admin.kubeconfig'}")
            return 0
        say(f"  {time.monotonic() - began:5.1f} s  {line}")
    try:
        code = child.wait(max(0.1, min(END_WAIT_S, began + READY_TIMEOUT_S - time.monotonic())))
    except subprocess.TimeoutExpired:
        code = None
    other = running_pid(s.home)
    if code is not None and other:                            # started by somebody else at the same moment
        say(f"the cluster in {s.data_dir} is already running (process {other})")
        return 0
    say(f"kubern: the cluster {'ended while starting' if code is not None else 'did not become ready in time'}; the end of {s.home / 'kubern.log'}:")
    say(tail(s.home / "kubern.log", 15, before))
    return 1


def _lines(fd: int, deadline: float) -> Iterator[str]:
    """Lines from a pipe until it closes or the time is over."""
    import select

    left = b""
    while (wait := deadline - time.monotonic()) > 0:
        if not select.select([fd], [], [], wait)[0]:
            return
        data = os.read(fd, 65536)
        if not data:
            return
        *whole, left = (left + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def tail(path: Path, lines: int, start: int = 0) -> str:
    """The last lines of a file, of what comes after `start` bytes; "" if there is none."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(min(start, f.tell()), f.tell() - lines * 400))
            return b"\n".join(f.read().splitlines()[-lines:]).decode(errors="replace")
    except OSError:
        return ""


def stop_process(home: Path) -> bool:
    """End the process that runs this cluster; True if there was one."""
    pid = running_pid(home)
    if not pid:
        return False
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_TIMEOUT_S
    while running_pid(home) == pid:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end += STOP_TIMEOUT_S
        time.sleep(0.02)
    return True


def down(s: Settings, *, purge: bool) -> int:
    """Stop everything of this cluster on this machine, and with `purge` forget it."""
    there = stop_process(s.home)
    if os.geteuid() == 0 and s.home.exists():
        from kubern.kubelet import node

        for u in node.list_units(s.home):
            say(f"  stopping {u.name}")
            node.destroy_unit(s.home, u.name, purge=purge)
            there = True
        for name in (p.parent for p in s.home.glob("nodes/*/killed")):
            (name / "killed").unlink()
        there = bool(node.cleanup_stale(s.home)) or there
    if purge and s.home.exists():
        import shutil

        shutil.rmtree(s.home)
        say(f"{s.data_dir} is deleted")
    elif there:
        say(f"the cluster is down; its data stays in {s.data_dir} (kubern down --purge deletes it)")
    else:
        say(f"no cluster is running in {s.data_dir}")
    return 0


# --- looking ----------------------------------------------------------------------------------------------------------

def admin(s: Settings) -> Any:
    """(client, close) of the running cluster as its admin; None if there is none."""
    from kubern.client.client import Client
    from kubern.client.kubeconfig import sender_of

    path = s.home / "admin.kubeconfig"
    if not path.exists():
        return None
    sender = sender_of(path)
    return Client(sender.send, agent="kubern"), sender.close


def ask(s: Settings, question: Any) -> Any:
    """`await question(client)` against the running cluster; None if nothing answers."""
    import asyncio

    async def run() -> Any:
        made = admin(s)
        if made is None:
            return None
        client, close = made
        try:
            return await question(client)
        finally:
            await close()
    from kubern.model.status import StatusError

    try:
        return asyncio.run(run())
    except (StatusError, OSError):
        return None


def resident_mb(pid: int) -> float:
    """Memory of a process, in MB."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        return 0.0


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


# --- nodes ------------------------------------------------------------------------------------------------------------

def as_started(s: Settings) -> Settings:
    """The settings the running cluster was started with."""
    from dataclasses import fields, replace

    old = saved(s.home)
    return replace(s, **{f.name: old[f.name] for f in fields(Settings) if f.name in old and f.name != "data_dir"})


def ensure_nodes(s: Settings) -> int:
    """`up` on a running cluster: add the nodes that are asked for and not there."""
    from kubern.kubelet import node

    running = as_started(s)
    if s.runtime != "containerd" or running.runtime != "containerd" or os.geteuid() != 0:
        return 0
    have = {u.name for u in node.list_units(s.home) if u.alive()}
    for name in (f"{running.node_prefix}{i}" for i in range(s.nodes)):
        if name not in have and node_add(s, name):
            return 1
    return 0


def node_list(s: Settings) -> int:
    from kubern.kubelet import node

    units = node.list_units(s.home)
    for u in units:
        state = "running" if u.alive() else "not running"
        say(f"{u.name:<16}{state:<13}{u.config.address:<16}process {u.pid}")
    if not units:
        say("no node units on this machine; add one with: kubern node add")
    return 0


def node_add(s: Settings, name: str = "") -> int:
    """Create a unit and wait until its Node is Ready."""
    from kubern import cluster, pki
    from kubern.kubelet import fabric, node
    from kubern.model.object import condition
    from kubern.model.resources import by_kind

    if not running_pid(s.home):
        say(f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up")
        return 1
    s = as_started(s)
    if not (s.home / "fabric.json").exists():
        say("kubern: this cluster was started without real nodes; start it again with: kubern up --nodes 1")
        return 1
    units = {u.name: u for u in node.list_units(s.home)}
    if name in units and units[name].alive():
        say(f"{name} is already running")
        return 0
    name = name or next(n for n in (f"{s.node_prefix}{i}" for i in range(10_000)) if n not in units and not (s.home / "nodes" / n / "killed").exists())
    began = time.monotonic()
    try:
        f = fabric.ensure(fabric.cluster_id(s.home), s.home / "fabric.json", s.pod_cidr, s.service_cidr)
        s = replace(s, pod_cidr=f.pod_cidr)
        node.create_unit(cluster.unit_settings(s, pki.ensure(s.home / "pki", **_names(s)), f.gateway, name), wait=False)
    except node.CannotRun as e:
        say(f"kubern: {e}")
        return 1
    (s.home / "nodes" / name / "killed").unlink(missing_ok=True)

    async def ready(client: Any) -> bool:
        n = await client.get(by_kind[("v1", "Node")], "", name)
        return (condition(n, "Ready") or {}).get("status") == "True"
    while not ask(s, ready):
        if time.monotonic() - began > READY_TIMEOUT_S:
            say(f"kubern: {name} did not become Ready; see: kubern logs {name}")
            return 1
        time.sleep(0.1)
    say(f"{name} is Ready after {time.monotonic() - began:.1f} s")
    return 0


def _names(s: Settings) -> dict[str, Any]:
    """The names already in the serving certificate, so that it is not made anew."""
    from cryptography import x509

    cert = x509.load_pem_x509_certificate((s.home / "pki" / "apiserver.crt").read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {"dns": names.get_values_for_type(x509.DNSName), "ips": [str(i) for i in names.get_values_for_type(x509.IPAddress)]}


def node_remove(s: Settings, name: str, kill: bool) -> int:
    """Drain and remove a node, or kill it as a power cut would."""
    from kubern.kubelet import node
    from kubern.model.resources import by_kind

    if name not in {u.name for u in node.list_units(s.home)}:
        say(f"kubern: there is no node unit {name}; see: kubern node list")
        return 1
    if kill:
        (s.home / "nodes" / name / "killed").touch()
        node.destroy_unit(s.home, name, kill=True)
        say(f"{name} is killed; its Node turns NotReady when its lease runs out")
        return 0
    row = by_kind[("v1", "Node")]
    say(f"draining {name}")
    ask(s, lambda client: drain(client, name))
    node.destroy_unit(s.home, name, purge=True)
    ask(s, lambda client: client.delete(row, "", name))
    say(f"{name} is removed")
    return 0


DRAIN_TIMEOUT_S = 60.0


async def drain(client: Any, name: str) -> None:
    """Cordon a node and evict its pods, DaemonSets' aside, waiting while budgets hold; gives up after DRAIN_TIMEOUT_S."""
    import asyncio

    from kubern.model.object import controller_of, meta
    from kubern.model.resources import by_kind
    from kubern.model.status import StatusError

    pod = by_kind[("v1", "Pod")]
    await client.patch(by_kind[("v1", "Node")], "", name, {"spec": {"unschedulable": True}})
    end = time.monotonic() + DRAIN_TIMEOUT_S
    while time.monotonic() < end:
        items, _ = await client.list(pod, fields=f"spec.nodeName={name}")
        left = [p for p in items if (controller_of(p) or {}).get("kind") != "DaemonSet" and (p.get("status") or {}).get("phase") not in
                ("Succeeded", "Failed")]
        if not left:
            return
        for p in left:
            m = meta(p)
            if m.get("deletionTimestamp"):
                continue
            try:
                await client.create_in(pod, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": m["name"], "namespace": m["namespace"]}},
                                       name=m["name"], subresource="eviction")
            except StatusError as e:
                if e.code not in (404, 429):
                    raise
        await asyncio.sleep(0.2)
    say(f"not all pods left {name} in {DRAIN_TIMEOUT_S:.0f} s; taking it away nevertheless")


# --- images -----------------------------------------------------------------------------------------------------------

def _library(s: Settings) -> Any:
    from kubern.images.library import Library

    return Library(s.home / "images")


def image_build(s: Settings) -> int:
    from kubern.images import build

    try:
        names = build.ensure(_library(s), progress=lambda text: say(f"  {text}"))
    except build.CannotBuild as e:
        say(f"kubern: {e}")
        return 1
    say(f"built {', '.join(names)}" if names else "the demo images are there already")
    return 0


def image_import(s: Settings, file: Path) -> int:
    from kubern.images.library import BadArchive

    try:
        names = _library(s).import_archive(file)
    except (BadArchive, OSError) as e:
        say(f"kubern: {e}")
        return 1
    for n in names:
        say(n)
    return 0


def image_list(s: Settings) -> int:
    images = _library(s).images()
    if not images:
        say("no images here yet; make the demo's with: kubern image build, or bring some with: kubern image import FILE")
    for i in images:
        say(f"{i.name:<50}{i.size / 1e6:8.1f} MB  {','.join(i.architectures)}  {i.digest[:19]}")
    return 0
