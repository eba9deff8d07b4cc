"""krill-serve: serve a trained model over HTTP."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from krill import errors
from krill.cli import app
from krill.cli.model_arguments import resolve_model_arguments
from krill.config.paths import expand_home
from krill.errors import SignalInterrupt, UsageError
from krill.extras import format_install_command
from krill.launch.invocation import Invocation
from krill.resources import paused_garbage_collection

if TYPE_CHECKING:
    from krill.cli.argv import ParsedArguments
    from krill.config.schema import ServeConfig

API_KEY_VARIABLE = "KRILL_API_KEY"
STOP_CODES = {signal.SIGINT: errors.INTERRUPTED, signal.SIGTERM: errors.TERMINATED}


def main() -> int:
    """Runs krill-serve; returns the exit code."""
    return app.main("serve", run_task, positional_key="model", prepare_arguments=_prepare_arguments)


def run_task(invocation: Invocation) -> None:
    """Serves with one configuration; Hydra calls it once."""
    from krill.config.schema import ServeConfig

    if invocation.is_for_slurm:
        raise UsageError(
            "krill-serve serves on this machine, so hardware=slurm_… has no effect; start it inside a job: "
            "srun --pty krill-serve MODEL"
        )
    app.run_command(invocation, ServeConfig, _run_server)


def _prepare_arguments(parsed: ParsedArguments, folders: Sequence[Path]) -> None:
    if parsed.is_multirun:
        raise UsageError(
            "-m is for commands that end: leave it out. For several models, start krill-serve for each, with "
            "another serve.port="
        )
    resolve_model_arguments(parsed, folders)


def _run_server(config: ServeConfig, invocation: Invocation) -> None:
    api_key = _get_api_key(config)
    from krill.inference.load import locate_model

    if config.dry_run:
        print(f"model       {locate_model(config.model.path)[0]}")
        print(f"address     {config.serve.host}:{config.serve.port}{', with an API key' if api_key else ''}")
        return
    try:
        from krill.serving.server import format_url, listen, serve
    except ModuleNotFoundError as error:
        raise UsageError(f"krill-serve needs {error.name}: {format_install_command('serve')}") from error
    listener = listen(config.serve.host, config.serve.port)  # before the model is loaded, which takes long
    with paused_garbage_collection():
        import torch

        from krill.inference.engine import GenerationEngine
        from krill.inference.load import load_model
        from krill.models.model_folder import silence_transformers
        from krill.serving.app import build_app
        from krill.serving.calls import ServedModel
        from krill.serving.guard import Guard
        from krill.serving.worker import GenerationWorker
        from krill.training.compute.device import resolve_device

    silence_transformers()
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    device = torch.device(resolve_device(config.device))
    loaded = load_model(config.model.path, device, config.tokenizer.path, config.hardware.precision)
    served = ServedModel(loaded, _get_model_name(config.model.path), config.serve.limits)
    worker = GenerationWorker(
        lambda: GenerationEngine(loaded.model, loaded.tokenizer, config.serve.max_batch_size),
        config.serve.max_queue,
    )
    url = format_url(listener)
    app.log.info(
        "serving     %s as %s on %s%s; Ctrl-C stops",
        loaded.folder,
        served.name,
        device,
        "" if served.template else ", no chat template",
    )
    print(url, flush=True)
    received = serve(
        build_app(served, worker, Guard(api_key, config.serve.host)), worker, listener, STOP_CODES
    )
    raise SignalInterrupt(f"stopped by {received.name}", STOP_CODES[received], received)


def _get_api_key(config: ServeConfig) -> str | None:
    """Returns the key of the configuration or of the environment. Raises UsageError if one is needed and missing."""
    from krill.config.schema.serve import is_loopback, validate_api_key

    key = config.serve.api_key
    if key is None and API_KEY_VARIABLE in os.environ:
        try:
            key = validate_api_key(os.environ[API_KEY_VARIABLE])
        except ValueError as error:
            raise UsageError(f"{API_KEY_VARIABLE} {error}") from error
    if key is None and not is_loopback(config.serve.host):
        raise UsageError(
            f"serve.host={config.serve.host} is reached from other machines, so the server needs a key: set "
            f"{API_KEY_VARIABLE} (or serve.api_key=…), or use serve.host=127.0.0.1"
        )
    return key


def _get_model_name(path: str) -> str:
    """Returns the name under which clients ask for a model: NAME/RUN for a run, otherwise its folder or Hub id."""
    from krill.runs.record import read_status

    folder = expand_home(path)
    if not folder.exists():
        return path
    folder = folder.resolve()
    if folder.name == "model" and read_status(folder.parent):
        folder = folder.parent
    return f"{folder.parent.name}/{folder.name}" if read_status(folder) else folder.name
