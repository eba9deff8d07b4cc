"""Section `data`: where text comes from and what is done to it before it is stored as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from krill.config.schema.base import (
    Count,
    CountOrZero,
    FolderName,
    Fraction,
    Processes,
    Section,
    Size,
    Unsigned,
    to_list,
)
from krill.config.schema.filters import Filter

Weight = Annotated[float, Field(gt=0.0, le=1000.0)]
"""How often documents occur in an epoch. Higher values are a mistake, such as a size or a share in a wrong unit."""
DEFAULT_MAX_RECORD_BYTES = 2**27
"""Default of data.max_record_bytes, also for configurations and signatures from before the key existed."""


class MinHashConfig(Section):
    """Removal of near duplicates: MinHash LSH finds candidates, whose sets of shingles are then compared."""

    threshold: Annotated[float, Field(ge=0.5, le=1.0)] | None
    """Drops a document whose shingles have at least this Jaccard similarity with those of an earlier, kept
    document. 0.8 finds copies with 1 % of their words changed, 0.7 most copies with 5 % changed. null: near
    duplicates are kept."""
    unit: Literal["word", "character"]
    """Unit of a shingle: words, or characters without white space, so that spacing does not count."""
    size: Annotated[int, Field(ge=1, le=64)]
    """Number of consecutive units in a shingle: 10 suits characters, 3 to 5 suits words."""
    bands: Annotated[int, Field(gt=0, le=4096)]
    """Number of bands of the signature; documents of similarity J are compared with probability 1 − (1 −
    J^rows)^bands."""
    rows: Annotated[int, Field(gt=0, le=4096)]
    """Number of MinHash values in a band."""


class _BaseDataConfig(Section):
    name: Unsigned[FolderName]
    """Name of the folder of the prepared tokens: outputs/data/<name>-<signature>."""
    max_record_bytes: Count = DEFAULT_MAX_RECORD_BYTES
    """Maximum size of a record (a line, an element, a value of a column, a .txt file), which is held in memory.
    Longer records are skipped and counted."""
    normalize: Literal["none", "nfc"]
    """Unicode normalization of the text. NFKC is not offered: it destroys Korean jamo such as ㅋ."""
    ftfy: bool
    """Repair mojibake with ftfy (needs the filter extra)."""
    pii: Literal["keep", "mask"]
    """mask: replace e-mail and IP addresses and the numbers of phones, cards and Korean residents with
    placeholders."""
    min_chars: CountOrZero
    """Drops documents with fewer characters after cleaning; they are counted."""
    filters: list[Filter]
    """Rules that a document must pass, in this order; filters=web is a predefined list."""
    minhash: MinHashConfig
    """Removal of near duplicates."""
    min_tokens: CountOrZero
    """Drops documents with fewer tokens, not counting boundary tokens; they are counted."""
    max_tokens: Count | None
    """Drops documents with more tokens; they are counted. null: no limit."""
    validation_fraction: Fraction
    """Fraction of documents, chosen by a hash of their text, that is held out for validation."""
    engine: Unsigned[Literal["auto", "hf", "fast"]]
    """Encoder: Hugging Face tokenizers (hf) or gigatoken (fast, needs the fast extra). auto: fast if it is
    installed and gives the same ids on the run's own text. The tokens are the same."""
    workers: Unsigned[Processes | None]
    """Number of worker processes that read and encode; null: chosen by the size of the input, at most one per
    core."""
    num_tasks: Unsigned[Size]
    """Number of tasks that share the preparation, one job per data.task; without data.task the tasks are
    merged."""
    task: Unsigned[CountOrZero | None]
    """Index of the task that this job prepares, from 0; null: all tasks, or the merge."""

    @model_validator(mode="after")
    def _check_task_index(self) -> _BaseDataConfig:
        if self.task is not None and self.task >= self.num_tasks:
            raise ValueError(
                f"task={self.task} of num_tasks={self.num_tasks}: use a task from 0 to {self.num_tasks - 1}"
            )
        return self


class PythonDocsDataConfig(_BaseDataConfig):
    """The documentation inside CPython itself, text that every machine with Python has."""

    source: Literal["python_docs"]
    """Kind of source."""


class FileEntryConfig(Section):
    """An entry of data.paths with its own settings."""

    path: str
    """A file, folder or glob."""
    text_column: str | None = None
    """Column (or JSON key) that contains the text; null: data.text_column."""
    weight: Weight = 1.0
    """How often its training documents occur in an epoch: 2 twice, 0.5 every second document (chosen by a
    hash)."""
    limit: Count | None = None
    """Maximum number of documents that are read; null: all."""


def _get_entry_tag(value: Any) -> str:
    return "<entry>" if isinstance(value, (Mapping, FileEntryConfig)) else "<path>"


_PathOrEntry = Annotated[
    Annotated[str, Tag("<path>")] | Annotated[FileEntryConfig, Tag("<entry>")], Discriminator(_get_entry_tag)
]
"""A path, or a path with settings; the tag chooses which errors are reported."""


class FilesDataConfig(_BaseDataConfig):
    """Local files: .parquet, and .jsonl, .json, .csv, .tsv, .txt, each also .gz or .zst."""

    source: Literal["files"]
    """Kind of source."""
    paths: Annotated[list[_PathOrEntry], BeforeValidator(to_list), Field(min_length=1)]
    """Files, folders or globs, read in this order. An entry can have settings: {path: …, weight: 2, limit:
    1000}."""
    text_column: str
    """Column (or JSON key) that contains the text."""


class HubDatasetConfig(Section):
    """A dataset of the Hugging Face Hub."""

    path: str
    """Dataset name on the Hub, or a folder that `datasets.load_dataset` reads."""
    config: str | None = None
    """Configuration (subset) of the dataset; null: its default."""
    split: str = "train"
    """Split; slices such as train[:10000] are allowed."""
    text_column: str = "text"
    """Column that contains the text; other columns are dropped."""
    streaming: bool = False
    """Stream from the Hub instead of downloading to the cache first."""
    weight: Weight = 1.0
    """How often its training documents occur in an epoch: 2 twice, 0.5 every second document (chosen by a
    hash)."""
    limit: Count | None = None
    """Maximum number of documents that are read; null: all."""


class HubDataConfig(_BaseDataConfig):
    """Datasets of the Hugging Face Hub, one after the other."""

    source: Literal["hub"]
    """Kind of source."""
    datasets: Annotated[list[HubDatasetConfig], Field(min_length=1)]
    """The datasets, concatenated in this order."""


class CustomDataConfig(_BaseDataConfig):
    """A custom source: a function that yields texts."""

    source: Literal["custom"]
    """Kind of source."""
    read: str
    """file.py:function or package.module:function; it is called with the options and yields str."""
    options: dict[str, Any]
    """Keyword arguments of the function. Change one of them, such as a version, when the text changes."""


DataConfig = Annotated[
    PythonDocsDataConfig | FilesDataConfig | HubDataConfig | CustomDataConfig, Field(discriminator="source")
]
