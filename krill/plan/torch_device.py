"""The device of this process as a plan needs it, where torch is imported anyway: a dry run, and the plan of a run."""

from __future__ import annotations

from dataclasses import replace

import torch

from krill.config.schema import TrainConfig
from krill.device_table import Device, find_device
from krill.plan.machine import Machine, identify_machine
from krill.plan.setting import describe_local_device
from krill.resources import read_memory_limit
from krill.training.compute.device import resolve_device, resolve_precision
from krill.training.metrics.peak_flops import get_peak_flops

UNKNOWN_BANDWIDTH = 1e12
"""Bytes per second of a GPU that is not in the table."""


def get_device_memory(device: str) -> int:
    """Returns the memory in bytes: of the CUDA device; for the CPU, of the machine or of a container or SLURM job."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return read_memory_limit()


def describe_torch_device(config: TrainConfig) -> Device:
    """Returns the device that `config` runs on in this process; a GPU that is not in the table is measured."""
    kind = resolve_device(config.device)
    precision = resolve_precision(config.hardware.precision, kind)
    if kind == "cpu":
        device = describe_local_device(config, [])
        if precision == "fp32":
            return device
        peak = get_peak_flops(kind, precision, config.hardware.threads or torch.get_num_threads())
        return replace(device, peak_flops={**device.peak_flops, precision: peak})
    name, memory = torch.cuda.get_device_name(), get_device_memory(kind)
    known = find_device(name)
    if known is not None:
        return replace(known, memory=memory)
    peaks = {key: get_peak_flops(kind, key, 1) for key in {precision, "fp32"}}
    if "fp8" in peaks:
        peaks["bf16"] = peaks["fp8"]
    return Device(name, kind, peaks, memory, UNKNOWN_BANDWIDTH, None, "measured now, not in the table")


def identify_torch_machine(config: TrainConfig) -> Machine:
    """Returns this machine, as the measurements of `config` are kept for it."""
    if resolve_device(config.device) == "cpu":
        return identify_machine()
    return identify_machine(torch.cuda.get_device_name(), torch.cuda.device_count())
