"""The configuration of krill-inspect."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from krill.config.number_limits import MAX_INT
from krill.config.schema.base import Count, CountOrZero, OutputPath, to_list
from krill.config.schema.run import TrainConfig


def _validate_png_path(value: str) -> str:
    if not value.lower().endswith(".png"):
        raise ValueError(f"{value!r} is not a PNG file; set plot={value}.png")
    return value


def _validate_attention_head(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", value):
        raise ValueError("not LAYER.HEAD, two numbers from 0; use attention=0.0")
    return value


class InspectConfig(TrainConfig):
    """Statistics of a token store: the store of the chosen data and tokenizer, or a folder. Or an evaluation
    of tokenizers: several side by side on held-out text, or one on a given text. Or the probabilities of a given
    text by a trained model."""

    store: str | None
    """Folder of a token store; data=FOLDER and the first argument without = are short for it. null: the store
    of the chosen data and tokenizer."""
    tokenizers: Annotated[list[str], BeforeValidator(to_list)]
    """Tokenizers to evaluate side by side on held-out text of the data, instead of a store: options of
    tokenizer=, folders, Hub ids."""
    eval_bytes: Count
    """Maximum number of bytes of held-out text that they are evaluated on, sampled evenly from all of it."""
    text: str | None
    """Text, taken literally, to show as tokens of tokenizer=, or with its probabilities by trained_model, instead
    of a store; null: none."""
    trained_model: str | None
    """Model that scores text= token by token: a run (its folder, its name, a glob, last, SWEEP/best), the
    folder of a model, or a Hub id; beside text=, model=X is short for it. null: none, only the tokens."""
    lens: bool
    """Show what trained_model would predict after each of its layers (logit lens)."""
    attention: Annotated[str, AfterValidator(_validate_attention_head)] | None
    """LAYER.HEAD, both from 0: draw where that head of trained_model attends to, at plot= or in output=; null: no
    picture."""
    rows: CountOrZero
    """Number of training rows to show, chosen by seed; 0: none."""
    row: CountOrZero | None
    """Index of a single training row to show, from 0; null: as many rows as rows sets."""
    full: bool
    """Show entire rows; false: the part that fits a screen."""
    ids: bool
    """Show the id of each token after its text."""
    sequence_lens: list[Annotated[int, Field(ge=8, le=MAX_INT)]]
    """Additional row lengths, in tokens, to show packing statistics for beside sequence_len."""
    top: CountOrZero
    """Number of most frequent tokens to list."""
    vocabulary_tokens: Count | None
    """Maximum number of training tokens to count for vocabulary usage, spread evenly; null: all."""
    format: Literal["text", "json"]
    """text: a report for reading. json: all statistics without rows, or all scores of text=, for scripts."""
    plot: Annotated[OutputPath, AfterValidator(_validate_png_path)] | None
    """PNG file to plot to: document lengths and shares of sources, the statistics of tokenizers, or attention=;
    null: no plot."""
    verify: bool
    """Verify the hash of every file against the manifest."""
