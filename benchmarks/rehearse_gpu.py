"""Question: what would a GPU get from a training step of krill, and how fast would an H100 compute it?

Runs krill-train without a GPU on a fake CUDA device (fake_cuda.py): krill selects what it selects on an H100, builds
the model and trains three steps with bf16 autocast; tensors have no values. From the second step, in which nothing is
logged, for each model and optimizer:

    checks       shapes fit in every operation (else it raises); the loss, the weights, their gradients and the
                 accumulator of the head's gradient are fp32, every matrix product is bf16, nothing is fp64; each
                 layer calls Flash Attention once and once backwards; no tensor of the CPU takes part, the host waits
                 for nothing but Muon's event, and reads nothing before it is copied; fused AdamW masks bad steps; the
                 head is padded
    graphs       graphs, graph breaks and recompilations of torch.compile over the steps, whose documents differ
    work         FLOPs of matrix products and attention; bytes that the other operations read and write, by kind
                 (loss, casts, copies, reductions, elementwise); kernels
    estimate     tokens per second and MFU on one H100, from the work and the rates below

Prints a table, and writes results/rehearse_gpu.json, or the file of --result, after each model and optimizer. Ends
with 1 if a check fails. With hardware.precision=fp8 the products of layers are counted, and estimated as if in bf16.

    python benchmarks/rehearse_gpu.py                                            (10 minutes, 3 GB; no GPU)
    python benchmarks/rehearse_gpu.py --models llama_pico --tiny --result /tmp/a.json

Any build of torch will do. For that of a GPU machine make an environment whose other packages are shared:

    python -m venv gpu && gpu/bin/pip install torch==2.11.0                      (the index's build for CUDA, 4 GB)
    echo "$PWD/.venv/lib/python3.11/site-packages" > gpu/lib/python3.11/site-packages/shared.pth
    PYTHONPATH=. gpu/bin/python benchmarks/rehearse_gpu.py

It does not see values (wrong results of a kernel), memory, the Triton kernels of Liger and Inductor, or more than one
rank.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fake_cuda import DEVICE, NAME, FakeCuda, Operation
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from krill import atomic
from krill.cli.compose import compose_config
from krill.cli.train import prepare_inputs
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.runs.record import read_versions
from krill.training import run as run_module
from krill.training.compute import backends
from krill.training.metrics.peak_flops import get_peak_flops
from krill.training.setup import RunSetup
from krill.training.trainer import KrillTrainer

MODELS, OPTIMIZERS = ("llama_small", "llama_350m", "llama_1b"), ("adamw", "muon_krill")
VOCAB_SIZE, ROW, ROWS, ATTENDED, STEP_TOKENS = 32_000, 2048, 8, 512, 131_072
"""The vocabulary, tokens of a row, rows of a pass, tokens that a token attends to on average, and tokens of an
optimizer step for which the estimate is made."""
OVERRIDES = (
    "hardware=gpu", "data=files", "data.min_chars=0", "tokenizer.vocab_size=300", "hardware.liger=false", "steps=3",
    "log_every=100", "eval_every=100", "save_every=100", "packing=best_fit",
)  # fmt: skip

MATMUL_RATES = {768: 420e12, 960: 500e12, 2048: 620e12}
"""Assumed FLOP/s of bf16 matrix products by hidden size, interpolated between them."""
ATTENTION_RATE, BANDWIDTH = 275e12, 2.7e12
"""Assumed FLOP/s of Flash Attention 2 with heads of 64, and bytes/s of everything else."""
LAUNCH_SECONDS = 7.5e-6
"""Assumed time of the host per kernel of an eager pass."""
FUSED_SHARE = 1 / 3
"""Assumed share of the bytes of elementwise operations that remains when torch.compile fuses them."""
MATMULS = ("mm", "bmm", "addmm", "baddbmm", "_addmm_dtype", "linear", "_scaled_mm")
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
KINDS = {
    "cast": ("_to_copy",),
    "copy": (
        "copy_", "clone", "cat", "stack", "constant_pad_nd", "index", "index_put_", "slice_backward", "fill_",
        "zero_", "zeros", "zeros_like", "new_zeros", "full", "embedding",
    ),
    "reduction": ("sum", "mean", "linalg_vector_norm", "embedding_dense_backward"),
    "nothing": ("empty_like", "new_empty_strided", "new_empty", "empty_strided", "empty"),
}  # fmt: skip
"""Operations by what they read and write; all others are elementwise."""
HEAD_MULTIPLE = 128
"""Matrix products of the head are fast for multiples of this."""
ALLOWED_WAITS = {"event": 1}
"""Waits of a step that logs nothing: Muon reads whether its previous step was masked."""


@dataclass
class Rehearsal:
    """What was recorded of the second step of a run."""

    operations: list[Operation] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    layers: int = 0
    vocab_size: int = 0
    hidden_size: int = 0
    parameters: int = 0
    graphs: int = 0
    breaks: dict[str, int] = field(default_factory=dict)


class StepReader(TrainerCallback):
    """Keeps what the second step did, and checks weights and gradients in it."""

    def __init__(self, cuda: FakeCuda, rehearsal: Rehearsal):
        self.cuda, self.rehearsal = cuda, rehearsal

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.float32:
                self.rehearsal.problems.append(f"the weight {name} is {parameter.dtype}")
            if parameter.grad is None or parameter.grad.dtype != torch.float32:
                self.rehearsal.problems.append(f"the gradient of {name} is not fp32")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            recorder, rehearsal = self.cuda.recorder, self.rehearsal
            rehearsal.operations = recorder.operations
            rehearsal.waits = Counter(f"{wait.reason}: {wait.line}" for wait in recorder.waits)
            rehearsal.problems += find_problems(rehearsal)
            rehearsal.problems += [f"a CPU tensor in {operation}" for operation in recorder.cpu_inputs]
            rehearsal.problems += [f"read before the copy has ended: {line}" for line in recorder.early_reads]
            reasons = Counter(wait.reason for wait in recorder.waits)
            if any(count > ALLOWED_WAITS.get(reason, 0) for reason, count in reasons.items()):
                rehearsal.problems += [f"the host waits, {line}" for line in rehearsal.waits]
            recorder.clear()


def rehearse(config: TrainConfig, store: Path, tokenizer: Path, vocab_size: int | None) -> Rehearsal:
    """Trains with `config` on a fake CUDA device. `vocab_size`: the size of the head, for another than the data's."""
    rehearsal = Rehearsal()
    cuda, counter = FakeCuda(), CompileCounterWithBackend("eager")
    compute_loss, get_batch_samples = KrillTrainer.compute_loss, KrillTrainer.get_batch_samples
    build_setup, compile_function = run_module.build_run_setup, torch.compile

    def build_setup_with_vocabulary(*args: Any, **kwargs: Any) -> RunSetup:
        setup = build_setup(*args, **kwargs)
        if vocab_size is not None:
            setup = replace(setup, tokenizer=replace(setup.tokenizer, vocab_size=vocab_size))
        rehearsal.vocab_size = setup.tokenizer.vocab_size
        return setup

    def begin_step(trainer: KrillTrainer, *args: Any) -> Any:
        if trainer.state.global_step == 1:  # the first step, which is logged, has ended
            cuda.recorder.clear()
        return get_batch_samples(trainer, *args)

    def check_loss(trainer: KrillTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(trainer, *args, **kwargs)
        if loss.dtype != torch.float32 or loss.device != DEVICE:
            rehearsal.problems.append(f"the loss is {loss.dtype} on {loss.device}")
        return loss

    def train(trainer: KrillTrainer, **kwargs: Any) -> Any:
        rehearsal.layers = trainer.model.config.num_hidden_layers
        rehearsal.hidden_size = trainer.model.config.hidden_size
        rehearsal.parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        if not trainer.get_train_dataloader().pin_memory:
            rehearsal.problems.append("rows are copied from memory that is not pinned: the copy waits")
        trainer.add_callback(StepReader(cuda, rehearsal))
        cuda.run_within(original_train)(trainer, **kwargs)

    original_train = KrillTrainer.train
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(cuda)
        for owner, name, stub in (
            (torch, "compile", lambda target, **rest: compile_function(target, backend=counter)),
            (run_module, "build_run_setup", build_setup_with_vocabulary),
            (backends, "find_compile_obstacle", lambda device: None),
            (run_module, "_build_model", cuda.run_within(run_module._build_model, DEVICE)),
            (run_module, "build_loss", cuda.run_within(run_module.build_loss)),
            (KrillTrainer, "__init__", cuda.run_within(KrillTrainer.__init__)),
            (KrillTrainer, "get_batch_samples", begin_step),
            (KrillTrainer, "compute_loss", check_loss),
            (KrillTrainer, "train", train),
            (KrillTrainer, "evaluate", lambda *_, **__: {}),
            (KrillTrainer, "_save_checkpoint", lambda *_: None),
            (run_module, "_finish_run", lambda *_: {}),
        ):
            stack.enter_context(patch.object(owner, name, stub))
        counters.clear()
        torch.compiler.reset()  # what another model compiled would make sizes dynamic
        run_module.run_training(config, Path(folder), store, tokenizer)
    rehearsal.calls, rehearsal.graphs = cuda.calls, counter.frame_count
    rehearsal.breaks = {reason.partition("\n")[0]: n for reason, n in counters["graph_break"].items()}
    return rehearsal


# --- checks ------------------------------------------------------------------------------------------------


def find_problems(rehearsal: Rehearsal) -> list[str]:
    """Returns which operations of the step would be slow or inexact."""
    problems = []
    calls: Counter[str] = Counter()
    for operation in rehearsal.operations:
        name, where = operation.name, f"{operation.name} {operation.line}"
        tensors = (*operation.inputs, *operation.outputs)
        if any(tensor.dtype == torch.float64 and tensor.ndim for tensor in tensors if tensor.is_cuda):
            problems.append(f"fp64 in {where}")
        if is_matmul(operation) and not is_outer_product(operation):
            a, b = get_factors(operation)
            sizes = {
                size for size in (*a.shape, *b.shape) if 0 <= size - rehearsal.vocab_size < HEAD_MULTIPLE
            }
            if "cross_entropy" in operation.line and any(size % HEAD_MULTIPLE for size in sizes):
                problems.append(f"a head of {max(sizes)} rows, not padded, in {where}")
            if is_fp8_product(operation):
                continue
            if a.dtype != torch.bfloat16 or b.dtype != torch.bfloat16:
                problems.append(f"a matrix product of {a.dtype} and {b.dtype} in {where}")
        dtypes = {str(tensor.dtype) for tensor in operation.inputs}
        if is_matmul(operation) and "dtype" not in name and len(dtypes) > 1:
            problems.append(f"{' and '.join(sorted(dtypes))}, which CUDA does not multiply, in {where}")
        if "_fused_adamw_" in name and len(operation.inputs) % 5 != 1:  # 5 lists of tensors, and found_inf
            problems.append(f"a bad step is not masked in {where}")
        if is_attention(operation):
            calls["backward" if "backward" in name else "forward"] += 1
            if operation.inputs[0].dtype != torch.bfloat16:
                problems.append(f"attention in {operation.inputs[0].dtype} in {where}")
        if "cross_entropy" in operation.line and not operation.is_view and name.split(".")[1] in ADDITIONS:
            problems += [
                f"the gradient of the head is summed in {output.dtype} in {where}"
                for output in operation.inputs[:1]
                if output.ndim == 2
                and output.shape[0] >= rehearsal.vocab_size
                and output.shape[1] == rehearsal.hidden_size
                and output.dtype != torch.float32
            ]
    for name, count in (("forward", calls["forward"]), ("backward", calls["backward"])):
        if count != rehearsal.layers:
            problems.append(f"{count} {name} passes of Flash Attention for {rehearsal.layers} layers")
    return problems


ADDITIONS = ("add_", "addmm", "addmm_", "mul_")


def is_matmul(operation: Operation) -> bool:
    return operation.name.split(".")[1] in MATMULS


def is_fp8_product(operation: Operation) -> bool:
    return "_scaled_mm" in operation.name and all(factor.dtype in FP8 for factor in get_factors(operation))


def is_attention(operation: Operation) -> bool:
    return "varlen_attn" in operation.name or "_flash_attention" in operation.name


def get_factors(operation: Operation) -> tuple[Tensor, Tensor]:
    """Returns the two matrices, or batches of them, whose product `operation` computes."""
    name = operation.name.split(".")[1]
    first = 0 if name in ("mm", "bmm", "_scaled_mm") else 1
    a, b = operation.inputs[first : first + 2]
    return a, b


def is_outer_product(operation: Operation) -> bool:
    """Returns whether no products are added up, as for positions and rotary frequencies, which are fp32."""
    return get_factors(operation)[0].shape[-1] == 1


# --- work and estimate -------------------------------------------------------------------------------------


def count_work(rehearsal: Rehearsal) -> dict[str, dict[str, float]]:
    """Returns FLOPs, bytes and kernels of the pass, and of the optimizer's step."""
    work = {part: Counter[str]() for part in ("pass", "optimizer")}
    for operation in rehearsal.operations:
        if operation.is_view:
            continue
        is_optimizer = "krill/optim" in operation.line or "accelerate/optimizer" in operation.line
        counts = work["optimizer" if is_optimizer else "pass"]
        counts["kernels"] += 1
        size = sum(
            tensor.numel() * tensor.element_size() for tensor in (*operation.inputs, *operation.outputs)
        )
        if is_matmul(operation):
            a, b = get_factors(operation)
            counts["matmul_flops"] += 2 * a.numel() * b.shape[-1]
        elif is_attention(operation):
            tokens, heads, width = operation.inputs[1 if "backward" in operation.name else 0].shape
            passes = 2.5 if "backward" in operation.name else 1
            counts["attention_flops"] += round(4 * passes * tokens * heads * width * ATTENDED)
        elif (kind := get_kind(operation)) != "nothing":
            counts["bytes"] += size
            counts[f"{kind}_bytes"] += size
    return {part: {name: float(count) for name, count in counts.items()} for part, counts in work.items()}


def get_kind(operation: Operation) -> str:
    """Returns the kind of what `operation` reads and writes: loss, a key of KINDS, or elementwise."""
    name = operation.name.split(".")[1]
    kind = next((kind for kind, names in KINDS.items() if name in names), "elementwise")
    return "loss" if "cross_entropy" in operation.line and kind != "nothing" else kind


def estimate_speed(rehearsal: Rehearsal, work: dict[str, dict[str, float]], tokens: int) -> dict[str, Any]:
    """Returns seconds, tokens per second and MFU on one H100; `tokens`: of the pass that was recorded."""
    rate = float(np.interp(rehearsal.hidden_size, list(MATMUL_RATES), list(MATMUL_RATES.values())))
    one_pass, step = work["pass"], work["optimizer"]
    matmul = one_pass["matmul_flops"] / rate
    attention = one_pass["attention_flops"] / ATTENTION_RATE
    other = one_pass["bytes"] / BANDWIDTH
    optimizer = step.get("matmul_flops", 0) / rate + step["bytes"] / BANDWIDTH
    host = one_pass["kernels"] * LAUNCH_SECONDS
    flops = one_pass["matmul_flops"] + one_pass["attention_flops"]
    passes = STEP_TOKENS / tokens
    eager = passes * max(matmul + attention + other, host) + optimizer
    compiled = passes * (matmul + attention + other * FUSED_SHARE) + optimizer
    seconds = {
        "matmul": matmul, "attention": attention, "elementwise": other, "optimizer": optimizer, "host": host,
    }  # fmt: skip
    result = {f"{name}_ms": round(1e3 * value, 2) for name, value in seconds.items()}
    for name, step_seconds in (("eager", eager), ("compiled", compiled)):
        result[f"{name}_tokens_per_second"] = round(STEP_TOKENS / step_seconds)
        result[f"{name}_mfu"] = round(passes * flops / step_seconds / get_h100_peak(), 3)
    return result


def get_h100_peak() -> float:
    with patch.object(torch.cuda, "get_device_name", lambda *_: NAME):
        return get_peak_flops("cuda", "bf16", 1)


# --- the runs ----------------------------------------------------------------------------------------------


def write_texts(path: Path) -> None:
    """Writes documents of random words, of very different lengths."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(500)]
    lines = (json.dumps({"text": " ".join(rng.choices(words, k=rng.randint(3, 400)))}) for _ in range(800))
    path.write_text("\n".join(lines), encoding="utf-8")


def build_config(model: str, optimizer: str, arguments: argparse.Namespace, *more: str) -> TrainConfig:
    size = ("sequence_len=64", "batch.micro_batch_size=2") if arguments.tiny else (
        f"sequence_len={ROW}", f"batch.micro_batch_size={ROWS}",
    )  # fmt: skip
    overrides = [f"model={model}", f"optimizer={optimizer}", *OVERRIDES, *size, *more, *arguments.overrides]
    return validate_config(TrainConfig, compose_config("train", overrides))


def measure(model: str, optimizer: str, arguments: argparse.Namespace, outputs: Path) -> dict[str, Any]:
    config = build_config(model, optimizer, arguments, "hardware.compile=false")
    tokenizer, store = prepare_inputs(config, RunInputs(config.data, config.tokenizer, outputs))
    vocab_size = None if arguments.tiny else VOCAB_SIZE
    rehearsal = rehearse(config, store, tokenizer, vocab_size)
    work = count_work(rehearsal)
    tokens = config.sequence_len * config.batch.micro_batch_size
    result: dict[str, Any] = {
        "parameters": rehearsal.parameters,
        "problems": sorted(set(rehearsal.problems)),
        "waits": dict(rehearsal.waits),
        "cuda_calls": dict(Counter(rehearsal.calls)),
        "fp8_products": sum(map(is_fp8_product, rehearsal.operations)),
        "work": work,
        "estimate": estimate_speed(rehearsal, work, tokens),
    }
    if optimizer == arguments.optimizers[0] and not arguments.eager:
        compiled = rehearse(
            build_config(model, optimizer, arguments, "hardware.compile=true", "steps=6"),
            store,
            tokenizer,
            vocab_size,
        )
        result |= {"graphs": compiled.graphs, "graph_breaks": compiled.breaks}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--tiny", action="store_true", help="two rows of 64 tokens")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument(
        "--outputs", type=Path, help="folder of tokenizer and tokens; a temporary one by default"
    )
    parser.add_argument(
        "--result", type=Path, default=Path(__file__).parent / "results" / "rehearse_gpu.json"
    )
    parser.add_argument("overrides", nargs="*", help="of krill-train")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")
    results: dict[str, Any] = {}
    record = {
        "date": date.today().isoformat(),
        "versions": read_versions("torch", "transformers", "accelerate"),
        "cuda_build": torch.version.cuda,
        "models": results,
    }
    with tempfile.TemporaryDirectory() as temporary:
        outputs = arguments.outputs or Path(temporary)
        os.environ["KRILL_OUTPUTS"] = str(outputs)
        if not any(override.startswith("data.paths=") for override in arguments.overrides):
            write_texts(Path(temporary) / "texts.jsonl")
            arguments.overrides = [*arguments.overrides, f"data.paths=[{temporary}/texts.jsonl]"]
        for model in arguments.models:
            for optimizer in arguments.optimizers:
                result = measure(model, optimizer, arguments, outputs)
                results.setdefault(model, {})[optimizer] = result
                print_result(model, optimizer, result)
                # after each, so that a run that is stopped leaves what it has
                atomic.write_text(arguments.result, json.dumps(record, indent=1) + "\n")
    return int(any(result["problems"] for models in results.values() for result in models.values()))


def print_result(model: str, optimizer: str, result: dict[str, Any]) -> None:
    estimate = result["estimate"]
    print(
        f"{model:12} {optimizer:15} matmul {estimate['matmul_ms']:6.1f}  attention {estimate['attention_ms']:5.1f}  "
        f"other {estimate['elementwise_ms']:6.1f}  host {estimate['host_ms']:5.1f}  "
        f"optimizer {estimate['optimizer_ms']:6.1f} ms  "
        f"eager {estimate['eager_tokens_per_second']:,}/s, mfu {estimate['eager_mfu']}  "
        f"compiled {estimate['compiled_tokens_per_second']:,}/s, mfu {estimate['compiled_mfu']}  "
        f"graphs {result.get('graphs', '-')}",
        flush=True,
    )
    one_pass = result["work"]["pass"]
    shares = (
        f"{key.removesuffix('_bytes')} {count / one_pass['bytes']:.0%}"
        for key, count in sorted(one_pass.items())
        if key.endswith("_bytes")
    )
    print(f"    bytes of a pass: {', '.join(shares)}", flush=True)
    for problem in result["problems"]:
        print(f"    problem: {problem}")


if __name__ == "__main__":
    sys.exit(main())
