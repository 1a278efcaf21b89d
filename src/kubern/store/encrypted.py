"""Encryption at rest: a Store whose values of chosen resources are sealed before they reach the driver below, whichever that is.

Per resource an ordered list of keys: the first one seals, all of them open, so a key is rotated by putting the new one first, writing every
object again (a write that changes nothing is carried out while the stored value is sealed with an older key: see `stale`) and dropping the old
one. A sealed value names its provider and key in clear, `k8s:enc:aesgcm:v1:NAME:`, and is bound to the key it lies under where the cipher can
do that (aesgcm). Snapshots hold what the driver holds: sealed values stay sealed.
Not KMS: a configuration that asks for it is refused. File format and value format: Kubernetes, "Encrypting Confidential Data at Rest";
apiserver pkg/apis/apiserver/v1 EncryptionConfiguration, storage/value/encrypt.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubern.store.protocol import Batch, Broken, Conflict, Entry, Event, Store

log = logging.getLogger(__name__)

PREFIX = b"k8s:enc:"
IDENTITY = "identity"
KEY_BYTES = {"aesgcm": (16, 24, 32), "aescbc": (16, 24, 32), "secretbox": (32,)}
NONCE_BYTES = {"aesgcm": 12, "aescbc": 16, "secretbox": 24}
ROOT = "/registry/"


class BadConfiguration(ValueError):
    """An encryption configuration that cannot be used; the message says why, and never shows a key."""


class CannotOpen(Exception):
    """No configured key opens a stored value."""


# --- ciphers -------------------------------------------------------------------------------------------------------------------------

Seal = Callable[[bytes, bytes], bytes]      # (text, key it is bound to) -> text


def _aesgcm(secret: bytes) -> tuple[Seal, Seal]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(secret)

    def seal(text: bytes, bound: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + cipher.encrypt(nonce, text, bound)
    return seal, lambda text, bound: cipher.decrypt(text[:12], text[12:], bound)


def _aescbc(secret: bytes) -> tuple[Seal, Seal]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.padding import PKCS7

    algorithm, padding = algorithms.AES(secret), PKCS7(128)

    def seal(text: bytes, bound: bytes) -> bytes:
        iv = os.urandom(16)
        padder, encryptor = padding.padder(), Cipher(algorithm, modes.CBC(iv)).encryptor()
        return iv + encryptor.update(padder.update(text) + padder.finalize()) + encryptor.finalize()

    def open_(text: bytes, bound: bytes) -> bytes:
        decryptor, unpadder = Cipher(algorithm, modes.CBC(text[:16])).decryptor(), padding.unpadder()
        return unpadder.update(decryptor.update(text[16:]) + decryptor.finalize()) + unpadder.finalize()
    return seal, open_


def _secretbox(secret: bytes) -> tuple[Seal, Seal]:
    from nacl.secret import SecretBox

    box = SecretBox(secret)
    return lambda text, bound: bytes(box.encrypt(text)), lambda text, bound: box.decrypt(text)


_CIPHERS = {"aesgcm": _aesgcm, "aescbc": _aescbc, "secretbox": _secretbox}


@dataclass(frozen=True, slots=True)
class Key:
    """One provider's key. `prefix` stands in front of what it sealed."""

    prefix: bytes
    seal: Seal
    open: Seal


PLAIN = Key(b"", lambda text, bound: text, lambda text, bound: text)


class Chain:
    """The keys of a resource in order."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self.keys = keys

    def seal(self, key: str, text: bytes) -> bytes:
        first = self.keys[0]
        return first.prefix + first.seal(text, key.encode())

    def open(self, key: str, data: bytes) -> tuple[bytes, bool]:
        """The text, and whether it should be sealed anew. Raises CannotOpen."""
        for i, k in enumerate(self.keys):
            if k.prefix:
                if not data.startswith(k.prefix):
                    continue
                try:
                    return k.open(data[len(k.prefix):], key.encode()), i > 0
                except Exception:                       # each library has its own; several keys may share a name
                    continue
            elif not data.startswith(PREFIX):
                return data, i > 0
        raise CannotOpen(f"{key}: no matching key; the value begins with {_named(data)}")


def _named(data: bytes) -> str:
    head = data[:200].split(b":")[:5]
    return ":".join(p.decode("ascii", "replace") for p in head) if data.startswith(PREFIX) and len(head) == 5 else "plain text"


_PLAIN_ONLY = Chain((PLAIN,))


# --- configuration -------------------------------------------------------------------------------------------------------------------

class Encryption:
    """What an EncryptionConfiguration says: the chain for every key of the store."""

    def __init__(self, rules: list[tuple[list[str], Chain]]) -> None:
        self._rules = rules
        self._by_prefix: dict[str, Chain] = {}

    def chain(self, key: str) -> Chain:
        """The chain for a store key: that of the first rule that names its resource."""
        if not key.startswith(ROOT):
            return _PLAIN_ONLY
        end = key.find("/", key.find("/", len(ROOT)) + 1)
        prefix = key[:end] if end > 0 else key
        chain = self._by_prefix.get(prefix)
        if chain is None:
            group, _, plural = prefix[len(ROOT):].partition("/")
            chain = self._by_prefix[prefix] = self._of("" if group == "core" else group, plural)
        return chain

    def _of(self, group: str, plural: str) -> Chain:
        wanted = {f"{plural}.{group}" if group else plural, f"{plural}.", f"*.{group}", "*.*"} - ({f"{plural}."} if group else set())
        for resources, chain in self._rules:
            if wanted.intersection(resources):
                return chain
        return _PLAIN_ONLY


def parse(doc: Any) -> Encryption:
    """An EncryptionConfiguration as read from YAML. Raises BadConfiguration."""
    if not isinstance(doc, dict) or doc.get("kind") != "EncryptionConfiguration":
        raise BadConfiguration("kind must be EncryptionConfiguration")
    if doc.get("apiVersion") not in ("apiserver.config.k8s.io/v1", "v1"):
        raise BadConfiguration(f"apiVersion must be apiserver.config.k8s.io/v1, not {doc.get('apiVersion')!r}")
    if not doc.get("resources") or not isinstance(doc["resources"], list):
        raise BadConfiguration("resources: Required value: at least one resource must be specified")
    rules = []
    for i, rule in enumerate(doc["resources"]):
        at = f"resources[{i}]"
        if not isinstance(rule, dict) or not rule.get("resources") or not isinstance(rule["resources"], list):
            raise BadConfiguration(f"{at}.resources: Required value: at least one resource must be specified")
        for name in rule["resources"]:
            if not isinstance(name, str) or (name == "*" or ("*" in name and not name.startswith("*."))):
                raise BadConfiguration(f"{at}.resources: Invalid value: {name!r}: a resource, '*.' for the core group, '*.GROUP' or '*.*'")
        providers = rule.get("providers")
        if not providers or not isinstance(providers, list):
            raise BadConfiguration(f"{at}.providers: Required value: at least one provider must be specified")
        rules.append(([str(r) for r in rule["resources"]], Chain(tuple(k for j, p in enumerate(providers) for k in _provider(p, f"{at}.providers[{j}]")))))
    return Encryption(rules)


def _provider(provider: Any, at: str) -> Iterator[Key]:
    if not isinstance(provider, dict) or len(provider) != 1:
        raise BadConfiguration(f"{at}: more than one provider specified in a single element, should split into different list elements")
    name, body = next(iter(provider.items()))
    if name == IDENTITY:
        yield PLAIN
        return
    if name not in _CIPHERS:
        raise BadConfiguration(f"{at}: provider {name!r} is not supported; supported are {', '.join([*_CIPHERS, IDENTITY])}")
    keys = body.get("keys") if isinstance(body, dict) else None
    if not keys or not isinstance(keys, list):
        raise BadConfiguration(f"{at}.{name}.keys: Required value: at least one key must be specified")
    for i, key in enumerate(keys):
        if not isinstance(key, dict) or not isinstance(key.get("name"), str) or not key["name"]:
            raise BadConfiguration(f"{at}.{name}.keys[{i}].name: Required value")
        if ":" in key["name"]:
            raise BadConfiguration(f"{at}.{name}.keys[{i}].name: must not hold a colon")
        try:
            secret = base64.b64decode(str(key.get("secret") or ""), validate=True)
        except binascii.Error:
            raise BadConfiguration(f"{at}.{name}.keys[{i}].secret: Invalid value: secret must be base64 encoded") from None
        if len(secret) not in KEY_BYTES[name]:
            sizes = " or ".join(map(str, KEY_BYTES[name]))
            raise BadConfiguration(f"{at}.{name}.keys[{i}].secret: Invalid value: secret must be {sizes} bytes long, not {len(secret)}")
        try:
            seal, open_ = _CIPHERS[name](secret)
        except ImportError as e:
            raise BadConfiguration(f"{at}: {name} needs the Python package {e.name}") from None
        yield Key(b"k8s:enc:%b:v1:%b:" % (name.encode(), key["name"].encode()), seal, open_)


def read(path: str | Path) -> Encryption:
    """The configuration in a file. Raises BadConfiguration."""
    import yaml

    try:
        return parse(yaml.safe_load(Path(path).read_bytes()))
    except OSError as e:
        raise BadConfiguration(str(e)) from None
    except yaml.YAMLError:
        raise BadConfiguration(f"{path} is not YAML") from None          # the error would show the text
    except BadConfiguration as e:
        raise BadConfiguration(f"{path}: {e}") from None


# --- the store -----------------------------------------------------------------------------------------------------------------------

class _Past:
    """What a write replaced, opened when somebody asks for it."""

    __slots__ = ("_entry", "_store")

    def __init__(self, store: EncryptedStore, entry: Any) -> None:
        self._store, self._entry = store, entry

    @property
    def key(self) -> str:
        return str(self._entry.key)

    @property
    def create_revision(self) -> int:
        return int(self._entry.create_revision)

    @property
    def revision(self) -> int:
        return int(self._entry.revision)

    @property
    def value(self) -> bytes:
        return self._store._text(self._entry.key, self._entry.value)


class EncryptedStore:
    """A Store over another. Values of resources that no rule names pass through untouched."""

    def __init__(self, inner: Store, encryption: Encryption) -> None:
        self._inner, self._encryption = inner, encryption
        self._stale: set[str] = set()
        if hasattr(inner, "caught_up"):
            self.caught_up = inner.caught_up

    @property
    def revision(self) -> int:
        return self._inner.revision

    def stale(self, key: str) -> bool:
        """Whether what is stored under a key is not sealed as it should be now."""
        return key in self._stale

    def _text(self, key: str, data: bytes) -> bytes:
        try:
            return self._encryption.chain(key).open(key, data)[0]
        except CannotOpen as e:
            raise Broken(str(e)) from None

    def _entry(self, e: Entry) -> Entry:
        chain = self._encryption.chain(e.key)
        if chain is _PLAIN_ONLY:
            if e.value.startswith(PREFIX):
                raise Broken(f"{e.key} is encrypted, and no encryption configuration names its resource")
            return e
        try:
            text, stale = chain.open(e.key, e.value)
        except CannotOpen as error:
            raise Broken(str(error)) from None
        if stale:
            self._stale.add(e.key)
        return e._replace(value=text)

    def _event(self, e: Event) -> Event:
        chain = self._encryption.chain(e.key)
        if chain is _PLAIN_ONLY:
            return e
        value = e.value
        if value is not None:
            value, stale = chain.open(e.key, value)
            if stale:
                self._stale.add(e.key)
            else:
                self._stale.discard(e.key)
        else:
            self._stale.discard(e.key)
        previous: Any = _Past(self, e.previous) if e.previous is not None else None
        return Event(e.revision, e.key, value, previous)

    async def get(self, key: str, *, revision: int = 0) -> Entry | None:
        e = await self._inner.get(key, revision=revision)
        return self._entry(e) if e is not None else None

    async def list(self, prefix: str, *, start: str = "", limit: int = 0, revision: int = 0) -> tuple[list[Entry], int]:
        entries, at = await self._inner.list(prefix, start=start, limit=limit, revision=revision)
        return [self._entry(e) for e in entries], at

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        try:
            return await self._inner.put(key, self._encryption.chain(key).seal(key, value), expect=expect)
        except Conflict as e:
            raise Conflict(e.key, self._entry(e.current) if e.current is not None else None) from None

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        try:
            return await self._inner.delete(key, expect=expect)
        except Conflict as e:
            raise Conflict(e.key, self._entry(e.current) if e.current is not None else None) from None

    def subscribe(self, callback: Callable[[Batch], None]) -> Callable[[], None]:
        def opened(batch: Batch) -> None:
            out = []
            for e in batch:
                try:
                    out.append(self._event(e))
                except CannotOpen as error:             # of another server with a key that we were not told; ours are sealed by us
                    log.error("an event is lost: %s", error)
            if out:
                callback(out)
        return self._inner.subscribe(opened)

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        feed: Any = self._inner.watch(prefix, after)
        try:
            async for batch in feed:
                yield [self._event(e) for e in batch]
        finally:
            await feed.aclose()

    async def compact(self, revision: int) -> None:
        await self._inner.compact(revision)

    async def keep(self, window_s: float, every_s: float = 30.0) -> None:
        await self._inner.keep(window_s, every_s)

    async def close(self) -> None:
        await self._inner.close()
