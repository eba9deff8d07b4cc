"""Question: do the tests, which run without a GPU, notice a mistake in a line that only a GPU executes?

Copies the tree to a temporary folder. For each of --count lines, chosen at random from MUTATIONS, it deletes or
changes the line there and runs TESTS:

    noticed    a test fails, or the rehearsal that it starts
    MISSED     all tests pass
    other      they end in another way, such as by the time limit; does not count as noticed

The unmutated copy must pass before and after. Prints a line for each mutation and writes results/mutate_gpu.json, or
the file of --result, as they come. Ends with 1 if fewer than three in four are noticed.

    python benchmarks/mutate_gpu.py                                             (20 minutes on one core; no GPU)
    python benchmarks/mutate_gpu.py --count 1000                                (all of them)

To cover another line, add it to MUTATIONS.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from krill import atomic
from krill.runs.record import read_versions

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/training/compute/test_cuda_calls.py",
    "tests/training/compute/test_fp8.py",
    "tests/training/compute/test_attention.py",
    "tests/training/metrics/test_throughput.py",
    "tests/training/test_gpu_rehearsal.py",
)
"""The fast tests of what runs on a GPU, the fastest first: the first failure ends a run."""
TIME_LIMIT = 600
BAR = 0.75


class Mutation(NamedTuple):
    """A change of one line: `text` in `file`, a path within krill/, becomes `replacement`."""

    file: str
    text: str
    replacement: str


MUTATIONS = {
    "optim/newton_schulz.py": [
        ('return torch.bfloat16 if device.type == "cuda" else torch.float32', "return torch.float32"),
    ],
    "optim/muon.py": [
        ("                fused=True,\n", ""),
        ("                found_inf=mask.found_inf,\n", ""),
    ],
    "optim/skip_mask.py": [
        (", pin_memory=flag.is_cuda)", ")"),
        ("host.copy_(flag, non_blocking=True)", "host.copy_(flag)"),
        ("copied = torch.cuda.Event() if flag.is_cuda else None", "copied = None"),
        ("            copied.synchronize()\n", "            pass\n"),
        ("        copied.record(torch.cuda.current_stream(flag.device))\n", "        pass\n"),
    ],
    "optim/build.py": [
        ('fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())', "fused = False"),
    ],
    "training/compute/flash.py": [
        ("        attention.activate_flash_attention_impl(name)\n", "        pass\n"),
        ("        attention.restore_flash_attention_impl()", "        pass"),
        ("list(attention.list_flash_attention_impls())", "list(attention.list_flash_impls())"),
    ],
    "training/compute/attention_kernels.py": [
        (", **GQA_OPTION,", ","),
        ('return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}',
         'return {"enable_gqa": True}'),
        ("scale=scale, window_size=_to_window_size(window), **GQA",
         "softmax_scale=scale, window_size=_to_window_size(window), **GQA"),
        ("    q, k, v = cast_to_autocast_dtype(q, k, v)\n", ""),
        ("dropout_p=dropout, softmax_scale", "dropout=dropout, softmax_scale"),
    ],
    "training/compute/attention.py": [
        ('    if device.type != "cuda":\n        return {"document_lengths": lengths}\n',
         '    return {"document_lengths": lengths}\n'),
        ("dtype=torch.int32).cumsum(0, dtype=torch.int32)", "dtype=torch.int64).cumsum(0)"),
        ("    cu_seqlens = F.pad(cu_seqlens, (0, padding), value=sum(lengths))\n", ""),
        ('"max_length_q": sequence_len}', '"max_length_q": max(lengths)}'),
    ],
    "training/compute/liger.py": [
        ("model=model, cross_entropy=False", "module=model, cross_entropy=False"),
    ],
    "training/compute/head_loss.py": [
        ('LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum", **options)',
         'LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduce="sum", **options)'),
        ("_load_liger_loss(z_loss)(weight_VH, hidden_NH,", "_load_liger_loss(z_loss)(hidden_NH, weight_VH,"),
    ],
    "training/compute/cross_entropy.py": [
        ("torch.addmm(total, a, b, out_dtype=total.dtype, out=total)", "torch.addmm(total, a, b, out=total)"),
        ("torch.zeros_like(cast_PH, dtype=torch.float32)", "torch.zeros_like(cast_PH)"),
    ],
    "training/compute/thresholds.py": [
        ('VOCABULARY_MULTIPLE = {"cuda": 128}', "VOCABULARY_MULTIPLE = {}"),
    ],
    "training/compute/device.py": [
        ("is_bf16_supported(including_emulation=False)", "is_bf16_supported(emulation=False)"),
        ('return "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"', 'return "cpu"'),
        ("return torch.cuda.get_device_capability()", "return torch.cuda.get_capability()"),
        ('return "bf16" if is_supported else "fp32"', 'return "fp32"'),
        ("(capability := get_compute_capability()) < (8, 9)", "capability := ()"),
    ],
    "resources.py": [
        ("torch.cuda.empty_cache()", "torch.cuda.empty_caches()"),
    ],
    "training/metrics/peak_flops.py": [
        ("find_device(torch.cuda.get_device_name())", "find_device(torch.cuda.get_name())"),
        ("torch.cuda.synchronize()", "pass"),
    ],
    "training/metrics/throughput.py": [
        ("return torch.cuda.max_memory_allocated(device)", "pass"),
    ],
    "plan/torch_device.py": [
        ("return torch.cuda.get_device_properties(0).total_memory",
         "return torch.cuda.get_device_properties().memory"),
    ],
    "training/trainer.py": [
        ("data.to(self.args.device, non_blocking=True)", "data.to(self.args.device)"),
        ('super().get_batch_samples(batches_left, count, torch.device("cpu"))',
         "super().get_batch_samples(batches_left, count, device)"),
    ],
    "training/ranks.py": [
        ("        torch.cuda.set_device(local_device)\n", ""),
        ('dist.init_process_group("nccl", device_id=local_device, timeout=CONNECT_TIMEOUT)',
         'dist.init_process_group("nccl", device=local_device)'),
    ],
    "training/batches.py": [
        ('pin_memory=collate.device.type == "cuda",', "pin_memory=False,"),
    ],
    "training/preflight.py": [
        ("requested > torch.cuda.device_count()", "requested > torch.cuda.devices()"),
    ],
    "training/run.py": [
        ("bf16=setup.precision in BF16_PRECISIONS,", "bf16=False,"),
        ("        activate_flash_attention(setup.attention_backend)\n", ""),
        ("        kernels.append(convert_to_fp8(model))\n", "        pass\n"),
    ],
    "training/compute/backends.py": [
        ('precision not in BF16_PRECISIONS:\n            return "sdpa"',
         'precision == "bf16":\n            return "sdpa"'),
    ],
    "training/compute/fp8.py": [
        ("from_recipe_name(RECIPE)", "from_recipe(RECIPE)"),
    ],
}  # fmt: skip
"""File in krill/ → lines that run on a GPU only, or whose result matters there only, and what each becomes."""


def list_mutations() -> list[Mutation]:
    """Returns all mutations. Raises SystemExit if a file does not have the line of one, or has it twice."""
    mutations = [Mutation(file, *change) for file, changes in MUTATIONS.items() for change in changes]
    for mutation in mutations:
        if (ROOT / "krill" / mutation.file).read_text(encoding="utf-8").count(mutation.text) != 1:
            raise SystemExit(f"krill/{mutation.file} does not have once: {mutation.text.strip()}")
    return mutations


def copy_tree(folder: Path) -> None:
    """Copies what the tests read; folders of the tree that are not part of it, such as outputs, stay behind."""
    for name in ("krill", "conf", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, folder)


def run_tests(tree: Path) -> tuple[str, str]:
    """Returns how the tests end in `tree` (passed, failed or other), and the first failure or the last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=0", *TESTS]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        return "other", f"stopped after {TIME_LIMIT} seconds"
    lines = done.stdout.splitlines()
    failures = [line for line in lines if line.startswith(("FAILED tests", "ERROR tests"))]
    if done.returncode == 0:
        return "passed", lines[-1]
    if done.returncode == 1 and failures and "::" in failures[0]:  # not an error of collection
        return "failed", failures[0].partition(" - ")[0]
    return "other", " ".join([*failures, *lines[-1:], *done.stderr.splitlines()[-1:]])


def require_passing(tree: Path) -> None:
    outcome, detail = run_tests(tree)
    if outcome != "passed":
        raise SystemExit(f"the tests do not pass without a mutation ({detail}): nothing can be concluded")


def try_mutation(tree: Path, mutation: Mutation) -> dict[str, Any]:
    """Returns the verdict of the tests on `mutation`, and restores the file."""
    path = tree / "krill" / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.text, mutation.replacement), encoding="utf-8")
    outcome, detail = run_tests(tree)
    path.write_text(text, encoding="utf-8")
    verdict = {"failed": "noticed", "passed": "MISSED", "other": "other"}[outcome]
    return {**mutation._asdict(), "verdict": verdict, "by": detail}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="files, such as ranks.py, whose mutations are tried")
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "mutate_gpu.json")
    arguments = parser.parse_args()
    mutations = list_mutations()
    known = [each for each in mutations if not arguments.only or Path(each.file).name in arguments.only]
    chosen = random.Random(arguments.seed).sample(known, min(arguments.count, len(known)))
    results: list[dict[str, Any]] = []
    record = {
        "date": date.today().isoformat(),
        "versions": read_versions("torch", "transformers", "accelerate", "torchao"),
        "known": len(mutations), "seed": arguments.seed, "chosen": len(chosen), "tried": 0, "noticed": 0,
        "mutations": results,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary)
        copy_tree(tree)
        require_passing(tree)
        for mutation in chosen:
            results.append(try_mutation(tree, mutation))
            record["tried"] = len(results)
            record["noticed"] = sum(result["verdict"] == "noticed" for result in results)
            atomic.write_json(arguments.result, record)
            line = mutation.text.strip().partition("\n")[0]
            print(
                f"{results[-1]['verdict']:8} {mutation.file}: {line}\n             {results[-1]['by']}",
                flush=True,
            )
        require_passing(tree)
    noticed = sum(result["verdict"] == "noticed" for result in results)
    print(f"{noticed} of {len(chosen)} noticed")
    return int(noticed < BAR * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
