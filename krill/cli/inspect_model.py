"""krill-inspect model=MODEL text=TEXT, and krill-infer inspect=true: what a model expected at each token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill import atomic
from krill.cli import app
from krill.errors import KrillError, UsageError

if TYPE_CHECKING:
    from krill.config.schema import InspectConfig
    from krill.inference.engine import Generation
    from krill.inference.load import LoadedModel
    from krill.inspection.scored_text import ScoredText
    from krill.launch.invocation import Invocation

TOP = 5
"""Number of alternatives that are shown for each token."""
PAGE, SCORES, PICTURE = "tokens.html", "tokens.json", "attention.png"
"""Files in the folder that output= names."""


def print_model_scores(config: InspectConfig, invocation: Invocation) -> None:
    """Prints the scores of config.text by config.trained_model, and writes the files that the configuration names."""
    assert config.text is not None
    assert config.trained_model is not None
    from krill.launch.run_names import MODEL, resolve_model_name

    path = resolve_model_name("model", config.trained_model, MODEL)
    if config.dry_run:
        from krill.inference.load import locate_model

        print(f"model       {locate_model(path)[0]}")
        return
    picture = _choose_picture(config)
    scored = score_text(config, path, _find_tokenizer(config, invocation))
    _write_files(config, scored, picture)
    if config.format == "json":
        print(json.dumps(scored.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        from krill.inspection.render_rows import make_stdout_console
        from krill.inspection.token_view import print_scores

        console = make_stdout_console()
        print_scores(scored, None if config.full else max(8, console.height - 10), console)


def score_text(config: InspectConfig, path: str, tokenizer_path: str | None) -> ScoredText:
    """Returns the scores of config.text, its logit lens and its attention map if the configuration asks for them.

    Raises UsageError for a text that does not fit, KrillError if memory runs out.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from krill.inference.attention_maps import compute_attention_map
    from krill.inference.load import load_model
    from krill.inference.logit_lens import compute_logit_lens
    from krill.inference.token_scores import encode_document, score_tokens
    from krill.inspection.scored_text import ScoredText
    from krill.inspection.token_display import TokenRenderer
    from krill.resources import is_out_of_memory
    from krill.training.compute.device import resolve_device
    from krill.training.metrics.evaluate import compute_bits_per_byte

    assert config.text is not None
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = torch.device(resolve_device(config.device))
    loaded = load_model(path, device, tokenizer_path, config.hardware.precision)
    model = loaded.model
    ids = encode_document(model, loaded.tokenizer, config.text)
    try:
        scores = score_tokens(model, ids, TOP)
        lens = compute_logit_lens(model, ids, TOP) if config.lens else None
        attention = (
            compute_attention_map(model, ids[:-1], *map(int, config.attention.split(".")))
            if config.attention is not None
            else None
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise KrillError("out of memory; use a shorter text, or hardware.precision=bf16") from error
    text_nats = -sum(score.logprob for score in scores[:-1])
    return ScoredText(
        str(loaded.folder), config.text, scores, TokenRenderer(loaded.tokenizer), lens=lens, attention=attention,
        bits_per_byte=compute_bits_per_byte(text_nats, len(config.text.encode())),
    )  # fmt: skip


def score_answer(loaded: LoadedModel, prompt: str, generation: Generation) -> ScoredText:
    """Returns the scores of an answer: those that its generation has, or else computed by one pass of the model."""
    from krill.inference.token_scores import score_tokens
    from krill.inspection.scored_text import ScoredText
    from krill.inspection.token_display import TokenRenderer

    scores, count = generation.scores, len(generation.new_ids)
    if count and not scores:
        scores = score_tokens(loaded.model, generation.prompt_ids + generation.new_ids, TOP)[-count:]
    renderer = TokenRenderer(loaded.tokenizer)
    return ScoredText(str(loaded.folder), generation.text, scores, renderer, prompt)


def print_answer_scores(scored: ScoredText) -> None:
    """Prints the scores of an answer to standard output."""
    from krill.inspection.token_view import print_scores

    print_scores(scored)


def write_scores(folder: Path, texts: Sequence[ScoredText], picture: Path | None = None) -> None:
    """Writes the page and the JSON of texts or answers, which must be at least one, to `folder`."""
    from krill.inspection.token_page import build_token_page

    atomic.create_folder(folder)
    content: Any = [scored.to_json() for scored in texts]
    atomic.write_json(folder / SCORES, content)
    atomic.write_text(folder / PAGE, build_token_page(texts, picture))
    app.log.info("page        %s", folder / PAGE)


def _choose_picture(config: InspectConfig) -> Path | None:
    """Returns where the attention map is drawn. Raises UsageError if there is neither a place nor JSON for it."""
    if config.attention is None:
        return None
    if config.plot is not None:
        return Path(config.plot)
    if config.output is not None:
        return Path(config.output) / PICTURE
    if config.format == "json":
        return None
    raise UsageError(
        f"attention={config.attention} draws a picture; set plot=attention.png, or output= to a folder"
    )


def _write_files(config: InspectConfig, scored: ScoredText, picture: Path | None) -> None:
    if picture is not None and scored.attention is not None:
        from krill.inspection.attention_figure import plot_attention

        plot_attention(scored.attention, scored.renderer, picture)
        app.log.info("plot        %s", picture)
    if config.output is not None:
        write_scores(Path(config.output), [scored], picture)


def _find_tokenizer(config: InspectConfig, invocation: Invocation) -> str | None:
    """Returns the folder of the tokenizer that the command line names; None: that of the model."""
    if not any(override.startswith(("tokenizer=", "tokenizer.")) for override in invocation.overrides):
        return None
    from krill.data.inputs import RunInputs

    folder = RunInputs.open(config).tokenizer_folder
    if not folder.is_dir():
        raise UsageError(f"{folder}: not trained yet; train it with krill-tokenizer, or leave out tokenizer=")
    return str(folder)


def require_text(config: InspectConfig) -> None:
    """Raises UsageError for keys that need a text, or a trained model, without one."""
    keys = {
        "lens=true": config.lens,
        f"attention={config.attention}": config.attention is not None,
        f"trained_model={config.trained_model}": config.trained_model is not None and config.text is None,
    }
    named = [key for key, is_set in keys.items() if is_set]
    missing = [
        name
        for name, value in (("text=…", config.text), ("model=RUN", config.trained_model))
        if value is None
    ]
    if named and missing:
        raise UsageError(f"{named[0]} looks into a trained model; add {' and '.join(missing)}")
