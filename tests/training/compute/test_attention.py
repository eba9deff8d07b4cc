"""Document boundaries, windows, dropout and softcaps of each attention backend, and the choice of the backend."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from flash_attention_stubs import RecordedKernels, install_stubs
from packed_documents import LENGTHS, WIDTH
from torch import Tensor
from torch.nn.attention import _registry
from torch.nn.attention.varlen import varlen_attn

from krill.data.packing import Rows
from krill.errors import UsageError
from krill.training.batches import RowCollator
from krill.training.compute import attention, attention_kernels, flash
from krill.training.compute.attention_kernels import DocumentBoundaries
from krill.training.compute.backends import select_attention_backend

HEADS, KV_HEADS, HEAD_WIDTH = 4, 2, 8


def make_qkv(lengths: list[int]) -> list[Tensor]:
    """Returns random queries, keys and values, (1, H, T, D), of one row of documents."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, sum(lengths), HEAD_WIDTH, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def compute_by_pairs(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], window: int | None, softcap: float = 0
) -> Tensor:
    """Computes attention within documents and `window` from all pairs, (1, T, H, D)."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(len(document))[:, None] - torch.arange(len(document))
    mask = (document[:, None] == document) & (distance >= 0) & (distance < (window or len(document)))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * HEAD_WIDTH**-0.5
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def build_kwargs(lengths: list[int], device: str) -> dict[str, Any]:
    return attention.build_boundary_kwargs("varlen", lengths, sum(lengths), torch.device(device))


def test_boundaries_on_cuda_are_the_cumulative_lengths_and_empty_documents(
    make_rows: Callable[..., Rows],
) -> None:
    rows = make_rows(LENGTHS, WIDTH)
    batch = [rows.get_row(0), rows.get_row(1), rows.make_empty_row()]
    lengths = [length for row in batch for length in row.lengths.tolist()]
    for backend in ("varlen", "flash_attention_2", "flash_attention_3", "flash_attention_4"):
        inputs = RowCollator(backend, torch.device("cuda"))(batch)
        cu_seqlens = inputs["cu_seq_lens_q"]
        assert cu_seqlens.dtype == torch.int32
        assert cu_seqlens[0] == 0
        assert cu_seqlens[-1] == 3 * WIDTH
        assert len(cu_seqlens) == attention.BOUNDARY_BLOCK
        assert cu_seqlens.diff().tolist() == lengths + [0] * (255 - len(lengths))
        assert inputs["max_length_q"] == WIDTH
        assert "document_lengths" not in inputs


@pytest.mark.parametrize(("documents", "entries"), [(1, 256), (255, 256), (256, 512), (900, 1024)])
def test_number_of_boundaries_on_cuda_is_a_multiple(documents: int, entries: int) -> None:
    cu_seqlens = build_kwargs([2] * documents, "cuda")["cu_seq_lens_q"]
    assert len(cu_seqlens) == entries
    assert cu_seqlens[documents:].tolist() == [2 * documents] * (entries - documents)


@pytest.mark.parametrize("backend", ["flex", "sdpa", "eager"])
def test_other_backends_get_no_boundaries(backend: str) -> None:
    assert attention.build_boundary_kwargs(backend, [3, 5], 8, torch.device("cuda")) == {}


@pytest.mark.parametrize("window", [None, 1, 7, 16, 40, 200])
@pytest.mark.parametrize("name", ["varlen", "torch", "varlen_2"])
def test_window_stays_within_its_document(
    name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK_SIZE", 16)  # so that documents are longer than blocks
    install_stubs(monkeypatch)
    lengths = [100, 3, 41, 56]
    q, k, v = make_qkv(lengths)
    function = attention.ATTENTION_FUNCTIONS["varlen" if name == "torch" else name]
    boundaries = build_kwargs(lengths, "cpu" if name == "varlen" else "cuda")
    out, _ = function(torch.nn.Module(), q, k, v, None, sliding_window=window, **boundaries)
    torch.testing.assert_close(out, compute_by_pairs(q, k, v, lengths, window), rtol=0, atol=1e-5)


def test_window_does_not_compute_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []

    def sdpa(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        pairs.append(q.shape[2] * k.shape[2])
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    attention_kernels.causal_attention(*make_qkv([4096]), None, 256, 0.0)
    assert sum(pairs) <= 4096 * 2 * 256


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", ["varlen", "varlen_2"])
def test_single_query_attends_to_its_cache(
    name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stubs(monkeypatch)
    q, k, v = make_qkv([20])
    out, _ = attention.ATTENTION_FUNCTIONS[name](
        torch.nn.Module(), q[:, :, -1:], k, v, None, sliding_window=window
    )
    torch.testing.assert_close(out, compute_by_pairs(q, k, v, [20], window)[:, -1:], rtol=0, atol=1e-5)


def test_softcap_limits_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    install_stubs(monkeypatch)
    lengths = [12, 8]
    q, k, v = make_qkv(lengths)
    out, _ = attention.ATTENTION_FUNCTIONS["varlen_2"](
        torch.nn.Module(), 9 * q, k, v, None, softcap=2.0, **build_kwargs(lengths, "cuda")
    )
    torch.testing.assert_close(
        out, compute_by_pairs(9 * q, k, v, lengths, None, softcap=2.0), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ["varlen", "varlen_2"])
def test_dropout_drops_weights_and_keeps_documents_isolated(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stubs(monkeypatch)
    lengths, probability = [150, 60], 0.5
    q, k, _ = make_qkv(lengths)
    v = torch.ones_like(k)
    v[:, :, :150] = 0  # the first document's values
    boundaries = build_kwargs(lengths, "cpu" if name == "varlen" else "cuda")
    torch.manual_seed(0)
    out, _ = attention.ATTENTION_FUNCTIONS[name](
        torch.nn.Module(), q, k, v, None, dropout=probability, **boundaries
    )
    assert out[:, :150].abs().max() == 0
    assert out[:, 150:].std() > 0.05  # the weights sum to 1
    assert out[:, 150:].mean() == pytest.approx(1, abs=0.1)  # only on average
    assert (out[:, 150] == 0).float().mean() == pytest.approx(probability, abs=0.4)


def test_narrow_heads_are_padded_for_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    install_stubs(monkeypatch)  # the stubs reject other widths than multiples of 8
    q, k, v = (x[..., :4] for x in make_qkv([12, 8]))
    out, expected = (
        attention.varlen_attention_forward(torch.nn.Module(), q, k, v, None, **build_kwargs([12, 8], device))[
            0
        ]
        for device in ("cuda", "cpu")
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_rows_are_documents_without_boundaries() -> None:
    q, k = torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 9, 8)
    documents = DocumentBoundaries.from_rows(q, k)
    assert documents.cu_seqlens_q.tolist() == [0, 1, 2]
    assert documents.cu_seqlens_k.tolist() == [0, 9, 18]
    assert (documents.max_seqlen_q, documents.max_seqlen_k) == (1, 9)


@pytest.mark.parametrize(
    ("requested", "device", "precision", "expected"),
    [
        ("auto", "cpu", "fp32", "varlen"),
        ("auto", "cpu", "bf16", "varlen"),
        ("auto", "cuda", "bf16", "varlen"),
        ("auto", "cuda", "fp32", "sdpa"),
        ("auto", "cuda", "tf32", "sdpa"),
        ("varlen", "cpu", "fp32", "varlen"),
        ("varlen", "cuda", "bf16", "varlen"),
        ("sdpa", "cuda", "bf16", "sdpa"),
        ("flex", "cuda", "fp32", "flex"),
        ("flash_attention_2", "cuda", "bf16", "flash_attention_2"),
        ("eager", "cuda", "fp32", "eager"),
    ],
)
def test_selected_backend(
    requested: str, device: str, precision: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stubs(monkeypatch)
    backend, reason = select_attention_backend(requested, device, precision)
    assert backend == expected
    assert (reason is None) is (requested != "auto")


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("requested", ["varlen", "flash_attention_2"])
def test_flash_attention_in_fp32_is_rejected_with_a_remedy(
    requested: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stubs(monkeypatch)
    with pytest.raises(UsageError, match=rf"no {precision}; use hardware\.precision=bf16"):
        select_attention_backend(requested, "cuda", precision)


# --- torch's signature -------------------------------------------------------------------------------------


def varlen_attn_of_2_11(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, return_aux: None = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    return query


@pytest.mark.parametrize("varlen_attn", [varlen_attn, varlen_attn_of_2_11], ids=["installed", "2.11"])
def test_call_fits_the_signature_of_torch(varlen_attn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(inspect.signature(varlen_attn).bind(*args, **kwargs).arguments)
        return args[0]

    monkeypatch.setattr(attention_kernels, "GQA_OPTION", attention_kernels._select_gqa_option(varlen_attn))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", record)
    q, k, v = make_qkv([12, 8])
    attention.varlen_attention_forward(torch.nn.Module(), q, k, v, None, **build_kwargs([12, 8], "cuda"))
    (call,) = calls
    assert call.get("enable_gqa", True)
    assert (call["query"].shape, call["key"].shape) == ((20, HEADS, 8), (20, KV_HEADS, 8))
    assert (call["max_q"], call["max_k"], call["window_size"]) == (20, 20, (-1, 0))


def test_stub_has_the_signature_of_torch() -> None:
    stub = inspect.signature(RecordedKernels().varlen_attn).parameters
    installed = inspect.signature(varlen_attn).parameters
    assert list(stub) == [name for name in installed if name in stub]
    for name, parameter in stub.items():
        assert (parameter.kind, parameter.default) == (installed[name].kind, installed[name].default)


# --- packages ----------------------------------------------------------------------------------------------


class Implementation:
    """Registers itself as torch's kernels of a name: torch activates it like the kernels of a package."""

    def __init__(self, name: str):
        self.name, self.is_active = name, False

    def __call__(self) -> Implementation:
        self.is_active = True
        return self

    def remove(self) -> None:
        self.is_active = False


@pytest.fixture
def install_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """install_flash((9, 0), "flash_attn_interface"): simulates a GPU of that capability and these packages."""

    def install(capability: tuple[int, int], *modules: str) -> None:
        monkeypatch.setattr(flash, "get_compute_capability", lambda: capability)
        for package in flash.FLASH_PACKAGES.values():
            module: Any = ModuleType(package.module) if package.module in modules else None
            if module is not None:
                module.flash_attn_varlen_func = None
            monkeypatch.setitem(sys.modules, package.module, module)  # None: an import fails

    yield install
    flash.activate_flash_attention("varlen")


FA3, FA4 = (flash.FLASH_PACKAGES[f"flash_attention_{version}"].module for version in (3, 4))


@pytest.mark.parametrize(
    ("capability", "modules", "expected"),
    [
        ((8, 0), (FA3, FA4), "varlen"),
        ((9, 0), (), "varlen"),
        ((9, 0), (FA3, FA4), "flash_attention_3"),
        ((9, 0), (FA4,), "flash_attention_4"),
        ((10, 0), (FA3, FA4), "flash_attention_4"),
        ((10, 0), (FA3,), "varlen"),
        ((12, 0), (FA3, FA4), "varlen"),
    ],
)
def test_auto_selects_the_kernels_that_are_installed_for_the_gpu(
    capability: tuple[int, int], modules: tuple[str, ...], expected: str, install_flash: Any
) -> None:
    install_flash(capability, *modules)
    backend, reason = select_attention_backend("auto", "cuda", "bf16")
    assert backend == expected
    assert reason == (
        "torch's built-in Flash Attention" if backend == "varlen" else "installed, and made for this GPU"
    )
    assert select_attention_backend("varlen", "cuda", "bf16") == ("varlen", None)


def test_installed_kernels_replace_those_of_torch(
    install_flash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_flash((9, 0), FA3, FA4)
    three, four = Implementation("FA3"), Implementation("FA4")
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", {"FA3": three, "FA4": four})
    for version, active in ((3, three), (4, four)):
        backend = f"flash_attention_{version}"
        assert select_attention_backend(backend, "cuda", "bf16") == (backend, None)
        assert attention.get_attn_implementation(backend) == "varlen"
        flash.activate_flash_attention(backend)
        assert (three.is_active, four.is_active) == (active is three, active is four)
        assert torch.nn.attention.current_flash_attention_impl() == active.name
    for backend in ("sdpa", "varlen", "flash_attention_2"):
        flash.activate_flash_attention(backend)
        assert torch.nn.attention.current_flash_attention_impl() is None
    assert not four.is_active


def test_kernels_of_another_gpu_or_torch_are_rejected(
    install_flash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_flash((8, 6), FA3, FA4)
    with pytest.raises(
        UsageError, match=r"flash_attention_3 needs a GPU of compute capability 9\.x \(.* 8\.6\)"
    ):
        select_attention_backend("flash_attention_3", "cuda", "bf16")
    with pytest.raises(UsageError, match=r"capability 9\.x or 10\.x.*use hardware\.attention=auto"):
        select_attention_backend("flash_attention_4", "cuda", "bf16")
    install_flash((9, 0), FA3, FA4)
    monkeypatch.delattr(torch.nn.attention, "list_flash_attention_impls")
    with pytest.raises(UsageError, match=r"needs a version of torch that activates FA4"):
        select_attention_backend("flash_attention_4", "cuda", "bf16")
    assert select_attention_backend("auto", "cuda", "bf16")[0] == "varlen"


@pytest.mark.parametrize(
    ("requested", "module", "command"),
    [
        ("flash_attention_2", "flash_attn", r"flash-attn>="),
        ("flash_attention_3", "flash_attn_interface", r"flash-attention#subdirectory=hopper"),
        ("flash_attention_4", r"flash_attn\.cute\.interface", r"flash-attn-4"),
    ],
)
def test_missing_flash_attention_is_rejected_with_the_install_command(
    requested: str, module: str, command: str, install_flash: Any
) -> None:
    install_flash((9, 0))
    with pytest.raises(UsageError, match=rf"needs the module {module} .*pip install.*{command}"):
        select_attention_backend(requested, "cuda", "bf16")
    with pytest.raises(UsageError, match=rf"needs a CUDA device and the module {module}"):
        select_attention_backend(requested, "cpu", "bf16")


def test_flex_on_the_cpu_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"no backward pass.*hardware\.attention=auto"):
        select_attention_backend("flex", "cpu", "fp32")


@pytest.mark.parametrize("backend", ["flex", "flash_attention_2", "flash_attention_4"])
def test_backend_that_cannot_run_here_is_rejected_before_the_run_starts(
    backend: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(f"hardware.attention={backend}") == 2
    assert f"hardware.attention={backend}" in capsys.readouterr().err
    assert not krill_train.runs()


def test_header_shows_the_backend_and_the_reason(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("steps=1") == 0
    err = capsys.readouterr().err
    assert "attention varlen (auto: fastest on a CPU), " in err
    assert ", not compiled (auto: needs a CUDA device)" in err
    assert krill_train("steps=1", "hardware.attention=sdpa", "seed=2") == 0
    assert "attention sdpa, " in capsys.readouterr().err
