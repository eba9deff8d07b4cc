"""The training tokens that a plan counts with: those of a store, else estimated from the size of the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from krill.config.paths import get_outputs_root, relative_path
from krill.config.schema import FilesDataConfig, PythonDocsDataConfig, TokenizerConfig, TrainConfig
from krill.errors import KrillError
from krill.plan.calibration import interpolate_log

if TYPE_CHECKING:
    import numpy as np

    from krill.data.inputs import RunInputs

PYTHON_DOCS_BYTES = 2_774_000
"""Bytes of the built-in text (Python 3.11), which takes seconds to read."""

ASSUMED_BYTES_PER_TOKEN = {4096: 3.7, 32_768: 4.3, 131_072: 4.6}
"""Entries of a vocabulary and bytes per token of English text: the first measured on the built-in text, the others
assumed. Korean text has about as many, as a syllable is three bytes."""

MAX_PACKED_DOCUMENTS = 50_000
"""Documents that show how much of the rows is padding."""


@dataclass(frozen=True)
class TrainingText:
    """The size of the training split."""

    tokens: int
    attended: float | None
    """The mean number of tokens that a token attends to, in rows of sequence_len; None: unknown."""
    source: str
    """Where the number is from, for the report."""
    is_exact: bool
    best_fit_padding: float | None = None
    """The share of the positions that are padding in rows that are packed best-fit; None: unknown."""


def find_vocab_size(config: TokenizerConfig) -> int:
    """Returns the entries of the tokenizer that `config` trains, or of the existing one that it names."""
    from krill.tokenizer.recipe import compute_vocab_size

    return compute_vocab_size(config) if config.path is None else _read_existing_vocab_size(config.path)


@lru_cache(maxsize=64)
def _read_existing_vocab_size(path: str) -> int:
    """Reads a tokenizer once for all points of a sweep."""
    from krill.tokenizer.artifact import load_tokenizer, resolve_tokenizer_folder

    return load_tokenizer(resolve_tokenizer_folder(path)).vocab_size


def find_training_text(
    config: TrainConfig, vocab_size: int, open_inputs: Callable[[], RunInputs]
) -> TrainingText | None:
    """Returns the tokens of `config`; None: they are not prepared and their size is unknown.

    `open_inputs`: returns the inputs; called only if a store of this name exists, whose signature is then computed.
    """
    if any((get_outputs_root() / "data").glob(f"{config.data.name}-*")):
        try:
            store = open_inputs().store_folder
        except KrillError:  # an unreachable dataset; the run itself reports it
            return None
        if store.is_dir():
            return read_store(store, config.sequence_len)
    size = _find_text_bytes(config, open_inputs)
    if size is None:
        return None
    share = interpolate_log(ASSUMED_BYTES_PER_TOKEN, vocab_size)
    tokens = round(size * (1 - config.data.validation_fraction) / share)
    source = f"about, from {size / 1e6:,.1f} MB of text and {share:.1f} bytes per token (assumed)"
    return TrainingText(tokens, None, source, is_exact=False)


@lru_cache(maxsize=64)
def read_store(store: Path, sequence_len: int) -> TrainingText | None:
    """Returns the tokens of a store, read once for all points of a sweep; None if it has none to train on."""
    from krill.data.store import Store

    train = Store.open(store).get_split("train")
    if not train.tokens:
        return None
    attended = compute_mean_attended_tokens(train.ends, sequence_len)
    padding = estimate_best_fit_padding(train.ends, sequence_len)
    return TrainingText(train.tokens, attended, f"in {relative_path(store)}", True, padding)


def estimate_best_fit_padding(ends: np.ndarray, sequence_len: int) -> float:
    """Returns the share of padding in rows of `sequence_len` tokens that are packed best-fit.

    `ends`: the end of each document in the token stream, uint64 (documents,). Of many documents, the first
    MAX_PACKED_DOCUMENTS are packed.
    """
    from krill.data.packing import count_best_fit_rows

    ends = ends[:MAX_PACKED_DOCUMENTS]
    rows = count_best_fit_rows(ends, sequence_len)
    return 1 - float(ends[-1]) / (rows * sequence_len)


def compute_mean_attended_tokens(ends: np.ndarray, sequence_len: int) -> float:
    """Returns the mean number of tokens that a token attends to, including itself.

    `ends`: the end of each document in the token stream, uint64 (documents,); documents are cut into rows of
    `sequence_len` tokens.
    """
    import numpy as np

    full_rows, rest = np.divmod(np.diff(ends.astype(np.float64), prepend=0.0), sequence_len)
    pairs = full_rows * (sequence_len * (sequence_len + 1) / 2) + rest * (rest + 1) / 2
    return float(pairs.sum() / ends[-1])


def _find_text_bytes(config: TrainConfig, open_inputs: Callable[[], RunInputs]) -> int | None:
    """Returns the bytes of the text if they are known without reading it."""
    if isinstance(config.data, PythonDocsDataConfig):
        return PYTHON_DOCS_BYTES
    if isinstance(config.data, FilesDataConfig):
        return _sum_part_bytes(open_inputs())
    return None


@lru_cache(maxsize=64)
def _sum_part_bytes(inputs: RunInputs) -> int:
    """Adds up the sizes once for all points of a sweep with these inputs."""
    return sum(part.size for part in inputs.source.list_parts())
