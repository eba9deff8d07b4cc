"""The one schema: what a person may set, checked once after composition.

YAML in `conf/` composes; these models validate. The sentence under a field is its documentation
everywhere: `--help`, error messages and the reference page take it from here.

A class names in `UNSIGNED` those of its fields that do not determine what a command makes (where it runs,
how often it reports) or that count in another way: `krill.config.signature` leaves them out of the identity.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
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
    return [value] if isinstance(value, str) else value


# --- data --------------------------------------------------------------------------------------------------


class _Data(Section):
    name: Name
    """Names the folder of the prepared tokens: outputs/data/<name>-<signature>."""
    min_chars: NonNegativeInt
    """Documents with fewer characters after cleaning are dropped and counted."""
    min_tokens: NonNegativeInt
    """Documents with fewer tokens (boundary tokens not counted) are dropped and counted."""
    validation_fraction: Fraction
    """Share of documents, chosen by a hash of their text, that is held out for validation."""
    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name"})


class PythonDocs(_Data):
    """The documentation inside CPython itself: the text that every machine with Python has."""

    source: Literal["python_docs"]
    """Where the text comes from."""


class Files(_Data):
    """Files of this machine: .jsonl, .json, .parquet, .txt."""

    source: Literal["files"]
    """Where the text comes from."""
    paths: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
    """Files, folders or globs; read in this order."""
    text_column: str
    """The column (or JSON key) that holds the text."""


class HubDataset(Section):
    """One data set of the Hugging Face Hub."""

    path: str
    """Name on the Hub, or a folder that `datasets.load_dataset` reads."""
    split: str = "train"
    """Split, slices such as train[:10000] included."""
    text_column: str = "text"
    """The column that holds the text; the others are dropped."""


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
    """A tokenizer to train on the run's own data, or a ready one by `path`."""

    name: Name
    """Names the folder: outputs/tokenizers/<name>-<signature>."""
    path: str | None
    """Folder or Hub id of a ready tokenizer; then nothing is trained and the keys below are not used."""
    vocab_size: Annotated[int, Field(ge=300)]
    """Entries in all: 256 bytes, merges and special tokens. Met exactly, or the training fails."""
    min_frequency: PositiveInt
    """A pair seen less often is not merged."""
    max_token_length: PositiveInt | None
    """Longest token in bytes; null for no limit."""
    normalizer: Literal["none", "nfc"]
    """Unicode normalization. Never NFKC: it destroys Korean jamo such as ㅋ."""
    pattern: Literal["gpt2", "gpt4"]
    """How text is cut before merging: the split pattern of that family."""
    bos_token: str
    """Begins every document; the model's first context, never a target."""
    eos_token: str
    """Ends every document; learned as a target."""
    pad_token: str
    """Fills short rows; never a target."""
    special_tokens: list[str]
    """Further special tokens, reserved for later use (chat, tools)."""
    sample_bytes: PositiveInt
    """At most so many bytes of the training text are read to train the tokenizer."""
    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name"})

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


Model = Annotated[Transformer | CustomModel, Field(discriminator="family")]


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
    ns_steps: Annotated[int, Field(ge=1, le=20)]
    """Newton–Schulz iterations."""
    ns_coefficients: Literal["keller", "polar_express"]
    """Coefficients of the Newton–Schulz iteration."""


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


class Hardware(Section):
    """The machine a run is made for."""

    name: Name
    """What the setting is called."""
    precision: Literal["auto", "fp32", "bf16"]
    """Arithmetic of the forward pass; weights stay fp32. auto: bf16 on CUDA devices that have it, else fp32."""
    attention: Literal["auto", "varlen", "sdpa", "eager"]
    """Attention backend; each isolates documents. auto: varlen."""
    workers: NonNegativeInt
    """Processes that load rows; 0: the training process itself."""
    threads: PositiveInt | None
    """CPU threads of torch; null: torch's own choice."""
    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name", "workers", "threads", "attention"})


class Batch(Section):
    """What one optimizer step sees."""

    micro_batch_size: PositiveInt
    """Rows per device and forward pass."""
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


class HubTarget(Section):
    """Where the result goes on the Hugging Face Hub, if it is to go there at all."""

    id: str | None
    """Repository on the Hub, user/name."""
    push: bool
    """Upload the final model; only ever when asked."""
    private: bool
    """The repository is made private."""

    @model_validator(mode="after")
    def _push_needs_id(self) -> HubTarget:
        if self.push and self.id is None:
            raise ValueError("hub.push=true needs a repository: hub.id=user/name")
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
    """auto: go on with the newest unfinished run of this configuration, else begin; local, true: go on or fail;
    false: always begin; or the folder of an unfinished run."""
    output: str | None
    """Folder of the result; null: a new one below outputs/."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model is computed."""
    dry_run: bool
    """Write nothing, print what the command would do."""
    log_every: PositiveInt
    """Steps between two lines of metrics."""
    eval_every: PositiveInt
    """Steps between two validations."""
    save_every: PositiveInt
    """Steps between two checkpoints."""
    keep_checkpoints: PositiveInt
    """Checkpoints that are kept, newest first."""
    sample_prompt: str | None
    """The finished model continues this text once; null: it begins a document of its own."""
    model: Model
    data: Data
    tokenizer: Tokenizer
    optimizer: Optimizer
    scheduler: Scheduler
    hardware: Hardware
    batch: Batch
    hub: HubTarget
    UNSIGNED: ClassVar[frozenset[str]] = frozenset(
        {
            "name",
            "resume",
            "output",
            "device",
            "dry_run",
            "log_every",
            "eval_every",
            "save_every",
            "keep_checkpoints",
            "sample_prompt",
            "hub",
            "data",  # these two count by their content
            "tokenizer",
        }
    )

    @field_validator("resume")
    @classmethod
    def _resume_is_known(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not value:
            raise ValueError("resume is empty; write resume=auto, local, remote, true, false or a folder")
        return value

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
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of steps and epochs must be set; write steps=400 or epochs=1")
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

    UNSIGNED: ClassVar[frozenset[str]] = frozenset({"name", "output", "device", "dry_run"})

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
