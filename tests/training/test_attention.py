"""Isolation: what a model computes for a document in a packed row is what it computes for it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from krill.config.schema import Transformer
from krill.data.packing import Row, Rows
from krill.errors import UsageError
from krill.models.build import build
from krill.training import attention
from krill.training.batches import Collate

CPU = torch.device("cpu")
BACKENDS = ("varlen", "sdpa", "eager")
LENGTHS = [30, 20, 14, 40, 9, 10, 25, 37, 12, 7, 3, 50]
WIDTH = 64


def model(family: Any, backend: str) -> torch.nn.Module:
    """Two layers with weights so large that a leak changes everything."""
    torch.manual_seed(1)
    config = Transformer(
        name="tiny", family=family, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=WIDTH,
        rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.25,
    )  # fmt: skip
    return build(config, 50, bos_id=0, eos_id=1, pad_id=2, attention=backend)


def documents(batch: list[Row]) -> Iterator[tuple[int, slice, Tensor]]:
    """(row, place, ids) of every document in a batch, padding left out."""
    for number, row in enumerate(batch):
        start = 0
        for length in row.lengths.tolist():
            place = slice(start, start + length)
            start += length
            if row.input_ids[place][0] != 2:
                yield number, place, torch.from_numpy(row.input_ids[place])


def packed(rows: Callable[..., Rows], micro: int, backend: str) -> tuple[list[Row], dict[str, Any]]:
    """The rows of most documents of a packed text, as krill hands them to the model."""
    made = rows(LENGTHS, WIDTH)
    batch = sorted(map(made.row, range(len(made))), key=lambda row: -len(row.lengths))[:micro]
    assert len(batch[0].lengths) >= 3, "no row here holds several documents"
    inputs = Collate(backend, CPU)(batch)
    del inputs["labels"]
    return batch, inputs


def largest_difference(
    net: torch.nn.Module, batch: list[Row], logits: Tensor, skip_first: bool = False
) -> float:
    """Between the logits in rows and those of each document alone, by plain causal attention."""
    net.set_attn_implementation("sdpa")
    differences = [
        (logits[row, place] - net(input_ids=ids[None]).logits[0]).abs().max().item()
        for row, place, ids in documents(batch)
        if not (skip_first and place.start == 0)
    ]
    return max(differences)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_documents_in_rows_are_as_if_alone(
    family: str, backend: str, micro: int, training: bool, rows: Callable[..., Rows]
) -> None:
    net = model(family, backend).train(training)
    batch, inputs = packed(rows, micro, backend)
    with torch.no_grad():
        assert largest_difference(net, batch, net(**inputs).logits) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_boundaries_the_test_above_would_fail(backend: str, rows: Callable[..., Rows]) -> None:
    net = model("llama", backend)
    batch, inputs = packed(rows, 3, backend)
    with torch.no_grad():
        logits = net(input_ids=inputs["input_ids"]).logits
        assert largest_difference(net, batch, logits, skip_first=True) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_empty_rows_give_finite_logits(backend: str, rows: Callable[..., Rows]) -> None:
    made = rows([20], WIDTH)
    inputs = Collate(backend, CPU)([made.row(0), made.empty()])
    out = model("llama", backend)(**inputs)
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_backends_give_the_same_loss_and_gradients(family: str, rows: Callable[..., Rows]) -> None:
    made = rows(LENGTHS, WIDTH)
    gradients, values = [], []
    for backend in BACKENDS:
        net = model(family, backend)
        loss = net(**Collate(backend, CPU)([made.row(0), made.row(1)])).loss
        loss.backward()
        values.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert values == pytest.approx([values[0]] * len(BACKENDS), rel=1e-5)
    scale = gradients[0].abs().max()
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() < 1e-5 * scale


def test_varlen_generates_what_sdpa_generates() -> None:
    prompt = torch.tensor([[0, 5, 9, 33]])
    net = model("llama", "varlen").eval()
    answers = []
    for backend in ("varlen", "sdpa"):
        net.set_attn_implementation(backend)
        answers.append(
            net.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False,
                eos_token_id=None, use_cache=True,
            ).tolist()
        )  # fmt: skip
    assert answers[0] == answers[1]


def test_on_cuda_varlen_gets_the_running_sum_of_lengths(rows: Callable[..., Rows]) -> None:
    made = rows(LENGTHS, WIDTH)
    batch = [made.row(0), made.row(1), made.empty()]
    inputs = Collate("varlen", torch.device("cuda"))(batch)
    lengths = [length for row in batch for length in row.lengths.tolist()]
    ends = inputs["cu_seq_lens_q"]
    assert ends.dtype == torch.int32
    assert ends[0] == 0
    assert ends[-1] == 3 * WIDTH
    assert ends.diff().tolist() == lengths
    assert inputs["max_length_q"] == max(lengths)
    assert "document_lengths" not in inputs


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_the_others_take_boundaries_from_position_ids(backend: str) -> None:
    assert attention.boundaries(backend, [3, 5], torch.device("cuda")) == {}


@pytest.mark.parametrize(
    ("asked", "device", "precision", "chosen"),
    [
        ("auto", "cpu", "fp32", "varlen"),
        ("auto", "cpu", "bf16", "varlen"),
        ("auto", "cuda", "bf16", "varlen"),
        ("auto", "cuda", "fp32", "sdpa"),
        ("varlen", "cpu", "fp32", "varlen"),
        ("varlen", "cuda", "bf16", "varlen"),
        ("sdpa", "cuda", "bf16", "sdpa"),
        ("eager", "cuda", "fp32", "eager"),
    ],
)
def test_choice_of_backend(asked: str, device: str, precision: str, chosen: str) -> None:
    assert attention.choose(asked, device, precision) == chosen


def test_varlen_in_fp32_on_cuda_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"hardware\.precision=bf16"):
        attention.choose("varlen", "cuda", "fp32")
