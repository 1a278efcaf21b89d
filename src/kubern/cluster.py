"""The control plane as one process: enter the roles in order, tell when all is there, leave them in reverse when asked to stop.

Node units outlive it. Not the command line (cli.py) and not how the process is found (daemon.py).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import AsyncExitStack
from dataclasses import asdict, replace

from kubern import pki
from kubern.config import Settings
from kubern.model.addresses import networks
from kubern.roles import ROLES, Role
from kubern.roles.context import Context, Tell, end, own_address
from kubern.roles.nodes import READY_TIMEOUT_S

log = logging.getLogger("kubern")
STOP_MAX_S = 9.0                       # from SIGTERM to the end of the process, whatever happens


def run(s: Settings, tell: Tell) -> int:
    """Run the cluster in this process until SIGTERM or SIGINT. Returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=s.log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    s.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(s.home, 0o700)
    pki.write_private(s.home / "cluster.json", json.dumps({**asdict(s), "pid": os.getpid()}).encode())
    gc.set_threshold(10_000, 5, 1000)      # the middle generation is what pauses, in proportion: of (20_000, 5) 34 ms, of (50_000, 20, 100) 198 ms
    gc.disable()                           # until everything is there: what start makes stays
    sys.setswitchinterval(0.0005)          # the store's writer must not wait long for the interpreter when its sync is done
    try:
        import uvloop

        return uvloop.run(_run(s, tell))
    except TimeoutError:
        log.error("the nodes did not become Ready within %.0f s; see: kubern logs NODE", READY_TIMEOUT_S)
        return 1
    except Exception as e:
        from kubern.api.audit import BadPolicy
        from kubern.api.configfile import BadFile
        from kubern.kubelet.node import CannotRun
        from kubern.store.encryption import BadConfiguration
        from kubern.store.protocol import Broken, Unavailable

        for each in e.exceptions if isinstance(e, ExceptionGroup) else (e,):
            if isinstance(each, (CannotRun, OSError, BadConfiguration, BadFile, BadPolicy, Broken, Unavailable)):
                why = explained(each, s)
                log.error("%s", why)
                tell(f"kubern: {why}")
            else:
                log.error("ended by an error", exc_info=each)
        return 1


def explained(e: Exception, s: Settings) -> str:
    """An error of the machine, and what to do about it."""
    match getattr(e, "errno", None):
        case errno.EADDRINUSE:
            return f"port {s.port} is in use by another process; choose another with --port, or stop the other cluster with kubern down --data-dir"
        case errno.EADDRNOTAVAIL:
            return f"{s.bind} is no address of this machine; give another with --bind"
        case errno.ENOSPC:
            return f"the disk of {s.data_dir} is full; free some space and start again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{e}; choose a directory you may write to with --data-dir"
    return str(e)


def give_up() -> None:
    """Ends the process that was asked to stop and has not: a thread waits for something outside. What was acknowledged is on disk."""
    log.error("not everything stopped within %.0f s; ending", STOP_MAX_S)
    os._exit(1)


async def _run(s: Settings, tell: Tell) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if not stop.is_set():
            stop.set()
            last = threading.Timer(STOP_MAX_S, give_up)
            last.daemon = True
            last.start()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, asked)
    chosen = [r for r in ROLES if s.roles == "all" or r.name in s.roles.split(",")]
    fabric = None
    if (s.nodes or s.node_groups) and s.runtime == "containerd" and any(r.name == "nodes" for r in chosen):
        from kubern.kubelet import fabric as f
        from kubern.kubelet.node import check_machine

        check_machine()
        fabric = await asyncio.to_thread(f.ensure, f.cluster_id(s.home), s.home / "fabric.json", s.pod_cidr, s.service_cidr)
        s = replace(s, pod_cidr=fabric.pod_cidr)             # another cluster on this machine may have the default
    names = [n for n in s.sans.split(",") if n]
    addresses = [n for n in names if n.replace(".", "").isdigit() or ":" in n]
    gateways = [a for a in (fabric.gateway, fabric.gateway6) if a] if fabric else []
    ips = [first_service_address(s.service_cidr), own_address(), *gateways, *addresses]
    keys = pki.ensure(s.home / "pki", [n for n in [socket.gethostname(), *names] if n not in addresses], ips)
    async with asyncio.TaskGroup() as tasks:
        ctx = Context(s, tell, tasks, keys, fabric)
        async with AsyncExitStack() as stack:
            starting = asyncio.ensure_future(_enter(stack, ctx, chosen))
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                gc.collect()
                gc.freeze()
                gc.enable()
                tell("ready")
                log.info("ready; kubeconfig: %s", s.home / "admin.kubeconfig")
                await stopping
            else:
                await end(starting)
            stopping.cancel()
            log.info("stopping")
    return 0


async def _enter(stack: AsyncExitStack, ctx: Context, roles: list[Role]) -> None:
    for role in roles:
        await stack.enter_async_context(role.run(ctx))


def first_service_address(service_cidr: str) -> str:
    return str(networks(service_cidr)[0][1])
