"""Runs each part of the GPU benchmarks in a child process: one that fails or hangs is a result, the others still run.

A child is a fork of this process, which has imported everything that krill-train does and does not use CUDA, so it
starts at once. It reports figures while it works; what it has reported before it fails counts.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from krill.cli.compose import compose_config
from krill.errors import get_first_line
from krill.launch.preload import PRELOADED_MODULES
from krill.resources import is_out_of_memory
from krill.signals import die_with_parent
from krill.training import run as training
from krill.training.trainer import KrillTrainer

Report = Callable[[dict[str, Any]], None]
LOG_LINES = 80
ENDED = "ended with"


@dataclass
class Outcome:
    """What a child reported, and how it ended."""

    values: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Why it failed, in a line; None: it did not."""
    is_out_of_memory: bool = False
    log: list[str] = field(default_factory=list)
    """The last lines that it printed."""

    def describe_end(self) -> dict[str, Any]:
        """Returns the log, after why it failed, if it did."""
        return ({"failed": self.error} if self.error else {}) | {"log": self.log}


def run_in_child(
    function: Callable[..., None],
    *arguments: Any,
    seconds: float,
    on_report: Callable[[dict[str, Any]], None] = lambda values: None,
    start_method: str = "fork",
) -> Outcome:
    """Calls `function(report, *arguments)` in a child process, which is killed after `seconds`.

    `on_report`: called in this process with all values reported so far, whenever the child reports some.
    """
    context: Any = multiprocessing.get_context(start_method)
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary) / "log.txt"
        child = context.Process(target=_run, args=(sender, log, function, arguments))
        sys.stdout.flush()
        child.start()
        sender.close()
        outcome = Outcome()
        ends_at = time.monotonic() + seconds
        while True:
            if not receiver.poll(max(0.0, ends_at - time.monotonic())):
                outcome.error = f"stopped after {seconds:.0f} seconds"
                break
            try:
                values, ended = receiver.recv()
            except EOFError:
                child.join()
                outcome.error = f"its process ended with {child.exitcode}"
                break
            if ended:
                outcome.error, outcome.is_out_of_memory = ended
                break
            outcome.values |= values
            on_report(outcome.values)
        if outcome.error:
            child.kill()
        child.join()
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        outcome.log = [line for line in lines if line.strip()][-LOG_LINES:]
        if outcome.error and outcome.error.startswith(ENDED) and outcome.log:
            outcome.error += f": {outcome.log[-1]}"
    return outcome


def _run(sender: Any, log: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    sys.stdout = sys.stderr = file = open(log, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    ended: tuple[str | None, bool] = None, False
    try:
        function(lambda values: sender.send((values, None)), *arguments)
    except SystemExit as end:
        ended = f"{ENDED} {end.code}", False
    except BaseException as error:
        traceback.print_exc()
        ended = f"{type(error).__name__}: {get_first_line(error)}", is_out_of_memory(error)
    sender.send(({}, ended))


def describe_device(report: Report, device: str) -> None:
    """Reports the machine and the versions of CUDA; fails if CUDA is requested and does not work."""
    values: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processor": "cpu",
        "python": platform.python_version(),
    }
    if device == "cuda":
        torch.zeros(1, device=device)
        values |= {
            "processor": torch.cuda.get_device_name(),
            "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    report(values)


def find_start_method(device: str) -> tuple[str, dict[str, Any]]:
    """Returns how children are to be started, and the hardware.

    fork; spawn, which imports everything again in each child, if an import has touched CUDA, which a fork cannot use.
    Ends the benchmark if the device does not work in either.
    """
    for module in PRELOADED_MODULES["train"]:
        import_module(module)
    compose_config("train", [])  # Hydra imports its plugins
    outcome = Outcome()
    for method in ("fork", "spawn"):
        outcome = run_in_child(describe_device, device, seconds=120, start_method=method)
        if outcome.error is None:
            return method, outcome.values
    raise SystemExit("\n".join([*outcome.log, f"{device} does not work here: {outcome.error}"]))


def add_training_callback(callback: Any) -> None:
    """Gives every training of krill in this process a callback."""

    def build_trainer(*arguments: Any, **options: Any) -> KrillTrainer:
        trainer = KrillTrainer(*arguments, **options)
        trainer.add_callback(callback)
        return trainer

    vars(training)["KrillTrainer"] = build_trainer
