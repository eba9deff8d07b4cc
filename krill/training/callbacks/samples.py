"""Writes a sample of the model to samples.jsonl every `sample_every` steps."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.inference.generate import generate_sample
from krill.runs.json_lines import append_jsonl, truncate_jsonl
from krill.training import ranks
from krill.training.metrics.throughput import ThroughputMeter
from krill.training.setup import RunSetup

log = logging.getLogger("krill")


class SampleWriter(TrainerCallback):
    """Generates a continuation of `sample_prompt` without affecting random state or measured throughput."""

    def __init__(self, setup: RunSetup, throughput: ThroughputMeter):
        self.setup, self.throughput = setup, throughput
        self.interval = setup.config.sample_every
        self.file = setup.folder / "samples.jsonl"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if ranks.is_rank0():
            truncate_jsonl(self.file, state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        if self.interval is None or state.global_step % self.interval:
            return
        config = self.setup.config
        prompt, device = config.sample_prompt or "", self.setup.device
        with self.throughput.pause(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            text = generate_sample(model, self.setup.tokenizer, prompt, seed=config.seed)
        if ranks.is_rank0():
            append_jsonl(self.file, {"step": state.global_step, "text": text})
        log.info("step %d/%d  sample: %s", state.global_step, state.max_steps, " ".join(text.split())[:100])
