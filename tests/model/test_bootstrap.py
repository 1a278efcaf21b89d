"""Bootstrap tokens: texts, Secrets, signatures, hashes."""

from __future__ import annotations

import base64

import pytest

from kubern.model import bootstrap
from kubern.model.bootstrap import Token

T = Token("abcdef", "0123456789abcdef", 1893456000.0)


def test_a_token_and_its_secret() -> None:
    secret = bootstrap.secret_of(T)
    assert secret["metadata"]["name"] == "bootstrap-token-abcdef" and secret["type"] == "bootstrap.kubernetes.io/token"
    assert bootstrap.values(secret)["expiration"] == "2030-01-01T00:00:00Z"
    assert bootstrap.values(secret)["usage-bootstrap-signing"] == "true"
    assert bootstrap.token_of(secret) == T
    assert bootstrap.token_of({**secret, "type": "Opaque"}) is None
    assert bootstrap.token_of({**secret, "metadata": {"name": "bootstrap-token-zzzzzz"}}) is None
    bad = {**secret, "data": {**secret["data"], "expiration": base64.b64encode(b"soon").decode()}}
    assert bootstrap.expiration(bad) == 1.0                       # what cannot be read has ended


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("1h30m", 5400), ("90s", 90), ("0", 0), ("2d", 172800), ("7", 7)])
def test_durations(text: str, seconds: int) -> None:
    assert bootstrap.ttl_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1x", "1h x", "-1h"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        bootstrap.ttl_seconds(text)


def test_signature() -> None:
    """A value upstream gives for this content, id and secret."""
    content = "Hello from the other side. I must have called a thousand times."
    made = bootstrap.signature(content, "joshua", "my voice is my passcode")
    assert made == "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
    assert bootstrap.is_signed(content, made, "joshua", "my voice is my passcode")
    assert not bootstrap.is_signed(content + "!", made, "joshua", "my voice is my passcode")
    assert not bootstrap.is_signed(content, made, "joshua", "another")
    assert not bootstrap.is_signed(content, made, "another", "my voice is my passcode")
    for junk in ("", "..", "a.b.c", "bm8.x.y", "e30..", "W10.."):
        assert not bootstrap.is_signed(content, junk, "joshua", "my voice is my passcode")


def test_a_malformed_token() -> None:
    for text in ("abcdef", "abcdef.0123", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef "):
        with pytest.raises(ValueError):
            bootstrap.parse(text)
