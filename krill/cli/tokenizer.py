"""krill-tokenizer: train the tokenizer on the text of the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.config.paths import get_outputs_root
from krill.launch.invocation import Invocation

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig


def main() -> int:
    """Entry point of krill-tokenizer."""
    return app.main("tokenizer", run_task)


def run_task(composed: Any) -> None:
    """One tokenizer: what Hydra calls, once or for each point of a sweep."""
    from krill.config.schema import TrainConfig

    app.run_command(composed, TrainConfig, _run_tokenizer)


def _run_tokenizer(config: TrainConfig, call: Invocation) -> None:
    if config.dry_run:
        from krill.data.cache import get_tokenizer_folder
        from krill.sources.registry import check_source

        check_source(config.data)
        folder = (
            Path(config.output).absolute()
            if config.output
            else get_tokenizer_folder(config, get_outputs_root())
        )
        print(f"tokenizer   {'reuse' if folder.is_dir() else 'train'} {folder}")
        if config.tokenizer.push_to is not None:
            print(
                f"upload      {config.tokenizer.push_to}, {'private' if config.tokenizer.private else 'public'}"
            )
    else:
        call.run_stage(
            "tokenizer",
            config,
            lambda config, place: prepare_tokenizer(config, None if call.sweep_folder else place),
        )


def prepare_tokenizer(config: TrainConfig, place: Path | None) -> Path:
    """The folder of the tokenizer, trained now or found, and uploaded if asked; `place`: where it was asked for."""
    from krill.data.cache import get_or_train_tokenizer

    found = get_or_train_tokenizer(config, get_outputs_root(), place, warn=True)
    if config.tokenizer.push_to is not None:
        from krill.tokenizer.hub import push_tokenizer_to_hub

        push_tokenizer_to_hub(found, config.tokenizer.push_to, config.tokenizer.private)
    return found.folder
