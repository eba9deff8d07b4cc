"""Isolation: what a model computes for a document in a packed row is what it computes for it alone.

On CUDA three backends call Flash Attention; here they call stand-ins in plain torch, on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flash_attention_stubs import Kernels, dense, install
from packed_documents import CPU, CUDA, LAYERS, documents, largest_difference, model, packed

from krill.config.schema import HardwareConfig
from krill.data.packing import Rows
from krill.training.batches import RowCollator
from krill.training.compute.head_loss import build_loss
from krill.training.compute.liger import apply_kernels, has_liger

BACKENDS = {
    "varlen": ("varlen", CPU, None),
    "varlen on CUDA": ("varlen", CUDA, "torch"),
    "flash_attention_2": ("flash_attention_2", CUDA, "flash_attn"),
    "flash_attention_3": ("flash_attention_3", CUDA, "flash_attn_interface"),
    "flex": ("flex", CPU, None),
    "sdpa": ("sdpa", CPU, None),
    "eager": ("eager", CPU, None),
}
"""The backend, the device that its boundaries are made for, and the stand-in that it calls."""
TRAINS = [name for name in BACKENDS if name != "flex"]  # it has no backward pass on the CPU

each_backend = pytest.mark.parametrize("name", BACKENDS)
each_micro = pytest.mark.parametrize("micro", [1, 3])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    return install(monkeypatch)


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Flex attention uncompiled: the same function, without the half minute that a compiler takes."""
    with torch.compiler.set_stance("force_eager"):
        yield


def case(
    name: str, rows: Callable[..., Rows], micro: int, family: str = "llama"
) -> tuple[Any, list[Any], Any]:
    """Model, rows and inputs for a backend."""
    backend, device, _ = BACKENDS[name]
    batch, inputs = packed(rows, micro, backend, device)
    return model(family, backend), batch, inputs


@each_mode
@each_micro
@each_backend
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_documents_in_rows_are_as_if_alone(
    family: str, name: str, micro: int, training: bool, make_rows: Callable[..., Rows], kernels: Kernels,
    interpreted: None,
) -> None:  # fmt: skip
    net, batch, inputs = case(name, make_rows, micro, family)
    net.train(training)
    with torch.no_grad():
        logits = net(**inputs).logits
        assert kernels.calls == [BACKENDS[name][2]] * LAYERS if BACKENDS[name][2] else not kernels.calls
        assert largest_difference(net, batch, logits) <= 1e-5


@each_micro
@pytest.mark.parametrize("name", TRAINS)
def test_with_activations_computed_again(name: str, micro: int, make_rows: Callable[..., Rows]) -> None:
    net, batch, inputs = case(name, make_rows, micro)
    plain, _, _ = case(name, make_rows, micro)
    hardware = HardwareConfig(
        name="any", precision="fp32", attention="auto", loss="full", liger=False, compile=False,
        gradient_checkpointing=True, processes=1, sharding="none", workers=0, threads=1, slurm=None,
    )  # fmt: skip
    assert apply_kernels(net, hardware, "cpu") == ["gradient checkpointing"]
    out = net.train()(**inputs)
    out.loss.backward()
    plain.train()(**inputs).loss.backward()
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
    assert largest_difference(net, batch, out.logits) <= 1e-5


@each_mode
@each_micro
@pytest.mark.parametrize("kind", ["full", "chunked"])
@pytest.mark.parametrize("name", TRAINS)
def test_the_loss_is_of_documents_alone(
    name: str, kind: str, micro: int, training: bool, make_rows: Callable[..., Rows]
) -> None:
    net, batch, inputs = case(name, make_rows, micro)
    loss = build_loss(net.train(training), kind, "cpu")
    with torch.no_grad(), loss.training_context():
        found = net(**inputs).loss.item()
    net.set_attn_implementation("sdpa")
    with torch.no_grad():
        nats = torch.cat(
            [
                F.cross_entropy(net(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
                for _, _, ids in documents(batch)
            ]
        )
    assert found == pytest.approx(nats.mean().item(), rel=1e-5)


@pytest.mark.slow
@each_mode
@each_micro
@pytest.mark.parametrize("name", ["varlen", "flash_attention_2", "sdpa"])
def test_compiled(name: str, micro: int, training: bool, make_rows: Callable[..., Rows]) -> None:
    """Through torch.compile's tracing, all but the generated code."""
    _check_compiled("aot_eager", name, micro, training, make_rows)


@pytest.mark.slow
@each_mode
@each_micro
def test_compiled_to_code(micro: int, training: bool, make_rows: Callable[..., Rows]) -> None:
    _check_compiled("inductor", "varlen", micro, training, make_rows)


def _check_compiled(compiler: str, name: str, micro: int, training: bool, rows: Callable[..., Rows]) -> None:
    net, batch, inputs = case(name, rows, micro)
    torch.compiler.reset()
    logits = torch.compile(net.train(training), backend=compiler)(**inputs).logits
    torch.compiler.reset()
    assert largest_difference(net, batch, logits) <= 1e-5


@pytest.mark.slow
@each_mode
def test_flex_compiled(training: bool, make_rows: Callable[..., Rows]) -> None:
    # of one row: for three, torch 2.13 writes C++ for the CPU that no compiler takes
    net, batch, inputs = case("flex", make_rows, 1)
    with torch.no_grad():
        assert largest_difference(net, batch, net.train(training)(**inputs).logits) <= 1e-5


@pytest.mark.skipif(not (torch.cuda.is_available() and has_liger()), reason="Liger wants CUDA")
@each_micro
@each_mode
def test_with_liger(micro: int, training: bool, make_rows: Callable[..., Rows]) -> None:
    net, batch, inputs = case("sdpa", make_rows, micro)
    hardware = HardwareConfig(
        name="any", precision="fp32", attention="sdpa", loss="liger", liger=True, compile=False,
        gradient_checkpointing=False, processes=1, sharding="none", workers=0, threads=1, slurm=None,
    )  # fmt: skip
    net = net.to(CUDA).train(training)
    apply_kernels(net, hardware, "cuda")
    with torch.no_grad():
        logits = net(**{key: value.to(CUDA) for key, value in inputs.items()}).logits
        assert largest_difference(net, batch, logits) <= 1e-4


@each_backend
def test_without_boundaries_the_check_finds_a_leak(
    name: str, make_rows: Callable[..., Rows], interpreted: None
) -> None:
    net, batch, inputs = case(name, make_rows, 3)
    with torch.no_grad():
        logits = net(input_ids=inputs["input_ids"]).logits
        assert largest_difference(net, batch, logits, skip_first=True) > 0.1


@pytest.mark.parametrize("module", ["flash_attn", "flash_attn_interface"])
def test_a_dense_kernel_would_be_noticed(
    module: str, make_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[module], "flash_attn_varlen_func", dense)
    net, _, inputs = case(next(name for name, one in BACKENDS.items() if one[2] == module), make_rows, 3)
    with pytest.raises(AssertionError, match="the dense kernel was called"):
        net(**inputs)


@pytest.mark.parametrize("name", TRAINS)
def test_padding_and_empty_rows_give_finite_logits(name: str, make_rows: Callable[..., Rows]) -> None:
    backend, device, _ = BACKENDS[name]
    made = make_rows([20], 64)
    out = model("llama", backend)(**RowCollator(backend, device)([made.get_row(0), made.make_empty_row()]))
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_backends_give_the_same_loss_and_gradients(family: str, make_rows: Callable[..., Rows]) -> None:
    gradients, values = [], []
    for name in TRAINS:
        net, _, inputs = case(name, make_rows, 2, family)
        loss = net(**inputs).loss
        loss.backward()
        values.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert values == pytest.approx([values[0]] * len(TRAINS), rel=1e-5)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() < 1e-5 * gradients[0].abs().max()


@pytest.mark.parametrize("name", [name for name, one in BACKENDS.items() if one[2]])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flash_attention_gets_one_dtype_under_autocast(
    family: str, name: str, make_rows: Callable[..., Rows], kernels: Kernels
) -> None:
    """Rotary embeddings leave queries and keys in fp32 there; the stand-ins refuse that as the kernels do."""
    net, _, inputs = case(name, make_rows, 3, family)
    with torch.autocast("cpu", torch.bfloat16):
        net(**inputs).loss.backward()
    assert len(kernels.calls) == LAYERS


@pytest.mark.parametrize("backend", ["varlen", "flash_attention_2", "flash_attention_3"])
def test_it_generates_what_sdpa_generates(backend: str) -> None:
    prompt = torch.tensor([[0, 5, 9, 33]])
    net = model("llama", backend).eval()
    answers = []
    for implementation in (net.config._attn_implementation, "sdpa"):
        net.set_attn_implementation(implementation)
        answers.append(
            net.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False,
                eos_token_id=None, use_cache=True,
            ).tolist()
        )  # fmt: skip
    assert answers[0] == answers[1]
