"""Calls that no test on a CPU reaches fit the functions that they call, and stubs fit what they replace.

Every call in krill of a function of torch, transformers or accelerate that a file imports is bound to the function's
signature, found by reading the source. A call that passes options which the installed version does not have fails
here, not on the first GPU.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flash_attention_stubs import RecordedKernels
from torch import Tensor
from torch.nn.attention import varlen

import krill
from krill.config.schema import TrainConfig
from krill.training import run
from krill.training.compute import attention_kernels, head_loss
from krill.training.compute.attention_kernels import DocumentBoundaries
from krill.training.compute.liger import LIGER_KERNELS
from krill.training.run import run_training, time_training_steps

ROOT = Path(krill.__file__).parents[1]
PACKAGES = ("torch", "transformers", "accelerate")

CUDA_CALLS = {
    "torch.cuda.Event": "krill/optim/skip_mask.py",
    "torch.cuda.current_stream": "krill/optim/skip_mask.py",
    "torch.cuda.device_count": "krill/training/preflight.py",
    "torch.cuda.empty_cache": "krill/resources.py",
    "torch.cuda.get_device_capability": "krill/training/compute/device.py",
    "torch.cuda.get_device_name": "krill/training/metrics/peak_flops.py",
    "torch.cuda.get_device_properties": "krill/plan/torch_device.py",
    "torch.cuda.is_available": "krill/training/compute/device.py",
    "torch.cuda.is_bf16_supported": "krill/training/compute/device.py",
    "torch.cuda.max_memory_allocated": "krill/training/metrics/throughput.py",
    "torch.cuda.reset_peak_memory_stats": "krill/launch/measured_steps.py",
    "torch.cuda.set_device": "krill/training/ranks.py",
    "torch.cuda.synchronize": "krill/training/metrics/peak_flops.py",
    "torch.addmm": "krill/training/compute/cross_entropy.py",
    "torch.optim.AdamW": "krill/optim/build.py",
    "torch.set_float32_matmul_precision": "krill/training/compute/device.py",
    "torch.nn.attention.activate_flash_attention_impl": "krill/training/compute/flash.py",
    "torch.nn.attention.current_flash_attention_impl": "krill/training/compute/flash.py",
    "torch.nn.attention.list_flash_attention_impls": "krill/training/compute/flash.py",
    "torch.nn.attention.restore_flash_attention_impl": "krill/training/compute/flash.py",
    "torch.nn.attention.varlen.varlen_attn": "krill/training/compute/attention_kernels.py",
    "torch.distributed.init_process_group": "krill/training/ranks.py",
}
"""Calls that a run on CUDA makes → the file of krill that makes them."""

UNBOUND = {"transformers.AutoModelForCausalLM.from_config"}
"""Its signature does not name the configuration that it takes."""

OPTIONS = {
    "accelerate:DistributedDataParallelKwargs": ("broadcast_buffers", "gradient_as_bucket_view"),
    "accelerate.utils:FullyShardedDataParallelPlugin": ("mixed_precision_policy",),
    "accelerate:ParallelismConfig": ("dp_replicate_size", "dp_shard_size"),
    "torch.nn.parallel:DistributedDataParallel": ("gradient_as_bucket_view",),
}
"""Classes of options that krill sets one by one, or that pass them on."""


@dataclass(frozen=True)
class SourceCall:
    """A call in a file of krill. `function` is its full name, such as torch.cuda.Event."""

    file: str
    function: str
    node: ast.Call


def _read_imports(tree: ast.Module) -> dict[str, str]:
    """Returns the full name of each name that a file imports."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _iterate_calls(file: Path) -> Iterator[SourceCall]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = _read_imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            first, *rest = ast.unparse(node.func).split(".")
            function = ".".join([names.get(first, ""), *rest])
            if function.partition(".")[0] in PACKAGES and "(" not in function and function not in UNBOUND:
                yield SourceCall(str(file.relative_to(ROOT)), function, node)


@cache
def _list_calls() -> list[SourceCall]:
    return [call for file in sorted((ROOT / "krill").rglob("*.py")) for call in _iterate_calls(file)]


def _load(name: str) -> Any:
    """Returns the object of a full name."""
    loaded: Any = importlib.import_module(name.partition(".")[0])
    for part in name.split(".")[1:]:
        name = (
            f"{getattr(loaded, '__name__', '')}.{part}"  # torch.optim deletes its modules after their import
        )
        loaded = getattr(loaded, part) if hasattr(loaded, part) else importlib.import_module(name)
    return loaded


def _bind(function: Any, call: SourceCall) -> None:
    """Raises TypeError if `function` does not accept the arguments of `call`."""
    positional = [arg for arg in call.node.args if not isinstance(arg, ast.Starred)]
    keywords = {keyword.arg: keyword.value for keyword in call.node.keywords if keyword.arg}
    has_unknown = len(positional) + len(keywords) < len(call.node.args) + len(call.node.keywords)
    try:
        signature = inspect.signature(function)
    except ValueError:  # an operator, which has several signatures
        schemas = torch._C._jit_get_schemas_for_operator(f"aten::{call.function.rpartition('.')[2]}")
        accepted = [{argument.name for argument in schema.arguments} for schema in schemas]
        factory = {
            "dtype",
            "device",
            "pin_memory",
            "layout",
        }  # in braces of every schema that creates a tensor
        if schemas and not any(set(keywords) <= names | factory for names in accepted):
            raise TypeError(f"no overload takes {', '.join(keywords)}") from None
        return
    (signature.bind_partial if has_unknown else signature.bind)(*positional, **keywords)


@pytest.mark.parametrize("function", sorted({call.function for call in _list_calls()}))
def test_installed_function_accepts_the_calls_of_krill(function: str) -> None:
    for call in _list_calls():
        if call.function == function:
            try:
                _bind(_load(function), call)
            except (AttributeError, ImportError, TypeError) as error:
                pytest.fail(f"{call.file}:{call.node.lineno} calls {ast.unparse(call.node)}: {error}")


@pytest.mark.parametrize("function", CUDA_CALLS)
def test_call_of_a_run_on_cuda_is_where_it_is_expected(function: str) -> None:
    assert any((call.function, call.file) == (function, CUDA_CALLS[function]) for call in _list_calls())


def test_every_call_of_torch_cuda_is_listed() -> None:
    calls = {call.function for call in _list_calls() if call.function.startswith("torch.cuda.")}
    assert calls <= set(CUDA_CALLS), "add to CUDA_CALLS"


@pytest.mark.parametrize("path", OPTIONS)
def test_option_exists(path: str) -> None:
    assert set(OPTIONS[path]) <= set(inspect.signature(_load(path.replace(":", "."))).parameters)


@pytest.mark.parametrize("train", [run_training, time_training_steps])
def test_precision_and_kernels_are_set_before_the_model_is_built(
    train: Callable[..., Any], make_config: Callable[..., TrainConfig], prepared_data: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls: list[Any] = []
    on_gpu = {"precision": "tf32", "attention_backend": "flash_attention_3"}

    def build(setup: Any) -> None:
        calls.append(setup.config.hardware.compile)
        raise StopIteration

    monkeypatch.setattr(run, "select_tested_kernels", lambda each: each.model_copy(update={"compile": False}))
    for name in ("apply_precision", "activate_flash_attention"):
        monkeypatch.setattr(run, name, calls.append)
    monkeypatch.setattr(run, "_build_training_model", build)
    build_setup = run.build_run_setup
    monkeypatch.setattr(run, "build_run_setup", lambda *args: replace(build_setup(*args), **on_gpu))
    with pytest.raises(StopIteration):
        train(make_config(), tmp_path, prepared_data.store, prepared_data.tokenizer.folder)
    assert calls == ["tf32", "flash_attention_3", False]


# --- functions of other versions, and of packages that are not installed ---------------------------------------


def varlen_attn_of_torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):  # fmt: skip
    """torch 2.11."""


def flash_attn_varlen_func_2_8(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    """flash-attn 2.8.3."""


class LigerLoss:
    """LigerFusedLinearCrossEntropyLoss of liger-kernel 0.8.5."""

    def __init__(
        self, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean",
        softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False, return_token_accuracy=False,
        return_predicted_tokens=False,
    ):  # fmt: skip
        pass

    def __call__(self, lin_weight, _input, target, bias=None):
        return lin_weight


def apply_liger_kernel_to_llama(
    rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True, model=None
):
    """liger-kernel 0.8.5, whose _apply_liger_kernel_to_instance passes on what it gets."""


def accept(signature_of: Callable[..., Any], calls: list[inspect.BoundArguments]) -> Callable[..., Tensor]:
    """Returns a stub that accepts what `signature_of` does, keeps the arguments and returns the first one."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(inspect.signature(signature_of).bind(*args, **kwargs))
        return args[0]

    return call


DOCUMENTS = DocumentBoundaries.from_cu_seqlens(torch.tensor([0, 3, 4], dtype=torch.int32), 3)
QUERIES = torch.zeros(4, 2, 8)


@pytest.mark.parametrize(
    "version", [varlen.varlen_attn, varlen_attn_of_torch_2_11], ids=["installed", "2.11"]
)
def test_varlen_call_fits(version: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[inspect.BoundArguments] = []
    monkeypatch.setattr(attention_kernels, "GQA_OPTION", attention_kernels._select_gqa_option(version))
    monkeypatch.setattr(varlen, "varlen_attn", accept(version, calls))
    attention_kernels.torch_varlen_attention(QUERIES, QUERIES, QUERIES, DOCUMENTS, 0.5, window=4)
    arguments = calls[0].arguments
    assert (arguments["scale"], arguments["window_size"]) == (0.5, (3, 0))
    assert arguments.get("enable_gqa", True)


def test_flash_attn_call_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[inspect.BoundArguments] = []
    stub = SimpleNamespace(flash_attn_varlen_func=accept(flash_attn_varlen_func_2_8, calls))
    monkeypatch.setitem(sys.modules, "flash_attn", stub)
    attention_kernels.flash_attn_varlen(
        QUERIES, QUERIES, QUERIES, DOCUMENTS, 0.5, window=None, softcap=None, dropout=0.1
    )
    assert calls[0].arguments["causal"]
    assert calls[0].arguments["dropout_p"] == 0.1


def test_liger_calls_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(LigerFusedLinearCrossEntropyLoss=LigerLoss)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr(head_loss, "_load_liger_loss", head_loss._load_liger_loss.__wrapped__)
    weight = torch.zeros(5, 8)
    loss = head_loss.liger_cross_entropy(torch.zeros(4, 8), weight, torch.zeros(4, dtype=torch.int64))
    assert loss is weight  # the weight comes first
    head_loss._load_liger_loss(0.1)
    options = {"model": None, "cross_entropy": False, "fused_linear_cross_entropy": False, **LIGER_KERNELS}
    inspect.signature(apply_liger_kernel_to_llama).bind(**options)


@pytest.mark.parametrize(
    ("stub", "original"),
    [
        (RecordedKernels().varlen_attn, varlen.varlen_attn),
        (RecordedKernels().flash_attn_2, flash_attn_varlen_func_2_8),
    ],
    ids=["varlen_attn", "flash_attn_varlen_func"],
)
def test_stub_of_flash_attention_has_the_signature_of_the_original(
    stub: Callable[..., Any], original: Callable[..., Any]
) -> None:
    """Each parameter of the stub has the name, the kind and the position of that of the original."""
    parameters, expected = (list(inspect.signature(each).parameters.values()) for each in (stub, original))
    positional = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == [each.name for each in expected][: len(positional)]
    kinds = {each.name: each.kind for each in expected}
    assert all(kinds.get(each.name) is each.kind for each in parameters)
