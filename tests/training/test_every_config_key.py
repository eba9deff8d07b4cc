"""Every key of a training has an effect: each is looked at here, or names the test that sees it (litgpt #1805)."""

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
from krill.models.build import build_meta_model
from krill.optim.build import build_optimizer
from krill.optim.groups import build_param_groups
from krill.optim.schedules import compute_lr_factor
from krill.runs.record import Record
from krill.training import run as running
from krill.training.callbacks.early_stopping import get_stop_reason
from krill.training.callbacks.progress import ProgressReporter
from krill.training.callbacks.signals import StopOnSignal
from krill.training.compute.head_loss import build_loss
from krill.training.compute.liger import apply_kernels
from krill.training.setup import RunSetup

Look = Callable[[TrainConfig, "Place"], Any]
ROOT = Path(__file__).parents[1]
ELSEWHERE = {"model", "data", "tokenizer"}
"""Sections with tests of their own: tests/models, tests/data, tests/text, tests/tokenizer."""


class Place:
    """The tokens of the tests, and a folder to run in."""

    def __init__(self, prepared: Any, outputs: Path, folder: Path):
        self.prepared, self.outputs, self.folder = prepared, outputs, folder

    def settle(self, config: TrainConfig) -> RunSetup:
        return build_setup(config, self.folder, self.prepared.store, self.prepared.tokenizer.folder)


# --- what can be seen --------------------------------------------------------------------------------------


def the_plan(config: TrainConfig, place: Place) -> Any:
    return [
        line for line in plan_lines(config, place.outputs) if not line.startswith(("time", "disk", "memory"))
    ]


def the_disk(config: TrainConfig, place: Place) -> Any:
    return [line for line in plan_lines(config, place.outputs) if line.startswith("disk")]


def the_memory(config: TrainConfig, place: Place) -> Any:
    return [line for line in plan_lines(config, place.outputs) if line.startswith("memory")]


def the_rows(config: TrainConfig, place: Place) -> Any:
    """The ids of the first micro batches, and how many there are."""
    loader = _trainer(config, place).get_train_dataloader()
    batches = iter(loader)
    return len(loader), [next(batches)["input_ids"].tolist() for _ in range(2)]


def the_workers(config: TrainConfig, place: Place) -> Any:
    return _trainer(config, place).get_train_dataloader().num_workers


def the_arguments(config: TrainConfig, place: Place) -> Any:
    """What the Trainer is told; folders and clock apart."""
    values = running._build_training_arguments(place.settle(config)).to_dict()
    return {key: value for key, value in values.items() if key not in ("run_name", "output_dir")}


def the_arithmetic(config: TrainConfig, place: Place) -> Any:
    setting = place.settle(config)
    return setting.precision, setting.attention_backend, torch.get_num_threads()


def the_kernels(config: TrainConfig, place: Place) -> Any:
    model = running._build_model(place.settle(config))
    return build_loss(model, config.hardware.loss, "cpu").name, apply_kernels(model, config.hardware, "cpu")


def the_groups(config: TrainConfig, place: Place) -> Any:
    model: Any = build_meta_model(config.model, 320)
    groups = build_param_groups(model, config.optimizer)  # type: ignore[arg-type]
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def the_optimizer(config: TrainConfig, place: Place) -> Any:
    return type(build_optimizer(running._build_model(place.settle(config)), config.optimizer)).__module__


def the_rates(config: TrainConfig, place: Place) -> Any:
    return [compute_lr_factor(config.scheduler, step, 20) for step in range(20)]


def the_end(config: TrainConfig, place: Place) -> Any:
    return get_stop_reason(config.stop, [4.0, 3.0, 3.0])


def the_record(config: TrainConfig, place: Place) -> Any:
    """config.yaml of the run's folder."""
    with Record(place.folder).record_lifecycle(config, "signature", []):
        return (place.folder / "config.yaml").read_text()


def _trainer(config: TrainConfig, place: Place) -> Any:
    setting = place.settle(config)
    model = running._build_model(setting)
    loss = build_loss(model, config.hardware.loss, "cpu")
    return running._build_trainer(
        setting, model, loss, StopOnSignal(), ProgressReporter(Record(place.folder), setting)
    )


WSD, MUON, CONSTANT = ("scheduler=wsd",), ("optimizer=muon_moonlight",), ("scheduler=constant",)

SEEN: dict[str, tuple[Look, tuple[str, ...], str]] = {
    "name": (the_plan, (), "name=other"),
    "seed": (the_rows, (), "seed=1"),
    "lr": (the_groups, (), "lr=1e-4"),
    "steps": (the_rows, (), "steps=9"),
    "epochs": (the_plan, (), "epochs=3"),
    "sequence_len": (the_rows, (), "sequence_len=32"),
    "packing": (the_rows, (), "packing=wrapped"),
    "branch": (the_plan, (), "branch=nowhere"),
    "output": (the_plan, (), "output=elsewhere"),
    "device": (the_plan, (), "device=cuda"),
    "log_every": (the_arguments, (), "log_every=7"),
    "trackers": (the_arguments, (), "trackers=[tensorboard]"),
    "eval_every": (the_arguments, (), "eval_every=7"),
    "save_every": (the_arguments, (), "save_every=7"),
    "keep_checkpoints": (the_disk, ("steps=50",), "keep_checkpoints=7"),
    "keep_best": (the_disk, ("steps=50",), "keep_best=false"),
    "sample_prompt": (the_arithmetic, (), f"sample_prompt={'x' * 99}"),
    "batch.micro_batch_size": (the_rows, (), "batch.micro_batch_size=1"),
    "batch.gradient_accumulation_steps": (the_rows, (), "batch.gradient_accumulation_steps=3"),
    "batch.tokens": (the_rows, (), "batch.tokens=64"),
    "save_in_background": (the_memory, (), "save_in_background=true"),
    "stop.target_loss": (the_end, (), "stop.target_loss=3.5"),
    "stop.patience": (the_end, (), "stop.patience=1"),
    "scheduler.name": (the_rates, (), "scheduler=wsd"),
    "scheduler.warmup": (the_rates, (), "scheduler.warmup=0.5"),
    "scheduler.min_ratio": (the_rates, (), "scheduler.min_ratio=0.5"),
    "scheduler.decay": (the_rates, WSD, "scheduler.decay=0.5"),
    "scheduler.decay_shape": (the_rates, WSD, "scheduler.decay_shape=sqrt"),
    "hardware.name": (the_record, (), "hardware.name=mine"),
    "hardware.precision": (the_arithmetic, (), "hardware.precision=bf16"),
    "hardware.attention": (the_arithmetic, (), "hardware.attention=eager"),
    "hardware.threads": (the_arithmetic, (), "hardware.threads=2"),
    "hardware.loss": (the_kernels, (), "hardware.loss=full"),
    "hardware.liger": (the_kernels, (), "hardware.liger=true"),
    "hardware.compile": (the_kernels, (), "hardware.compile=true"),
    "hardware.gradient_checkpointing": (the_kernels, (), "hardware.gradient_checkpointing=true"),
    "hardware.processes": (the_plan, (), "hardware.processes=2"),
    "hardware.sharding": (the_memory, ("hardware.processes=2",), "hardware.sharding=fsdp2"),
    "hardware.workers": (the_workers, (), "hardware.workers=1"),
    "optimizer.name": (the_optimizer, MUON, "optimizer=adamw"),
    "optimizer.lr": (the_groups, (), "lr=1e-4"),
    "optimizer.weight_decay": (the_groups, (), "optimizer.weight_decay=0.5"),
    "optimizer.betas": (the_groups, (), "optimizer.betas=[0.8,0.9]"),
    "optimizer.eps": (the_groups, (), "optimizer.eps=1e-5"),
    "optimizer.max_grad_norm": (the_arguments, (), "optimizer.max_grad_norm=0.5"),
    "optimizer.eps_before_correction": (the_groups, MUON, "optimizer.eps_before_correction=false"),
    "optimizer.scale": (the_groups, MUON, "optimizer.scale=spectral"),
    "optimizer.muon_lr": (the_groups, MUON, "optimizer.muon_lr=1"),
    "optimizer.muon_weight_decay": (the_groups, MUON, "optimizer.muon_weight_decay=1"),
    "optimizer.momentum": (the_groups, MUON, "optimizer.momentum=0.5"),
    "optimizer.nesterov": (the_groups, MUON, "optimizer.nesterov=false"),
    "optimizer.cautious": (the_groups, MUON, "optimizer.cautious=true"),
    "optimizer.normuon": (the_groups, MUON, "optimizer.normuon=true"),
    "optimizer.ns_steps": (the_groups, MUON, "optimizer.ns_steps=7"),
    "optimizer.ns_coefficients": (the_groups, MUON, "optimizer.ns_coefficients=polar_express"),
    "optimizer.ns_dtype": (the_groups, MUON, "optimizer.ns_dtype=bf16"),
    "optimizer.adamw_modules": (the_groups, MUON, "optimizer.adamw_modules=[q_proj]"),
}
"""Key → what to look at, what is typed for it to matter, and the word that must change what is seen."""

HUB = "training/test_remote.py::test_the_model_goes_to_a_private_repository"
ASKED = "launch/test_cluster_nodes.py::"
GUARD = "training/test_guard.py::"
TESTED = {
    "detach": "slurm/test_slurm_sweeps.py::test_detached_it_returns_at_once_and_submits_nothing_twice",
    "hardware.slurm.nodes": f"{ASKED}test_a_job_asks_for_what_its_processes_need",
    "hardware.slurm.gpus": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.gpu_type": f"{ASKED}test_a_job_asks_for_what_its_processes_need",
    "hardware.slurm.cpus": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.memory": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.time": f"{ASKED}test_a_job_asks_for_what_its_processes_need",
    "hardware.slurm.save_before": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.requeues": "slurm/test_slurm_preemption.py::test_it_is_not_started_again_for_ever",
    "hardware.slurm.partition": f"{ASKED}test_processes_auto_is_every_gpu_of_a_node",
    "hardware.slurm.account": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.qos": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.constraint": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.setup": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "hardware.slurm.options": f"{ASKED}test_what_it_asks_for_follows_its_keys",
    "sweep.max_parallel": "e2e/test_sweep.py::test_of_twenty_points_three_crash_and_only_they_are_done_again",
    "sweep.on_failure": "e2e/test_sweep.py::test_asked_to_it_stops_at_the_first_failure",
    "sweep.search": "e2e/test_search.py::test_a_search_goes_on_where_it_was_stopped",
    "sweep.trials": "e2e/test_search.py::test_a_search_goes_on_where_it_was_stopped",
    "resume": "training/test_resume.py::test_resume_false_begins_anew",
    "resume_changed": "training/test_resume_changed.py::"
    "test_what_determines_the_result_is_refused_unless_it_is_allowed",
    "dry_run": "training/test_plan.py::test_dry_run_of_the_command_writes_nothing",
    "sample_every": "training/test_samples.py::test_they_are_written_and_change_nothing",
    "hub.id": f"{HUB}_unless_asked_otherwise",
    "hub.push": f"{HUB}_unless_asked_otherwise",
    "hub.private": f"{HUB}_unless_asked_otherwise",
    "hub.checkpoints": "training/test_remote.py::test_it_goes_on_elsewhere_to_the_same_bytes",
    "export_dtype": "training/test_export.py::test_bf16_where_asked_for_and_only_in_the_model",
    "skip_step.nan": f"{GUARD}test_asked_to_stop_it_ends_by_the_first_bad_step",
    "skip_step.spike": f"{GUARD}test_a_spike_is_left_out",
    "skip_step.max_skips": f"{GUARD}test_diverged_for_good_it_ends_and_keeps_the_last_good_weights",
    "optimizer.build": "cli/test_own_parts.py::test_they_train_and_their_code_is_part_of_what_the_run_is",
    "optimizer.options": "cli/test_own_parts.py::test_they_train_and_their_code_is_part_of_what_the_run_is",
}
"""Keys whose effect is a folder, an upload or another person's code: the test that sees it."""


def leaves(section: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Every key of a training, sections walked through; of a section with several options those of each."""
    for key, field in section.model_fields.items():
        options = [kind for kind in get_args(field.annotation) or (field.annotation,) if _is_section(kind)]
        if key in ELSEWHERE:
            continue
        for option in options:
            yield from leaves(option, f"{prefix}{key}.")
        if not options:
            yield prefix + key


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, schema.Section)


def test_every_key_is_looked_at() -> None:
    """A new key must say here what it changes."""
    assert set(SEEN) | set(TESTED) == set(leaves())
    assert not set(SEEN) & set(TESTED)


@pytest.fixture(scope="module")
def usual() -> dict[tuple[Look, tuple[str, ...]], Any]:
    """What is seen before a key is changed, once for all keys that it is compared with."""
    return {}


@pytest.mark.parametrize("key", SEEN)
def test_it_changes_what_is_seen(
    key: str,
    make_config: Callable[..., TrainConfig],
    prepared_data: Any,
    outputs: Path,
    tmp_path: Path,
    usual: Any,
) -> None:
    look, before, word = SEEN[key]
    place = Place(prepared_data, outputs, tmp_path)
    if (look, before) not in usual:
        usual[look, before] = look(make_config(*before), place)
    try:
        changed = look(make_config(*before, word), place)
    except UsageError as error:  # an effect, too, where the refusal names the key
        changed = str(error) if key in str(error) else usual[look, before]
    assert changed != usual[look, before]


@pytest.mark.parametrize("key", TESTED)
def test_the_test_that_is_named_is_there_and_sets_the_key(key: str) -> None:
    file, _, name = TESTED[key].partition("::")
    text = (ROOT / file).read_text()
    assert f"def {name}(" in text
    assert key.rpartition(".")[2] in text
