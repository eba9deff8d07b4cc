"""Times a few steps of a training in a process of its own, for krill-plan plan.measure=true; imports no torch.

The process is `python -m krill.launch.measured_steps FOLDER`, where FOLDER is temporary and holds all that it writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.schema import TrainConfig
from krill.errors import KrillError, SignalInterrupt
from krill.plan.timing import TimedSize, TimedTraining
from krill.signals import describe_exit, raise_on_signal

REQUEST, RESULT, LOG = "request.json", "result.json", "log.txt"


def time_training(
    config: TrainConfig,
    sizes: Sequence[tuple[int, int]],
    is_compiled: bool,
    vocab_size: int,
    inputs: tuple[Path, Path] | None,
) -> TimedTraining:
    """Returns what a few steps of `config` take on this machine.

    Args:
        config: The run, on one rank.
        sizes: Rows of a micro batch, and forward passes of a step, the smallest first.
        is_compiled: Whether the run is compiled.
        vocab_size: Entries of its tokenizer.
        inputs: Folders of its tokenizer and of its tokens; None: they are not prepared, random tokens do as well.

    Raises:
        KrillError: the training failed, or ran out of memory.
        SignalInterrupt: a signal ended the measurement; its folder is removed.
    """
    try:
        with raise_on_signal(), tempfile.TemporaryDirectory(prefix="krill-plan-") as name:
            folder = Path(name)
            request = {
                "config": config.model_dump(
                    mode="json", by_alias=True, include=set(TrainConfig.model_fields)
                ),
                "sizes": list(sizes),
                "is_compiled": is_compiled,
                "vocab_size": vocab_size,
                "inputs": inputs and [str(path.absolute()) for path in inputs],
                "started_at": time.time(),
            }
            atomic.write_json(folder / REQUEST, request, 0o600)
            code = _run_process([sys.executable, "-m", "krill.launch.measured_steps", name], folder / LOG)
            result = _read_result(folder, code)
    except SignalInterrupt as interrupt:
        name = interrupt.signal.name if interrupt.signal else "a signal"
        message = f"plan.measure=true: interrupted by {name}; nothing was kept"
        raise SignalInterrupt(message, interrupt.exit_code, interrupt.signal) from None
    return TimedTraining([TimedSize(**size) for size in result["sizes"]], result["startup"])


def _run_process(command: list[str], log_file: Path) -> int:
    """Returns the exit code of `command`, which is killed if this process is interrupted."""
    with open(log_file, "wb") as output:
        process = subprocess.Popen(
            command, env=dict(os.environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            return process.wait()
        finally:
            process.kill()
            process.wait()


def _read_result(folder: Path, code: int) -> dict[str, Any]:
    """Returns what the process wrote. Raises KrillError with its message, or its last line, if it failed."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
    except FileNotFoundError:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise KrillError(f"plan.measure=true: the training {describe_exit(code)}: {last}") from None
    if "error" in result:
        raise KrillError(f"plan.measure=true: {result['error']}")
    return result
