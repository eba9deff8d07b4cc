"""FSDP2: shards weights, gradients and optimizer state over ranks: all of them, or those of a node.

With hardware.sharding=fsdp2 all ranks share one copy. With hsdp (hybrid sharding) the ranks of each node do, so that
weights are gathered within a node, and only gradients are averaged across nodes.

accelerate shards the model layer by layer. All ranks write one checkpoint together (torch's distributed checkpoint),
which any number of ranks can load.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import Trainer

from krill.errors import UsageError

SHARDED_WEIGHTS_FOLDER = "pytorch_model_fsdp_0"
"""The folder of the weights in a sharded checkpoint."""


def build_fsdp_arguments(sharding: str, world_size: int) -> dict[str, Any]:
    """Returns the keyword arguments of TrainingArguments that enable FSDP2; none for a single rank."""
    if sharding == "none" or world_size == 1:
        return {}
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # a view that is not changed in place
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}


def configure_fsdp(trainer: Trainer, shard_size: int) -> None:
    """Sets the mesh and the data types of FSDP2, before the model is sharded; makes it work on the CPU as on CUDA.

    Args:
        shard_size: The number of consecutive ranks that share one copy of the weights; with fewer than all ranks,
            there are several copies (HSDP).
    """
    state, device = trainer.accelerator.state, trainer.args.device.type
    if trainer.args.fsdp and device == "cpu":  # accelerate builds its plugin on accelerators only
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        trainer.is_fsdp_enabled = True
    if not trainer.is_fsdp_enabled:
        return
    if 1 < shard_size < trainer.args.world_size:
        replicas = trainer.args.world_size // shard_size
        state.parallelism_config = ParallelismConfig(dp_replicate_size=replicas, dp_shard_size=shard_size)
        state.device_mesh = init_device_mesh(
            device, (replicas, shard_size), mesh_dim_names=tuple(state.parallelism_config.fsdp_dim_names)
        )
    if trainer.args.bf16:
        # accelerate's own policy also reduces gradients, sums them over micro batches, and returns the loss in bf16
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # accelerate enables autocast only without sharding; what the layers add up is fp32 there
        trainer.model.forward = torch.autocast(device, torch.bfloat16)(trainer.model.forward)


def shard_in_fp32(trainer: Trainer) -> None:
    """Shards embedding, output head and norm weights in fp32, before accelerate shards the layers in bf16.

    Rounded embeddings and norm weights, and gradients of many tokens summed in bf16, would make the gradients less
    exact than DDP's. The norm weights are gathered with the embedding's, until the end of the backward pass.
    """
    if not trainer.is_fsdp_enabled or not trainer.args.bf16:
        return
    embedding, head = trainer.model.get_input_embeddings(), trainer.model.get_output_embeddings()
    accelerator, mesh = trainer.accelerator, None
    if accelerator.parallelism_config:
        mesh = accelerator.torch_device_mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    # The backward pass begins with the head: its weight stays gathered after the forward pass.
    shard = partial(
        fully_shard,
        reshard_after_forward=False,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
    )
    norms = accelerator.state.fsdp_plugin.ignored_modules = list_norms(trainer.model)
    # Only while it is sharded the embedding owns them: hooks of their own would break the graphs of compiled layers.
    embedding.add_module("norms", torch.nn.ModuleList(norms))
    try:
        shard([embedding, head] if head is not None and head.weight is embedding.weight else embedding)
    finally:
        del embedding.norms
    if head is not None and head.weight is not embedding.weight:
        shard(head)


def list_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Returns the modules whose own parameters are all vectors: RMSNorm, LayerNorm."""
    own = {module: list(module.parameters(recurse=False)) for module in model.modules()}
    return [module for module, params in own.items() if params and all(param.ndim == 1 for param in params)]


def check_checkpoint_sharding(checkpoint: Path, sharding: str, world_size: int) -> None:
    """Raises UsageError if the checkpoint is sharded and the run is not, or the other way round."""
    is_checkpoint_sharded = (checkpoint / SHARDED_WEIGHTS_FOLDER).is_dir()
    is_run_sharded = bool(build_fsdp_arguments(sharding, world_size))
    if is_checkpoint_sharded and not is_run_sharded:
        raise UsageError(
            f"{checkpoint.name} is sharded: resume with hardware.sharding=fsdp2 (or hsdp) and at least two ranks"
        )
    if is_run_sharded and not is_checkpoint_sharded:
        raise UsageError(f"{checkpoint.name} is not sharded: resume with hardware.sharding=none")


def gather_full_state_dict(model: torch.nn.Module) -> dict[str, Tensor]:
    """Gathers all weights of a sharded model on the CPU of rank 0; every rank must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore[return-value]
