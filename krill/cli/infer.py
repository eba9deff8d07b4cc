"""krill-infer: continue a text with a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.cli.call import Call
from krill.config import location
from krill.config.location import outputs_root
from krill.errors import UsageError

if TYPE_CHECKING:
    from krill.cli.argv import Typed
    from krill.config.schema import InferConfig


def main() -> int:
    """Entry point of krill-infer."""
    return app.main("infer", point, bare="model", before=_models)


def point(composed: Any) -> None:
    """One setting: what Hydra calls, once or for each point of a sweep."""
    from krill.config.schema import InferConfig

    app.answer(composed, InferConfig, _place_and_answer)


def _place_and_answer(config: InferConfig, call: Call) -> None:
    if config.dry_run:
        from krill.inference.load import locate

        print(f"model       {locate(config.model.path)[0]}")
    elif call.sweep:
        call.make("infer", config, _answer_into)
    else:
        _answer_into(config, Path(config.output) if config.output else None, asks=call.job is None)


def _answer_into(config: InferConfig, place: Path | None, asks: bool = False) -> Path:
    """Answer; what was said also goes to `place`/answers.jsonl."""
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    answers = infer(config, asks)
    if place is not None:
        from krill import atomic

        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        atomic.write_text(place / "answers.jsonl", lines)
    return place or Path.cwd()


def infer(config: InferConfig, asks: bool = True) -> list[dict[str, str]]:
    """Answer config.prompt, or each line of the standard input; the answers are streamed to standard output.

    Where nobody is to be asked for a prompt, the model begins a document of its own.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from krill.inference.chat import converse
    from krill.inference.generate import Sampling, generate
    from krill.inference.load import load
    from krill.training.plan import device_name

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model, tokenizer = load(
        config.model.path, torch.device(device_name(config.device)), config.tokenizer.path
    )
    sampling = Sampling(
        config.max_new_tokens, config.temperature, config.top_p, config.repetition_penalty, config.seed
    )
    answers: list[dict[str, str]] = []

    def answer(prompt: str) -> None:
        text = generate(model, tokenizer, prompt, sampling, _write)
        print(flush=True)
        answers.append({"prompt": prompt, "answer": text})

    if config.prompt is None and asks:
        converse(answer)
    else:
        answer(config.prompt or "")
    return answers


def _write(piece: str) -> None:
    print(piece, end="", flush=True, file=sys.stdout)


def _made(option: str, folders: Sequence[Path]) -> Path:
    """The folder of the tokenizer that an option of training makes."""
    from krill.cli import compose
    from krill.config.schema import TrainConfig
    from krill.config.validation import validated
    from krill.data.obtain import tokenizer_folder

    config = validated(TrainConfig, compose.composed("train", [f"tokenizer={option}"], folders))
    folder = tokenizer_folder(config, outputs_root())
    if not folder.is_dir():
        raise UsageError(f"tokenizer={option}: not made yet; make it: krill-tokenizer tokenizer={option}")
    return folder


def _models(typed: Typed, folders: Sequence[Path]) -> None:
    """model=X is model.path=X: a trained model, never an option of the group that training has of that name.

    tokenizer=X is tokenizer.path=X, where X may be an option: the tokenizer that it makes of the built-in text.
    experiment=NAME stands for its newest finished run here, else for its model on the Hub.
    """
    from krill.cli.argv import typed_as

    typed.overrides = [typed_as(text, "model", "model.path") for text in typed.overrides]
    option = typed.value("tokenizer")
    if option in location.options("tokenizer", [*folders, location.CONF_DIR]):
        typed.overrides = [*typed.without("tokenizer"), f"tokenizer.path={_made(option, folders)}"]
    typed.overrides = [typed_as(text, "tokenizer", "tokenizer.path") for text in typed.overrides]
    name = typed.value("experiment")
    if name is None:
        return
    from krill.cli import compose
    from krill.config.schema import TrainConfig
    from krill.config.validation import validated
    from krill.runs.record import read_status

    try:
        config = validated(TrainConfig, compose.composed("train", [f"experiment={name}"], folders))
    except Exception as error:
        if not compose.is_usage(error):
            raise
        wrong = compose.problems("train", [f"experiment={name}"], folders, error)
        raise UsageError("\n".join(wrong)) from error
    typed.overrides = typed.without("experiment")
    runs = sorted((outputs_root() / "runs" / config.name).glob("*"), reverse=True)
    done = [run for run in runs if (read_status(run) or {}).get("state") == "finished"]
    if not done and config.hub.id is None:
        raise UsageError(f"experiment={name}: no finished run yet; make one: krill-train experiment={name}")
    typed.overrides.append(f"model.path={done[0] if done else config.hub.id}")
