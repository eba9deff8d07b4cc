"""krill-inspect on tokenizers instead of tokens: several judged side by side, or a text by the tokens of one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import compose
from krill.config.location import CONF_DIR, options, outputs_root
from krill.config.schema import TrainConfig
from krill.config.validation import closest, validated
from krill.errors import KrillError, UsageError

if TYPE_CHECKING:
    from krill.cli.call import Call
    from krill.config.schema import InspectConfig


def judge(config: InspectConfig, call: Call) -> None:
    """Print how the tokenizers do on the held-out text of the data; makes nothing but the plot."""
    if not config.data.validation_fraction:
        raise UsageError(
            "data.validation_fraction=0: no document is held out, so there is none to judge tokenizers on; set "
            "data.validation_fraction=0.01"
        )
    folders = _folders(config, call)
    if config.dry_run:
        _tell(folders.values())
        return
    _demand_made(folders, call)
    figures = _figures(config, folders)

    from krill.inspection import side_by_side

    if config.plot is not None:
        side_by_side.plot(figures, Path(config.plot))
    if config.format == "json":
        print(json.dumps(figures, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        print(side_by_side.text(figures))


def colour(config: InspectConfig, call: Call) -> None:
    """Print config.text by the tokens of config.tokenizer. Special tokens written in it are text."""
    from krill.data.obtain import tokenizer_folder

    assert config.text is not None
    if config.plot is not None:
        raise UsageError("plot= draws a store or tokenizers=, not text=; leave one of them out")
    try:
        content = config.text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"text=: is no UTF-8 (character {error.start + 1}); type it in another encoding"
        ) from error
    folder = tokenizer_folder(config, outputs_root())
    if config.dry_run:
        _tell([folder])
        return
    if not folder.is_dir():
        raise UsageError(_not_made(folder, compose.without_inspection(call.overrides)))

    from krill.data.encoding import Encoder
    from krill.inspection.colours import coloured_pieces, console
    from krill.inspection.pieces import Speller
    from krill.tokenizer.folder import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = Encoder(tokenizer).encode([config.text]).tokens[1:-1].tolist()
    pieces = Speller(tokenizer).pieces(ids)
    if config.format == "json":
        shown = {
            "tokenizer": str(folder),
            "text": config.text,
            "bytes": len(content),
            "tokens": len(ids),
            "ids": ids,
        }
        print(json.dumps({**shown, "pieces": [piece._asdict() for piece in pieces]}, ensure_ascii=False))
        return
    ratio = f", {len(content) / len(ids):.2f} bytes per token" if ids else ""
    print(f"tokenizer   {folder}\ntext        {len(content):,} bytes in {len(ids):,} tokens{ratio}\n")
    console().print(coloured_pieces(pieces, config.ids), end="")


def _figures(config: InspectConfig, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Figures of the tokenizers on held-out text. Raises UsageError where none is held out."""
    from krill.inspection.tokenizers import judged
    from krill.sources.registry import open_source
    from krill.sources.source import Skipped
    from krill.text.sample import Sample
    from krill.tokenizer.folder import load_tokenizer

    tokenizers = {label: load_tokenizer(folder) for label, folder in folders.items()}
    source, skipped = open_source(config.data), Skipped()
    sample = Sample(source, config.data, "validation", config.judge_bytes, skipped)
    skipped.warn()
    figures = judged(tokenizers, sample, source.names)
    if not figures["documents"]:
        raise UsageError(
            f"data.validation_fraction={config.data.validation_fraction:g}: of this data no document is held out, so "
            "there is none to judge tokenizers on; give more text, or hold more out"
        )
    return {"data": config.data.name, **figures}


# --- which tokenizers --------------------------------------------------------------------------------------


def _folders(config: InspectConfig, call: Call) -> dict[str, Path]:
    """Where each tokenizer of `config` is, by what it was called; one that is not made yet is not there."""
    from krill.sources.registry import check

    check(config.data)
    own = [Path(source.path) for source in call.hydra.runtime.config_sources if source.provider == "user"]
    known = options("tokenizer", [*own, CONF_DIR])
    return {
        name: _of_option(_words(name, call), own) if name in known else _ready(name, known)
        for name in config.tokenizers
    }


def _of_option(words: Sequence[str], own: Sequence[Path]) -> Path:
    """The folder of the tokenizer that krill-tokenizer makes of these words."""
    from krill.data.obtain import tokenizer_folder

    try:
        config = validated(TrainConfig, compose.composed("train", words, own))
    except Exception as error:
        if not compose.is_usage(error):
            raise
        raise UsageError("\n".join(compose.problems("train", words, own, error))) from error
    return tokenizer_folder(config, outputs_root())


def _ready(name: str, known: Mapping[str, Path]) -> Path:
    """The folder `name`, or that of the Hub; what is almost an option is taken for a slip."""
    from krill.tokenizer.folder import ready_folder

    if "/" in name or Path(name).is_dir():
        return ready_folder(name, "tokenizers")
    there = f"Options there are: {', '.join(known)}"
    if near := closest(name, known):
        raise UsageError(
            f"tokenizers=[{name}]: neither an option nor a folder (seen from {Path.cwd()}). Did you mean {near}? "
            f"{there}; one of the Hub is owner/name"
        )
    try:
        return ready_folder(name, "tokenizers")
    except KrillError as error:
        raise type(error)(f"{error}\n{there}") from error


def _demand_made(folders: Mapping[str, Path], call: Call) -> None:
    """Raise UsageError that names the command for every tokenizer that is not made yet."""
    missing = [
        _not_made(folder, _words(name, call)) for name, folder in folders.items() if not folder.is_dir()
    ]
    if missing:
        raise UsageError("\n".join(missing))


def _not_made(folder: Path, words: Sequence[str]) -> str:
    return f"{folder}: not made yet; make it: {shlex.join(['krill-tokenizer', *words])}"


def _words(option: str, call: Call) -> list[str]:
    """What was typed, as krill-tokenizer takes it for that option."""
    others = [
        word
        for word in compose.without_inspection(call.overrides)
        if word.partition("=")[0] not in ("tokenizer", "tokenizer.path")
    ]
    return [*others, f"tokenizer={option}"]


def _tell(folders: Any) -> None:
    for folder in folders:
        print(f"tokenizer   {'read' if folder.is_dir() else 'missing'} {folder}")
