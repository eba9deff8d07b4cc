"""Does lm-eval over HTTP grade a model of krill as the model itself does?

Serves a model, has lm-eval's local-completions score pairs of texts through /v1/completions, and compares each score
with the one that the model gives without a server. lm-eval is not an extra of krill: pip install 'lm_eval[api]'.

python benchmarks/grade_over_http.py MODEL
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from krill.inference.load import load_model
from krill.inference.token_scores import score_tokens

PAIRS = [
    ("Return the", " value"), ("for i in", " range"), ("옛날 옛적에", " 왕이"), ("이 영화는", " 정말 재미있다"),
    ("A list is", " a sequence of items, each with an index"), ("x", " y"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the folder of a run or of a model")
    loaded = load_model(parser.parse_args().model, torch.device("cpu"))
    command = [sys.executable, "-m", "krill", "serve", str(loaded.folder), "serve.port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        grader = make_grader(url, loaded.folder, loaded.model.config.max_position_embeddings)
        requests = [grader._encode_pair(*pair) for pair in PAIRS]
        graded = grader._loglikelihood_tokens(
            [(pair, *ids) for pair, ids in zip(PAIRS, requests, strict=True)], disable_tqdm=True
        )
    finally:
        process.terminate()
        process.wait()
    largest = 0.0
    for pair, (context, continuation), (logprob, is_greedy) in zip(PAIRS, requests, graded, strict=True):
        scores = score_tokens(loaded.model, context + continuation)[len(context) - 1 :]
        own = sum(score.logprob for score in scores)
        largest = max(largest, abs(own - logprob))
        assert is_greedy == all(score.rank == 0 for score in scores), pair
        print(f"{logprob:10.4f} {own:10.4f}  {''.join(pair)}")
    print(f"largest difference {largest:.2g} nats")
    if largest > 1e-3:
        raise SystemExit("the scores differ")


def make_grader(url: str, folder: Path, context_length: int) -> Any:
    """Returns the model of lm-eval that asks the server; it sends bos and token ids."""
    try:
        from lm_eval.models.openai_completions import LocalCompletionsAPI
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: pip install 'lm_eval[api]'") from error
    return LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model=folder.name, tokenizer=str(folder), add_bos_token=True,
        max_length=context_length, batch_size=4,
    )  # fmt: skip


if __name__ == "__main__":
    main()
