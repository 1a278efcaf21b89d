"""Actor: performs what plan() says, on the runtime. One for the node; each call concerns one pod.

In: a pod, what was seen, actions. Out: an Outcome: why containers could not start (the waiting reasons), and when to look again.
Events are told with upstream's reasons and words. Hooks, grace periods and the order of termination are kept here.
Upstream: pkg/kubelet/kuberuntime (kuberuntime_container.go, kuberuntime_sandbox.go, termination_order), pkg/kubelet/lifecycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets as randoms
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubern.kubelet import cdi, identity, pods
from kubern.kubelet import container as config
from kubern.kubelet.cgroups import Cgroups
from kubern.kubelet.claims import Claims, NotPrepared
from kubern.kubelet.cpus import Cpus
from kubern.kubelet.devices import Devices, NoDevices
from kubern.kubelet.env import BadEnv, Values, environment
from kubern.kubelet.measure import Measures
from kubern.kubelet.memory import Memory as NumaMemory
from kubern.kubelet.objects import Objects
from kubern.kubelet.plan import Action, CreateSandbox, Kill, Memory, Remove, Resize, Start, StopPod, Wait, grace_period, kill_order
from kubern.kubelet.probes import find_port, http_get, request_headers
from kubern.kubelet.pull import Puller, PullFailure
from kubern.kubelet.runtime import EXITED, RUNNING, Config, Container, Image, Observed, Runtime, RuntimeFailure
from kubern.kubelet.volumes import Volumes
from kubern.model.invalid import quote
from kubern.model.object import Object

log = logging.getLogger(__name__)

PARALLEL_STARTS = 5
GRACE_MIN_S = 2
PULL_FAILED_S = 3.0             # how long ErrImagePull is shown before ImagePullBackOff
TERMINATION_FILE = "/dev/termination-log"
MADE_SOMETHING = ("RunContainerError", "PostStartHookError")     # failures after the container was created

Tell = Callable[[Object, str, str, str, str], None]           # (pod, container name or "", type, reason, message)


@dataclass(slots=True)
class Outcome:
    waiting: dict[str, tuple[str, str] | None] = field(default_factory=dict)      # None: it started, forget why it did not
    again_s: float = 0.0                                                          # look again after so long; 0 = when something changes
    error: str = ""
    acted: bool = False
    resized: list[str] = field(default_factory=list)

    def soon(self, seconds: float) -> None:
        seconds = max(0.1, seconds)
        self.again_s = seconds if not self.again_s else min(self.again_s, seconds)


@dataclass(slots=True)
class Actor:
    runtime: Runtime
    node: config.Node
    root: str
    volumes: Volumes
    objects: Objects
    puller: Puller
    tell: Tell
    clock: Callable[[], float]
    services: Callable[[str], Sequence[Object]]                   # (namespace) -> services whose variables its pods see
    cgroups: Cgroups | None = None
    node_hosts: Callable[[], str] = lambda: ""
    handler: Callable[[str], Awaitable[str]] | None = None        # RuntimeClass name -> handler of the runtime; raises RuntimeFailure
    claims: Claims | None = None
    plugins: Devices | None = None
    cpus: Cpus | None = None
    memory: NumaMemory | None = None
    native_cdi: bool = False                                      # the runtime injects CDI devices itself
    measures: Measures = field(default_factory=Measures)
    container_logs: str = ""                                      # directory of links to containers' logs; "" = none
    _starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL_STARTS))

    async def perform(self, pod: Object, seen: Observed, actions: Sequence[Action], memory: Memory, values: Values,
                      look: Callable[[], Any]) -> Outcome:
        """Does the actions in order. `look` gives the pod as observed now (after a sandbox was made)."""
        out = Outcome()
        sandbox = seen.sandboxes[0] if seen.sandboxes else None
        sandbox_id = sandbox.id if sandbox else ""
        ips = seen.ips or values.pod_ips
        attempt = sandbox.attempt if sandbox else 0
        for a in actions:
            if isinstance(a, Wait):
                out.waiting[a.name] = ("CrashLoopBackOff", a.message)
                self.tell(pod, a.name, "Warning", "BackOff", f"Back-off restarting failed container {a.name} in pod {pods.describe(pod)}")
                out.soon(a.until_s - self.clock())
                spec = pods.find_container(pod["spec"], a.name)
                if a.kind == "init" and spec is not None and not pods.is_sidecar(spec):
                    break
                continue
            try:
                if isinstance(a, StopPod):
                    out.acted = True
                    await self.stop_pod(pod, seen, None)
                    if a.recreate:
                        await self._purge_init(pod, seen)
                elif isinstance(a, Kill):
                    out.acted = True
                    spec = pods.find_container(pod["spec"], a.name)
                    await self.kill(pod, spec or {"name": a.name}, a.id, a.message, a.why, a.grace_s)
                elif isinstance(a, Remove):
                    out.acted = True
                    await self.runtime.remove(a.id)
                elif isinstance(a, Resize):
                    out.acted = True
                    spec = pods.find_container(pod["spec"], a.name)
                    if spec is not None:
                        await self._resize(pod, spec, a.id)
                        out.resized.append(a.name)
                elif isinstance(a, CreateSandbox):
                    out.acted = True
                    if a.changed:
                        self.tell(pod, "", "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
                    attempt = a.attempt
                    sandbox_id = await self._create_sandbox(pod, a.attempt)
                    now = await look()
                    ips = now.ips or values.pod_ips
            except RuntimeFailure as e:
                out.error = str(e)
                if isinstance(a, CreateSandbox):
                    self.tell(pod, "", "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {e}")
                elif isinstance(a, (Kill, StopPod)):
                    self.tell(pod, "", "Warning", "FailedKillPod", f"error killing pod: {e}")
                out.soon(1.0)
                return out
            if isinstance(a, Start):
                spec = pods.find_container(pod["spec"], a.name)
                assert spec is not None
                if a.backoff_key:
                    memory.backoff.next(a.backoff_key, a.finished_s, self.clock())
                why = await self._start(pod, spec, a, sandbox_id, attempt, seen, Values(ips, values.host_ips, values.allocatable))
                out.waiting[a.name] = why
                out.acted = out.acted or why is None or why[0] in MADE_SOMETHING
                if why is not None:
                    out.soon(self._retry_s(pod, spec, why[0]))
                    if a.kind == "init" and not pods.is_sidecar(spec):
                        return out
        return out

    def _retry_s(self, pod: Object, spec: Mapping[str, Any], reason: str) -> float:
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            left = self.puller.next_try_s(pod["metadata"]["uid"], spec.get("image") or "") or 1.0
            return min(left, PULL_FAILED_S) if reason == "ErrImagePull" else left
        return 10.0

    # --- sandboxes ---

    async def _create_sandbox(self, pod: Object, attempt: int) -> str:
        sandbox = config.sandbox_config(pod, self.node, attempt)
        await asyncio.to_thread(os.makedirs, sandbox["log_directory"], 0o755, True)
        name = pod["spec"].get("runtimeClassName") or ""
        handler = await self.handler(name) if name and self.handler is not None else ""
        async with self._starts:
            try:
                with self.measures.sandbox.timed(handler):
                    return await self.runtime.run_sandbox(sandbox, handler)
            except RuntimeFailure:
                self.measures.count("started_pods_errors_total")
                self.measures.count("run_podsandbox_errors_total", handler)
                raise

    async def _purge_init(self, pod: Object, seen: Observed) -> None:
        names = {c["name"] for c in pod["spec"].get("initContainers") or ()}
        for c in seen.containers:
            if c.name in names:
                with contextlib.suppress(RuntimeFailure):
                    await self.runtime.remove(c.id)

    # --- containers ---

    async def _start(self, pod: Object, c: dict[str, Any], a: Start, sandbox_id: str, sandbox_attempt: int, seen: Observed,
                     values: Values) -> tuple[str, str] | None:
        """None when it runs, else (reason, message) of why it waits."""
        kind = {"init": "init_container", "ephemeral": "ephemeral_container"}.get(a.kind, "container")
        why = await self._try_start(pod, c, a, sandbox_id, sandbox_attempt, seen, values)
        self.measures.count("started_containers_total", kind)
        if why is not None:
            self.measures.count("started_containers_errors_total", kind, why[0])
        return why

    async def _try_start(self, pod: Object, c: dict[str, Any], a: Start, sandbox_id: str, sandbox_attempt: int, seen: Observed,
                         values: Values) -> tuple[str, str] | None:
        name = c["name"]

        def tell(type_: str, reason: str, message: str) -> None:
            self.tell(pod, name, type_, reason, message)

        sandbox = config.sandbox_config(pod, self.node, sandbox_attempt)
        try:
            await self._image_volumes(pod, c, sandbox, tell)
            image = await self.puller.ensure(pod, c.get("image") or "", c.get("imagePullPolicy") or "", self._pull_secrets(pod), sandbox, tell)
        except PullFailure as e:
            tell("Warning", "Failed", f"Error: {e.reason}")
            return e.reason, e.message
        try:
            made = await self._container_config(pod, c, a, image, seen, values)
        except (config.CannotCreate, BadEnv, NotPrepared, NoDevices, cdi.NoSuchDevice) as e:
            tell("Warning", "Failed", f"Error: {e}")
            return "CreateContainerConfigError", str(e)
        except OSError as e:
            tell("Warning", "Failed", f"Error: {e}")
            return "CreateContainerConfigError", str(e)
        async with self._starts:
            try:
                id_ = await self._create(sandbox_id, made, sandbox)
            except RuntimeFailure as e:
                tell("Warning", "Failed", f"Error: {e.message}")
                return "CreateContainerError", e.message
            tell("Normal", "Created", "Container created")
            try:
                await self.runtime.start(id_)
            except RuntimeFailure as e:
                tell("Warning", "Failed", f"Error: {e.message}")
                return "RunContainerError", e.message
            tell("Normal", "Started", "Container started")
            if self.container_logs:
                await asyncio.to_thread(self._link_log, pod, name, id_, made["metadata"]["attempt"])
        await self._prune(seen, name)
        hook = (c.get("lifecycle") or {}).get("postStart")
        if hook:
            problem = await self.hook(pod, c, id_, hook, values, 0)
            if problem:
                tell("Warning", "FailedPostStartHook", "PostStartHook failed")
                with contextlib.suppress(RuntimeFailure):
                    await self.kill(pod, c, id_, "FailedPostStartHook", "", None)
                return "PostStartHookError", problem
        return None

    def _link_log(self, pod: Object, name: str, id_: str, attempt: int) -> None:
        """/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log, what log collectors read."""
        m = pod["metadata"]
        with contextlib.suppress(OSError):
            os.symlink(f"{config.log_directory(self.node, pod)}/{name}/{attempt}.log",
                       f"{self.container_logs}/{m['name']}_{m.get('namespace')}_{name}-{id_}.log")

    async def _create(self, sandbox_id: str, made: Config, sandbox: Config) -> str:
        try:
            return await self.runtime.create(sandbox_id, made, sandbox)
        except RuntimeFailure as e:
            if "is reserved for" not in e.message:
                raise
            # left over from a try that was cut off: take the name of the next attempt
            made["metadata"]["attempt"] += 1
            return await self.runtime.create(sandbox_id, made, sandbox)

    async def _prune(self, seen: Observed, name: str) -> None:
        """Of the ended containers of this name only the newest stays."""
        dead = [c for c in seen.all_of(name) if c.state == EXITED]
        for old in dead[1:]:
            with contextlib.suppress(RuntimeFailure):
                await self.runtime.remove(old.id)
            if old.log_path:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(os.unlink, old.log_path)

    async def _image_volumes(self, pod: Object, c: Mapping[str, Any], sandbox: Config, tell: Callable[[str, str, str], None]) -> None:
        """The images a container mounts, pulled and mounted once a pod. Raises PullFailure."""
        have = self.volumes.ready.get(pod["metadata"]["uid"], {})
        mounted = {m["name"] for m in c.get("volumeMounts") or ()}
        for v in pod["spec"].get("volumes") or ():
            source = v.get("image")
            if source is None or v["name"] not in mounted or v["name"] in have:
                continue
            reference = source.get("reference") or ""
            image = await self.puller.ensure(pod, reference, source.get("pullPolicy") or "", self._pull_secrets(pod), sandbox, tell)
            try:
                await self.volumes.set_up_image(pod, v["name"], image.id)
            except (RuntimeFailure, OSError) as e:
                raise PullFailure("CreateContainerError", f"failed to mount image volume: {e}") from None

    def _pull_secrets(self, pod: Object) -> list[Object]:
        space = pod["metadata"].get("namespace") or ""
        found = (self.objects.lookup("secrets", space, r.get("name") or "") for r in pod["spec"].get("imagePullSecrets") or ())
        return [s for s in found if s]

    async def _container_config(self, pod: Object, c: dict[str, Any], a: Start, image: Image, seen: Observed, values: Values) -> Config:
        uid = pod["metadata"]["uid"]
        space = pod["metadata"].get("namespace") or ""
        ready = self.volumes.ready.get(uid, {})

        def read_file(volume: str, path: str, key: str) -> str | None:
            if volume not in ready:
                raise BadEnv(f"cannot find the volume {quote(volume)} referenced by FileKeyRef")
            return _env_file(f"{ready[volume].path}/{path}", key)

        for m in c.get("volumeMounts") or ():
            if m.get("recursiveReadOnly") == "Enabled":                # containerd before 2.0, runc 1.1: mounts below it stay writable
                raise config.CannotCreate(f"failed to resolve recursive read-only mode: volume {quote(m['name'])} requested recursive read-only mode, "
                                          "but it is not supported by the runtime")
        env = environment(pod, c, values, self.services(space), self.objects.lookup, read_file)
        mounts = await asyncio.to_thread(self.volumes.mounts, pod, c, env)
        devices = self.volumes.devices(pod, c)
        for m in mounts:
            if "host_path" in m:
                await asyncio.to_thread(_make_missing, m["host_path"])
        taken = {m["container_path"] for m in mounts}
        if "/etc/hosts" not in taken:
            mounts.append({"container_path": "/etc/hosts", "host_path": await asyncio.to_thread(self._hosts, pod, values), "readonly": False})
        target = c.get("terminationMessagePath") or TERMINATION_FILE
        if target not in taken:
            mounts.append({"container_path": target, "host_path": await asyncio.to_thread(self._termination_file, uid, c["name"]),
                           "readonly": False})
        join = ""
        if a.kind == "ephemeral" and c.get("targetContainerName"):
            wanted = seen.latest(c["targetContainerName"])
            if wanted is None or wanted.state != RUNNING:
                raise config.CannotCreate(f"unable to find target container {c['targetContainerName']}")
            join = wanted.id
        made = config.container_config(pod, c, self.node, image, a.attempt, env, mounts, devices, join)
        if a.kind != "ephemeral":
            made = await self._devices(pod, c, made)
        log_dir = f"{config.log_directory(self.node, pod)}/{c['name']}"
        await asyncio.to_thread(os.makedirs, log_dir, 0o755, True)
        return made

    async def _devices(self, pod: Object, c: Mapping[str, Any], made: Config) -> Config:
        """The configuration with the container's devices of plugins and claims, and its cpus. Raises NotPrepared, NoDevices, NoSuchDevice."""
        uid = pod["metadata"]["uid"]
        names = self.claims.devices(pod, c) if self.claims is not None else []
        if self.plugins is not None and c["name"] in self.plugins.grants.get(uid, {}):
            await self.plugins.prepare(uid, c["name"])
            more = self.plugins.additions(uid, c["name"])
            own = {e["key"] for e in made["envs"]}
            made = {**made, "envs": made["envs"] + [{"key": k, "value": v.encode()} for k, v in more.envs.items() if k not in own],
                    "mounts": made["mounts"] + more.mounts, "devices": made["devices"] + more.devices,
                    "annotations": {**made["annotations"], **more.annotations}}
            names += [n for n in more.cdi if n not in names]
        if names:
            made = {**made, "CDI_devices": [{"name": n} for n in names]} if self.native_cdi else \
                cdi.apply(made, names, await asyncio.to_thread(cdi.read))
        if self.cpus is not None:
            made["linux"]["resources"]["cpuset_cpus"] = self.cpus.of(uid, c["name"])
            if self.cpus.exclusive(uid, c["name"]):
                for key in ("cpu_quota", "cpu_period"):                # who has cpus of its own needs no quota of them
                    made["linux"]["resources"].pop(key, None)
        if self.memory is not None and (nodes := self.memory.of(uid, c["name"])):
            made["linux"]["resources"]["cpuset_mems"] = nodes
        return made

    def _hosts(self, pod: Object, values: Values) -> str:
        path = f"{self.volumes.pod_dir(pod['metadata']['uid'])}/etc-hosts"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        text = identity.hosts_file(pod, values.pod_ips, self.node.cluster_domain, self.node_hosts() if pods.host_network(pod) else "")
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, 0o644)
        return path

    def _termination_file(self, uid: str, name: str) -> str:
        path = f"{self.volumes.pod_dir(uid)}/containers/{name}/{randoms.token_hex(4)}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass
        os.chmod(path, 0o666)
        return path

    async def _resize(self, pod: Object, c: Mapping[str, Any], id_: str) -> None:
        if self.cgroups is not None:
            from kubern.kubelet.cgroups import pod_limits

            await asyncio.to_thread(self.cgroups.apply, config.cgroup_parent(self.node, pod), pod_limits(pod))
        wanted = config.resources(pod, c, self.node)
        wanted.pop("oom_score_adj", None)
        await self.runtime.update(id_, wanted)

    # --- hooks ---

    async def hook(self, pod: Object, c: Mapping[str, Any], id_: str, hook: Mapping[str, Any], values: Values, timeout_s: float) -> str:
        """Runs a lifecycle handler; "" or what went wrong."""
        where = f'for Container "{c["name"]}" in Pod "{pods.describe(pod)}" failed'
        if hook.get("exec"):
            command = hook["exec"].get("command") or []
            shown = "[" + " ".join(command) + "]"
            try:
                r = await self.runtime.exec_sync(id_, command, timeout_s)
            except RuntimeFailure as e:
                return f'Exec lifecycle hook ({shown}) {where} - error: {e}, message: ""'
            if r.exit_code != 0:
                output = (r.stdout + r.stderr).decode(errors="replace")
                return f"Exec lifecycle hook ({shown}) {where} - error: command '{' '.join(command)}' exited with {r.exit_code}: " \
                       f"{r.stderr.decode(errors='replace')}, message: {quote(output)}"
            return ""
        if hook.get("httpGet"):
            action = hook["httpGet"]
            host = action.get("host") or (values.pod_ips[0] if values.pod_ips else "")
            try:
                port = find_port(action["port"], c)
                path = action.get("path") or "/"
                await http_get((action.get("scheme") or "http").lower(), host, port, path, request_headers(action, host, port, "lifecycle"))
            except Exception as e:
                return f"HTTP lifecycle hook ({action.get('path')}) {where} - error: {e or type(e).__name__}"
            return ""
        if hook.get("sleep"):
            await asyncio.sleep(float(hook["sleep"].get("seconds") or 0))
        return ""

    # --- ending ---

    async def kill(self, pod: Object, c: Mapping[str, Any], id_: str, message: str, why: str, grace_s: int | None,
                   turn: Callable[[float], Any] | None = None, ips: tuple[str, ...] = ()) -> None:
        """Ends one container: hook, its turn among sidecars, signal, and the kill when its grace is over."""
        self.tell(pod, c["name"], "Normal", "Killing", message or f"Stopping container {c['name']}")
        loop = asyncio.get_running_loop()
        began = loop.time()
        grace = float(grace_period(pod, c, why) if grace_s is None else grace_s)
        hook = (c.get("lifecycle") or {}).get("preStop")
        if hook and grace > 0:
            problem = ""
            try:
                async with asyncio.timeout(grace):
                    problem = await self.hook(pod, c, id_, hook, Values(ips), 0)
            except TimeoutError:
                problem = "timeout"
            if problem:
                self.tell(pod, c["name"], "Warning", "FailedPreStopHook", "PreStopHook failed")
        if turn is not None and grace > 0:
            await turn(max(0.0, grace - (loop.time() - began)))
        left = int(grace - (loop.time() - began))
        await self.runtime.stop(id_, max(GRACE_MIN_S, left))

    async def stop_pod(self, pod: Object, seen: Observed, grace_s: int | None) -> None:
        """Ends all containers (sidecars after the others, in reverse order) and then the sandboxes."""
        main, sidecars = kill_order(pod, seen)
        over: list[asyncio.Event] = [asyncio.Event() for _ in range(len(sidecars) + 1)]
        left = len(main)
        if not left:
            over[0].set()

        async def one(c: Container, step: int) -> None:
            nonlocal left
            spec = pods.find_container(pod["spec"], c.name) or {"name": c.name}

            async def turn(limit: float) -> None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(limit):
                        await over[step - 1].wait()
            try:
                await self.kill(pod, spec, c.id, "", "", grace_s, turn if step else None, seen.ips)
            finally:
                if step:
                    over[step].set()
                else:
                    left -= 1
                    if not left:
                        over[0].set()

        jobs = [one(c, 0) for c in main] + [one(c, i + 1) for i, group in enumerate(sidecars) for c in group]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        for r in results:
            if isinstance(r, BaseException):
                raise r
        for s in seen.sandboxes:
            await self.runtime.stop_sandbox(s.id)

    async def remove_pod(self, seen: Observed) -> None:
        """Removes the pod's containers and sandboxes from the runtime. Raises RuntimeFailure."""
        for c in seen.containers:
            try:
                await self.runtime.remove(c.id)
            except RuntimeFailure as e:
                if e.code != "NOT_FOUND":
                    raise
        for s in seen.sandboxes:
            await self.runtime.stop_sandbox(s.id)
            try:
                await self.runtime.remove_sandbox(s.id)
            except RuntimeFailure as e:
                if e.code != "NOT_FOUND":
                    raise

    async def remove_logs(self, pod: Object) -> None:
        await asyncio.to_thread(shutil.rmtree, config.log_directory(self.node, pod), True)


def _make_missing(path: str) -> None:
    """A hostPath without type is made as a directory."""
    if not os.path.lexists(path):
        os.makedirs(path, exist_ok=True)


def _env_file(path: str, key: str) -> str | None:
    """KEY=VALUE lines. Raises BadEnv."""
    try:
        with open(path) as f:
            lines = f.read().splitlines()
    except OSError:
        raise BadEnv("couldn't parse env file") from None
    for line in lines:
        k, eq, v = line.partition("=")
        if eq and k.strip() == key:
            return v.strip().strip("'\"")
    return None
