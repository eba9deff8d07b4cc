"""krill-inspect: show what is in a token store, compare tokenizers, or look into a trained model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.config import paths
from krill.config.paths import expand_home, get_outputs_root
from krill.errors import KrillError, UsageError
from krill.launch.invocation import Invocation
from krill.tables import get_terminal_width

if TYPE_CHECKING:
    from krill.cli.argv import ParsedArguments
    from krill.config.schema import InspectConfig
    from krill.data.store import Store
    from krill.inspection.token_display import TokenRenderer
    from krill.tokenizer.artifact import TokenizerFolder


def main() -> int:
    """Runs krill-inspect; returns the exit code."""
    return app.main("inspect", run_task, positional_key="data", prepare_arguments=_resolve_folder_arguments)


def run_task(invocation: Invocation) -> None:
    """Inspects one store, several tokenizers, or a text; called by Hydra."""
    from krill.config.schema import InspectConfig

    app.run_command(invocation, InspectConfig, inspect)


def inspect(config: InspectConfig, invocation: Invocation) -> None:
    """Prints what is in the tokens of `config`, compares its tokenizers, or shows its text.

    Writes nothing but the plot, and the scores of a text.
    """
    from krill.cli import inspect_model

    inspect_model.require_text(config)
    if config.trained_model is not None:
        inspect_model.print_model_scores(config, invocation)
        return
    if config.tokenizers or config.text is not None:
        from krill.cli import inspect_tokenizers

        show = (
            inspect_tokenizers.print_tokenizer_comparison
            if config.tokenizers
            else inspect_tokenizers.print_text_tokens
        )
        show(config, invocation)
        return
    folder = _resolve_store_folder(config)
    if config.dry_run:
        print(f"tokens      {'read' if folder.is_dir() else 'missing'} {paths.relative_path(folder)}")
        return
    if config.store is None and not folder.is_dir():
        from krill.cli import compose

        command = shlex.join(["krill-preprocess", *compose.drop_inspect_keys(invocation.overrides)])
        raise UsageError(f"{folder}: these tokens are not prepared yet; run: {command}")

    from krill.config.overrides import is_section_overridden
    from krill.data.store import Store
    from krill.inspection import store_report, store_stats
    from krill.inspection.token_display import TokenRenderer

    store = Store.open(folder)
    if config.verify:
        store.verify()
    tokenizer = _find_tokenizer(config, store, is_section_overridden("tokenizer", invocation.overrides))
    renderer = None if tokenizer is None else TokenRenderer(tokenizer)
    stats = store_stats.compute_store_stats(store, config, renderer)
    if config.plot is not None:
        store_report.plot_store(stats, Path(config.plot))
    if config.format == "json":
        print(json.dumps(stats, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        _print_store(config, store, renderer, stats)


def _print_store(
    config: InspectConfig, store: Store, renderer: TokenRenderer | None, stats: dict[str, Any]
) -> None:
    """Prints the statistics, then rows."""
    from krill.data.packing import pack
    from krill.inspection import store_report
    from krill.inspection.render_rows import RowDisplayOptions, make_stdout_console, render_row

    screen = make_stdout_console()
    view = RowDisplayOptions(config.ids, screen.width, None if config.full else max(8, screen.height - 4))
    rendered_rows = []
    if config.rows or config.row is not None:
        if renderer is None:
            raise UsageError(
                f"{store.folder}: the tokenizer of these tokens (signature {store.tokenizer_signature[:8]}) is not "
                f"below {get_outputs_root() / 'tokenizers'}; set tokenizer=FOLDER, or show no rows with rows=0"
            )
        rows = pack(store.train, config.sequence_len, config.packing)
        chosen = _choose_rows(config, len(rows))
        rendered_rows = [
            render_row(rows, index, store.train, store.sources, renderer, view) for index in chosen
        ]
    print(store_report.format_store_report(stats, get_terminal_width(sys.stdout)))
    for row in rendered_rows:
        screen.print()
        screen.print(row, end="")


def _choose_rows(config: InspectConfig, rows: int) -> list[int]:
    """Returns the indices of the rows to show."""
    if config.row is None:
        import numpy as np

        random = np.random.default_rng(config.seed)
        return sorted(random.choice(rows, min(config.rows, rows), replace=False).tolist())
    if config.row >= rows:
        valid = f"use 0 to {rows - 1:,}" if rows else "there are no rows"
        raise UsageError(
            f"row={config.row}: no such row with sequence_len={config.sequence_len} and packing={config.packing}; "
            f"{valid}"
        )
    return [config.row]


# --- which store, which tokenizer --------------------------------------------------------------------------


def _resolve_store_folder(config: InspectConfig) -> Path:
    """Returns the folder of the token store to inspect."""
    if config.store is not None:
        return expand_home(config.store)
    from krill.data.inputs import RunInputs

    return RunInputs.open(config).store_folder


def _find_tokenizer(config: InspectConfig, store: Store, is_tokenizer_set: bool) -> TokenizerFolder | None:
    """Returns the tokenizer that encoded the tokens, or None if it is not found.

    `is_tokenizer_set`: whether the command line names a tokenizer; raises UsageError if it is not that of the store.
    """
    from krill.tokenizer.artifact import load_tokenizer

    candidates = sorted(record.parent for record in get_outputs_root().glob("tokenizers/*/record.json"))
    if is_tokenizer_set or config.store is None:
        from krill.data.inputs import RunInputs

        folder = RunInputs.open(config).tokenizer_folder
        if is_tokenizer_set and not (
            folder.is_dir() and load_tokenizer(folder).signature == store.tokenizer_signature
        ):
            raise UsageError(
                f"tokenizer {folder} did not encode the tokens in {store.folder} (signature "
                f"{store.tokenizer_signature[:8]}); leave out tokenizer=, or set tokenizer= to the folder of the "
                "tokenizer that did"
            )
        candidates = [folder, *candidates]
    for folder in candidates:
        recorded = _read_recorded_signature(folder)
        if not folder.is_dir() or recorded not in (None, store.tokenizer_signature):
            continue
        try:
            tokenizer = load_tokenizer(folder)
        except KrillError:
            if recorded is not None:
                raise
            continue  # a damaged record, perhaps of another tokenizer
        if tokenizer.signature == store.tokenizer_signature:
            return tokenizer
    return None


def _read_recorded_signature(folder: Path) -> str | None:
    """Returns the signature in the record of a tokenizer, which is faster to read than the tokenizer."""
    try:
        return json.loads((folder / "record.json").read_text(encoding="utf-8"))["signature"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _resolve_folder_arguments(parsed: ParsedArguments, folders: Sequence[Path]) -> None:
    """Rewrites data=FOLDER to store=FOLDER and tokenizer=FOLDER to tokenizer.path=FOLDER, unless they name an option.

    output=FOLDER, to which krill-preprocess wrote the tokens, becomes store=FOLDER too; data=RUN becomes from=RUN.
    Beside text=, model=X becomes trained_model=X, and output=FOLDER is where the scores of the text are written.
    """
    from krill.config.overrides import get_override_key, replace_key

    if parsed.is_multirun:
        raise UsageError(
            "krill-inspect has no -m: it prints, and makes no folders. Several row lengths side by side: "
            "sequence_lens=[512,1024]"
        )
    has_text = parsed.get_value("text") is not None
    if has_text:
        parsed.overrides = [replace_key(override, "model", "trained_model") for override in parsed.overrides]
    else:
        _require_model_option(parsed.get_value("model"), folders)
    has_model = parsed.get_value("trained_model") not in (None, "null")
    parsed.overrides = [
        override
        if has_model and get_override_key(override) == "output"
        else _resolve_folder_override(override, folders, has_text)
        for override in parsed.overrides
    ]
    _require_one_subject(parsed)


def _require_model_option(value: str | None, folders: Sequence[Path]) -> None:
    """Raises UsageError for a model= that is neither an option nor nearly one: a trained model needs text=."""
    from krill.config.suggestions import find_closest_name

    known = paths.list_config_options("model", [*folders, paths.CONF_DIR])
    if value is None or value in known or "," in value or find_closest_name(value, known):
        return
    raise UsageError(
        f"model={value}: not an option of model=. To look into a trained model, add the text: "
        f'krill-inspect model={value} text="…"'
    )


def _require_one_subject(parsed: ParsedArguments) -> None:
    """Raises UsageError when several stores, or tokens and tokenizers, are requested at once."""
    stores = [override for override in parsed.overrides if override.startswith("store=")]
    if len(stores) > 1:
        raise UsageError(f"{' and '.join(stores)}: one store at a time; leave one of them out")
    keys = parsed.get_keys()
    subjects = [f"{key}=" for key in ("store", "tokenizers", "text") if key in keys]
    if len(subjects) > 1:
        raise UsageError(
            f"{' and '.join(subjects)}: one at a time. store= (data=FOLDER, output=) shows tokens, tokenizers= "
            "compares tokenizers on the held-out text of the data, text= shows the tokens of a text, and with "
            "model=RUN their probabilities"
        )
    if "tokenizers" in keys and keys & {"tokenizer", "tokenizer.path"}:
        raise UsageError("tokenizers= names every tokenizer itself; leave out tokenizer=")


def _resolve_folder_override(override: str, folders: Sequence[Path], has_text: bool) -> str:
    """Returns an override with a folder moved to the key that takes folders.

    `has_text`: text= is set, so tokenizer= may be a Hub id, unless it is almost the name of an option.
    """
    from krill.config.suggestions import find_closest_name, suggest
    from krill.launch.run_names import resolve_named_run
    from krill.runs.find import run_at
    from krill.runs.resolve import OVERRIDES

    key, _, value = override.partition("=")
    if key == "output" and value != "null":
        return f"store={value}"
    if key not in ("data", "tokenizer"):
        return override
    known = paths.list_config_options(key, [*folders, paths.CONF_DIR])
    if value in known or "," in value or value == "null":
        return override
    if key == "tokenizer":
        is_path = (
            "/" in value or Path(value).is_dir() or (has_text and find_closest_name(value, known) is None)
        )
        return f"tokenizer.path={value}" if is_path else override
    path = expand_home(value)
    if path.is_dir() and run_at(path.absolute()) is None:
        return f"store={value}"
    try:
        return f"from={resolve_named_run(key, value, OVERRIDES)}"
    except UsageError as error:
        options = suggest(value, known, "data={}")
        raise UsageError(
            f"data={value}: neither an option nor a folder (relative to {Path.cwd()}). {options}\n{error}"
        ) from error
