"""`kubern` and `python -m kubern`: the command line, kept quick to start; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import sys


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "_node":        # the supervisor of a node unit: no command line to parse
        from kubern.kubelet.unit import supervise

        sys.exit(supervise(sys.argv[2:]))
    if len(sys.argv) > 1 and sys.argv[1] == "_up":          # a cluster in the background: its settings come on standard input
        import json

        from kubern.config import Settings
        from kubern.daemon import run_here

        sys.exit(run_here(Settings(**json.load(sys.stdin))))
    from kubern.cli import app

    app(prog_name="kubern")


if __name__ == "__main__":
    main()
