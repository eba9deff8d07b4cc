"""The chunked loss equals the loss of full logits in value, gradients and counts, and never creates all logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from krill.config.schema import TrainConfig
from krill.data.packing import Rows
from krill.errors import UsageError
from krill.training.batches import RowCollator, build_dataloader
from krill.training.compute import backends, cross_entropy, liger
from krill.training.compute.cross_entropy import (
    chunked_cross_entropy,
    compute_errors,
    compute_errors_in_place,
    per_token_cross_entropy,
)
from krill.training.compute.head_loss import (
    FullZLoss,
    HeadLoss,
    Loss,
    _load_liger_loss,
    build_loss,
    probe_head_loss,
    shift_labels,
)
from krill.training.metrics.evaluate import evaluate_batches

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": 7})


def build_model(model_class: type[Any], config: Any) -> Any:
    torch.manual_seed(0)
    model = model_class(config)
    model.set_attn_implementation("varlen")
    model.config.use_cache = False
    return model


def build_llama(tied: bool = True, bias: bool = False, initializer_range: float = 0.3) -> Any:
    config = LlamaConfig(**SIZES, tie_word_embeddings=tied, initializer_range=initializer_range)
    model = build_model(LlamaForCausalLM, config)
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(50))
    return model


def make_batch(rows: int = 3, length: int = 20) -> dict[str, Any]:
    """Returns rows of two documents each; some tokens are not labeled."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (rows, length), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.2, -100)
    positions = torch.arange(length // 2).repeat(2)[None].repeat(rows, 1)
    return {
        "input_ids": ids, "labels": labels, "position_ids": positions,
        "document_lengths": [length // 2] * (2 * rows), "use_cache": False,
    }  # fmt: skip


def run_backward(
    model: PreTrainedModel, loss: Loss, inputs: dict[str, Any], scale: float = 1.0
) -> tuple[float, dict[str, Tensor]]:
    """Returns the loss and the gradients of one forward and backward pass."""
    model.zero_grad()
    with loss.training_context():
        value = model(**inputs).loss
    (value * scale).backward()
    return value.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    actual: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], rel: float
) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=rel)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (actual[1][name] - gradient).norm() <= rel * gradient.norm(), name


# --- the function ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 30),
    vocab_size=st.integers(2, 20),
    has_bias=st.booleans(),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 99),
    errors=st.sampled_from([compute_errors, compute_errors_in_place]),
    multiple=st.sampled_from([1, 8]),
    z_loss=st.sampled_from([0.0, 0.2]),
)
def test_value_and_gradients_equal_those_of_full_logits(
    tokens: int, vocab_size: int, has_bias: bool, ignored: float, seed: int, errors: Any, multiple: int,
    z_loss: float,
) -> None:  # fmt: skip
    """With the errors as they are compiled and as they are not, with a padded vocabulary as on CUDA, and z-loss."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=generator)).requires_grad_()

    hidden, weight = random(tokens, 5), random(vocab_size, 5)
    parameters = [hidden, weight, *([random(vocab_size)] if has_bias else [])]
    labels = torch.randint(vocab_size, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = -100

    logits = F.linear(*parameters)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    penalty = z_loss * logits.logsumexp(-1)[labels != -100].square().sum()
    expected_gradients = torch.autograd.grad((expected + penalty) / 3, parameters)
    bias = parameters[2] if has_bias else None
    with patch.dict(cross_entropy.VOCABULARY_MULTIPLE, {"cpu": multiple}):
        loss = chunked_cross_entropy(hidden, weight, labels, bias, partial(errors, z_loss=z_loss))
    gradients = torch.autograd.grad(loss / 3, parameters)

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 if z_loss else 1e-6)
    token_losses = per_token_cross_entropy(hidden, weight, labels, bias)
    expected_losses = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(token_losses, expected_losses, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("errors", [compute_errors, compute_errors_in_place])
def test_products_have_a_padded_vocabulary(errors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths, linear = [], F.linear
    monkeypatch.setattr(
        F, "linear", lambda x, weight, bias: widths.append(len(weight)) or linear(x, weight, bias)
    )
    monkeypatch.setitem(cross_entropy.VOCABULARY_MULTIPLE, "cpu", 16)
    weight = torch.randn(50, 4, requires_grad=True)
    chunked_cross_entropy(torch.randn(9, 4), weight, torch.arange(9), None, errors).backward()
    assert widths == [64, 64]
    assert weight.grad is not None
    assert weight.grad.shape == (50, 4)


def test_more_chunks_do_not_round_the_weight_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a bf16 weight, as FSDP2 gathers it: the gradient is summed in fp32."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 16, generator=generator).bfloat16() for size in (64 * 7, 40))
    labels = torch.randint(40, (64 * 7,), generator=generator)
    exact = weight.float().requires_grad_()
    F.cross_entropy(F.linear(hidden.float(), exact), labels, reduction="sum").backward()
    errors = []
    for size in (64 * 7, 7):
        monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": size})
        leaf = weight.clone().requires_grad_()
        chunked_cross_entropy(hidden, leaf, labels).backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        errors.append((leaf.grad - exact.grad).norm().item())
    assert errors[1] < 1.1 * errors[0]


def test_product_is_added_without_a_temporary_on_cuda() -> None:
    """torch has this operation for CUDA, and for meta, which has no data."""
    total = torch.zeros(6, 5, device="meta")
    a, b = (torch.zeros(size, dtype=torch.bfloat16, device="meta") for size in ((6, 4), (4, 5)))
    with RecordedCalls() as calls:
        cross_entropy._add_product(total, a, b)
    assert calls.names == ["aten::addmm.dtype_out"]


class RecordedCalls(TorchDispatchMode):
    """Records the names of the operators that are called in the context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def test_frozen_parameters_and_no_grad_compute_no_gradients() -> None:
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4)
    labels = torch.arange(9) % 6
    chunked_cross_entropy(hidden, weight, labels).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).requires_grad


def test_second_backward_pass_raises() -> None:
    hidden = torch.randn(9, 4, requires_grad=True)
    loss = chunked_cross_entropy(hidden, torch.randn(6, 4), torch.arange(9) % 6)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="supports one backward pass"):
        loss.backward()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is created in the context."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("bf16", [False, True])
def test_no_tensor_is_as_large_as_the_logits(bf16: bool) -> None:
    model, inputs = build_llama(), make_batch(8, 40)  # 320 tokens · vocabulary 50 = 16,000 logits
    largest = {}
    for loss in (Loss(), HeadLoss(model)):
        with LargestTensor() as in_training, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            run_backward(model, loss, inputs)
        with (
            LargestTensor() as in_validation,
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            loss.token_losses(
                model, {k: v for k, v in inputs.items() if k not in ("labels", "use_cache")}, inputs["labels"]
            )
        largest[loss.name] = in_training.elements, in_validation.elements
    widest_activation = 320 * 48  # of the model itself
    assert largest["full"] == (320 * 50, 320 * 50)
    assert largest["chunked"] == (widest_activation, widest_activation)


# --- through a model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("items", [None, 37, torch.tensor(37)], ids=["mean", "int", "tensor"])
def test_model_trains_as_with_full_logits(tied: bool, bias: bool, items: Any) -> None:
    model, inputs = build_llama(tied, bias), make_batch()
    if items is not None:
        inputs["num_items_in_batch"] = items
    assert_same(
        run_backward(model, HeadLoss(model), inputs, 3.0), run_backward(model, Loss(), inputs, 3.0), rel=1e-6
    )


def test_autocast_is_as_close_to_fp32_as_full_logits() -> None:
    model, inputs = build_llama(), make_batch(8, 40)
    exact = run_backward(model, Loss(), inputs)[1]["model.embed_tokens.weight"]
    errors = {}
    for loss in (Loss(), HeadLoss(model)):
        with torch.autocast("cpu", torch.bfloat16):
            value, gradients = run_backward(model, loss, inputs)
        gradient = gradients["model.embed_tokens.weight"]
        assert gradient.dtype == torch.float32
        errors[loss.name] = ((gradient - exact).norm() / exact.norm()).item(), value
    assert errors["chunked"][1] == pytest.approx(errors["full"][1], rel=2e-3)
    assert 1e-5 < errors["chunked"][0] < 1.2 * errors["full"][0]  # the lower bound proves that bf16 is used


def test_context_leaves_the_model_unchanged() -> None:
    model, inputs = build_llama(), make_batch()
    inputs.pop("labels")
    before, attributes = model(**inputs).logits, (set(vars(model)), set(vars(model.lm_head)))
    loss = HeadLoss(model)
    with pytest.raises(ZeroDivisionError), loss.training_context():
        raise ZeroDivisionError
    with loss.training_context():
        assert model(**inputs).logits.shape == (3, 20, 32)
    assert (set(vars(model)), set(vars(model.lm_head))) == attributes
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


def test_validation_equals_that_of_full_logits(make_rows: Callable[..., Rows]) -> None:
    model, rows = build_llama(), make_rows([20, 9, 60, 64, 5, 40, 13, 4, 33], 64)
    collate = RowCollator("varlen", torch.device("cpu"))

    def evaluate(loss: Loss) -> Any:
        (totals,) = evaluate_batches(model, build_dataloader(rows, [[0, 1], [2]], collate, 0), 1, loss)
        return totals

    actual, expected = evaluate(HeadLoss(model)), evaluate(Loss())
    assert actual.tokens == expected.tokens > 0
    assert actual.nats == pytest.approx(expected.nats, rel=1e-6)
    assert actual.text_nats == pytest.approx(expected.text_nats, rel=1e-6)
    assert actual.text_nats < actual.nats


# --- models that change their logits -----------------------------------------------------------------------


def build_granite() -> Any:
    return build_model(GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0))


def build_cohere() -> Any:
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    return build_model(CohereForCausalLM, CohereConfig(**sizes, logit_scale=0.25))


def build_gemma2(cap: float | None) -> Any:
    return build_model(Gemma2ForCausalLM, Gemma2Config(**SIZES, final_logit_softcapping=cap))


class CustomLossModel(LlamaForCausalLM):
    def forward(self, labels: Any = None, **inputs: Any) -> Any:  # type: ignore[override]
        logits = super().forward(**inputs).logits
        return SimpleNamespace(logits=logits, loss=labels is not None and logits.float().square().mean())


@pytest.mark.parametrize("build", [build_llama, build_granite, build_cohere, lambda: build_gemma2(None)])
def test_auto_uses_the_chunked_loss_where_it_is_equal(build: Callable[[], Any]) -> None:
    model, inputs = build(), make_batch()
    model.train()
    loss = build_loss(model, "auto", "cpu")
    assert loss.name == "chunked"
    assert model.training
    assert model.config._attn_implementation == "varlen"
    if "attn_logit_softcapping" in vars(model.config):
        model.set_attn_implementation("eager")
    assert_same(run_backward(model, loss, inputs), run_backward(model, Loss(), inputs), rel=2e-6)


@pytest.mark.parametrize(
    "build", [lambda: build_gemma2(30.0), lambda: build_model(CustomLossModel, LlamaConfig(**SIZES))]
)
def test_auto_falls_back_to_full_logits_and_reports_it(build: Callable[[], Any]) -> None:
    model = build()
    loss = build_loss(model, "auto", "cpu")
    assert type(loss) is Loss
    assert loss.name.startswith("full: the model")
    with pytest.raises(UsageError, match=r"use hardware\.loss=full"):
        build_loss(model, "chunked", "cpu")
    with pytest.raises(UsageError, match=r"\[cuda\]"):
        build_loss(model, "liger", "cpu")


@pytest.mark.parametrize(
    ("build", "expected"), [(build_llama, HeadLoss), (lambda: build_gemma2(30.0), FullZLoss)]
)
def test_z_loss_is_in_the_gradient_alone(build: Callable[[], Any], expected: type[Loss]) -> None:
    model, inputs = build(), make_batch()
    model.set_attn_implementation("eager")
    loss = build_loss(model, "auto", "cpu", z_loss=0.1)
    assert type(loss) is expected
    assert loss.name.endswith(", z-loss 0.1")

    logits = model(**inputs).logits
    targets = shift_labels(inputs["labels"])
    value = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (value + 0.1 * logits.logsumexp(-1)[targets != -100].square().mean()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert_same(run_backward(model, loss, inputs), (value.item(), gradients), rel=1e-5)


def test_a_model_that_computes_its_own_loss_has_no_z_loss() -> None:
    with pytest.raises(UsageError, match=r"set optimizer\.z_loss=0"):
        build_loss(build_model(CustomLossModel, LlamaConfig(**SIZES)), "auto", "cpu", z_loss=0.1)


def test_the_probe_uses_no_random_numbers() -> None:
    model, before = build_llama(), torch.get_rng_state()
    assert probe_head_loss(model) is None
    assert torch.equal(torch.get_rng_state(), before)


# --- runs --------------------------------------------------------------------------------------------------

Train, Configure, Losses = Callable[..., Path], Callable[..., TrainConfig], Callable[[Path], list[float]]


def test_runs_with_chunked_and_full_loss_agree(
    train_in: Train, make_config: Configure, read_losses: Losses, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ("batch.gradient_accumulation_steps=2", "eval_every=2", "optimizer.z_loss=0.01")
    with caplog.at_level("INFO", "krill"):
        runs = [
            train_in(make_config(*overrides, f"hardware.loss={name}"), name) for name in ("chunked", "full")
        ]
    assert "loss chunked, z-loss 0.01" in caplog.text
    chunked, full = map(read_losses, runs)
    assert len(chunked) == 6
    assert chunked == pytest.approx(full, rel=1e-5)


def test_gradient_checkpointing_is_bitwise_identical(
    train_in: Train, make_config: Configure, read_losses: Losses
) -> None:
    runs = [
        train_in(make_config(f"hardware.gradient_checkpointing={value}"), value)
        for value in ("false", "true")
    ]
    stored, recomputed = ((run / "model" / "model.safetensors").read_bytes() for run in runs)
    assert recomputed == stored
    assert read_losses(runs[0]) == read_losses(runs[1])


def test_gradient_checkpointing_recomputes_with_the_documents() -> None:
    model, inputs = build_llama(), make_batch()
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = run_backward(model, HeadLoss(model), inputs)
    calls_without = len(calls)
    liger._enable_gradient_checkpointing(model)
    actual = run_backward(model, HeadLoss(model), inputs)
    assert (calls_without, len(calls)) == (1, 3)
    assert_same(actual, expected, rel=0.0)


# --- kernels requested by name -----------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["hardware.loss=liger", "hardware.liger=true", "hardware.compile=true"])
def test_unsupported_kernels_are_rejected_with_a_remedy(
    train_in: Train, make_config: Configure, override: str
) -> None:
    key = override.partition("=")[0]
    with pytest.raises(UsageError, match=rf"{key}.*CUDA device.*use {key}="):
        train_in(make_config(override))


class LigerStub:
    """The part of liger_kernel.transformers.monkey_patch that krill calls."""

    MODEL_TYPE_TO_APPLY_LIGER_FN: dict[str, None] = {"llama": None}  # noqa: RUF012
    kernels: dict[str, Any]

    def _apply_liger_kernel_to_instance(self, model: Any, **kernels: Any) -> None:
        self.kernels = kernels


@pytest.fixture
def liger_stub(monkeypatch: pytest.MonkeyPatch) -> LigerStub:
    """Simulates an installed Liger: records its kernels, and computes its loss with torch."""

    class FusedLoss(torch.nn.Module):
        def __init__(
            self,
            ignore_index: int,
            reduction: str,
            lse_square_scale: float = 0.0,
            return_z_loss: bool = False,
        ):
            super().__init__()
            self.options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}
            self.z_loss, self.returns_z_loss = lse_square_scale, return_z_loss

        def forward(self, weight: Tensor, hidden: Tensor, target: Tensor, bias: Tensor | None = None) -> Any:
            logits = F.linear(hidden, weight, bias)
            loss = F.cross_entropy(logits, target, **self.options)
            if not self.returns_z_loss:
                return loss
            z_loss = self.z_loss * logits.logsumexp(-1)[target != -100].square().sum()
            return SimpleNamespace(loss=loss + z_loss, z_loss=z_loss)  # Liger's CrossEntropyOutput

    stub = LigerStub()
    package = SimpleNamespace(LigerFusedLinearCrossEntropyLoss=FusedLoss)
    for name, module in {
        "": SimpleNamespace(),
        ".transformers": package,
        ".transformers.monkey_patch": stub,
    }.items():
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)
    monkeypatch.setattr("krill.training.compute.head_loss._load_liger_loss", _load_liger_loss.__wrapped__)
    for module in (liger, backends):
        monkeypatch.setattr(module, "has_liger", lambda: True)
    return stub


def test_liger_is_used_if_installed(liger_stub: LigerStub, make_config: Configure) -> None:
    model, inputs = build_llama(bias=True), make_batch()
    hardware = make_config().hardware
    assert liger.apply_kernels(model, hardware, "cpu") == []
    assert liger.apply_kernels(model, hardware, "cuda", is_compiled=True) == []
    forced = make_config("hardware.liger=true").hardware
    assert liger.apply_kernels(model, forced, "cuda", is_compiled=True) == ["liger"]
    assert liger.apply_kernels(model, hardware, "cuda") == ["liger"]
    assert liger_stub.kernels == {
        "rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False,
    }  # fmt: skip
    assert build_loss(model, "auto", "cpu").name == "chunked"
    assert build_loss(model, "auto", "cuda").name == "chunked"
    loss = build_loss(model, "liger", "cuda")
    assert loss.name == "liger"
    assert_same(run_backward(model, loss, inputs), run_backward(model, Loss(), inputs), rel=1e-6)
    losses = [build_loss(model, name, "cuda", z_loss=0.1) for name in ("liger", "full")]
    assert_same(*[run_backward(model, loss, inputs) for loss in losses], rel=1e-5)


def test_model_without_liger_kernels(liger_stub: LigerStub, make_config: Configure) -> None:
    model = build_granite()
    assert liger.apply_kernels(model, make_config().hardware, "cuda") == []
    assert liger.apply_kernels(model, make_config("hardware.liger=false").hardware, "cuda") == []
    with pytest.raises(UsageError, match=r"no kernels for granite; use hardware\.liger=auto"):
        liger.apply_kernels(model, make_config("hardware.liger=true").hardware, "cuda")
    assert not hasattr(liger_stub, "kernels")
