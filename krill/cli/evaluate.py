"""krill-evaluate: measure what a trained model has learned."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.cli.model_arguments import resolve_model_arguments
from krill.config import paths
from krill.config.key_aliases import SHORT_EVALUATION_KEYS
from krill.errors import REQUEUE, TERMINATED, SignalInterrupt
from krill.launch.invocation import Invocation
from krill.resources import paused_garbage_collection
from krill.tables import get_terminal_width, print_wrapped

if TYPE_CHECKING:
    from krill.cli.argv import ParsedArguments
    from krill.config.schema import EvaluateConfig
    from krill.evaluation.prompt_samples import PromptSamples
    from krill.evaluation.results import TaskResult


def main() -> int:
    """Runs krill-evaluate; returns the exit code."""
    return app.main("evaluate", run_task, None, "model", prepare_arguments, has_several_positionals=True)


def run_task(invocation: Invocation) -> None:
    """Evaluates with one configuration; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import EvaluateConfig

    app.run_command(invocation, EvaluateConfig, _run_evaluation)


def prepare_arguments(parsed: ParsedArguments, folders: Sequence[Path]) -> None:
    """Chooses the models: several arguments, a glob and the name of a sweep are a sweep over models (-m)."""
    from krill.config.overrides import replace_key

    if not parsed.is_completion:
        _expand_models(parsed)
    for key, full_key in SHORT_EVALUATION_KEYS.items():
        parsed.overrides = [replace_key(text, key, full_key) for text in parsed.overrides]
    if parsed.get_value("data") and "data.min_chars" not in parsed.get_keys():
        parsed.overrides.append("data.min_chars=0")  # the text is not chosen for training
    presets = paths.list_config_options("evaluation", [*folders, paths.CONF_DIR])
    parsed.overrides = [_choose_preset(text, presets) for text in parsed.overrides]
    resolve_model_arguments(parsed, folders)


def _choose_preset(override: str, presets: Container[str]) -> str:
    """Returns tasks=korean, or tasks=korean,english of a sweep, as the choice of options of the group evaluation."""
    from krill.config.overrides import get_override_key, get_override_value

    if get_override_key(override) != "evaluation.tasks":
        return override
    value = get_override_value(override)
    return f"evaluation={value}" if all(name in presets for name in value.split(",")) else override


def _expand_models(parsed: ParsedArguments) -> None:
    """Replaces the models by one override of all models that they name."""
    from krill.config.overrides import format_text_override, split_choices
    from krill.config.paths import get_outputs_root
    from krill.runs.resolve import resolve_all_models

    models = parsed.positionals
    for override in parsed.overrides:
        if override.startswith("model="):
            models += split_choices(override) if parsed.is_multirun else [override.partition("=")[2]]
    if not models:
        return
    parsed.overrides = parsed.get_overrides_without("model")
    if not parsed.is_print_only:
        root = get_outputs_root().absolute()
        models = [name for model in models for name in resolve_all_models("model", model, root)]
    texts = [format_text_override("model", model) for model in dict.fromkeys(models)]
    parsed.overrides.append(f"model={','.join(text.removeprefix('model=') for text in texts)}")
    if len(texts) > 1 and not parsed.is_multirun:
        parsed.flags.append("--multirun")


def _run_evaluation(config: EvaluateConfig, invocation: Invocation) -> None:
    if config.dry_run or (config.format == "json" and not invocation.is_sweep_point):
        _evaluate(config, None)  # without the folder of the result, which is not JSON
    else:
        invocation.run_stage(
            config, None, lambda folder: _evaluate(config, folder if invocation.is_sweep_point else None)
        )


def _evaluate(config: EvaluateConfig, point: Path | None) -> Path:
    """Evaluates the model and returns the folder of the results.

    `point`: the folder of a point of a sweep, which gets a copy of the results; the sweep prints them.
    """
    with paused_garbage_collection():
        from krill.evaluation.prompt_samples import PromptSampler, write_samples
        from krill.evaluation.results import write_results
        from krill.launch.evaluation_ranks import open_evaluation, run_evaluation
        from krill.training.compute.device import resolve_device
        from krill.training.ranks import process_group

    if point is not None:
        config = config.model_copy(update={"output": None})  # of a sweep it is the folder of the points
    with process_group(resolve_device(config.device)):
        evaluation = open_evaluation(config)
        if config.dry_run:
            print("\n".join(evaluation.describe()))
            return evaluation.folder
        app.log.info("\n".join(evaluation.describe()))
        prompts = config.evaluation.prompts
        sampler = PromptSampler(evaluation, prompts) if prompts else None
        with _require_progress(evaluation.folder):
            results = run_evaluation(config, evaluation)
        if evaluation.share.rank == 0:
            samples = sampler.run() if sampler else None
            if point is not None:
                if samples is not None:
                    write_samples(point, samples)
                return write_results(point, results)
            _print_results(config, results, samples)
    return evaluation.folder


@contextmanager
def _require_progress(folder: Path) -> Iterator[None]:
    """Makes an interruption final if no result was written to `folder` before it: a SLURM job that was requeued would
    reach its time limit in the same task again."""
    started = _list_files(folder)
    try:
        yield
    except SignalInterrupt as interrupt:
        if interrupt.exit_code != REQUEUE or interrupt.signal is None or _list_files(folder) != started:
            raise
        raise SignalInterrupt(
            f"interrupted by {interrupt.signal.name} before a task was complete; nothing is saved",
            TERMINATED,
            interrupt.signal,
        ) from interrupt


def _list_files(folder: Path) -> set[tuple[str, int]]:
    """Returns the names of the results in `folder`, and when they were written."""
    return {(file.name, file.stat().st_mtime_ns) for file in folder.glob("*.json")}


def _print_results(
    config: EvaluateConfig, results: Sequence[TaskResult], samples: PromptSamples | None
) -> None:
    if config.format == "json":
        content: list[Any] = [result.model_dump(mode="json", exclude={"outcomes"}) for result in results]
        content += [samples.model_dump(mode="json")] if samples else []
        print(json.dumps(content, ensure_ascii=False, indent=2))
    else:
        from krill.evaluation.notes import format_notes
        from krill.evaluation.prompt_samples import format_samples
        from krill.evaluation.score_table import format_scores

        width = get_terminal_width(sys.stdout)
        print("\n".join(format_scores(results, width)))
        for line in [*format_notes(results), *(format_samples(samples) if samples else [])]:
            print_wrapped(line)
