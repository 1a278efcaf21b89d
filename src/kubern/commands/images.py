"""Images that nodes can run without any registry: build the example's, import, list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubern.commands.terminal import say
from kubern.config import Settings


def image_build(s: Settings) -> int:
    from kubern.images import build

    try:
        names = build.ensure(_library(s), progress=lambda text: say(f"  {text}"))
    except build.CannotBuild as e:
        say(f"kubern: {e}")
        return 1
    say(f"built {', '.join(names)}" if names else "the demo images are there already")
    return 0


def image_import(s: Settings, file: Path) -> int:
    from kubern.images.library import BadArchive

    try:
        names = _library(s).import_archive(file)
    except (BadArchive, OSError) as e:
        say(f"kubern: {e}")
        return 1
    for n in names:
        say(n)
    return 0


def image_list(s: Settings) -> int:
    images = _library(s).images()
    if not images:
        say("no images here yet; make the demo's with: kubern image build, or bring some with: kubern image import FILE")
    for i in images:
        say(f"{i.name:<50}{i.size / 1e6:8.1f} MB  {','.join(i.architectures)}  {i.digest[:19]}")
    return 0


def _library(s: Settings) -> Any:
    from kubern.images.library import Library

    return Library(s.home / "images")
