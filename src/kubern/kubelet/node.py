"""Node units from outside: create, adopt, destroy, clean up. A unit is network, mount, hostname and pid namespaces of its own with a
supervisor as PID 1 (unit.py) that runs containerd and the agent, so one machine can hold several real nodes.

A unit is its own session: it outlives the control plane, and is taken up again after a restart by its record,
D/nodes/NAME/unit.json. Killing its `unshare` process kills all of it at once, mounts included; what namespaces cannot take with
them (cgroups, the run directory) is removed here. All functions block for up to some seconds: call them in a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kubern.kubelet import announce, configuration, containerd, fabric
from kubern.kubelet.unit import FOLDERS, SHUTDOWN_FILE, UnitConfig, read_config

RUN = Path("/run/kubern")
CGROUPS = Path("/sys/fs/cgroup")
START_S = 15.0
STOP_S = 12.0
CGROUP_WAIT_S = 5.0
SOCKET_PATH_MAX = 107
_MNT_DETACH = 2


class CannotRun(RuntimeError):
    """This machine cannot hold node units; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that was started: `pid` is its unshare process (the supervisor's parent), `started` tells it from a later process
    of the same number."""

    config: UnitConfig
    pid: int
    started: int
    index: int
    build: str = ""                                # of the code its agent runs

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def netns(self) -> str:
        """A path that setns takes."""
        return f"/proc/{self.pid}/ns/net"

    def alive(self) -> bool:
        return self.started != 0 and _start_time(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """What create_unit needs to know. `home` is the cluster's data directory D."""

    home: Path
    name: str
    server: str                                    # the API server's URL as units reach it: https://GATEWAY:PORT
    kubeconfig: str                                # path of the node's credentials
    network_kubeconfig: str = ""                   # path of those its proxy and DNS use (network.py access); "" = the node's
    registry: str = ""                             # URL of the cluster's registry, http://GATEWAY:PORT
    sandbox_image: str = "localhost/kubern/pause:1"
    pod_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"
    cluster_dns: str = "10.96.0.10"
    cluster_domain: str = "cluster.local"
    labels: dict[str, str] | None = None
    taints: tuple[str, ...] = ()
    log_level: str = "info"
    lease_s: float = 40.0
    cluster: str = ""                              # default: fabric.cluster_id(home)
    host: bool = False                             # the machine itself becomes the node (experimental)
    address: str = ""                              # with host: the node's address
    address6: str = ""                             # and its second one, in a dual-stack cluster
    agent: tuple[str, ...] = ()                    # default: this Python running kubern.agent
    serving_csr: bool = False                      # the kubelet's serving certificate is signed by the cluster


def check_machine() -> None:
    """Raises CannotRun with everything that is missing, and what would bring it."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root")
    tools = {"containerd": "containerd", "runc": "runc", "nft": "nftables", "ip": "iproute2", "unshare": "util-linux"}
    missing += [f"{tool} (package {package})" for tool, package in tools.items() if not _which(tool)]
    if not os.path.exists(f"{containerd.cni_dir()}/bridge"):
        missing.append("CNI plugins (package containernetworking-plugins)")
    if missing:
        raise CannotRun("real nodes need " + ", ".join(missing) + "; without them use --runtime simulated")


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def run_dir(cluster: str, name: str) -> Path:
    return RUN / cluster / name


def cgroup_root(cluster: str, name: str) -> str:
    return f"/kubern/{cluster}/{name}"


# ---- create -----------------------------------------------------------------------------------------------------------------------

def create_unit(s: UnitSettings, wait: bool = True) -> Unit:
    """Starts a unit, or adopts the one of this name that runs; returns when containerd has its socket (with `wait`)."""
    check_machine()
    old = load_unit(s.home, s.name)
    if old and old.alive():
        return _renewed(s, old)
    cluster = s.cluster or fabric.cluster_id(s.home)
    resumes = s.host and _mounts_below(str(run_dir(cluster, s.name)))     # its pods run without it: containerd finds them by its state
    if old and not resumes:
        _clean_unit(cluster, s.name)
    nodes = s.home / "nodes"
    data = nodes / s.name
    data.mkdir(parents=True, exist_ok=True)
    try:
        configuration.read(str(d / "kubelet.yaml") for d in (s.home, data))
    except configuration.BadConfiguration as e:
        raise CannotRun(f"the kubelet's configuration of node {s.name} cannot be used: {e}") from None
    run = run_dir(cluster, s.name)
    if len(f"{run}/containerd.sock.ttrpc") > SOCKET_PATH_MAX:
        raise CannotRun(f"the node's name {s.name} is too long for the path of a unix socket")
    f = None if s.host else fabric.ensure(cluster, s.home / "fabric.json", s.pod_cidr, s.service_cidr)
    index = old.index if old else _index(nodes, s.name)
    if not resumes:
        shutil.rmtree(run, ignore_errors=True)
    for d in ("cni", "certs.d/_default", "tmp", "state"):
        (run / d).mkdir(parents=True, exist_ok=True)
    config_path = run / "config.json"
    config = UnitConfig(
        name=s.name, cluster=cluster, run_dir=str(run), data_dir=str(data), address=f.address(index) if f else s.address,
        prefix=f.prefix if f else 0, gateway=f.gateway if f else "", mtu=f.mtu if f else fabric.MTU, pod_cidr=s.pod_cidr,
        service_cidr=s.service_cidr, cluster_dns=s.cluster_dns, cluster_domain=s.cluster_domain, registry=s.registry,
        sandbox_image=s.sandbox_image, cgroup_root=cgroup_root(cluster, s.name), server=s.server, kubeconfig=s.kubeconfig,
        network_kubeconfig=s.network_kubeconfig,
        containerd=(_which("containerd") or "containerd", "-c", f"{run}/containerd.toml"),
        agent=s.agent or (sys.executable, "-m", "kubern.agent"), host=s.host, labels=s.labels or {}, taints=s.taints, log_level=s.log_level, lease_s=s.lease_s,
        serving_csr=s.serving_csr, address6=f.address6(index) if f else s.address6, gateway6=f.gateway6 if f else "")
    (run / "containerd.toml").write_text(containerd.config_toml(
        config, runc=_which("runc") or "runc", cni_bin=containerd.cni_dir(), restrict_oom=not containerd.may_raise_limits()))
    if s.registry:
        (run / "certs.d/_default/hosts.toml").write_text(containerd.hosts_toml(s.registry))
    if not s.host:
        (run / "resolv.conf").write_text(f"nameserver {config.gateway}\n")          # the relay; what the machine asks is out of reach
    config_path.write_text(config.dump())
    (data / "logs").mkdir(exist_ok=True)
    log = os.open(data / "logs/unit.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    argv = [sys.executable, "-m", "kubern", "_node", str(config_path)]
    if not s.host:
        argv = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "shared", *argv]
    try:
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")
    finally:
        os.close(log)
    unit = Unit(config, p.pid, _start_time(p.pid), index, _build())
    _children[p.pid] = p
    save_unit(s.home, unit)
    try:
        if f:
            _wait(p, lambda: _own_netns(p.pid), "its namespaces")
            fabric.attach(f, index, p.pid)
        if wait:
            _wait(p, lambda: os.path.exists(config.socket), "containerd")
    except BaseException:
        destroy_unit(s.home, s.name, kill=True)
        raise
    return unit


def _build() -> str:
    """Which code this is: changes with every upgrade."""
    import zlib

    package = Path(__file__).parents[1]
    files = sorted((str(f), f.stat()) for f in package.rglob("*.py"))
    return f"{zlib.crc32(repr([(name, st.st_size, st.st_mtime_ns) for name, st in files]).encode()):08x}"


def _renewed(s: UnitSettings, unit: Unit) -> Unit:
    """The unit that runs, its agent started anew where it is of other code than ours."""
    build = _build()
    if unit.build != build:
        config = replace(unit.config, agent=s.agent or (sys.executable, "-m", "kubern.agent"))
        tmp = Path(f"{config.run_dir}/config.json.tmp")
        tmp.write_text(config.dump())
        os.replace(tmp, f"{config.run_dir}/config.json")
        unit = replace(unit, config=config, build=build)
        restart_agent(unit)
        save_unit(s.home, unit)
    return unit


_children: dict[int, subprocess.Popen[bytes]] = {}      # to be waited for, else they stay zombies


def _wait(p: subprocess.Popen[bytes], done: object, what: str) -> None:
    assert callable(done)
    end = time.monotonic() + START_S
    while not done():
        if p.poll() is not None:
            raise CannotRun(f"the node unit ended while waiting for {what}: see its unit.log and containerd.log")
        if time.monotonic() > end:
            raise CannotRun(f"the node unit did not get {what} within {START_S:.0f} s: see its unit.log and containerd.log")
        time.sleep(0.002)


def _own_netns(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    return False


def _index(nodes: Path, name: str) -> int:
    """The number on a unit's own record (it keeps its address after a crash), else the lowest that no record has, recorded at once:
    several units may be made at a time, by threads and by commands."""
    used: dict[str, int] = {}
    folder = os.open(nodes, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for record in nodes.glob("*/unit.json"):
            with contextlib.suppress(ValueError, KeyError, OSError):
                used[record.parent.name] = json.loads(record.read_text())["index"]
        if name not in used:
            used[name] = next(i for i in range(len(used) + 1) if i not in used.values())
            (nodes / name / "unit.json").write_text(json.dumps({"index": used[name]}))
        return used[name]
    finally:
        os.close(folder)


# ---- the record -------------------------------------------------------------------------------------------------------------------

def save_unit(home: Path, unit: Unit) -> None:
    path = home / "nodes" / unit.name / "unit.json"
    tmp = path.with_suffix(".tmp")
    tmp.write_text(json.dumps({"pid": unit.pid, "started": unit.started, "index": unit.index, "netns": unit.netns, "build": unit.build,
                               "config": f"{unit.config.run_dir}/config.json", "address": unit.config.address}, indent=1))
    os.replace(tmp, path)


def load_unit(home: Path, name: str) -> Unit | None:
    """The unit as recorded, running or not; None if there is no (readable) record."""
    try:
        doc = json.loads((home / "nodes" / name / "unit.json").read_text())
        return Unit(read_config(doc["config"]), doc["pid"], doc["started"], doc["index"], doc.get("build") or "")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def list_units(home: Path) -> list[Unit]:
    """All recorded units of a cluster, by name."""
    names = sorted(p.parent.name for p in (home / "nodes").glob("*/unit.json"))
    return [u for u in (load_unit(home, n) for n in names) if u]


def _start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text[text.rindex(")") + 2:].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


# ---- destroy ----------------------------------------------------------------------------------------------------------------------

def stop_unit(unit: Unit, kill: bool = False) -> None:
    """Ends a unit's processes and waits until they are gone. Not `kill`: the agent and containerd are told first."""
    if not unit.alive():
        _await_end(unit, 0)
        return
    supervisor = unit.pid if unit.config.host else next(iter(_children_of(unit.pid)), 0)
    if not kill and supervisor:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)
        _await_end(unit, STOP_S + _shutdown_s(unit))
    if unit.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(unit.pid, signal.SIGKILL)
        _await_end(unit, STOP_S)


def _shutdown_s(unit: Unit) -> int:
    """How long its agent takes to end the pods before."""
    try:
        return int((Path(unit.config.run_dir) / SHUTDOWN_FILE).read_text())
    except (OSError, ValueError):
        return 0


def restart_agent(unit: Unit) -> None:
    """Has the unit's agent started anew, for instance with upgraded code; pods, routes and rules stay."""
    supervisor = unit.pid if unit.config.host else next(iter(_children_of(unit.pid)), 0)
    if supervisor:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGHUP)


def _await_end(unit: Unit, seconds: float) -> None:
    end = time.monotonic() + seconds
    p = _children.get(unit.pid)
    while unit.alive() and time.monotonic() < end:
        if p:
            p.poll()
        time.sleep(0.005)
    if p and p.poll() is not None:
        _children.pop(unit.pid, None)


def _children_of(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def destroy_unit(home: Path, name: str, kill: bool = False, purge: bool = False) -> bool:
    """Ends a unit and removes what it left on the machine; `purge`: its data (images, volumes, logs) too. False: there was none."""
    unit = load_unit(home, name)
    if unit:
        stop_unit(unit, kill)
        if unit.config.host:
            _kill_below(unit.config.cgroup_root)
            fabric.remove_host(announce.interface_of(unit.config.address))
            _unmount_below(unit.config.run_dir)
            for usual, ours in FOLDERS:
                if os.path.ismount(usual) and os.path.samefile(usual, f"{unit.config.data_dir}/{ours}"):
                    _unmount_below(usual)
        _clean_unit(unit.config.cluster, name)
    data = home / "nodes" / name
    if purge:
        shutil.rmtree(data, ignore_errors=True)
    else:
        (data / "unit.json").unlink(missing_ok=True)
    return unit is not None


def _clean_unit(cluster: str, name: str) -> None:
    remove_cgroups(cgroup_root(cluster, name))
    shutil.rmtree(run_dir(cluster, name), ignore_errors=True)


def remove_cgroups(root: str, wait_s: float = CGROUP_WAIT_S) -> list[str]:
    """Removes this cgroup and all below it in every hierarchy; waits for processes that are still dying. Returns what stayed."""
    end = time.monotonic() + wait_s
    while True:
        left = []
        for hierarchy in CGROUPS.iterdir() if CGROUPS.exists() else ():
            top = Path(f"{hierarchy}{root}")
            if not top.is_dir():
                continue
            for d, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(d)
                except FileNotFoundError:
                    pass
                except OSError:
                    left.append(d)
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.02)


def _kill_below(root: str) -> None:
    """Kills every process in these cgroups."""
    for hierarchy in CGROUPS.iterdir():
        for procs in Path(f"{hierarchy}{root}").rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.kill(int(pid), signal.SIGKILL)


def _unmount_below(folder: str) -> None:
    libc = ctypes.CDLL(None)
    for point in _mounts_below(folder):
        libc.umount2(point.encode(), _MNT_DETACH)


def _mounts_below(folder: str) -> list[str]:
    """Mount points in a directory, innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((p for p in points if p == folder or p.startswith(folder + "/")), reverse=True)


def cleanup_stale(home: Path, cluster: str = "", keep: Iterable[str] = ()) -> list[str]:
    """Removes whatever a cluster left on this machine after a crash: processes without a record, mounts, cgroups, run directories,
    and with nothing to `keep` the bridge, its addresses and nft. `keep`: names of units that go on. Returns what it found."""
    cluster = cluster or fabric.cluster_id(home)
    kept = set(keep)
    found = []
    base = RUN / cluster
    for pid, name in _supervisors(base):
        if name not in kept:
            found.append(f"process {pid} of node {name}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    names = {p.name for p in base.glob("*") if p.is_dir()}
    for hierarchy in CGROUPS.iterdir() if CGROUPS.exists() else ():
        names |= {p.name for p in Path(f"{hierarchy}/kubern/{cluster}").glob("*") if p.is_dir()}
    for name in sorted(names - kept):
        found.append(f"leftovers of node {name}")
        _unmount_below(str(base / name))
        _kill_below(cgroup_root(cluster, name))
        _clean_unit(cluster, name)
    if not kept:
        if CGROUPS.exists():
            for hierarchy in CGROUPS.iterdir():
                for d in (f"{hierarchy}/kubern/{cluster}", f"{hierarchy}/kubern"):
                    with contextlib.suppress(OSError):
                        os.rmdir(d)
        fabric.remove(cluster)
        with contextlib.suppress(OSError):
            base.rmdir()
        with contextlib.suppress(OSError):
            RUN.rmdir()
    return found


def _supervisors(base: Path) -> list[tuple[int, str]]:
    """(pid, node) of every unshare or supervisor process whose configuration lies below this directory."""
    out = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"_node" in argv:
            path = Path(os.fsdecode(argv[argv.index(b"_node") + 1])) if argv.index(b"_node") + 1 < len(argv) else Path()
            if base in path.parents:
                out.append((int(entry.name), path.parent.name))
    return out


def adopt(home: Path) -> tuple[list[Unit], list[Unit]]:
    """(running, dead) units on record: what a control plane that starts finds."""
    units = list_units(home)
    return [u for u in units if u.alive()], [u for u in units if not u.alive()]
