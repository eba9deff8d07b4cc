"""krill-inspect model=MODEL text=TEXT, and krill-infer inspect=true: what a model expected at each token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from krill import atomic
from krill.cli import app
from krill.errors import KrillError, UsageError

if TYPE_CHECKING:
    from krill.config.schema import InspectConfig
    from krill.inference.engine import Generation
    from krill.inference.load import LoadedModel
    from krill.inspection.scored_text import ScoredText
    from krill.launch.invocation import Invocation

PAGE_FILE, SCORES_FILE, PICTURE_FILE = "tokens.html", "tokens.json", "attention.png"
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
        from krill.inspection.token_view import print_scores

        print_scores(scored, config.full)


def score_text(config: InspectConfig, path: str, tokenizer_path: str | None) -> ScoredText:
    """Returns the scores of config.text, its logit lens and its attention map if the configuration asks for them.

    Raises UsageError for a text that does not fit, KrillError if memory runs out.
    """
    import torch

    from krill.inference.attention_maps import compute_attention_map
    from krill.inference.load import load_model
    from krill.inference.logit_lens import compute_logit_lens
    from krill.inference.token_scores import encode_document, score_tokens
    from krill.inspection.scored_text import ScoredText
    from krill.inspection.token_display import TokenRenderer
    from krill.models.model_folder import silence_transformers
    from krill.resources import is_out_of_memory
    from krill.training.compute.device import resolve_device
    from krill.training.metrics.evaluate import compute_bits_per_byte

    assert config.text is not None
    silence_transformers()
    device = torch.device(resolve_device(config.device))
    loaded = load_model(path, device, tokenizer_path, config.hardware.precision)
    model = loaded.model
    ids = encode_document(model, loaded.tokenizer, config.text)
    try:
        scores = score_tokens(model, ids)
        lens = compute_logit_lens(model, ids) if config.lens else None
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


class AnswerInspector:
    """Shows what a model expected at each token of its answers, and writes all that were shown."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._texts: list[ScoredText] = []

    def show(self, prompt: str, generation: Generation) -> None:
        """Prints the scores of an answer to standard output: those it was generated with, or else computed now."""
        from krill.inference.token_scores import score_tokens
        from krill.inspection.scored_text import ScoredText
        from krill.inspection.token_display import TokenRenderer
        from krill.inspection.token_view import print_scores

        scores, count = generation.scores, len(generation.new_ids)
        if count and not scores:
            scores = score_tokens(self._loaded.model, generation.prompt_ids + generation.new_ids)[-count:]
        renderer = TokenRenderer(self._loaded.tokenizer)
        scored = ScoredText(str(self._loaded.folder), generation.text, scores, renderer, prompt)
        print()
        print_scores(scored, is_full=True)
        print(flush=True)
        self._texts.append(scored)

    def write(self, folder: Path) -> None:
        """Writes the page and the JSON of the answers that were shown to `folder`, if there are any."""
        if self._texts:
            write_scores(folder, self._texts)


def write_scores(folder: Path, texts: Sequence[ScoredText], picture: Path | None = None) -> None:
    """Writes the page and the JSON of at least one text to `folder`."""
    from krill.inspection.token_page import build_token_page

    atomic.create_folder(folder)
    atomic.write_json(folder / SCORES_FILE, [scored.to_json() for scored in texts])
    atomic.write_text(folder / PAGE_FILE, build_token_page(texts, picture))
    app.log.info("page        %s", folder / PAGE_FILE)


def _choose_picture(config: InspectConfig) -> Path | None:
    """Returns the file of the attention map. Raises UsageError if none is set and format= is not json."""
    if config.attention is None:
        if config.plot is not None:
            raise UsageError(
                f"plot= draws attention= of a text; add attention=LAYER.HEAD, or leave out plot={config.plot}"
            )
        return None
    if config.plot is not None:
        return Path(config.plot)
    if config.output is not None:
        return Path(config.output) / PICTURE_FILE
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
    from krill.config.overrides import is_section_overridden
    from krill.data.inputs import RunInputs

    if not is_section_overridden("tokenizer", invocation.overrides):
        return None
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
    dependent = [key for key, is_set in keys.items() if is_set]
    missing = [
        name
        for name, value in (("text=…", config.text), ("model=RUN", config.trained_model))
        if value is None
    ]
    if dependent and missing:
        raise UsageError(f"{dependent[0]} looks into a trained model; add {' and '.join(missing)}")
