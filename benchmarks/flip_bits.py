"""Question: does krill notice a changed bit, or a lost end, in what it has saved?

Makes a small tokenizer, a token store, its unmerged parts and an entry of the hash cache. Then, for each of their
files, it flips one bit, or cuts the file off, reads it in this process as the commands do, and compares the content.
Every file is read once for each of --flips random bits and --cuts random lengths.

    told        a KrillError: the command ends with one line that says what to do
    other       read as something else, with a signature of its own: never used for what is wanted
    same        what was read is what was saved
    WRONG       another content under the same signature, or an error that is no KrillError        must be 0

Prints a table and writes results/flip_bits.json, or the file of --result.

    python benchmarks/flip_bits.py                                       (4 minutes on one core)
    python benchmarks/flip_bits.py --flips 20 --cuts 2 --kinds manifest

To cover another kind of files, add a function to KINDS that returns a `Subject`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from krill.cli.compose import compose_config
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.cache import get_or_train_tokenizer
from krill.data.encoding import Encoder
from krill.data.inputs import RunInputs
from krill.data.prepare import prepare_store, prepare_task_parts
from krill.data.store import SPLITS, Store
from krill.errors import KrillError
from krill.runs.record import read_versions
from krill.sources import hash_cache
from krill.tables import format_table
from krill.tokenizer.artifact import TokenizerFolder, hash_settings, load_tokenizer

OUTCOMES = ("told", "other", "same", "WRONG")
MAX_EXAMPLES = 5
"""Maximum number of wrong changes that are described per file."""
WORDS = [
    "the",
    "quick",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "강아지가",
    "여우를",
    "따라",
    "뛰어간다",
    "잔다",
]


@dataclass(frozen=True)
class Subject:
    """Files of one kind, and how krill reads them."""

    files: list[Path]
    read: Callable[[], tuple[str, Any]]
    """Reads the files as the commands do; returns (signature, content), to be compared."""


class Saved:
    """What krill saves: made in `folder`, each on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["KRILL_OUTPUTS"] = str(folder / "outputs")
        (folder / "outputs").mkdir()
        generator = random.Random(0)
        texts = [" ".join(generator.choices(WORDS, k=generator.randint(5, 40))) for _ in range(120)]
        self.text = folder / "text.jsonl"
        self.text.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        self.config: TrainConfig = validate_config(
            TrainConfig,
            compose_config(
                "preprocess",
                [
                    "data=files", f"data.paths=[{self.text}]", "data.min_chars=0", "data.workers=1", "data.engine=hf",
                    "data.validation_fraction=0.2", "tokenizer.vocab_size=320",
                ],
            ),
        )  # fmt: skip
        self.inputs = RunInputs(self.config.data, self.config.tokenizer, folder / "outputs")

    @cached_property
    def tokenizer(self) -> TokenizerFolder:
        return get_or_train_tokenizer(self.inputs)

    @cached_property
    def store(self) -> Path:
        folder = self.folder / "store"
        folder.mkdir()
        prepare_store(self.config.data, self.tokenizer, folder, self.inputs.source)
        return folder


# --- the kinds of files ------------------------------------------------------------------------------------


def read_store(folder: Path) -> tuple[str, Any]:
    """Reads all of a store, as `krill-inspect verify=true` and a training do."""
    store = Store.open(folder)
    store.verify()
    splits = [store.get_split(name) for name in SPLITS]
    content = [
        [split.copy(0, split.tokens).tolist(), split.ends.tolist(), split.sources.tolist()]
        for split in splits
    ]
    return store.signature, [store.manifest, content]


def make_manifest(saved: Saved) -> Subject:
    return Subject([saved.store / "manifest.json"], lambda: read_store(saved.store))


def make_store_record(saved: Saved) -> Subject:
    return Subject([saved.store / "record.json"], lambda: read_store(saved.store))


def make_shards(saved: Saved) -> Subject:
    return Subject(sorted(saved.store.glob("*-*.*")), lambda: read_store(saved.store))


def make_parts(saved: Saved) -> Subject:
    """The parts that a task of data.num_tasks leaves for the merge; the merge reads a copy of them."""
    config = saved.config.data.model_copy(update={"num_tasks": 2})
    folder, merged = saved.folder / "tasks", saved.folder / "merged"
    for task in range(2):
        prepare_task_parts(
            config.model_copy(update={"task": task}), saved.tokenizer, folder, saved.inputs.source
        )

    def merge() -> tuple[str, Any]:
        shutil.rmtree(merged, ignore_errors=True)
        shutil.copytree(folder, merged)
        prepare_store(config, saved.tokenizer, merged, saved.inputs.source)
        return read_store(merged)

    return Subject(sorted((folder / "parts").iterdir()), merge)


def read_tokenizer(folder: Path, text: str) -> tuple[str, Any]:
    """Encodes with a tokenizer, and reads what a model's folder gets of it."""
    tokenizer = load_tokenizer(folder)
    ids = Encoder(tokenizer).encode([text]).tokens.tolist()
    roles = [tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    return f"{tokenizer.signature} {hash_settings(folder)}", [ids, roles, tokenizer.decode(ids)]


def make_tokenizer(saved: Saved) -> Subject:
    folder, text = saved.tokenizer.folder, saved.text.read_text(encoding="utf-8")
    return Subject(sorted(folder.iterdir()), lambda: read_tokenizer(folder, text))


def make_existing_tokenizer(saved: Saved) -> Subject:
    """A tokenizer.path that krill did not make: it has no record."""
    folder, text = saved.folder / "existing", saved.text.read_text(encoding="utf-8")
    shutil.copytree(saved.tokenizer.folder, folder, ignore=shutil.ignore_patterns("record.json"))
    return Subject(sorted(folder.iterdir()), lambda: read_tokenizer(folder, text))


def make_hash_cache(saved: Saved) -> Subject:
    hash_cache.MIN_CACHED_BYTES, hash_cache.MIN_FILE_AGE_NS = 0, -(10**9)
    digest = hash_cache.hash_file_cached(saved.text)
    (entry,) = (saved.folder / "outputs/.cache/digests").iterdir()
    return Subject([entry], lambda: (digest, hash_cache.hash_file_cached(saved.text, is_read_only=True)))


KINDS: dict[str, Callable[[Saved], Subject]] = {
    "manifest": make_manifest,
    "store_record": make_store_record,
    "shards": make_shards,
    "parts": make_parts,
    "tokenizer": make_tokenizer,
    "existing_tokenizer": make_existing_tokenizer,
    "hash_cache": make_hash_cache,
}


# --- changing and reading ----------------------------------------------------------------------------------


def iterate_changes(content: bytes, flips: int, cuts: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields (description, changed content): random bits, each once, then random lengths, among them the shortest and
    the longest."""
    generator = random.Random(seed)
    for bit in generator.sample(range(8 * len(content)), min(flips, 8 * len(content))):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit % 8} of byte {bit // 8}", bytes(changed)
    lengths = {0, len(content) - 1} | {generator.randrange(len(content)) for _ in range(max(0, cuts - 2))}
    for length in sorted(lengths)[:cuts]:
        yield f"cut to {length} of {len(content)} bytes", content[:length]


def judge(read: Callable[[], tuple[str, Any]], expected: tuple[str, Any]) -> tuple[str, str]:
    """Returns the outcome of reading a changed file, and its description."""
    try:
        signature, content = read()
    except KrillError as error:
        return "told", str(error)
    except Exception as error:
        return "WRONG", f"{type(error).__name__}: {error}"
    if signature != expected[0]:
        return "other", signature
    return ("same", "") if content == expected[1] else ("WRONG", "other content under the same signature")


def flip_file(path: Path, subject: Subject, flips: int, cuts: int) -> dict[str, Any]:
    """Returns the number of each outcome for one file, and examples of wrong ones; the file is left as it was."""
    content, expected, counts = path.read_bytes(), subject.read(), Counter[str]()
    wrong: list[str] = []
    for number, (description, changed) in enumerate(iterate_changes(content, flips, cuts, len(content)), 1):
        path.write_bytes(changed)
        outcome, detail = judge(subject.read, expected)
        counts[outcome] += 1
        if outcome == "WRONG" and len(wrong) < MAX_EXAMPLES:
            wrong.append(f"{description}: {detail}")
        if number == 1:
            example = f"{outcome}: {detail}".replace(str(path.parent), "…")
    path.write_bytes(content)
    assert judge(subject.read, expected)[0] == "same"
    return {
        "bytes": len(content), **{outcome: counts[outcome] for outcome in OUTCOMES}, "first": example, "wrong": wrong
    }  # fmt: skip


def run_kind(kind: str, saved: Saved, flips: int, cuts: int) -> dict[str, dict[str, Any]]:
    """Returns the result of each file of a kind, by its name."""
    subject = KINDS[kind](saved)
    return {path.name: flip_file(path, subject, flips, cuts) for path in subject.files}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "flip_bits.json")
    options = parser.parse_args()
    logging.getLogger("krill").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(Path(folder))
        results = {kind: run_kind(kind, saved, options.flips, options.cuts) for kind in options.kinds}
    rows = [
        (kind, name, *(f"{result[key]:,}" for key in ("bytes", *OUTCOMES)))
        for kind, files in results.items()
        for name, result in files.items()
    ]
    print("\n".join(format_table(rows, ("kind", "file", "bytes", *OUTCOMES), left=(0, 1))))
    total = {
        key: sum(result[key] for files in results.values() for result in files.values()) for key in OUTCOMES
    }
    report = {
        "question": "does krill notice a changed bit, or a lost end, in what it has saved?",
        "date": f"{date.today()}",
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "numpy", "tokenizers"),
        "flips": options.flips, "cuts": options.cuts, "total": total, "kinds": results,
    }  # fmt: skip
    options.result.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 1 if total["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
