"""Question: how fast is krill-evaluate beside lm-eval's HFLM on the tasks that krill brings along?

Both sides start with a loaded model and the items in memory, and end with the scores of the task: krill's own
evaluator beside lm-eval's `evaluate` with the same items, exported as a task of lm-eval. HFLM runs with its default
batch size, which is 1, and with the batch size with which it is fastest here. The rounds alternate; a result is the
median ratio of the pairs. On a CPU the time is that of the processor, so that other programs do not count. The
model has random weights, the tokenizer is trained on the built-in text and on the items. The largest difference
between the log-likelihoods of both sides is reported too: at most 1e-4.

    english_pairs, korean_pairs     minimal pairs, some of each phenomenon
    cloze                           four words after up to 400 characters

The last line is all bundled tasks with as many items as they have, from the items per second of each.

HFLM computes the tokens before the last one of every choice, once for choices in which these are the same. Its
number of tokens divided by krill's, `token_ratio`, is about what sharing saves at its best batch size: a minimal
pair shares a half of one of its sentences, and most choices of a cloze have one token. More pairs share more.

Needs the extra eval. Prints a table and writes results/evaluation.json, or the file of --result.

    python benchmarks/evaluation.py                          (10 minutes on one core)
    python benchmarks/evaluation.py --device cuda --model llama_350m --pairs 100
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from krill.cli.compose import compose_config
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.evaluation.bundled import build_pair_task
from krill.evaluation.choice_evaluator import ChoiceEvaluator
from krill.evaluation.choices import encode_task
from krill.evaluation.cloze import ITEMS as CLOZE_ITEMS
from krill.evaluation.cloze import build_cloze
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.lm_eval_export import export_task
from krill.evaluation.prefix_tree import pack_trees
from krill.evaluation.subject import Subject
from krill.evaluation.task import Task
from krill.evaluation.token_scorer import ignore_progress
from krill.models.build import build_model
from krill.runs.record import read_versions
from krill.sources.python_docs import read_python_docs
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import train_tokenizer

CONTEXT = 512
DEFAULT_BATCH_SIZE = 1
BATCH_SIZES = (1, 4, 16, 64)
"""Batch sizes of HFLM, of which the fastest is used beside the default."""
DOCUMENTS = 4000
SETTINGS = EvaluationSettings(None, 1, 0)


class FixedSource:
    """Has the items of one task."""

    def __init__(self, task: Task):
        self.task, self.name = task, task.name

    def identify(self, settings: EvaluationSettings) -> Any:
        return self.task.item_hash

    def build(self, subject: Subject, settings: EvaluationSettings) -> Task:
        return self.task


@contextmanager
def silence() -> Iterator[None]:
    """Hides the bars of lm-eval."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


class Bench:
    """A model on both sides."""

    def __init__(self, preset: str, device: str, tokenizer: TokenizerFolder, folder: Path):
        config: TrainConfig = validate_config(
            TrainConfig, compose_config("train", [f"model={preset}", f"sequence_len={CONTEXT}"])
        )
        torch.manual_seed(0)
        ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        model: Any = build_model(config.model, tokenizer.vocab_size, *ids)
        model.save_pretrained(folder / "model")
        tokenizer.copy_to(folder / "model", CONTEXT)
        self.read_clock = time.process_time if device == "cpu" else time.perf_counter
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype).to(device).eval()
        self.reference_tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.subject = Subject("bench", self.model, tokenizer, None)
        self.folder, self.device = folder, device

    def run_krill(self, task: Task) -> float:
        """Returns the items per second of krill."""
        start = self.read_clock()
        ChoiceEvaluator(FixedSource(task)).evaluate(self.subject, SETTINGS, ignore_progress)
        return len(task.items) / (self.read_clock() - start)

    def run_hflm(self, task: Task, loaded: Any, batch_size: int, limit: int | None = None) -> float:
        """Returns the items per second of lm-eval."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        reference = HFLM(self.model, tokenizer=self.reference_tokenizer, batch_size=batch_size)
        with silence():
            start = self.read_clock()
            self.found = evaluate(reference, loaded, limit=limit, bootstrap_iters=0)
            seconds = self.read_clock() - start
        return (limit or len(task.items)) / seconds

    def compare(self, task: Task, rounds: int) -> dict[str, Any]:
        """Runs the two sides in turn; returns the medians and the median of the paired ratios."""
        from lm_eval.tasks import TaskManager

        name = export_task(task, self.folder / task.name)
        loaded = TaskManager(include_defaults=False, include_path=self.folder / task.name).load([name])
        sample = len(task.items) // 4
        sizes = {size: self.run_hflm(task, loaded, size, sample) for size in BATCH_SIZES}
        best = max(sizes, key=lambda size: sizes[size])
        sides: dict[str, Callable[[], float]] = {
            "krill": lambda: self.run_krill(task),
            "hflm_default": lambda: self.run_hflm(task, loaded, DEFAULT_BATCH_SIZE),
            "hflm_best": lambda: self.run_hflm(task, loaded, best),
        }
        self.run_krill(task)
        rows = []
        for index in range(rounds):
            order = list(sides) if index % 2 == 0 else list(reversed(sides))
            rows.append({side: sides[side]() for side in order})
        result: dict[str, Any] = {
            "items": len(task.items), "token_ratio": self.count_token_ratio(task), "rounds": rows,
        }  # fmt: skip
        for side in sides:
            result[side] = round(statistics.median(row[side] for row in rows), 2)
        for side in ("hflm_default", "hflm_best"):
            ratios = sorted(row["krill"] / row[side] for row in rows)
            result[f"ratio_to_{side}"] = round(statistics.median(ratios), 3)
            result[f"ratios_to_{side}"] = [round(ratio, 3) for ratio in ratios]
        return result | {
            "hflm_batch_size": best,
            "hflm_batch_sizes": {size: round(speed, 2) for size, speed in sizes.items()},
            "largest_difference": self.find_largest_difference(task, name),
        }

    def count_token_ratio(self, task: Task) -> float:
        """Returns how many times as many tokens HFLM computes as there are in the trees of krill."""
        questions = encode_task(task, self.subject.encoder, CONTEXT).questions
        sequences = sorted((item for question in questions for item in question), key=lambda item: item.ids)
        tokens = sum(map(len, {item.ids[:-1] for item in sequences}))
        return round(tokens / sum(len(tree.ids) for tree in pack_trees(sequences)), 3)

    def find_largest_difference(self, task: Task, name: str) -> float:
        """Returns the largest difference between the log-likelihoods of both sides, in nats."""
        encoded = encode_task(task, self.subject.encoder, CONTEXT)
        scores = self.subject.scorer.score(encoded.questions)
        return max(
            abs(scores[index, position].logprob - answer[0][0])
            for index, sample in enumerate(self.found["samples"][name])
            for position, answer in enumerate(sample["resps"])
        )


def compare_all_items(results: Mapping[str, Any], items: Mapping[str, int]) -> dict[str, Any]:
    """Returns the ratios of the time for `items` of each task: of each round, and their medians."""
    found: dict[str, Any] = {"items": sum(items.values())}
    for side in ("hflm_default", "hflm_best"):
        ratios = []
        for rows in zip(*(results[name]["rounds"] for name in items), strict=True):
            pairs = list(zip(items.values(), rows, strict=True))
            ratios.append(
                sum(count / row[side] for count, row in pairs)
                / sum(count / row["krill"] for count, row in pairs)
            )
        found[f"ratio_to_{side}"] = round(statistics.median(ratios), 3)
        found[f"ratios_to_{side}"] = [round(ratio, 3) for ratio in sorted(ratios)]
    return found


def make_tasks(pairs: int, clozes: int, texts: list[str]) -> list[Task]:
    """Returns the tasks, in miniature."""
    cloze = build_cloze("cloze", "en", texts)
    assert cloze is not None
    return [
        build_pair_task("english_pairs", pairs),
        build_pair_task("korean_pairs", pairs),
        Task(cloze.name, cloze.language, cloze.description, cloze.items[:clozes]),
    ]


def make_tokenizer(folder: Path, tasks: list[Task], texts: list[str]) -> TokenizerFolder:
    """Trains the tokenizer of tokenizer=bpe_4k on the texts and on the items of the tasks."""
    config: TrainConfig = validate_config(TrainConfig, compose_config("train", []))
    items = [choice for task in tasks for item in task.items for choice in item.choices]
    folder.mkdir()
    train_tokenizer(config.tokenizer, lambda: iter([*texts, *items]), folder)
    return load_tokenizer(folder)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama_nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=100, help="pairs of each phenomenon")
    parser.add_argument("--clozes", type=int, default=64, help="items of the cloze")
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results/evaluation.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers_logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    machine = {
        "date": str(date.today()), "device": arguments.device, "cpu": platform.processor() or platform.machine(),
        "threads": arguments.threads, "load": [round(load, 1) for load in os.getloadavg()],
        "versions": read_versions("torch", "transformers", "lm_eval"), "model": arguments.model,
    }  # fmt: skip
    texts = list(read_python_docs())[:DOCUMENTS]
    tasks = make_tasks(arguments.pairs, arguments.clozes, texts)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(Path(folder) / "tokenizer", tasks, texts)
        bench = Bench(arguments.model, arguments.device, tokenizer, Path(folder))
        results: dict[str, Any] = {}
        for task in tasks:
            result = results[task.name] = bench.compare(task, arguments.rounds)
            print(
                f"{task.name:14} {result['krill']:8,.1f} {result['hflm_default']:8,.1f} {result['hflm_best']:8,.1f}"
                f" items/s  ratios {result['ratio_to_hflm_default']:.2f} and {result['ratio_to_hflm_best']:.2f}"
                f"  largest difference {result['largest_difference']:.1e}",
                flush=True,
            )
            content = {"machine": machine, "results": results}
            arguments.result.write_text(json.dumps(content, indent=2) + "\n")
        items = {task.name: len(build_pair_task(task.name).items) for task in tasks if task.name != "cloze"}
        total = results["all"] = compare_all_items(results, items | {"cloze": CLOZE_ITEMS})
        print(
            f"all {total['items']:,} items: ratios {total['ratio_to_hflm_default']:.2f} and "
            f"{total['ratio_to_hflm_best']:.2f}"
        )
        arguments.result.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
