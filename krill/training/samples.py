"""What the model writes while it trains: a line of samples.jsonl every `sample_every` steps."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.inference.generate import sample
from krill.runs.record import append_line, cut_lines
from krill.training import ranks
from krill.training.pace import Pace
from krill.training.setting import Setting

log = logging.getLogger("krill")


class Samples(TrainerCallback):
    """Continues `sample_prompt`; neither the random state nor the pace of the training notices."""

    def __init__(self, setting: Setting, pace: Pace):
        self.setting, self.pace = setting, pace
        self.every = setting.config.sample_every
        self.file = setting.folder / "samples.jsonl"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if ranks.is_first():
            cut_lines(self.file, state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        if self.every is None or state.global_step % self.every:
            return
        config = self.setting.config
        prompt, device = config.sample_prompt or "", self.setting.device
        with self.pace.paused(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            text = sample(model, self.setting.tokenizer, prompt, seed=config.seed)
        if ranks.is_first():
            append_line(self.file, {"step": state.global_step, "text": text})
        log.info("step %d/%d  sample: %s", state.global_step, state.max_steps, " ".join(text.split())[:100])
