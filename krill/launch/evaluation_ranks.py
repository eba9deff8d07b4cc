"""The ranks of one evaluation on this machine, which share the sequences of each task.

Each is a process `python -m krill.launch.evaluation_rank FOLDER`, where FOLDER is temporary. Rank 0
writes the results and logs to the terminal.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from krill import atomic
from krill.config.schema import EvaluateConfig
from krill.evaluation.model_evaluation import ModelEvaluation
from krill.evaluation.rank_share import RankShare
from krill.evaluation.results import TaskResult
from krill.launch.local import RANK_GRACE_SECONDS, build_rank_environment, count_local_ranks
from krill.launch.preload import PreloadedServer
from krill.launch.rank_errors import build_rank_failure, pop_first_rank_error
from krill.launch.supervise import ProcessGroup
from krill.models.model_folder import silence_transformers
from krill.training.compute.device import resolve_device
from krill.training.ranks import all_gather_object, get_rank, get_world_size

EVALUATION_CONFIG = "config.json"
"""The configuration of the ranks, in their temporary folder."""


def open_evaluation(config: EvaluateConfig) -> ModelEvaluation:
    """Opens the evaluation of `config` on the device of this rank; raises as `ModelEvaluation.open` does."""
    silence_transformers()
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    kind = resolve_device(config.device)
    device = (
        torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    )
    return ModelEvaluation.open(config, device, RankShare(get_rank(), get_world_size(), all_gather_object))


def run_evaluation(config: EvaluateConfig, evaluation: ModelEvaluation) -> list[TaskResult]:
    """Returns the results of `evaluation`, the same on every rank.

    A single process starts hardware.processes ranks if there are new ones. Raises KrillError if one fails,
    SignalInterrupt if a signal ended them.
    """
    world_size = count_local_ranks(config)
    is_complete = len(evaluation.find_results()) == len(evaluation.tasks)
    if evaluation.share.world_size > 1 or world_size == 1 or is_complete:
        return evaluation.run()
    _evaluate_on_ranks(config.model_copy(update={"output": str(evaluation.root)}), world_size)
    return replace(evaluation, again=False).run(level=logging.DEBUG)


def _evaluate_on_ranks(config: EvaluateConfig, world_size: int) -> None:
    """Evaluates the tasks of `config` on ranks, of which rank 0 writes the results below config.output."""
    store_server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = ProcessGroup(PreloadedServer.get_running().spawn)
    failed: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="krill-evaluate-") as name:
        folder = Path(name)
        content = config.model_dump(mode="json", by_alias=True)
        atomic.write_json(folder / EVALUATION_CONFIG, content, 0o600)
        command = [sys.executable, "-m", "krill.launch.evaluation_rank", name]
        try:
            for rank in range(world_size):
                ranks.start(
                    rank,
                    command,
                    build_rank_environment(rank, world_size, config.hardware, store_server.port),
                )
            with ranks.forward_signals():
                while ranks and not failed:
                    failed = {rank: code for rank, code in ranks.wait_any() if code}
                if failed:
                    ranks.send_signal(signal.SIGTERM)
                failed |= {rank: code for rank, code in ranks.wait(RANK_GRACE_SECONDS).items() if code}
        finally:
            ranks.kill()
        reported = pop_first_rank_error(folder, world_size)
    if failed:
        raise build_rank_failure(
            failed, reported, "the results so far are kept, run the same command to evaluate the rest"
        )
