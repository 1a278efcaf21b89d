"""Encryption at rest, over every driver: what lies below is sealed, what comes up is not; keys can be changed."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from kubern.store.encrypted import EncryptedStore
from kubern.store.encryption import BadConfiguration, CannotOpen, parse
from kubern.store.memory import MemoryStore
from kubern.store.protocol import Broken, Conflict, Event
from kubern.store.sqlite import SqliteStore

KEY1, KEY2 = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
SECRET = "/registry/core/secrets/default/a"
CANARY = b'"name":"a"},"data":{"password":"Y2FuYXJ5LWluLXRoZS1taW5l"}}'


def config(*providers: dict[str, Any], resources: tuple[str, ...] = ("secrets",)) -> dict[str, Any]:
    return {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
            "resources": [{"resources": list(resources), "providers": list(providers)}]}


def keyed(provider: str, *keys: tuple[str, str]) -> dict[str, Any]:
    return {provider: {"keys": [{"name": n, "secret": s} for n, s in keys]}}


def kms(name: str, endpoint: str = "unix:///run/none", **more: Any) -> dict[str, Any]:
    return {"kms": {"apiVersion": "v2", "name": name, "endpoint": endpoint, **more}}


@pytest.fixture(params=("memory", "sqlite", "etcd"))
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "etcd":
        from kubern.store.etcd import EtcdStore

        s: Any = await EtcdStore.open(f"{request.getfixturevalue('etcd')}/{uuid4().hex}")
    else:
        s = MemoryStore() if request.param == "memory" else await SqliteStore.open(tmp_path / "s.db")
    yield s
    await s.close()


@pytest.mark.parametrize("provider", ("aesgcm", "aescbc", "secretbox"))
async def test_sealed_below_open_above(driver: Any, provider: str) -> None:
    store = EncryptedStore(driver, parse(config(keyed(provider, ("key1", KEY1)), {"identity": {}})))
    seen: list[Event] = []
    store.subscribe(seen.extend)
    start = store.revision
    first = await store.put(SECRET, CANARY, expect=0)
    await store.put("/registry/core/configmaps/default/a", b"plain")
    await store.put(SECRET, CANARY + b" ", expect=first)
    below = (await driver.get(SECRET)).value
    assert below.startswith(b"k8s:enc:%b:v1:key1:" % provider.encode()) and b"Y2FuYXJ5" not in below
    assert (await driver.get("/registry/core/configmaps/default/a")).value == b"plain"
    assert (await store.get(SECRET)).value == CANARY + b" "
    assert {e.key: e.value for e in (await store.list("/registry/"))[0]}[SECRET] == CANARY + b" "
    assert [e.value for e in seen] == [CANARY, b"plain", CANARY + b" "] and seen[2].previous is not None and seen[2].previous.value == CANARY
    with pytest.raises(Conflict) as e:
        await store.put(SECRET, b"x", expect=0)
    assert e.value.current is not None and e.value.current.value == CANARY + b" "
    got: list[Event] = []
    feed = store.watch("/registry/core/secrets/", start)
    async for batch in feed:
        got += batch
        if len(got) == 2:
            break
    await feed.aclose()
    assert [e.value for e in got] == [CANARY, CANARY + b" "]


async def test_a_key_is_rotated(driver: Any) -> None:
    old = EncryptedStore(driver, parse(config({"identity": {}})))
    await old.put(SECRET, CANARY)
    both = EncryptedStore(driver, parse(config(keyed("aesgcm", ("new", KEY2)), keyed("secretbox", ("old", KEY1)), {"identity": {}})))
    assert (await both.list("/"))[0][0].value == CANARY and both.stale(SECRET)
    stop = both.subscribe(lambda batch: None)
    await both.put(SECRET, CANARY)
    assert not both.stale(SECRET)
    stop()
    new = EncryptedStore(driver, parse(config(keyed("aesgcm", ("new", KEY2)))))
    assert (await new.get(SECRET)).value == CANARY
    for wrong in (config(keyed("aesgcm", ("new", KEY1))), config({"identity": {}}), config(keyed("aesgcm", ("new", KEY2)), resources=("configmaps",))):
        with pytest.raises(Broken):
            await EncryptedStore(driver, parse(wrong)).list("/")


async def test_a_sealed_value_is_bound_to_its_key(driver: Any) -> None:
    store = EncryptedStore(driver, parse(config(keyed("aesgcm", ("k", KEY1)))))
    await store.put(SECRET, CANARY)
    await driver.put(SECRET + "b", (await driver.get(SECRET)).value)
    with pytest.raises(Broken, match="no matching key"):
        await store.get(SECRET + "b")


def test_which_resources() -> None:
    identity, sealing = {"identity": {}}, keyed("aesgcm", ("k", KEY1))
    doc = config(identity, resources=("events", "pods."))
    doc["resources"] += config(sealing, resources=("*.apps", "secrets"))["resources"] + config(sealing, resources=("*.",))["resources"]
    e = parse(doc)
    for key, sealed in (("core/events/a/b", False), ("core/pods/a/b", False), ("apps/deployments/a/b", True), ("core/secrets/a/b", True),
                        ("core/nodes/a", True), ("batch/jobs/a/b", False)):
        assert e.chain("/registry/" + key).seal("k", b"x").startswith(b"k8s:enc:") == sealed, key


@pytest.mark.parametrize("doc, why", (
    ({}, "kind must be"), ({**config({"identity": {}}), "apiVersion": "v7"}, "apiVersion"),
    ({**config({"identity": {}}), "resources": []}, "resources: Required value: at least one resources is required"),
    (config(), r"resources\[0\].providers: Required value: at least one resources\[0\].providers is required"),
    (config({"foo": {}}), "does not contain any of the expected providers"), (config(keyed("aesgcm")), "at least one keys is required"),
    (config(keyed("aesgcm", ("a", "!!"))), r'providers\[0\].aesgcm.keys\[0\].secret: Invalid value: "REDACTED": secrets must be base64 encoded'),
    (config(keyed("secretbox", ("a", "AAAA"))), r"secret is not of the expected length, got 3, expected one of \[32\]"),
    (config(keyed("aesgcm", ("a:b", KEY1))), "colon"), (config({"identity": {}, "aesgcm": {}}), "more than one provider"),
    (config({"identity": {}}, resources=("*",)), r"use '\*.' to encrypt all the resources from core API group"),
    (config({"identity": {}}, resources=("secrets", "*.")), "using overlapping resources"),
    (config({"identity": {}}, resources=("secrets", "secrets")), "specified multiple times"),
    (config({"identity": {}}, resources=("Secrets",)), "capital letters"),
    (config({"identity": {}}, resources=("events.events.k8s.io",)), "Use 'events' instead"),
    (config({"identity": {}}, resources=("pods.*",)), "across groups"), (config(kms("k", apiVersion="v1")), "KMSv1 is deprecated"),
    (config(kms("k", endpoint="tcp://x")), 'unsupported scheme "tcp" for KMS provider, only unix is supported'), (config(kms("a:b")), "must not contain ':'"),
    (config(kms("a"), kms("a")), "duplicate KMS provider name a"), (config(kms("a", cachesize=5)), "cachesize is not supported in v2"),
    (config(kms("a", timeout="0s")), "timeout should be a positive value"), (config(kms("a", foo=1)), "unknown field")))
def test_a_bad_configuration_says_why(doc: Any, why: str) -> None:
    with pytest.raises(BadConfiguration, match=why) as e:
        parse(doc)
    assert KEY1 not in str(e.value)


async def test_the_canary_is_not_in_the_file(tmp_path: Path) -> None:
    for sealed in (False, True):
        path = tmp_path / f"{sealed}.db"
        inner = await SqliteStore.open(path)
        store: Any = EncryptedStore(inner, parse(config(keyed("secretbox", ("k", KEY1))))) if sealed else inner
        await store.put(SECRET, CANARY)
        on_disk = b"".join(p.read_bytes() for p in tmp_path.glob(path.name + "*"))     # noqa: ASYNC240
        assert (b"Y2FuYXJ5" in on_disk) == (not sealed)
        await store.close()


async def test_keys_are_changed_while_the_store_is_in_use(driver: Any) -> None:
    store = EncryptedStore(driver, parse(config(keyed("aesgcm", ("one", KEY1)), {"identity": {}})))
    await store.put(SECRET, CANARY)
    seen: list[Event] = []
    stop = store.subscribe(seen.extend)
    with pytest.raises(CannotOpen):
        await store.configure(parse(config(keyed("aesgcm", ("two", KEY2)))))
    assert (await store.get(SECRET)).value == CANARY and not store.stale(SECRET)  # type: ignore[union-attr]
    await store.configure(parse(config(keyed("secretbox", ("two", KEY2)), keyed("aesgcm", ("one", KEY1)))))
    assert store.stale(SECRET) and (await store.get(SECRET)).value == CANARY  # type: ignore[union-attr]
    await store.put(SECRET, CANARY)
    assert not store.stale(SECRET) and (await driver.get(SECRET)).value.startswith(b"k8s:enc:secretbox:v1:two:")
    assert [e.value for e in seen] == [CANARY]
    stop()
