"""nft: hands text to nft(8), one transaction a call. The only place of the proxy that runs a program."""

from __future__ import annotations

import asyncio

APPLY_S = 120


class NftError(RuntimeError):
    """nft refused the text; nothing of it was applied."""


async def apply(text: str) -> None:
    """All of the text or nothing. Raises NftError."""
    p = await asyncio.create_subprocess_exec("nft", "-f", "-", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
                                             stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(APPLY_S):
            _, err = await p.communicate(text.encode())
    except TimeoutError:
        p.kill()
        await p.wait()
        raise NftError(f"nft did not finish within {APPLY_S} s") from None
    if p.returncode:
        raise NftError(err.decode(errors="replace")[:2000])
