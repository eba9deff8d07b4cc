"""What the model writes while it trains: a line of samples.jsonl every `sample_every` steps."""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.inference.generate import sample
from krill.runs.record import read_lines, write_lines
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
        if (
            self.file.exists() and ranks.is_first()
        ):  # the run goes on from a step before its last sample, perhaps
            kept = [line for line in read_lines(self.file) if line["step"] <= state.global_step]
            write_lines(self.file, kept)

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
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "text": text}, ensure_ascii=False) + "\n")
        log.info("step %d/%d  sample: %s", state.global_step, state.max_steps, " ".join(text.split())[:100])
