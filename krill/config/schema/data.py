"""Section `data`: where text comes from and what is done to it before it is stored as tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from krill.config.schema.base import FolderName, Fraction, Section, Unsigned, to_list
from krill.config.schema.filters import Filter


class MinHashConfig(Section):
    """Near duplicates: MinHash LSH finds candidates, their shingles are compared."""

    threshold: Annotated[float, Field(ge=0.5, le=1.0)] | None
    """A document is dropped if its shingles are that similar (Jaccard) to those of an earlier, kept one: 0.8 finds
    copies with 1 % of their words changed, 0.7 most with 5 %. null: near duplicates are not looked for."""
    unit: Literal["word", "character"]
    """What a shingle is made of: words, or characters without white space, so that spacing does not count."""
    size: Annotated[int, Field(ge=1, le=64)]
    """Consecutive units in a shingle: for characters 10, for words 3 to 5."""
    bands: PositiveInt
    """Bands of the signature: documents of similarity J are compared with a chance of 1 − (1 − J^rows)^bands."""
    rows: PositiveInt
    """MinHash values in a band."""


class _BaseDataConfig(Section):
    name: Unsigned[FolderName]
    """Names the folder of the prepared tokens: outputs/data/<name>-<signature>."""
    normalize: Literal["none", "nfc"]
    """Unicode normalization of the text itself. Never NFKC: it destroys Korean jamo such as ㅋ."""
    ftfy: bool
    """Repair mojibake with ftfy (the filter extra)."""
    pii: Literal["keep", "mask"]
    """mask: e-mail and IP addresses, phone numbers and Korean resident numbers become placeholders."""
    min_chars: NonNegativeInt
    """Documents with fewer characters after cleaning are dropped and counted."""
    filters: list[Filter]
    """Rules that a document must pass, in this order; filters=web is a ready list."""
    minhash: MinHashConfig
    """Near duplicates."""
    min_tokens: NonNegativeInt
    """Documents with fewer tokens (boundary tokens not counted) are dropped and counted."""
    max_tokens: PositiveInt | None
    """Documents with more tokens are dropped and counted; null: no limit."""
    validation_fraction: Fraction
    """Share of documents, chosen by a hash of their text, that is held out for validation."""
    engine: Unsigned[Literal["auto", "hf", "fast"]]
    """What encodes: Hugging Face tokenizers, or gigatoken (the fast extra). auto: fast where it is installed
    and gives the same ids on the run's own text. The tokens are the same."""
    workers: Unsigned[PositiveInt | None]
    """Processes that prepare; null: as many as the input is worth, at most one per core."""
    num_tasks: Unsigned[PositiveInt]
    """Number of tasks that share the preparation, one job per data.task; without data.task the tasks are merged."""
    task: Unsigned[NonNegativeInt | None]
    """Index of the task that this job prepares, from 0; null: all tasks, or the merge."""

    @model_validator(mode="after")
    def _check_task_index(self) -> _BaseDataConfig:
        if self.task is not None and self.task >= self.num_tasks:
            raise ValueError(
                f"task={self.task} of num_tasks={self.num_tasks}: tasks count from 0 to {self.num_tasks - 1}"
            )
        return self


class PythonDocsDataConfig(_BaseDataConfig):
    """The documentation inside CPython itself: the text that every machine with Python has."""

    source: Literal["python_docs"]
    """Where the text comes from."""


class FileEntryConfig(Section):
    """One entry of data.paths with settings of its own."""

    path: str
    """A file, folder or glob."""
    text_column: str | None = None
    """The column of this entry; null: data.text_column."""
    weight: PositiveFloat = 1.0
    """How often its training documents come in an epoch: 2 twice, 0.5 every second one (chosen by a hash)."""
    limit: PositiveInt | None = None
    """At most so many documents are read; null: all."""


class FilesDataConfig(_BaseDataConfig):
    """Files of this machine: .jsonl, .json, .parquet, .csv, .tsv, .txt, each also .gz or .zst."""

    source: Literal["files"]
    """Where the text comes from."""
    paths: Annotated[list[str | FileEntryConfig], BeforeValidator(to_list), Field(min_length=1)]
    """Files, folders or globs; read in this order. An entry with settings: {path: …, weight: 2, limit: 1000}."""
    text_column: str
    """The column (or JSON key) that holds the text."""


class HubDatasetConfig(Section):
    """One data set of the Hugging Face Hub."""

    path: str
    """Name on the Hub, or a folder that `datasets.load_dataset` reads."""
    config: str | None = None
    """The data set's configuration (subset); null: its default."""
    split: str = "train"
    """Split, slices such as train[:10000] included."""
    text_column: str = "text"
    """The column that holds the text; the others are dropped."""
    streaming: bool = False
    """Read from the Hub while it is used, instead of fetching it to the cache first."""
    weight: PositiveFloat = 1.0
    """How often its training documents come in an epoch: 2 twice, 0.5 every second one (chosen by a hash)."""
    limit: PositiveInt | None = None
    """At most so many documents are read; null: all."""


class HubDataConfig(_BaseDataConfig):
    """Data sets of the Hugging Face Hub, one after the other."""

    source: Literal["hub"]
    """Where the text comes from."""
    datasets: Annotated[list[HubDatasetConfig], Field(min_length=1)]
    """The data sets, concatenated in this order."""


class CustomDataConfig(_BaseDataConfig):
    """A person's own source: a function that yields texts."""

    source: Literal["custom"]
    """Where the text comes from."""
    read: str
    """file.py:function or package.module:function; called with the options, yields str."""
    options: dict[str, Any]
    """Keyword arguments of the function. Change one (a version, say) when the text behind it changes."""


DataConfig = Annotated[
    PythonDocsDataConfig | FilesDataConfig | HubDataConfig | CustomDataConfig, Field(discriminator="source")
]
