"""Encryption: which resources are sealed in the store and with which keys, as an EncryptionConfiguration says.

Per resource an ordered list of keys: the first one seals, all of them open, so a key is rotated by putting the new one first, writing every
object again (a write that changes nothing is carried out while the stored value is sealed with an older key) and dropping the old one. A sealed
value names its provider and key in clear, `k8s:enc:aesgcm:v1:NAME:`, and is bound to the key it lies under where the cipher can do that.
File format, value format and the words of errors: Kubernetes, "Encrypting Confidential Data at Rest"; apiserver pkg/apis/apiserver
(EncryptionConfiguration, validation), storage/value/encrypt.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubern.store.protocol import Unavailable

PREFIX = b"k8s:enc:"
IDENTITY = "identity"
KEY_BYTES = {"aesgcm": (16, 24, 32), "aescbc": (16, 24, 32), "secretbox": (32,)}
ROOT = "/registry/"
KMS_TIMEOUT_S = 3.0


class BadConfiguration(ValueError):
    """An encryption configuration that cannot be used; the message says why, and never shows a key."""


class CannotOpen(Exception):
    """No configured key opens a stored value."""


# --- ciphers -------------------------------------------------------------------------------------------------------------------------

Seal = Callable[[bytes, bytes], bytes]                       # (text, key it is bound to) -> sealed
Open = Callable[[bytes, bytes], tuple[bytes, bool]]          # (sealed, key it is bound to) -> text, and whether it should be sealed anew


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
    open: Open


PLAIN = Key(b"", lambda text, bound: text, lambda text, bound: (text, False))


class Chain:
    """The keys of a resource in order."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self.keys = keys

    def seal(self, key: str, text: bytes) -> bytes:
        first = self.keys[0]
        return first.prefix + first.seal(text, key.encode())

    def open(self, key: str, data: bytes) -> tuple[bytes, bool]:
        """The text, and whether it should be sealed anew. Raises CannotOpen; Unavailable where a plugin must be asked and is not there."""
        for i, k in enumerate(self.keys):
            if k.prefix:
                if not data.startswith(k.prefix):
                    continue
                try:
                    text, stale = k.open(data[len(k.prefix):], key.encode())
                    return text, stale or i > 0
                except Unavailable:
                    raise
                except Exception:                       # each library has its own; several keys may share a name
                    continue
            elif not data.startswith(PREFIX):
                return data, i > 0
        raise CannotOpen(f"{key}: no matching key; the value begins with {_named(data)}")


def _named(data: bytes) -> str:
    head = data[:200].split(b":")[:5]
    return ":".join(p.decode("ascii", "replace") for p in head) if data.startswith(PREFIX) and len(head) == 5 else "plain text"


PLAIN_ONLY = Chain((PLAIN,))


# --- configuration --------------------------------------------------------------------------------------------------------------------

class Encryption:
    """What an EncryptionConfiguration says: the chain for every key of the store."""

    def __init__(self, rules: list[tuple[list[str], Chain]], plugins: list[Any] | None = None) -> None:
        self._rules, self.plugins = rules, plugins or []
        self._by_prefix: dict[str, Chain] = {}

    def problems(self) -> list[str]:
        """What is wrong with the plugins."""
        return [f"kms-provider {p.name}: {p.problem}" for p in self.plugins if p.problem]

    def close(self) -> None:
        for p in self.plugins:
            p.close()

    def chain(self, key: str) -> Chain:
        """The chain for a store key: that of the first rule that names its resource."""
        if not key.startswith(ROOT):
            return PLAIN_ONLY
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
        return PLAIN_ONLY


def parse(doc: Any) -> Encryption:
    """An EncryptionConfiguration as read from YAML. Raises BadConfiguration."""
    if not isinstance(doc, dict) or doc.get("kind") != "EncryptionConfiguration":
        raise BadConfiguration("kind must be EncryptionConfiguration")
    if doc.get("apiVersion") not in ("apiserver.config.k8s.io/v1", "v1"):
        raise BadConfiguration(f"apiVersion must be apiserver.config.k8s.io/v1, not {doc.get('apiVersion')!r}")
    if not doc.get("resources") or not isinstance(doc["resources"], list):
        raise BadConfiguration("resources: Required value: at least one resources is required")
    rules: list[tuple[list[str], Chain]] = []
    plugins: list[Any] = []
    for i, rule in enumerate(doc["resources"]):
        at = f"resources[{i}].resources"
        names = rule.get("resources") if isinstance(rule, dict) else None
        if not names or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise BadConfiguration(f"{at}: Required value: at least one {at} is required")
        _check_overlap(names, at)
        for j, name in enumerate(names):
            _check_resource(name, f"{at}[{j}]")
        at, providers = f"resources[{i}].providers", rule.get("providers")
        if not providers or not isinstance(providers, list):
            raise BadConfiguration(f"{at}: Required value: at least one {at} is required")
        rules.append((names, Chain(tuple(k for j, p in enumerate(providers) for k in _provider(p, f"{at}[{j}]", plugins)))))
    return Encryption(rules, plugins)


def _group_resource(name: str) -> tuple[str, str]:
    resource, _, group = name.partition(".")
    return group, resource


def _check_overlap(names: list[str], at: str) -> None:
    if len(set(names)) < len(names):
        raise BadConfiguration(f"{at}: Invalid value: the same resource cannot be specified multiple times")
    parsed = [_group_resource(n) for n in names]
    if len(parsed) > 1 and (("*", "*") in parsed or any(resource == "*" and sum(g == group for g, _ in parsed) > 1 for group, resource in parsed)):
        raise BadConfiguration(f"{at}: Invalid value: using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed "
                               "as they will be masked")


def _check_resource(name: str, at: str) -> None:
    group, resource = _group_resource(name)
    why = ""
    if name != name.lower():
        why = "resource name should not contain capital letters"
    elif name == "*":
        why = "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
    elif name in ("apiserveripinfo", "serviceipallocations", "servicenodeportallocations"):
        why = "resources which do not have REST API/s cannot be encrypted"
    elif group == "events.k8s.io":
        why = "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
    elif group == "extensions":
        why = "'extensions' group has been removed and cannot be used for encryption"
    elif group == "*" and resource != "*":
        why = "encrypting the same resource across groups is not supported"
    if why:
        raise BadConfiguration(f'{at}: Invalid value: "{name}": {why}')


def _provider(provider: Any, at: str, plugins: list[Any]) -> Iterator[Key]:
    if not isinstance(provider, dict) or len(provider) > 1:
        raise BadConfiguration(f"{at}: Invalid value: more than one provider specified in a single element, should split into different list elements")
    name, body = next(iter(provider.items()), ("", None))
    if name == IDENTITY:
        yield PLAIN
    elif name == "kms":
        yield _kms(body, f"{at}.kms", plugins)
    elif name in _CIPHERS:
        yield from _keys(name, body, f"{at}.{name}.keys")
    else:
        raise BadConfiguration(f"{at}: Invalid value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity")


def _kms(body: Any, at: str, plugins: list[Any]) -> Key:
    if not isinstance(body, dict):
        raise BadConfiguration(f"{at}: must be an object")
    for field in body.keys() - {"apiVersion", "name", "endpoint", "timeout", "cachesize"}:
        raise BadConfiguration(f'strict decoding error: unknown field "{at}.{field}"')
    version, name, endpoint = (str(body.get(f) or "") for f in ("apiVersion", "name", "endpoint"))
    if version not in ("", "v1", "v2"):
        raise BadConfiguration(f'{at}.apiVersion: Invalid value: "{version}": unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported')
    if version != "v2":
        raise BadConfiguration(f"{at}.apiVersion: KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead")
    if not name:
        raise BadConfiguration(f"{at}.name: Required value: name is a mandatory field for a provider")
    if ":" in name:
        raise BadConfiguration(f'{at}.name: Invalid value: "{name}": invalid KMS provider name {name}, must not contain \':\'')
    if any(p.name == name for p in plugins):
        raise BadConfiguration(f'{at}.name: Invalid value: "{name}": duplicate KMS provider name {name}, names must be unique')
    if not endpoint:
        raise BadConfiguration(f'{at}.endpoint: Invalid value: "": endpoint is a mandatory field for a kms')
    scheme, _, path = endpoint.partition("://")
    if scheme != "unix" or not path:
        raise BadConfiguration(f'{at}.endpoint: Invalid value: "{endpoint}": unsupported scheme "{scheme}" for KMS provider, only unix is supported')
    if body.get("cachesize") is not None:
        raise BadConfiguration(f"{at}.cachesize: Invalid value: {body['cachesize']}: cachesize is not supported in v2")
    from kubern.store.kms import Plugin

    plugins.append(Plugin(name, endpoint, _timeout(body.get("timeout"), f"{at}.timeout")))
    return Key(b"k8s:enc:kms:v2:%b:" % name.encode(), plugins[-1].seal, plugins[-1].open)


def _timeout(text: Any, at: str) -> float:
    if text is None:
        return KMS_TIMEOUT_S
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        number = str(text).removesuffix(unit)
        if number != str(text):
            try:
                if float(number) > 0:
                    return float(number) * factor
            except ValueError:
                continue
    raise BadConfiguration(f'{at}: Invalid value: "{text}": timeout should be a positive value')


def _keys(provider: str, body: Any, at: str) -> Iterator[Key]:
    keys = body.get("keys") if isinstance(body, dict) else None
    if not keys or not isinstance(keys, list):
        raise BadConfiguration(f"{at}: Required value: at least one keys is required")
    for i, key in enumerate(keys):
        where = f"{at}[{i}]"
        if not isinstance(key, dict) or not isinstance(key.get("name"), str) or not key["name"]:
            raise BadConfiguration(f"{where}.name: Required value: name is a mandatory field for a key")
        if ":" in key["name"]:
            raise BadConfiguration(f"{where}.name: must not hold a colon")
        if not key.get("secret"):
            raise BadConfiguration(f"{where}.secret: Required value: secret is a mandatory field for a key")
        try:
            secret = base64.b64decode(str(key["secret"]), validate=True)
        except binascii.Error:
            raise BadConfiguration(f'{where}.secret: Invalid value: "REDACTED": secrets must be base64 encoded') from None
        if len(secret) not in KEY_BYTES[provider]:
            sizes = " ".join(map(str, KEY_BYTES[provider]))
            raise BadConfiguration(f'{where}.secret: Invalid value: "REDACTED": secret is not of the expected length, got {len(secret)}, '
                                   f"expected one of [{sizes}]")
        yield _key(provider, key["name"], secret)


def _key(provider: str, name: str, secret: bytes) -> Key:
    seal, opened = _CIPHERS[provider](secret)
    return Key(b"k8s:enc:%b:v1:%b:" % (provider.encode(), name.encode()), seal, lambda text, bound: (opened(text, bound), False))


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
