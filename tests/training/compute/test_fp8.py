"""hardware.precision=fp8: where it is refused, which layers it converts, and how close it is to bf16.

Where torchao is installed, its own emulation on the CPU trains; elsewhere a stub with its signatures is converted.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainings import plan_lines
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.optim.groups import build_param_groups, list_parameter_assignments
from krill.runs.record import read_metrics
from krill.training import run as run_module
from krill.training.compute import device, fp8
from krill.training.compute import setup as compute_setup
from krill.training.compute.device import resolve_precision

Configure, Train = Callable[..., TrainConfig], Callable[..., Path]


def has_torchao() -> bool:
    return device.find_spec("torchao") is not None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], None]:
    """gpu((8, 9)): simulates a GPU of this compute capability, and torchao."""

    def simulate(capability: tuple[int, int]) -> None:
        properties = SimpleNamespace(total_memory=80 * 10**9)
        for name, value in {
            "is_available": True, "is_bf16_supported": True, "get_device_capability": capability, "device_count": 1,
            "get_device_properties": properties, "get_device_name": "NVIDIA H100 80GB HBM3",
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
        monkeypatch.setattr(device, "find_spec", lambda name: name)

    return simulate


# --- refusals ----------------------------------------------------------------------------------------------


def test_devices_without_fp8_are_rejected(
    gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch, make_config: Configure, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"8\.9 or newer .*this run is on the CPU; use hardware\.precision=auto"
    ):
        plan_lines(make_config("hardware.precision=fp8"), tmp_path)
    gpu((8, 6))
    with pytest.raises(UsageError, match=r"8\.9 or newer .*this one has 8\.6; use hardware\.precision=auto"):
        resolve_precision("fp8", "cuda")
    for capability in ((8, 9), (9, 0), (10, 0)):
        gpu(capability)
        assert resolve_precision("fp8", "cuda") == "fp8"
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"torchao \(pip install .*\[fp8\]'?\); use hardware\.precision=bf16"
    ):
        resolve_precision("fp8", "cuda")


def test_shapes_without_fp8_are_rejected(
    gpu: Callable[..., None], make_config: Configure, tmp_path: Path
) -> None:
    gpu((9, 0))
    for overrides, message in (
        (["sequence_len=100"], r"100 tokens.*use sequence_len=96,"),
        (["hardware.context_parallel=4", "hardware.processes=4", "sequence_len=96"], r"24 tokens.*sequence_len=64"),
        (["sequence_len=8"], r"8 tokens.*use sequence_len=16,"),
        (["model.intermediate_size=24", "model.head_dim=6"], "no linear layer.*multiples of 16"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            fp8.check_fp8(make_config("hardware.precision=fp8", *overrides))
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_the_layers_and_no_copies_of_weights(
    gpu: Callable[..., None], make_config: Configure, tmp_path: Path
) -> None:
    gpu((9, 0))
    lines = {}
    for precision in ("bf16", "fp8"):
        config = make_config("device=auto", f"hardware.precision={precision}", "hardware.attention=varlen")
        lines[precision] = dict(line.split(maxsplit=1) for line in plan_lines(config, tmp_path))
    assert lines["fp8"]["device"] == "cuda, fp8 tensorwise in 14 of 15 linear layers"
    assert lines["bf16"]["device"] == "cuda"
    assert lines["fp8"]["time"] == lines["bf16"]["time"]  # by the peak of bf16
    saved = [re.search(r"activations ([\d.]+ \w+)", lines[precision]["memory"]) for precision in lines]
    assert all(saved)
    assert len({match[1] for match in saved if match}) == 2


# --- the conversion ----------------------------------------------------------------------------------------


def build_llama() -> LlamaForCausalLM:
    """Builds a model whose MLP has a dimension that is not a multiple of 16."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Float8LinearConfig:
    """torchao 0.18.0."""

    emulate: bool = False

    @staticmethod
    def from_recipe_name(recipe_name: str) -> Float8LinearConfig:
        assert recipe_name in ("tensorwise", "rowwise", "rowwise_with_gw_hp")
        return Float8LinearConfig()


class Float8Linear(nn.Linear):
    """torchao 0.18.0; its product is 8 here."""

    def forward(self, input: Any) -> Any:
        return torch.full((), 8.0)


def convert_to_float8_training(
    module: nn.Module, *, module_filter_fn: Any = None, config: Any = None
) -> nn.Module:
    """torchao 0.18.0."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and module_filter_fn(layer, name):
            new = Float8Linear(*reversed(layer.weight.shape), bias=False, device="meta")
            new.weight, new.bias = layer.weight, layer.bias
            module.set_submodule(name, new)
    return module


@pytest.fixture(params=["stub", "torchao"])
def torchao(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The installed torchao, or the stub."""
    if request.param == "torchao" and not has_torchao():
        pytest.skip("torchao is not installed")
    fp8._build_layer_class.cache_clear()
    if request.param == "stub":
        names = {"Float8LinearConfig": Float8LinearConfig, "Float8Linear": Float8Linear}
        module = SimpleNamespace(convert_to_float8_training=convert_to_float8_training, **names)
        monkeypatch.setitem(sys.modules, "torchao.float8", module)
        monkeypatch.setitem(sys.modules, "torchao.float8.float8_linear", module)
        monkeypatch.setattr(fp8, "import_module", sys.modules.__getitem__)
    yield request.param
    fp8._build_layer_class.cache_clear()


def test_linear_layers_are_converted_and_parameters_stay_the_same(
    torchao: str, make_config: Configure
) -> None:
    """Not the head, nor what has other dimensions. Validation and generation compute as without."""
    model, expected = build_llama(), build_llama()
    assert fp8.convert_to_fp8(model, emulate=True) == "fp8 tensorwise in 8 of 15 linear layers"
    converted = {name for name, module in model.named_modules() if "Float8" in type(module).__name__}
    layers = [f"model.layers.{i}.self_attn.{kind}_proj" for i in (0, 1) for kind in "qkvo"]
    assert converted == set(layers)
    state, original = model.state_dict(), expected.state_dict()
    assert list(state) == list(original)
    assert all(
        type(value) is torch.Tensor and torch.equal(value, original[name]) for name, value in state.items()
    )
    optimizer = make_config().optimizer
    groups = [build_param_groups(each, optimizer) for each in (model, expected)]
    assignments = [
        list_parameter_assignments(each, group) for each, group in zip((model, expected), groups, strict=True)
    ]
    assert assignments[0] == assignments[1]
    assert [len(group["params"]) for group in groups[0]] == [len(group["params"]) for group in groups[1]]
    ids = torch.arange(16)[None]
    assert torch.equal(model.eval()(ids).logits, expected.eval()(ids).logits)
    layer, x = model.get_submodule(layers[0]).train(), torch.randn(16, 32)
    y, exact = layer(x).detach(), expected.get_submodule(layers[0])(x).detach()
    assert not torch.equal(y.expand_as(exact), exact)
    if torchao == "torchao":
        assert (y - exact).norm() < 0.05 * exact.norm()


def test_stub_has_the_signatures_of_torchao() -> None:
    float8 = pytest.importorskip("torchao.float8")
    linear = pytest.importorskip("torchao.float8.float8_linear").Float8Linear
    for stub, original in (
        (convert_to_float8_training, float8.convert_to_float8_training),
        (Float8LinearConfig.from_recipe_name, float8.Float8LinearConfig.from_recipe_name),
        (Float8Linear.forward, linear.forward),
    ):
        assert list(inspect.signature(stub).parameters) == list(inspect.signature(original).parameters)
    assert fp8.RECIPE in [recipe.value for recipe in float8.Float8LinearRecipeName]


def test_run_converts_its_model_before_it_is_sharded_or_compiled(
    make_config: Configure, train_in: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def build_trainer(*_: Any, **__: Any) -> None:
        calls.append("trainer")
        raise StopIteration

    monkeypatch.setattr(compute_setup, "resolve_precision", lambda *_: "fp8")
    monkeypatch.setattr(run_module, "convert_to_fp8", lambda model: calls.append("fp8") or "fp8")
    monkeypatch.setattr(run_module, "KrillTrainer", build_trainer)
    with pytest.raises(StopIteration):
        train_in(make_config())
    assert calls == ["fp8", "trainer"]


# --- a run -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_torchao(), reason="torchao is not installed")
def test_emulated_run_is_close_to_bf16_and_its_model_needs_no_torchao(
    make_config: Configure, train_in: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty steps of Muon: losses within 0.2 %, measured 0.05 %."""
    overrides = ("steps=20", "save_every=20", "log_every=1", "lr=1e-2", "model.num_hidden_layers=1")
    bf16 = train_in(make_config(*overrides, "hardware.precision=bf16"), "bf16")
    monkeypatch.setattr(compute_setup, "resolve_precision", lambda *_: "fp8")
    monkeypatch.setattr(run_module, "convert_to_fp8", partial(fp8.convert_to_fp8, emulate=True))
    with caplog.at_level("INFO", "krill"):
        run = train_in(make_config(*overrides, "hardware.precision=bf16"), "fp8")
    assert "cpu, fp8, attention" in caplog.text
    assert "fp8 tensorwise in 7 of 8 linear layers" in caplog.text
    losses, expected = (
        [line[key] for line in read_metrics(each) for key in ("loss", "eval_loss") if key in line]
        for each in (run, bf16)
    )
    assert losses[0] - losses[19] > 0.3
    assert losses == pytest.approx(expected, rel=2e-3)
    assert losses != pytest.approx(expected, rel=1e-6)
    for path in ("model/model.safetensors", "checkpoints/checkpoint-20/model.safetensors"):
        weights, others = load_file(run / path), load_file(bf16 / path)
        assert {name: (w.shape, w.dtype) for name, w in weights.items()} == {
            name: (w.shape, w.dtype) for name, w in others.items()
        }
    assert (run / "model" / "config.json").read_text() == (bf16 / "model" / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
