"""The arguments of commands that use a trained model: which model, and which tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from krill.cli import app
from krill.config import paths
from krill.config.paths import get_outputs_root
from krill.errors import UsageError

if TYPE_CHECKING:
    from krill.cli.argv import ParsedArguments


def resolve_model_arguments(parsed: ParsedArguments, folders: Sequence[Path]) -> None:
    """Rewrites model=X to model.path=X: a trained model, never an option of the config group of that name.

    tokenizer=X becomes tokenizer.path=X, where X may be an option: the tokenizer that it trains on the built-in text.
    experiment=NAME means its newest finished run here, or else its model on the Hub; without any of them, the newest
    finished run.
    """
    from krill.config.overrides import format_text_override, replace_key

    parsed.overrides = [replace_key(text, "model", "model.path") for text in parsed.overrides]
    option = parsed.get_value("tokenizer")
    if option in paths.list_config_options("tokenizer", [*folders, paths.CONF_DIR]):
        parsed.overrides = [
            *parsed.get_overrides_without("tokenizer"),
            format_text_override("tokenizer.path", str(_find_trained_tokenizer(option, folders))),
        ]
    parsed.overrides = [replace_key(text, "tokenizer", "tokenizer.path") for text in parsed.overrides]
    from krill.runs.resolve import FINAL_MODEL, find_newest_run

    name, root = parsed.get_value("experiment"), get_outputs_root()
    if name is None:
        if not (parsed.get_keys() & {"model.path", "from"} or parsed.is_print_only):
            run = find_newest_run(root, FINAL_MODEL)
            if run is None:
                raise UsageError(
                    f"model= is not set, and no run in {root} is finished; train one with krill-train, or use "
                    "model=<folder or Hub id>"
                )
            _choose_model(parsed, str(run))
        return
    from krill.cli.diagnosis import compose_train_config

    config = compose_train_config([f"experiment={name}"], folders)
    parsed.overrides = parsed.get_overrides_without("experiment")
    run = find_newest_run(root, FINAL_MODEL, config.name)
    if run is None and config.hub.id is None:
        raise UsageError(f"experiment={name}: no finished run yet; make one: krill-train experiment={name}")
    _choose_model(parsed, str(run or config.hub.id))


def _find_trained_tokenizer(option: str, folders: Sequence[Path]) -> Path:
    """Returns the folder of the tokenizer that an option of the group tokenizer trains."""
    from krill.cli.diagnosis import compose_train_config
    from krill.data.inputs import RunInputs

    config = compose_train_config([f"tokenizer={option}"], folders)
    folder = RunInputs.open(config).tokenizer_folder
    if not folder.is_dir():
        raise UsageError(f"tokenizer={option}: not trained yet; run krill-tokenizer tokenizer={option}")
    return folder


def _choose_model(parsed: ParsedArguments, model: str) -> None:
    """Sets the model that the command line does not name, and logs it."""
    from krill.config.overrides import format_text_override

    app.log.info("model       %s", model)
    parsed.overrides.append(format_text_override("model.path", model))
