"""Question: how well and how fast are tokenizers trained, beside the trainers themselves?

On the same Korean and English text, 32000 entries, one split pattern, alternating, the median of several rounds:

    hf alone        Hugging Face tokenizers' trainer on the texts of the files, krill's recipe
    rustbpe alone   rustbpe on the texts of the files; no tokenizer.json yet
    hf              krill-tokenizer tokenizer.trainer=hf, from the files to the folder
    rustbpe         krill-tokenizer tokenizer.trainer=rustbpe

Each is a process of its own. Start-up is apart: alone, time counts from the first file that is read; of krill's, what
the same command takes with dry_run=true is taken off. Then bytes per token on held-out text of each
language, round trips, whether another order of the files gives the same bytes, and what Korean gains when an English
tokenizer gets it as an extension. Prints tables and writes results/tokenizer_training.json.

    python benchmarks/tokenizer_training.py --train ko.parquet en.parquet --heldout ko_held.parquet en_held.parquet
                                                                    (5 minutes for 59 MB on two cores)

Must hold: the trainer that was asked for takes at most 1.1 times as long as alone; both are within 0.5 % of the
better one's bytes per token; no round trip fails; the order of files changes nothing; the extension's Korean bytes
per token are at least 1.5 times those of its base.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

WAYS = ("hf alone", "rustbpe alone", "hf", "rustbpe")
SIZE = 32000


def texts(files: list[str]) -> list[str]:
    import pyarrow.parquet

    return [text for file in files for text in pyarrow.parquet.read_table(file).column("text").to_pylist()]


def hf_alone(files: list[str]) -> float:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from krill.tokenizer.recipe import SPLIT_PATTERNS

    began = time.perf_counter()
    every = texts(files)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERNS["gpt4"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        min_frequency=2,
        max_token_length=30,
        special_tokens=[AddedToken("<|eos|>", special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(every, trainer)
    return time.perf_counter() - began


def rustbpe_alone(files: list[str]) -> float:
    import rustbpe

    from krill.tokenizer.recipe import SPLIT_PATTERNS

    began = time.perf_counter()
    every = texts(files)
    rustbpe.Tokenizer().train_from_iterator(iter(every), SIZE, pattern=SPLIT_PATTERNS["gpt4"])
    return time.perf_counter() - began


def trained(files: list[str], folder: Path, *words: str) -> float:
    """Seconds of krill-tokenizer from the call to its end."""
    began = time.perf_counter()
    command = [
        "krill-tokenizer", "data=files", f"data.paths=[{','.join(files)}]", "data.validation_fraction=0",
        "data.min_chars=1", f"output={folder}", *words,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def measured(way: str, files: list[str], folder: Path) -> float:
    if way.endswith("alone"):
        command = [sys.executable, __file__, "--way", way, "--train", *files]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(found.stdout.splitlines()[-1])
    words = ("tokenizer=bpe_32k", f"tokenizer.trainer={way}")
    return trained(files, folder, *words) - trained(files, folder, *words, "dry_run=true")


def compression(folder: Path, files: list[str]) -> Iterator[tuple[str, float, int]]:
    """(file, bytes per token, failed round trips) of held-out text."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for file in files:
        size = tokens = failed = 0
        for text in texts([file]):
            ids = backend.encode(text, add_special_tokens=False).ids
            size += len(text.encode())
            tokens += len(ids)
            failed += backend.decode(ids) != text
        yield Path(file).stem, round(size / tokens, 4), failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--train", nargs="+", required=True, help="Parquet files with a column text; Korean first"
    )
    parser.add_argument("--heldout", nargs="+", default=[], help="the same for judging")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    files, heldout = (
        [str(Path(file).absolute()) for file in given] for given in (asked.train, asked.heldout)
    )
    if asked.way:
        print(hf_alone(files) if asked.way == "hf alone" else rustbpe_alone(files))
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for turn in range(asked.rounds):
            for way in WAYS:
                seconds[way].append(measured(way, files, root / f"{way}-{turn}"))
        same = {}
        for way in ("hf", "rustbpe"):
            trained(
                [*reversed(files)], root / f"{way}-order", "tokenizer=bpe_32k", f"tokenizer.trainer={way}"
            )
            written = {(root / f"{way}-{turn}" / "tokenizer.json").read_bytes() for turn in (0, "order")}
            same[way] = len(written) == 1
        trained(files[1:], root / "english", "tokenizer=bpe_32k")
        extension = trained(
            files[:1], root / "extended", "tokenizer=extended", f"tokenizer.base={root / 'english'}",
            f"tokenizer.vocab_size={SIZE + 16000}",
        )  # fmt: skip
        judged = {
            name: {
                file: {"bytes_per_token": ratio, "failed_round_trips": failed}
                for file, ratio, failed in compression(root / folder, heldout)
            }
            for name, folder in (
                ("hf", "hf-0"), ("rustbpe", "rustbpe-0"), ("english", "english"), ("english + korean", "extended")
            )
        }  # fmt: skip
    ratios = {
        way: round(
            statistics.median(a / b for a, b in zip(seconds[way], seconds[f"{way} alone"], strict=True)), 3
        )
        for way in ("hf", "rustbpe")
    }
    for way in WAYS:
        print(f"{way:<14} {' '.join(f'{value:.1f}' for value in seconds[way])} s")
    print("krill / alone:", ratios)
    print("the same bytes in another order of files:", same)
    for name, found in judged.items():
        print(f"{name:<17} {found}")
    print(f"the extension took {extension:.1f} s")
    result = {
        "question": "32000 entries: seconds beside the trainers alone, bytes per token on held-out text",
        "date": date.today().isoformat(),
        "megabytes": round(sum(len(text.encode()) for text in texts(files)) / 1e6, 1),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "tokenizers", "rustbpe")},
        "seconds": {way: [round(value, 2) for value in values] for way, values in seconds.items()},
        "krill_to_alone": ratios,
        "same_bytes_in_another_order": same,
        "heldout": judged,
        "extension_seconds": round(extension, 2),
    }
    path = Path(__file__).parent / "results" / "tokenizer_training.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
