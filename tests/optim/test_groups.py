"""Tests of the parameter groups and of the optimizer that a configuration builds."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from optimizer_sections import adamw, muon
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaModel,
    Phi3Config,
    Qwen3Config,
)

from krill.config import schema
from krill.errors import KrillError
from krill.optim.build import build_optimizer
from krill.optim.groups import build_param_groups, list_parameter_assignments, summarize_groups
from krill.optim.muon import Muon

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ADAMW = adamw()
MUON = muon("muon_keller", eps=1e-10, momentum=0.9, ns_coefficients="polar_express")
MODELS = {
    "llama_tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama_untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama_biased": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=False),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4),
    "neox": GPTNeoXConfig(**SIZES),
    "phi3": Phi3Config(**SIZES, pad_token_id=0),
}
EXPECTED_MUON_GROUPS = {
    "gpt2": {"c_attn": 2, "conv1d": 6},
    "neox": {"matrices": 6, "query_key_value": 2},
    "phi3": {"matrices": 4, "qkv_proj": 2, "gate_up_proj": 2},
}
"""Tensors in each Muon group, for models whose hidden matrices are not all in `matrices`."""


def _build_model(name: str) -> nn.Module:
    return AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.float32)


def _get_names_by_group(
    model: nn.Module, config: schema.AdamWConfig | schema.MuonConfig
) -> dict[str, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        group["name"]: {names[id(p)] for p in group["params"]} for group in build_param_groups(model, config)
    }


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_exactly_one_group(name, config):
    model = _build_model(name)
    grouped = [id(p) for group in build_param_groups(model, config) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_muon_trains_the_hidden_matrices_only(name):
    model = _build_model(name)
    excluded = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    muon_groups = {}
    for group in build_param_groups(model, MUON):
        for p in group["params"]:
            if group["kind"] == "muon":
                assert p.ndim == 2
                assert id(p) not in excluded
            assert (p.ndim == 1) == (group["name"] == "vectors")
        if group["kind"] == "muon":
            muon_groups[group["name"]] = len(group["params"])
    assert muon_groups == EXPECTED_MUON_GROUPS.get(name, {"matrices": 14})


@pytest.mark.parametrize("name", MODELS)
def test_assignments_list_the_group_and_the_projections_of_every_parameter(name):
    model = _build_model(name)
    table = {row.name: row for row in list_parameter_assignments(model, build_param_groups(model, MUON))}
    assert table.keys() == dict(model.named_parameters()).keys()
    for row in table.values():
        assert row.shape == tuple(model.get_parameter(row.name).shape)
        if row.projections is None:
            assert row.kind == "adamw"
        else:
            assert sum(rows * columns for rows, columns in row.projections) == row.shape[0] * row.shape[1]
    fused = [row.projections for row in table.values() if row.projections and len(row.projections) > 1]
    assert fused == {
        "gpt2": [[(32, 32)] * 3] * 2,
        "neox": [[(32, 32)] * 3] * 2,
        "phi3": [[(32, 32), (16, 32), (16, 32)]] * 2 + [[(48, 32)] * 2] * 2,
    }.get(name, [])


def test_conv1d_weights_are_transposed():
    """They are (in, out); the spectral scale depends on the order."""
    model = _build_model("gpt2")
    table = {row.name: row for row in list_parameter_assignments(model, build_param_groups(model, MUON))}
    inner = table["transformer.h.0.mlp.c_fc.weight"]
    assert (inner.shape, inner.projections) == ((32, 128), [(128, 32)])


def test_a_tied_head_is_an_embedding_and_an_untied_head_is_not():
    assert _get_names_by_group(_build_model("llama_tied"), MUON)["embeddings"] == {
        "model.embed_tokens.weight"
    }
    assert "head" not in _get_names_by_group(_build_model("llama_tied"), MUON)
    assert _get_names_by_group(_build_model("llama_untied"), MUON)["embeddings"] == {
        "model.embed_tokens.weight"
    }
    assert _get_names_by_group(_build_model("llama_untied"), MUON)["head"] == {"lm_head.weight"}


def test_embeddings_are_found_through_the_model_not_by_name():
    assert _get_names_by_group(_build_model("gpt2"), MUON)["embeddings"] == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }


def test_a_model_without_a_head_has_no_head_group():
    assert set(_get_names_by_group(LlamaModel(LlamaConfig(**SIZES)), MUON)) == {
        "embeddings",
        "vectors",
        "matrices",
    }


def test_biases_and_norms_are_vectors_and_do_not_decay():
    model = _build_model("llama_biased")
    groups = {group["name"]: group for group in build_param_groups(model, MUON)}
    assert len(groups["vectors"]["params"]) == sum(p.ndim == 1 for p in model.parameters()) == 5 + 2 * 7
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "embeddings": 0.1,
        "head": 0.1,
        "vectors": 0.0,
        "matrices": 0.02,
    }
    assert {name: group["lr"] for name, group in groups.items()} == {
        "embeddings": 1e-3,
        "head": 1e-3,
        "vectors": 1e-3,
        "matrices": 5e-3,
    }


def test_adamw_trains_tensors_of_three_dimensions():
    model = _build_model("llama_tied")
    model.experts = nn.Parameter(torch.zeros(2, 8, 8))
    groups = {group["name"]: group for group in build_param_groups(model, MUON)}
    assert groups["tensors"]["kind"] == "adamw"
    assert groups["tensors"]["weight_decay"] == 0.1
    assert groups["tensors"]["params"][0] is model.experts


def test_frozen_parameters_are_left_out():
    model = _build_model("llama_untied")
    model.get_input_embeddings().requires_grad_(False)
    assert "embeddings" not in _get_names_by_group(model, MUON)


def test_summary_of_groups():
    model = _build_model("llama_untied")
    table = {row.name: tuple(row) for row in summarize_groups(build_param_groups(model, MUON))}
    assert table["embeddings"] == ("embeddings", 1, 96 * 32, 1e-3, 0.1)
    assert table["matrices"][:3] == ("matrices", 14, 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48))
    assert next(iter(table)) == "embeddings"  # the Trainer logs group 0: a multiple of lr, not of muon_lr
    assert sum(row[2] for row in table.values()) == model.num_parameters()


def test_the_configuration_reaches_the_optimizer():
    optimizer = build_optimizer(_build_model("qwen3"), MUON)
    assert isinstance(optimizer, Muon)
    matrices = next(group for group in optimizer.param_groups if group["name"] == "matrices")
    keys = ("momentum", "nesterov", "scale", "ns_steps", "ns_coefficients", "cautious", "normuon")
    for key in keys:
        assert matrices[key] == getattr(MUON, key)
    assert matrices["ns_dtype"] == "auto"
    other = muon("muon_keller", ns_dtype="bf16", cautious=True, normuon=True)
    matrices = build_optimizer(_build_model("qwen3"), other).param_groups[-1]
    assert [matrices[key] for key in ("ns_dtype", "cautious", "normuon")] == ["bf16", True, True]
    embeddings = optimizer.param_groups[0]
    assert (embeddings["lr"], embeddings["betas"], embeddings["eps"]) == (1e-3, (0.9, 0.95), 1e-10)

    optimizer = build_optimizer(_build_model("qwen3"), ADAMW)
    assert type(optimizer) is torch.optim.AdamW
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


@pytest.mark.parametrize("build_config", [adamw, partial(muon, "muon_moonlight")], ids=["adamw", "muon"])
def test_embeddings_head_and_vectors_have_rates_of_their_own(build_config):
    config = build_config(lr_embeddings=3.0, lr_head=0.5, lr_vectors=2.0)
    rates = {group["name"]: group["lr"] for group in build_param_groups(_build_model("llama_untied"), config)}
    matrices = config.muon_lr if isinstance(config, schema.MuonConfig) else 1e-3
    assert rates == {"embeddings": 3e-3, "head": 5e-4, "vectors": 2e-3, "matrices": matrices}


@pytest.mark.parametrize("build_config", [adamw, partial(muon, "muon_moonlight")], ids=["adamw", "muon"])
def test_embeddings_and_head_have_a_decay_of_their_own(build_config):
    config = build_config(weight_decay_embeddings=0.5)
    groups = build_param_groups(_build_model("llama_untied"), config)
    matrices = config.muon_weight_decay if isinstance(config, schema.MuonConfig) else 0.1
    decays = {group["name"]: group["weight_decay"] for group in groups}
    assert decays == {"embeddings": 0.05, "head": 0.05, "vectors": 0.0, "matrices": matrices}


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("name", ["llama_tied", "qwen3", "gpt2", "neox", "phi3"])
def test_a_model_trains(name, config):
    torch.manual_seed(0)
    model = _build_model(name)
    model.eval()  # GPT-2 has dropout in training mode
    optimizer = build_optimizer(model, config)
    ids = torch.randint(0, 96, (4, 16))
    losses = []
    for _ in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
def test_half_precision_weights_are_rejected(config):
    model = _build_model("llama_tied").bfloat16()
    with pytest.raises(KrillError, match=r"model\.embed_tokens\.weight is bfloat16.*hardware\.precision"):
        build_optimizer(model, config)


def test_a_custom_function_must_build_an_optimizer(tmp_path):
    (tmp_path / "own.py").write_text("def build(model, **keys):\n    return keys\n")
    keys = {"name": "custom", "build": f"{tmp_path}/own.py:build", "options": {}}
    shared = ADAMW.model_dump(include=set(schema.CustomOptimizerConfig.model_fields))
    config = schema.CustomOptimizerConfig(**shared | keys)
    with pytest.raises(KrillError, match=r"own\.py:build: returned dict; return a torch\.optim\.Optimizer"):
        build_optimizer(_build_model("llama_tied"), config)


def test_a_model_without_trainable_parameters_is_an_error():
    model = _build_model("llama_tied").requires_grad_(False)
    with pytest.raises(KrillError, match="no trainable parameter"):
        build_param_groups(model, ADAMW)
    model.get_input_embeddings().requires_grad_(True)
    with pytest.raises(KrillError, match=r"optimizer=muon_keller.*no hidden matrix"):
        build_param_groups(model, MUON)


def test_adamw_modules_selects_matrices_for_adamw():
    model = _build_model("llama_tied")
    names = _get_names_by_group(
        model, muon("muon_keller", adamw_modules=["down_proj", "model.layers.1.self_attn.*"])
    )
    assert names["adamw_matrices"] == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        *(f"model.layers.1.self_attn.{letter}_proj.weight" for letter in "qkvo"),
    }
    assert len(names["matrices"]) == 14 - 6


def test_adamw_modules_that_match_nothing_are_an_error():
    with pytest.raises(
        KrillError, match=r"optimizer\.adamw_modules.*'router'.*Available: down_proj, gate_proj"
    ):
        build_param_groups(_build_model("llama_tied"), muon("muon_keller", adamw_modules=["router"]))


def test_polar_express_with_too_few_steps_is_rejected_in_the_configuration():
    with pytest.raises(ValueError, match=r"set optimizer\.ns_steps=5"):
        muon("muon_keller", ns_coefficients="polar_express", ns_steps=4)
