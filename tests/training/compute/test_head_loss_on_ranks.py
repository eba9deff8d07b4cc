"""The loss without logits on two ranks: the gradients of one process with the whole batch, under DDP and FSDP2."""

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

from krill.training.compute.head_loss import HeadLoss

RANKS, TARGETS = 2, 4 * 19


def llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=tied, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sharded(model: Any, tied: bool) -> nn.Module:
    """As accelerate shards: each layer; the embedding; norm and head together, with the embedding if tied."""
    for layer in model.model.layers:
        fully_shard(layer)
    tail = [model.model.norm, model.lm_head]
    if tied:
        tail.insert(1, model.model.embed_tokens)
    else:
        fully_shard(model.model.embed_tokens)
    fully_shard(tail, reshard_after_forward=False)
    return fully_shard(model)


def compare(way: str, tied: bool) -> None:
    """Fails where the gradients of this rank are not those of the whole batch."""
    rank = dist.get_rank()
    ids = torch.randint(50, (4, 20), generator=torch.Generator().manual_seed(1))
    alone, model = llama(tied), llama(tied)
    alone(input_ids=ids, labels=ids, num_items_in_batch=TARGETS).loss.backward()

    wrapped = DistributedDataParallel(model) if way == "ddp" else sharded(model, tied)
    mine = ids.chunk(RANKS)[rank]
    for _ in range(2):  # the second pass finds what the first left behind
        model.zero_grad()
        with HeadLoss(model).training_context():
            loss = wrapped(input_ids=mine, labels=mine, num_items_in_batch=TARGETS).loss
        (loss * RANKS).backward()  # ranks are averaged
    for (name, found), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
        gradient, whole = found.grad, expected.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        assert gradient is not None
        assert whole is not None
        assert (gradient - whole).norm() <= 2e-6 * whole.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_ranks_have_the_gradients_of_one_process(way: str, tied: bool, tmp_path: Path) -> None:
    run_on_ranks(RANKS, compare, way, tied, folder=tmp_path)
