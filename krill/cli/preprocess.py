"""krill-preprocess: prepare the token store that training reads from raw text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from krill.cli import app
from krill.config.paths import relative_path
from krill.tables import print_wrapped

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig
    from krill.data.inputs import RunInputs
    from krill.launch.invocation import Invocation


def main() -> int:
    """Runs krill-preprocess; returns the exit code."""
    return app.main("preprocess", run_task)


def run_task(invocation: Invocation) -> None:
    """Prepares one token store; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import TrainConfig

    app.run_command(invocation, TrainConfig, _run_preprocess)


def _run_preprocess(config: TrainConfig, invocation: Invocation) -> None:
    inputs = invocation.open_inputs(config)
    if config.dry_run:
        print_wrapped("\n".join(describe_store_dry_run(config, inputs)))
        return
    invocation.run_stage(
        config,
        inputs,
        lambda output: preprocess(config, inputs, None if invocation.is_sweep_point else output),
    )


def preprocess(config: TrainConfig, inputs: RunInputs, output: Path | None) -> Path:
    """Returns the folder of the tokens, prepared now or reused.

    `output`: the folder to write; None: one below outputs/. With data.task only the parts of that task are prepared,
    and the folder is where the tokens will be.
    """
    from krill.data.cache import get_or_prepare_store, get_or_train_tokenizer, prepare_store_task

    tokenizer = get_or_train_tokenizer(inputs)
    if config.data.task is not None:
        return prepare_store_task(inputs, tokenizer, output)
    return get_or_prepare_store(config, inputs, tokenizer, output)


def describe_store_dry_run(config: TrainConfig, inputs: RunInputs) -> list[str]:
    """Returns what would be done, and what each rule drops of a sample; writes nothing."""
    from krill.data.dry_run_sample import format_dry_run_sample

    folder = Path(config.output).absolute() if config.output else inputs.store_folder
    return [
        f"tokens      {'reuse' if folder.is_dir() else 'prepare'} {relative_path(folder)}",
        *format_dry_run_sample(config.data, inputs.source),
    ]
