"""Unit: the supervisor of a node unit, PID 1 of its pid namespace (`kubern _node CONFIG.json`, a hidden command).

It waits for its network interface, sets it up, then keeps two children alive: containerd, and the agent (kubelet, proxy and
node-local DNS in one Python process). It reaps orphans (shims of a dead containerd), starts the agent anew on SIGHUP (after an upgrade)
and ends on SIGTERM. Its death ends everything in the unit: that is the pid namespace's work. Only the standard library is imported
here: it lives as long as the node does. Not how a unit is made or unmade: that is node.py, outside of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

INTERFACE = "eth0"
LINK_WAIT_S = 10.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 10.0
STEADY_S = 30.0                        # a child that lived this long starts again without waiting
STOP_S = 5.0
LOG_BYTES_MAX = 16 << 20
LOG_CHECK_S = 30.0
_PR_SET_CHILD_SUBREAPER = 36
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
# where programs in pods (log collectors, CSI drivers) look for a node's files, and where they are below data_dir
FOLDERS = (("/var/lib/kubelet", "kubelet"), ("/var/log/pods", "pods"), ("/var/log/containers", "container-logs"))
SHUTDOWN_FILE = "shutdown_s"           # in run_dir: seconds the agent takes to end the pods when the node goes


@dataclass(frozen=True, slots=True)
class UnitConfig:
    """All a unit knows of itself; CONFIG.json is this as a JSON object. Paths are absolute."""

    name: str                          # the Node's name
    cluster: str                       # short id of the cluster, part of every name made outside the unit
    run_dir: str                       # short: sockets live here (a unix socket path has at most 107 characters)
    data_dir: str                      # what outlives the unit: images, logs, volumes
    address: str                       # the node's address on the fabric
    prefix: int                        # of the fabric's subnet
    gateway: str                       # the fabric's address of the machine itself
    mtu: int
    pod_cidr: str                      # of the whole cluster, comma separated when dual stack
    service_cidr: str
    cluster_dns: str
    cluster_domain: str
    registry: str                      # URL of the cluster's registry; "" = containerd asks the real ones
    sandbox_image: str
    cgroup_root: str                   # cgroups of its pods lie below
    server: str                        # the API server as the unit reaches it
    kubeconfig: str                    # the node's own credentials
    network_kubeconfig: str            # those of its proxy and DNS (network.py access)
    containerd: tuple[str, ...]        # argv
    agent: tuple[str, ...]             # argv; the path of CONFIG.json is appended
    host: bool = False                 # the machine itself is the node: no namespaces, no fabric
    labels: dict[str, str] = field(default_factory=dict)
    log_level: str = "info"
    lease_s: float = 40.0              # of the node's lease; shorter than the control plane's patience
    taints: tuple[str, ...] = ()
    address6: str = ""                 # dual stack: address with prefix length
    gateway6: str = ""
    serving_csr: bool = False          # the kubelet's serving certificate is signed by the cluster

    @property
    def socket(self) -> str:
        return f"{self.run_dir}/containerd.sock"

    def dump(self) -> str:
        return json.dumps(asdict(self), indent=1)


def read_config(path: str) -> UnitConfig:
    doc = json.loads(Path(path).read_text())
    for name in ("containerd", "agent", "taints"):
        doc[name] = tuple(doc.get(name) or ())
    return UnitConfig(**doc)


@dataclass(slots=True)
class Child:
    """A process that is started again when it ends."""

    name: str
    argv: tuple[str, ...]
    log: str
    pid: int = 0
    started_s: float = 0.0
    start_at_s: float = 0.0
    backoff_s: float = BACKOFF_FIRST_S


def supervise(args: list[str]) -> int:
    """The hidden command's body. Returns the exit code."""
    config = read_config(args[0])
    watched = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    os.chdir("/")
    if config.host:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    else:
        socket.sethostname(config.name)                   # pods of the host's network see it
        set_up_network(config)
    set_up_folders(config)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    logs = Path(config.data_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "TMPDIR": f"{config.run_dir}/tmp", "KUBERN_NODE_CONFIG": args[0],
           "GRPC_ENABLE_FORK_SUPPORT": "0"}                             # the agent forks only to exec; grpc need not watch that
    Path(env["TMPDIR"]).mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(config.socket)                                        # of the unit's last life
    children = [Child("containerd", config.containerd, str(logs / "containerd.log")),
                Child("agent", (*config.agent, args[0]), str(logs / "agent.log"))]
    return keep(children, env, watched, str(logs / "unit.log"), args[0])


def set_up_folders(config: UnitConfig) -> None:
    """The kubelet's files where everybody expects them. On a machine that is itself the node, only where nobody else has any."""
    libc = ctypes.CDLL(None, use_errno=True)
    for usual, ours in FOLDERS:
        source = Path(config.data_dir) / ours
        source.mkdir(parents=True, exist_ok=True)
        at = Path(usual)
        at.mkdir(parents=True, exist_ok=True)
        if at.samefile(source) or (config.host and any(at.iterdir())):
            continue
        if libc.mount(str(source).encode(), usual.encode(), None, _MS_BIND | _MS_REC, None) == 0:
            libc.mount(None, usual.encode(), None, _MS_SHARED | _MS_REC, None)


def set_up_network(config: UnitConfig) -> None:
    """Waits for the interface that node.py moves in, and gives it address and route."""
    end = time.monotonic() + LINK_WAIT_S
    while True:
        try:
            socket.if_nametoindex(INTERFACE)
            break
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(f"no interface {INTERFACE} after {LINK_WAIT_S:.0f} s") from None
            time.sleep(0.002)
    lines = [f"addr add {config.address}/{config.prefix} dev {INTERFACE}", f"link set {INTERFACE} mtu {config.mtu} up",
             "link set lo up", f"route add default via {config.gateway}"]
    if config.address6:
        lines += [f"addr add {config.address6} dev {INTERFACE} nodad", f"route add ::/0 via {config.gateway6}"]
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"cannot set up {INTERFACE}: {done.stderr.strip()}")
    conf = Path("/proc/sys/net")
    for name, value in (("ipv6/conf/all/forwarding", "1"), ("bridge/bridge-nf-call-iptables", "1"),
                        ("bridge/bridge-nf-call-ip6tables", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")):
        with contextlib.suppress(OSError):                              # a kernel without br_netfilter, or without IPv6
            (conf / name).write_text(value)


def keep(children: list[Child], env: dict[str, str], watched: tuple[signal.Signals, ...], log: str, config_path: str) -> int:
    """Starts the children, starts them again, reaps what the namespace leaves to PID 1; returns when told to stop."""
    def say(text: str) -> None:
        with open(log, "a") as f:
            f.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")

    next_log_check_s = 0.0
    while True:
        now = time.monotonic()
        for c in children:
            if not c.pid and now >= c.start_at_s:
                c.pid, c.started_s = start(c, env, watched), now
                say(f"started {c.name}, pid {c.pid}")
        if now >= next_log_check_s:
            next_log_check_s = now + LOG_CHECK_S
            for path in (*(c.log for c in children), log):
                rotate(path)
        waiting = [c.start_at_s - now for c in children if not c.pid]
        got = signal.sigtimedwait(watched, max(0.0, min([LOG_CHECK_S, *waiting])))
        if got is None:
            continue
        if got.si_signo == signal.SIGHUP:
            say("SIGHUP: starting the agent anew")
            for c in children:
                if c.name == "agent" and c.pid:
                    with contextlib.suppress(OSError, ValueError, TypeError):
                        c.argv = (*read_config(config_path).agent, config_path)
                    c.started_s -= STEADY_S                             # it is not to blame: no backoff
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(c.pid, signal.SIGTERM)
        elif got.si_signo != signal.SIGCHLD:
            say(f"signal {got.si_signo}: stopping")
            end_pods(children, watched, Path(config_path).parent / SHUTDOWN_FILE)
            stop(children, watched)
            return 0
        for pid, status in reap():
            for c in children:
                if c.pid == pid:
                    now = time.monotonic()
                    lived_s = now - c.started_s
                    c.backoff_s = BACKOFF_FIRST_S if lived_s >= STEADY_S else min(c.backoff_s * 2, BACKOFF_MAX_S)
                    c.pid, c.start_at_s = 0, now + (0 if lived_s >= STEADY_S else c.backoff_s)
                    say(f"{c.name} ended with {os.waitstatus_to_exitcode(status)} after {lived_s:.1f} s")


def start(c: Child, env: dict[str, str], watched: tuple[signal.Signals, ...]) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
               (os.POSIX_SPAWN_OPEN, 1, c.log, flags, 0o640), (os.POSIX_SPAWN_DUP2, 1, 2)]
    path = c.argv[0] if "/" in c.argv[0] else shutil.which(c.argv[0]) or c.argv[0]
    try:
        return os.posix_spawn(path, c.argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=watched)
    except OSError as e:
        raise SystemExit(f"cannot start {c.name}: {e}") from None


def reap() -> list[tuple[int, int]]:
    """(pid, status) of every child that has ended, adopted ones included."""
    out = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            out.append((pid, status))
    return out


def end_pods(children: list[Child], watched: tuple[signal.Signals, ...], seconds_file: Path) -> None:
    """Lets the agent end the node's pods in order, for as long as its configuration says."""
    agent = next((c for c in children if c.name == "agent" and c.pid), None)
    try:
        seconds = int(seconds_file.read_text())
    except (OSError, ValueError):
        seconds = 0
    if agent is None or not seconds:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(agent.pid, signal.SIGUSR1)
    await_end(agent, watched, seconds + STOP_S)


def await_end(c: Child, watched: tuple[signal.Signals, ...], seconds: float) -> None:
    end = time.monotonic() + seconds
    while c.pid and time.monotonic() < end:
        signal.sigtimedwait(watched, 0.2)
        if any(pid == c.pid for pid, _ in reap()):
            c.pid = 0


def stop(children: list[Child], watched: tuple[signal.Signals, ...]) -> None:
    """The agent first, so that it can say goodbye while its runtime still answers; then containerd."""
    for c in reversed(children):
        if not c.pid:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(c.pid, signal.SIGTERM)
        await_end(c, watched, STOP_S)
        if c.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(c.pid, signal.SIGKILL)


def rotate(path: str) -> None:
    """Copies a log that has grown too large aside and truncates it; its writers append, so they go on at its start."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(path) > LOG_BYTES_MAX:
            shutil.copyfile(path, path + ".1")
            os.truncate(path, 0)


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
