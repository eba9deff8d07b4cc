"""Question: does krill train on this GPU, does it compute the same in each way, and does the host wait for it?

The checks of `train_gpu.py --smoke`, each in a process of its own:

    losses    krill-train for 20 steps (llama_nano) in the five ways of WAYS, and in fp32 with full logits on the CPU.
              A loss may differ from the CPU's and from eager_chunked's by FIRST_STEP_TOLERANCE in the first step,
              whose weights are the same, and by TOLERANCE later. bf16 on a CPU, also in Newton-Schulz, differs by
              0.00002 and 0.0008 at the rate of LEARNING, and by 0.04 at that of the rule
    varlen    attention of packed rows against each document on its own in fp64, forward and gradients: 12 query and 4
              key heads of 64, window 128 and none. Relative error of the norm at most VARLEN_TOLERANCE
    waits     the times the host waits for the device in 10 steps that are not logged, which
              torch.cuda.set_sync_debug_mode reports, and the lines that wait: none (always none on the CPU)

A way whose package or device is missing is recorded as skipped. Prints a line per check and writes
results/gpu_smoke.json, or the file of --result, each time. Exit code 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_child import Report, add_training_callback, find_start_method, run_in_child
from torch import Tensor
from transformers import TrainerCallback

from krill import atomic
from krill.cli.train import main as krill_train
from krill.data.packing import Row
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_versions
from krill.training.batches import RowCollator
from krill.training.compute.attention import varlen_attention_forward

PACKAGES = ("krill", "torch", "transformers", "accelerate", "triton", "liger-kernel", "flash-attn-4")
STEPS = 20
FIRST_STEP_TOLERANCE, TOLERANCE = 0.002, 0.01
"""Largest difference of two losses, in nats."""
LEARNING = ("rule=off", "lr=1e-3")
"""The default optimizer at a rate at which rounding does not grow: the rule's is ten times that for 20 steps."""
VARLEN_TOLERANCE = {"cuda": 0.01, "cpu": 1e-5}
"""bf16 on CUDA, fp32 on the CPU."""
DOCUMENTS, WINDOWS = ([300, 1, 60, 151], [512]), (None, 128)
"""The lengths of the documents of each row, and the windows, of the check of varlen."""
WAIT_WARMUP, WAIT_STEPS = 3, 10
WAIT_WARNING = "synchronizing CUDA operation"


class Way(NamedTuple):
    """Overrides of krill-train, and what they need."""

    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()


EAGER = ("hardware.compile=false", "hardware.liger=false", "hardware.loss=chunked")
WAYS = {
    "eager_chunked": Way(EAGER),
    "sdpa": Way((*EAGER, "hardware.attention=sdpa")),
    "liger_loss": Way(("hardware.compile=false", "hardware.loss=liger"), ("cuda", "liger_kernel")),
    "compiled_chunked": Way(
        ("hardware.compile=true", "hardware.liger=false", "hardware.loss=chunked"), ("cuda", "triton")
    ),
    "compiled_default": Way(("hardware.compile=true",), ("cuda", "triton")),
}
CPU_REFERENCE = (
    "hardware=cpu", "hardware.precision=fp32", "hardware.attention=eager", "hardware.loss=full",
    "hardware.compile=false",
)  # fmt: skip


# --- the checks, each in its own process -------------------------------------------------------------------


def train(report: Report, overrides: list[str]) -> None:
    """Runs the command krill-train; reports the loss of each step, and the attention backend that the log names."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "run"
        _run_krill_train([*overrides, "log_every=1", f"output={output}"])
        losses = [line["loss"] for line in read_metrics(output) if "loss" in line]
        attention = re.search(r"attention (\w+)", (output / "log.txt").read_text(encoding="utf-8"))
        report({"losses": losses, "attention": attention and attention[1]})


def count_waits(report: Report, device: str, overrides: list[str]) -> None:
    """Runs krill-train; reports where the host waited for the device in WAIT_STEPS steps."""
    counter = WaitCounter(device)
    add_training_callback(counter)
    with tempfile.TemporaryDirectory() as temporary:
        _run_krill_train([*overrides, "log_every=1000000", f"output={Path(temporary) / 'run'}"])
    report({"steps": WAIT_STEPS, "waits": counter.lines.total(), "lines": dict(counter.lines)})


def _run_krill_train(overrides: list[str]) -> None:
    sys.argv = ["krill-train", *overrides]
    if code := krill_train():
        raise SystemExit(code)


class WaitCounter(TrainerCallback):
    """Counts torch's warnings about waiting for the device between two steps, by the line that waits."""

    def __init__(self, device: str):
        self.device, self.lines, self.open = device, Counter[str](), ExitStack()
        self.caught: list[warnings.WarningMessage] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WAIT_WARMUP:
            self.caught = self.open.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            self._set_mode("warn")
        elif state.global_step == WAIT_WARMUP + WAIT_STEPS:
            self._set_mode("default")
            for warning in self.caught:
                if WAIT_WARNING in str(warning.message):
                    file = Path(warning.filename)
                    self.lines[f"{file.parent.name}/{file.name}:{warning.lineno}"] += 1
            self.open.close()

    def _set_mode(self, mode: str) -> None:
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode(mode)


def compare_varlen(report: Report, device: str) -> None:
    """Reports the relative error of varlen attention and of its gradients, for each window."""
    dtype, width = torch.bfloat16 if device == "cuda" else torch.float32, 64
    for window in WINDOWS:
        torch.manual_seed(0)
        q, k, v, grad_out = (
            torch.randn(len(DOCUMENTS), heads, sum(DOCUMENTS[0]), width, device=device, dtype=dtype)
            for heads in (12, 4, 4, 12)
        )
        packed = partial(attend_packed, window=window)
        one_by_one = partial(attend_one_by_one, window=window)
        actual = _run_backward(packed, q, k, v, grad_out)
        expected = _run_backward(one_by_one, q.double(), k.double(), v.double(), grad_out.double())
        errors = {
            name: round(float((a.double() - b).norm() / b.norm()), 7)
            for name, a, b in zip(("output", "grad_q", "grad_k", "grad_v"), actual, expected, strict=True)
        }
        report({f"window {window}": errors})


def attend_packed(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, window: int | None) -> Tensor:
    """Returns krill's varlen attention of rows with DOCUMENTS, whose boundaries it gets from krill's collator."""
    zeros = np.zeros(q_BHTD.shape[2], dtype=np.int64)
    rows = [Row(zeros, zeros, zeros, np.array(lengths)) for lengths in DOCUMENTS]
    boundaries: dict[str, Any] = RowCollator("varlen", q_BHTD.device)(rows)
    for key in ("input_ids", "position_ids", "labels"):
        del boundaries[key]
    for key, value in boundaries.items():
        if isinstance(value, Tensor):
            boundaries[key] = value.to(q_BHTD.device)
    options = boundaries | {"sliding_window": window}
    out_BTHD = varlen_attention_forward(torch.nn.Identity(), q_BHTD, k_BHTD, v_BHTD, None, **options)[0]
    return out_BTHD.transpose(1, 2)


def attend_one_by_one(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, window: int | None) -> Tensor:
    """Returns the attention of each of DOCUMENTS on its own."""
    rows = []
    for row in zip(q_BHTD, k_BHTD, v_BHTD, DOCUMENTS, strict=True):
        lengths = row[3]
        documents = zip(*(x.split(lengths, dim=1) for x in row[:3]), strict=True)
        rows.append(torch.cat([attend_document(q, k, v, window) for q, k, v in documents], dim=1))
    return torch.stack(rows)


def attend_document(q_HTD: Tensor, k_HTD: Tensor, v_HTD: Tensor, window: int | None) -> Tensor:
    """Returns causal attention of one document, (H, T, D), with plain matrix products."""
    heads, tokens, width = q_HTD.shape
    k_HTD, v_HTD = (x.repeat_interleave(heads // len(x), dim=0) for x in (k_HTD, v_HTD))
    positions = torch.arange(tokens, device=q_HTD.device)
    distance = positions[:, None] - positions
    hidden = (distance < 0) | (distance >= (window or tokens))
    scores = (q_HTD @ k_HTD.mT * width**-0.5).masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v_HTD


def _run_backward(function: Any, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


# --- all checks --------------------------------------------------------------------------------------------


class Smoke:
    """Runs checks until the time is over, and writes their results as they come."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.ends_at = arguments, time.monotonic() + 60 * arguments.minutes
        self.start_method, hardware = find_start_method(arguments.device)
        self.result: dict[str, Any] = {
            "question": "whether krill trains on this GPU, computes the same in each way, and does not wait for it",
            "date": date.today().isoformat(), "hardware": hardware, "versions": read_versions(*PACKAGES),
            "tolerances": {
                "first_step": FIRST_STEP_TOLERANCE, "steps": TOLERANCE, "varlen": VARLEN_TOLERANCE[arguments.device]
            },
            "checks": {},
        }  # fmt: skip
        print(json.dumps(hardware), json.dumps(self.result["versions"]), flush=True)

    def run(self, function: Any, *arguments: Any) -> dict[str, Any]:
        """Returns what a check reported; with `failed`, if it did not come to its end."""
        started_at = time.monotonic()
        outcome = run_in_child(
            function, *arguments,
            seconds=max(1.0, self.ends_at - started_at), start_method=self.start_method,
        )  # fmt: skip
        seconds = round(time.monotonic() - started_at, 1)
        return {**outcome.values, "seconds": seconds, **outcome.describe_end()}

    def record(self, name: str, values: dict[str, Any], summary: str) -> None:
        """Writes and prints the result of a check: failed, skipped, or `passed`."""
        self.result["checks"][name] = values
        atomic.write_json(self.arguments.result, self.result)
        if "failed" in values:
            state, summary = "FAILED", str(values["failed"])
        elif "skipped" in values:
            state, summary = "skipped", f"needs {values['skipped']}"
        else:
            state = "passed" if values["passed"] else "FAILED"
        print(f"    {name:<18} {state:<8} {values.get('seconds', 0):>6.1f} s  {summary}", flush=True)


def run_smoke(arguments: argparse.Namespace) -> int:
    """Runs all checks; returns the exit code."""
    smoke, device = Smoke(arguments), arguments.device
    size = ["model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2"] if arguments.tiny else []
    steps = 3 if arguments.tiny else STEPS
    common = [
        *LEARNING,
        *size,
        "eval_every=1000000",
        "save_every=1000000",
        "eval_tokens=4096",
        *arguments.overrides,
    ]
    own = [f"hardware={'gpu' if device == 'cuda' else 'cpu'}", *common]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KRILL_OUTPUTS"] = temporary
        check_varlen(smoke, device)
        reference = smoke.run(train, [*common, *CPU_REFERENCE, f"steps={steps}"])
        compare_losses(smoke, "cpu", reference, {})
        compared = {"cpu": reference}
        for name, way in WAYS.items():
            if missing := find_missing(way.needs, device):
                smoke.record(name, {"skipped": missing}, "")
                continue
            trained = smoke.run(train, [*own, *way.overrides, f"steps={steps}"])
            compare_losses(smoke, name, trained, compared)
            compared.setdefault("eager_chunked", trained)
            if name == "eager_chunked":
                check_waits(smoke, device, [*own, *way.overrides])
    failed = [name for name, values in smoke.result["checks"].items() if values.get("passed") is False]
    print(f"failed: {', '.join(failed)}" if failed else "all checks that ran have passed")
    return 1 if failed else 0


def find_missing(needs: tuple[str, ...], device: str) -> str | None:
    """Returns what is missing here of the device and the packages that a way needs, or None."""
    missing = [name for name in needs if name != device and (name == "cuda" or find_spec(name) is None)]
    return " and ".join(missing) or None


def compare_losses(
    smoke: Smoke, name: str, values: dict[str, Any], others: dict[str, dict[str, Any]]
) -> None:
    """Records the losses of `values`, compared with each of `others` that has some."""
    losses, passed, parts = values.get("losses"), "failed" not in values, []
    for other, expected in others.items():
        if losses and expected.get("losses"):
            differences = [abs(a - b) for a, b in zip(losses, expected["losses"], strict=True)]
            first, largest = differences[0], max(differences)
            values[f"difference_to_{other}"] = {"first_step": round(first, 6), "largest": round(largest, 6)}
            passed &= first <= FIRST_STEP_TOLERANCE and largest <= TOLERANCE
            parts.append(f"differs from {other} by {first:.6f} in the first step, {largest:.6f} at most")
        else:
            passed = False
            parts.append(f"nothing to compare with: {other} failed")
    ends = f"loss {losses[0]:.4f} to {losses[-1]:.4f}" if losses else ""
    smoke.record(name, values | {"passed": passed}, "; ".join([ends, *parts]))


def check_varlen(smoke: Smoke, device: str) -> None:
    values = smoke.run(compare_varlen, device)
    errors = [error for window in values.values() if isinstance(window, dict) for error in window.values()]
    passed = "failed" not in values and max(errors) <= VARLEN_TOLERANCE[device]
    summary = f"largest relative error {max(errors, default=0.0):.2g}"
    smoke.record("varlen", values | {"passed": passed}, summary)


def check_waits(smoke: Smoke, device: str, overrides: list[str]) -> None:
    values = smoke.run(count_waits, device, [*overrides, f"steps={WAIT_WARMUP + WAIT_STEPS + 1}"])
    passed = "failed" not in values and values["waits"] == 0
    summary = f"{values.get('waits')} in {WAIT_STEPS} steps {values.get('lines') or ''}"
    smoke.record("waits", values | {"passed": passed}, summary)
