"""krill-tokenizer: train the tokenizer on the text of the data."""

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
    """Runs krill-tokenizer; returns the exit code."""
    return app.main("tokenizer", run_task)


def run_task(invocation: Invocation) -> None:
    """Trains one tokenizer; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import TrainConfig

    app.run_command(invocation, TrainConfig, _run_tokenizer)


def _run_tokenizer(config: TrainConfig, invocation: Invocation) -> None:
    inputs = invocation.open_inputs(config)
    if config.dry_run:
        print_wrapped("\n".join(describe_tokenizer_dry_run(config, inputs)))
        return
    invocation.run_stage(
        config,
        inputs,
        lambda output: prepare_tokenizer(config, inputs, None if invocation.is_sweep_point else output),
    )


def prepare_tokenizer(config: TrainConfig, inputs: RunInputs, output: Path | None) -> Path:
    """Returns the folder of the tokenizer, trained now or reused, and uploads it with tokenizer.push_to.

    `output`: the folder to write; None: one below outputs/.
    """
    from krill.data.cache import get_or_train_tokenizer

    tokenizer = get_or_train_tokenizer(inputs, output, warn=True)
    if config.tokenizer.push_to is not None:
        from krill.tokenizer.hub import push_tokenizer_to_hub

        push_tokenizer_to_hub(tokenizer, config.tokenizer.push_to, config.tokenizer.private)
    return tokenizer.folder


def describe_tokenizer_dry_run(config: TrainConfig, inputs: RunInputs) -> list[str]:
    """Returns what would be done; writes nothing."""
    folder = Path(config.output).absolute() if config.output else inputs.tokenizer_folder
    lines = [f"tokenizer   {'reuse' if folder.is_dir() else 'train'} {relative_path(folder)}"]
    if config.tokenizer.push_to is not None:
        visibility = "private" if config.tokenizer.private else "public"
        lines.append(f"upload      {config.tokenizer.push_to}, {visibility}")
    return lines
