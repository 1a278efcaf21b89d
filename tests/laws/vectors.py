"""Upstream's API objects with every field filled, as JSON and in the binary form; they lie beside the repository, not in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[3] / "shared" / "data" / "api-objects"
WHY_NOT = f"upstream's API objects are not at {HOME}"


def names() -> list[str]:
    """Every vector; one that says it is missing where there are none."""
    return sorted(p.stem for p in HOME.glob("*.json")) if HOME.is_dir() else []


def load(name: str) -> tuple[dict[str, Any], bytes]:
    """(as JSON data, in the binary form)."""
    return json.loads((HOME / f"{name}.json").read_text()), (HOME / f"{name}.pb").read_bytes()
