"""krill-infer: continue a text with a trained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill import atomic
from krill.cli import app
from krill.cli.model_arguments import resolve_model_arguments
from krill.errors import UsageError
from krill.launch.invocation import Invocation
from krill.resources import paused_garbage_collection

if TYPE_CHECKING:
    from krill.config.schema import InferConfig


def main() -> int:
    """Entry point of krill-infer."""
    return app.main("infer", run_task, positional_key="model", prepare_arguments=resolve_model_arguments)


def run_task(composed: Any) -> None:
    """Generates with one configuration; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import InferConfig

    app.run_command(composed, InferConfig, _run_inference)


def _run_inference(config: InferConfig, invocation: Invocation) -> None:
    if config.dry_run:
        from krill.inference.load import locate_model

        print(f"model       {locate_model(config.model.path)[0]}")
    elif invocation.is_sweep_point:
        invocation.run_stage(config, None, lambda folder: _write_answers(config, folder))
    elif config.prompt is None and sys.stdin is None:
        raise UsageError("standard input is closed, so there is no prompt; set prompt=…")
    else:
        _write_answers(config, Path(config.output) if config.output else None, invocation.is_interactive)


def _write_answers(config: InferConfig, folder: Path | None, is_interactive: bool = False) -> Path:
    """Generates answers and writes them to `folder`/answers.jsonl as well, if there is a folder."""
    if folder is not None:
        atomic.create_folder(folder)
    answers = infer(config, is_interactive)
    if folder is not None:
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        atomic.write_text(folder / "answers.jsonl", lines)
    return folder or Path.cwd()


def infer(config: InferConfig, is_interactive: bool = True) -> list[dict[str, str]]:
    """Answers config.prompt, or each line of standard input; answers are streamed to standard output.

    `is_interactive`: whether to ask for prompts where config.prompt is null; otherwise the model starts a document.
    """
    with paused_garbage_collection():
        import torch
        from transformers.utils import logging as transformers_logging

        from krill.inference.chat import run_chat
        from krill.inference.generate import generate
        from krill.inference.load import load_model
        from krill.inference.sampling import SamplingParams
        from krill.training.compute.device import resolve_device

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded = load_model(config.model.path, torch.device(resolve_device(config.device)), config.tokenizer.path)
    sampling = SamplingParams(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    )
    answers: list[dict[str, str]] = []

    def answer(prompt: str) -> None:
        text = generate(loaded.model, loaded.tokenizer, prompt, sampling, _stream_text)
        print(flush=True)
        answers.append({"prompt": prompt, "answer": text})

    if config.prompt is None and is_interactive:
        run_chat(answer)
    else:
        answer(config.prompt or "")
    return answers


def _stream_text(piece: str) -> None:
    print(piece, end="", flush=True, file=sys.stdout)
