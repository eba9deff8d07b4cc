"""Question: how fast is raw text made into tokens, beside the engines' own limit and the original's way?

On the same text, with the same tokenizer and threads, alternating, the median of several rounds:

    hf limit      Hugging Face tokenizers' encode_batch_fast on texts in memory: nothing read, cleaned or stored
    hf            krill from the files to the store, engine=hf
    fast limit    gigatoken's encode_batch on texts in memory
    fast          krill from the files to the store, engine=fast
    original      datasets.map to clean, a Python set against duplicates, the tokenizer in map, TRL packing, saved

Each is a process of its own, cold; krill's start (imports, workers, comparing the engines) is measured by the same
command on one document and taken off. Prints a table, checks that all stores are the same to the byte, and writes
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
from importlib.metadata import version
from pathlib import Path

WAYS = ("hf limit", "fast limit", "hf", "fast", "original")
BATCH = 1_000_000


def texts(files: list[str]) -> list[str]:
    import pyarrow.parquet

    return [text for file in files for text in pyarrow.parquet.read_table(file).column("text").to_pylist()]


def batches(texts: list[str], size: int) -> list[list[str]]:
    found: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        found[-1].append(text)
        characters += len(text)
        if characters > size:
            found.append([])
            characters = 0
    return [batch for batch in found if batch]


def hf_limit(files: list[str], tokenizer: Path, _: Path) -> float:
    from tokenizers import Tokenizer

    backend, all_texts = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), texts(files)
    began = time.perf_counter()
    for batch in batches(all_texts, BATCH):
        backend.encode_batch_fast(batch, add_special_tokens=False)
    return time.perf_counter() - began


def fast_limit(files: list[str], tokenizer: Path, _: Path) -> float:
    import gigatoken

    backend, all_texts = gigatoken.Tokenizer(str(tokenizer / "tokenizer.json")), texts(files)
    began = time.perf_counter()
    for batch in batches(all_texts, BATCH):
        backend.encode_batch(batch)
    return time.perf_counter() - began


def krill(files: list[str], tokenizer: Path, folder: Path, engine: str) -> float:
    command = [
        "krill-preprocess", "data=files", f"data.paths=[{','.join(files)}]", "tokenizer=pretrained",
        f"tokenizer.path={tokenizer}", "data.min_chars=1", f"data.engine={engine}", f"output={folder}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "record.json").read_text())["seconds"]


def original(files: list[str], tokenizer: Path, folder: Path) -> float:
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

    def new(row: dict[str, str]) -> bool:
        if not row["text"] or row["text"] in seen:
            return False
        seen.add(row["text"])
        return True

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*ids, backend.eos_token_id] for ids in backend(rows["text"]).input_ids]}

    data = data.map(clean, num_proc=workers).filter(new)
    data = data.map(encode, batched=True, remove_columns=data.column_names, num_proc=workers)
    packed = pack_dataset(data, 1024, strategy="wrapped", map_kwargs={"batch_size": len(data)})
    packed.save_to_disk(str(folder / "packed"))
    return time.perf_counter() - began


def one(way: str, files: list[str], tokenizer: Path, folder: Path) -> float:
    match way:
        case "hf limit":
            return hf_limit(files, tokenizer, folder)
        case "fast limit":
            return fast_limit(files, tokenizer, folder)
        case "original":
            return original(files, tokenizer, folder)
    return krill(files, tokenizer, folder, way)


def measured(way: str, files: list[str], tokenizer: Path, folder: Path) -> float:
    """Seconds of one way in a process of its own."""
    command = [sys.executable, __file__, *files, "--way", way, "--tokenizer", str(tokenizer)]
    command += ["--folder", str(folder)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | quiet)
    return float(found.stdout.splitlines()[-1])


def same(first: Path, second: Path) -> bool:
    names = {path.name for path in first.iterdir()} - {"record.json"}
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", help="Parquet files with a column text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-original", action="store_true")
    for name in ("--way", "--tokenizer", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    files = [str(Path(file).absolute()) for file in asked.files]
    if asked.way:
        print(one(asked.way, files, Path(asked.tokenizer), Path(asked.folder)))
        return
    ways = [way for way in WAYS if way != "original" or not asked.skip_original]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    start: dict[str, list[float]] = {"hf": [], "fast": []}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        tokenizer = root / "tokenizer"
        subprocess.run(
            ["krill-tokenizer", "data=files", f"data.paths=[{','.join(files)}]", "tokenizer=bpe_32k",
             f"output={tokenizer}"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        small = root / "one.jsonl"
        small.write_text(json.dumps({"text": "one document"}) + "\n")
        for turn in range(asked.rounds):
            for way in ways:
                folder = root / f"{way.replace(' ', '-')}-{turn}"
                folder.mkdir()
                seconds[way].append(measured(way, files, tokenizer, folder))
                if way in start:
                    (folder / "one").mkdir()
                    start[way].append(measured(way, [str(small)], tokenizer, folder / "one"))
                    (folder / "one").rename(root / f"{folder.name}-one")
            assert same(root / f"hf-{turn}", root / f"fast-{turn}"), "the engines' stores differ"
        megabytes = sum(len(text.encode()) for text in texts(files)) / 1e6
    net = {
        way: [total - begun for total, begun in zip(values, start.get(way, [0.0] * len(values)), strict=True)]
        for way, values in seconds.items()
    }
    rates = {way: megabytes / statistics.median(values) for way, values in net.items()}

    def ratio(way: str, other: str) -> float:
        return round(statistics.median(b / a for a, b in zip(net[way], net[other], strict=True)), 3)

    ratios = {
        "hf / hf limit": ratio("hf", "hf limit"),
        "fast / fast limit": ratio("fast", "fast limit"),
        "fast / hf": ratio("fast", "hf"),
    }
    if "original" in net:
        ratios |= {"hf / original": ratio("hf", "original"), "fast / original": ratio("fast", "original")}
    for way in ways:
        print(f"{way:<12} {rates[way]:>8.2f} MB/s   {' '.join(f'{value:.2f}' for value in net[way])} s")
    for name, value in ratios.items():
        print(f"{name:<20} {value:>8.2f}")
    result = {
        "question": "raw text to tokens: megabytes of text per second, and ratios within a round",
        "date": date.today().isoformat(),
        "megabytes": round(megabytes, 1),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "tokenizers", "gigatoken", "datasets", "trl")},
        "megabytes_per_second": {way: round(rate, 2) for way, rate in rates.items()},
        "seconds": {way: [round(value, 3) for value in values] for way, values in net.items()},
        "start_seconds": {way: round(statistics.median(values), 3) for way, values in start.items()},
        "ratios": ratios,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / f"preparation_{round(megabytes)}mb.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
