"""krill-tokenizer: train the tokenizer on the text of the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.cli.call import Call
from krill.config.location import outputs_root

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig


def main() -> int:
    """Entry point of krill-tokenizer."""
    return app.main("tokenizer", point)


def point(composed: Any) -> None:
    """One tokenizer: what Hydra calls, once or for each point of a sweep."""
    from krill.config.schema import TrainConfig

    app.answer(composed, TrainConfig, _place_and_make)


def _place_and_make(config: TrainConfig, call: Call) -> None:
    if config.dry_run:
        from krill.data.obtain import tokenizer_folder
        from krill.sources.registry import check

        check(config.data)
        folder = Path(config.output).absolute() if config.output else tokenizer_folder(config, outputs_root())
        print(f"tokenizer   {'reuse' if folder.is_dir() else 'train'} {folder}")
        if config.tokenizer.push_to is not None:
            print(
                f"upload      {config.tokenizer.push_to}, {'private' if config.tokenizer.private else 'public'}"
            )
    else:
        call.make("tokenizer", config, lambda config, place: tokenizer(config, None if call.sweep else place))


def tokenizer(config: TrainConfig, place: Path | None) -> Path:
    """The folder of the tokenizer, trained now or found, and uploaded if asked; `place`: where it was asked for."""
    from krill.data.obtain import obtain_tokenizer

    found = obtain_tokenizer(config, outputs_root(), place, warn=True)
    if config.tokenizer.push_to is not None:
        from krill.tokenizer.hub import push

        push(found, config.tokenizer.push_to, config.tokenizer.private)
    return found.folder
