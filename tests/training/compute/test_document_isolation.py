"""Isolation: a model computes the same for a document in a packed row as for the document alone.

On CUDA two backends call Flash Attention; here they call stubs in plain torch, on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flash_attention_stubs import RecordedKernels, install_stubs, refuse_dense
from packed_documents import (
    CPU,
    CUDA,
    LAYERS,
    build_packed_batch,
    build_tiny_model,
    compute_largest_difference,
    iter_documents,
)

from krill.config.schema import HardwareConfig
from krill.data.packing import Rows
from krill.training.batches import RowCollator
from krill.training.compute.backends import has_liger
from krill.training.compute.head_loss import build_loss
from krill.training.compute.liger import apply_kernels

BACKENDS = {
    "varlen": ("varlen", CPU, None),
    "varlen on CUDA": ("varlen", CUDA, "torch"),
    "flash_attention_2": ("flash_attention_2", CUDA, "flash_attn"),
    "flex": ("flex", CPU, None),
    "sdpa": ("sdpa", CPU, None),
    "eager": ("eager", CPU, None),
}
"""For each case: the backend, the device for which its boundaries are built, and the stub that it calls."""
TRAINABLE = [name for name in BACKENDS if name != "flex"]  # flex has no backward pass on the CPU

each_backend = pytest.mark.parametrize("name", BACKENDS)
each_batch_size = pytest.mark.parametrize("batch_size", [1, 3])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> RecordedKernels:
    return install_stubs(monkeypatch)


@pytest.fixture
def eager_flex() -> Iterator[None]:
    """Runs flex attention uncompiled: the same function, without half a minute of compilation."""
    with torch.compiler.set_stance("force_eager"):
        yield


def build_case(
    name: str, make_rows: Callable[..., Rows], batch_size: int, family: str = "llama"
) -> tuple[Any, list[Any], Any]:
    """Returns the model, the rows and the inputs for a case of BACKENDS."""
    backend, device, _ = BACKENDS[name]
    batch, inputs = build_packed_batch(make_rows, batch_size, backend, device)
    return build_tiny_model(family, backend), batch, inputs


@each_mode
@each_batch_size
@each_backend
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits_in_rows_equal_those_of_the_document_alone(
    family: str, name: str, batch_size: int, training: bool, make_rows: Callable[..., Rows], kernels: RecordedKernels,
    eager_flex: None,
) -> None:  # fmt: skip
    model, batch, inputs = build_case(name, make_rows, batch_size, family)
    model.train(training)
    with torch.no_grad():
        logits = model(**inputs).logits
        assert kernels.calls == [BACKENDS[name][2]] * LAYERS if BACKENDS[name][2] else not kernels.calls
        assert compute_largest_difference(model, batch, logits) <= 1e-5


@each_batch_size
@pytest.mark.parametrize("name", TRAINABLE)
def test_isolation_with_gradient_checkpointing(
    name: str, batch_size: int, make_rows: Callable[..., Rows]
) -> None:
    model, batch, inputs = build_case(name, make_rows, batch_size)
    plain, _, _ = build_case(name, make_rows, batch_size)
    hardware = HardwareConfig(
        name="any", precision="fp32", attention="auto", loss="full", liger=False, compile=False,
        gradient_checkpointing=True, processes=1, sharding="none", context_parallel=1, workers=0,
        threads=1, stall=None, slurm=None,
    )  # fmt: skip
    assert apply_kernels(model, hardware, "cpu") == ["gradient checkpointing"]
    out = model.train()(**inputs)
    out.loss.backward()
    plain.train()(**inputs).loss.backward()
    for actual, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=0, atol=0)
    assert compute_largest_difference(model, batch, out.logits) <= 1e-5


@each_mode
@each_batch_size
@pytest.mark.parametrize("kind", ["full", "chunked"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_loss_equals_that_of_the_documents_alone(
    name: str, kind: str, batch_size: int, training: bool, make_rows: Callable[..., Rows]
) -> None:
    model, batch, inputs = build_case(name, make_rows, batch_size)
    loss = build_loss(model.train(training), kind, "cpu")
    with torch.no_grad(), loss.training_context():
        actual = model(**inputs).loss.item()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = torch.cat(
            [
                F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
                for _, _, ids in iter_documents(batch)
            ]
        )
    assert actual == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch_size"), [("varlen", 1), ("varlen", 3), ("flash_attention_2", 3), ("sdpa", 3)]
)
def test_isolation_with_torch_compile(name: str, batch_size: int, make_rows: Callable[..., Rows]) -> None:
    """Covers torch.compile's tracing, without the generated code; only training is compiled."""
    _check_compiled("aot_eager", name, batch_size, make_rows)


@pytest.mark.slow
def test_isolation_with_inductor(make_rows: Callable[..., Rows]) -> None:
    _check_compiled("inductor", "varlen", 3, make_rows)


def _check_compiled(compiler: str, name: str, batch_size: int, make_rows: Callable[..., Rows]) -> None:
    model, batch, inputs = build_case(name, make_rows, batch_size)
    torch.compiler.reset()
    logits = torch.compile(model.train(), backend=compiler)(**inputs).logits
    torch.compiler.reset()
    assert compute_largest_difference(model, batch, logits) <= 1e-5


@pytest.mark.slow
@each_mode
def test_isolation_with_compiled_flex(training: bool, make_rows: Callable[..., Rows]) -> None:
    # one row only: for three, torch 2.13 generates C++ for the CPU that does not compile
    model, batch, inputs = build_case("flex", make_rows, 1)
    with torch.no_grad():
        assert compute_largest_difference(model, batch, model.train(training)(**inputs).logits) <= 1e-5


@pytest.mark.skipif(not (torch.cuda.is_available() and has_liger()), reason="Liger needs CUDA")
@each_batch_size
@each_mode
def test_isolation_with_liger(batch_size: int, training: bool, make_rows: Callable[..., Rows]) -> None:
    model, batch, inputs = build_case("sdpa", make_rows, batch_size)
    hardware = HardwareConfig(
        name="any", precision="fp32", attention="sdpa", loss="liger", liger=True, compile=False,
        gradient_checkpointing=False, processes=1, sharding="none", context_parallel=1, workers=0,
        threads=1, stall=None, slurm=None,
    )  # fmt: skip
    model = model.to(CUDA).train(training)
    apply_kernels(model, hardware, "cuda")
    with torch.no_grad():
        logits = model(**{key: value.to(CUDA) for key, value in inputs.items()}).logits
        assert compute_largest_difference(model, batch, logits) <= 1e-4


@each_backend
def test_check_finds_a_leak_without_boundaries(
    name: str, make_rows: Callable[..., Rows], eager_flex: None
) -> None:
    model, batch, inputs = build_case(name, make_rows, 3)
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"]).logits
        assert compute_largest_difference(model, batch, logits, skip_first=True) > 0.1


def test_check_notices_a_dense_kernel(
    make_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_varlen_func", refuse_dense)
    model, _, inputs = build_case("flash_attention_2", make_rows, 3)
    with pytest.raises(AssertionError, match="the dense kernel was called"):
        model(**inputs)


@pytest.mark.parametrize("name", TRAINABLE)
def test_padding_and_empty_rows_give_finite_logits(name: str, make_rows: Callable[..., Rows]) -> None:
    backend, device, _ = BACKENDS[name]
    rows = make_rows([20], 64)
    inputs = RowCollator(backend, device)([rows.get_row(0), rows.make_empty_row()])
    out = build_tiny_model("llama", backend)(**inputs)
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_backends_give_the_same_loss_and_gradients(family: str, make_rows: Callable[..., Rows]) -> None:
    gradients, values = [], []
    for name in TRAINABLE:
        model, _, inputs = build_case(name, make_rows, 2, family)
        loss = model(**inputs).loss
        loss.backward()
        values.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert values == pytest.approx([values[0]] * len(TRAINABLE), rel=1e-5)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() < 1e-5 * gradients[0].abs().max()


@pytest.mark.parametrize("name", [name for name, one in BACKENDS.items() if one[2]])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flash_attention_gets_one_dtype_under_autocast(
    family: str, name: str, make_rows: Callable[..., Rows], kernels: RecordedKernels
) -> None:
    """Rotary embeddings leave queries and keys in fp32 under autocast, which the stubs reject as the kernels do."""
    model, _, inputs = build_case(name, make_rows, 3, family)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs).loss.backward()
    assert len(kernels.calls) == LAYERS


@pytest.mark.parametrize("backend", ["varlen", "flash_attention_2"])
def test_generation_equals_that_of_sdpa(backend: str) -> None:
    prompt = torch.tensor([[0, 5, 9, 33]])
    model = build_tiny_model("llama", backend).eval()
    generated = []
    for implementation in (model.config._attn_implementation, "sdpa"):
        model.set_attn_implementation(implementation)
        generated.append(
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False,
                eos_token_id=None, use_cache=True,
            ).tolist()
        )  # fmt: skip
    assert generated[0] == generated[1]
