"""KMS v2: the key that seals is kept by a plugin outside, reached over a unix socket by gRPC.

The plugin never sees the objects: it seals a random seed, and every value is sealed with a key derived from the seed and 32 random bytes of its
own. One seed serves until the plugin names another key; it may be used for writing for three minutes after the plugin was last heard of, for
reading as long as it is remembered. A value carries the sealed seed and the plugin's key id, so that whoever can ask the plugin can open it.
Calls to the plugin stop the caller's thread; they are rare: at start, when the key changes, and for a seed another server has made. Not v1.
Upstream: KEP-3299; kms/apis/v2/api.proto; apiserver storage/value/encrypt/envelope/kmsv2, storage/value/encrypt/aes (extended nonce).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from kubern.store.messages import classes
from kubern.store.protocol import Unavailable

log = logging.getLogger(__name__)

POLL_S, POLL_AGAIN_S = 60.0, 10.0      # while all is well, and while not
WRITE_S = 180.0                        # how long a seed seals after the plugin was last well
SEEDS_MAX = 1_000
SEED_BYTES = INFO_BYTES = 32
KEY_ID_BYTES_MAX = SOURCE_BYTES_MAX = 1024
ANNOTATIONS_BYTES_MAX = 32 * 1024
HKDF_SEED = 1                          # encryptedDEKSourceType; 0 is a key used as it is, which older servers wrote

_SERVICE = "/v2.KeyManagementService/"
_TABLE = """
Annotation: 1 key string, 2 value bytes
StatusRequest:
StatusResponse: 1 version string, 2 healthz string, 3 key_id string
DecryptRequest: 1 ciphertext bytes, 2 uid string, 3 key_id string, 4 annotations *Annotation
DecryptResponse: 1 plaintext bytes
EncryptRequest: 1 plaintext bytes, 2 uid string
EncryptResponse: 1 ciphertext bytes, 2 key_id string, 3 annotations *Annotation
EncryptedObject: 1 encryptedData bytes, 2 keyID string, 3 encryptedDEKSource bytes, 4 annotations *Annotation, 5 encryptedDEKSourceType int32
"""


@cache
def _classes() -> dict[str, Any]:
    return classes("v2", _TABLE)


def message(name: str, **fields: Any) -> Any:
    return _classes()[name](**fields)


@dataclass(frozen=True, slots=True)
class Seed:
    """What seals now."""

    secret: bytes
    envelope: Any                      # an EncryptedObject without its data
    key_id: str


class Plugin:
    """One plugin. `seal` and `open` are those of a Key (encryption.py). Raises Unavailable where the plugin would be needed and is not there."""

    def __init__(self, name: str, endpoint: str, timeout_s: float = 3.0, now: Callable[[], float] = time.monotonic) -> None:
        self.name, self._endpoint, self._timeout_s, self._now = name, endpoint, timeout_s, now
        self._calls: dict[str, Any] = {}
        self._channel: Any = None
        self._seed: Seed | None = None
        self._well_s = 0.0                                           # when the plugin was last well
        self._secrets: dict[bytes, tuple[bytes, int]] = {}           # sealed seed and key id -> (seed or key, type)
        self.problem = "not asked yet"
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._poller: threading.Thread | None = None

    # --- calls ---

    def _call(self, method: str, request: Any) -> Any:
        import grpc

        with self._lock:
            if self._channel is None:
                self._channel = grpc.insecure_channel("unix:" + self._endpoint.removeprefix("unix://"), [("grpc.enable_retries", 0)])
                for m in ("Status", "Encrypt", "Decrypt"):
                    self._calls[m] = self._channel.unary_unary(_SERVICE + m, request_serializer=lambda r: r.SerializeToString(),
                                                               response_deserializer=_classes()[f"{m}Response"].FromString)
        try:
            return self._calls[method](request, timeout=self._timeout_s)
        except grpc.RpcError as e:
            code = getattr(e, "code", lambda: None)()
            raise Unavailable(f"KMS plugin {self.name}: {method}: {getattr(code, 'name', code)}: {getattr(e, 'details', lambda: '')() or ''}") from None
        except ValueError as e:                                      # the channel was closed under us
            raise Unavailable(f"KMS plugin {self.name}: {e}") from None

    def poll(self) -> None:
        """Asks how the plugin is, and for a new seed where it uses another key. Never raises: `problem` says what is wrong."""
        try:
            status = self._call("Status", message("StatusRequest"))
            if status.version not in ("v2", "v2beta1"):
                raise Unavailable(f"expected version v2, got {status.version}")
            if status.healthz != "ok":
                raise Unavailable(f"got unexpected healthz status: {status.healthz}")
            if not 0 < len(status.key_id.encode()) <= KEY_ID_BYTES_MAX:
                raise Unavailable(f"got invalid KMSv2 KeyID of {len(status.key_id.encode())} bytes")
            if self._seed is None or self._seed.key_id != status.key_id:
                self._seed = self._sealed_seed()
            self._well_s = self._now()
            self.problem = ""
        except Unavailable as e:
            self.problem = str(e)
            log.warning("kms-provider %s: %s", self.name, e)

    def _sealed_seed(self) -> Seed:
        secret = os.urandom(SEED_BYTES)
        sealed = self._call("Encrypt", message("EncryptRequest", plaintext=secret, uid=str(uuid.uuid4())))
        envelope = message("EncryptedObject", keyID=sealed.key_id, encryptedDEKSource=sealed.ciphertext, annotations=sealed.annotations,
                           encryptedDEKSourceType=HKDF_SEED)
        why = _unfit(envelope)
        if why:
            raise Unavailable(f"KMS plugin {self.name}: Encrypt: {why}")
        self._remember(_source(envelope), secret, HKDF_SEED)
        return Seed(secret, envelope, sealed.key_id)

    def _started(self) -> None:
        """The first use asks at once, then a thread asks once a minute."""
        if self._poller is None:
            self.poll()
            self._poller = threading.Thread(target=self._run, name=f"kms {self.name}", daemon=True)
            self._poller.start()

    def _run(self) -> None:
        while not self._ended.wait(POLL_AGAIN_S if self.problem else POLL_S):
            self.poll()

    def close(self) -> None:
        self._ended.set()
        with self._lock:
            if self._channel is not None:
                self._channel.close()

    # --- values ---

    def seal(self, text: bytes, bound: bytes) -> bytes:
        self._started()
        seed = self._seed
        if seed is None:
            raise Unavailable(self.problem)
        if self._now() - self._well_s > WRITE_S:
            raise Unavailable(f"the key of KMS plugin {self.name} has expired: {self.problem}")
        info, nonce = os.urandom(INFO_BYTES), os.urandom(12)
        out = message("EncryptedObject")
        out.CopyFrom(seed.envelope)
        out.encryptedData = info + nonce + _cipher(seed.secret, info).encrypt(nonce, text, bound)
        return bytes(out.SerializeToString())

    def open(self, data: bytes, bound: bytes) -> tuple[bytes, bool]:
        """The text, and whether it is sealed with another key than now."""
        from google.protobuf.message import DecodeError

        self._started()
        try:
            envelope = _classes()["EncryptedObject"].FromString(data)
        except DecodeError as e:
            raise ValueError(f"no sealed object: {e}") from None
        why = _unfit(envelope, whole=True)
        if why:
            raise ValueError(why)
        source = _source(envelope)
        known = self._secrets.get(source)
        if known is None:
            plain = self._call("Decrypt", message("DecryptRequest", ciphertext=envelope.encryptedDEKSource, uid=str(uuid.uuid4()), key_id=envelope.keyID,
                                                  annotations=envelope.annotations)).plaintext
            known = self._remember(source, plain, envelope.encryptedDEKSourceType)
        secret, kind = known
        sealed = envelope.encryptedData
        if kind == HKDF_SEED:
            info, nonce, rest = sealed[:INFO_BYTES], sealed[INFO_BYTES:INFO_BYTES + 12], sealed[INFO_BYTES + 12:]
            text = _cipher(secret, info).decrypt(nonce, rest, bound)
        else:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            text = AESGCM(secret).decrypt(sealed[:12], sealed[12:], bound)
        seed = self._seed
        return text, seed is not None and (envelope.keyID != seed.key_id or kind != HKDF_SEED)

    def _remember(self, source: bytes, secret: bytes, kind: int) -> tuple[bytes, int]:
        if len(self._secrets) >= SEEDS_MAX:
            self._secrets.clear()
        self._secrets[source] = secret, kind
        return secret, kind


def _cipher(seed: bytes, info: bytes) -> Any:
    """AES-GCM with the key that this seed gives for these 32 bytes; it is used once."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    return AESGCM(HKDFExpand(SHA256(), 32, info).derive(seed))


def _source(envelope: Any) -> bytes:
    """What tells one sealed seed from another."""
    parts: Sequence[bytes] = (b"%d" % envelope.encryptedDEKSourceType, envelope.encryptedDEKSource, envelope.keyID.encode(),
                              *(p for a in sorted(envelope.annotations, key=lambda a: a.key) for p in (a.key.encode(), a.value)))
    return b"".join(b"%d:%b" % (len(p), p) for p in parts)


def _unfit(envelope: Any, whole: bool = False) -> str:
    """What is wrong with a sealed object, "" if nothing."""
    if envelope.encryptedDEKSourceType not in (0, HKDF_SEED):
        return f"unknown encryptedDEKSourceType: {envelope.encryptedDEKSourceType}"
    if whole and not envelope.encryptedData:
        return "encrypted data is empty"
    if not 0 < len(envelope.encryptedDEKSource) <= SOURCE_BYTES_MAX:
        return f"failed to validate encrypted DEK source: it is {len(envelope.encryptedDEKSource)} bytes"
    if not 0 < len(envelope.keyID.encode()) <= KEY_ID_BYTES_MAX:
        return f"failed to validate key id: it is {len(envelope.keyID.encode())} bytes"
    if sum(len(a.key) + len(a.value) for a in envelope.annotations) > ANNOTATIONS_BYTES_MAX:
        return f"failed to validate annotations: they exceed {ANNOTATIONS_BYTES_MAX} bytes"
    return ""
