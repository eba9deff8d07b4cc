"""Question: how many steps does an optimizer need to a validation loss, and what does a step cost?

A row is a variant, which is a name for overrides of krill-train, at a learning rate and a size. All rows of a size
have the same text, model, batch and schedule; rows with the same seed have the same initial weights and order of the
text. 1,024 tokens per step, a vocabulary of 2,048, and by default this number of steps:

    0.3m    328 thousand parameters, of which 131 thousand are embeddings       400 steps
    1m      1.05 million, of which 262 thousand are embeddings                  800 steps
    4m      4.2 million, of which 524 thousand are embeddings                   400 steps

    reached    seeds that reach the target, in bits per byte of held-out text
    steps      mean and standard deviation over seeds of the step at which the loss crosses the target, interpolated
               between two validations; none if a seed does not reach it
    ratio, p   of the steps to those of the reference, and the p-value of the difference (Welch's t-test)
    loss, p    the same for the bits per byte after the last step, which every row has
    cost       seconds of a training step divided by those of the reference: the median of short runs that alternate

The target is fixed when the reference is measured first: its mean after four fifths of the steps. A fast row crosses
it before its learning rate has decayed as far as that of the reference, so `ratio` is nearer to 1 than between runs
which end at the target; `--steps` measures a row with another number of steps.

results/optimizer_track.json, or the file of --result, keeps every row that was ever measured, with the loss curve,
the load of the machine and the version of each seed. What is there is not measured again: the same command resumes
after an interruption, and with more --seeds adds those that are missing; several processes with the same --folder
share the runs. --data takes Parquet files or folders of them, trained on for at most 4 epochs; without it the
built-in text is used. Rows of other text are not compared.

    python benchmarks/optimizer_track.py --data texts --rows muon_moonlight adamw --lr 3e-3 6e-3 1.2e-2
    python benchmarks/optimizer_track.py --data texts --rows muon_keller --size 1m                    (repeats a row)
    python benchmarks/optimizer_track.py --define slow_beta optimizer=muon_moonlight 'optimizer.betas=[0.9,0.99]'
    python benchmarks/optimizer_track.py --data texts                                                 (only the table)

A run of 0.3m takes half a minute on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from krill.atomic import write_text
from krill.evaluation.statistics import t_test_p_value
from krill.launch.preload import PRELOADED_MODULES, PreloadedServer
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status, read_versions

SETTING = (
    "tokenizer.vocab_size=2048", "sequence_len=256", "batch.micro_batch_size=4", "device=cpu", "eval_tokens=32768",
    "save_every=1000000", "keep_best=false", "evaluation.at_end=false", "rule=off", "scheduler=cosine",
)  # fmt: skip
"""Fixed for all rows; the overrides of a variant come after it."""
FILES = ("data=files", "data.validation_fraction=0.01", "data.minhash.threshold=0.8")
VALIDATIONS = 20
"""The number of validations of a run."""
MAX_EPOCHS = 4
TARGET_SHARE = 0.8
"""The share of the steps after which the loss of the reference becomes the target."""
COST_ROUNDS, COST_STEPS, COST_LOG_EVERY = 5, 40, 4


class Size(NamedTuple):
    """A model, and the number of steps that it is trained for."""

    model: tuple[str, ...]
    steps: int


def make_size(steps: int, hidden: int, intermediate: int, layers: int, heads: int) -> Size:
    """Returns a Llama with half as many key-value heads as heads."""
    values = {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2,
    }  # fmt: skip
    return Size(tuple(f"model.{key}={value}" for key, value in values.items()), steps)


SIZES = {
    "0.3m": make_size(400, 64, 192, 4, 4),
    "1m": make_size(800, 128, 384, 4, 4),
    "4m": make_size(400, 256, 704, 5, 4),
}
DEFAULT_RATE = 3e-3
MOONLIGHT = "optimizer=muon_moonlight"
VARIANTS: dict[str, tuple[str, ...]] = {
    "adamw": ("optimizer=adamw",),
    "muon_moonlight": (MOONLIGHT,),
    "muon_keller": ("optimizer=muon_keller",),
    "muon_pto": ("optimizer=muon_pto",),
    "muon_krill": ("optimizer=muon_krill", "scheduler.warmup=0.01"),
    "muon_krill_no_z_loss": ("optimizer=muon_krill", "scheduler.warmup=0.01", "optimizer.z_loss=0"),
    "muon_krill_wsd": (
        "optimizer=muon_krill",
        "scheduler=wsd",
        "scheduler.decay=0.4",
        "scheduler.warmup=0.01",
        "optimizer.z_loss=0",
    ),
    "normuon": (MOONLIGHT, "optimizer.normuon=true"),
    "cautious": (MOONLIGHT, "optimizer.cautious=true"),
    "polar_express": (MOONLIGHT, "optimizer.ns_coefficients=polar_express"),
    "no_decay": (MOONLIGHT, "optimizer.weight_decay=0.0"),
    "cosine_to_zero": (MOONLIGHT, "scheduler=cosine_to_zero"),
    "wsd": (MOONLIGHT, "scheduler=wsd"),
}
"""What can be measured by name; further names are those of --define and of the result file."""


@dataclass(frozen=True)
class Row:
    """A variant at a learning rate, a size and a number of steps, on some text."""

    size: str
    variant: str
    overrides: tuple[str, ...]
    lr: float
    steps: int
    data: str

    def get_key(self) -> dict[str, Any]:
        """Returns what the row is found by in the result file."""
        return {
            "size": self.size, "variant": self.variant, "overrides": list(self.overrides), "lr": self.lr,
            "steps": self.steps, "data": self.data,
        }  # fmt: skip

    def get_run_name(self, seed: int) -> str:
        """Returns the name of the folder in which the row is measured with a seed."""
        return f"{self.size}-{self.variant}-{self.lr:g}-{self.steps}-{seed}"


class Results:
    """The rows of the result file, written after every run."""

    def __init__(self, path: Path):
        self.path = path
        self.targets: list[dict[str, Any]] = []
        self.costs: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.merge_file()

    def merge_file(self) -> None:
        """Adds what the file has: other processes write to it as well."""
        content = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        for target in content.get("targets", []):
            get_entry(self.targets, get_key(target, "size", "data"), target)
        for cost in content.get("costs", []):
            get_entry(self.costs, get_key(cost, "size", "variant", "overrides", "reference"), cost)
        for row in content.get("rows", []):
            key = get_key(row, "size", "variant", "overrides", "lr", "steps", "data")
            seeds = get_entry(self.rows, key, {"seeds": {}})["seeds"]
            seeds.update(row["seeds"] | seeds)

    def get_target(self, key: Mapping[str, Any]) -> float | None:
        """Returns the target, in bits per byte, of the size and the text in `key`; None before it is measured."""
        return next((entry["bits_per_byte"] for entry in self.targets if key.items() <= entry.items()), None)

    def get_seeds(self, row: Row) -> dict[str, Any]:
        """Returns the measured runs of a row by seed, to be read and added to."""
        return get_entry(self.rows, row.get_key(), {"seeds": {}})["seeds"]

    def list_variants(self) -> dict[str, tuple[str, ...]]:
        """Returns the overrides of every variant that was measured."""
        return {row["variant"]: tuple(row["overrides"]) for row in self.rows}

    def write(self) -> None:
        """Writes the file, a line for each row, with what other processes have written to it."""
        with FileLock(self.path.with_suffix(".lock")):
            self.merge_file()
            self._write_file()

    def _write_file(self) -> None:
        sections = {"targets": self.targets, "costs": self.costs, "rows": self.rows}
        head = {
            "question": (__doc__ or "").splitlines()[0].removeprefix("Question: "),
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": 1},
            "setting": list(SETTING),
            "setting_of_files": list(FILES),
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        for name, entries in sections.items():
            rows = ",\n".join(f"    {json.dumps(entry)}" for entry in entries if entry.get("seeds") != {})
            lines.append(f'"{name}": [\n{rows}\n  ]')
        write_text(self.path, "{\n  " + ",\n  ".join(lines) + "\n}\n")


def get_key(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns the named items of an entry."""
    return {name: entry[name] for name in names}


def get_entry(entries: list[dict[str, Any]], key: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry which has all items of `key`; without one, appends `new` with them."""
    for entry in entries:
        if key.items() <= entry.items():
            return entry
    entries.append({**key, **new})
    return entries[-1]


def interpolate_step(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Returns the step at which a loss first is at most `target`; None if it never is.

    `curve`: steps and their losses, in order. Between two validations the loss is assumed to be linear; a target
    reached at the first one is reached there.
    """
    before: tuple[int, float] | None = None
    for step, loss in curve:
        if loss <= target:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)
        before = step, loss
    return None


def compute_welch_p_value(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of Welch's t-test (1947) for two means; None for a single value."""
    if min(len(one), len(other)) < 2:
        return None
    terms = [statistics.variance(values) / len(values) for values in (one, other)]
    difference = statistics.mean(one) - statistics.mean(other)
    if not sum(terms):
        return 0.0 if difference else 1.0
    degrees = sum(terms) ** 2 / sum(
        term**2 / (len(values) - 1) for term, values in zip(terms, (one, other), strict=True)
    )
    return t_test_p_value(difference / sqrt(sum(terms)), degrees)


@dataclass(frozen=True)
class Summary:
    """What the seeds of a row have in common."""

    steps: list[float]
    """The step to the target of each seed that reaches it."""
    losses: list[float]
    """The last loss of each seed that has not diverged."""
    seeds: int

    @property
    def reaches_target(self) -> bool:
        """Whether all seeds do."""
        return len(self.steps) == self.seeds > 0


def summarize(runs: Iterable[Mapping[str, Any]], target: float) -> Summary:
    """Summarizes the runs of a row."""
    runs = list(runs)
    crossings = [interpolate_step(run["curve"], target) for run in runs]
    losses = [run["curve"][-1][1] for run in runs if not run["diverged"]]
    return Summary([step for step in crossings if step is not None], losses, len(runs))


def describe(row: Summary, reference: Summary) -> dict[str, Any]:
    """Returns the figures of a row beside those of the reference; None where they cannot be computed."""
    figures: dict[str, Any] = {"seeds": row.seeds, "reached": len(row.steps)}
    complete = len(row.losses) == row.seeds > 0
    for name, ratio, p_value, values, others, is_known in (
        ("steps", "ratio", "p", row.steps, reference.steps, row.reaches_target),
        ("loss", "loss_ratio", "loss_p", row.losses, reference.losses, complete),
    ):
        comparable = is_known and len(others) == reference.seeds > 0
        figures |= {
            name: statistics.mean(values) if is_known else None,
            f"{name}_deviation": statistics.stdev(values) if is_known and len(values) > 1 else None,
            ratio: statistics.mean(values) / statistics.mean(others) if comparable else None,
            p_value: compute_welch_p_value(values, others) if comparable else None,
        }
    return figures


def compute_cost(rounds: Sequence[tuple[float, float]]) -> float:
    """Returns the median ratio of a row's seconds to the reference's; `rounds`: both, measured in turn."""
    return statistics.median(seconds / reference for reference, seconds in rounds)


class Runner:
    """Runs krill-train in `folder`, where the tokenizer and the tokens are prepared once."""

    def __init__(self, folder: Path, data: Sequence[str], server: PreloadedServer):
        self.folder, self.data, self.server = folder, data, server

    def train(
        self, size: str, overrides: Sequence[str], name: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Trains and returns the metrics and the status of the run, whose folder is removed."""
        run, log = self.folder / name, self.folder / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "krill",
            "train",
            *SIZES[size].model,
            *SETTING,
            *self.data,
            *overrides,
        ]
        with open(log, "w", encoding="utf-8") as stream:
            code = self.server.spawn(
                [*command, f"output={run}"], env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=self.folder,
                stdout=stream, stderr=stream,
            ).wait()  # fmt: skip
        status = read_status(run) or {}
        if code and (status.get("verdict") or {}).get("outcome") != "diverged":
            sys.exit(f"krill-train failed with exit code {code}; see {log}")
        metrics = read_metrics(run)
        shutil.rmtree(run)
        log.unlink()
        return metrics, status

    def measure_seed(self, row: Row, seed: int) -> dict[str, Any]:
        """Trains a row with a seed and returns its loss curve."""
        overrides = [
            *row.overrides, f"lr={row.lr}", f"seed={seed}", f"steps={row.steps}",
            f"eval_every={max(1, row.steps // VALIDATIONS)}",
        ]  # fmt: skip
        metrics, status = self.train(row.size, overrides, row.get_run_name(seed))
        epochs = status["plan"]["epochs"]
        if epochs > MAX_EPOCHS:
            sys.exit(
                f"{row.steps} steps are {epochs:.1f} epochs of this text, more than {MAX_EPOCHS}; "
                "give more --data or fewer --steps"
            )
        return {
            "curve": [
                [line["step"], round(line["eval_bits_per_byte"], 5)]
                for line in metrics
                if "eval_bits_per_byte" in line
            ],
            "diverged": status["state"] != "finished",
            "parameters": status["parameters"],
            "epochs": round(epochs, 4),
            "seconds": status.get("training_seconds"),
            "load": round(os.getloadavg()[0], 1),
            "date": date.today().isoformat(),
            "versions": read_versions("torch", "transformers")
            | {"krill": (status["git"] or {}).get("commit")},
        }

    def measure_step(self, size: str, overrides: Sequence[str]) -> float:
        """Returns the median seconds of a training step in a short run."""
        schedule = [
            f"steps={COST_STEPS}", f"eval_every={COST_STEPS}", f"log_every={COST_LOG_EVERY}", "eval_tokens=1024",
        ]  # fmt: skip
        metrics, _ = self.train(size, [*overrides, *schedule], f"{size}-cost")
        lines = [line for line in metrics if "tokens_per_second" in line]
        return statistics.median(
            (line["tokens"] - before["tokens"]) / line["tokens_per_second"] / (line["step"] - before["step"])
            for before, line in pairwise(lines[1:])
        )


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the Parquet files of --data."""
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or (paths and not files):
        sys.exit(f"--data: no Parquet files at {', '.join(missing or map(str, paths))}")
    return sorted(files, key=lambda file: file.name)


def name_data(files: Sequence[Path]) -> str:
    """Returns the names of the files with a hash of their content."""
    if not files:
        return f"python_docs {platform.python_version()}"
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))
    return f"{' '.join(file.name for file in files)} {digest.hexdigest()[:12]}"


def measure_target(results: Results, reference: Row) -> float:
    """Returns the target of a size, which the first call sets from the seeds of the reference."""
    key = {"size": reference.size, "data": reference.data}
    target = results.get_target(key)
    if target is None:
        step = TARGET_SHARE * reference.steps
        values = [
            min(run["curve"], key=lambda point: abs(point[0] - step))[1]
            for run in results.get_seeds(reference).values()
        ]
        target = round(statistics.mean(values), 3)
        results.targets.append({**key, "bits_per_byte": target, "reference": reference.get_key()})
    return target


def measure_once(results: Results, runner: Runner, row: Row, seed: int, waits: bool) -> None:
    """Measures a row with a seed, unless that is done or, if not `waits`, another process is doing it."""
    lock = FileLock(runner.folder / f"{row.get_run_name(seed)}.lock", blocking=waits)
    try:
        with lock:
            results.merge_file()
            seeds = results.get_seeds(row)
            if str(seed) in seeds:
                return
            seeds[str(seed)] = run = runner.measure_seed(row, seed)
            results.write()
    except Timeout:
        return
    end = "diverged" if run["diverged"] else f"{run['curve'][-1][1]:.4f} bits per byte"
    print(f"{row.variant:<18} lr {row.lr:<7g} seed {seed}  {end}", flush=True)


def measure_cost(results: Results, runner: Runner, row: Row, reference: Row) -> None:
    """Measures the cost per step of a variant, unless that is done; learning rates do not change it."""
    key = {
        "size": row.size,
        "variant": row.variant,
        "overrides": list(row.overrides),
        "reference": reference.variant,
    }
    if row.overrides == reference.overrides or any(key.items() <= cost.items() for cost in results.costs):
        return
    rounds = [
        (runner.measure_step(row.size, reference.overrides), runner.measure_step(row.size, row.overrides))
        for _ in range(COST_ROUNDS)
    ]
    figures = {
        "rounds": [[round(seconds, 5) for seconds in pair] for pair in rounds],
        "cost": round(compute_cost(rounds), 3),
        "load": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
    }
    results.costs.append(key | figures)
    results.write()


def format_table(results: Results, reference: Row) -> list[str]:
    """Returns the lines of the table of a size: every row that was measured on this text."""
    key = {"size": reference.size, "data": reference.data}
    if not results.get_seeds(reference):
        return []
    target = measure_target(results, reference)
    base = summarize(results.get_seeds(reference).values(), target)
    costs = {
        cost["variant"]: cost["cost"]
        for cost in results.costs
        if cost["size"] == reference.size and cost["reference"] == reference.variant
    }
    lines = [
        f"{reference.size}, target {target:g} bits per byte, reference {reference.variant} lr {reference.lr:g}",
        f"{'row':<18} {'lr':>7} {'of':>5}  {'reached':>7}  {'steps':>13} {'ratio':>6} {'p':>8}"
        f"  {'loss':>15} {'p':>8}  {'cost':>5}",
    ]
    rows = [row for row in results.rows if key.items() <= row.items() and row["seeds"]]
    for row in sorted(rows, key=lambda row: (row["variant"], row["steps"], row["lr"])):
        figures = describe(summarize(row["seeds"].values(), target), base)
        is_reference = reference.get_key().items() <= row.items()
        cost = 1.0 if row["overrides"] == list(reference.overrides) else costs.get(row["variant"])
        lines.append(
            f"{row['variant']:<18} {row['lr']:>7g} {row['steps']:>5}  "
            f"{figures['reached']:>3} / {figures['seeds']:<1}  "
            f"{format_number(figures['steps'], '6.1f')} ± {format_number(figures['steps_deviation'], '4.1f')} "
            f"{format_number(figures['ratio'], '6.3f')} "
            f"{format_number(None if is_reference else figures['p'], '8.1e')}  "
            f"{format_number(figures['loss'], '6.4f')} ± {format_number(figures['loss_deviation'], '6.4f')} "
            f"{format_number(None if is_reference else figures['loss_p'], '8.1e')}  "
            f"{format_number(cost, '5.2f')}"
        )
    return lines


def format_number(value: float | None, form: str) -> str:
    """Formats a number, or a dash of the same width."""
    return "-".rjust(int(form.split(".")[0])) if value is None else format(value, form)


def choose_variants(
    names: Sequence[str], definitions: Sequence[Sequence[str]], results: Results
) -> dict[str, tuple[str, ...]]:
    """Returns the overrides of the variants to measure. A name means the same overrides forever."""
    known = VARIANTS | results.list_variants()
    for name, *overrides in definitions:
        if known.setdefault(name, tuple(overrides)) != tuple(overrides):
            sys.exit(
                f"--define {name}: this name has the overrides {' '.join(known[name])}; choose another one"
            )
    chosen = [*names, *(name for name, *_ in definitions if name not in names)]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        sys.exit(f"--rows: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return {name: known[name] for name in chosen}


def main() -> None:
    """Measures what is missing, prints the table of the size and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="0.3m")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="Parquet files or folders of them")
    parser.add_argument("--rows", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument(
        "--define", action="append", nargs="+", default=[], metavar="NAME OVERRIDE",
        help="a variant of your own, which is measured",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, nargs="+", default=[DEFAULT_RATE])
    parser.add_argument("--steps", type=int, help="default: that of the size")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument(
        "--reference", default="muon_moonlight", help="variant that the others are compared with"
    )
    parser.add_argument("--reference-lr", type=float, default=DEFAULT_RATE)
    parser.add_argument("--no-cost", action="store_true", help="do not measure the cost per step")
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/optimizer_track"), help="folder of the runs"
    )
    parser.add_argument(
        "--result", type=Path, default=Path(__file__).with_name("results") / "optimizer_track.json"
    )
    arguments = parser.parse_args()
    results, files, size = Results(arguments.result), find_files(arguments.data), SIZES[arguments.size]
    data = name_data(files)

    variants = choose_variants(arguments.rows, arguments.define, results)
    base = choose_variants([arguments.reference], (), results)[arguments.reference]
    reference = Row(arguments.size, arguments.reference, base, arguments.reference_lr, size.steps, data)
    rows = [
        Row(arguments.size, name, overrides, lr, arguments.steps or size.steps, data)
        for name, overrides in variants.items()
        for lr in arguments.lr
    ]
    rows = list(dict.fromkeys([reference, *rows])) if rows else []
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    text = [*FILES, f"data.paths=[{','.join(str(file.absolute()) for file in files)}]"] if files else []
    with PreloadedServer.start(PRELOADED_MODULES["train"]) as server:
        runner = Runner(folder, text, server)
        for waits in (False, True):  # first what no other process is measuring
            for seed in range(arguments.seeds):
                for row in rows:
                    measure_once(results, runner, row, seed, waits)
        for row in () if arguments.no_cost else rows:
            measure_cost(results, runner, row, reference)
    print(*format_table(results, reference), sep="\n")
    if rows:
        results.write()  # the target


if __name__ == "__main__":
    main()
