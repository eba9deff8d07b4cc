"""The configuration of krill-inspect."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from krill.config.schema.base import to_list
from krill.config.schema.run import TrainConfig


def _validate_png_path(value: str) -> str:
    if not value.lower().endswith(".png"):
        raise ValueError(f"{value!r} is no name of a picture; write plot={value}.png")
    return value


class InspectConfig(TrainConfig):
    """What is in a token store: that of the data and the tokenizer that are chosen, or of a folder. Or how tokenizers
    do: several side by side on held-out text, or one on a text."""

    store: str | None
    """Folder of a token store; data=FOLDER and the first bare word are short for it. null: the tokens of the data
    and the tokenizer that are chosen."""
    tokenizers: Annotated[list[str], BeforeValidator(to_list)]
    """These are judged side by side on held-out text of the data, instead of a store: options of tokenizer=, folders,
    Hub ids."""
    eval_bytes: PositiveInt
    """At most so many bytes of held-out text judge them, drawn evenly from all of it."""
    text: str | None
    """This text, taken literally, is shown by the tokens of tokenizer=, instead of a store; null: none."""
    rows: NonNegativeInt
    """So many training rows are shown, chosen by seed; 0: none."""
    row: NonNegativeInt | None
    """The one training row that is shown, counted from 0; null: rows says how many."""
    full: bool
    """Show rows whole; false: what fits a screen."""
    ids: bool
    """Show the ids behind what they spell."""
    sequence_lens: list[Annotated[int, Field(ge=8)]]
    """Further row lengths; how documents fill them is shown beside sequence_len."""
    top: NonNegativeInt
    """So many of the most frequent tokens are listed."""
    vocabulary_tokens: PositiveInt | None
    """At most so many training tokens are counted for the use of the vocabulary, spread evenly; null: all."""
    format: Literal["text", "json"]
    """text: to read; json: every figure and no rows, for scripts."""
    plot: Annotated[str, AfterValidator(_validate_png_path)] | None
    """PNG file for the lengths of documents and the shares of sources, with tokenizers for their figures; null: none
    is drawn."""
    verify: bool
    """Hash every file and compare it with the manifest."""
