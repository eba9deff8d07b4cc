"""What tells a backend where documents end, windows, dropout and caps in each, and which one is chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flash_attention_stubs import install
from packed_documents import LENGTHS, WIDTH
from torch import Tensor

from krill.data.packing import Rows
from krill.errors import UsageError
from krill.training.batches import RowCollator
from krill.training.compute import attention, attention_kernels
from krill.training.compute.attention_kernels import DocumentBoundaries
from krill.training.compute.backends import select_attention_backend

SHAPE = {"heads": 4, "fewer": 2, "width": 8}


def states(lengths: list[int]) -> list[Tensor]:
    """Queries, keys and values, (1, H, T, D), of one row of documents."""
    chance = torch.Generator().manual_seed(0)
    heads = (SHAPE["heads"], SHAPE["fewer"], SHAPE["fewer"])
    return [torch.randn(1, count, sum(lengths), SHAPE["width"], generator=chance) for count in heads]


def by_pairs(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], window: int | None, cap: float = 0
) -> Tensor:
    """Attention within documents and `window` from all pairs, (1, T, H, D)."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    back = torch.arange(len(document))[:, None] - torch.arange(len(document))
    near = (document[:, None] == document) & (back >= 0) & (back < (window or len(document)))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * SHAPE["width"] ** -0.5
    scores = cap * torch.tanh(scores / cap) if cap else scores
    return (scores.masked_fill(~near, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def told(lengths: list[int], device: str) -> dict[str, Any]:
    return attention.build_boundary_kwargs("varlen", lengths, torch.device(device))


def test_on_cuda_boundaries_are_the_running_sum_of_lengths(make_rows: Callable[..., Rows]) -> None:
    made = make_rows(LENGTHS, WIDTH)
    batch = [made.get_row(0), made.get_row(1), made.make_empty_row()]
    lengths = [length for row in batch for length in row.lengths.tolist()]
    for backend in ("varlen", "flash_attention_2", "flash_attention_3"):
        inputs = RowCollator(backend, torch.device("cuda"))(batch)
        ends = inputs["cu_seq_lens_q"]
        assert ends.dtype == torch.int32
        assert ends[0] == 0
        assert ends[-1] == 3 * WIDTH
        assert ends.diff().tolist() == lengths
        assert inputs["max_length_q"] == max(lengths)
        assert "document_lengths" not in inputs


@pytest.mark.parametrize("backend", ["flex", "sdpa", "eager"])
def test_the_others_take_boundaries_from_position_ids(backend: str) -> None:
    assert attention.build_boundary_kwargs(backend, [3, 5], torch.device("cuda")) == {}


@pytest.mark.parametrize("window", [None, 1, 7, 16, 40, 200])
@pytest.mark.parametrize("name", ["varlen", "torch", "varlen_2", "varlen_3"])
def test_a_window_stays_within_its_document(
    name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK_SIZE", 16)  # so that documents are longer than blocks
    install(monkeypatch)
    lengths = [100, 3, 41, 56]
    q, k, v = states(lengths)
    function = attention.ATTENTION_FUNCTIONS["varlen" if name == "torch" else name]
    boundaries = told(lengths, "cpu" if name == "varlen" else "cuda")
    out, _ = function(torch.nn.Module(), q, k, v, None, sliding_window=window, **boundaries)
    torch.testing.assert_close(out, by_pairs(q, k, v, lengths, window), rtol=0, atol=1e-5)


def test_a_window_costs_no_mask_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def sdpa(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        seen.append(q.shape[2] * k.shape[2])
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    attention_kernels.causal_attention(*states([4096]), None, 256, 0.0)
    assert sum(seen) <= 4096 * 2 * 256


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", ["varlen", "varlen_2", "varlen_3"])
def test_one_query_sees_what_its_cache_holds(
    name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    q, k, v = states([20])
    out, _ = attention.ATTENTION_FUNCTIONS[name](
        torch.nn.Module(), q[:, :, -1:], k, v, None, sliding_window=window
    )
    torch.testing.assert_close(out, by_pairs(q, k, v, [20], window)[:, -1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["varlen_2", "varlen_3"])
def test_scores_are_capped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    lengths = [12, 8]
    q, k, v = states(lengths)
    out, _ = attention.ATTENTION_FUNCTIONS[name](
        torch.nn.Module(), 9 * q, k, v, None, softcap=2.0, **told(lengths, "cuda")
    )
    torch.testing.assert_close(out, by_pairs(9 * q, k, v, lengths, None, cap=2.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["varlen", "varlen_2"])
def test_dropout_drops_weights_and_no_document_sees_another(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    lengths, share = [150, 60], 0.5
    q, k, _ = states(lengths)
    v = torch.ones_like(k)
    v[:, :, :150] = 0  # the first document's values
    boundaries = told(lengths, "cpu" if name == "varlen" else "cuda")
    torch.manual_seed(0)
    out, _ = attention.ATTENTION_FUNCTIONS[name](
        torch.nn.Module(), q, k, v, None, dropout=share, **boundaries
    )
    assert out[:, :150].abs().max() == 0
    assert out[:, 150:].std() > 0.05  # weights no longer sum to 1,
    assert out[:, 150:].mean() == pytest.approx(1, abs=0.1)  # but on average
    assert (out[:, 150] == 0).float().mean() == pytest.approx(share, abs=0.4)


def test_narrow_heads_are_padded_for_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)  # refuses others than a multiple of 8
    q, k, v = (x[..., :4] for x in states([12, 8]))
    ends = told([12, 8], "cuda")
    out, _ = attention.varlen_attention_forward(torch.nn.Module(), q, k, v, None, **ends)
    expected, _ = attention.varlen_attention_forward(torch.nn.Module(), q, k, v, None, **told([12, 8], "cpu"))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_rows_are_documents_where_none_are_told() -> None:
    q, k = torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 9, 8)
    documents = DocumentBoundaries.from_rows(q, k)
    assert documents.cu_seqlens_q.tolist() == [0, 1, 2]
    assert documents.cu_seqlens_k.tolist() == [0, 9, 18]
    assert (documents.max_seqlen_q, documents.max_seqlen_k) == (1, 9)


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
        ("flex", "cuda", "fp32", "flex"),
        ("flash_attention_2", "cuda", "bf16", "flash_attention_2"),
        ("flash_attention_3", "cuda", "bf16", "flash_attention_3"),
        ("eager", "cuda", "fp32", "eager"),
    ],
)
def test_choice_of_backend(
    asked: str, device: str, precision: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    backend, why = select_attention_backend(asked, device, precision)
    assert backend == chosen
    assert (why is None) is (asked != "auto")


@pytest.mark.parametrize("asked", ["varlen", "flash_attention_2", "flash_attention_3"])
def test_flash_attention_in_fp32_is_refused_with_the_remedy(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    with pytest.raises(UsageError, match=r"hardware\.precision=bf16"):
        select_attention_backend(asked, "cuda", "fp32")


@pytest.mark.parametrize(
    ("asked", "module", "install"),
    [
        ("flash_attention_2", "flash_attn", r"'krill\[flash\]'"),
        ("flash_attention_3", "flash_attn_interface", r"flash-attention#subdirectory=hopper"),
    ],
)
def test_flash_attention_that_is_missing_is_refused_with_what_installs_it(
    asked: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # an import fails
    with pytest.raises(UsageError, match=rf"needs the module {module} .*pip install.*{install}"):
        select_attention_backend(asked, "cuda", "bf16")
    with pytest.raises(UsageError, match=rf"needs a CUDA device and the module {module}"):
        select_attention_backend(asked, "cpu", "bf16")


def test_flex_does_not_train_on_the_cpu() -> None:
    with pytest.raises(UsageError, match=r"no backward pass.*hardware\.attention=auto"):
        select_attention_backend("flex", "cpu", "fp32")


@pytest.mark.parametrize("backend", ["flex", "flash_attention_2", "flash_attention_3"])
def test_what_cannot_run_here_is_refused_before_anything_is_made(
    backend: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(f"hardware.attention={backend}") == 2
    assert f"hardware.attention={backend}" in capsys.readouterr().err
    assert not krill_train.runs()


def test_the_header_says_which_and_why(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("steps=1") == 0
    assert "attention varlen (auto: fastest on a CPU)" in capsys.readouterr().err
    assert krill_train("steps=1", "hardware.attention=sdpa", "seed=2") == 0
    assert "attention sdpa, " in capsys.readouterr().err
