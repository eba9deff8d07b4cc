"""Runs a SLURM job of krill as a fork of the tests' server, for a job whose setup puts this folder on PYTHONPATH.

Python imports this module before it runs a command. A job that imports torch itself needs 7 s of CPU to start.
"""

import json
import os
import sys
from pathlib import Path

INTERPRETER_ARGUMENTS = ["-u", "-m", "krill.cli.job"]

if sys.orig_argv[1:4] == INTERPRETER_ARGUMENTS:
    from krill.launch.preload import (
        RUNNING_SERVER_VARIABLE,
        RUNTIME_PREFIXES,
        RUNTIME_VARIABLES,
        relay_command,
    )

    kept = {
        name: value
        for name, value in os.environ.items()
        if name in RUNTIME_VARIABLES or name.startswith(RUNTIME_PREFIXES)
    }
    server = Path(kept[RUNNING_SERVER_VARIABLE])
    # SLURM sets further variables, in which a fork may not differ from its server.
    environment = json.loads(Path(os.environ["KRILL_SERVER_ENVIRONMENT"]).read_text())
    os.environ.clear()
    os.environ.update(environment | kept)
    os._exit(relay_command(server, [sys.executable, *sys.orig_argv[2:]]))
