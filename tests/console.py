"""Runs the console scripts as a user does, for tests of whole commands.

Commands are forked from a server that has imported torch and transformers (krill.launch.preload), which behaves as a
new process does and saves about four seconds each; `is_preloaded=False` starts a real process.
"""

from __future__ import annotations

import atexit
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from krill.launch.preload import PRELOADED_MODULES, RUNNING_SERVER_VARIABLE, PreloadedServer

SECONDS = 300
FORKED_STARTS = Path(__file__).with_name("forked_starts")
SMALL_RUN = (
    "model=llama_pico",
    "sequence_len=64",
    "batch.micro_batch_size=2",
    "tokenizer.vocab_size=600",
    "data.validation_fraction=0.1",
    "steps=4",
    "eval_every=4",
    "eval_tokens=2000",
)
"""Overrides that make a run small."""

MODULES = (
    *PRELOADED_MODULES["train"],
    *PRELOADED_MODULES["infer"],
    "hydra",
    "krill.cli.compose",
    "krill.cli.inspect",
    "krill.cli.inspect_tokenizers",
    "krill.cli.main",
    "krill.cli.preprocess",
    "krill.cli.runs",
    "krill.cli.serve",
    "krill.serving.app",
    "krill.serving.server",
    "krill.cli.tokenizer",
    "krill.inspection.store_report",
    "krill.launch.auto_processes",
    "krill.launch.run_names",
    "krill.sweep.composer",
    "krill.sweep.plugins",
    "krill.sweep.sweeper",
    "krill.plan.dry_run",
)

CompletedCommand = subprocess.CompletedProcess[str]
Krill = Callable[..., CompletedCommand]


def get_clean_environment() -> dict[str, str]:
    """Returns the environment of a command: offline, one thread, no calibration, no other KRILL_ variable."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KRILL_", "PYTEST_"))}
    return clean | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "KRILL_CALIBRATION": "off"}


@cache
def get_server() -> PreloadedServer:
    """Returns the fork server of this test process."""
    server = PreloadedServer.start(MODULES, get_clean_environment())
    atexit.register(server.close)
    return server


def get_preloaded_environment() -> dict[str, str]:
    """Returns the variable with which a command forks the points of a sweep, and ranks, from the same server."""
    address = get_server().address
    return {} if address is None else {RUNNING_SERVER_VARIABLE: str(address)}


def get_forked_starts(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Returns the variables with which a program that starts jobs or krill-train has them forked from the server.

    They get `environment`, which is written to `folder`, without what the program adds for the imports.
    """
    if not (preloaded := get_preloaded_environment()):
        return {}
    file = folder / "server_environment.json"
    file.write_text(json.dumps(environment))
    return preloaded | {"KRILL_SERVER_ENVIRONMENT": str(file), "PYTHONPATH": str(FORKED_STARTS)}


def run_command(
    cwd: Path, command: str, *arguments: str, is_preloaded: bool = True, **environment: str
) -> CompletedCommand:
    """Runs a console script (`krill`, `krill-train`, …) in `cwd`."""
    words = [str(Path(sys.executable).with_name(command)), *arguments]
    return run_words(cwd, words, get_clean_environment() | environment, is_preloaded)


def run_words(
    cwd: Path, words: list[str], environment: dict[str, str], is_preloaded: bool = True
) -> CompletedCommand:
    """Runs a command with its output captured."""
    if not is_preloaded:
        return subprocess.run(
            words, cwd=cwd, env=environment, text=True, capture_output=True, timeout=SECONDS
        )
    environment = environment | get_preloaded_environment()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = get_server().spawn(words, env=environment, cwd=cwd, stdout=stdout, stderr=stderr)
        try:
            code = process.wait(SECONDS)
        finally:
            process.kill()
        output = []
        for stream in (stdout, stderr):
            stream.seek(0)
            output.append(stream.read().decode())
    return CompletedCommand(words, code, *output)


def error_messages(done: CompletedCommand) -> list[str]:
    """Returns the lines of a usage error; fails on everything else that a command may end with."""
    assert done.returncode == 2, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(": error: " in line for line in lines), done.stderr
    return [line.partition(": error: ")[2] for line in lines]


def is_empty(folder: Path) -> bool:
    """Whether nothing was written to `folder`."""
    return not any(folder.iterdir())


def read_status_file(folder: Path) -> dict[str, object]:
    """Returns status.json of a run folder."""
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))


def read_table(folder: Path) -> list[dict[str, str]]:
    """Returns the table that a sweep in `folder` ended with."""
    with open(folder / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))
