"""Question: does krill notice a changed bit, or a lost end, in what it has saved?

Makes a small tokenizer, a token store, its unmerged parts, an entry of the hash cache, a sweep of one short training
and the files of a submission. Then, for each of their files, it flips one bit, or cuts the file off, reads it in this
process as the commands do, and compares the content. Every file is read once for each of --flips random bits and
--cuts random lengths, by each command that uses files of its kind. The worst outcome counts:

    WRONG       another content under the same signature, or an error that is no KrillError        must be 0
    reported    a KrillError, with which the command ends, or a warning: one line that names what to do
    other       read as something else, with a signature of its own: never used for what is wanted
    same        what was read is what was saved

Prints a table and writes results/flip_bits.json, or the file of --result.

    python benchmarks/flip_bits.py                                       (10 minutes on one core)
    python benchmarks/flip_bits.py --flips 20 --cuts 2 --kinds manifest

To cover another kind of files, add a function to KINDS that returns a `Subject`.
"""

from __future__ import annotations

import argparse
import io
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
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from krill.checksum import write_checksummed_json
from krill.cli import app
from krill.cli.argv import ParsedArguments
from krill.cli.compose import compose_config, normalize_overrides
from krill.cli.config_diff import diff_from_last_start
from krill.cli.train import run_task
from krill.config.schema import PretrainedModelConfig, TrainConfig
from krill.config.validation import validate_config
from krill.data.cache import get_or_train_tokenizer
from krill.data.encoding import Encoder
from krill.data.inputs import RunInputs
from krill.data.prepare import prepare_store, prepare_task_parts
from krill.data.store import SPLITS, Store
from krill.errors import DONE, KrillError
from krill.inference.load import load_model
from krill.launch.invocation import Composition, SingleRun, SubmittedJob
from krill.launch.job_files import read_job_file, write_job_files
from krill.models.pretrained import hash_model, load_pretrained_model
from krill.runs import checkpoints
from krill.runs.claim import claim
from krill.runs.compare import flatten_config
from krill.runs.find import Run, RunGroup, list_point_folders, read_sweep, run_at
from krill.runs.json_lines import read_jsonl, read_metrics, read_validations
from krill.runs.record import Record, read_config, read_status, read_versions
from krill.runs.run_state import find_slurm_job, read_submission_status
from krill.runs.slurm import JOBS_FILE
from krill.runs.summary import build_sweep_command, describe_run, describe_sweep, suggest_commands
from krill.runs.table import build_rows
from krill.sources import hash_cache
from krill.tables import format_table
from krill.tokenizer.artifact import TokenizerFolder, hash_settings, load_tokenizer
from krill.training.callbacks.early_stopping import read_stop_reason
from krill.training.checkpoint.branch import (
    check_branch,
    get_branch_identity,
    resolve_branch,
    resolve_restart,
)

OUTCOMES = ("reported", "other", "same", "WRONG")
SEVERITY = ("same", "other", "reported", "WRONG")
"""The outcomes, the worst one last."""
Read = Callable[[], tuple[str, Any]]
"""Reads files as a command does; returns (signature, content), to be compared."""
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
    readers: list[Read]
    """One for each command that reads them."""


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
        self.overrides = [
            "data=files", f"data.paths=[{self.text}]", "data.min_chars=0", "data.workers=1", "data.engine=hf",
            "data.validation_fraction=0.2", "tokenizer.vocab_size=320",
        ]  # fmt: skip
        self.config: TrainConfig = validate_config(TrainConfig, compose_config("preprocess", self.overrides))
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

    @cached_property
    def sweep(self) -> Path:
        """Returns a sweep of one training of 4 steps."""
        folder = self.folder / "outputs" / "sweeps" / "s"
        arguments = [
            "-m", "hydra/launcher=basic", "sweep.search=random", "sweep.trials=1", "lr=interval(1e-3,2e-3)",
            *self.overrides, "name=s", "steps=4", "save_every=2", "eval_every=2", "sample_every=2", "log_every=1",
            "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "device=cpu",
        ]  # fmt: skip
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            code = app.main("train", run_task, arguments)
        assert code == DONE, output.getvalue()
        return folder

    @cached_property
    def run(self) -> Path:
        """Returns the same training, as a single run that was interrupted after its first checkpoint."""
        (point,) = list_point_folders(self.sweep)
        status = read_status(point)
        assert status is not None
        folder = self.folder / f"outputs/runs/s/2030-01-01_00-00-00-{status['signature'][:8]}"
        shutil.copytree(point, folder)
        for path in (folder / "model", folder / "checkpoints/checkpoint-4"):
            shutil.rmtree(path)
        record = Record(folder)
        record.truncate_metrics(3, folder)
        record.update(state="stopped", metrics=None)
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
    return Subject([saved.store / "manifest.json"], [lambda: read_store(saved.store)])


def make_store_record(saved: Saved) -> Subject:
    return Subject([saved.store / "record.json"], [lambda: read_store(saved.store)])


def make_shards(saved: Saved) -> Subject:
    return Subject(sorted(saved.store.glob("*-*.*")), [lambda: read_store(saved.store)])


def make_parts(saved: Saved) -> Subject:
    """Returns the parts that a task of data.num_tasks leaves for the merge, which reads a copy of them."""
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

    return Subject(sorted((folder / "parts").iterdir()), [merge])


def read_tokenizer(folder: Path, text: str) -> tuple[str, Any]:
    """Encodes with a tokenizer, and reads what a model's folder gets of it."""
    tokenizer = load_tokenizer(folder)
    ids = Encoder(tokenizer).encode([text]).tokens.tolist()
    roles = [tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    return f"{tokenizer.signature} {hash_settings(folder)}", [ids, roles, tokenizer.decode(ids)]


def make_tokenizer(saved: Saved) -> Subject:
    folder, text = saved.tokenizer.folder, saved.text.read_text(encoding="utf-8")
    return Subject(sorted(folder.iterdir()), [lambda: read_tokenizer(folder, text)])


def make_existing_tokenizer(saved: Saved) -> Subject:
    """Returns a tokenizer.path that krill did not make: it has no record."""
    folder, text = saved.folder / "existing", saved.text.read_text(encoding="utf-8")
    shutil.copytree(saved.tokenizer.folder, folder, ignore=shutil.ignore_patterns("record.json"))
    return Subject(sorted(folder.iterdir()), [lambda: read_tokenizer(folder, text)])


def make_hash_cache(saved: Saved) -> Subject:
    hash_cache.MIN_CACHED_BYTES, hash_cache.MIN_FILE_AGE_NS = 0, -(10**9)
    digest = hash_cache.hash_file_cached(saved.text)
    (entry,) = (saved.folder / "outputs/.cache/digests").iterdir()
    return Subject([entry], [lambda: (digest, hash_cache.hash_file_cached(saved.text, is_read_only=True))])


def list_files(folder: Path) -> list[Path]:
    """Lists the files in `folder` and below, also hidden ones, that are not empty."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def make_run(saved: Saved) -> Subject:
    """Returns what a run records, without checkpoints: read when it resumes, by continue=, and by krill-runs."""
    run = saved.run
    others = {run / "checkpoints", run / "model-manifest.json"}
    return Subject(
        [path for path in list_files(run) if not others & {path, *path.parents}],
        [make_resume(run), make_continue(run, saved), make_show(run)],
    )


def make_checkpoint(saved: Saved) -> Subject:
    """Returns a checkpoint: read when its run resumes, by branch=, krill-infer and model.from=."""
    checkpoint = saved.run / "checkpoints" / "checkpoint-2"
    readers = [
        make_resume(saved.run),
        make_continue(saved.run, saved),
        make_infer(saved.run),
        make_from(checkpoint),
    ]
    return Subject(list_files(checkpoint), readers)


def make_model(saved: Saved) -> Subject:
    """Returns a trained model: read by krill-infer and model.from=."""
    (run,) = list_point_folders(saved.sweep)
    return Subject(
        [run / "model-manifest.json", *list_files(run / "model")], [make_infer(run), make_from(run)]
    )


def make_resume(run: Path) -> Read:
    """Returns what krill-train reads of a run before it continues it."""
    status = read_status(run)
    assert status is not None
    config = TrainConfig.model_validate(read_config(run))

    def resume() -> tuple[str, Any]:
        claimed = claim(status["signature"], run.parent, resume="auto", dry_run=True)
        checkpoint, corrupt = checkpoints.find_newest_valid(run / "checkpoints")
        content = [
            claimed.folder, claimed.state, read_status(run), diff_from_last_start(config, run), checkpoint, corrupt,
            read_metrics(run), read_validations(run), read_jsonl(run / "samples.jsonl"),
            read_stop_reason(config, run, 2),
        ]  # fmt: skip
        return "", content

    return resume


def make_continue(run: Path, saved: Saved) -> Read:
    """Returns what krill-train continue=RUN reads, which expands to from= and branch=."""
    tokenizer = saved.inputs.tokenizer_signature
    config = validate_config(TrainConfig, compose_config("train", expand_continue(run)))

    def branch() -> tuple[str, Any]:
        overrides = expand_continue(run)
        source = resolve_branch(str(run / "checkpoints" / "checkpoint-2"))
        restart = resolve_restart(source, config)
        check_branch(source, config, tokenizer)
        source.verify_checkpoint()
        identity = get_branch_identity(config)
        return "", [overrides, asdict(source), restart, identity, read_metrics(run)]

    return branch


def expand_continue(run: Path) -> list[str]:
    return normalize_overrides("train", ParsedArguments(overrides=[f"continue={run}", "steps=8"]))


def make_show(run: Path) -> Read:
    """Returns what krill-runs list, show and compare print of a run."""

    def show() -> tuple[str, Any]:
        item = run_at(run)
        assert isinstance(item, Run)
        (row,) = build_rows([item])
        if row.error:
            raise KrillError(row.error)
        return "", [describe_run(item, row), suggest_commands(item, row), flatten_config(read_config(run))]

    return show


def make_infer(run: Path) -> Read:
    """Returns what krill-infer loads."""

    def infer() -> tuple[str, Any]:
        loaded = load_model(str(run), torch.device("cpu"))
        model: Any = loaded.model
        ids = Encoder(loaded.tokenizer).encode(["the quick fox"]).tokens.tolist()
        configs = [model.config.to_dict(), model.generation_config.to_dict(), loaded.defaults]
        return "", [list_weights(model), configs, ids]

    return infer


def make_from(folder: Path) -> Read:
    """Returns what model.from= identifies the run by, and loads."""
    config = PretrainedModelConfig.model_validate(
        {"name": "pretrained", "family": "pretrained", "from": str(folder), "max_position_embeddings": 64}
    )

    def load() -> tuple[str, Any]:
        signature = " ".join(hash_model(str(folder)))
        return signature, list_weights(load_pretrained_model(config, vocab_size=320))

    return load


def list_weights(model: Any) -> list[Any]:
    return [(name, tensor.tolist()) for name, tensor in model.state_dict().items()]


def make_sweep(saved: Saved) -> Subject:
    """Returns sweep.json: read when the sweep is run again, and by krill-runs."""
    sweep = saved.sweep

    def show() -> tuple[str, Any]:
        item = run_at(sweep)
        assert isinstance(item, RunGroup)
        return "", [describe_sweep(item), build_sweep_command(sweep, item.sweep_record)]

    def restart() -> tuple[str, Any]:
        return "", [read_sweep(sweep), list_point_folders(sweep)]

    return Subject([sweep / "sweep.json"], [show, restart])


def make_submission(saved: Saved) -> Subject:
    """Returns the files of a submission: read by its job, and by krill-runs."""
    folder = saved.folder / "outputs" / "jobs" / "1"
    folder.mkdir(parents=True)
    composed = compose_config("preprocess", saved.overrides)
    hydra = {
        "job": {"config_name": "preprocess"}, "overrides": {"task": saved.overrides}, "runtime": {"choices": {}}
    }  # fmt: skip
    job = SubmittedJob(SingleRun(Composition(composed, OmegaConf.create(hydra))), saved.config)
    write_job_files(folder, [job])
    write_checksummed_json(folder / JOBS_FILE, {"0": "17"})

    def read_job() -> tuple[str, Any]:
        read = read_job_file(folder, 0, is_on_slurm=True)
        return "", [
            read.command,
            read.overrides,
            read.config,
            OmegaConf.to_container(read.composition.config),
        ]

    def show() -> tuple[str, Any]:
        status = read_submission_status(folder)
        return "", [status, status and find_slurm_job(status)]

    return Subject([folder / "0.json", folder / JOBS_FILE], [read_job, show])


KINDS: dict[str, Callable[[Saved], Subject]] = {
    "manifest": make_manifest,
    "store_record": make_store_record,
    "shards": make_shards,
    "parts": make_parts,
    "tokenizer": make_tokenizer,
    "existing_tokenizer": make_existing_tokenizer,
    "hash_cache": make_hash_cache,
    "run": make_run,
    "checkpoint": make_checkpoint,
    "model": make_model,
    "sweep": make_sweep,
    "submission": make_submission,
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


class Warnings(logging.Handler):
    """Keeps the warnings of krill's logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def judge(read: Read, expected: tuple[str, Any]) -> tuple[str, str]:
    """Returns the outcome of reading a changed file by one command, and its description."""
    log, warnings = logging.getLogger("krill"), Warnings()
    log.addHandler(warnings)
    try:
        signature, content = read()
    except KrillError as error:
        return "reported", str(error)
    except Exception as error:
        return "WRONG", f"{type(error).__name__}: {error}"
    finally:
        log.removeHandler(warnings)
    if warnings.messages:
        return "reported", warnings.messages[0]
    if signature != expected[0]:
        return "other", signature
    return ("same", "") if content == expected[1] else ("WRONG", "other content under the same signature")


def judge_all(readers: list[Read], expected: list[tuple[str, Any]]) -> tuple[str, str]:
    """Returns the worst outcome of all commands, and its description."""
    results = [judge(read, result) for read, result in zip(readers, expected, strict=True)]
    return max(results, key=lambda result: SEVERITY.index(result[0]))


def flip_file(
    path: Path, readers: list[Read], expected: list[tuple[str, Any]], flips: int, cuts: int
) -> dict[str, Any]:
    """Returns the number of each outcome for one file, and examples of wrong ones; the file is left as it was."""
    content = path.read_bytes()
    counts = Counter[str]()
    wrong: list[str] = []
    for number, (description, changed) in enumerate(iterate_changes(content, flips, cuts, len(content)), 1):
        path.write_bytes(changed)
        outcome, detail = judge_all(readers, expected)
        counts[outcome] += 1
        if outcome == "WRONG" and len(wrong) < MAX_EXAMPLES:
            wrong.append(f"{description}: {detail}")
        if number == 1:
            example = f"{outcome}: {detail}".replace(str(path.parent), "…")
    path.write_bytes(content)
    return {
        "bytes": len(content), **{outcome: counts[outcome] for outcome in OUTCOMES}, "first": example, "wrong": wrong
    }  # fmt: skip


def run_kind(kind: str, saved: Saved, flips: int, cuts: int) -> dict[str, dict[str, Any]]:
    """Returns the result of each file of a kind, by its name."""
    subject = KINDS[kind](saved)
    folder = Path(os.path.commonpath([path.parent for path in subject.files]))
    expected = [read() for read in subject.readers]
    results = {
        path.relative_to(folder).as_posix(): flip_file(path, subject.readers, expected, flips, cuts)
        for path in subject.files
    }
    assert judge_all(subject.readers, expected)[0] == "same"
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "flip_bits.json")
    options = parser.parse_args()
    logging.getLogger("krill").propagate = False
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
        "versions": read_versions("krill", "numpy", "tokenizers", "torch", "transformers"),
        "flips": options.flips, "cuts": options.cuts, "total": total, "kinds": results,
    }  # fmt: skip
    options.result.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 1 if total["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
