"""Exports a model to a folder or a file that appears only when it is complete."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Literal

from krill import atomic
from krill.config.paths import get_outputs_root, relative_path
from krill.errors import UsageError
from krill.export.gguf_file import convert_tokenizer, write_gguf_file
from krill.export.hf_folder import write_hf_folder
from krill.export.source import ExportSource

log = logging.getLogger("krill")

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
    path = Path(output).expanduser().absolute()
    if (form == "gguf") != (path.suffix == ".gguf"):
        hint = f"set output={output}.gguf" if form == "gguf" else "set format=gguf, or use another output="
        what = "a file, whose name ends with .gguf" if form == "gguf" else "a folder"
        raise UsageError(f"output={output}: format={form} writes {what}; {hint}")
    if (
        path.is_file()
        or path.is_symlink()
        or atomic.is_nonempty_folder(path)
        or (form == "gguf" and path.exists())
    ):
        raise UsageError(f"output={output}: it exists; use another path, or remove it")
    return path


def write_export(source: ExportSource, form: Format, dtype: str, path: Path) -> None:
    """Writes the model to `path`, unless it is there already: that has the same content, by its name."""
    if form == "gguf":
        is_new = atomic.make_file_once(path, partial(write_gguf_file, source, dtype))
    else:
        is_new = atomic.make_once(path, partial(write_hf_folder, source, dtype))
    if not is_new:
        log.info("already exported, skipping: %s", relative_path(path))
