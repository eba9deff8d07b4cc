"""Tests that every key of a training has an effect, here or in the test that the key names (litgpt #1805)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from trainings import build_setup, plan_lines

from krill.config import schema
from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.evaluation.evaluator import EvaluationSettings
from krill.models.build import build_meta_model
from krill.optim.build import build_optimizer
from krill.optim.groups import build_param_groups
from krill.optim.schedules import compute_lr_factor
from krill.runs.record import Record
from krill.training import run as run_module
from krill.training.callbacks.early_stopping import get_stop_reason
from krill.training.callbacks.progress import ProgressReporter
from krill.training.callbacks.signals import StopOnSignal
from krill.training.callbacks.task_evaluation import TaskEvaluation
from krill.training.compute.head_loss import build_loss
from krill.training.compute.liger import apply_kernels
from krill.training.setup import RunSetup

Observe = Callable[[TrainConfig, "Workspace"], Any]
ROOT = Path(__file__).parents[1]
OTHER_SECTIONS = {"model", "data", "tokenizer"}
"""Sections with their own tests: tests/models, tests/data, tests/text, tests/tokenizer."""


class Workspace:
    """The prepared data of the tests and a folder to train in."""

    def __init__(self, prepared: Any, outputs: Path, folder: Path):
        self.prepared, self.outputs, self.folder = prepared, outputs, folder

    def build_setup(self, config: TrainConfig) -> RunSetup:
        return build_setup(config, self.folder, self.prepared.store, self.prepared.tokenizer.folder)


# --- observations ------------------------------------------------------------------------------------------


def observe_dry_run(config: TrainConfig, workspace: Workspace) -> Any:
    return [
        line
        for line in plan_lines(config, workspace.outputs)
        if not line.startswith(("time", "disk", "memory"))
    ]


def observe_disk(config: TrainConfig, workspace: Workspace) -> Any:
    return [line for line in plan_lines(config, workspace.outputs) if line.startswith("disk")]


def observe_memory(config: TrainConfig, workspace: Workspace) -> Any:
    return [line for line in plan_lines(config, workspace.outputs) if line.startswith("memory")]


def observe_rows(config: TrainConfig, workspace: Workspace) -> Any:
    """Returns the number of micro batches and the ids of the first two."""
    loader = _build_trainer(config, workspace).get_train_dataloader()
    batches = iter(loader)
    return len(loader), [next(batches)["input_ids"].tolist() for _ in range(2)]


def observe_validation_rows(config: TrainConfig, workspace: Workspace) -> Any:
    rows = workspace.build_setup(config).validation_rows
    assert rows is not None
    return rows.targets


def observe_workers(config: TrainConfig, workspace: Workspace) -> Any:
    return _build_trainer(config, workspace).get_train_dataloader().num_workers


def observe_arguments(config: TrainConfig, workspace: Workspace) -> Any:
    """Returns the TrainingArguments, without folders and time."""
    values = run_module._build_training_arguments(workspace.build_setup(config)).to_dict()
    return {key: value for key, value in values.items() if key not in ("run_name", "output_dir")}


def observe_trackers(config: TrainConfig, workspace: Workspace) -> Any:
    setup = workspace.build_setup(config)
    start = run_module._find_starting_point(config, workspace.folder)
    return run_module._build_trackers(
        Record(workspace.folder), setup, run_module._build_model(setup), start
    ).names


def observe_compute(config: TrainConfig, workspace: Workspace) -> Any:
    setup = workspace.build_setup(config)
    return setup.precision, setup.attention_backend, torch.get_num_threads()


def observe_kernels(config: TrainConfig, workspace: Workspace) -> Any:
    model = run_module._build_model(workspace.build_setup(config))
    loss = build_loss(model, config.hardware.loss, "cpu", z_loss=config.optimizer.z_loss)
    return loss.name, apply_kernels(model, config.hardware, "cpu")


def observe_param_groups(config: TrainConfig, workspace: Workspace) -> Any:
    model: Any = build_meta_model(config.model, 320)
    groups = build_param_groups(model, config.optimizer)  # type: ignore[arg-type]
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def observe_optimizer(config: TrainConfig, workspace: Workspace) -> Any:
    return type(
        build_optimizer(run_module._build_model(workspace.build_setup(config)), config.optimizer)
    ).__module__


def observe_lr_factors(config: TrainConfig, workspace: Workspace) -> Any:
    return [compute_lr_factor(config.scheduler, step, 20) for step in range(20)]


def observe_stop_reason(config: TrainConfig, workspace: Workspace) -> Any:
    lines = [
        {"step": step, "eval_loss": loss, "text/bits_per_byte": loss}
        for step, loss in enumerate([4.0, 3.0, 3.0])
    ]
    return get_stop_reason(config.stop, config.best_metric, lines)


def observe_config_file(config: TrainConfig, workspace: Workspace) -> Any:
    """Returns config.yaml of the run."""
    with Record(workspace.folder).record_lifecycle(config, "signature", []):
        return (workspace.folder / "config.yaml").read_text()


def _build_trainer(config: TrainConfig, workspace: Workspace) -> Any:
    setup = workspace.build_setup(config)
    model = run_module._build_model(setup)
    loss = build_loss(model, config.hardware.loss, "cpu")
    return run_module._build_trainer(
        setup, model, loss, StopOnSignal(), ProgressReporter(Record(workspace.folder), setup), restart=None
    )


def observe_evaluation(config: TrainConfig, workspace: Workspace) -> Any:
    """Returns the tasks and the settings of an evaluation in the training."""
    evaluation = TaskEvaluation(
        workspace.build_setup(config), _build_trainer(config, workspace), StopOnSignal()
    )
    return [evaluator.name for evaluator in evaluation.evaluators], EvaluationSettings.from_config(
        config.evaluation
    )


FOLLOWED = ("evaluation.tasks=text", "evaluation.every=1", "best_metric=text/bits_per_byte")
WSD, MUON, CONSTANT = ("scheduler=wsd",), ("optimizer=muon_moonlight",), ("scheduler=constant",)

OBSERVED_KEYS: dict[str, tuple[Observe, tuple[str, ...], str]] = {
    "name": (observe_dry_run, (), "name=other"),
    "seed": (observe_rows, (), "seed=1"),
    "lr": (observe_param_groups, (), "lr=1e-4"),
    "lr_scale": (observe_param_groups, ("rule=size",), "lr_scale=0.5"),
    "rule": (observe_param_groups, ("rule=size",), "rule=off"),
    "steps": (observe_rows, (), "steps=9"),
    "epochs": (observe_dry_run, (), "epochs=3"),
    "sequence_len": (observe_rows, (), "sequence_len=32"),
    "packing": (observe_rows, (), "packing=wrapped"),
    "branch": (observe_dry_run, (), "branch=nowhere"),
    "branch_schedule": (observe_config_file, (), "branch_schedule=rewarm"),
    "output": (observe_dry_run, (), "output=elsewhere"),
    "device": (observe_dry_run, (), "device=cuda"),
    "log_every": (observe_arguments, (), "log_every=7"),
    "trackers": (observe_trackers, (), "trackers=[tensorboard]"),
    "eval_every": (observe_arguments, (), "eval_every=7"),
    "eval_tokens": (observe_validation_rows, (), "eval_tokens=64"),
    "save_every": (observe_arguments, (), "save_every=7"),
    "keep_checkpoints": (observe_disk, ("steps=50",), "keep_checkpoints=7"),
    "keep_best": (observe_disk, ("steps=50",), "keep_best=false"),
    "sample_prompt": (observe_compute, (), f"sample_prompt={'x' * 99}"),
    "batch.micro_batch_size": (observe_rows, (), "batch.micro_batch_size=1"),
    "batch.gradient_accumulation_steps": (observe_rows, (), "batch.gradient_accumulation_steps=3"),
    "batch.tokens": (observe_rows, (), "batch.tokens=64"),
    "save_in_background": (observe_memory, (), "save_in_background=true"),
    "stop.target_loss": (observe_stop_reason, (), "stop.target_loss=3.5"),
    "stop.target": (observe_stop_reason, FOLLOWED, "stop.target=3.5"),
    "best_metric": (
        observe_stop_reason,
        (*FOLLOWED, "stop.target=3.5"),
        "best_metric=english_pairs/accuracy",
    ),
    "evaluation.tasks": (observe_evaluation, FOLLOWED, "evaluation.tasks=[text,cloze]"),
    "evaluation.limit": (observe_evaluation, FOLLOWED, "evaluation.limit=3"),
    "evaluation.few_shot": (observe_evaluation, FOLLOWED, "evaluation.few_shot=3"),
    "evaluation.olmo_items": (observe_evaluation, FOLLOWED, "evaluation.olmo_items=folder"),
    "evaluation.contamination": (observe_evaluation, FOLLOWED, "evaluation.contamination=true"),
    "evaluation.text_tokens": (observe_evaluation, FOLLOWED, "evaluation.text_tokens=3"),
    "evaluation.overlap": (observe_evaluation, FOLLOWED, "evaluation.overlap=0.25"),
    "stop.patience": (observe_stop_reason, (), "stop.patience=1"),
    "scheduler.name": (observe_lr_factors, (), "scheduler=wsd"),
    "scheduler.warmup": (observe_lr_factors, (), "scheduler.warmup=0.5"),
    "scheduler.min_ratio": (observe_lr_factors, (), "scheduler.min_ratio=0.5"),
    "scheduler.decay": (observe_lr_factors, WSD, "scheduler.decay=0.5"),
    "scheduler.decay_shape": (observe_lr_factors, WSD, "scheduler.decay_shape=sqrt"),
    "hardware.name": (observe_config_file, (), "hardware.name=mine"),
    "hardware.stall": (observe_config_file, (), "hardware.stall=5m"),
    "hardware.precision": (observe_compute, (), "hardware.precision=bf16"),
    "hardware.attention": (observe_compute, (), "hardware.attention=eager"),
    "hardware.threads": (observe_compute, (), "hardware.threads=2"),
    "optimizer.z_loss": (observe_kernels, (), "optimizer.z_loss=0.1"),
    "hardware.loss": (observe_kernels, (), "hardware.loss=full"),
    "hardware.liger": (observe_kernels, (), "hardware.liger=true"),
    "hardware.compile": (observe_kernels, (), "hardware.compile=true"),
    "hardware.gradient_checkpointing": (observe_kernels, (), "hardware.gradient_checkpointing=true"),
    "hardware.processes": (observe_dry_run, (), "hardware.processes=2"),
    "hardware.sharding": (observe_memory, ("hardware.processes=2",), "hardware.sharding=fsdp2"),
    "hardware.context_parallel": (observe_memory, ("hardware.processes=2",), "hardware.context_parallel=2"),
    "hardware.workers": (observe_workers, (), "hardware.workers=1"),
    "optimizer.lr_embeddings": (observe_param_groups, (), "optimizer.lr_embeddings=2"),
    "optimizer.lr_head": (observe_param_groups, ("model.tie_word_embeddings=false",), "optimizer.lr_head=2"),
    "optimizer.lr_vectors": (observe_param_groups, (), "optimizer.lr_vectors=2"),
    "optimizer.weight_decay_embeddings": (observe_param_groups, (), "optimizer.weight_decay_embeddings=0.5"),
    "optimizer.name": (observe_optimizer, MUON, "optimizer=adamw"),
    "optimizer.lr": (observe_param_groups, (), "lr=1e-4"),
    "optimizer.weight_decay": (observe_param_groups, (), "optimizer.weight_decay=0.5"),
    "optimizer.betas": (observe_param_groups, (), "optimizer.betas=[0.8,0.9]"),
    "optimizer.eps": (observe_param_groups, (), "optimizer.eps=1e-5"),
    "optimizer.max_grad_norm": (observe_arguments, (), "optimizer.max_grad_norm=0.5"),
    "optimizer.eps_before_correction": (observe_param_groups, MUON, "optimizer.eps_before_correction=false"),
    "optimizer.scale": (observe_param_groups, MUON, "optimizer.scale=spectral"),
    "optimizer.muon_lr": (observe_param_groups, MUON, "optimizer.muon_lr=1"),
    "optimizer.muon_weight_decay": (observe_param_groups, MUON, "optimizer.muon_weight_decay=1"),
    "optimizer.momentum": (observe_param_groups, MUON, "optimizer.momentum=0.5"),
    "optimizer.nesterov": (observe_param_groups, MUON, "optimizer.nesterov=false"),
    "optimizer.cautious": (observe_param_groups, MUON, "optimizer.cautious=true"),
    "optimizer.normuon": (observe_param_groups, MUON, "optimizer.normuon=true"),
    "optimizer.ns_steps": (observe_param_groups, MUON, "optimizer.ns_steps=7"),
    "optimizer.ns_coefficients": (observe_param_groups, MUON, "optimizer.ns_coefficients=polar_express"),
    "optimizer.ns_dtype": (observe_param_groups, MUON, "optimizer.ns_dtype=bf16"),
    "optimizer.adamw_modules": (observe_param_groups, MUON, "optimizer.adamw_modules=[q_proj]"),
}
"""Key → what to observe, the overrides under which the key matters, and the override that must change it."""

HUB = "training/checkpoint/test_hub_upload.py::"
SBATCH = "launch/test_sbatch.py::"
SKIP_STEP = "training/callbacks/test_skip_step.py::"
CUSTOM = "cli/test_custom_components.py::"
TESTED_KEYS = {
    "detach": "slurm/test_slurm_sweeps.py::test_a_detached_sweep_returns_at_once_and_submits_no_point_twice",
    "hardware.slurm.nodes": f"{SBATCH}test_a_job_requests_what_its_processes_need",
    "hardware.slurm.gpus": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.gpu_type": f"{SBATCH}test_a_job_requests_what_its_processes_need",
    "hardware.slurm.cpus": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.memory": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.time": f"{SBATCH}test_a_job_requests_what_its_processes_need",
    "hardware.slurm.plan_device": "launch/test_planned_limits.py::test_the_device_of_the_plan_can_be_named",
    "hardware.slurm.save_before": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.requeues": "slurm/test_slurm_preemption.py::test_requeues_are_limited_by_the_configuration",
    "hardware.slurm.partition": f"{SBATCH}test_processes_auto_is_the_number_of_gpus_per_node",
    "hardware.slurm.account": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.qos": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.constraint": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.setup": f"{SBATCH}test_each_key_sets_its_parameter",
    "hardware.slurm.options": f"{SBATCH}test_each_key_sets_its_parameter",
    "sweep.max_parallel": "e2e/test_sweep.py::test_only_the_three_of_twenty_points_that_crashed_run_again",
    "sweep.on_failure": "e2e/test_sweep.py::test_on_failure_stop_starts_no_point_after_a_failure",
    "sweep.search": "e2e/test_sweep_search.py::test_an_interrupted_search_resumes",
    "sweep.trials": "e2e/test_sweep_search.py::test_an_interrupted_search_resumes",
    "resume": "training/test_resume.py::test_resume_false_starts_from_scratch",
    "resume_changed": "training/test_resume_changed_config.py::"
    "test_a_change_of_the_result_is_refused_unless_allowed",
    "dry_run": "training/test_batch_shape.py::test_dry_run_of_the_command_writes_nothing",
    "sample_every": "training/callbacks/test_samples.py::test_samples_are_written_and_change_no_result",
    "hub.id": f"{HUB}test_model_is_pushed_to_a_private_repository_by_default",
    "hub.push": f"{HUB}test_model_is_pushed_to_a_private_repository_by_default",
    "hub.private": f"{HUB}test_model_is_pushed_to_a_private_repository_by_default",
    "hub.checkpoints": f"{HUB}test_run_resumed_on_another_machine_has_the_same_bytes",
    "evaluation.every": "training/callbacks/test_task_evaluation.py::"
    "test_the_scores_are_those_of_the_checkpoints",
    "evaluation.max_batch_tokens": "training/callbacks/test_task_evaluation.py::"
    "test_an_interrupted_evaluation_is_repeated_once",
    "evaluation.at_end": "training/test_final_evaluation.py::test_it_can_be_turned_off",
    "export_dtype": "training/checkpoint/test_export.py::"
    "test_export_dtype_applies_to_the_model_and_not_to_checkpoints",
    "skip_step.nan": f"{SKIP_STEP}test_nan_stop_ends_the_run_at_the_first_bad_step",
    "skip_step.spike": f"{SKIP_STEP}test_spike_is_skipped",
    "skip_step.max_skips": f"{SKIP_STEP}test_diverged_run_ends_and_keeps_the_last_good_weights",
    "optimizer.build": f"{CUSTOM}test_custom_components_train_and_their_code_is_part_of_the_signature",
    "optimizer.options": f"{CUSTOM}test_custom_components_train_and_their_code_is_part_of_the_signature",
}
"""Keys whose effect is a folder, an upload or custom code → the test of it."""


def iterate_keys(section: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of a training; for a section with several options the keys of each option."""
    for key, field in section.model_fields.items():
        options = [kind for kind in get_args(field.annotation) or (field.annotation,) if _is_section(kind)]
        if key in OTHER_SECTIONS:
            continue
        for option in options:
            yield from iterate_keys(option, f"{prefix}{key}.")
        if not options:
            yield prefix + key


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, schema.Section)


def test_every_key_is_tested() -> None:
    """A new key must be added to one of the tables above."""
    assert set(OBSERVED_KEYS) | set(TESTED_KEYS) == set(iterate_keys())
    assert not set(OBSERVED_KEYS) & set(TESTED_KEYS)


@pytest.fixture(scope="module")
def unchanged() -> dict[tuple[Observe, tuple[str, ...]], Any]:
    """Observations without the changed key, made once for all keys that are compared with them."""
    return {}


@pytest.mark.parametrize("key", OBSERVED_KEYS)
def test_the_key_changes_the_observation(
    key: str,
    make_config: Callable[..., TrainConfig],
    prepared_data: Any,
    outputs: Path,
    tmp_path: Path,
    unchanged: Any,
) -> None:
    observe, base_overrides, override = OBSERVED_KEYS[key]
    workspace = Workspace(prepared_data, outputs, tmp_path)
    if (observe, base_overrides) not in unchanged:
        unchanged[observe, base_overrides] = observe(make_config(*base_overrides), workspace)
    try:
        changed = observe(make_config(*base_overrides, override), workspace)
    except UsageError as error:  # an effect too, if the error names the key
        changed = str(error) if key in str(error) else unchanged[observe, base_overrides]
    assert changed != unchanged[observe, base_overrides]


@pytest.mark.parametrize("key", TESTED_KEYS)
def test_the_named_test_exists_and_sets_the_key(key: str) -> None:
    file, _, name = TESTED_KEYS[key].partition("::")
    text = (ROOT / file).read_text()
    assert f"def {name}(" in text
    assert key.rpartition(".")[2] in text
