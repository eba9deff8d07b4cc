"""FSDP2: every rank holds a share of the weights, the gradients and the optimizer's state (hardware.sharding=fsdp2).

accelerate shards the model, layer by layer; checkpoints are written by all ranks together (torch's distributed
checkpoint), and read again by any number of ranks.
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
"""The weights of a sharded checkpoint."""


def build_fsdp_arguments(sharding: str, ranks: int) -> dict[str, Any]:
    """What TrainingArguments must hold; nothing for one rank, which has all of it."""
    if sharding == "none" or ranks == 1:
        return {}
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # a view that nobody changes in place
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}


def enable_fsdp_on_cpu(trainer: Trainer) -> None:
    """Have accelerate shard on the CPU as on CUDA; by itself it does on accelerators only."""
    if not trainer.args.fsdp or trainer.args.device.type != "cpu":
        return
    state = trainer.accelerator.state
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    trainer.is_fsdp_enabled = True


def check_checkpoint_sharding(checkpoint: Path, sharding: str, ranks: int) -> None:
    """Raise UsageError where a checkpoint was sharded and the run is not, or the other way round."""
    sharded, wanted = (
        (checkpoint / SHARDED_WEIGHTS_FOLDER).is_dir(),
        bool(build_fsdp_arguments(sharding, ranks)),
    )
    if sharded and not wanted:
        raise UsageError(
            f"{checkpoint.name} is sharded: go on with hardware.sharding=fsdp2 and two ranks or more"
        )
    if wanted and not sharded:
        raise UsageError(f"{checkpoint.name} is not sharded: go on with hardware.sharding=none")


def gather_full_state_dict(model: torch.nn.Module) -> dict[str, Tensor]:
    """All weights of a sharded model on the CPU of the first rank; all ranks must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore[return-value]
