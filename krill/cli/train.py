"""krill-train: prepare the tokenizer and the tokens where they are missing, then train."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from krill.cli import app
from krill.resources import CoreClock, paused_garbage_collection
from krill.tables import print_wrapped

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig
    from krill.data.inputs import RunInputs
    from krill.launch.invocation import Invocation
    from krill.training.compute.setup import ComputeSetup

log = logging.getLogger("krill")


def main() -> int:
    """Runs krill-train; returns the exit code."""
    return app.main("train", run_task)


def run_task(invocation: Invocation) -> float | None:
    """Trains one run and returns its validation loss; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import TrainConfig

    return app.run_command(invocation, TrainConfig, train)


def train(config: TrainConfig, invocation: Invocation) -> float | None:
    """Checks what can be checked, then trains on all ranks; rank 0 claims the folder and prepares the data."""
    from krill.launch.devices import configure_cuda_allocator
    from krill.launch.identity import raise_if_task
    from krill.launch.slurm_env import export_torchrun_env

    clock = CoreClock()
    raise_if_task(config)
    inputs = invocation.open_inputs(config)  # an unusable file is reported before torch is imported
    if config.dry_run:
        from krill.cli.config_diff import diff_from_experiment
        from krill.plan.dry_run import plan_run

        folder, state = _plan_folder(config, invocation, inputs)
        lines = [
            *plan_run(config, inputs, folder, invocation.explain_rule()), *state,
            *diff_from_experiment(config, invocation.choices),
        ]  # fmt: skip
        print_wrapped("\n".join(lines))
        return None
    export_torchrun_env()
    configure_cuda_allocator(config.device)

    with paused_garbage_collection():
        from krill.training import ranks
        from krill.training.preflight import run_preflight_checks

    compute = run_preflight_checks(config, inputs)
    with ranks.process_group(compute.device):
        if ranks.is_rank0():
            return _run_on_rank0(config, invocation, inputs, compute, clock)
        if folders := ranks.receive_from_rank0():
            _run_training(config, compute, *folders)
        return None


def _plan_folder(
    config: TrainConfig, invocation: Invocation, inputs: RunInputs
) -> tuple[Path | None, list[str]]:
    """Returns the folder that the run would have, if it is known before, and a line if there is a run in it.

    Raises UsageError if the folder cannot be claimed.
    """
    from krill.config.paths import relative_path
    from krill.launch.identity import compute_identity
    from krill.runs.hub import may_resume_from_hub

    identity = invocation.identity or compute_identity("train", config, inputs)
    remote = [f"hub         not read; {_describe_remote(config)}"] if may_resume_from_hub(config) else []
    if invocation.is_sweep_point:
        return invocation.resolve_folder(None, identity), remote
    claimed = invocation.claim_run_folder(config, inputs, identity, dry_run=True)
    if claimed.state == "new":
        return None, remote
    what = "already finished: nothing to do" if claimed.state == "finished" else "would resume"
    return claimed.folder, [f"state       {what} in {relative_path(claimed.folder)}", *remote]


def _describe_remote(config: TrainConfig) -> str:
    """Returns what a run does with the checkpoint on the Hub, at which a dry run does not look."""
    checkpoint = f"the run would resume from the checkpoint in {config.hub.id} if it is newer than those here"
    return f"{checkpoint}, and fail without one" if config.resume == "remote" else checkpoint


def _run_on_rank0(
    config: TrainConfig,
    invocation: Invocation,
    inputs: RunInputs,
    compute: ComputeSetup,
    clock: CoreClock,
) -> float | None:
    """Claims the run folder, prepares tokenizer and tokens, records the run, and trains with the other ranks.

    `clock`: measures the command.
    """
    from krill.cli.config_diff import diff_from_experiment, diff_from_last_start
    from krill.config.paths import relative_path
    from krill.launch.identity import compute_identity
    from krill.plan.dry_run import record_plan
    from krill.plan.run_figures import keep_run_figures
    from krill.runs.hub import check_hub_access, download_checkpoint, find_remote_checkpoint
    from krill.runs.plan_record import read_plan_record
    from krill.runs.record import Record
    from krill.training import ranks
    from krill.training.checkpoint.hub_upload import push_finished_run

    with ranks.broadcast_from_rank0() as broadcast:
        identity = compute_identity("train", config, inputs)
        # A new run gets no folder before its input has proved good; a sweep's point records that it did not.
        is_new = not invocation.has_assigned_folder and (
            config.output is not None or config.resume in ("auto", "remote", False)
        )
        if config.hub.push or config.hub.checkpoints:
            planned = invocation.claim_run_folder(config, inputs, identity, dry_run=True)
            if planned.state == "new":  # an interrupted run resumes without the Hub
                check_hub_access(config.hub)
        remote = find_remote_checkpoint(config, identity)
        prepared = None
        if is_new:
            with clock.pause():  # a plan has no time for the text
                prepared = prepare_inputs(config, inputs)
        claimed = invocation.claim_run_folder(config, inputs, identity)
        record = Record(claimed.folder)
        if claimed.state == "finished":
            log.info("already finished, skipping: %s", relative_path(claimed.folder))
            push_finished_run(record, config.hub)
        else:
            with claimed:
                if claimed.state == "resumed":
                    log.info("resuming in %s", relative_path(claimed.folder))
                    for line in diff_from_last_start(config, claimed.folder):
                        log.info(line)
                with record.record_lifecycle(config, identity, invocation.recorded_overrides):
                    invocation.save_hydra_config(claimed.folder)
                    started_at = time.monotonic()
                    tokenizer, store = prepared or prepare_inputs(config, inputs)
                    preparation_seconds = round(time.monotonic() - started_at, 1)
                    for line in diff_from_experiment(config, invocation.choices):
                        log.info(line)
                    record.update(
                        plan=record_plan(config, inputs), preparation_seconds=preparation_seconds, lr=config.lr,
                        rule=[value._asdict() for value in invocation.explain_rule()],
                    )  # fmt: skip
                    download_checkpoint(remote, claimed.folder)
                    _run_training(config, compute, *broadcast((claimed.folder, store, tokenizer)))
                seconds, waited = clock.read()
                if record.status.get("starts") == 1:
                    record.update(command_seconds=round(seconds, 1))
                keep_run_figures(config, inputs, claimed.folder, seconds, waited)
                if (plan_record := read_plan_record(claimed.folder)) is not None:
                    log.info("planned     %s", plan_record)
        invocation.print_result_folder(claimed.folder)
    return record.status.get("metrics", {}).get("eval_loss")


def prepare_inputs(config: TrainConfig, inputs: RunInputs) -> tuple[Path, Path]:
    """Returns the folders of the tokenizer and of the tokens: each is made once and reused by its content."""
    from krill.data.cache import get_or_prepare_store, get_or_train_tokenizer

    tokenizer = get_or_train_tokenizer(inputs)
    return tokenizer.folder, get_or_prepare_store(config, inputs, tokenizer)


def _run_training(
    config: TrainConfig, compute: ComputeSetup, folder: Path, store: Path, tokenizer: Path
) -> None:
    """Trains in this process, or on ranks that it starts."""
    from krill.training import ranks

    if ranks.get_world_size() == 1 and compute.world_size > 1:
        from krill.launch.local import run_on_ranks

        run_on_ranks(config, folder, store, tokenizer)
    else:
        from krill.launch.rank_errors import record_rank_error
        from krill.training.run import run_training

        with record_rank_error(folder, ranks.get_rank(), ranks.get_world_size()):
            run_training(config, folder, store, tokenizer, compute)
