"""Question: how well and how fast does krill train tokenizers, compared with the trainers alone?

On the same Korean and English text, 32000 entries, one split pattern, alternating, the median of several rounds:

    hf alone        Hugging Face tokenizers' trainer on the texts of the files, with krill's recipe
    rustbpe alone   rustbpe on the texts of the files; without writing tokenizer.json
    hf              krill-tokenizer tokenizer.trainer=hf, from the files to the folder
    rustbpe         krill-tokenizer tokenizer.trainer=rustbpe

Each runs in its own process, and start-up does not count: alone, time starts with reading the first file; from
krill's time, the time of the same command with dry_run=true is subtracted. Then measures bytes per token on held-out
text of each language, round trips, whether another order of the files gives the same bytes, and what Korean gains
from an extension of an English tokenizer. Prints tables and writes results/tokenizer_training.json.

    python benchmarks/tokenizer_training.py --train ko.parquet en.parquet --heldout ko_held.parquet en_held.parquet
                                                                    (5 minutes for 59 MB on two cores)

Must hold: each trainer takes at most 1.1 times as long as alone; both are within 0.5 % of the better one's bytes per
token; no round trip fails; the order of files changes nothing; the extension has at least 1.5 times the Korean bytes
per token of its base.
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
from pathlib import Path

from krill.runs.record import read_versions

VARIANTS = ("hf alone", "rustbpe alone", "hf", "rustbpe")
VOCAB_SIZE = 32000


def read_texts(files: list[str]) -> list[str]:
    import pyarrow.parquet

    return [text for file in files for text in pyarrow.parquet.read_table(file).column("text").to_pylist()]


def time_hf_alone(files: list[str]) -> float:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from krill.tokenizer.recipe import SPLIT_PATTERNS

    began = time.perf_counter()
    texts = read_texts(files)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERNS["gpt4"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        max_token_length=30,
        special_tokens=[AddedToken("<|eos|>", special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return time.perf_counter() - began


def time_rustbpe_alone(files: list[str]) -> float:
    import rustbpe

    from krill.tokenizer.recipe import SPLIT_PATTERNS

    began = time.perf_counter()
    texts = read_texts(files)
    rustbpe.Tokenizer().train_from_iterator(iter(texts), VOCAB_SIZE, pattern=SPLIT_PATTERNS["gpt4"])
    return time.perf_counter() - began


def time_krill_tokenizer(files: list[str], folder: Path, *overrides: str) -> float:
    """Runs krill-tokenizer; returns the seconds from start to end."""
    began = time.perf_counter()
    command = [
        sys.executable, "-m", "krill", "tokenizer", "data=files", f"data.paths=[{','.join(files)}]",
        "data.validation_fraction=0", "data.min_chars=1", f"output={folder}", *overrides,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(variant: str, files: list[str], folder: Path) -> float:
    if variant.endswith("alone"):
        command = [sys.executable, __file__, "--variant", variant, "--train", *files]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(done.stdout.splitlines()[-1])
    overrides = ("tokenizer=bpe_32k", f"tokenizer.trainer={variant}")
    return time_krill_tokenizer(files, folder, *overrides) - time_krill_tokenizer(
        files, folder, *overrides, "dry_run=true"
    )


def measure_compression(folder: Path, files: list[str]) -> Iterator[tuple[str, float, int]]:
    """Yields (file, bytes per token, failed round trips) of held-out text."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for file in files:
        size = tokens = failed = 0
        for text in read_texts([file]):
            ids = backend.encode(text, add_special_tokens=False).ids
            size += len(text.encode())
            tokens += len(ids)
            failed += backend.decode(ids) != text
        yield Path(file).stem, round(size / tokens, 4), failed


def is_independent_of_order(variant: str, files: list[str], root: Path) -> bool:
    """Returns whether the files in another order give the bytes of the first round."""
    overrides = ("tokenizer=bpe_32k", f"tokenizer.trainer={variant}")
    time_krill_tokenizer([*reversed(files)], root / f"{variant}-order", *overrides)
    written = {(root / f"{variant}-{name}" / "tokenizer.json").read_bytes() for name in ("0", "order")}
    return len(written) == 1


def compute_ratio_to_alone(seconds: dict[str, list[float]], variant: str) -> float:
    """Returns how many times as long krill takes as the trainer alone, the median of the rounds."""
    pairs = zip(seconds[variant], seconds[f"{variant} alone"], strict=True)
    return round(statistics.median(krill / alone for krill, alone in pairs), 3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--train", nargs="+", required=True, help="Parquet files with a column text; Korean first"
    )
    parser.add_argument("--heldout", nargs="+", default=[], help="the same, for the evaluation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files, heldout = (
        [str(Path(file).absolute()) for file in paths] for paths in (arguments.train, arguments.heldout)
    )
    if arguments.variant:
        print(time_hf_alone(files) if arguments.variant == "hf alone" else time_rustbpe_alone(files))
        return
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for number in range(arguments.rounds):
            for variant in VARIANTS:
                seconds[variant].append(measure(variant, files, root / f"{variant}-{number}"))
        same = {variant: is_independent_of_order(variant, files, root) for variant in ("hf", "rustbpe")}
        time_krill_tokenizer(files[1:], root / "english", "tokenizer=bpe_32k")
        extension = time_krill_tokenizer(
            files[:1], root / "extended", "tokenizer=extended", f"tokenizer.base={root / 'english'}",
            f"tokenizer.vocab_size={VOCAB_SIZE + 16000}",
        )  # fmt: skip
        evaluations = {
            name: {
                file: {"bytes_per_token": ratio, "failed_round_trips": failed}
                for file, ratio, failed in measure_compression(root / folder, heldout)
            }
            for name, folder in (
                ("hf", "hf-0"), ("rustbpe", "rustbpe-0"), ("english", "english"), ("english + korean", "extended")
            )
        }  # fmt: skip
    ratios = {variant: compute_ratio_to_alone(seconds, variant) for variant in ("hf", "rustbpe")}
    for variant in VARIANTS:
        print(f"{variant:<14} {' '.join(f'{value:.1f}' for value in seconds[variant])} s")
    print("krill / alone:", ratios)
    print("the same bytes in another order of files:", same)
    for name, figures in evaluations.items():
        print(f"{name:<17} {figures}")
    print(f"the extension took {extension:.1f} s")
    result = {
        "question": "32000 entries: seconds compared with the trainers alone, bytes per token on held-out text",
        "date": date.today().isoformat(),
        "megabytes": round(sum(len(text.encode()) for text in read_texts(files)) / 1e6, 1),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "tokenizers", "rustbpe"),
        "seconds": {variant: [round(value, 2) for value in values] for variant, values in seconds.items()},
        "krill_to_alone": ratios,
        "same_bytes_in_another_order": same,
        "heldout": evaluations,
        "extension_seconds": round(extension, 2),
    }
    path = Path(__file__).parent / "results" / "tokenizer_training.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
