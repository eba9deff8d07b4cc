"""krill-preprocess: raw text to the token store that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.config.paths import get_outputs_root
from krill.launch.invocation import Invocation

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig


def main() -> int:
    """Entry point of krill-preprocess."""
    return app.main("preprocess", run_task)


def run_task(composed: Any) -> None:
    """One preparation: what Hydra calls, once or for each point of a sweep."""
    from krill.config.schema import TrainConfig

    app.run_command(composed, TrainConfig, _run_preprocess)


def _run_preprocess(config: TrainConfig, call: Invocation) -> None:
    if config.dry_run:
        print("\n".join(describe_dry_run(config)))
    else:
        call.run_stage(
            "preprocess",
            config,
            lambda config, place: preprocess(config, None if call.sweep_folder else place),
        )


def preprocess(config: TrainConfig, place: Path | None) -> Path:
    """The folder of the tokens, made now or found; `place`: output=, else they go below outputs/.

    With data.task only that share of the work is done, and the folder is where the tokens will be.
    """
    from krill.data.cache import get_or_prepare_store, get_or_train_tokenizer, prepare_store_task

    tokenizer = get_or_train_tokenizer(config, get_outputs_root())
    if config.data.task is not None:
        return prepare_store_task(config, tokenizer, get_outputs_root(), place)
    return get_or_prepare_store(config, tokenizer, get_outputs_root(), place)[0]


def describe_dry_run(config: TrainConfig) -> list[str]:
    """What would be done, and what each rule drops of a sample; writes nothing."""
    from krill.data.cache import get_store_folder
    from krill.data.dry_run_sample import format_dry_run_sample
    from krill.sources.registry import check_source

    check_source(config.data)
    folder = Path(config.output).absolute() if config.output else get_store_folder(config, get_outputs_root())
    return [
        f"tokens      {'reuse' if folder.is_dir() else 'prepare'} {folder}",
        *format_dry_run_sample(config.data),
    ]
