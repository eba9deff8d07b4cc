"""Question: what does a training lose when it is killed?

Runs each variant of one small training undisturbed. Then the same command runs in another folder, is ended at a
random moment and started again, --kills times, and finally runs to its end. Of four kills one happens during
start-up, two between steps and one within a save. If a run finishes before its kill, it is compared and the next one
starts from scratch.

    killed in    the number of kills during start-up, between steps, in a save, and after the last step
    runs         the number of runs that the kills are spread over
    orphans      processes of a run that still exist a second after it was killed          must be 0
    same         all runs end with the weights, the newest checkpoint's weights and the lines of metrics (without
                 clock-dependent values) of the undisturbed run, bit for bit               must be true

Prints a table and writes results/kills.json, or the file of --result.

    python benchmarks/kills.py                       (half an hour on two cores; with --forked half of that)
    python benchmarks/kills.py --forked --kills 3 --variants adamw workers --result /tmp/kills.json

Each start is a process of its own; with --forked the command and its ranks are forked from a server that has imported
krill already (krill.launch.preload). That is seconds faster, and identical from the command line on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from krill.errors import REQUEUE
from krill.launch.preload import PRELOADED_MODULES, RUNNING_SERVER_VARIABLE, PreloadedServer
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status, read_versions

CLOCK_METRICS = ("tokens_per_second", "mfu", "data_wait", "memory_gb", "seconds_left")
PHASES = ("steps", "start", "steps", "save")
WORDS = [
    "the", "quick", "fox", "jumps", "over", "a", "lazy", "dog", "강아지가", "여우를", "따라", "뛰어간다", "잔다",
]  # fmt: skip
SAVE_EVERY = 4
TEXT = ["data=files", "data.min_chars=0", "data.validation_fraction=0.1", "tokenizer.vocab_size=320"]
TRAINING = [
    "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "hardware.threads=1", "device=cpu",
    "log_every=1", "eval_every=30", f"save_every={SAVE_EVERY}",
]  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """The overrides of one variant of the training, and the signal that ends it."""

    overrides: tuple[str, ...] = ()
    signal_number: signal.Signals = signal.SIGKILL


VARIANTS = {
    "adamw": Variant(("optimizer=adamw",)),
    "muon_moonlight": Variant(("optimizer=muon_moonlight",)),
    "muon_keller": Variant(("optimizer=muon_keller",)),
    "muon_pto": Variant(("optimizer=muon_pto",)),
    "workers": Variant(("hardware.workers=2",)),
    "sigterm": Variant(signal_number=signal.SIGTERM),
    "ranks": Variant(("hardware.processes=2",)),
}


# --- processes ---------------------------------------------------------------------------------------------


class Process:
    """krill-train in its own session, forked from `server` if that can."""

    def __init__(self, overrides: Sequence[str], log: Path, server: PreloadedServer):
        with open(log, "ab") as output:
            self._process = server.spawn(
                [sys.executable, "-m", "krill", "train", *overrides], stdout=output, stderr=output
            )
        self.id = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, condition: Callable[[], bool] = lambda: False) -> None:
        """Waits until `condition` is true or the process has ended."""
        while not self.has_ended() and not condition():
            time.sleep(0.001)

    def list_all(self, folder: Path) -> list[int]:
        """Returns the process, its descendants and the ranks in `folder`, which a server may have forked."""
        processes = [self.id, *list_ranks(folder)]
        for process in processes:
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                with suppress(OSError):  # it has just ended
                    processes += map(int, children.read_text().split())
        return processes


def list_ranks(folder: Path) -> list[int]:
    """Returns the processes of krill.launch.rank that train in `folder`."""
    ranks = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"krill.launch.rank" in words and os.fsencode(folder) in words:
                ranks.append(int(process.name))
    return ranks


def count_orphans(processes: list[int]) -> int:
    """Returns the number of processes that still exist after a second."""
    until = time.monotonic() + 1
    while any(map(_is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.01)
    return sum(map(_is_alive, processes))


def _is_alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# --- a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseSeconds:
    """The seconds of an undisturbed run: until its first logged step, from there to its end, and of a save."""

    start: float
    steps: float
    save: float

    def get_max_delay(self, phase: str, kills: int) -> float:
        """Returns the largest delay of a kill; short enough between steps for one run to take most of the kills."""
        return min(0.75, 1.5 / kills) * self.steps if phase == "steps" else getattr(self, phase)


class Run:
    """One command, started again and again until its run has finished."""

    def __init__(self, variant: Variant, folder: Path, steps: int, server: PreloadedServer):
        self.variant, self.folder, self.steps, self.server = variant, folder, steps, server
        self.log = folder.with_suffix(".log")

    def start(self) -> Process:
        self.previous_metrics_inode = self._get_metrics_inode()
        self.saved_step = max(
            map(checkpoints.parse_step, checkpoints.list_checkpoints(self.folder / "checkpoints")), default=0
        )
        overrides = [
            *TEXT,
            *TRAINING,
            *self.variant.overrides,
            f"steps={self.steps}",
            f"output={self.folder}",
        ]
        return Process(overrides, self.log, self.server)

    def is_finished(self) -> bool:
        return (read_status(self.folder) or {}).get("state") == "finished"

    def is_saving(self) -> bool:
        return (self.folder / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()

    def has_stepped(self) -> bool:
        """Returns whether the last process has logged a step; it first rewrites the previous process's file."""
        is_rewritten = self._get_metrics_inode() != self.previous_metrics_inode
        return is_rewritten and self._get_last_step() > self.saved_step

    def _get_metrics_inode(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.stat().st_ino if file.exists() else 0

    def _get_last_step(self) -> int:
        return max((line["step"] for line in read_metrics(self.folder)), default=0)

    def finish(self) -> PhaseSeconds:
        """Runs to the end and measures the phases."""
        began, process = time.monotonic(), self.start()
        process.wait(self.has_stepped)
        first_step, samples, saving = time.monotonic(), 0, 0
        while not process.has_ended():
            samples, saving = samples + 1, saving + self.is_saving()
            time.sleep(0.001)
        self._check(process.code == 0, process)
        steps = time.monotonic() - first_step
        save = steps * saving / max(samples, 1) / (self.steps / SAVE_EVERY)
        return PhaseSeconds(first_step - began, steps, save)

    def run_and_kill(self, phase: str, delay: float) -> tuple[str, int] | None:
        """Runs and kills the command `delay` seconds into a phase.

        Returns the phase that the kill hit and the number of orphans, or None if the run finished before.
        """
        process = self.start()
        if phase != "start":
            process.wait(self.has_stepped)
        if phase == "save":
            process.wait(self.is_saving)
        until = time.monotonic() + delay
        process.wait(lambda: time.monotonic() >= until)
        if process.has_ended():
            self._check(process.code == 0, process)
            return None
        processes = process.list_all(self.folder)
        os.kill(process.id, self.variant.signal_number)
        killed_phase = self._get_phase()
        process.wait()
        self._check(process.code in (-self.variant.signal_number, REQUEUE, 0), process)
        return None if self.is_finished() else (killed_phase, count_orphans(processes))

    def _get_phase(self) -> str:
        if not self.has_stepped():
            return "start"
        if self.is_saving():
            return "save"
        return "end" if self._get_last_step() == self.steps else "steps"

    def _check(self, condition: bool, process: Process) -> None:
        if not condition:
            raise SystemExit(f"{self.log.read_text()[-3000:]}\nkrill-train ended with {process.code}")

    def read_result(self) -> tuple[bytes, bytes, list[dict[str, Any]]]:
        """Returns what must not differ: final weights, the newest checkpoint's weights, clock-free metrics."""
        newest = checkpoints.list_checkpoints(self.folder / "checkpoints")[-1]
        lines = read_metrics(self.folder)
        return (
            (self.folder / "model" / "model.safetensors").read_bytes(),
            (newest / "model.safetensors").read_bytes(),
            [{key: value for key, value in line.items() if key not in CLOCK_METRICS} for line in lines],
        )


def measure(name: str, root: Path, kills: int, steps: int, server: PreloadedServer) -> dict[str, Any]:
    """Returns the figures of a variant, as listed in this script's head."""
    variant, rng = VARIANTS[name], random.Random(name)
    undisturbed = Run(variant, root / f"{name}-whole", steps, server)
    seconds, expected = undisturbed.finish(), undisturbed.read_result()

    run = Run(variant, root / f"{name}-killed", steps, server)
    killed_in: Counter[str] = Counter()
    runs, orphans, same = 1, 0, True
    while killed_in.total() < kills:
        phase = PHASES[killed_in.total() % len(PHASES)]
        kill = run.run_and_kill(phase, rng.random() * seconds.get_max_delay(phase, kills))
        if kill is None:
            runs, same = runs + 1, same and run.read_result() == expected
            shutil.rmtree(run.folder)
            continue
        killed_in[kill[0]] += 1
        orphans += kill[1]
    run.finish()
    return {
        "seconds": round(seconds.start + seconds.steps, 1), "kills": kills, "killed_in": dict(killed_in),
        "runs": runs, "orphans": orphans, "same": same and run.read_result() == expected,
    }  # fmt: skip


def prepare(root: Path, server: PreloadedServer) -> None:
    """Prepares a small text, and the tokenizer and tokens that all runs share."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 20))) + f" {n}" for n in range(300)]
    file = root / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    TEXT.append(f"data.paths=[{file}]")
    command = [sys.executable, "-m", "krill", "preprocess", *TEXT]
    code = server.spawn(command, stdout=subprocess.DEVNULL).wait()
    if code:
        raise SystemExit(f"krill-preprocess ended with {code}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20, help="per variant")
    parser.add_argument("--steps", type=int, default=240, help="per run")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument(
        "--forked", action="store_true", help="fork the command from a server that has imported krill"
    )
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    arguments = parser.parse_args()
    result = {
        "question": "what a training loses that is ended at random moments and started again",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "torch", "transformers"),
        "steps": arguments.steps,
        "forked": arguments.forked,
        "variants": {},
    }
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = Path(temporary)
        os.environ |= {"KRILL_OUTPUTS": temporary, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        server = PreloadedServer(None, None)
        if arguments.forked:
            server = stack.enter_context(PreloadedServer.start(PRELOADED_MODULES["train"]))
            if server.address is not None:  # for the ranks
                os.environ[RUNNING_SERVER_VARIABLE] = str(server.address)
        prepare(root, server)
        for name in arguments.variants:
            figures = measure(name, root, arguments.kills, arguments.steps, server)
            print(f"{name:<16}", *(f"{key} {value}" for key, value in figures.items()), sep="   ", flush=True)
            result["variants"][name] = figures
            arguments.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
