"""Question: how much lower does Muon bring the loss than AdamW, and do its three presets differ?

A Llama of 1.97 million parameters (4 layers, hidden 192, vocabulary 1024) learns 4 rows of 256 tokens a step, with a
cosine to a tenth after a warm-up of 8 %, clipped to 1; `krill-train` runs once for each line below, rate and seed.
With one seed all runs have the same initial weights and the same rows in the same order.

    adamw, muon_*     250 steps at each of five and of four rates
    adamw @500        twice the steps; muon_* @125: half
    cautious, normuon, polar_express
                      that option of muon_moonlight, on top of the preset
    upstream          muon_pto by pytorch_optimizer

Figures are validation losses in nats per token, means over the seeds. Finished runs are kept, so that the same
command goes on where it was stopped. Prints tables and writes results/muon_quality.json.

    python benchmarks/muon_quality.py                       (90 minutes on one core, half of it with --jobs 2)
    python benchmarks/muon_quality.py data=files 'data.paths=[a.parquet]'      (any keys of krill-train, for all runs)

Must hold: every muon_* at its best rate is 0.30 below AdamW at its best; every muon_* @125 is not above AdamW's best
@250; the presets at their best rates are within 0.06 of each other; another preset at the same rate costs 0.10 at
most at each of the rates, and so does the default rate against the best; upstream is within 0.01 of muon_pto.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

MODEL = (
    "model=llama_pico", "model.name=llama_2m", "model.hidden_size=192", "model.intermediate_size=512",
    "model.num_hidden_layers=4", "model.num_attention_heads=6", "model.num_key_value_heads=2",
    "model.tie_word_embeddings=false", "tokenizer.vocab_size=1024", "sequence_len=256", "batch.micro_batch_size=4",
    "scheduler=cosine", "scheduler.warmup=0.08", "device=cpu", "eval_every=100000", "save_every=100000",
)  # fmt: skip
PRESETS = ("muon_moonlight", "muon_keller", "muon_pto")
ADAMW_RATES = (5e-4, 1e-3, 2e-3, 3e-3, 1e-2)
MUON_RATES = (3e-3, 5e-3, 1e-2, 2e-2)
DEFAULT_RATE = 3e-3
UPSTREAM_CONFIG = f"""# @package _global_
# pytorch_optimizer's Muon
defaults:
  - _adamw@optimizer
  - _self_
optimizer:
  name: custom
  build: {Path(__file__).with_name("upstream_muon.py").resolve()}:build
  options: {{}}
"""
"""conf/optimizer/upstream.yaml beside the runs."""
SEEDS = (1, 2, 3)


class Way(NamedTuple):
    """One line of the table."""

    name: str
    keys: tuple[str, ...]
    rates: tuple[float, ...]
    steps: int = 250


def _ways() -> list[Way]:
    def option(name: str, *keys: str) -> Way:
        return Way(name, ("optimizer=muon_moonlight", *keys), MUON_RATES[1:3])

    return [
        Way("adamw", ("optimizer=adamw",), ADAMW_RATES),
        *(Way(preset, (f"optimizer={preset}",), MUON_RATES) for preset in PRESETS),
        *(Way(f"{preset} @125", (f"optimizer={preset}",), MUON_RATES[1:3], 125) for preset in PRESETS),
        option("cautious", "optimizer.cautious=true"),
        option("normuon", "optimizer.normuon=true"),
        option("polar_express", "optimizer.ns_coefficients=polar_express"),
        Way("upstream", ("optimizer=upstream",), MUON_RATES[1:2]),
        Way("adamw @500", ("optimizer=adamw",), ADAMW_RATES[1:3], 500),
    ]


class Run(NamedTuple):
    """One training."""

    way: Way
    rate: float
    seed: int

    def loss(self, folder: Path, extra: list[str]) -> float:
        """Train below `folder`, unless that is done, and read the validation loss of the end."""
        place = folder / f"{self.way.name.replace(' ', '')}-{self.rate:g}-{self.seed}"
        status = place / "status.json"
        if not status.exists() or json.loads(status.read_text())["state"] != "finished":
            script = Path(sys.executable).with_name("krill-train")
            words = [*self.way.keys, f"lr={self.rate}", f"seed={self.seed}", f"steps={self.way.steps}"]
            subprocess.run(
                [script, *MODEL, *words, f"output={place.absolute()}", *extra],
                cwd=folder, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return float(json.loads(status.read_text())["metrics"]["eval_loss"])


Losses = dict[str, dict[float, list[float]]]


def trained(folder: Path, extra: list[str], jobs: int) -> Losses:
    """Way → rate → loss of each seed."""
    config = folder / "conf" / "optimizer" / "upstream.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(UPSTREAM_CONFIG, encoding="utf-8")
    runs = [Run(way, rate, seed) for way in _ways() for rate in way.rates for seed in SEEDS]
    runs[0].loss(folder, extra)  # makes the tokenizer and the tokens that all others find
    losses: Losses = defaultdict(lambda: defaultdict(list))
    with ThreadPoolExecutor(jobs) as pool:
        for run, loss in zip(runs, pool.map(lambda run: run.loss(folder, extra), runs), strict=True):
            print(f"{run.way.name:<22} lr {run.rate:<7g} seed {run.seed}  {loss:.4f}", flush=True)
            losses[run.way.name][run.rate].append(loss)
    return losses


def best(rates: dict[float, list[float]]) -> tuple[float, float]:
    """The rate with the lowest mean loss, and that loss."""
    rate = min(rates, key=lambda rate: statistics.mean(rates[rate]))
    return rate, statistics.mean(rates[rate])


def findings(losses: Losses) -> dict[str, Any]:
    """What must hold, as figures in nats."""
    tops = {name: best(rates) for name, rates in losses.items()}
    presets = {name: tops[name] for name in PRESETS}
    option_bases = {rate: losses["muon_moonlight"][rate] for rate in MUON_RATES[1:3]}
    return {
        "below_adamw": {name: round(tops["adamw"][1] - loss, 4) for name, (_, loss) in presets.items()},
        "half_the_steps_below_adamw": {
            name: round(tops["adamw"][1] - tops[f"{name} @125"][1], 4) for name in PRESETS
        },
        "apart": round(
            max(loss for _, loss in presets.values()) - min(loss for _, loss in presets.values()), 4
        ),
        "swap_costs": {f"{rate:g}": round(_spread(losses, rate), 4) for rate in MUON_RATES},
        "default_rate_costs": {
            name: round(statistics.mean(losses[name][DEFAULT_RATE]) - loss, 4)
            for name, (_, loss) in presets.items()
        },
        "upstream_minus_muon_pto": round(
            tops["upstream"][1] - statistics.mean(losses["muon_pto"][tops["upstream"][0]]), 4
        ),
        "option_minus_plain": {
            name: round(tops[name][1] - best(option_bases)[1], 4)
            for name in ("cautious", "normuon", "polar_express")
        },
        "adamw_with_twice_the_steps_minus_best_muon": round(
            tops["adamw @500"][1] - min(loss for _, loss in presets.values()), 4
        ),
    }


def _spread(losses: Losses, rate: float) -> float:
    """How far the presets are apart at one rate."""
    means = [statistics.mean(losses[name][rate]) for name in PRESETS]
    return max(means) - min(means)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--runs", type=Path, default=Path("outputs/muon_quality"), help="where the runs are kept"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--result", default="muon_quality", help="name of the file in results/")
    parser.add_argument("keys", nargs="*", help="keys of krill-train for all runs")
    asked = parser.parse_args()
    losses = trained(asked.runs.absolute(), asked.keys, asked.jobs)
    print()
    for name, rates in losses.items():
        cells = (f"{rate:g}: {statistics.mean(of_rate):.3f}" for rate, of_rate in rates.items())
        print(f"{name:<22} {'   '.join(cells)}")
    found = findings(losses)
    print(json.dumps(found, indent=2))
    result = {
        "question": "validation loss in nats per token: way, learning rate, one figure for each seed",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "processor": "cpu", "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "torch", "transformers", "pytorch_optimizer")},
        "keys": [*MODEL, *asked.keys],
        "seeds": SEEDS,
        "findings": found,
        "losses": {
            name: {f"{rate:g}": [round(loss, 4) for loss in of_rate] for rate, of_rate in rates.items()}
            for name, rates in losses.items()
        },
    }
    path = Path(__file__).parent / "results" / f"{asked.result}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
