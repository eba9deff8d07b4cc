"""Question: how much lower is the loss with Muon than with AdamW, and do its three presets differ?

A Llama with 1.97 million parameters (4 layers, hidden size 192, vocabulary 1024) trains on 4 rows of 256 tokens per
step, with a cosine decay to a tenth after a warm-up of 8 %, gradients clipped to 1; `krill-train` runs once for each
line below, learning rate and seed. With the same seed all runs have the same initial weights and rows.

    adamw, muon_*     250 steps at each of five (AdamW) or four learning rates
    adamw @500        twice the steps; muon_* @125: half
    cautious, normuon, polar_express
                      muon_moonlight with that option
    upstream          muon_pto by pytorch_optimizer

Figures are validation losses in nats per token, means over the seeds. Finished runs are kept, so the same command
resumes after an interruption. Prints tables and writes results/muon_quality.json.

    python benchmarks/muon_quality.py                       (90 minutes on one core, half of it with --jobs 2)
    python benchmarks/muon_quality.py data=files 'data.paths=[a.parquet]'      (any overrides, for all runs)

Must hold: every muon_* at its best rate is 0.30 below AdamW at its best; every muon_* @125 is not above AdamW's best
@250; the presets at their best rates are within 0.06 of each other; another preset at the same rate costs at most
0.10 at each rate, and so does the default rate compared with the best; upstream is within 0.01 of muon_pto.
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
from pathlib import Path
from typing import Any, NamedTuple

from krill.runs.record import read_versions

MODEL = (
    "model=llama_pico", "model.name=llama_2m", "model.hidden_size=192", "model.intermediate_size=512",
    "model.num_hidden_layers=4", "model.num_attention_heads=6", "model.num_key_value_heads=2",
    "model.tie_word_embeddings=false", "tokenizer.vocab_size=1024", "sequence_len=256", "batch.micro_batch_size=4",
    "scheduler=cosine", "scheduler.warmup=0.08", "rule=off", "device=cpu", "eval_every=100000", "save_every=100000",
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
lr: 3.0e-03
optimizer:
  name: custom
  build: {Path(__file__).with_name("upstream_muon.py").resolve()}:build
  options: {{}}
"""
"""conf/optimizer/upstream.yaml beside the runs."""
SEEDS = (1, 2, 3)


class Variant(NamedTuple):
    """One line of the table."""

    name: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...]
    steps: int = 250


def _list_variants() -> list[Variant]:
    def option(name: str, *overrides: str) -> Variant:
        return Variant(name, ("optimizer=muon_moonlight", *overrides), MUON_RATES[1:3])

    return [
        Variant("adamw", ("optimizer=adamw",), ADAMW_RATES),
        *(Variant(preset, (f"optimizer={preset}",), MUON_RATES) for preset in PRESETS),
        *(Variant(f"{preset} @125", (f"optimizer={preset}",), MUON_RATES[1:3], 125) for preset in PRESETS),
        option("cautious", "optimizer.cautious=true"),
        option("normuon", "optimizer.normuon=true"),
        option("polar_express", "optimizer.ns_coefficients=polar_express"),
        Variant("upstream", ("optimizer=upstream",), MUON_RATES[1:2]),
        Variant("adamw @500", ("optimizer=adamw",), ADAMW_RATES[1:3], 500),
    ]


class Run(NamedTuple):
    """One training of a variant."""

    variant: Variant
    rate: float
    seed: int

    def loss(self, folder: Path, extra: list[str]) -> float:
        """Trains below `folder`, unless that run is finished, and returns its final validation loss."""
        run_folder = folder / f"{self.variant.name.replace(' ', '')}-{self.rate:g}-{self.seed}"
        status = run_folder / "status.json"
        if not status.exists() or json.loads(status.read_text())["state"] != "finished":
            run_overrides = [
                *self.variant.overrides,
                f"lr={self.rate}",
                f"seed={self.seed}",
                f"steps={self.variant.steps}",
            ]
            subprocess.run(
                [sys.executable, "-m", "krill", "train", *MODEL, *run_overrides,
                 f"output={run_folder.absolute()}", *extra],
                cwd=folder, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return float(json.loads(status.read_text())["metrics"]["eval_loss"])


Losses = dict[str, dict[float, list[float]]]


def run_all(folder: Path, extra: list[str], jobs: int) -> Losses:
    """Runs everything; returns variant → rate → loss of each seed."""
    config = folder / "conf" / "optimizer" / "upstream.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(UPSTREAM_CONFIG, encoding="utf-8")
    runs = [
        Run(variant, rate, seed) for variant in _list_variants() for rate in variant.rates for seed in SEEDS
    ]
    runs[0].loss(folder, extra)  # prepares the tokenizer and the tokens for all others
    losses: Losses = defaultdict(lambda: defaultdict(list))
    with ThreadPoolExecutor(jobs) as pool:
        for run, loss in zip(runs, pool.map(lambda run: run.loss(folder, extra), runs), strict=True):
            print(f"{run.variant.name:<22} lr {run.rate:<7g} seed {run.seed}  {loss:.4f}", flush=True)
            losses[run.variant.name][run.rate].append(loss)
    return losses


def find_best(rates: dict[float, list[float]]) -> tuple[float, float]:
    """Returns the rate with the lowest mean loss, and that loss."""
    rate = min(rates, key=lambda rate: statistics.mean(rates[rate]))
    return rate, statistics.mean(rates[rate])


def compute_findings(losses: Losses) -> dict[str, Any]:
    """Returns the figures for what must hold, in nats."""
    bests = {name: find_best(rates) for name, rates in losses.items()}
    presets = {name: bests[name] for name in PRESETS}
    option_bases = {rate: losses["muon_moonlight"][rate] for rate in MUON_RATES[1:3]}
    return {
        "below_adamw": {name: round(bests["adamw"][1] - loss, 4) for name, (_, loss) in presets.items()},
        "half_the_steps_below_adamw": {
            name: round(bests["adamw"][1] - bests[f"{name} @125"][1], 4) for name in PRESETS
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
            bests["upstream"][1] - statistics.mean(losses["muon_pto"][bests["upstream"][0]]), 4
        ),
        "option_minus_plain": {
            name: round(bests[name][1] - find_best(option_bases)[1], 4)
            for name in ("cautious", "normuon", "polar_express")
        },
        "adamw_with_twice_the_steps_minus_best_muon": round(
            bests["adamw @500"][1] - min(loss for _, loss in presets.values()), 4
        ),
    }


def _spread(losses: Losses, rate: float) -> float:
    """Returns the difference between the best and the worst preset at one rate."""
    means = [statistics.mean(losses[name][rate]) for name in PRESETS]
    return max(means) - min(means)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path("outputs/muon_quality"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs, one thread each")
    parser.add_argument("--result", default="muon_quality", help="name of the file in results/")
    parser.add_argument("overrides", nargs="*", help="overrides of krill-train for all runs")
    arguments = parser.parse_args()
    losses = run_all(arguments.runs.absolute(), arguments.overrides, arguments.jobs)
    print()
    for name, rates in losses.items():
        cells = (f"{rate:g}: {statistics.mean(seed_losses):.3f}" for rate, seed_losses in rates.items())
        print(f"{name:<22} {'   '.join(cells)}")
    findings = compute_findings(losses)
    print(json.dumps(findings, indent=2))
    result = {
        "question": "validation loss in nats per token: way, learning rate, one figure for each seed",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "processor": "cpu", "cores": os.cpu_count()},
        "versions": read_versions("krill", "torch", "transformers", "pytorch_optimizer"),
        "keys": [*MODEL, *arguments.overrides],
        "seeds": SEEDS,
        "findings": findings,
        "losses": {
            name: {
                f"{rate:g}": [round(loss, 4) for loss in seed_losses] for rate, seed_losses in rates.items()
            }
            for name, rates in losses.items()
        },
    }
    path = Path(__file__).parent / "results" / f"{arguments.result}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
