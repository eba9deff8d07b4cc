"""krill-export: write a trained model in the format of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from krill.cli import app
from krill.cli.model_arguments import resolve_model_arguments
from krill.config.paths import relative_path
from krill.launch.invocation import Invocation
from krill.resources import paused_garbage_collection

if TYPE_CHECKING:
    from krill.config.schema import ExportConfig


def main() -> int:
    """Runs krill-export; returns the exit code."""
    return app.main("export", run_task, positional_key="model", prepare_arguments=resolve_model_arguments)


def run_task(invocation: Invocation) -> None:
    """Exports with one configuration; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import ExportConfig

    app.run_command(invocation, ExportConfig, _run_export)


def _run_export(config: ExportConfig, invocation: Invocation) -> None:
    if config.dry_run:
        _export(config, None)
    else:
        invocation.run_stage(
            config, None, lambda folder: _export(config, folder if invocation.is_sweep_point else None)
        )


def _export(config: ExportConfig, folder: Path | None) -> Path:
    """Exports the model and returns the path of the result, which is in `folder` for a point of a sweep."""
    with paused_garbage_collection():
        from krill.export.convert import build_exists_error, resolve_output, write_export
        from krill.export.source import ExportSource
        from krill.models.model_folder import silence_transformers

    silence_transformers()
    source = ExportSource.open(config.model.path, config.tokenizer.path)
    path = resolve_output(source, config.format, config.dtype, None if folder else config.output)
    if folder is not None:
        path = folder / ("model.gguf" if config.format == "gguf" else "model")
    lines = [
        f"weights     {source.folder}",
        f"tokenizer   {source.tokenizer.folder}",
        f"output      {relative_path(path)}, {config.dtype}",
    ]
    if config.dry_run:
        print("\n".join(lines))
        return path
    app.log.info("\n".join(lines))
    if not write_export(source, config.format, config.dtype, path):
        if config.output is not None and folder is None:
            raise build_exists_error(config.output)  # another process was faster
        app.log.info("already exported, skipping: %s", relative_path(path))
    return path
