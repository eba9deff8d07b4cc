"""Question: how fast does krill turn raw text into tokens, compared with the engines alone and with datasets.map?

On the same text, with the same tokenizer and threads, alternating, the median of several rounds:

    hf limit      Hugging Face tokenizers' encode_batch_fast on texts in memory: nothing is read, cleaned or stored
    hf            krill from the files to the store, engine=hf
    fast limit    gigatoken's encode_batch on texts in memory
    fast          krill from the files to the store, engine=fast
    original      datasets.map to clean, a Python set against duplicates, the tokenizer in map, TRL packing, saved

Each runs in its own process, cold; krill's start-up (imports, workers, comparing the engines) is measured with the
same command on one document and subtracted. Prints a table, checks that all stores are bitwise identical, and writes
results/preparation_<megabytes>mb.json.

    python benchmarks/preparation.py ko.parquet en.parquet          (10 minutes for 59 MB on two cores)

Must hold: hf ≥ 0.90 of its limit, fast ≥ 0.5 of its limit and ≥ 12 × hf.
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
from datetime import date
from pathlib import Path

from krill.runs.record import read_versions

VARIANTS = ("hf limit", "fast limit", "hf", "fast", "original")
BATCH = 1_000_000


def read_texts(files: list[str]) -> list[str]:
    import pyarrow.parquet

    return [text for file in files for text in pyarrow.parquet.read_table(file).column("text").to_pylist()]


def split_batches(texts: list[str], size: int) -> list[list[str]]:
    batches: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        batches[-1].append(text)
        characters += len(text)
        if characters > size:
            batches.append([])
            characters = 0
    return [batch for batch in batches if batch]


def time_hf_limit(files: list[str], tokenizer: Path, _: Path) -> float:
    from tokenizers import Tokenizer

    backend, all_texts = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), read_texts(files)
    began = time.perf_counter()
    for batch in split_batches(all_texts, BATCH):
        backend.encode_batch_fast(batch, add_special_tokens=False)
    return time.perf_counter() - began


def time_fast_limit(files: list[str], tokenizer: Path, _: Path) -> float:
    import gigatoken

    backend, all_texts = gigatoken.Tokenizer(str(tokenizer / "tokenizer.json")), read_texts(files)
    began = time.perf_counter()
    for batch in split_batches(all_texts, BATCH):
        backend.encode_batch(batch)
    return time.perf_counter() - began


def time_krill(files: list[str], tokenizer: Path, folder: Path, engine: str) -> float:
    command = [
        sys.executable, "-m", "krill", "preprocess", "data=files", f"data.paths=[{','.join(files)}]",
        "tokenizer=pretrained", f"tokenizer.path={tokenizer}", "data.min_chars=1", f"data.engine={engine}",
        f"output={folder}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "record.json").read_text())["seconds"]


def time_original(files: list[str], tokenizer: Path, folder: Path) -> float:
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast
    from trl import pack_dataset

    backend = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    began = time.perf_counter()
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    workers = max(1, (os.cpu_count() or 1) - 8)
    seen: set[str] = set()

    def clean(row: dict[str, str]) -> dict[str, str]:
        return {"text": row["text"].strip().encode("utf-8", "ignore").decode("utf-8")}

    def is_new(row: dict[str, str]) -> bool:
        if not row["text"] or row["text"] in seen:
            return False
        seen.add(row["text"])
        return True

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*ids, backend.eos_token_id] for ids in backend(rows["text"]).input_ids]}

    data = data.map(clean, num_proc=workers).filter(is_new)
    data = data.map(encode, batched=True, remove_columns=data.column_names, num_proc=workers)
    packed = pack_dataset(data, 1024, strategy="wrapped", map_kwargs={"batch_size": len(data)})
    packed.save_to_disk(str(folder / "packed"))
    return time.perf_counter() - began


def time_variant(variant: str, files: list[str], tokenizer: Path, folder: Path) -> float:
    match variant:
        case "hf limit":
            return time_hf_limit(files, tokenizer, folder)
        case "fast limit":
            return time_fast_limit(files, tokenizer, folder)
        case "original":
            return time_original(files, tokenizer, folder)
    return time_krill(files, tokenizer, folder, variant)


def measure(variant: str, files: list[str], tokenizer: Path, folder: Path) -> float:
    """Returns the seconds of one variant in its own process."""
    command = [sys.executable, __file__, *files, "--variant", variant, "--tokenizer", str(tokenizer)]
    command += ["--folder", str(folder)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | quiet)
    return float(done.stdout.splitlines()[-1])


def is_same_store(first: Path, second: Path) -> bool:
    names = {path.name for path in first.iterdir()} - {"record.json"}
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


Seconds = dict[str, list[float]]
"""Variant → seconds of each round."""


def measure_all(variants: list[str], files: list[str], root: Path, rounds: int) -> tuple[Seconds, Seconds]:
    """Returns the seconds of all variants, and those that krill needs for a single document."""
    seconds: Seconds = {variant: [] for variant in variants}
    start: Seconds = {"hf": [], "fast": []}
    tokenizer = root / "tokenizer"
    subprocess.run(
        [sys.executable, "-m", "krill", "tokenizer", "data=files", f"data.paths=[{','.join(files)}]",
         "tokenizer=bpe_32k", f"output={tokenizer}"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    small = root / "one.jsonl"
    small.write_text(json.dumps({"text": "one document"}) + "\n")
    for number in range(rounds):
        for variant in variants:
            folder = root / f"{variant.replace(' ', '-')}-{number}"
            folder.mkdir()
            seconds[variant].append(measure(variant, files, tokenizer, folder))
            if variant in start:
                (folder / "one").mkdir()
                start[variant].append(measure(variant, [str(small)], tokenizer, folder / "one"))
                (folder / "one").rename(root / f"{folder.name}-one")
        assert is_same_store(root / f"hf-{number}", root / f"fast-{number}"), "the engines' stores differ"
    return seconds, start


def compute_ratios(seconds: Seconds) -> dict[str, float]:
    """Returns how many times as fast one variant is as another, the median of the rounds."""
    pairs = [("hf", "hf limit"), ("fast", "fast limit"), ("fast", "hf")]
    if "original" in seconds:
        pairs += [("hf", "original"), ("fast", "original")]
    return {
        f"{variant} / {other}": round(
            statistics.median(b / a for a, b in zip(seconds[variant], seconds[other], strict=True)), 3
        )
        for variant, other in pairs
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", help="Parquet files with a column text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-original", action="store_true")
    for name in ("--variant", "--tokenizer", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = [str(Path(file).absolute()) for file in arguments.files]
    if arguments.variant:
        print(time_variant(arguments.variant, files, Path(arguments.tokenizer), Path(arguments.folder)))
        return
    variants = [variant for variant in VARIANTS if variant != "original" or not arguments.skip_original]
    with tempfile.TemporaryDirectory() as temporary:
        seconds, start = measure_all(variants, files, Path(temporary), arguments.rounds)
    megabytes = sum(len(text.encode()) for text in read_texts(files)) / 1e6
    net = {
        variant: [
            total - start_up
            for total, start_up in zip(values, start.get(variant, [0.0] * len(values)), strict=True)
        ]
        for variant, values in seconds.items()
    }
    rates = {variant: megabytes / statistics.median(values) for variant, values in net.items()}
    ratios = compute_ratios(net)
    for variant in variants:
        print(
            f"{variant:<12} {rates[variant]:>8.2f} MB/s   {' '.join(f'{value:.2f}' for value in net[variant])} s"
        )
    for name, value in ratios.items():
        print(f"{name:<20} {value:>8.2f}")
    result = {
        "question": "raw text to tokens: megabytes of text per second, and ratios within a round",
        "date": date.today().isoformat(),
        "megabytes": round(megabytes, 1),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "tokenizers", "gigatoken", "datasets", "trl"),
        "megabytes_per_second": {variant: round(rate, 2) for variant, rate in rates.items()},
        "seconds": {variant: [round(value, 3) for value in values] for variant, values in net.items()},
        "start_seconds": {variant: round(statistics.median(values), 3) for variant, values in start.items()},
        "ratios": ratios,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / f"preparation_{round(megabytes)}mb.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
