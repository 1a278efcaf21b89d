"""`kubern` and `python -m kubern`: the command line, kept quick to start; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import sys


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "_node":        # the supervisor of a node unit: no command line to parse
        from kubern.kubelet.unit import supervise

        sys.exit(supervise(sys.argv[2:]))
    from kubern.cli import app

    app(prog_name="kubern")


if __name__ == "__main__":
    main()
