"""Services outside the cluster that tests start themselves: TLS on loopback, and what they answer is a function."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import yaml

from kubern import pki

Answer = Callable[[str, str, bytes], "tuple[int, Any]"]      # (method, path, body) -> (status, JSON or bytes)


class Outside:
    """`url`, the CA that signed its certificate, and every request it got."""

    def __init__(self, directory: Path, answer: Answer) -> None:
        self.answer, self.asked = answer, []                 # type: ignore[var-annotated]
        self._ca = pki.authority(directory, "outside-ca", "outside CA")
        pair = pki.serving(directory, "outside", "outside", ["localhost"], ["127.0.0.1"], self._ca)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(pair.cert_path, pair.key_path)
        self.ca = self._ca.cert.decode()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b"\r\n")[0].decode().split(" ", 2)
                length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
                body = await reader.readexactly(length)
                self.asked.append((method, path, body))
                status, said = self.answer(method, path, body)
                data = said if isinstance(said, bytes) else orjson.dumps(said)
                writer.write(b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def kubeconfig(self, path: Path, at: str = "/ask") -> str:
        """A kubeconfig file that leads here."""
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url + at, "certificate-authority-data": base64.b64encode(self.ca.encode()).decode()}}],
            "users": [{"name": "u", "user": {}}]}))
        return str(path)


@asynccontextmanager
async def outside(directory: Path, answer: Answer) -> AsyncIterator[Outside]:
    service = Outside(directory, answer)
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0, ssl=service._tls)
    service.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        server.close()


async def until(happened: Callable[[], Any]) -> None:
    """Waits for something that comes about by itself. Fails after seconds."""
    async with asyncio.timeout(5):
        while True:
            found = happened()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.01)
