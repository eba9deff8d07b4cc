"""Runs what another program starts, a SLURM job or krill-train, as a fork of the tests' server.

Python imports this module before it runs a command whose PYTHONPATH has this folder (console.get_forked_starts). A
command that imports torch itself needs 7 s of CPU to start.
"""

import json
import os
import sys
from pathlib import Path

arguments = sys.orig_argv[1:]
if arguments[:3] == ["-u", "-m", "krill.cli.job"]:
    del arguments[0]
if arguments[:2] == ["-m", "krill.cli.job"] or arguments[0].endswith("/krill-train"):
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
    # SLURM and torchrun set further variables, in which a fork may not differ from its server.
    environment = json.loads(Path(os.environ["KRILL_SERVER_ENVIRONMENT"]).read_text())
    os.environ.clear()
    os.environ.update(environment | kept)
    os._exit(relay_command(server, [sys.executable, *arguments]))
