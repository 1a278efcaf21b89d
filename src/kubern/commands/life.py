"""`kubern up` and `down`, and its place in ~/.kube/config."""

from __future__ import annotations

import os
from pathlib import Path

from kubern.commands.nodes import ensure_nodes
from kubern.commands.terminal import say
from kubern.config import Settings
from kubern.daemon import run_here, running_pid, start_background, stop_process


def up(s: Settings, *, detach: bool, merge: bool, host_node: bool = False) -> int:
    """Start the cluster in this process, or in the background; `host_node`: and make this machine a node of it. Returns the exit code."""
    if host_node and not detach:
        say("kubern: --host-node goes with --detach: the node outlives the command")
        return 2
    try:
        s.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(s.home, os.W_OK | os.X_OK):
            raise PermissionError(f"{s.home} is not writable")
    except OSError as e:
        say(f"kubern: the data directory cannot be used ({e}); choose another with --data-dir")
        return 1
    pid = running_pid(s.home)
    if pid:
        say(f"the cluster in {s.data_dir} is already running (process {pid})")
        return ensure_nodes(s) or (_host_node(s) if host_node else 0)
    if not detach:
        return run_here(s)
    code = start_background(s)
    if code == 0 and merge:
        merge_context(s)
    return code or (_host_node(s) if host_node else 0)


def _host_node(s: Settings) -> int:
    from kubern.commands import join, tokens

    return join.host_node(s, tokens.new_token())


def down(s: Settings, *, purge: bool) -> int:
    """Stop everything of this cluster on this machine, and with `purge` forget it."""
    there = stop_process(s.home)
    if os.geteuid() == 0 and s.home.exists():
        from kubern.kubelet import node

        for u in node.list_units(s.home):
            say(f"  stopping {u.name}")
            node.destroy_unit(s.home, u.name, purge=purge)
            there = True
        for name in (p.parent for p in s.home.glob("nodes/*/killed")):
            (name / "killed").unlink()
        there = bool(node.cleanup_stale(s.home)) or there
    if purge and s.home.exists():
        import shutil

        shutil.rmtree(s.home)
        say(f"{s.data_dir} is deleted")
    elif there:
        say(f"the cluster is down; its data stays in {s.data_dir} (kubern down --purge deletes it)")
    else:
        say(f"no cluster is running in {s.data_dir}")
    return 0


def merge_context(s: Settings) -> None:
    """Add this cluster's context to the user's own kubeconfig, the first file of KUBECONFIG, and say so."""
    import yaml

    from kubern.pki import merge_kubeconfig

    target = Path((os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")).split(os.pathsep)[0])
    config = yaml.safe_load((s.home / "admin.kubeconfig").read_text())
    merge_kubeconfig(target, config)
    say(f"context {config['current-context']} is now in {target}")
