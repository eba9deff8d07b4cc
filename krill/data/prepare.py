"""From a source to a token store.

    source → parts, each made by itself (krill.data.part_writer) → merged (krill.data.merge) → leak check → manifest

The same text, rules and tokenizer give the same bytes, with any number of workers, shards and interruptions: a
part that was made is found again, whoever made it. Tokens read = tokens stored + tokens counted as dropped.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from krill.atomic import write_json
from krill.config.schema import DataConfig
from krill.config.signature import compute_signature
from krill.data import contamination, engines, store
from krill.data.encoding import Encoder
from krill.data.engines import EngineMismatch
from krill.data.merge import StoreLayout, compute_store_layout, write_shards
from krill.data.part_writer import PreparationContext, write_parts
from krill.data.progress import PreparationProgress, log_preparation_summary
from krill.data.worker_pool import WorkerPool, count_cpu_cores
from krill.errors import KrillError, UsageError
from krill.sources.registry import open_source
from krill.sources.source import Part, SkippedRecords, Source, sample_evenly
from krill.text import minhash
from krill.text.documents import VERSION, collect_data_rules, compute_data_signature
from krill.tokenizer.artifact import TokenizerFolder

log = logging.getLogger("krill")

LIGHT_BYTES_PER_WORKER, HEAVY_BYTES_PER_WORKER = 2**29, 2**23
"""Another process is started for so much input: it takes a second to start. Heavy is what a process does on one core
(filters, near duplicates, ftfy) or slowly (Hugging Face tokenizers)."""

SAMPLE_PARTS, SAMPLE_CHARACTERS = 8, 20_000
"""The engines are compared on so many parts, so many characters of each."""


def compute_store_signature(data: DataConfig, tokenizer_signature: str, fingerprint: Any) -> str:
    """Signature of a token store: the rules, the content of the source, the tokenizer."""
    return compute_signature(
        "store", VERSION, store.VERSION, compute_data_signature(data, fingerprint), tokenizer_signature
    )


def prepare_store(
    data: DataConfig,
    tokenizer: TokenizerFolder,
    folder: Path,
    source: Source | None = None,
    shard_tokens: int = store.SHARD_TOKENS,
) -> dict[str, Any]:
    """Write the token store of `data` into `folder` and return its manifest; goes on where it was killed.

    With data.num_tasks the parts must be there, made by `prepare_task_parts`. Raises UsageError for input that cannot
    be used or changes meanwhile, or rules that leave no document to train on, KrillError for a missing shard.
    """
    began = time.monotonic()
    job, parts = _build_context(data, tokenizer, folder, source)
    if not _is_complete(folder, job.store_signature):
        every = range(len(parts))
        missing = _list_missing(job, every)
        if data.num_tasks > 1:
            _require_all_tasks(data, parts, missing)
        meter = PreparationProgress(parts, missing)
        crew = _write_missing_parts(job, parts, every, meter)
        made_by = {"workers": crew.num_workers, "threads": crew.num_threads}
        _merge(job, parts, crew, shard_tokens)
        _write_record(folder, crew, meter, time.monotonic() - began, made_by)
    made = store.Store.open(folder)
    made.remove_leftovers()
    log_preparation_summary(made.manifest, time.monotonic() - began)
    return made.manifest


def prepare_task_parts(
    data: DataConfig, tokenizer: TokenizerFolder, folder: Path, source: Source | None = None
) -> Path:
    """Make the parts of data.task into `folder`, where `prepare_store` finds them; returns where they are."""
    assert data.task is not None
    job, parts = _build_context(data, tokenizer, folder, source)
    mine = assign_parts_to_tasks(parts, data.num_tasks)[data.task]
    missing = _list_missing(job, mine)
    log.info(
        "shard %d of %d: %d of %d parts, %d of them made before",
        data.task, data.num_tasks, len(mine), len(parts), len(mine) - len(missing),
    )  # fmt: skip
    _write_missing_parts(job, parts, mine, PreparationProgress(parts, missing))
    return job.folder


def assign_parts_to_tasks(parts: Sequence[Part], shards: int) -> list[list[int]]:
    """Which parts each shard makes: consecutive ones of about the same size together."""
    total = max(1, sum(part.size for part in parts))
    chosen: list[list[int]] = [[] for _ in range(shards)]
    passed = 0
    for index, part in enumerate(parts):
        chosen[min(shards - 1, (2 * passed + part.size) * shards // (2 * total))].append(index)
        passed += part.size
    return chosen


def sample_texts(job: PreparationContext, parts: Sequence[Part]) -> list[str]:
    """Cleaned texts from the beginnings of some parts, evenly chosen."""
    texts: list[str] = []
    for part in sample_evenly(parts, SAMPLE_PARTS):
        characters = 0
        for document in job.source.read(part, SkippedRecords()):
            texts.append(job.rules.apply_rules(document.text)[0][: SAMPLE_CHARACTERS - characters])
            characters += len(texts[-1])
            if characters >= SAMPLE_CHARACTERS:
                break
    return texts


def _build_context(
    data: DataConfig, tokenizer: TokenizerFolder, folder: Path, source: Source | None
) -> tuple[PreparationContext, list[Part]]:
    minhash.require_rensa(data.minhash)
    source = source or open_source(data)
    if len(source.names) > store.MAX_SOURCES:
        raise UsageError(
            f"{len(source.names)} sources, the store tells {store.MAX_SOURCES} apart; name folders, not files"
        )
    signature = compute_store_signature(data, tokenizer.signature, source.fingerprint)
    job = PreparationContext(source, data, tokenizer, folder / "parts", signature)
    job.folder.mkdir(parents=True, exist_ok=True)
    return job, source.list_parts()


def _is_complete(folder: Path, identity: str) -> bool:
    """Whether all is done but the last: a store with its manifest was killed before it got its name."""
    manifest = folder / "manifest.json"
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8"))["signature"] != identity:
        manifest.unlink()  # output= was begun with another configuration
    return manifest.is_file()


def _list_missing(job: PreparationContext, indices: Sequence[int]) -> list[int]:
    return [index for index in indices if not job.has_part(index)]


def _require_all_tasks(data: DataConfig, parts: Sequence[Part], missing: Sequence[int]) -> None:
    """Raise KrillError naming the shards of which parts are missing. No UsageError: what is made must stay."""
    absent = set(missing)
    shards = [
        number
        for number, mine in enumerate(assign_parts_to_tasks(parts, data.num_tasks))
        if not absent.isdisjoint(mine)
    ]
    if shards:
        every = len(shards) == data.num_tasks
        named = "any shard" if every else f"shard {', '.join(map(str, shards))}"
        wanted = (
            f"'data.task=range(0,{data.num_tasks})'" if every else f"data.task={','.join(map(str, shards))}"
        )
        raise KrillError(
            f"data.num_tasks={data.num_tasks}: not prepared yet: {named}. Make them: "
            f"krill-preprocess -m data.num_tasks={data.num_tasks} {wanted} and the rest as here"
        )


def _write_missing_parts(
    job: PreparationContext, parts: Sequence[Part], mine: Sequence[int], meter: PreparationProgress
) -> WorkerPool:
    """Make those of `mine` that are missing; returns the crew, which can do more."""
    missing = _list_missing(job, mine)
    if not missing:
        return WorkerPool(1, count_cpu_cores(), meter.advance)
    todo = [parts[index] for index in missing]
    size = sum(part.size for part in todo)
    engine = engines.select_engine(
        job.data.engine, Encoder(job.tokenizer).backend, lambda: sample_texts(job, todo), size
    )
    heavy = engine == "hf" or job.data.filters or job.data.ftfy or job.data.minhash.threshold is not None
    fitting = max(
        1,
        min(
            count_cpu_cores(),
            len(missing),
            size // (HEAVY_BYTES_PER_WORKER if heavy else LIGHT_BYTES_PER_WORKER),
        ),
    )
    workers = job.data.workers or fitting
    crew = WorkerPool(workers, max(1, count_cpu_cores() // workers), meter.advance)
    job = replace(job, engine=engine, threads=crew.num_threads)
    try:
        with meter:
            for (index, _), _ in crew.map_unordered(
                write_parts, job, ((index, parts[index]) for index in missing)
            ):
                meter.finish_part(index)
    except EngineMismatch as error:
        _delete_parts(job, mine)
        if job.data.engine == "fast":
            raise UsageError(f"data.engine=fast: {error}; let Hugging Face encode: data.engine=hf") from error
        log.warning("engine: %s; all is encoded again by Hugging Face tokenizers", error)
        plain = replace(job, data=job.data.model_copy(update={"engine": "hf"}))
        return _write_missing_parts(plain, parts, mine, meter)
    if job.source.compute_fingerprint() != job.source.fingerprint:
        _delete_parts(job, missing)
        raise build_text_changed_error(job.data)
    return crew


def build_text_changed_error(data: DataConfig) -> UsageError:
    """What was made is not of the text that its signature names."""
    return UsageError(
        f"data {data.name}: its text, or code of yours that reads it, changed meanwhile; nothing made of it is kept. "
        "Give the same command again when nobody writes to it"
    )


def _delete_parts(job: PreparationContext, indices: Sequence[int]) -> None:
    """Have parts made again."""
    for index in indices:
        job.delete_part(index)


def _merge(job: PreparationContext, parts: Sequence[Part], crew: WorkerPool, shard_tokens: int) -> None:
    found = compute_store_layout(job, parts, shard_tokens)
    found.skipped.warn()
    _require_documents(found, job.data)
    shards = [shard for split in found.shards.values() for shard in split]
    large = len(shards) > len(store.SPLITS)
    crew.num_workers = min(job.data.workers or count_cpu_cores(), len(shards)) if large else 1
    records = {shard.name: record for shard, record in crew.map_unordered(write_shards, job, shards)}
    splits = {
        name: {**counts, "shards": [records[shard.name] for shard in found.shards[name]]}
        for name, counts in found.splits.items()
    }
    manifest = _build_manifest(job, found, splits)
    folder = job.folder.parent
    written = store.Store(folder, manifest)
    store.write_manifest(
        folder, {**manifest, "leaks": contamination.measure_contamination(written.train, written.validation)}
    )


def _build_manifest(job: PreparationContext, found: StoreLayout, splits: dict[str, Any]) -> dict[str, Any]:
    stored = sum(split["tokens"] for split in splits.values()) - found.repeated_counts["tokens"]
    assert found.read_counts["tokens"] == stored + found.dropped.tokens, (
        f"tokens lost: read {found.read_counts}, stored {stored}, dropped {found.dropped.by_rule}"
    )
    tokenizer = job.tokenizer
    return store.build_manifest(
        job.dtype,
        job.source.names,
        splits,
        signature=job.store_signature,
        data=collect_data_rules(job.data),
        tokenizer={
            key: getattr(tokenizer, key) for key in ("signature", "vocab_size", "bos_id", "eos_id", "pad_id")
        },
        read=found.read_counts,
        repeated=found.repeated_counts,
        dropped=dict(sorted(found.dropped.by_rule.items())),
        skipped=dict(sorted(found.skipped.reasons.items())),
    )


def _require_documents(found: StoreLayout, data: DataConfig) -> None:
    """Raise UsageError, with what became of every document, if there is none to train on."""
    if found.splits["train"]["documents"]:
        return
    fates = [f"{rule} {counts['documents']:,}" for rule, counts in sorted(found.dropped.by_rule.items())]
    fates += [f"{reason} {counts['records']:,}" for reason, counts in sorted(found.skipped.reasons.items())]
    if held := found.splits["validation"]["documents"]:
        fates.append(f"held out for validation {held:,}")
    raise UsageError(
        f"data {data.name}: no document is left to train on ({'; '.join(fates) or 'the source has none'}). "
        f"Lower data.min_chars={data.min_chars}, data.min_tokens={data.min_tokens} or "
        f"data.validation_fraction={data.validation_fraction:g}, loosen data.filters, or give other data"
    )


def _write_record(
    folder: Path, crew: WorkerPool, meter: PreparationProgress, seconds: float, made_by: dict[str, int]
) -> None:
    """How the store was made: no part of what it is."""
    write_json(
        folder / "record.json",
        {
            "seconds": round(seconds, 3),
            "documents": meter.documents,
            "text_bytes": meter.text_bytes,
            "peak_memory_bytes": crew.estimate_peak_memory(),
            **made_by,
            "host": platform.node(),
            "cores": count_cpu_cores(),
        },
    )
