"""Question: how much memory does a preparation need, and does it grow with the text?

Prepares a quarter and the whole of a JSONL file with both engines and measures the whole process tree 20 times per
second: the sum of proportional set sizes (a page that several processes share counts once). Prints a table and writes
results/memory.json.

    python benchmarks/memory.py text.jsonl          (3 minutes for 330 MB on two cores; Linux)

Must hold for 325 MB of text: peak below 1 GB; growth from a quarter to the whole below 0.3 MB per MB of text with
Hugging Face tokenizers, below 0.8 with gigatoken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from krill.runs.record import read_versions


def list_process_tree(root: int) -> list[int]:
    """Returns the process and all its descendants."""
    processes = [root]
    for process in processes:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                processes += map(int, children.read_text().split())
            except OSError:
                continue
    return processes


def read_pss(process: int) -> int:
    """Returns the proportional set size in bytes; 0 if the process has just ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.partition("\nPss:")[2].split()[0]) * 1024 if "\nPss:" in text else 0


def measure_preparation(text: Path, tokenizer: Path, engine: str, folder: Path) -> dict[str, float]:
    """Runs one preparation; returns its peak memory in MB and its seconds."""
    command = [
        sys.executable, "-m", "krill", "preprocess", "data=files", f"data.paths=[{text}]",
        "tokenizer=pretrained", f"tokenizer.path={tokenizer}", f"data.engine={engine}", f"output={folder}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(read_pss, list_process_tree(process.pid))))
        time.sleep(0.05)
    assert process.returncode == 0, command
    record = json.loads((folder / "record.json").read_text())
    megabytes = record["text_bytes"] / 1e6
    return {
        "text_mb": round(megabytes, 1),
        "documents": record["documents"],
        "peak_mb": round(peak / 1e6, 1),
        "seconds": record["seconds"],
        "workers": record["workers"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path, help="a JSONL file with the key text")
    text = parser.parse_args().text.absolute()
    rows: dict[str, list[dict[str, float]]] = {"hf": [], "fast": []}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        quarter = root / "quarter.jsonl"
        with open(text, "rb") as source, open(quarter, "wb") as target:
            lines = (line for number, line in enumerate(source) if number % 4 == 0)
            target.writelines(lines)
        subprocess.run(
            [sys.executable, "-m", "krill", "tokenizer", "data=files", f"data.paths=[{quarter}]",
             "tokenizer=bpe_32k", f"output={root / 'tokenizer'}"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for engine, results in rows.items():
            for name, file in (("quarter", quarter), ("whole", text)):
                results.append(
                    measure_preparation(file, root / "tokenizer", engine, root / f"{engine}-{name}")
                )
                print(f"{engine:<5} {name:<8} {results[-1]}")
    growth = {
        engine: round((b["peak_mb"] - a["peak_mb"]) / (b["text_mb"] - a["text_mb"]), 3)
        for engine, (a, b) in rows.items()
    }
    print("growth, MB per MB of text:", growth)
    result = {
        "question": "peak memory of a preparation, all processes together, and its growth with the text",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "tokenizers", "gigatoken", "pyarrow"),
        "runs": rows,
        "growth_mb_per_mb": growth,
    }
    (Path(__file__).parent / "results" / "memory.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
