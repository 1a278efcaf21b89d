"""A kubeconfig as a sender: the current context's server, CA and identity (certificate or token), embedded or in files beside it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from kubern.client.http import HttpSender


def sender_of(path: Path | str) -> HttpSender:
    """The sender for a kubeconfig's current context. Raises ValueError if the file is none, OSError if it cannot be read."""
    import yaml

    file = Path(path)
    try:
        doc = yaml.safe_load(file.read_text())
        context = _named(doc, "contexts", doc["current-context"])["context"]
        cluster = _named(doc, "clusters", context["cluster"])["cluster"]
        user = _named(doc, "users", context["user"]).get("user") or {}
        server = cluster["server"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{file} is not a kubeconfig with a current context: {e}") from e
    token = user.get("token") or ""
    if not token and user.get("tokenFile"):
        token = (file.parent / user["tokenFile"]).read_text().strip()
    return HttpSender(server, _data(file, cluster, "certificate-authority"), _data(file, user, "client-certificate"),
                      _data(file, user, "client-key"), token, insecure=bool(cluster.get("insecure-skip-tls-verify")))


def _named(doc: Any, section: str, name: str) -> dict[str, Any]:
    for entry in doc.get(section) or ():
        if entry.get("name") == name:
            return entry
    raise KeyError(f"{section} has no {name!r}")


def _data(file: Path, where: dict[str, Any], name: str) -> bytes | None:
    """NAME-data decoded, or the file NAME names."""
    if where.get(f"{name}-data"):
        return base64.b64decode(where[f"{name}-data"])
    if where.get(name):
        return (file.parent / where[name]).read_bytes()
    return None
