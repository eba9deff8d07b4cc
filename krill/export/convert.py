"""Exports a model to a folder or a file that appears only when it is complete."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from krill import atomic
from krill.config.paths import expand_home, get_outputs_root
from krill.errors import UsageError
from krill.export.gguf_file import convert_tokenizer, write_gguf_file
from krill.export.hf_folder import write_hf_folder
from krill.export.source import ExportSource

VERSION = 1
"""Part of the name of an export; incremented when the files that are written change."""
Format = Literal["hf", "gguf"]


def resolve_output(source: ExportSource, form: Format, dtype: str, output: str | None) -> Path:
    """Returns the path of the result: `output`, or one in outputs/exports that the content of the model determines.

    Raises UsageError, before anything is written, for a model without this format or for an `output` that exists.
    """
    if form == "gguf":
        convert_tokenizer(source)
    if output is None:
        name = f"{source.name}-{dtype}-{source.compute_signature(VERSION, form, dtype)[:8]}"
        return get_outputs_root() / "exports" / (f"{name}.gguf" if form == "gguf" else name)
    path = expand_home(output).absolute()
    if form == "gguf" and path.suffix != ".gguf":
        raise UsageError(
            f"output={output}: format=gguf writes a file, whose name ends with .gguf; set output={output}.gguf"
        )
    if form == "hf" and path.suffix == ".gguf":
        raise UsageError(
            f"output={output}: format=hf writes a folder; set format=gguf, or use another output="
        )
    is_empty_folder = form == "hf" and path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if (path.exists() or path.is_symlink()) and not is_empty_folder:
        raise build_exists_error(output)
    return path


def build_exists_error(output: str) -> UsageError:
    """Returns the error for an `output` that exists; krill does not overwrite it."""
    return UsageError(f"output={output}: it exists; use another path, or remove it")


def write_export(source: ExportSource, form: Format, dtype: str, path: Path) -> bool:
    """Writes the model to `path`; returns False if there is something already."""
    if form == "gguf":
        return atomic.make_file_once(path, partial(write_gguf_file, source, dtype))
    return atomic.make_once(path, partial(write_hf_folder, source, dtype))
