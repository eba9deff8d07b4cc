"""The loss without logits is the loss with them: value, gradients, counts; and no tensor of all logits is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from krill.training.compute import cross_entropy, liger
from krill.training.compute.cross_entropy import chunked_cross_entropy, per_token_cross_entropy
from krill.training.compute.head_loss import HeadLoss, Loss, _load_liger_loss, build_loss, probe_head_loss
from krill.training.metrics.evaluate import evaluate_batches

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": 7})


def made(make: type[Any], config: Any) -> Any:
    torch.manual_seed(0)
    model = make(config)
    model.set_attn_implementation("varlen")
    model.config.use_cache = False
    return model


def llama(tied: bool = True, bias: bool = False, spread: float = 0.3) -> Any:
    model = made(LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=tied, initializer_range=spread))
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(50))
    return model


def batch(rows: int = 3, length: int = 20) -> dict[str, Any]:
    """Two documents a row; starts and some others are not labelled."""
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (rows, length), generator=chance)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=chance) < 0.2, -100)
    places = torch.arange(length // 2).repeat(2)[None].repeat(rows, 1)
    return {
        "input_ids": ids, "labels": labels, "position_ids": places,
        "document_lengths": [length // 2] * (2 * rows), "use_cache": False,
    }  # fmt: skip


def passed(
    model: PreTrainedModel, loss: Loss, inputs: dict[str, Any], scale: float = 1.0
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one forward and backward pass."""
    model.zero_grad()
    with loss.training_context():
        found = model(**inputs).loss
    (found * scale).backward()
    return found.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], rel: float
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=rel)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= rel * gradient.norm(), name


# --- the function ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 30),
    vocabulary=st.integers(2, 20),
    bias=st.booleans(),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_are_those_of_full_logits(
    tokens: int, vocabulary: int, bias: bool, ignored: float, seed: int
) -> None:
    chance = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=chance)).requires_grad_()

    hidden, weight = numbers(tokens, 5), numbers(vocabulary, 5)
    parameters = [hidden, weight, *([numbers(vocabulary)] if bias else [])]
    labels = torch.randint(vocabulary, (tokens,), generator=chance)
    labels[torch.rand(tokens, generator=chance) < ignored] = -100

    logits = F.linear(*parameters)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    wanted = torch.autograd.grad(expected / 3, parameters)
    extra = parameters[2] if bias else None
    found = chunked_cross_entropy(hidden, weight, labels, extra)
    got = torch.autograd.grad(found / 3, parameters)

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(
        per_token_cross_entropy(hidden, weight, labels, extra), each, rtol=1e-6, atol=1e-5
    )


def test_frozen_parts_get_no_gradient_and_no_grad_computes_none() -> None:
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4)
    labels = torch.arange(9) % 6
    chunked_cross_entropy(hidden, weight, labels).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).requires_grad


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    hidden = torch.randn(9, 4, requires_grad=True)
    loss = chunked_cross_entropy(hidden, torch.randn(6, 4), torch.arange(9) % 6)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once"):
        loss.backward()


class Largest(TorchDispatchMode):
    """The most elements that one tensor of the passes inside had."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("bf16", [False, True])
def test_nothing_as_large_as_the_logits_is_made(bf16: bool) -> None:
    model, inputs = llama(), batch(8, 40)  # 320 tokens · vocabulary 50 = 16,000 logits
    largest = {}
    for loss in (Loss(), HeadLoss(model)):
        with Largest() as seen, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            passed(model, loss, inputs)
        with Largest() as seen_too, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss.token_losses(
                model, {k: v for k, v in inputs.items() if k not in ("labels", "use_cache")}, inputs["labels"]
            )
        largest[loss.name] = seen.elements, seen_too.elements
    others = 320 * 48  # the widest activation of the model itself
    assert largest["full"] == (320 * 50, 320 * 50)
    assert largest["chunked"] == (others, others)


# --- through a model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("items", [None, 37, torch.tensor(37)], ids=["mean", "int", "tensor"])
def test_a_model_trains_as_with_full_logits(tied: bool, bias: bool, items: Any) -> None:
    model, inputs = llama(tied, bias), batch()
    if items is not None:
        inputs["num_items_in_batch"] = items
    assert_same(passed(model, HeadLoss(model), inputs, 3.0), passed(model, Loss(), inputs, 3.0), rel=1e-6)


def test_under_autocast_it_is_as_near_to_fp32_as_full_logits_are() -> None:
    model, inputs = llama(), batch(8, 40)
    exact = passed(model, Loss(), inputs)[1]["model.embed_tokens.weight"]
    away = {}
    for loss in (Loss(), HeadLoss(model)):
        with torch.autocast("cpu", torch.bfloat16):
            value, gradients = passed(model, loss, inputs)
        gradient = gradients["model.embed_tokens.weight"]
        assert gradient.dtype == torch.float32
        away[loss.name] = ((gradient - exact).norm() / exact.norm()).item(), value
    assert away["chunked"][1] == pytest.approx(away["full"][1], rel=2e-3)
    assert 1e-5 < away["chunked"][0] < 1.2 * away["full"][0]  # bf16 it is


def test_afterwards_the_model_is_a_plain_one() -> None:
    model, inputs = llama(), batch()
    inputs.pop("labels")
    before, attributes = model(**inputs).logits, (set(vars(model)), set(vars(model.lm_head)))
    loss = HeadLoss(model)
    with pytest.raises(ZeroDivisionError), loss.training_context():
        raise ZeroDivisionError
    with loss.training():
        assert model(**inputs).logits.shape == (3, 20, 32)
    assert (set(vars(model)), set(vars(model.lm_head))) == attributes
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


def test_validation_is_the_same_to_the_last_digits(make_rows: Callable[..., Rows]) -> None:
    model, packed = llama(), make_rows([20, 9, 60, 64, 5, 40, 13, 4, 33], 64)
    collate = RowCollator("varlen", torch.device("cpu"))

    def scored(loss: Loss) -> Any:
        (found,) = evaluate_batches(model, build_dataloader(packed, [[0, 1], [2]], collate, 0), 1, loss)
        return found

    found, expected = scored(HeadLoss(model)), scored(Loss())
    assert found.tokens == expected.tokens > 0
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    assert found.text_nats == pytest.approx(expected.text_nats, rel=1e-6)
    assert found.text_nats < found.nats


# --- models that do something to their logits --------------------------------------------------------------


def granite() -> Any:
    return made(GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0))


def cohere() -> Any:
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    return made(CohereForCausalLM, CohereConfig(**sizes, logit_scale=0.25))


def gemma2(cap: float | None) -> Any:
    return made(Gemma2ForCausalLM, Gemma2Config(**SIZES, final_logit_softcapping=cap))


class OwnLoss(LlamaForCausalLM):
    def forward(self, labels: Any = None, **inputs: Any) -> Any:  # type: ignore[override]
        logits = super().forward(**inputs).logits
        return SimpleNamespace(logits=logits, loss=labels is not None and logits.float().square().mean())


@pytest.mark.parametrize("make", [llama, granite, cohere, lambda: gemma2(None)])
def test_where_it_is_right_it_is_used_and_equal(make: Callable[[], Any]) -> None:
    model, inputs = make(), batch()
    model.train()
    loss = build_loss(model, "auto", "cpu")
    assert loss.name == "chunked"
    assert model.training
    assert model.config._attn_implementation == "varlen"
    if "attn_logit_softcapping" in vars(model.config):
        model.set_attn_implementation("eager")
    assert_same(passed(model, loss, inputs), passed(model, Loss(), inputs), rel=2e-6)


@pytest.mark.parametrize("make", [lambda: gemma2(30.0), lambda: made(OwnLoss, LlamaConfig(**SIZES))])
def test_where_it_would_be_wrong_full_logits_are_taken_and_said(make: Callable[[], Any]) -> None:
    model = make()
    loss = build_loss(model, "auto", "cpu")
    assert type(loss) is Loss
    assert loss.name.startswith("full: the model")
    with pytest.raises(UsageError, match=r"use hardware\.loss=full"):
        build_loss(model, "chunked", "cpu")
    with pytest.raises(UsageError, match=r"krill\[cuda\]"):
        build_loss(model, "liger", "cpu")


def test_the_probe_uses_no_random_numbers() -> None:
    model, before = llama(), torch.get_rng_state()
    assert probe_head_loss(model) is None
    assert torch.equal(torch.get_rng_state(), before)


# --- whole runs --------------------------------------------------------------------------------------------

Train, Configure, Losses = Callable[..., Path], Callable[..., TrainConfig], Callable[[Path], list[float]]


def test_a_run_with_either_loss_goes_the_same_way(
    train_in: Train, make_config: Configure, read_losses: Losses, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("batch.gradient_accumulation_steps=2", "eval_every=2")
    with caplog.at_level("INFO", "krill"):
        runs = [train_in(make_config(*words, f"hardware.loss={name}"), name) for name in ("chunked", "full")]
    assert "loss chunked" in caplog.text
    chunked, full = map(read_losses, runs)
    assert len(chunked) == 6
    assert chunked == pytest.approx(full, rel=1e-5)


def test_recomputed_activations_change_no_bit(
    train_in: Train, make_config: Configure, read_losses: Losses
) -> None:
    runs = [
        train_in(make_config(f"hardware.gradient_checkpointing={word}"), word) for word in ("false", "true")
    ]
    kept, again = ((run / "model" / "model.safetensors").read_bytes() for run in runs)
    assert kept == again
    assert read_losses(runs[0]) == read_losses(runs[1])


def test_recomputation_happens_and_sees_the_documents() -> None:
    model, inputs = llama(), batch()
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = passed(model, HeadLoss(model), inputs)
    once = len(calls)
    liger._enable_gradient_checkpointing(model)
    found = passed(model, HeadLoss(model), inputs)
    assert (once, len(calls)) == (1, 3)
    assert_same(found, expected, rel=0.0)


def test_only_the_training_pass_is_compiled_and_names_stay_plain(
    train_in: Train, make_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    class Compiled(torch.nn.Module):
        """As torch.compile's: the model is a module inside."""

        def __init__(self, model: torch.nn.Module):
            super().__init__()
            self._orig_mod = model

        def forward(self, **inputs: Any) -> Any:
            compiled.append("training" if self._orig_mod.training else "other")
            return self._orig_mod(**inputs)

    monkeypatch.setattr(torch, "compile", Compiled)
    monkeypatch.setattr(liger, "check_kernels", lambda *_: None)
    folder = train_in(make_config("hardware.compile=true"), "compiled")
    assert compiled == ["training"] * 4
    plain = train_in(make_config(), "plain")
    for name in ("model", "checkpoints/checkpoint-4"):
        mine, theirs = (run / name / "model.safetensors" for run in (folder, plain))
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_torch_compile_takes_the_loss_as_it_is() -> None:
    model, inputs = llama(), batch()
    inputs.pop("document_lengths")
    expected = passed(model, HeadLoss(model), inputs)
    loss, compiled = HeadLoss(model), torch.compile(model, backend="eager")
    for _ in range(2):
        model.zero_grad()
        with loss.training_context():
            found = compiled(**inputs).loss
        found.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        assert_same((found.item(), gradients), expected, rel=1e-6)


# --- what is asked for by name -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["hardware.loss=liger", "hardware.liger=true", "hardware.compile=true"])
def test_what_the_machine_lacks_is_an_error_that_says_what_to_type(
    train_in: Train, make_config: Configure, word: str
) -> None:
    key = word.partition("=")[0]
    with pytest.raises(UsageError, match=rf"{key}.*CUDA device.*write {key}="):
        train_in(make_config(word))


class Ligers:
    """liger_kernel.transformers.monkey_patch, as far as it is called."""

    MODEL_TYPE_TO_APPLY_LIGER_FN: dict[str, None] = {"llama": None}  # noqa: RUF012
    asked: dict[str, Any]

    def _apply_liger_kernel_to_instance(self, model: Any, **asked: Any) -> None:
        self.asked = asked


@pytest.fixture
def ligers(monkeypatch: pytest.MonkeyPatch) -> Ligers:
    """Liger, as if it were installed: its kernels by name only, its loss by torch's."""

    class Fused(torch.nn.Module):
        def __init__(self, ignore_index: int, reduction: str):
            super().__init__()
            self.how: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}

        def forward(
            self, weight: Tensor, hidden: Tensor, target: Tensor, bias: Tensor | None = None
        ) -> Tensor:
            return F.cross_entropy(F.linear(hidden, weight, bias), target, **self.how)

    stand_in = Ligers()
    package = SimpleNamespace(LigerFusedLinearCrossEntropyLoss=Fused)
    for name, module in {
        "": SimpleNamespace(),
        ".transformers": package,
        ".transformers.monkey_patch": stand_in,
    }.items():
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)
    monkeypatch.setattr("krill.training.compute.head_loss._load_liger_loss", _load_liger_loss.__wrapped__)
    monkeypatch.setattr(liger, "has_liger", lambda: True)
    return stand_in


def test_liger_is_taken_where_it_is_there_and_its_loss_through_the_same_seam(
    ligers: Ligers, make_config: Configure
) -> None:
    model, inputs = llama(bias=True), batch()
    hardware = make_config().hardware
    assert liger.apply_kernels(model, hardware, "cpu") == []
    assert liger.apply_kernels(model, hardware, "cuda") == ["liger"]
    assert ligers.asked == {
        "rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False,
    }  # fmt: skip
    assert build_loss(model, "auto", "cpu").name == "chunked"
    loss = build_loss(model, "auto", "cuda")
    assert loss.name == "liger"
    assert_same(passed(model, loss, inputs), passed(model, Loss(), inputs), rel=1e-6)


def test_a_model_that_liger_does_not_know(ligers: Ligers, make_config: Configure) -> None:
    model = granite()
    assert liger.apply_kernels(model, make_config().hardware, "cuda") == []
    assert liger.apply_kernels(model, make_config("hardware.liger=false").hardware, "cuda") == []
    with pytest.raises(UsageError, match=r"no kernels for granite; use hardware\.liger=auto"):
        liger.apply_kernels(model, make_config("hardware.liger=true").hardware, "cuda")
    assert not hasattr(ligers, "asked")
