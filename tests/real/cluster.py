"""A cluster of real nodes for tests: started by the command people use, on a port and in a data directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kubern.kubelet.fabric import cluster_id

KUBECTL = str(Path(sys.executable).parent / "kubectl")


def missing() -> str:
    """Why real nodes cannot run here; "" if they can."""
    if os.geteuid() != 0:
        return "real nodes need root"
    from kubern.kubelet.node import CannotRun, check_machine

    try:
        check_machine()
    except CannotRun as e:
        return str(e)
    if not os.path.exists(KUBECTL):
        return "the tests drive the real kubectl: pip install 'kubern[kubectl]'"
    return ""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Neighbour:
    """A machine on the cluster's segment that knows nothing of it: a network namespace with a cable to the bridge, and no routes."""

    def __init__(self, home: Path, last: int) -> None:
        fabric = json.loads((home / "fabric.json").read_text())
        self.space, cable = f"kn-lan-{last}", f"kn-tlan{last}"
        self.run("ip", "netns", "del", self.space, inside=False)
        addresses = [fabric["subnet"].replace(".0/24", f".{last}/24"), *([fabric["subnet6"].replace("::/64", f"::{last}/64")] if fabric["subnet6"] else [])]
        for line in (f"netns add {self.space}", f"link add {cable} type veth peer name eth0 netns {self.space}",
                     f"link set {cable} master {fabric['bridge']} up", f"-n {self.space} link set eth0 up",
                     *(f"-n {self.space} addr add {a} dev eth0" + (" nodad" if ":" in a else "") for a in addresses)):
            subprocess.run(["ip", *line.split()], check=True)

    def run(self, *words: str, inside: bool = True) -> str:
        into = ["nsenter", f"--net=/run/netns/{self.space}"] if inside else []
        return subprocess.run([*into, *words], capture_output=True, text=True, check=False).stdout.strip()

    def get(self, url: str) -> str:
        return self.run("curl", "-gsm", "2", url)

    def close(self) -> None:
        self.run("ip", "netns", "del", self.space, inside=False)


class Cluster:
    def __init__(self, home: Path, *flags: str) -> None:
        self.home, self.port, self.flags = home, free_port(), flags
        self.env = {**os.environ, "KUBECONFIG": str(home / "admin.kubeconfig"), "KUBERN_DATA_DIR": str(home)}

    def kubern(self, *args: str, check: bool = True, timeout: float = 240) -> str:
        done = subprocess.run([sys.executable, "-m", "kubern", *args], env=self.env, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"kubern {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()}")
        return done.stdout

    def up(self) -> None:
        self.kubern("up", "--detach", "--port", str(self.port), *self.flags)

    def down(self) -> None:
        self.kubern("down", "--purge", check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    def log(self, lines: int = 40) -> str:
        try:
            return "\n".join((self.home / "kubern.log").read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def kubectl(self, *args: str, stdin: str | bytes | None = None, check: bool = True, timeout: float = 120) -> str:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run([KUBECTL, *args], env=self.env, input=data, capture_output=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)}: exit {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}")
        return done.stdout.decode(errors="replace")

    def kubectl_error(self, *args: str, stdin: str = "") -> str:
        """What kubectl complains of; fails if it does not."""
        done = subprocess.run([KUBECTL, *args], env=self.env, input=stdin, capture_output=True, text=True, timeout=120)
        assert done.returncode, f"kubectl {' '.join(args)} went well: {done.stdout}"
        return done.stderr

    def get(self, *args: str) -> Any:
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def apply(self, manifest: str) -> None:
        self.kubectl("apply", "-f", "-", stdin=manifest)

    def wait(self, what: str, condition: str = "condition=Ready", timeout_s: int = 90, namespace: str = "default") -> None:
        self.kubectl("wait", "-n", namespace, f"--for={condition}", what, f"--timeout={timeout_s}s", timeout=timeout_s + 10)

    def until(self, ask: Any, what: str, timeout_s: float = 60) -> Any:
        """The first true answer of ask(); fails with `what` when the time is over."""
        end = time.monotonic() + timeout_s
        while True:
            found = ask()
            if found:
                return found
            assert time.monotonic() < end, f"{what}: not within {timeout_s:.0f} s\n{self.kubectl('get', 'pods', '-A', '-o', 'wide', check=False)}"
            time.sleep(0.1)

    def pods(self, selector: str, namespace: str = "default") -> list[dict[str, Any]]:
        return self.get("pods", "-n", namespace, "-l", selector)["items"]

    def exec(self, pod: str, *command: str, container: str = "", check: bool = True) -> str:
        return self.kubectl("exec", pod, *(["-c", container] if container else []), "--", *command, check=check)

    def node_address(self, node: str) -> str:
        return next(a["address"] for a in self.get("node", node)["status"]["addresses"] if a["type"] == "InternalIP")


def agents(cluster: Cluster, node: str) -> list[int]:
    """The pids of a node's agent (kubelet, proxy, DNS), as the machine sees it: none, or one."""
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        try:
            line = (p / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"kubern.agent" in line and f"/run/kubern/{cluster_id(cluster.home)}/{node}/config.json".encode() in line:
            found.append(int(p.name))
    return found
