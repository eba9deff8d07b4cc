"""FSDP2: shards weights, gradients and optimizer state over the ranks (hardware.sharding=fsdp2).

accelerate shards the model layer by layer. All ranks write one checkpoint together (torch's distributed checkpoint),
which any number of ranks can load.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
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


def enable_fsdp_on_cpu(trainer: Trainer) -> None:
    """Makes accelerate shard on the CPU too, which it does only on accelerators by default."""
    if not trainer.args.fsdp or trainer.args.device.type != "cpu":
        return
    state = trainer.accelerator.state
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    trainer.is_fsdp_enabled = True


def check_checkpoint_sharding(checkpoint: Path, sharding: str, world_size: int) -> None:
    """Raises UsageError if the checkpoint is sharded and the run is not, or the other way round."""
    is_checkpoint_sharded = (checkpoint / SHARDED_WEIGHTS_FOLDER).is_dir()
    is_run_sharded = bool(build_fsdp_arguments(sharding, world_size))
    if is_checkpoint_sharded and not is_run_sharded:
        raise UsageError(
            f"{checkpoint.name} is sharded: resume with hardware.sharding=fsdp2 and at least two ranks"
        )
    if is_run_sharded and not is_checkpoint_sharded:
        raise UsageError(f"{checkpoint.name} is not sharded: resume with hardware.sharding=none")


def gather_full_state_dict(model: torch.nn.Module) -> dict[str, Tensor]:
    """Gathers all weights of a sharded model on the CPU of rank 0; every rank must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore[return-value]
