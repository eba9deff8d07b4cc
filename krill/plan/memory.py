"""The memory of a training step on one rank, by part and by moment; the peak is the largest moment, not a sum of all.

forward     the end of the forward pass: activations and the loss
backward    its beginning (activations, the gradient of the loss), its last layer, or the gradient of the embedding
optimizer   the optimizer step: gradients, state, and what Muon computes with
saving      a checkpoint that is written
evaluation  a batch of an evaluation on tasks: in the training, or of the final model, which is loaded beside it

Assumptions. Weights, gradients and optimizer state are fp32. Activations are those of the eager model: torch.compile
and Liger's kernels save fewer. Attention saves what Flash Attention saves; eager attention also its weights. The last
part, `context`, is what a process needs besides tensors: the interpreter with its libraries on the CPU, the CUDA
context and the rounding of the allocator on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from krill.config.schema import CustomOptimizerConfig, MuonConfig, OptimizerConfig, TrainConfig
from krill.evaluation.batch_limits import choose_max_batch_tokens
from krill.optim.limits import MAX_BATCH_ELEMENTS
from krill.plan.architecture import BF16_BYTES, FP32_BYTES, Architecture, WeightKind
from krill.plan.evaluation import has_final_evaluation
from krill.plan.setting import ComputeSetting
from krill.training.compute.thresholds import CHUNK

PARTS = (
    "weights", "gradients", "optimizer", "activations", "logits", "buffers", "communication", "saving", "context",
)  # fmt: skip
"""The parts of the memory, in the order in which they are listed."""

CPU_PROCESS_BYTES = 520_000_000
"""Resident memory of a training process without its tensors: Python, torch, transformers (measured)."""

CPU_HEAP_SHARE = 0.47
"""The share of what a step allocates that glibc's heap keeps beside it: freed blocks between others, the most of them
after a few steps (measured: benchmarks/plan_memory.py). Only of tensors below `MMAP_BYTES`."""

CPU_RECOMPUTED_SHARE, CPU_UNFUSED_SHARE = 0.3, 0.6
"""The share of what all layers would save that stays in glibc's heap with gradient checkpointing: what a layer frees
lies between the inputs that are kept. The second one is for an MLP whose activation is several operations: the
optimizer step does not reuse that either (measured likewise)."""

CPU_KEPT_SHARE = 1.0
"""The share of the memory that the backward pass has freed which the matrices of Muon's step do not reuse in glibc's
heap, at most as much as they take (measured: benchmarks/plan_memory.py)."""

EVALUATION_WIDTHS, EVALUATION_MLP_WIDTHS = 5, 4
"""Residual widths and MLP widths of a layer in a forward pass without gradients."""

SCORED_LOGITS = 2**25
"""Logits that are normalized at once (krill.inference.token_scores.CHUNK_ELEMENTS)."""

EVALUATION_DATA_BYTES = 90_000_000
"""The items of an evaluation, their tokens, and the n-grams that are counted for them (measured)."""

MMAP_BYTES = 2**25
"""glibc returns larger blocks to the system at once (M_MMAP_THRESHOLD, at most 32 MiB)."""

CUDA_CONTEXT_BYTES = 700_000_000
"""CUDA context, loaded kernels and the workspace of cuBLAS (assumed; not measured)."""

CUDA_ALLOCATOR_SHARE = 0.03
"""The share of tensors that torch's allocator adds by rounding and fragmentation (assumed; not measured)."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one rank, by moment and part; parts that are 0 are left out."""

    moments: dict[str, dict[str, int]]

    @property
    def peak_moment(self) -> str:
        """The moment with the most memory."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> dict[str, int]:
        """The parts at the peak."""
        return self.moments[self.peak_moment]

    @property
    def total(self) -> int:
        """The bytes at the peak."""
        return sum(self.peak.values())


def plan_memory(
    config: TrainConfig,
    architecture: Architecture,
    setting: ComputeSetting,
    rows: int | None = None,
    tokens: int | None = None,
) -> MemoryPlan:
    """Returns the memory of a step of `config`.

    Args:
        config: The run; the state of a custom optimizer is counted as AdamW's.
        architecture: Its model.
        setting: Its computation.
        rows: Rows of a micro batch; None: those of `setting`.
        tokens: Tokens of the whole run, on which the evaluation at its end depends; None: not known.
    """
    step = _Step(config, architecture, setting, rows or setting.batch.micro_batch_size, tokens)
    moments: dict[str, dict[str, int]] = {}
    for name, parts in step.list_moments():
        parts["context"] = step.compute_context(parts)
        present = {part: parts[part] for part in PARTS if parts.get(part) or part == "context"}
        if name not in moments or sum(present.values()) > sum(moments[name].values()):
            moments[name] = present
    if setting.device.kind == "cpu":
        freed = sum(moments["backward"].get(part, 0) for part in ("activations", "logits", "buffers"))
        kept = min(freed, moments["optimizer"].get("buffers", 0))
        moments["optimizer"]["context"] += round(CPU_KEPT_SHARE * kept)
        for moment in ("forward", "backward", "optimizer"):
            moments[moment]["context"] += step.count_recomputed_bytes(moment)
    return MemoryPlan(moments)


def compute_checkpoint_bytes(optimizer: OptimizerConfig, architecture: Architecture) -> tuple[int, int]:
    """Returns the bytes of the weights and of the optimizer state in a checkpoint, over all ranks."""
    return FP32_BYTES * architecture.parameters, compute_state_bytes(optimizer, architecture)


def compute_state_bytes(optimizer: OptimizerConfig, architecture: Architecture) -> int:
    """Returns the bytes of the optimizer state.

    AdamW stores two moments and a step count, Muon one moment, NorMuon one more number per neuron.
    """
    muon = list_muon_matrices(optimizer, architecture)
    counts = dict(muon)
    total = 0
    for kind in architecture.weights:
        by_muon = counts.get(kind, 0)
        total += (kind.count - by_muon) * (2 * FP32_BYTES * kind.entries + FP32_BYTES)
        total += by_muon * FP32_BYTES * kind.entries
        if by_muon and isinstance(optimizer, MuonConfig) and optimizer.normuon:
            total += by_muon * FP32_BYTES * sum(outputs for outputs, _ in kind.matrices)
    return total


def list_muon_matrices(
    optimizer: OptimizerConfig, architecture: Architecture
) -> list[tuple[WeightKind, int]]:
    """Returns the hidden matrices that Muon trains, and how many of each; none for another optimizer."""
    if not isinstance(optimizer, MuonConfig):
        return []
    matrices = []
    for kind in architecture.list_matrices():
        if len(kind.shape) != 2:
            continue
        count = sum(
            not any(_matches(name, pattern) for pattern in optimizer.adamw_modules)
            for name in _list_names(kind)
        ) if optimizer.adamw_modules else kind.count  # fmt: skip
        if count:
            matrices.append((kind, count))
    return matrices


def _list_names(kind: WeightKind) -> list[str]:
    return [kind.name.replace("*", str(index), 1) for index in range(kind.count)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


class _Step:
    """The sizes of a step on one rank. N tokens of a micro batch, H width, V vocabulary."""

    def __init__(
        self,
        config: TrainConfig,
        architecture: Architecture,
        setting: ComputeSetting,
        rows: int,
        run_tokens: int | None,
    ) -> None:
        self.config, self.architecture, self.setting = config, architecture, setting
        self.has_final_evaluation = has_final_evaluation(config, run_tokens)
        self.rows, self.row_tokens = rows, config.sequence_len // setting.context_parallel
        self.tokens = rows * self.row_tokens
        self.is_bf16 = setting.activation_precision == "bf16"
        self.size = BF16_BYTES if self.is_bf16 else FP32_BYTES
        self.device = setting.device.kind
        self.parameters = architecture.parameters
        self.weights = -(-FP32_BYTES * self.parameters // setting.shard_size)
        state = compute_state_bytes(config.optimizer, architecture)
        self.state = -(-state // setting.shard_size)
        self.is_accumulating = setting.batch.rows_per_rank > rows
        self.is_sharded = setting.shard_size > 1
        self.has_buckets = setting.world_size > 1 and not self.is_sharded
        whole = FP32_BYTES * self.parameters
        self.gradients = whole if self.is_accumulating or not self.is_sharded else self.weights
        self.head = FP32_BYTES * architecture.head_entries
        self.hidden = FP32_BYTES * self.tokens * architecture.width
        self.saved = architecture.compute_saved_bytes(
            rows, self.row_tokens, setting.activation_precision, self.device
        )
        self.layer = self.saved.layer + self._count_attention_bytes()

    def compute_context(self, parts: Mapping[str, int]) -> int:
        """Returns what the process needs besides the tensors of a moment."""
        if self.device == "cuda":
            return CUDA_CONTEXT_BYTES + round(CUDA_ALLOCATOR_SHARE * sum(parts.values()))
        in_step = ("activations", "logits", "buffers", "communication")
        allocated = max(0, sum(parts.get(part, 0) for part in in_step) - self._count_large_activation_bytes())
        if not self.has_buckets:
            allocated += max(0, parts.get("gradients", 0) - self._count_large_gradient_bytes())
        return CPU_PROCESS_BYTES + round(CPU_HEAP_SHARE * allocated)

    def count_recomputed_bytes(self, moment: str) -> int:
        """Returns the bytes in the heap of a CPU that layers have freed and that are not used again in `moment`."""
        is_large = self.size * self.tokens * self.architecture.mlp_width > MMAP_BYTES
        is_unfused = self.architecture.has_unfused_mlp
        if not self.setting.gradient_checkpointing or is_large or (moment == "optimizer" and not is_unfused):
            return 0
        share = CPU_UNFUSED_SHARE if is_unfused else CPU_RECOMPUTED_SHARE
        return round(share * self.architecture.layers * self.layer)

    def _count_large_gradient_bytes(self) -> int:
        """Returns the bytes of the gradients that are too large for glibc's heap."""
        sizes = (
            kind.count * kind.entries
            for kind in self.architecture.weights
            if FP32_BYTES * kind.entries > MMAP_BYTES
        )
        return FP32_BYTES * sum(sizes) // self.setting.shard_size

    def _count_large_activation_bytes(self) -> int:
        """Returns the bytes of the activations that are too large for glibc's heap."""
        total = 0
        layers = 1 if self.setting.gradient_checkpointing else self.architecture.layers
        if self.size * self.tokens * self.architecture.mlp_width > MMAP_BYTES:
            total += layers * 4 * self.size * self.tokens * self.architecture.mlp_width
        if self.hidden > MMAP_BYTES:
            total += layers * 6 * self.hidden
        return total

    def list_moments(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Yields the moments; one name may have several, of which the largest counts."""
        kept = {"weights": self.weights, "optimizer": self.state, "saving": self._count_background_copy()}
        # The gradients of DDP are views of its buckets, which stay; others exist between passes of one step.
        is_resident = self.is_accumulating or self.has_buckets
        resident = self.gradients if is_resident else 0
        gathered = self._count_gathered_bytes()
        yield "forward", kept | {
            "gradients": resident, "activations": self._count_activations() + self._count_weight_copies(),
            "logits": self.hidden + self._count_loss_bytes(), "communication": gathered,
        }  # fmt: skip
        for parts in self._list_backward_parts(resident, gathered):
            yield "backward", kept | parts
        update, exchange = self._count_update_bytes()
        yield "optimizer", kept | {
            "gradients": self.gradients, "buffers": update, "communication": exchange,
        }  # fmt: skip
        between = kept | {"gradients": resident if self.has_buckets else 0}  # two steps
        yield from self._list_evaluation_moments(between)
        yield "saving", between | {"buffers": self.weights if self.device == "cpu" else 0}

    def _list_backward_parts(self, resident: int, gathered: int) -> Iterator[dict[str, int]]:
        """Yields what the beginning of the backward pass has, then the last layer, the first, and the embedding.

        `resident`: bytes of the gradients that exist before it. `gathered`: of the weights that FSDP2 gathers.
        """
        is_full = self.setting.loss == "full"
        is_checkpointed = self.setting.gradient_checkpointing
        copies = 0 if is_checkpointed else self._count_weight_copies()
        recomputed = self.layer + self._count_weight_copies() // self.architecture.layers
        in_layer = self._count_layer_transient() + (recomputed if is_checkpointed else 0)
        # The last norm is done before the last layer is recomputed.
        activations = self._count_activations() + (-self.hidden if is_checkpointed else copies)
        head_input = self.tokens * self.architecture.width * self.size if is_full else self.hidden
        reduced = self._count_reduced_bytes()
        if is_full:
            yield {
                "gradients": resident,
                "activations": self._count_activations() + copies,
                "logits": head_input + 12 * self.tokens * self.architecture.vocab_size,
                "communication": gathered,
            }
        yield {
            "gradients": max(resident, self.head // self.setting.shard_size),
            "activations": activations,
            "logits": head_input + (self.head if resident and not is_full else 0),
            "buffers": in_layer,
            "communication": gathered + reduced,
        }
        yield {
            "gradients": self.gradients,
            "activations": self.saved.outside // 2 + (0 if is_checkpointed else recomputed),
            "logits": self.head if resident and not is_full and self.architecture.is_tied else 0,
            "buffers": in_layer + self.hidden,
            "communication": gathered + reduced,
        }
        yield {
            "gradients": self.gradients,
            "buffers": 2 * self.hidden + (self.head if self.architecture.is_tied or resident else 0),
            "communication": gathered + reduced,
        }

    def _list_evaluation_moments(self, kept: dict[str, int]) -> Iterator[tuple[str, dict[str, int]]]:
        """Yields the two peaks of a batch: in a layer, and when all its logits are normalized in pieces."""
        section, architecture = self.config.evaluation, self.architecture
        if section.every is not None:
            kept = kept | {"communication": self._count_gathered_bytes()}
        elif self.has_final_evaluation:
            copy = FP32_BYTES * self.parameters
            kept = kept | {"weights": kept["weights"] + copy, "optimizer": 0, "saving": 0}
        else:
            return
        tokens = choose_max_batch_tokens(architecture.vocab_size, self.device, section.max_batch_tokens)
        logits = tokens * architecture.vocab_size
        widths = EVALUATION_WIDTHS * architecture.width + EVALUATION_MLP_WIDTHS * architecture.mlp_width
        kept = kept | {"buffers": EVALUATION_DATA_BYTES if self.device == "cpu" else 0}
        yield "evaluation", kept | {"activations": FP32_BYTES * tokens * widths}
        yield "evaluation", kept | {
            "activations": FP32_BYTES * tokens * architecture.width,
            "logits": FP32_BYTES * (logits + min(logits, SCORED_LOGITS)),
        }  # fmt: skip

    def _count_activations(self) -> int:
        layers = self.architecture.layers
        each = self.saved.layer_input if self.setting.gradient_checkpointing else self.layer
        return layers * each + self.saved.outside

    def _count_weight_copies(self) -> int:
        """fp8 casts again in the backward pass, FSDP2 gathers in bf16."""
        has_copies = self.setting.precision == "bf16" and not self.is_sharded
        return self.saved.weight_copies if has_copies else 0

    def _count_attention_bytes(self) -> int:
        """Returns what a layer saves beyond Flash Attention: the weights of eager attention and of dropout."""
        if not self.architecture.attention:
            return 0
        first = self.architecture.attention[0]
        pairs = self.rows * first.heads * self.row_tokens**2
        if self.setting.attention == "eager":
            return pairs * (FP32_BYTES + 2 * self.size)
        if self.architecture.attention_dropout and self.device == "cpu":
            return 3 * pairs * self.size
        return self.rows * self.row_tokens**2 if self.setting.attention == "sdpa" else 0

    def _count_loss_bytes(self) -> int:
        """Returns what the loss adds at the end of the forward pass, besides the hidden states."""
        vocab_size, width = self.architecture.vocab_size, self.architecture.width
        if self.setting.loss == "full":
            casts = BF16_BYTES * (vocab_size + self.tokens) * width if self.is_bf16 else 0
            return self.tokens * vocab_size * (10 if self.is_bf16 else 8) + casts
        chunk = min(CHUNK[self.device], self.tokens)
        logits = chunk * vocab_size * (10 if self.is_bf16 else 8)
        if self.is_bf16:
            if self.device == "cpu":  # adds the gradient of a chunk by way of an fp32 copy
                logits = max(logits, 2 * chunk * vocab_size + (BF16_BYTES + FP32_BYTES) * vocab_size * width)
            logits += BF16_BYTES * (vocab_size + chunk) * width
        return logits + self.head + self.hidden

    def _count_layer_transient(self) -> int:
        """Returns what the backward pass of a layer needs: three residual widths in its norms, or two of the MLP."""
        widths = (3 * FP32_BYTES * self.architecture.width, 2 * self.size * self.architecture.mlp_width)
        largest = max((kind.entries for kind in self.architecture.list_matrices()), default=0)
        return self.tokens * max(widths) + (FP32_BYTES * largest if self.is_accumulating else 0)

    def _count_gathered_bytes(self) -> int:
        """Returns the weights that FSDP2 gathers: embedding and head, the current layer and the next."""
        if not self.is_sharded:
            return 0
        outside = self.parameters - self.architecture.layers * self.architecture.layer_entries
        return FP32_BYTES * outside + 2 * self.size * self.architecture.layer_entries

    def _count_reduced_bytes(self) -> int:
        """Returns the gradients of a layer, and of embedding and head, before FSDP2 reduces them."""
        if not self.is_sharded or self.is_accumulating:
            return 0
        return (self.size + FP32_BYTES) * self.architecture.layer_entries + self.head

    def _count_update_bytes(self) -> tuple[int, int]:
        """Returns what the optimizer step computes with, and what it exchanges between ranks.

        On one rank Muon stacks the matrices of one shape, up to `MAX_BATCH_ELEMENTS` entries; the updates of the
        previous batch still exist. On several it computes its share of all matrices, and gathers all updates.
        """
        matrices = list_muon_matrices(self.config.optimizer, self.architecture)
        if not isinstance(self.config.optimizer, MuonConfig) or not matrices:
            return 0, 0
        is_ns_bf16 = self.config.optimizer.ns_dtype == "bf16" or (
            self.config.optimizer.ns_dtype == "auto" and self.device == "cuda"
        )
        ns_size = BF16_BYTES if is_ns_bf16 else FP32_BYTES
        ranks = self.setting.shard_size if self.is_sharded else self.setting.world_size
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for kind, count in matrices:
            entry = by_shape.setdefault(kind.shape, [0, 0])
            entry[0] += count
            entry[1] = max(entry[1], max(min(matrix) for matrix in kind.matrices))
        peak = previous = 0
        for (rows, columns), (count, side) in by_shape.items():
            entries = rows * columns
            batch = min(-(-count // ranks), max(1, MAX_BATCH_ELEMENTS // entries))
            stacked = batch * entries
            # direction and stack in fp32, two iterates, two Gram matrices, and the result if it is converted
            own = stacked * (2 * FP32_BYTES + 2 * ns_size) + 2 * batch * side * side * ns_size
            own += FP32_BYTES * stacked if is_ns_bf16 else 0
            peak = max(peak, previous + own)
            previous = FP32_BYTES * stacked
        if ranks == 1:
            return peak, 0
        entries = sum(count * kind.entries for kind, count in matrices)
        whole = entries if not self.is_sharded else -(-entries // ranks)
        largest = max(rows * columns * count for (rows, columns), (count, _) in by_shape.items())
        return peak, 2 * FP32_BYTES * whole + (FP32_BYTES + ns_size) * (
            largest if not self.is_sharded else -(-largest // ranks)
        )

    def _count_background_copy(self) -> int:
        """Returns the copy from which a checkpoint is written in the background; on a GPU it is in host memory."""
        is_copied = self.config.save_in_background and self.device == "cpu"
        return self.weights + self.state if is_copied else 0


def is_state_known(optimizer: OptimizerConfig) -> bool:
    """Returns whether the state of the optimizer is known; that of a custom one is counted as AdamW's."""
    return not isinstance(optimizer, CustomOptimizerConfig)
