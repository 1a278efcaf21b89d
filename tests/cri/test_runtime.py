"""What a kubelet may expect of a runtime: one suite, unchanged, against containerd on a real node and against the simulated runtime."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubern.kubelet.node import remove_cgroups
from kubern.kubelet.runtime import CREATED, EXITED, RUNNING, Container, Runtime, RuntimeFailure
from kubern.kubelet.simulated import SimulatedRuntime, act
from tests.real.cluster import Cluster, missing

_names = itertools.count()
REAL = [pytest.mark.real, pytest.mark.slow]
CGROUP = "/kubern-cri-test"


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    """containerd of a node whose agent is held, so that it does not tidy our pods away."""
    why = missing()
    if why:
        pytest.skip(why)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="kt")), "--nodes", "1")
    try:
        cluster.up()
        record = json.loads((cluster.home / "nodes/node-0/unit.json").read_text())
        run = Path(record["config"]).parent
        cluster.until(lambda: list((run / "cni").glob("*.conflist")), "no network for pods", 20)
        supervisor = Path(f"/proc/{record['pid']}/task/{record['pid']}/children").read_text().split()[0]
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        agent = next(int(p) for p in children if b"kubern.agent" in Path(f"/proc/{p}/cmdline").read_bytes())
        os.kill(agent, signal.SIGSTOP)
        yield f"{run}/containerd.sock"
        os.kill(agent, signal.SIGCONT)
    finally:
        cluster.down()
        remove_cgroups(CGROUP)


@pytest.fixture(params=["simulated", pytest.param("containerd", marks=REAL)])
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[Runtime]:
    made: Runtime
    if request.param == "simulated":
        made = SimulatedRuntime()
    else:
        from kubern.kubelet.cri import Cri

        made = Cri(request.getfixturevalue("socket"))
    await made.version()
    await made.pull("docker.io/library/busybox:latest", None, None)
    yield made
    await made.close()


class Pod:
    """A sandbox with a name of its own, removed at the end."""

    def __init__(self, runtime: Runtime, home: Path) -> None:
        self.runtime, self.uid = runtime, f"uid-{os.getpid()}-{next(_names)}"
        self.config: dict[str, Any] = {"metadata": {"name": "p", "namespace": "n", "uid": self.uid, "attempt": 0}, "hostname": "p",
                                       "log_directory": str(home), "labels": {"io.kubernetes.pod.uid": self.uid, "io.kubernetes.pod.name": "p",
                                                                              "io.kubernetes.pod.namespace": "n"},
                                       "linux": {"cgroup_parent": CGROUP, "security_context": {}}}
        self.id = ""

    async def create(self, *command: str, name: str = "c", attempt: int = 0, **more: Any) -> str:
        return await self.runtime.create(self.id, {
            "metadata": {"name": name, "attempt": attempt}, "image": {"image": "docker.io/library/busybox:latest"}, "command": list(command),
            "labels": {**self.config["labels"], "io.kubernetes.container.name": name}, "log_path": f"{name}-{attempt}.log", "linux": {"resources": {}},
            **more}, self.config)

    async def start(self, *command: str, **more: Any) -> str:
        id_ = await self.create(*command, **more)
        await self.runtime.start(id_)
        return id_

    async def until(self, id_: str, state: str) -> Container:
        async with asyncio.timeout(15):
            while (c := await self.runtime.container(id_)).state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return c


@pytest.fixture
async def pod(runtime: Runtime, tmp_path: Path) -> AsyncIterator[Pod]:
    p = Pod(runtime, tmp_path)
    p.id = await runtime.run_sandbox(p.config)
    yield p
    for s in await runtime.sandboxes(p.uid):
        await runtime.stop_sandbox(s.id)
        await runtime.remove_sandbox(s.id)


async def refused(work: Awaitable[Any], code: str = "", words: str = "") -> None:
    with pytest.raises(RuntimeFailure) as e:
        await work
    assert (not code or e.value.code == code) and words in e.value.message, e.value


def test_what_scripts_the_simulation_understands() -> None:
    assert act(["sh", "-c", "echo a b; sleep 1.5; exit 3; echo never"]) == (b"a b\n", 1.5, 3)
    assert act(["true"]) == (b"", 0.0, 0) and act(["false"])[2] == 1 and act(["nginx"])[2] is None and act(["sh", "-c", "echo x && nginx"])[2] is None


async def test_it_says_who_it_is_and_that_it_is_well(runtime: Runtime) -> None:
    name, version = await runtime.version()
    assert name == runtime.name and version
    assert {k: v[0] for k, v in (await runtime.conditions()).items()} == {"RuntimeReady": True, "NetworkReady": True}


async def test_sandboxes(runtime: Runtime, pod: Pod) -> None:
    s = await runtime.sandbox(pod.id)
    assert (s.uid, s.name, s.namespace, s.attempt, s.ready) == (pod.uid, "p", "n", 0, True) and s.ips and s.created_ns
    assert [x.id for x in await runtime.sandboxes(pod.uid)] == [pod.id] and pod.id in [x.id for x in await runtime.sandboxes()]
    await refused(runtime.run_sandbox(pod.config), words="reserve")
    await runtime.stop_sandbox(pod.id)
    await runtime.stop_sandbox(pod.id)
    assert not (await runtime.sandbox(pod.id)).ready
    pod.config["metadata"]["attempt"] = 1
    second = await runtime.run_sandbox(pod.config)
    assert {x.id: x.ready for x in await runtime.sandboxes(pod.uid)} == {pod.id: False, second: True}
    await runtime.remove_sandbox(pod.id)
    await refused(runtime.sandbox(pod.id), "NOT_FOUND")
    await runtime.stop_sandbox(pod.id)                    # what is not there is stopped


async def test_a_container_is_created_started_and_ends(pod: Pod) -> None:
    r = pod.runtime
    id_ = await pod.create("sh", "-c", "sleep 0.3; exit 3", annotations={"io.kubernetes.container.hash": "abc"})
    c = await r.container(id_)
    assert (c.name, c.state, c.attempt, c.hash) == ("c", CREATED, 0, "abc") and c.created_ns and not c.started_ns
    assert c.log_path.endswith("/c-0.log")
    await r.start(id_)
    c = await r.container(id_)
    assert c.state == RUNNING and c.started_ns >= c.created_ns
    assert [(x.id, x.sandbox_id, x.uid) for x in await r.containers(pod.uid)] == [(id_, pod.id, pod.uid)]
    c = await pod.until(id_, EXITED)
    assert (c.exit_code, c.reason) == (3, "Error") and c.finished_ns >= c.started_ns
    done = await pod.until(await pod.start("true", attempt=1), EXITED)
    assert (done.exit_code, done.reason) == (0, "Completed")


async def test_names_are_taken_once(pod: Pod) -> None:
    id_ = await pod.create("sleep", "1000")
    await refused(pod.create("sleep", "1000"), words="reserve")
    await pod.create("sleep", "1000", attempt=1)
    await pod.runtime.remove(id_)
    await pod.create("sleep", "1000")


async def test_what_cannot_be_done(pod: Pod) -> None:
    r = pod.runtime
    await refused(r.container("nosuch"), "NOT_FOUND")
    await refused(r.start("nosuch"), "NOT_FOUND")
    await refused(r.exec_sync("nosuch", ["true"], 1), "NOT_FOUND")
    id_ = await pod.start("true")
    await pod.until(id_, EXITED)
    await refused(r.start(id_))
    await refused(r.exec_sync(id_, ["true"], 1))
    await r.stop("nosuch", 0)


async def test_stopping_and_removing(pod: Pod) -> None:
    r = pod.runtime
    id_ = await pod.start("sleep", "1000")
    await r.stop(id_, 0)
    c = await pod.until(id_, EXITED)
    assert c.exit_code in (137, 143) and c.finished_ns
    await r.stop(id_, 0)
    second = await pod.start("sleep", "1000", attempt=1)
    await r.remove(second)                                # even while it runs
    await refused(r.container(second), "NOT_FOUND")
    assert [x.id for x in await r.containers(pod.uid)] == [id_]


async def test_a_sandbox_takes_its_containers_along(pod: Pod) -> None:
    r = pod.runtime
    id_ = await pod.start("sleep", "1000")
    await r.stop_sandbox(pod.id)
    await pod.until(id_, EXITED)
    await r.remove_sandbox(pod.id)
    await refused(r.container(id_), "NOT_FOUND")
    assert await r.sandboxes(pod.uid) == [] and await r.containers(pod.uid) == []


async def test_commands_in_a_container(pod: Pod) -> None:
    r = pod.runtime
    id_ = await pod.start("sleep", "1000")
    done = await r.exec_sync(id_, ["sh", "-c", "echo hello; exit 3"], 10)
    assert (done.stdout, done.exit_code) == (b"hello\n", 3)
    await refused(r.exec_sync(id_, ["sleep", "30"], 1), "DEADLINE_EXCEEDED")


async def test_checkpoints_are_made_or_plainly_refused(pod: Pod, tmp_path: Path) -> None:
    id_ = await pod.start("sleep", "1000")
    try:
        await pod.runtime.checkpoint(id_, f"{tmp_path}/c.tar", 5)
    except RuntimeFailure as e:
        assert e.code == "UNIMPLEMENTED" or "checkpoint" in e.message.lower()
    else:
        assert (tmp_path / "c.tar").exists()


async def test_resources_can_be_changed_while_it_runs(pod: Pod) -> None:
    r = pod.runtime
    id_ = await pod.start("sleep", "1000", linux={"resources": {"cpu_shares": 102, "memory_limit_in_bytes": 64 << 20}})
    await r.update(id_, {"cpu_shares": 204, "cpu_quota": 30_000, "cpu_period": 100_000})
    now = (await r.container(id_)).resources or {}
    assert (now["cpu_shares"], now["cpu_quota"]) == (204, 30_000)
    assert (await r.container(id_)).state == RUNNING


async def test_it_tells_of_starts_and_ends(pod: Pod) -> None:
    heard: list[str] = []

    async def listen() -> None:
        async for id_ in pod.runtime.events():
            heard.append(id_)
    task = asyncio.create_task(listen())
    await asyncio.sleep(0.3)
    id_ = await pod.start("sh", "-c", "sleep 0.2; exit 0")
    await pod.until(id_, EXITED)
    async with asyncio.timeout(5):
        while heard.count(id_) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_images(runtime: Runtime) -> None:
    assert await runtime.image("docker.io/library/nosuch:1") is None
    check: Callable[[str], Awaitable[str]] = lambda ref: runtime.pull(ref, None, None)  # noqa: E731
    await refused(check("docker.io/library/nosuch:1"))
    ref = "docker.io/library/nginx:latest"
    await check(ref)
    have = await runtime.image(ref)
    assert have and have.size and ref in have.tags and have.id in [i.id for i in await runtime.images()]
    await runtime.remove_image(have.id)
    await runtime.remove_image(have.id)
    assert await runtime.image(ref) is None
    mount, used, _ = await runtime.image_fs()
    assert mount.startswith("/") and used >= 0
