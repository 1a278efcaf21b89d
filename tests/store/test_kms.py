"""KMS v2 with a plugin of the tests' own on a unix socket: sealing, another key, another server's seeds, a plugin that goes away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kubern.store.encrypted import EncryptedStore
from kubern.store.encryption import parse
from kubern.store.kms import WRITE_S, Plugin, message
from kubern.store.memory import MemoryStore
from kubern.store.protocol import Broken, Event, Unavailable

SECRET = "/registry/core/secrets/default/a"
TEXT = b'"name":"a"},"data":{"password":"Y2FuYXJ5"}}'


class Outside(grpc.GenericRpcHandler):
    """The plugin: seals seeds with a key of its own, by the name of `key_id`."""

    def __init__(self, path: Path) -> None:
        self.path, self.key_id, self.health = path, "one", "ok"
        self.keys = {"one": AESGCM(os.urandom(32)), "two": AESGCM(os.urandom(32))}
        self.asked: list[str] = []
        self._server: Any = None

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(getattr(self, method), message(f"{method}Request").FromString, lambda m: m.SerializeToString())

    def Status(self, request: Any, context: Any) -> Any:
        self.asked.append("Status")
        return message("StatusResponse", version="v2", healthz=self.health, key_id=self.key_id)

    def Encrypt(self, request: Any, context: Any) -> Any:
        self.asked.append("Encrypt")
        nonce = os.urandom(12)
        return message("EncryptResponse", ciphertext=nonce + self.keys[self.key_id].encrypt(nonce, request.plaintext, None), key_id=self.key_id,
                       annotations=[message("Annotation", key="version.example.com", value=b"1")])

    def Decrypt(self, request: Any, context: Any) -> Any:
        self.asked.append("Decrypt")
        assert [(a.key, a.value) for a in request.annotations] == [("version.example.com", b"1")]
        return message("DecryptResponse", plaintext=self.keys[request.key_id].decrypt(request.ciphertext[:12], request.ciphertext[12:], None))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    plugin = Outside(tmp_path / "kms.sock")
    plugin.start()
    yield plugin
    plugin.stop()


def configured(outside: Outside, *more: dict[str, Any]) -> Any:
    return parse({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": [{"resources": ["secrets"], "providers": [
        {"kms": {"apiVersion": "v2", "name": "vault", "endpoint": f"unix://{outside.path}", "timeout": "2s"}}, *more, {"identity": {}}]}]})


async def test_sealed_by_a_seed_the_plugin_keeps(outside: Outside) -> None:
    driver = MemoryStore()
    store = EncryptedStore(driver, configured(outside))
    for i in range(20):
        await store.put(f"{SECRET}{i}", TEXT)
    below = [e.value for e in (await driver.list("/registry/"))[0]]
    assert all(v.startswith(b"k8s:enc:kms:v2:vault:") and b"Y2FuYXJ5" not in v for v in below) and len(set(below)) == 20
    assert outside.asked == ["Status", "Encrypt"]                    # one seed for all of them
    other = EncryptedStore(driver, configured(outside))              # a server that has not made the seed asks for it once
    assert {e.value for e in (await other.list("/registry/"))[0]} == {TEXT}
    assert outside.asked[2:] == ["Status", "Encrypt", "Decrypt"] and not other.stale(SECRET + "1")
    await driver.put(SECRET + "x", below[0])                         # bound to the place it lies in
    with pytest.raises(Broken):
        await other.get(SECRET + "x")
    await store.close()
    await other.close()


async def test_another_key(outside: Outside) -> None:
    driver = MemoryStore()
    encryption = configured(outside)
    store = EncryptedStore(driver, encryption)
    await store.put(SECRET, TEXT)
    outside.key_id = "two"
    encryption.plugins[0].poll()
    assert (await store.get(SECRET)).value == TEXT and store.stale(SECRET)  # type: ignore[union-attr]
    stop = store.subscribe(lambda batch: None)
    await store.put(SECRET, TEXT)
    assert not store.stale(SECRET) and b"two" in (await driver.get(SECRET)).value  # type: ignore[union-attr]
    stop()
    await store.close()


async def test_a_plugin_that_goes_away(outside: Outside) -> None:
    now = [0.0]
    plugin = Plugin("vault", str(outside.path), 1.0, lambda: now[0])
    sealed = plugin.seal(TEXT, b"place")
    outside.health = "no"
    plugin.poll()
    assert "got unexpected healthz status: no" in plugin.problem
    now[0] = WRITE_S - 1
    assert plugin.open(plugin.seal(TEXT, b"place"), b"place") == (TEXT, False)      # for a while it goes on
    now[0] = WRITE_S + 1
    with pytest.raises(Unavailable, match="has expired"):
        plugin.seal(TEXT, b"place")
    assert plugin.open(sealed, b"place")[0] == TEXT
    outside.health = "ok"
    plugin.poll()
    assert plugin.open(plugin.seal(TEXT, b"place"), b"place")[0] == TEXT and not plugin.problem
    outside.stop()
    fresh = Plugin("vault", str(outside.path), 0.5)
    with pytest.raises(Unavailable, match="KMS plugin vault"):
        fresh.open(sealed, b"place")
    with pytest.raises(ValueError, match=r"no sealed object|failed to validate"):
        plugin.open(b"nonsense", b"place")
    outside.start()
    plugin.close()
    fresh.close()


async def test_events_of_others_wait_for_the_plugin(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another server has sealed while the plugin is away is neither lost nor overtaken."""
    import asyncio

    monkeypatch.setattr("kubern.store.encrypted.HOLD_S", 0.05)
    driver = MemoryStore()
    ours, theirs = EncryptedStore(driver, configured(outside)), EncryptedStore(driver, configured(outside))
    await ours.put(SECRET, TEXT)
    sealed = theirs._encryption.chain(SECRET).seal(SECRET, b"theirs")
    seen: list[Event] = []
    ours.subscribe(seen.extend)
    outside.stop()
    await driver.put(SECRET, sealed)
    await driver.put("/registry/core/configmaps/default/a", b"plain")
    assert not seen
    outside.start()
    async with asyncio.timeout(10):
        while len(seen) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert [e.value for e in seen] == [b"theirs", b"plain"]
    await ours.close()
    await theirs.close()


def test_key_made_by_older_servers_opens(outside: Outside) -> None:
    plugin = Plugin("vault", str(outside.path))
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = outside.Encrypt(message("EncryptRequest", plaintext=key), None)
    envelope = message("EncryptedObject", encryptedData=nonce + AESGCM(key).encrypt(nonce, TEXT, b"place"), keyID="one",
                       encryptedDEKSource=sealed.ciphertext, annotations=sealed.annotations)
    assert plugin.open(envelope.SerializeToString(), b"place") == (TEXT, True)
    plugin.close()
