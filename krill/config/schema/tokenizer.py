"""Section `tokenizer`: a tokenizer to train, to load or to extend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from krill.config.schema.base import FolderName, Section, Unsigned


class TokenizerConfig(Section):
    """A tokenizer to train on the run's own data, a ready one (`path`), or a ready one with more entries (`base`)."""

    name: Unsigned[FolderName]
    """Names the folder: outputs/tokenizers/<name>-<signature>."""
    path: str | None
    """Folder or Hub id of a ready tokenizer; then nothing is trained and the keys below are not used."""
    base: Unsigned[str | None]
    """Folder or Hub id of a ready byte-level BPE tokenizer that gets more entries. Its ids, pattern, normalizer and
    bos, eos and pad stay."""
    vocab_size: Annotated[int, Field(ge=300)]
    """Entries in all: 256 bytes, merges and special tokens. Met exactly, or the training fails."""
    multiple_of: PositiveInt
    """vocab_size is rounded up to a multiple of it: 64 or 128 suit matrix units. All of them are real entries."""
    min_frequency: PositiveInt
    """A pair seen less often is not merged."""
    max_token_length: PositiveInt | None
    """Longest token in bytes; null for no limit."""
    normalizer: Literal["none", "nfc"]
    """Unicode normalization. Never NFKC: it destroys Korean jamo such as ㅋ."""
    pattern: Literal["gpt2", "gpt4", "gpt4o", "qwen2"]
    """How text is cut before merging: the split pattern of that family; Llama 3's is gpt4."""
    trainer: Literal["hf", "rustbpe"]
    """What learns the merges: Hugging Face tokenizers, or rustbpe, an extra: faster, of the same quality, not to the
    same entries."""
    bos_token: str
    """Begins every document; the model's first context, never a target."""
    eos_token: str
    """Ends every document; learned as a target."""
    pad_token: str
    """Fills short rows; never a target."""
    special_tokens: list[str]
    """Further special tokens, reserved for later use (chat, tools)."""
    chat_template: Literal["chatml", "llama3"] | None
    """Saved beside the tokenizer; its tokens must be among special_tokens. null: none, with base the base's own."""
    sample_bytes: PositiveInt
    """At most so many bytes of the training text train the tokenizer, drawn evenly from all of it."""
    push_to: Unsigned[str | None]
    """krill-tokenizer uploads the tokenizer to this repository of the Hugging Face Hub; null: nowhere."""
    private: Unsigned[bool]
    """Whether a repository that push_to makes is private."""

    @model_validator(mode="after")
    def _check_pad_token(self) -> TokenizerConfig:
        if self.pad_token in (self.bos_token, self.eos_token):
            raise ValueError(
                "pad_token must differ from bos_token and eos_token: a padded eos is never learned"
            )
        return self
