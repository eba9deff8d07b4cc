"""krill-infer for many prompts: plans the batch, answers it here or on several ranks, and writes the answers.

The parent reads and encodes the prompts. Each rank that it starts is a process `python -m krill.launch.answers
FOLDER` with a device of its own; it answers its share of the prompts and appends them to a file of its own, which the
parent watches and merges. Ranks that torchrun or srun started share out the prompts likewise.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from krill import atomic
from krill.config.paths import get_outputs_root, relative_path
from krill.config.schema import InferConfig
from krill.config.signature import compute_signature
from krill.errors import UsageError
from krill.inference.batch import Answer, AnswerFiles, BatchPlan, answer_prompts, encode_prompts
from krill.inference.batch_progress import BatchProgress
from krill.inference.conversation import select_template
from krill.inference.defaults import MODEL_KEYS, describe_params, read_model_defaults, resolve_params
from krill.inference.load import LoadedModel, ModelFiles, load_model
from krill.inference.prompts import STDIN, Prompt, read_prompts
from krill.inference.token_scores import TOP_ALTERNATIVES
from krill.inspection.scored_text import score_to_json
from krill.inspection.token_display import TokenRenderer
from krill.launch.local import RANK_GRACE_SECONDS, count_local_ranks, get_rank_threads
from krill.launch.preload import PreloadedServer
from krill.launch.rank_errors import build_rank_failure, pop_first_rank_error
from krill.launch.rank_process import run_rank
from krill.launch.supervise import ProcessGroup
from krill.models.model_folder import silence_transformers
from krill.signals import raise_on_signal
from krill.training.compute.compilation import explain_compile_errors, find_compile_obstacle
from krill.training.compute.device import (
    apply_precision,
    resolve_device,
    resolve_precision,
    world_size_from_env,
)
from krill.training.ranks import (
    get_rank,
    get_world_size,
    is_rank0,
    on_rank0,
    process_group,
    raise_on_any_rank,
)

log = logging.getLogger("krill")
RANK_PLAN = ".answers-plan.json"
"""The configuration and the plan of the ranks, in the folder of the answers while they run."""
ANSWERS_POLL_SECONDS = 0.5
"""Seconds between two looks at the answers of the ranks."""
MIN_COMPILED_ANSWERS = 2000
"""The number of answers that repay a compilation of a minute or two, for hardware.compile=auto. Estimated, not
measured."""


def load_configured_model(config: InferConfig) -> LoadedModel:
    """Loads the model on the device of this rank, in the precision of `config`."""
    silence_transformers()
    device = resolve_device(config.device)
    if config.hardware.precision != "auto":
        apply_precision(resolve_precision(config.hardware.precision, device))
    index = int(os.environ.get("LOCAL_RANK", "0"))
    loaded = load_model(
        config.model.path,
        torch.device(device, index) if device == "cuda" else torch.device(device),
        config.tokenizer.path,
        config.hardware.precision,
    )
    parameter = next(loaded.model.parameters())
    log.info(
        "weights     %s, %s parameters, %s on %s", relative_path(loaded.folder.absolute()),
        f"{loaded.model.num_parameters():,}", str(parameter.dtype).removeprefix("torch."), parameter.device,
    )  # fmt: skip
    return loaded


def get_settings(config: InferConfig) -> dict[str, Any]:
    """Returns the sampling parameters that `config` sets; None: the model's, or krill's default."""
    return {key: getattr(config, key) for key in (*sorted(MODEL_KEYS), "stop", "seed")}


def log_settings(config: InferConfig, model_defaults: dict[str, Any], is_chat: bool) -> None:
    """Logs the sampling parameters with their origins, and whether the model answers in its chat template."""
    for index, line in enumerate(describe_params(get_settings(config), model_defaults)):
        log.info("%-11s %s", "" if index else "sampling", line)
    if is_chat:
        log.info("chat        the template of the tokenizer; chat=false continues texts")


def answer_batch(config: InferConfig, prompts: list[Prompt] | None, folder: Path | None) -> Path:
    """Answers many prompts; returns the folder with answers.jsonl. Answers that are there already are kept.

    `prompts`: None: those of config.prompts. `folder`: None: one in outputs/answers, named by the signature.
    """
    with process_group(resolve_device(config.device)), raise_on_signal():
        files, prompts, plan, settings = on_rank0(lambda: _plan_batch(config, prompts, folder))
        with files.lock() if is_rank0() else nullcontext():
            if on_rank0(files.are_complete):
                log.info("already finished, skipping: %s", relative_path(files.folder.absolute()))
                return files.folder
            done = on_rank0(lambda: len(files.collect()))
            if done:
                log.info("resuming    %s of %s answers are there", f"{done:,}", f"{len(plan.keys):,}")
            with BatchProgress(len(plan.keys), done) if is_rank0() else nullcontext() as progress:
                report = progress.report if progress else _ignore
                if get_world_size() == 1 and config.hardware.processes != 1:
                    _answer_on_ranks(config, plan, files, report)
                else:
                    with raise_on_any_rank():
                        _answer_share(config, plan, files, get_rank(), get_world_size(), report)
            on_rank0(lambda: files.finish(prompts, settings))
    return files.folder


def _ignore(answer: Answer) -> None:
    """Reports nothing: rank 0 alone shows progress."""


def _plan_batch(
    config: InferConfig, prompts: list[Prompt] | None, folder: Path | None
) -> tuple[AnswerFiles, list[Prompt], BatchPlan, dict[str, Any]]:
    """Returns the files of the answers, the prompts, what the ranks share, and the content of settings.json."""
    if prompts is None:
        assert config.prompts is not None
        prompts = read_prompts(config.prompts)
    model = ModelFiles.locate(config.model.path, config.tokenizer.path)
    template = select_template(config.chat, model.folder, model.tokenizer, config.system)
    encoded = encode_prompts(prompts, model.tokenizer, template, config.system, model.read_context_length())
    defaults = read_model_defaults(model.folder)
    settings = get_settings(config)
    params = asdict(resolve_params({**settings, "stop": tuple(config.stop)}, defaults))
    end_ids = sorted(template.end_ids) if template else []
    plan = BatchPlan(encoded, config.n, params, end_ids, TOP_ALTERNATIVES if config.inspect else None)
    dtype: str = config.hardware.precision
    if dtype == "auto":
        dtype = "fp32" if resolve_device(config.device) == "cpu" else "as saved"
    signature = compute_signature(
        "answers", 1, model.hash(), dtype, asdict(plan), [[prompt.id, prompt.content] for prompt in prompts]
    )
    if folder is None:
        stem = "stdin" if config.prompts in (None, STDIN) else Path(str(config.prompts)).stem
        folder = get_outputs_root() / "answers" / f"{stem}-{signature[:8]}"
    log_settings(config, defaults, template is not None)
    record = {
        "model": str(model.folder), "prompts": config.prompts, "precision": dtype, "chat": template is not None,
        "system": config.system, "n": config.n, "inspect": config.inspect, **params,
    }  # fmt: skip
    return AnswerFiles(folder, signature), prompts, plan, record


def _answer_share(
    config: InferConfig,
    plan: BatchPlan,
    files: AnswerFiles,
    rank: int,
    world_size: int,
    report: Callable[[Answer], None],
) -> None:
    """Answers the prompts of this rank."""
    device = resolve_device(config.device)
    is_compiled = _select_compile(config, device, len(plan.keys))
    loaded = load_configured_model(config)
    if is_compiled:
        log.info("compile     the forward pass, for any length and batch size")
        loaded.model.forward = torch.compile(loaded.model.forward, dynamic=True)
    with explain_compile_errors(is_compiled):
        renderer = TokenRenderer(loaded.tokenizer)
        answer_prompts(
            loaded, plan, files, rank, world_size, config.max_batch_size, report,
            partial(score_to_json, renderer=renderer),
        )  # fmt: skip


def _select_compile(config: InferConfig, device: str, answers: int) -> bool:
    """Returns whether to compile. Raises UsageError if hardware.compile=true and torch.compile cannot be used."""
    requested, obstacle = config.hardware.compile, find_compile_obstacle(device)
    if requested is True and obstacle:
        raise UsageError(f"hardware.compile=true needs {obstacle}; use hardware.compile=auto or false")
    return requested is True or (requested == "auto" and not obstacle and answers >= MIN_COMPILED_ANSWERS)


# --- several ranks on this machine -------------------------------------------------------------------------------


def _answer_on_ranks(
    config: InferConfig, plan: BatchPlan, files: AnswerFiles, report: Callable[[Answer], None]
) -> None:
    """Answers the prompts on hardware.processes ranks. Raises KrillError if one fails."""
    world_size = count_local_ranks(config)
    pop_first_rank_error(files.folder, world_size)  # of a parent that was killed
    content = {"config": config.model_dump(mode="json", by_alias=True), "plan": asdict(plan)}
    command = [sys.executable, "-m", "krill.launch.answers", str(files.folder), files.signature]
    ranks = ProcessGroup(PreloadedServer.get_running().spawn)
    tails = [_Tail(files.get_rank_file(rank), report) for rank in range(world_size)]
    failed: dict[int, int] = {}
    try:
        atomic.write_json(files.folder / RANK_PLAN, content, 0o600)
        for rank in range(world_size):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world_size,
                "OMP_NUM_THREADS": get_rank_threads(config.hardware, world_size),
            }
            ranks.start(rank, command, {name: str(value) for name, value in variables.items()})
        with ranks.forward_signals():
            while ranks and not failed:
                failed = {rank: code for rank, code in ranks.wait_any(ANSWERS_POLL_SECONDS) if code}
                for tail in tails:
                    tail.read()
            if failed:
                ranks.send_signal(signal.SIGTERM)
            failed |= {rank: code for rank, code in ranks.wait(RANK_GRACE_SECONDS).items() if code}
    finally:
        ranks.kill()
        (files.folder / RANK_PLAN).unlink(missing_ok=True)
    if failed:
        raise build_rank_failure(
            failed,
            pop_first_rank_error(files.folder, world_size),
            "the answers so far are kept, run the same command to resume",
        )


class _Tail:
    """Reports the answers that another process appends to a file."""

    def __init__(self, file: Path, report: Callable[[Answer], None]):
        self._file, self._report, self._offset = file, report, 0

    def read(self) -> None:
        """Reports the new complete lines."""
        if not self._file.is_file():
            return
        with open(self._file, "rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._report(Answer(**json.loads(line)))


def main(folder: Path, signature: str) -> int:
    """Answers as the rank in the environment; records an error for the parent. Returns the exit code."""

    def answer(rank: int) -> None:
        content = json.loads((folder / RANK_PLAN).read_bytes())
        config, plan = InferConfig.model_validate(content["config"]), BatchPlan(**content["plan"])
        _answer_share(config, plan, AnswerFiles(folder, signature), rank, world_size_from_env(), _ignore)

    return run_rank(folder, answer)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
