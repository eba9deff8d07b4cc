"""Question: how fast is krill-infer beside transformers' own generation, and how much does a batch save?

Every part alternates between the two sides; the result is the median ratio of the pairs. On a CPU the time is that
of the processor, so that other programs do not count; on CUDA it is that of the clock. The model is llama_nano with
random weights, the prompts are random tokens.

    one_by_one       the engine, with its streamed text, beside a bare model.generate: tokens/s, greedy and sampled
                     must be ≥ 0.95
    batch            1,000 prompts of 4 to 200 tokens in batches, beside the same prompts one by one: prompts/s
                     must be ≥ 4 on a CPU
    continuous       the engine beside transformers' continuous batching (generate_batch), same prompts: prompts/s;
                     ≥ 1: the engine is what krill-infer uses

Prints a table and writes results/inference.json, or the file of --result.

    python benchmarks/inference.py                          (10 minutes on one core)
    python benchmarks/inference.py --parts batch --device cuda --model llama_350m
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from krill.cli.compose import compose_config
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.sampling import SamplingParams
from krill.models.build import build_model
from krill.runs.record import read_versions
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import train_tokenizer

VOCAB_SIZE = 4096
CONTEXT = 512
NEW_TOKENS = 32
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0, repetition_penalty=1.0)
DEFAULTS = SamplingParams(max_new_tokens=NEW_TOKENS)
"""krill's default sampling."""

Work = Callable[[], float]
"""Runs one side once; returns its work per second."""


def measure(engine: Work, other: Work, rounds: int) -> dict[str, Any]:
    """Runs the two sides in turn; returns the medians and the median of the paired ratios."""
    pairs = []
    for index in range(rounds):
        if index % 2:
            right = other()
            pairs.append((engine(), right))
        else:
            pairs.append((engine(), other()))
    ratios = sorted(left / right for left, right in pairs)
    return {
        "engine": round(statistics.median(left for left, _ in pairs), 2),
        "other": round(statistics.median(right for _, right in pairs), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


class Bench:
    """A model, a tokenizer and prompts."""

    def __init__(self, preset: str, device: str, tokenizer: TokenizerFolder):
        config: TrainConfig = validate_config(
            TrainConfig, compose_config("train", [f"model={preset}", f"sequence_len={CONTEXT}"])
        )
        torch.manual_seed(0)
        ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        model: Any = build_model(config.model, tokenizer.vocab_size, *ids)
        with torch.no_grad():  # eos is never chosen, so that both sides generate the same number of tokens
            model.get_output_embeddings().weight[tokenizer.eos_id] = 0
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.read_clock = time.process_time if device == "cpu" else time.perf_counter
        self.model, self.tokenizer = model.to(device, dtype).eval(), tokenizer
        draw = random.Random(0)
        self.prompts = [
            [tokenizer.bos_id, *draw.choices(range(3, tokenizer.vocab_size), k=draw.randint(4, 200))]
            for _ in range(1000)
        ]
        for run in (self.run_engine, self.run_generate):
            run(self.prompts[:1], DEFAULTS)

    def run_engine(self, prompts: list[list[int]], params: SamplingParams, size: int | None = None) -> float:
        """Returns the prompts per second of the engine with all of `prompts` at once."""
        engine = (
            GenerationEngine(self.model, self.tokenizer, size)
            if size
            else GenerationEngine(self.model, self.tokenizer)
        )
        generations = [Generation(prompt, params) for prompt in sorted(prompts, key=len, reverse=True)]
        start = self.read_clock()
        engine.run(generations)
        seconds = self.read_clock() - start
        assert all(len(item.new_ids) == params.max_new_tokens for item in generations)
        return len(prompts) / seconds

    def run_one_by_one(self, prompts: list[list[int]], params: SamplingParams) -> float:
        """Returns the prompts per second of the engine with one prompt after the other."""
        start = self.read_clock()
        for prompt in prompts:
            GenerationEngine(self.model, self.tokenizer).run([Generation(prompt, params)])
        return len(prompts) / (self.read_clock() - start)

    def run_generate(self, prompts: list[list[int]], params: SamplingParams) -> float:
        """Returns the prompts per second of model.generate, one prompt after the other."""
        config = self._build_config(params)
        start = self.read_clock()
        for prompt in prompts:
            ids = torch.tensor([prompt], device=self.model.device)
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            assert output.shape[1] == len(prompt) + params.max_new_tokens
        return len(prompts) / (self.read_clock() - start)

    def run_generate_batch(self, prompts: list[list[int]], params: SamplingParams) -> float:
        """Returns the prompts per second of transformers' continuous batching."""
        start = self.read_clock()
        outputs = self.model.generate_batch(
            inputs=prompts, generation_config=self._build_config(params), progress_bar=False
        )
        assert len(outputs) == len(prompts)
        return len(prompts) / (self.read_clock() - start)

    def _build_config(self, params: SamplingParams) -> GenerationConfig:
        sampling: dict[str, Any] = {"do_sample": False}
        if params.temperature:
            sampling = {
                "do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": 0,
            }  # fmt: skip
        return GenerationConfig(
            max_new_tokens=params.max_new_tokens, repetition_penalty=params.repetition_penalty, use_cache=True,
            eos_token_id=self.tokenizer.eos_id, pad_token_id=self.tokenizer.pad_id, **sampling,
        )  # fmt: skip


def measure_one_by_one(bench: Bench, rounds: int) -> dict[str, Any]:
    """Compares tokens/s of the engine and of model.generate."""
    results = {}
    for name, params in (("greedy", GREEDY), ("sampled", DEFAULTS)):
        prompts = bench.prompts[:3]
        result = measure(
            lambda: bench.run_one_by_one(prompts, params) * NEW_TOKENS,  # noqa: B023
            lambda: bench.run_generate(prompts, params) * NEW_TOKENS,  # noqa: B023
            2 * rounds,
        )
        results[f"one_by_one, {name}"] = {"unit": "tokens/s", **result}
    return results


def measure_batch(bench: Bench, rounds: int) -> dict[str, Any]:
    """Compares prompts/s of all prompts in batches and of a sample of them one by one, in a slice per round."""
    slices = [bench.prompts[index::rounds] for index in range(rounds)]
    results = {}
    for name, params in (("greedy", GREEDY), ("sampled", DEFAULTS)):
        engine, other = iter(slices), iter(slices)
        result = measure(
            lambda: bench.run_engine(next(engine), params),  # noqa: B023
            lambda: bench.run_one_by_one(next(other)[:16], params),  # noqa: B023
            rounds,
        )
        results[f"batch, {name}"] = {"unit": "prompts/s", **result}
    return results


def measure_continuous(bench: Bench, rounds: int) -> dict[str, Any]:
    """Compares prompts/s of the engine and of transformers' continuous batching."""
    prompts = bench.prompts[:50]
    result = measure(
        lambda: bench.run_engine(prompts, GREEDY), lambda: bench.run_generate_batch(prompts, GREEDY), rounds
    )
    return {"continuous, greedy": {"unit": "prompts/s", **result}}


PARTS: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
    "one_by_one": measure_one_by_one, "batch": measure_batch, "continuous": measure_continuous,
}  # fmt: skip


def make_tokenizer(folder: Path) -> TokenizerFolder:
    """Trains a tokenizer of VOCAB_SIZE entries on random words."""
    config: TrainConfig = validate_config(
        TrainConfig, compose_config("train", [f"tokenizer.vocab_size={VOCAB_SIZE}"])
    )
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=100)) for _ in range(300)]
    train_tokenizer(config.tokenizer, lambda: iter(texts), folder)
    return load_tokenizer(folder)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--model", default="llama_nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results/inference.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers_logging.set_verbosity_error()
    machine = {
        "date": str(date.today()), "device": arguments.device, "cpu": platform.processor() or platform.machine(),
        "threads": arguments.threads, "load": [round(load, 1) for load in os.getloadavg()],
        "versions": read_versions(), "model": arguments.model, "new_tokens": NEW_TOKENS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.model, arguments.device, make_tokenizer(Path(folder)))
        results: dict[str, Any] = {}
        for part in arguments.parts:
            for name, result in PARTS[part](bench, arguments.rounds).items():
                results[name] = result
                print(
                    f"{name:20} {result['engine']:10,.1f} {result['other']:10,.1f} {result['unit']:10} "
                    f"ratio {result['ratio']:.3f}  ({result['ratios'][0]} to {result['ratios'][-1]})",
                    flush=True,
                )
            content = {"machine": machine, "results": results}
            arguments.result.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
