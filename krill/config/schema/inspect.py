"""The configuration of krill-inspect."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from krill.config.schema.base import MAX_INT, Count, CountOrZero, to_list
from krill.config.schema.run import TrainConfig


def _validate_png_path(value: str) -> str:
    if not value.lower().endswith(".png"):
        raise ValueError(f"{value!r} is not a PNG file; set plot={value}.png")
    return value


class InspectConfig(TrainConfig):
    """Statistics of a token store: the store of the chosen data and tokenizer, or a folder. Or an evaluation
    of tokenizers: several side by side on held-out text, or one on a given text."""

    store: str | None
    """Folder of a token store; data=FOLDER and the first argument without = are short for it. null: the store
    of the chosen data and tokenizer."""
    tokenizers: Annotated[list[str], BeforeValidator(to_list)]
    """Tokenizers to evaluate side by side on held-out text of the data, instead of a store: options of
    tokenizer=, folders, Hub ids."""
    eval_bytes: Count
    """Maximum number of bytes of held-out text that they are evaluated on, sampled evenly from all of it."""
    text: str | None
    """Text, taken literally, to show as tokens of tokenizer=, instead of a store; null: none."""
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
    """text: a report for reading. json: all statistics without rows, for scripts."""
    plot: Annotated[str, AfterValidator(_validate_png_path)] | None
    """PNG file to plot to: document lengths and shares of sources, or the statistics of tokenizers; null: no
    plot."""
    verify: bool
    """Verify the hash of every file against the manifest."""
