"""What arithmetic says about Llama, Qwen3 and GPT-2 is what torch counts: parameters, FLOPs, saved tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compositions import load_config
from planned_models import CPU, MODELS, VOCABULARY, make_gated, make_gpt2
from torch.utils.flop_counter import FlopCounterMode

from krill.config.schema import AutoModelConfig, CustomModelConfig
from krill.device_table import get_device
from krill.errors import UsageError
from krill.models.build import build_meta_model
from krill.optim.build import build_optimizer
from krill.optim.groups import build_param_groups
from krill.plan.advice import list_advice
from krill.plan.architecture import Architecture
from krill.plan.describe import describe_architecture
from krill.plan.flops import compute_token_flops, compute_update_flops
from krill.plan.memory import compute_state_bytes, list_muon_matrices
from krill.plan.meta_architecture import MetaArchitecture
from krill.plan.run_plan import build_run_plan

ROWS, TOKENS = 2, 24


def describe(name: str) -> Architecture:
    return describe_architecture(MODELS[name], VOCABULARY)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model_by_name_and_shape(name: str) -> None:
    architecture, model = describe(name), build_meta_model(MODELS[name], VOCABULARY)
    assert not isinstance(architecture, MetaArchitecture)
    assert architecture.parameters == sum(p.numel() for p in model.parameters())
    assert architecture.count_parameters() == MetaArchitecture(MODELS[name], VOCABULARY).count_parameters()
    matrices = sorted(
        (kind.name, kind.shape, kind.count, kind.matrices) for kind in architecture.list_matrices()
    )
    measured = MetaArchitecture(MODELS[name], VOCABULARY).list_matrices()
    assert matrices == sorted((kind.name, kind.shape, kind.count, kind.matrices) for kind in measured)


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_the_counter_of_torch(name: str) -> None:
    """On the meta device; eager attention computes all pairs of a row, as if a token attended to all of it."""
    model = build_meta_model(MODELS[name], VOCABULARY).train()
    ids = torch.zeros((ROWS, TOKENS), dtype=torch.int64, device="meta")
    mask = torch.zeros((ROWS, 1, TOKENS, TOKENS), device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum().backward()
    flops = compute_token_flops(describe(name), TOKENS, attended=TOKENS)
    assert counter.get_total_flops() == ROWS * TOKENS * flops.total
    assert flops.head == 6 * VOCABULARY * describe(name).width


def test_attention_within_documents_takes_less() -> None:
    whole, short = (compute_token_flops(describe("llama"), TOKENS, attended) for attended in (None, 3.0))
    assert (whole.dense, whole.head) == (short.dense, short.head)
    assert whole.attention / short.attention == (TOKENS + 1) / 2 / 3.0


def test_a_sliding_window_limits_the_attention() -> None:
    config = AutoModelConfig(
        name="m", family="auto", model_type="mistral", max_position_embeddings=64,
        config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "intermediate_size": 48, "sliding_window": 4},
    )  # fmt: skip
    architecture = describe_architecture(config, VOCABULARY)
    spans = [min(index + 1, 4) for index in range(TOKENS)]
    flops = compute_token_flops(architecture, TOKENS).attention
    assert flops == pytest.approx(2 * 4 * 6 * 16 * sum(spans) / TOKENS)
    assert compute_token_flops(architecture, TOKENS, 100.0).attention == 2 * 4 * 6 * 16 * 4


def test_a_model_without_attention_is_planned() -> None:
    config = AutoModelConfig(
        name="m", family="auto", model_type="mamba", max_position_embeddings=64,
        config={"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    )  # fmt: skip
    for device in (CPU, get_device("h100")):
        plan = build_run_plan(
            load_config("sequence_len=64").model_copy(update={"model": config}), VOCABULARY, device
        )
        assert plan.architecture.attention == ()
        assert plan.token_flops.attention == 0
        assert plan.memory.total > 0
        assert all(advice.kind != "fit" for advice in list_advice(plan))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*MODELS, "gpt2 undropped"])
def test_saved_bytes_are_those_of_the_model(name: str, precision: str) -> None:
    """Up to a few bytes per token."""
    config = MODELS.get(name) or make_gpt2(resid_pdrop=0.0, embd_pdrop=0.0)
    architecture = describe_architecture(config, VOCABULARY)
    measured = MetaArchitecture(config, VOCABULARY)
    layers = architecture.layers
    formula = architecture.compute_saved_bytes(ROWS, TOKENS, precision, "cpu")
    expected = measured.compute_saved_bytes(ROWS, TOKENS, precision, "cpu")
    assert formula.weight_copies == expected.weight_copies
    assert formula.layer_input == expected.layer_input
    total, measured_total = (each.layer * layers + each.outside for each in (formula, expected))
    assert total == pytest.approx(measured_total, abs=ROWS * TOKENS * (16 + layers))


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=adamw",), ("optimizer=muon_moonlight",), ("optimizer=muon_keller", "optimizer.normuon=true"),
        ("optimizer=muon_pto", "optimizer.adamw_modules=[*.mlp.*]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["llama", "llama deep", "qwen3", "gpt2"])
def test_state_of_the_optimizer_is_that_of_a_real_step(name: str, overrides: tuple[str, ...]) -> None:
    config = load_config(*overrides).optimizer
    torch.manual_seed(0)
    model: Any = build_meta_model(MODELS[name], VOCABULARY)
    model = type(model)(model.config)
    optimizer = build_optimizer(model, config)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    assert compute_state_bytes(config, describe(name)) == sum(tensor.nbytes for tensor in tensors)
    trained = [group for group in build_param_groups(model, config) if group["kind"] == "muon"]
    entries = sum(p.numel() for group in trained for p in group["params"])
    planned = list_muon_matrices(config, describe(name))
    assert sum(count * kind.entries for kind, count in planned) == entries


def test_muon_computes_more_per_step_than_adamw() -> None:
    muon, adamw = (load_config(f"optimizer={name}").optimizer for name in ("muon_moonlight", "adamw"))
    square = describe_architecture(
        make_gated("llama", head_dim=8, num_key_value_heads=4, intermediate_size=32), 90
    )
    assert compute_update_flops(adamw, square) == 0
    assert compute_update_flops(muon, square) == 5 * 2 * 7 * 6 * 32**3


@pytest.mark.parametrize("keys", [{"activation_function": "relu"}, {"add_cross_attention": True}])
def test_a_gpt2_that_is_not_modelled_is_built_on_the_meta_device(keys: dict[str, Any]) -> None:
    assert isinstance(describe_architecture(make_gpt2(**keys), VOCABULARY), MetaArchitecture)


def test_a_custom_model_is_built_on_the_meta_device(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n\n\n"
        "def build(vocab_size, max_position_embeddings, bos_token_id, eos_token_id, pad_token_id, broken=False):\n"
        "    if broken:\n"
        "        torch.ones(1).item()\n"
        "    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4))\n"
    )
    values: dict[str, Any] = {"name": "mine", "family": "custom", "max_position_embeddings": 64}
    good = CustomModelConfig(**values, build="mine.py:build", options={})
    assert describe_architecture(good, VOCABULARY).layers == 2
    with pytest.raises(UsageError, match="cannot be planned, it fails on the meta device"):
        describe_architecture(good.model_copy(update={"options": {"broken": True}}), VOCABULARY)
