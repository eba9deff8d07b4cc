"""krill-inspect for tokenizers: compare several on held-out text, or show the tokens of a text."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import compose
from krill.cli.diagnosis import compose_train_config
from krill.config.overrides import get_override_key
from krill.config.paths import CONF_DIR, list_config_options, relative_path
from krill.config.suggestions import find_closest_name, suggest
from krill.errors import KrillError, UsageError
from krill.tables import get_terminal_width
from krill.terminal import encode_input

if TYPE_CHECKING:
    from krill.config.schema import InspectConfig
    from krill.launch.invocation import Invocation
    from krill.sources.source import Source


def print_tokenizer_comparison(config: InspectConfig, invocation: Invocation) -> None:
    """Prints a comparison of tokenizers on the held-out text of the data; writes nothing but the plot."""
    from krill.sources.registry import open_source

    if not config.data.validation_fraction:
        raise UsageError(
            "data.validation_fraction=0: no document is held out, so there is nothing to evaluate tokenizers on; set "
            "data.validation_fraction=0.01"
        )
    source = open_source(config.data, is_read_only=True)
    folders = _resolve_folders(config, invocation)
    if config.dry_run:
        _print_folders(folders.values())
        return
    _require_trained(folders, invocation)
    metrics = _compute_metrics(config, source, folders)

    from krill.inspection import compare_report

    if config.plot is not None:
        compare_report.plot_tokenizers(metrics, Path(config.plot))
    if config.format == "json":
        print(json.dumps(metrics, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        print(compare_report.format_tokenizer_report(metrics, get_terminal_width(sys.stdout)))


def print_text_tokens(config: InspectConfig, invocation: Invocation) -> None:
    """Prints the tokens of config.text; special tokens in it are read as text."""
    from krill.data.inputs import RunInputs

    assert config.text is not None
    if config.plot is not None:
        raise UsageError("plot= draws a store or tokenizers=, not text=; leave one of them out")
    content = encode_input(config.text, "text=")
    folder = RunInputs.open(config).tokenizer_folder
    if config.dry_run:
        _print_folders([folder])
        return
    if not folder.is_dir():
        raise UsageError(_describe_missing(folder, compose.drop_inspect_keys(invocation.overrides)))

    from krill.data.encoding import Encoder
    from krill.inspection.render_rows import make_stdout_console, render_text_tokens
    from krill.inspection.token_display import TokenRenderer
    from krill.tokenizer.artifact import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = Encoder(tokenizer).encode([config.text]).tokens[1:-1].tolist()
    pieces = TokenRenderer(tokenizer).render(ids)
    if config.format == "json":
        summary = {
            "tokenizer": str(folder),
            "text": config.text,
            "bytes": len(content),
            "tokens": len(ids),
            "ids": ids,
        }
        print(json.dumps({**summary, "pieces": [piece._asdict() for piece in pieces]}, ensure_ascii=False))
        return
    ratio = f", {len(content) / len(ids):.2f} bytes per token" if ids else ""
    print(
        f"tokenizer   {relative_path(folder)}\ntext        {len(content):,} bytes in {len(ids):,} tokens{ratio}\n"
    )
    make_stdout_console().print(render_text_tokens(pieces, config.ids), end="")


def _compute_metrics(config: InspectConfig, source: Source, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Returns the metrics of the tokenizers on held-out text. Raises UsageError if there are none."""
    from krill.inspection.compare_tokenizers import evaluate_tokenizers
    from krill.sources.source import SkippedRecords
    from krill.text.sample import TextSample
    from krill.tokenizer.artifact import load_tokenizer

    tokenizers = {label: load_tokenizer(folder) for label, folder in folders.items()}
    skipped = SkippedRecords()
    sample = TextSample(source, config.data, "validation", config.eval_bytes, skipped)
    skipped.warn()
    metrics = evaluate_tokenizers(tokenizers, sample, source.names)
    if not metrics["documents"]:
        raise UsageError(
            f"data.validation_fraction={config.data.validation_fraction:g}: no document of this data is held "
            "out, so there is nothing to evaluate tokenizers on; add text, or raise data.validation_fraction"
        )
    return {"data": config.data.name, **metrics}


# --- which tokenizers --------------------------------------------------------------------------------------


def _resolve_folders(config: InspectConfig, invocation: Invocation) -> dict[str, Path]:
    """Returns the folder of each tokenizer of `config` by its name; one that is not trained yet does not exist."""
    user_folders = invocation.composition.user_folders
    known = list_config_options("tokenizer", [*user_folders, CONF_DIR])
    return {
        name: _resolve_option(_build_arguments(name, invocation), user_folders)
        if name in known
        else _resolve_named_folder(name, known)
        for name in config.tokenizers
    }


def _resolve_option(overrides: Sequence[str], user_folders: Sequence[Path]) -> Path:
    """Returns the folder of the tokenizer that krill-tokenizer trains with these overrides."""
    from krill.data.inputs import RunInputs

    config = compose_train_config(overrides, user_folders)
    return RunInputs.open(config).tokenizer_folder


def _resolve_named_folder(name: str, known: Mapping[str, Path]) -> Path:
    """Returns the folder `name`, or the one of the Hub; a near miss of an option is an error."""
    from krill.tokenizer.artifact import resolve_tokenizer_folder

    if "/" in name or Path(name).is_dir():
        return resolve_tokenizer_folder(name, "tokenizers")
    hint = suggest(name, known)
    if find_closest_name(name, known):
        raise UsageError(
            f"tokenizers=[{name}]: neither an option nor a folder (relative to {Path.cwd()}). {hint}, or a Hub id "
            "(owner/name)"
        )
    try:
        return resolve_tokenizer_folder(name, "tokenizers")
    except KrillError as error:
        raise type(error)(f"{error}\n{hint}") from error


def _require_trained(folders: Mapping[str, Path], invocation: Invocation) -> None:
    """Raises UsageError that names the command for every tokenizer that is not trained yet."""
    missing = [
        _describe_missing(folder, _build_arguments(name, invocation))
        for name, folder in folders.items()
        if not folder.is_dir()
    ]
    if missing:
        raise UsageError("\n".join(missing))


def _describe_missing(folder: Path, overrides: Sequence[str]) -> str:
    return f"{folder}: not trained yet; run: {shlex.join(['krill-tokenizer', *overrides])}"


def _build_arguments(option: str, invocation: Invocation) -> list[str]:
    """Returns the overrides with which krill-tokenizer trains that option."""
    others = [
        override
        for override in compose.drop_inspect_keys(invocation.overrides)
        if get_override_key(override) not in ("tokenizer", "tokenizer.path")
    ]
    return [*others, f"tokenizer={option}"]


def _print_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        print(f"tokenizer   {'read' if folder.is_dir() else 'missing'} {relative_path(folder)}")
