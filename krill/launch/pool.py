"""Commands on this machine, so many at once, each on devices of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krill.errors import SignalInterrupt, UsageError
from krill.launch.devices import list_visible_gpus

POOL_POLL_SECONDS = 0.05


def build_slot_environments(asked: int | str, device: str, ranks: int) -> list[dict[str, str]]:
    """The environment of each slot: the devices that are its own, or its share of the CPU.

    `ranks`: processes of one command, a GPU each. Raises UsageError for more slots than GPUs.
    """
    gpus = list_visible_gpus() if device != "cpu" else []
    if not gpus:
        count = 1 if asked == "auto" else int(asked)
        threads = str(max(1, (os.cpu_count() or 1) // count))
        return [{} if count == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}] * count
    most = max(1, len(gpus) // ranks)
    count = most if asked == "auto" else int(asked)
    if count > most:
        raise UsageError(
            f"sweep.max_parallel={count}: {len(gpus)} GPUs, {ranks} for each point: write sweep.max_parallel={most}"
        )
    parts = [gpus[slot * ranks : (slot + 1) * ranks] for slot in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


@dataclass
class _RunningCommand:
    index: int
    slot: int
    process: subprocess.Popen[bytes]


def run_commands(
    commands: Sequence[Sequence[str]],
    slots: Sequence[Mapping[str, str]],
    outputs: Sequence[Path] | None,
    began: Callable[[int], None],
    ended: Callable[[int, int], bool],
) -> None:
    """Run `commands`, one in each of the `slots` at a time.

    `outputs`: files, less their ending, for what each prints; None: it is printed here. `began`(index) and
    `ended`(index, exit code) are told of each; where the latter returns False, no further one begins. A signal goes
    on to those that run, which are waited for.
    """
    waiting, free = list(range(len(commands)))[::-1], list(range(len(slots)))[::-1]
    running: list[_RunningCommand] = []
    try:
        while waiting or running:
            while waiting and free:
                index, slot = waiting.pop(), free.pop()
                output = outputs[index] if outputs is not None else None
                running.append(
                    _RunningCommand(index, slot, _start_command(commands[index], slots[slot], output))
                )
                began(index)
            time.sleep(POOL_POLL_SECONDS)
            for item in [item for item in running if item.process.poll() is not None]:
                running.remove(item)
                free.append(item.slot)
                if not ended(item.index, item.process.returncode):
                    waiting.clear()
    except (SignalInterrupt, KeyboardInterrupt) as stop:
        received = getattr(stop, "signal", None) or signal.SIGINT
        for item in running:
            item.process.send_signal(received)
        for item in running:
            item.process.wait()
        raise
    finally:
        for item in running:
            item.process.kill()


def _start_command(
    command: Sequence[str], slot: Mapping[str, str], output: Path | None
) -> subprocess.Popen[bytes]:
    with ExitStack() as files:
        streams: dict[str, Any] = {}
        if output is not None:
            for stream, end in (("stdout", ".out"), ("stderr", ".log")):
                streams[stream] = files.enter_context(open(output.with_suffix(end), "ab"))
        # A session of its own: the terminal's Ctrl-C reaches the parent alone, which passes it on.
        return subprocess.Popen(
            command, env=os.environ | slot, stdin=subprocess.DEVNULL, start_new_session=True, **streams
        )
