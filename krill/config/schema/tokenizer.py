"""Section `tokenizer`: a tokenizer to train, load or extend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from krill.config.number_limits import MAX_INT
from krill.config.schema.base import Count, FolderName, Section, Size, Unsigned

MIN_VOCAB_SIZE = 300
"""256 bytes, special tokens, and a few merges."""


class TokenizerConfig(Section):
    """A tokenizer to train on the run's own data, to load (`path`), or to extend with more entries
    (`base`)."""

    name: Unsigned[FolderName]
    """Name of the folder: outputs/tokenizers/<name>-<signature>."""
    path: str | None
    """Folder or Hub id of an existing tokenizer; if set, nothing is trained, and of the keys below
    only push_to and private have an effect."""
    base: Unsigned[str | None]
    """Folder or Hub id of an existing byte-level BPE tokenizer to extend with further entries. Its ids,
    pattern, normalizer and bos, eos and pad tokens do not change."""
    vocab_size: Annotated[int, Field(ge=MIN_VOCAB_SIZE, le=MAX_INT)]
    """Total number of entries: 256 bytes, merges and special tokens. Training fails unless it is met
    exactly."""
    multiple_of: Annotated[int, Field(gt=0, le=2**20)]
    """Rounds vocab_size up to a multiple of this number; 64 or 128 suit matrix units. The additional
    entries are learned like the others."""
    min_frequency: Size
    """Minimum number of occurrences for a pair to be merged."""
    max_token_length: Size | None
    """Maximum length of a token in bytes; null: no limit."""
    normalizer: Literal["none", "nfc"]
    """Unicode normalization. NFKC is not offered: it destroys Korean jamo such as ㅋ."""
    pattern: Literal["gpt2", "gpt4", "gpt4o", "qwen2"]
    """Pattern that splits text before merging, by model family; Llama 3 uses gpt4."""
    trainer: Literal["hf", "rustbpe"]
    """Trainer of the merges: Hugging Face tokenizers (hf), or rustbpe (needs the fast extra), which is faster
    and of the same quality, but does not learn the same entries."""
    bos_token: str
    """Token that begins every document: the model's first context, never a target."""
    eos_token: str
    """Token that ends every document; it is learned as a target."""
    pad_token: str
    """Token that fills short rows; never a target."""
    special_tokens: list[str]
    """Additional special tokens, reserved for later use (chat, tools)."""
    chat_template: Literal["chatml", "llama3"] | None
    """Chat template saved with the tokenizer; its tokens must be in special_tokens. null: none, or that of
    base."""
    sample_bytes: Count
    """Maximum number of bytes of training text that the tokenizer is trained on, sampled evenly from all of
    it."""
    push_to: Unsigned[str | None]
    """Repository of the Hugging Face Hub that krill-tokenizer uploads the tokenizer to; null: no upload."""
    private: Unsigned[bool]
    """Create the repository of push_to as private."""

    @model_validator(mode="after")
    def _check_pad_token(self) -> TokenizerConfig:
        if self.pad_token in (self.bos_token, self.eos_token):
            raise ValueError(
                "pad_token must differ from bos_token and eos_token: a padded eos is never learned"
            )
        return self
