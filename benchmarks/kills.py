"""Question: what does a training lose when it is killed?

Each variant of one small training is run undisturbed. Then the same command is run in another folder, ended at a
random moment and given again, so many times, and at last let finish. Of four kills one comes while the process
starts, two between steps and one within a save. When a run was quicker than its kill, it is compared and the next
one begins anew.

    killed in    how often it hit the start, the steps, a save, and the end, when the last step was done
    runs         that the kills were spread over
    orphans      processes of a run that were there a second after it was killed           must be 0
    same         all runs ended with the weights, the newest checkpoint's weights and the lines of metrics (less
                 what a clock says) of the undisturbed one, to the bit                      must be true

Prints a table and writes results/kills.json; with another --result, that file.

    python benchmarks/kills.py                       (half an hour on two cores; with --forked half of that)
    python benchmarks/kills.py --forked --kills 3 --variants adamw workers --result /tmp/kills.json

A start is the command krill-train; with --forked a copy of this process, which has loaded krill already: seconds
quicker, and the same from the command line on.
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
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from krill.errors import REQUEUE
from krill.runs import checkpoints
from krill.runs.record import read_metrics, read_status

SCRIPTS = Path(sys.executable).parent
CLOCK = ("tokens_per_second", "mfu", "data_wait", "memory_gb", "seconds_left")
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
    """One way to run the training, and what ends it."""

    words: tuple[str, ...] = ()
    number: signal.Signals = signal.SIGKILL


VARIANTS = {
    "adamw": Variant(("optimizer=adamw",)),
    "muon_moonlight": Variant(("optimizer=muon_moonlight",)),
    "muon_keller": Variant(("optimizer=muon_keller",)),
    "muon_pto": Variant(("optimizer=muon_pto",)),
    "workers": Variant(("hardware.workers=2",)),
    "sigterm": Variant(number=signal.SIGTERM),
    "ranks": Variant(("hardware.processes=2",)),
}


# --- processes ---------------------------------------------------------------------------------------------


class Process:
    """A command in a session of its own. `forked`: a copy of this process does what the command's words say."""

    def __init__(self, command: Sequence[str], log: Path, forked: bool = False):
        self.code: int | None = None
        self.id = os.fork()
        if self.id:
            return
        code = 1
        try:
            os.setsid()
            written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(written, 1)
            os.dup2(written, 2)
            if not forked:
                os.execv(command[0], list(command))
            code = _trained(command[1:])
        finally:
            os._exit(code)

    def ended(self) -> bool:
        """Whether it has; `code` is its exit code then, negative for a signal."""
        if self.code is None:
            found, status = os.waitpid(self.id, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code is not None

    def wait(self, happened: Callable[[], bool] = lambda: False) -> None:
        """Until it has happened, or the process has ended."""
        while not self.ended() and not happened():
            time.sleep(0.001)

    def tree(self) -> list[int]:
        """The process and all that descend from it."""
        found = [self.id]
        for process in found:
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                with suppress(OSError):  # it has just ended
                    found += map(int, children.read_text().split())
        return found


def _trained(words: Sequence[str]) -> int:
    from krill.cli import app
    from krill.cli.train import run_task

    sys.argv = ["krill-train"]
    return app.main("train", run_task, words)


def left(processes: list[int]) -> int:
    """How many of them are there a second from now."""
    until = time.monotonic() + 1
    while any(map(_alive, processes)) and time.monotonic() < until:
        time.sleep(0.01)
    return sum(map(_alive, processes))


def _alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# --- a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seconds:
    """What an undisturbed run takes: until its first step is logged, from there to its end, for a save."""

    start: float
    steps: float
    save: float

    def of(self, phase: str, kills: int) -> float:
        """Within what time a phase is hit; so short for the steps that one run outlasts most of the kills."""
        return 1.5 * self.steps / kills if phase == "steps" else getattr(self, phase)


class Run:
    """One command, given again and again until its run has finished."""

    def __init__(self, variant: Variant, folder: Path, steps: int, forked: bool):
        self.variant, self.folder, self.steps, self.forked = variant, folder, steps, forked
        self.log = folder.with_suffix(".log")

    def start(self) -> Process:
        self.before = self._metrics()
        self.saved = max(
            map(checkpoints.parse_step, checkpoints.list_checkpoints(self.folder / "checkpoints")), default=0
        )
        words = [*TEXT, *TRAINING, *self.variant.words, f"steps={self.steps}", f"output={self.folder}"]
        return Process([str(SCRIPTS / "krill-train"), *words], self.log, self.forked)

    def finished(self) -> bool:
        return (read_status(self.folder) or {}).get("state") == "finished"

    def saving(self) -> bool:
        return (self.folder / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()

    def stepped(self) -> bool:
        """Whether the last process has logged a step; lines that the one before has left are cut first."""
        return self._metrics() != self.before and self._last_step() > self.saved

    def _metrics(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.stat().st_ino if file.exists() else 0

    def _last_step(self) -> int:
        return max((line["step"] for line in read_metrics(self.folder)), default=0)

    def finish(self) -> Seconds:
        """Let it run to its end, and look on."""
        began, process = time.monotonic(), self.start()
        process.wait(self.stepped)
        first, looks, saving = time.monotonic(), 0, 0
        while not process.ended():
            looks, saving = looks + 1, saving + self.saving()
            time.sleep(0.001)
        self._demand(process.code == 0, process)
        steps = time.monotonic() - first
        return Seconds(first - began, steps, steps * saving / max(looks, 1) / (self.steps / SAVE_EVERY))

    def kill(self, phase: str, delay: float) -> tuple[str, int] | None:
        """Run it and end it `delay` seconds into a phase: where it was hit, and its orphans; None: it was quicker."""
        process = self.start()
        if phase != "start":
            process.wait(self.stepped)
        if phase == "save":
            process.wait(self.saving)
        until = time.monotonic() + delay
        process.wait(lambda: time.monotonic() >= until)
        if process.ended():
            self._demand(process.code == 0, process)
            return None
        processes = process.tree()
        os.kill(process.id, self.variant.number)
        hit = self._phase()
        process.wait()
        self._demand(process.code in (-self.variant.number, REQUEUE, 0), process)
        return None if self.finished() else (hit, left(processes))

    def _phase(self) -> str:
        if not self.stepped():
            return "start"
        if self.saving():
            return "save"
        return "end" if self._last_step() == self.steps else "steps"

    def _demand(self, good: bool, process: Process) -> None:
        if not good:
            raise SystemExit(f"{self.log.read_text()[-3000:]}\nkrill-train has ended with {process.code}")

    def result(self) -> tuple[bytes, bytes, list[dict[str, Any]]]:
        """What must be the same: the weights, those of the newest checkpoint, the metrics less the clock's."""
        newest = checkpoints.list_checkpoints(self.folder / "checkpoints")[-1]
        lines = read_metrics(self.folder)
        return (
            (self.folder / "model" / "model.safetensors").read_bytes(),
            (newest / "model.safetensors").read_bytes(),
            [{key: value for key, value in line.items() if key not in CLOCK} for line in lines],
        )


def measured(name: str, root: Path, kills: int, steps: int, forked: bool) -> dict[str, Any]:
    """The figures of a variant, as this script's head lists them."""
    variant, choose = VARIANTS[name], random.Random(name)
    whole = Run(variant, root / f"{name}-whole", steps, forked)
    seconds, expected = whole.finish(), whole.result()

    run = Run(variant, root / f"{name}-killed", steps, forked)
    killed_in: Counter[str] = Counter()
    runs, orphans, same = 1, 0, True
    while killed_in.total() < kills:
        phase = PHASES[killed_in.total() % len(PHASES)]
        killed = run.kill(phase, choose.random() * seconds.of(phase, kills))
        if killed is None:
            runs, same = runs + 1, same and run.result() == expected
            shutil.rmtree(run.folder)
            continue
        killed_in[killed[0]] += 1
        orphans += killed[1]
    run.finish()
    return {
        "seconds": round(seconds.start + seconds.steps, 1), "kills": kills, "killed_in": dict(killed_in),
        "runs": runs, "orphans": orphans, "same": same and run.result() == expected,
    }  # fmt: skip


def prepare(root: Path) -> None:
    """A small text, and the tokenizer and tokens that all runs share."""
    choose = random.Random(0)
    texts = [" ".join(choose.choices(WORDS, k=choose.randint(2, 20))) + f" {n}" for n in range(300)]
    file = root / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    TEXT.append(f"data.paths=[{file}]")
    subprocess.run([str(SCRIPTS / "krill-preprocess"), *TEXT], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20, help="per variant")
    parser.add_argument("--steps", type=int, default=240, help="of a run")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument(
        "--forked", action="store_true", help="fork this process instead of running the command"
    )
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    asked = parser.parse_args()
    result = {
        "question": "what a training loses that is ended at random moments and started again",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "torch", "transformers")},
        "steps": asked.steps,
        "forked": asked.forked,
        "variants": {},
    }
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"KRILL_OUTPUTS": place, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        prepare(Path(place))
        if asked.forked:
            import_module("krill.training.run")
        for name in asked.variants:
            found = measured(name, Path(place), asked.kills, asked.steps, asked.forked)
            print(f"{name:<16}", *(f"{key} {value}" for key, value in found.items()), sep="   ", flush=True)
            result["variants"][name] = found
            asked.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
