"""Runs `python -m krill COMMAND`: the command krill of this Python, also where its scripts are not installed."""

from __future__ import annotations

import sys

from krill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
