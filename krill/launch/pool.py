"""A pool that runs commands on this machine: one at a time in each slot, which has its own GPUs or CPU threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from krill.errors import SignalInterrupt, UsageError
from krill.launch.devices import list_visible_gpus
from krill.launch.supervise import ProcessGroup, SpawnFunction, spawn_process


def build_slot_environments(max_parallel: int | str, device: str, ranks: int) -> list[dict[str, str]]:
    """Returns the environment of each slot: its own GPUs, or its share of the CPU.

    `ranks`: processes of one command, a GPU each. Raises UsageError when there are fewer GPUs than the slots need.
    """
    gpus = list_visible_gpus() if device != "cpu" else []
    if not gpus:
        count = 1 if max_parallel == "auto" else int(max_parallel)
        threads = str(max(1, (os.cpu_count() or 1) // count))
        return [{} if count == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}] * count
    limit = max(1, len(gpus) // ranks)
    count = limit if max_parallel == "auto" else int(max_parallel)
    if count > limit:
        raise UsageError(
            f"sweep.max_parallel={count}: {len(gpus)} GPUs, {ranks} for each point: use sweep.max_parallel={limit}"
        )
    groups = [gpus[slot * ranks : (slot + 1) * ranks] for slot in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def run_commands(
    commands: Sequence[Sequence[str]],
    slots: Sequence[Mapping[str, str]],
    output_stems: Sequence[Path] | None,
    on_start: Callable[[int], None],
    on_exit: Callable[[int, int], bool],
    spawn: SpawnFunction = spawn_process,
) -> None:
    """Run `commands`, one at a time in each of the `slots`.

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
