"""Chunked loss and z-loss on two ranks, under DDP and FSDP2, have the gradients of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from process_group import run_on_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from krill.training.compute.head_loss import FullZLoss, HeadLoss

RANKS, TARGETS, Z_LOSS = 2, 4 * 19, 0.1


def build_llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=tied, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def shard(model: Any, tied: bool) -> nn.Module:
    """Shards like accelerate: each layer; the embedding; norm and head together, with the embedding if tied."""
    for layer in model.model.layers:
        fully_shard(layer)
    tail = [model.model.norm, model.lm_head]
    if tied:
        tail.insert(1, model.model.embed_tokens)
    else:
        fully_shard(model.model.embed_tokens)
    fully_shard(tail, reshard_after_forward=False)
    return fully_shard(model)


def assert_same_gradients(strategy: str, tied: bool) -> None:
    """Asserts that the gradients of this rank are those of the whole batch."""
    rank = dist.get_rank()
    ids = torch.randint(50, (4, 20), generator=torch.Generator().manual_seed(1))
    reference, model = build_llama(tied), build_llama(tied)
    with FullZLoss(reference, "full", Z_LOSS).training_context():
        reference(input_ids=ids, labels=ids, num_items_in_batch=TARGETS).loss.backward()

    wrapped = DistributedDataParallel(model) if strategy == "ddp" else shard(model, tied)
    rank_ids = ids.chunk(RANKS)[rank]
    for _ in range(2):  # the second pass would show state left by the first
        model.zero_grad()
        with HeadLoss(model, z_loss=Z_LOSS).training_context():
            loss = wrapped(input_ids=rank_ids, labels=rank_ids, num_items_in_batch=TARGETS).loss
        (loss * RANKS).backward()  # gradients are averaged over ranks
    for (name, parameter), reference_parameter in zip(
        model.named_parameters(), reference.parameters(), strict=True
    ):
        actual, expected = parameter.grad, reference_parameter.grad
        if isinstance(actual, DTensor):
            actual = actual.full_tensor()
        assert actual is not None
        assert expected is not None
        assert (actual - expected).norm() <= 2e-6 * expected.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_have_the_gradients_of_one_process(strategy: str, tied: bool, tmp_path: Path) -> None:
    run_on_ranks(RANKS, assert_same_gradients, strategy, tied, folder=tmp_path)
