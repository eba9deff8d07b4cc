"""krill-train: make the tokenizer and the tokens where they are missing, then train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.cli.config_diff import diff_from_experiment, diff_from_last_start
from krill.config.paths import get_outputs_root
from krill.launch.invocation import Invocation

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig

log = logging.getLogger("krill")


def main() -> int:
    """Entry point of krill-train."""
    return app.main("train", run_task)


def run_task(composed: Any) -> float | None:
    """One run: what Hydra calls, once or for each point of a sweep. Returns the validation loss."""
    from krill.config.schema import TrainConfig

    return app.run_command(composed, TrainConfig, train)


def train(config: TrainConfig, call: Invocation) -> float | None:
    """Prepare, then train in a folder of its own; the same run that was stopped goes on in its folder."""
    if config.dry_run:
        from krill.training.estimate.dry_run import plan_run

        print("\n".join([*plan_run(config, get_outputs_root()), *diff_from_experiment(config, call.choices)]))
        return None
    from krill.launch.slurm_env import export_torchrun_env
    from krill.sources.registry import check_source

    check_source(config.data)  # what is wrong there is told before torch is loaded
    export_torchrun_env()

    from krill.training import ranks
    from krill.training.batch_shape import resolve_device
    from krill.training.preflight import run_preflight_checks

    run_preflight_checks(config)
    with ranks.process_group(resolve_device(config.device)):
        if ranks.is_rank0():
            return _run_as_first_rank(config, call)
        if places := ranks.receive_from_rank0():
            _run_training(config, *places)
        return None


def _run_as_first_rank(config: TrainConfig, call: Invocation) -> float | None:
    """What one process does for all ranks: claim the folder, prepare, record; then train, with the others."""
    from krill.launch.identity import compute_identity
    from krill.runs.claim import claim
    from krill.runs.hub import download_checkpoint, find_remote_checkpoint
    from krill.runs.record import Record, relative_path
    from krill.training import ranks

    with ranks.broadcast_from_rank0() as tell:
        identity = compute_identity("train", config)
        root = get_outputs_root()
        # A new run gets no folder before its input has proved good; a sweep's point records that it did not.
        given = call.sweep_folder or (call.payload and call.payload.folder)
        begins = not given and (config.output is not None or config.resume in ("auto", "remote", False))
        remote = find_remote_checkpoint(config, identity)
        prepared = prepare_inputs(config, root) if begins else None
        claimed = claim(
            identity, root / "runs" / config.name, call.resolve_folder(config.output, identity), call.resolve_resume(config.resume),
            config.resume_changed and not given,
        )  # fmt: skip
        record = Record(claimed.folder)
        if claimed.state == "finished":
            log.info("finished already, nothing to do: %s", relative_path(claimed.folder))
        else:
            if claimed.state == "continued":
                log.info("resume: going on in %s", relative_path(claimed.folder))
                for line in diff_from_last_start(config, claimed.folder):
                    log.info(line)
            with claimed, record.record_lifecycle(config, identity, call.overrides):
                call.save_hydra_config(claimed.folder)
                tokenizer, store = prepared or prepare_inputs(config, root)
                for line in diff_from_experiment(config, call.choices):
                    log.info(line)
                download_checkpoint(remote, claimed.folder)
                _run_training(config, *tell((claimed.folder, store, tokenizer)))
        call.print_result_folder(claimed.folder)
    return record.status.get("metrics", {}).get("eval_loss")


def _run_training(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> None:
    """Train here, or on the ranks that are to be started."""
    from krill.training import ranks
    from krill.training.batch_shape import resolve_world_size

    if ranks.get_world_size() == 1 and resolve_world_size(config) > 1:
        from krill.launch.local import run_on_ranks

        run_on_ranks(config, folder, store, tokenizer)
    else:
        from krill.launch.rank_errors import record_rank_error
        from krill.training.run import run_training

        with record_rank_error(folder, ranks.get_rank(), ranks.get_world_size()):
            run_training(config, folder, store=store, tokenizer=tokenizer)


def prepare_inputs(config: TrainConfig, root: Path) -> tuple[Path, Path]:
    """The folders of the tokenizer and of the tokens: each is made once and reused by its content."""
    from krill.data.cache import get_or_prepare_store, get_or_train_tokenizer

    tokenizer = get_or_train_tokenizer(config, root)
    return tokenizer.folder, get_or_prepare_store(config, tokenizer, root)[0]
