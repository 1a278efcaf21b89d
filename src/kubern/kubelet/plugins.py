"""Plugins of the node: sockets in ROOT/plugins_registry, each asked who it is and handed to whoever looks after its type.

In: a table type -> Keeper (CSI drivers, DRA drivers, device plugins). A socket that goes, or is made anew, is a plugin that went.
Not what a plugin does: that is csi.py, claims.py, devices.py. Specs: kubelet plugin registration v1; upstream pkg/kubelet/pluginmanager.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from kubern.kubelet import proto

log = logging.getLogger(__name__)

LOOK_S = 1.0
MESSAGES: proto.Messages = {
    "InfoRequest": (), "Empty": (),
    "PluginInfo": (("type", 1, "string"), ("name", 2, "string"), ("endpoint", 3, "string"), ("supported_versions", 4, "string*")),
    "RegistrationStatus": (("plugin_registered", 1, "bool"), ("error", 2, "string")),
}


class Keeper(Protocol):
    """Who looks after plugins of one type."""

    async def register(self, name: str, socket: str, versions: list[str]) -> None:
        """Takes the plugin in; raises with the reason if it cannot."""
        ...

    async def unregister(self, name: str, socket: str) -> None:
        """The plugin's registration socket went."""
        ...


@cache
def classes() -> proto.Classes:
    return proto.define("kubern.pluginregistration", MESSAGES)


async def watch(root: str, keepers: Mapping[str, Keeper]) -> None:
    """Looks for sockets of registrars for ever."""
    folder = f"{root}/plugins_registry"
    os.makedirs(folder, exist_ok=True)
    os.makedirs(f"{root}/plugins", exist_ok=True)
    known: dict[str, tuple[str, str, str, float]] = {}                # registry socket -> (type, name, endpoint, its mtime)
    while True:
        found = await asyncio.to_thread(_sockets, folder)
        for path in [p for p, k in known.items() if found.get(p) != k[3]]:
            type_, name, endpoint, _ = known.pop(path)
            try:
                await keepers[type_].unregister(name, endpoint)
            except Exception as e:
                log.info("plugin %s: %s", path, e)
        for path in found.keys() - known.keys():
            try:
                known[path] = (*await _register(path, keepers), found[path])
            except Exception as e:
                log.info("plugin %s: %s", path, e)
        await asyncio.sleep(LOOK_S)


async def _register(path: str, keepers: Mapping[str, Keeper]) -> tuple[str, str, str]:
    """Asks a registrar who it is, and tells it what came of it: (type, name, endpoint). Raises when it was refused."""
    c = classes()
    info = await proto.call(path, "/pluginregistration.Registration/GetInfo", c["InfoRequest"](), c["PluginInfo"])
    socket = (info.endpoint or path).removeprefix("unix://")
    keeper = keepers.get(info.type)
    error = ""
    if keeper is None:
        error = f"no handler registered for plugin type: {info.type} at socket {path}"
    else:
        try:
            await keeper.register(info.name, socket, list(info.supported_versions))
        except Exception as e:
            error = f"plugin registration failed with err: {_words(e)}"
    await proto.call(path, "/pluginregistration.Registration/NotifyRegistrationStatus",
                     c["RegistrationStatus"](plugin_registered=not error, error=error), c["Empty"])
    if error:
        raise RuntimeError(error)
    return info.type, info.name, socket


def _words(e: Any) -> str:
    return proto.go_error(e) if hasattr(e, "details") else str(e)


def _sockets(folder: str) -> dict[str, float]:
    """Sockets below a directory -> when they were made."""
    out = {}
    for d, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(d, name)
            try:
                if name.endswith(".sock"):
                    out[path] = os.stat(path).st_mtime
            except OSError:
                continue
    return out
