"""A client that sends intermediates along, over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kubern import pki
from kubern.api import http
from kubern.client.http import HttpSender
from kubern.model.request import Request, Response
from tests.api.test_authn import issued


async def test_intermediates_arrive(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki")
    middle = issued("middle", (made.ca.certificate, made.ca.private_key), ca=True)
    bob = issued("bob", middle)
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(200, [], b"ok")
    context = http.ssl_context(str(made.apiserver.cert_path), str(made.apiserver.key_path), made.ca.cert)
    assert context.verify_mode == ssl.CERT_OPTIONAL
    listening = await http.serve(handle, "127.0.0.1", 0, context)

    def pem(*certificates: Any) -> bytes:
        return b"".join(c.public_bytes(Encoding.PEM) for c, _ in certificates)
    key = bob[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for sent in ((bob, middle), (bob,)):
        sender = HttpSender(f"https://127.0.0.1:{listening.port}", made.ca.cert, pem(*sent), key)
        assert (await sender.send(Request("GET", "/"))).status == 200
        await sender.close()
    der = [c.public_bytes(Encoding.DER) for c, _ in (bob, middle)]
    assert [(r.certificate, r.intermediates) for r in seen] == [(der[0], (der[1],)), (der[0], ())]
    await listening.close(0)
