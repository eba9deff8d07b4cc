"""krill-preprocess: raw text to the token store that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.cli.call import Call
from krill.config.location import outputs_root

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig


def main() -> int:
    """Entry point of krill-preprocess."""
    return app.main("preprocess", point)


def point(composed: Any) -> None:
    """One preparation: what Hydra calls, once or for each point of a sweep."""
    from krill.config.schema import TrainConfig

    app.answer(composed, TrainConfig, _place_and_make)


def _place_and_make(config: TrainConfig, call: Call) -> None:
    if config.dry_run:
        print("\n".join(trial(config)))
    else:
        call.make(
            "preprocess", config, lambda config, place: preprocess(config, None if call.sweep else place)
        )


def preprocess(config: TrainConfig, place: Path | None) -> Path:
    """The folder of the tokens, made now or found; `place`: output=, else they go below outputs/.

    With data.shard only that share of the work is done, and the folder is where the tokens will be.
    """
    from krill.data.obtain import obtain_shard, obtain_store, obtain_tokenizer

    tokenizer = obtain_tokenizer(config, outputs_root())
    if config.data.shard is not None:
        return obtain_shard(config, tokenizer, outputs_root(), place)
    return obtain_store(config, tokenizer, outputs_root(), place)[0]


def trial(config: TrainConfig) -> list[str]:
    """What would be done, and what each rule drops of a sample; writes nothing."""
    from krill.data.obtain import store_folder
    from krill.data.trial import sample_table
    from krill.sources.registry import check

    check(config.data)
    folder = Path(config.output).absolute() if config.output else store_folder(config, outputs_root())
    return [f"tokens      {'reuse' if folder.is_dir() else 'prepare'} {folder}", *sample_table(config.data)]
