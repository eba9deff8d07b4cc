"""The inputs of a run: its source, opened and fingerprinted once, and the signatures and folders that follow."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from krill.config.paths import get_outputs_root
from krill.config.schema import DataConfig, TokenizerConfig, TrainConfig
from krill.config.signature import compute_signature
from krill.data.prepare import build_text_changed_error, compute_store_signature
from krill.sources.registry import open_source
from krill.text.documents import collect_text_rules
from krill.tokenizer.artifact import hash_settings, resolve_tokenizer_folder
from krill.tokenizer.train import compute_recipe_signature


class RunInputs:
    """The text of section `data` and the identity of the tokenizer and the tokens that are made of it.

    A command opens its inputs once and passes them to all that needs them. Signatures are known before anything is
    made; each is computed at most once, so they describe the text as it was first read. `raise_if_changed` compares
    it with the text as it is after the work.
    """

    def __init__(
        self, data: DataConfig, tokenizer: TokenizerConfig, outputs: Path, is_read_only: bool = False
    ):
        """Opens the source; reads no more than both ends of files.

        `outputs`: the folder of tokenizers/ and data/. `is_read_only`: nothing is written, no cached hash either.
        Raises UsageError that names every file that is missing, empty or of an unsupported kind.
        """
        self.data, self.tokenizer, self.outputs = data, tokenizer, outputs
        self.source = open_source(data, is_read_only)

    @classmethod
    def open(cls, config: TrainConfig) -> RunInputs:
        """Returns the inputs of `config`, below outputs/ of the working directory."""
        return cls(config.data, config.tokenizer, get_outputs_root(), config.dry_run)

    @cached_property
    def tokenizer_signature(self) -> str:
        """Signature of the tokenizer: its recipe and the text, or the content of an existing one.

        Rules that drop documents after tokenization (min_tokens, near duplicates) are not part of it, nor is the
        order of the sources, as the sample does not depend on it.
        """
        recipe = compute_recipe_signature(self.tokenizer)
        if self.tokenizer.path is not None:
            return recipe
        text = self.source.unordered_fingerprint
        return compute_signature("tokenizer", recipe, collect_text_rules(self.data), text)

    @cached_property
    def tokenizer_settings(self) -> dict[str, str]:
        """Hashes of the files with the chat template and other settings of an existing tokenizer.

        They do not change the tokens, but models contain them. Those of a trained tokenizer are in its recipe.
        """
        return hash_settings(self.tokenizer_folder) if self.tokenizer.path is not None else {}

    @cached_property
    def store_signature(self) -> str:
        """Signature of the tokens: the rules, the text, the tokenizer."""
        return compute_store_signature(self.data, self.tokenizer_signature, self.source.fingerprint)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The folder in which the tokenizer is or will be; a Hub id is downloaded to the Hub's cache."""
        if self.tokenizer.path is not None:
            return resolve_tokenizer_folder(self.tokenizer.path)
        name = f"{self.tokenizer.name}-{self.tokenizer_signature[:8]}"
        return self.outputs / "tokenizers" / name

    @cached_property
    def store_folder(self) -> Path:
        """The folder in which the tokens are or will be."""
        return self.outputs / "data" / f"{self.data.name}-{self.store_signature[:8]}"

    def raise_if_changed(self) -> None:
        """Raises UsageError if the text, its reader or a base tokenizer has changed since its signature was made."""
        if RunInputs(self.data, self.tokenizer, self.outputs).tokenizer_signature != self.tokenizer_signature:
            raise build_text_changed_error(self.data)
