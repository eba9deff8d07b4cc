"""A pool that runs commands on this machine: one at a time in each slot, which has its own GPUs or CPU threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from krill.errors import SignalInterrupt, UsageError
from krill.launch.devices import list_visible_gpus
from krill.launch.supervise import ProcessGroup, SpawnFunction, spawn_process
from krill.resources import count_cpu_cores

MEMORY_PER_COMMAND = 4 * 2**30
"""Bytes of the machine's memory for each command that runs on the CPU at once, where krill chooses their number."""


def build_slot_environments(
    max_parallel: int | str, device: str, ranks: int, num_commands: int = 1, threads: int | None = None
) -> list[dict[str, str]]:
    """Returns the environment of each slot: its own GPUs, or its share of the CPU.

    `ranks`: processes of one command, a GPU each. `threads`: CPU threads of each rank, where the configuration sets
    them. Raises UsageError when there are fewer GPUs than the slots need.
    """
    gpus = list_visible_gpus() if device != "cpu" else []
    if not gpus:
        return _build_cpu_slots(max_parallel, ranks, num_commands, threads)
    limit = max(1, len(gpus) // ranks)
    count = limit if max_parallel == "auto" else int(max_parallel)
    if count > limit:
        raise UsageError(
            f"sweep.max_parallel={count}: {len(gpus)} GPUs, {ranks} for each point: use sweep.max_parallel={limit}"
        )
    groups = [gpus[slot * ranks : (slot + 1) * ranks] for slot in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def _build_cpu_slots(
    max_parallel: int | str, ranks: int, num_commands: int, threads: int | None
) -> list[dict[str, str]]:
    """Returns the environment of each slot, its share of the cores.

    auto: a slot for each command for which there are a core per thread and `MEMORY_PER_COMMAND`.
    """
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if max_parallel == "auto":
        threads = threads or (int(requested) if requested.isdecimal() else 0) or 1
        by_cores = count_cpu_cores() // (ranks * threads)
        by_memory = psutil.virtual_memory().available // MEMORY_PER_COMMAND
        count = max(1, min(num_commands, by_cores, by_memory))
    else:
        count = int(max_parallel)
    if count == 1 or requested:
        return [{}] * count
    return [{"OMP_NUM_THREADS": str(max(1, count_cpu_cores() // (count * ranks)))}] * count


def run_commands(
    commands: Sequence[Sequence[str]],
    slots: Sequence[Mapping[str, str]],
    output_stems: Sequence[Path] | None,
    on_start: Callable[[int], None],
    on_exit: Callable[[int, int], bool],
    spawn: SpawnFunction = spawn_process,
) -> None:
    """Runs `commands`, one at a time in each of the `slots`.

    `output_stems`: paths without a suffix of the files to which each command's output goes; None: it is printed.
    `on_start`(index) and `on_exit`(index, return code) are called for each command; when `on_exit` returns False, no
    further command starts. A signal is forwarded to the running commands, which are waited for.
    """
    waiting, free = list(range(len(commands)))[::-1], list(range(len(slots)))[::-1]
    slot_of: dict[int, int] = {}
    running = ProcessGroup(spawn)
    try:
        while waiting or running:
            while waiting and free:
                index = waiting.pop()
                slot = slot_of[index] = free.pop()
                output_stem = output_stems[index] if output_stems is not None else None
                running.start(index, commands[index], slots[slot], output_stem)
                on_start(index)
            for index, code in running.wait_any():
                free.append(slot_of[index])
                if not on_exit(index, code):
                    waiting.clear()
    except (SignalInterrupt, KeyboardInterrupt) as interrupt:
        running.send_signal(getattr(interrupt, "signal", None) or signal.SIGINT)
        running.wait()
        raise
    finally:
        running.kill()
