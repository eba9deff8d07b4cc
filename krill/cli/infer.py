"""krill-infer: continue a text with a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from krill import atomic
from krill.cli import app
from krill.cli.inspect_model import AnswerInspector
from krill.cli.model_arguments import resolve_model_arguments
from krill.errors import UsageError
from krill.launch.invocation import Invocation
from krill.resources import paused_garbage_collection

if TYPE_CHECKING:
    from krill.config.schema import InferConfig

log = app.log


def main() -> int:
    """Runs krill-infer; returns the exit code."""
    return app.main("infer", run_task, positional_key="model", prepare_arguments=resolve_model_arguments)


def run_task(invocation: Invocation) -> None:
    """Generates with one configuration; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import InferConfig

    app.run_command(invocation, InferConfig, infer)


def infer(config: InferConfig, invocation: Invocation) -> None:
    """Answers the prompts of a file, config.prompt, or what the user types or sends through a pipe."""
    if config.prompt is not None and config.prompts is not None:
        raise UsageError("prompt= is one prompt, prompts= a file of many: leave one of them out")
    if config.dry_run:
        _print_plan(config)
    elif invocation.is_sweep_point or config.prompts is not None:
        invocation.run_stage(config, None, lambda folder: _write_answers(config, folder))
    elif config.prompt is None and sys.stdin is None:
        raise UsageError("standard input is closed, so there is no prompt; set prompt=…")
    else:
        _answer_here(config, Path(config.output) if config.output else None, invocation.is_interactive)


def _print_plan(config: InferConfig) -> None:
    from krill.inference.load import locate_model
    from krill.inference.prompts import read_prompts

    print(f"model       {locate_model(config.model.path)[0]}")
    if config.prompts is not None:
        print(f"prompts     {len(read_prompts(config.prompts)):,}, {config.n} answers to each")


def _write_answers(config: InferConfig, folder: Path | None) -> Path:
    """Writes the answers to many prompts, or to config.prompt, to answers.jsonl; returns its folder."""
    with paused_garbage_collection():
        from krill.inference.prompts import build_prompt
        from krill.launch.answers import answer_batch

    prompts = [build_prompt("prompt=", 1, config.prompt or "")] if config.prompts is None else None
    return answer_batch(config, prompts, folder)


def _answer_here(config: InferConfig, folder: Path | None, is_interactive: bool) -> None:
    """Answers config.prompt, each line of a pipe, or what is typed on a terminal, on standard output.

    `folder`: where answers.jsonl is written to as well. `is_interactive`: whether to ask for prompts where
    config.prompt is null; otherwise the model starts a document.
    """
    with paused_garbage_collection():
        from krill.inference.answerer import Answerer
        from krill.inference.batch import write_answers
        from krill.inference.conversation import Conversation, select_template
        from krill.inference.prompts import read_line_prompts
        from krill.inference.token_scores import TOP_ALTERNATIVES
        from krill.launch.answers import get_settings, load_configured_model, log_settings

    if folder is not None:
        atomic.create_folder(folder)
    loaded = load_configured_model(config)
    template = select_template(config.chat, loaded.folder, loaded.tokenizer, config.system)
    log_settings(config, loaded.defaults, template is not None)
    context_length = loaded.model.config.max_position_embeddings
    conversation = None if template is None else Conversation(template, context_length, config.system)
    inspector = AnswerInspector(loaded)
    settings = {**get_settings(config), "n": config.n}
    top_logprobs = TOP_ALTERNATIVES if config.inspect else None
    answerer = Answerer(loaded, settings, conversation, _print_message, inspector.show, top_logprobs)
    if config.prompt is not None or not is_interactive:
        answerer.answer(config.prompt or "")
    elif _is_terminal():
        from krill.inference.session import run_session

        log.info("session     /help lists the commands; Alt-Enter begins a new line, Ctrl-D ends")
        run_session(answerer, config.history)
    else:
        for prompt in read_line_prompts():
            answerer.forget()  # every line is a prompt of its own
            answerer.answer(prompt)
    if folder is not None:
        write_answers(folder, answerer.answers)
        inspector.write(folder)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())


def _print_message(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
