"""A signature changes with keys that determine the result and with no others; it is the same in every process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from compositions import load_config

from krill.config.schema import Section, TrainConfig
from krill.config.schema.base import Unsigned
from krill.config.signature import compute_signature


class Sample(Section):
    width: int
    name: Unsigned[str]
    parts: list[int]


SAMPLE = Sample(width=3, name="가", parts=[1, 2])
EXPECTED_SIGNATURE = "c5609dd64ff727443f839ab4bb07e9d256a55ff656f8495865c16e233292ccd1"
"""Folders on users' disks have such names: if it changes, every result is computed again."""


def test_the_signature_of_a_sample_is_pinned():
    assert compute_signature("sample", 1, SAMPLE, ["한글"]) == EXPECTED_SIGNATURE


def test_every_process_computes_the_same_signature():
    program = (
        "from krill.config.schema import ModelPathConfig\n"
        "from krill.config.signature import compute_signature\n"
        "print(compute_signature({'b': 1, 'a': ['한글', None, 0.1]}, ModelPathConfig(path='x')))"
    )
    signatures = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(signatures) == 1
    assert len(signatures.pop().strip()) == 64


def test_all_parts_and_their_order_count():
    assert compute_signature("a", "b") != compute_signature("b", "a")
    assert compute_signature("a", 1) != compute_signature("a", "1")
    assert compute_signature(["a"], ["b"]) != compute_signature(["a", "b"])
    assert compute_signature({"a": 1, "b": 2}) == compute_signature({"b": 2, "a": 1})


def test_a_model_counts_by_its_signed_fields():
    assert compute_signature(SAMPLE) == compute_signature(SAMPLE.model_copy(update={"name": "other"}))
    assert compute_signature(SAMPLE) != compute_signature(SAMPLE.model_copy(update={"width": 4}))
    assert compute_signature(SAMPLE) != compute_signature(SAMPLE.model_copy(update={"parts": [2, 1]}))


UNSIGNED = [
    "name=other", "resume=false", "output=somewhere", "device=cpu", "dry_run=true", "log_every=1", "eval_every=7",
    "eval_tokens=100", "save_every=7", "keep_checkpoints=9", "keep_best=false", "save_in_background=true",
    "sample_prompt=x", "hub.id=user/name", "model.name=other",
    "tokenizer.name=other", "tokenizer.vocab_size=999", "data.name=other", "data.min_chars=7", "hardware=cpu",
    "hardware.workers=3", "hardware.threads=2", "hardware.attention=sdpa", "hardware.loss=full",
    "hardware.liger=false", "hardware.compile=true", "hardware.gradient_checkpointing=true",
    "branch=some/run", "branch_schedule=rewarm",
    "trackers=[wandb]", "sample_every=5", "hardware.processes=2", "hardware.sharding=fsdp2",
    "hardware.context_parallel=2",
    "resume_changed=true", "batch.micro_batch_size=4", "batch.gradient_accumulation_steps=2", "batch.tokens=2048",
    "skip_step.max_skips=3", "evaluation.every=5",
    "evaluation.tasks=text", "evaluation.limit=3", "sweep.max_parallel=3", "sweep.search=random",
]  # fmt: skip
"""Overrides that do not change the signature of the configuration; the identity of a run adds the signature of its
data and tokenizer and the rows of a step."""

SIGNED = [
    "seed=1", "lr=1e-2", "steps=7", "sequence_len=128", "packing=wrapped", "model=llama_pico",
    "model.num_hidden_layers=3", "model.hidden_size=96", "model.rope_theta=1", "model.tie_word_embeddings=false",
    "optimizer=adamw", "optimizer=muon_keller", "optimizer.weight_decay=0", "optimizer.eps=1e-5",
    "optimizer.momentum=0.8", "optimizer.nesterov=false", "optimizer.ns_steps=6", "optimizer.max_grad_norm=0",
    "optimizer.z_loss=0.1",
    "optimizer.betas=[0.9,0.99]", "scheduler=wsd", "scheduler.warmup=0.2", "scheduler.min_ratio=0",
    "hardware.precision=bf16", "stop.patience=3", "skip_step.nan=stop", "skip_step.spike=6", "export_dtype=bf16",
]  # fmt: skip


@pytest.mark.parametrize("override", UNSIGNED)
def test_unsigned_keys_do_not_count(override: str):
    other = load_config(override)
    assert other != load_config()
    assert compute_signature("train", other) == compute_signature("train", load_config())


@pytest.mark.parametrize("override", SIGNED)
def test_keys_that_determine_the_model_count(override: str):
    assert compute_signature("train", load_config(override)) != compute_signature("train", load_config())


def test_every_field_is_on_one_of_the_lists():
    """For a new field, decide whether it changes the result."""
    listed = {override.partition("=")[0].partition(".")[0] for override in (*UNSIGNED, *SIGNED)}
    assert listed | {"epochs", "detach", "best_metric", "rule", "lr_scale"} == set(TrainConfig.model_fields)


def test_the_rule_counts_by_what_it_gives():
    given = load_config()
    rates = (
        f"lr={given.lr}",
        f"optimizer.weight_decay={given.optimizer.weight_decay}",
        f"scheduler.warmup={given.scheduler.warmup}",
    )
    assert compute_signature(load_config(*rates, "rule=off")) == compute_signature(given)
    scaled = load_config("lr_scale=0.5", "optimizer.weight_decay=0.1")
    assert compute_signature(load_config("lr=0.0035", "optimizer.weight_decay=0.1")) == compute_signature(
        scaled
    )
    assert compute_signature(load_config("rule=off")) != compute_signature(given)


def test_the_spelling_of_a_number_does_not_count():
    assert compute_signature(load_config("lr=1e-3")) == compute_signature(load_config("lr=0.001"))
    assert compute_signature(load_config("epochs=1", "steps=null")) == compute_signature(
        load_config("epochs=1.0", "steps=null")
    )


def test_values_that_are_not_json_are_rejected():
    value: Any = object()
    with pytest.raises(TypeError):
        compute_signature(value)
