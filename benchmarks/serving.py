"""How much more do eight clients get from krill-serve than one, and does its memory stay the same?

A server with an untrained model runs in a process of its own. One client and then eight (threads of this process)
stream answers of the same length, in turns; the ratio is that of all tokens per second. Then 2,000 requests are sent,
and the memory of the server is compared before and after.

python benchmarks/serving.py [--model FOLDER] [--tokens 64] [--seconds 20] [--requests 2000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

from krill import __version__

RESULT = Path(__file__).parent / "results" / "serving.json"
CLIENTS = (1, 8)


def ask(port: int, body: dict[str, Any], number: int, connection: HTTPConnection | None = None) -> None:
    """Sends a request and reads its answer."""
    own = connection or HTTPConnection("127.0.0.1", port, timeout=120)
    own.request("POST", "/v1/completions", json.dumps(body | {"seed": number}))
    response = own.getresponse()
    text = response.read()
    if response.status != 200:
        raise SystemExit(text.decode())
    if connection is None:
        own.close()


def run_clients(number: int, seconds: float, work: Callable[[int], None]) -> float:
    """Returns how often `number` threads finish `work` per second."""
    finished, until = [0] * number, time.monotonic() + seconds

    def run(index: int) -> None:
        while time.monotonic() < until:
            work(index)
            finished[index] += 1

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(finished) / (time.monotonic() - start)


def measure(port: int, pid: int, tokens: int, seconds: float, requests: int) -> dict[str, Any]:
    """Returns tokens per second for each number of clients, the median ratio, and the memory of the server."""
    body = {"prompt": "The", "max_tokens": tokens, "min_tokens": tokens, "stream": True}
    ask(port, body, 0)
    rounds = [
        {
            number: tokens * run_clients(number, seconds, lambda index: ask(port, body, index))
            for number in CLIENTS
        }
        for _ in range(3)
    ]
    ratios = sorted(speeds[8] / speeds[1] for speeds in rounds)
    server, short = (
        psutil.Process(pid),
        body | {"max_tokens": 1, "min_tokens": 1, "logprobs": 2, "echo": True},
    )
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    for number in range(100):
        ask(port, short, number, connection)
    before, threads = server.memory_info().rss, server.num_threads()
    for number in range(requests):
        ask(port, short, number, connection)
    return {
        "tokens_per_second": {
            str(number): sorted(speeds[number] for speeds in rounds)[1] for number in CLIENTS
        },
        "ratio": ratios[1],
        "ratios": ratios,
        "requests": requests,
        "memory_growth_bytes": server.memory_info().rss - before,
        "threads_growth": server.num_threads() - threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="", help="a trained model; without it, an untrained one of 5 M parameters"
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(make_model(Path(folder)))
        command = [sys.executable, "-m", "krill", "serve", model, "serve.port=0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            result = measure(port, process.pid, options.tokens, options.seconds, options.requests)
        finally:
            process.terminate()
            process.wait()
    rows = [
        (f"{number} clients", f"{speed:.0f} tokens/s")
        for number, speed in result["tokens_per_second"].items()
    ]
    rows += [
        ("8 clients ÷ 1", f"{result['ratio']:.2f}"),
        (f"memory after {result['requests']} requests", f"{result['memory_growth_bytes'] / 2**20:+.1f} MiB"),
    ]
    print("\n".join(f"{name:<30}{value:>16}" for name, value in rows))
    environment = {
        "krill": __version__, "date": str(date.today()), "machine": platform.machine(), "cpus": os.cpu_count(),
        "model": options.model or "untrained, hidden size 256, 4 layers", "tokens": options.tokens,
    }  # fmt: skip
    RESULT.write_text(json.dumps(environment | result, indent=2) + "\n", encoding="utf-8")


def make_model(folder: Path) -> Path:
    """Writes an untrained model with a tokenizer of bytes to `folder`, and returns it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ["<|bos|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    backend.add_special_tokens(names[:2])
    backend.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": names[0], "eos_token": names[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
