"""Question: how far is the memory that krill-plan computes from what a training takes?

Trains 24 configurations on the CPU (model × optimizer × loss × gradient checkpointing × batch), each in a fresh
process, for six steps (the first ones fragment the heap) with a validation, a checkpoint and the final
model, and compares the peak of its resident memory (VmHWM) with the plan that the run recorded in status.json.
`--ranks` measures DDP and FSDP2 with 2 and 4 ranks (gloo) instead. On a machine with a GPU, `--device cuda` compares
the peak of torch's allocator (max_memory_allocated) with the plan without its context. Prints a table and writes
results/plan_memory.json, each row as it comes; rows that the file has already are kept.

    python benchmarks/plan_memory.py            (15 minutes on one core; Linux)
    python benchmarks/plan_memory.py --ranks

Must hold: every ratio of plan to peak is at least 0.9 and at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

from krill.runs.record import read_status, read_versions

COMMON = [
    "sequence_len=512", "steps=6", "tokenizer=bpe_4k", "eval_tokens=500", "eval_every=6", "save_every=6",
    "log_every=1", "keep_best=false", "keep_checkpoints=1", "resume=false",
]  # fmt: skip

MODELS = {
    "llama": [
        "model=llama_nano", "model.hidden_size=384", "model.intermediate_size=1024", "model.num_hidden_layers=6",
        "model.num_attention_heads=6", "model.num_key_value_heads=3",
    ],
    "qwen3": [
        "model=qwen3_pico", "model.hidden_size=384", "model.intermediate_size=1024", "model.num_hidden_layers=6",
        "model.num_attention_heads=6", "model.num_key_value_heads=3", "model.head_dim=64",
        "model.tie_word_embeddings=false",
    ],
    "gpt2": [
        "model=auto", "model.model_type=gpt2", "model.config.n_embd=384", "model.config.n_layer=6",
        "model.config.n_head=6", "model.config.attn_pdrop=0.0",
    ],
}  # fmt: skip

OPTIMIZERS = ("adamw", "muon_moonlight", "muon_keller", "muon_pto")
LOSSES = ("chunked", "full")
BATCHES = {
    "2": ["batch.micro_batch_size=2"],
    "4": ["batch.micro_batch_size=4"],
    "2 × 2": ["batch.micro_batch_size=2", "batch.gradient_accumulation_steps=2"],
}
RANKS = list(product(("none", "fsdp2"), (2, 4)))

CHILD = """
import sys
from krill.cli.train import main
from krill.resources import read_peak_rss
sys.argv[0] = "krill-train"
code = main()
allocated = 0
if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
    allocated = sys.modules["torch"].cuda.max_memory_allocated()
print("peak", read_peak_rss(), allocated, flush=True)
sys.exit(code)
"""


def list_configurations() -> list[dict[str, Any]]:
    """Returns 24 configurations: all models with both losses, with and without checkpointing, twice.

    Optimizers and batches are dealt to them in turn.
    """
    combinations = list(product(MODELS, LOSSES, (False, True), range(2)))
    batches = list(BATCHES)
    return [
        {
            "model": model,
            "optimizer": OPTIMIZERS[(index + index // 4) % len(OPTIMIZERS)],
            "loss": loss,
            "checkpointing": checkpointing,
            "batch": batches[(index + index // 6) % len(batches)],
        }
        for index, (model, loss, checkpointing, _) in enumerate(combinations)
    ]


def build_overrides(row: dict[str, Any]) -> list[str]:
    """Returns the arguments of krill-train for a configuration."""
    overrides = [
        *MODELS[row["model"]], f"optimizer={row['optimizer']}", f"hardware.loss={row['loss']}",
        f"hardware.gradient_checkpointing={str(row['checkpointing']).lower()}", *BATCHES[row["batch"]],
    ]  # fmt: skip
    if row["model"] == "gpt2" and row["optimizer"] in ("muon_keller", "muon_pto"):
        overrides += ["optimizer.muon_lr=0.02", "optimizer.muon_weight_decay=0.1"]  # without a hidden_size
    if "ranks" in row:
        overrides += [f"hardware.processes={row['ranks']}", f"hardware.sharding={row['sharding']}"]
    return overrides


def measure(row: dict[str, Any], outputs: Path, device: str) -> dict[str, Any]:
    """Trains one configuration in a fresh process; returns it with its plan, its peak and their ratio in bytes."""
    folder = outputs / "run"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    command = [
        sys.executable, "-c", CHILD, *COMMON, *build_overrides(row), f"output={folder}", f"device={device}",
    ]  # fmt: skip
    environment = os.environ | {
        "KRILL_OUTPUTS": str(outputs),
        "HF_HUB_OFFLINE": "1",
        "KRILL_CALIBRATION": "off",
    }
    environment.setdefault("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{errors}")
    _, resident, allocated = out.splitlines()[-1].split()
    status = read_status(folder) or {}
    memory = status["plan"]["memory"]
    planned, measured = memory["total"], int(resident)
    if device == "cuda":
        planned, measured = planned - memory["moments"][memory["peak"]]["context"], int(allocated)
    elif "ranks" in row:
        measured = read_rank_peak(folder)
    return row | compare(memory, planned, measured)


def compare(memory: dict[str, Any], planned: int, measured: int) -> dict[str, Any]:
    """Returns the figures of a row: the plan, the peak and their ratio."""
    return {
        "plan_mb": round(planned / 1e6, 1),
        "peak_mb": round(measured / 1e6, 1),
        "ratio": round(planned / measured, 3),
        "moment": memory["peak"],
        "context_mb": round(memory["moments"][memory["peak"]]["context"] / 1e6, 1),
    }


def plan_again(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a measured row with the plan that krill makes now, without training."""
    command = [
        sys.executable, "-c", "from krill.cli.plan import main; import sys; sys.argv[0] = 'krill-plan'; main()",
        *COMMON, *build_overrides(row), "device=cpu", "format=json",
    ]  # fmt: skip
    environment = os.environ | {"KRILL_CALIBRATION": "off"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    memory = json.loads(done.stdout)["memory"]
    return row | compare(memory, memory["total"], round(1e6 * row["peak_mb"]))


def read_rank_peak(folder: Path) -> int:
    """Returns the peak resident memory of rank 0, which it logs with the metrics of its last step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return int(1e9 * max(line["memory_gb"] for line in lines if "memory_gb" in line))


def is_in(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Returns whether the configuration of a row is that of one of `rows`."""
    keys = ("model", "optimizer", "loss", "checkpointing", "batch", "sharding", "ranks")
    return any(all(row.get(key) == one.get(key) for key in keys) for one in rows)


def write_result(file: Path, device: str, runs: list[dict[str, Any]]) -> None:
    """Writes the rows, and the smallest, middle and largest ratio over them."""
    ratios = sorted(run["ratio"] for run in runs)
    result = {
        "question": "memory of krill-plan divided by the peak of a training in a fresh process",
        "date": date.today().isoformat(),
        "device": device,
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "torch", "transformers"),
        "ratio": {
            "min": ratios[0], "median": round(statistics.median(ratios), 3), "max": ratios[-1],
            "configurations": len(ratios),
        },
        "runs": runs,
    }  # fmt: skip
    file.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n")


def format_row(row: dict[str, Any]) -> str:
    ranks = f" {row['sharding']} × {row['ranks']}" if "ranks" in row else ""
    return (
        f"{row['model']:6} {row['optimizer']:15} {row['loss']:8} "
        f"{'checkpointing' if row['checkpointing'] else '':14}{row['batch']:6}{ranks:10} "
        f"plan {row['plan_mb']:8,.1f} MB  peak {row['peak_mb']:8,.1f} MB  {row['ratio']:.3f}"
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", action="store_true", help="DDP and FSDP2 with 2 and 4 ranks instead")
    parser.add_argument("--only", help="a model of MODELS")
    parser.add_argument("--outputs", type=Path, help="a folder with prepared tokens to reuse")
    parser.add_argument("--result", type=Path)
    parser.add_argument(
        "--replan", action="store_true", help="plan the measured rows again, without training"
    )
    arguments = parser.parse_args()
    rows = [row for row in list_configurations() if arguments.only in (None, row["model"])]
    if arguments.ranks:
        rows = [
            {"model": "llama", "optimizer": optimizer, "loss": "chunked", "checkpointing": False, "batch": "2",
             "sharding": sharding, "ranks": ranks}
            for optimizer in OPTIMIZERS[:2] for sharding, ranks in RANKS
        ]  # fmt: skip
    name = f"plan_memory{'_ranks' if arguments.ranks else ''}{'_cuda' if arguments.device == 'cuda' else ''}.json"
    file = arguments.result or Path(__file__).parent / "results" / name
    measured: list[dict[str, Any]] = []
    known = json.loads(file.read_text())["runs"] if file.exists() else []
    if arguments.replan:
        rows = known
    with tempfile.TemporaryDirectory() as temporary:
        outputs = arguments.outputs or Path(temporary)
        for row in rows:
            earlier = [one for one in known if row.items() <= one.items()]
            if earlier and not arguments.replan:
                measured.append(earlier[0])
            else:
                again = arguments.replan
                measured.append(plan_again(row) if again else measure(row, outputs, arguments.device))
                print(format_row(measured[-1]), flush=True)
            write_result(
                file, arguments.device, measured + [one for one in known if not is_in(one, measured)]
            )
    print(json.loads(file.read_text())["ratio"])


if __name__ == "__main__":
    main()
