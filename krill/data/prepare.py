"""Prepares the token store of a source.

    source → parts (krill.data.part_writer) → merge (krill.data.merge) → leak check → manifest

Parts are written independently. The same text, rules and tokenizer give the same bytes with any number of workers,
tasks and interruptions; finished parts are reused, whichever process wrote them. Tokens read = tokens stored + tokens
counted as dropped.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from krill.atomic import create_folder, write_json
from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.config.schema import DataConfig
from krill.config.signature import compute_signature
from krill.data import contamination, engines, store
from krill.data.encoding import Encoder, find_first_differing_character
from krill.data.engines import EngineMismatch
from krill.data.merge import StoreLayout, compute_store_layout, write_shards
from krill.data.part_writer import PreparationContext, write_parts
from krill.data.progress import (
    INTENDED_RULES,
    PreparationProgress,
    log_preparation_summary,
    suggest_change,
)
from krill.data.worker_pool import WorkerPool
from krill.errors import KrillError, UsageError
from krill.resources import count_cpu_cores
from krill.sources.registry import open_source
from krill.sources.source import Part, SkippedRecords, Source, sample_evenly
from krill.text import minhash
from krill.text.documents import VERSION, collect_data_rules, compute_data_signature
from krill.tokenizer.artifact import TokenizerFolder
from krill.tokenizer.canary import check_canary

log = logging.getLogger("krill")

LIGHT_BYTES_PER_WORKER, HEAVY_BYTES_PER_WORKER = 2**29, 2**23
"""Input bytes per worker process, which takes a second to start. Heavy is work on one core per process (filters, near
duplicates, ftfy) or slow work (Hugging Face tokenizers)."""

SAMPLE_PARTS, SAMPLE_CHARACTERS = 8, 20_000
"""Number of parts, and characters per part, on which the engines are compared and the tokenizer is checked."""
CANARY_FILE = "canary.json"
"""File in the folder of the parts: the canary of the tokenizer that encodes them, maybe on several machines."""
MAX_SUGGESTED_CHANGES = 3
"""Number of rules whose keys are named if no document is left."""
EXCERPT_CHARACTERS = 24
"""Characters that are quoted of a text that the tokenizer changes."""


def compute_store_signature(data: DataConfig, tokenizer_signature: str, fingerprint: Any) -> str:
    """Returns the signature of a token store: of the rules, the content of the source and the tokenizer."""
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
    """Writes the token store of `data` to `folder` and returns its manifest; resumes an interrupted preparation.

    With data.num_tasks > 1 `prepare_task_parts` must have written all parts. Raises UsageError for input that cannot
    be used or changes during the preparation, or rules that leave no document to train on, KrillError if the parts of
    a task are missing.
    """
    start_time = time.monotonic()
    context, parts = _build_context(data, tokenizer, folder, source)
    if not _is_complete(folder, context.store_signature):
        all_parts = range(len(parts))
        missing = _list_missing(context, all_parts)
        if data.num_tasks > 1:
            _require_all_tasks(data, parts, missing)
        progress = PreparationProgress(parts, missing)
        pool = _write_missing_parts(context, parts, all_parts, progress)
        _require_intact_parts(context, len(parts))
        processes = {"workers": pool.num_workers, "threads": pool.num_threads}
        _merge(context, parts, pool, shard_tokens)
        _write_record(folder, pool, progress, time.monotonic() - start_time, processes)
    prepared = store.Store.open(folder)
    prepared.remove_leftovers()
    log_preparation_summary(prepared.manifest, context.source.weights, time.monotonic() - start_time)
    return prepared.manifest


def prepare_task_parts(
    data: DataConfig, tokenizer: TokenizerFolder, folder: Path, source: Source | None = None
) -> Path:
    """Writes the parts of data.task below `folder`, where `prepare_store` finds them; returns their folder."""
    assert data.task is not None
    context, parts = _build_context(data, tokenizer, folder, source)
    assigned = assign_parts_to_tasks(parts, data.num_tasks)[data.task]
    missing = _list_missing(context, assigned)
    log.info(
        "task        %d of %d: %d of %d parts, %d of them already prepared",
        data.task, data.num_tasks, len(assigned), len(parts), len(assigned) - len(missing),
    )  # fmt: skip
    _write_missing_parts(context, parts, assigned, PreparationProgress(parts, missing))
    return context.folder


def assign_parts_to_tasks(parts: Sequence[Part], num_tasks: int) -> list[list[int]]:
    """Returns the indices of the parts of each task: consecutive parts, of about equal total size per task."""
    total_size = max(1, sum(part.size for part in parts))
    assigned: list[list[int]] = [[] for _ in range(num_tasks)]
    start = 0
    for index, part in enumerate(parts):
        task = (2 * start + part.size) * num_tasks // (2 * total_size)  # by the middle of the part
        assigned[min(num_tasks - 1, task)].append(index)
        start += part.size
    return assigned


def sample_texts(context: PreparationContext, parts: Sequence[Part]) -> list[str]:
    """Returns cleaned texts from the beginnings of evenly spaced parts."""
    texts: list[str] = []
    for part in sample_evenly(parts, SAMPLE_PARTS):
        characters = 0
        for document in context.source.read(part, SkippedRecords()):
            text = context.rules.clean(document.text)
            texts.append(text[: SAMPLE_CHARACTERS - characters].rstrip())
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
            f"{len(source.names)} sources, but a store has at most {store.MAX_SOURCES}; list folders instead of files"
        )
    signature = compute_store_signature(data, tokenizer.signature, source.fingerprint)
    context = PreparationContext(source, data, tokenizer, folder / "parts", signature)
    create_folder(context.folder)
    _check_ids_of_parts(context)
    return context, source.list_parts()


def _check_ids_of_parts(context: PreparationContext) -> None:
    """Raises KrillError if finished parts may have other ids than the tokenizer gives here and now."""
    path = context.folder / CANARY_FILE
    with suppress(FileNotFoundError, ChecksumError):
        canary = read_checksummed_json(path)
        if canary["identity"] == context.store_signature:
            remedy = "Install one version of tokenizers everywhere, or remove that folder and run the command again"
            check_canary(canary, context.tokenizer.backend, str(context.folder), remedy)
            return
    write_checksummed_json(path, {**context.tokenizer.canary, "identity": context.store_signature})


def _is_complete(folder: Path, signature: str) -> bool:
    """Returns whether `folder` is a finished store with this signature that only has not been renamed yet."""
    with suppress(KrillError):
        if store.Store.open(folder).signature == signature:
            return True
    # None yet, a damaged one, or one from another configuration with the same output=.
    (folder / "manifest.json").unlink(missing_ok=True)
    return False


def _list_missing(context: PreparationContext, indices: Sequence[int]) -> list[int]:
    return [index for index in indices if not context.has_part(index)]


def _require_all_tasks(data: DataConfig, parts: Sequence[Part], missing: Sequence[int]) -> None:
    """Raises KrillError listing the tasks with missing parts. Not a UsageError, which would remove finished parts."""
    missing_parts = set(missing)
    tasks = [
        task
        for task, assigned in enumerate(assign_parts_to_tasks(parts, data.num_tasks))
        if not missing_parts.isdisjoint(assigned)
    ]
    if tasks:
        indices = ",".join(map(str, tasks))
        all_missing = len(tasks) == data.num_tasks
        names = "all tasks" if all_missing else f"task {', '.join(map(str, tasks))}"
        override = f"'data.task=range(0,{data.num_tasks})'" if all_missing else f"data.task={indices}"
        raise KrillError(
            f"data.num_tasks={data.num_tasks}: not prepared yet: {names}. Prepare them: "
            f"krill-preprocess -m data.num_tasks={data.num_tasks} {override} and the other arguments of this command"
        )


def _warn_of_changed_texts(encoder: Encoder, sample: list[str]) -> None:
    """Logs how many of the sampled texts the tokenizer does not decode unchanged."""
    changed = [(text, decoded) for text, decoded in encoder.iterate_round_trips(sample) if text != decoded]
    if not changed:
        return
    text, decoded = changed[0]
    start = max(0, find_first_differing_character(text, decoded) - EXCERPT_CHARACTERS // 2)
    excerpt = slice(start, start + EXCERPT_CHARACTERS)
    log.warning(
        "round trip  %d of %d sampled texts (%.1f %%) are not decoded unchanged: the tokenizer loses part of the "
        "text, for example %r becomes %r; a byte-level tokenizer loses nothing",
        len(changed), len(sample), 100 * len(changed) / len(sample), text[excerpt], decoded[excerpt],
    )  # fmt: skip


def _require_intact_parts(context: PreparationContext, num_parts: int) -> None:
    """Raises KrillError after the removal of parts that have changed since they were written."""
    changed = [index for index in range(num_parts) if not context.get_part_file(index).is_intact()]
    if changed:
        _delete_parts(context, changed)
        raise KrillError(
            f"{context.folder}: {len(changed)} of {num_parts} finished parts have changed since they were written "
            f"(the first is {changed[0]:05d}), as by a faulty disk. They were removed: run the same command again to "
            "prepare them again"
        )


def _write_missing_parts(
    context: PreparationContext, parts: Sequence[Part], assigned: Sequence[int], progress: PreparationProgress
) -> WorkerPool:
    """Writes the missing parts of `assigned`; returns the worker pool for further work."""
    missing = _list_missing(context, assigned)
    if not missing:
        return WorkerPool(1, count_cpu_cores(), progress.advance)
    missing_parts = [parts[index] for index in missing]
    size = sum(part.size for part in missing_parts)
    encoder, sample = Encoder(context.tokenizer), sample_texts(context, missing_parts)
    engine = engines.select_engine(context.data.engine, encoder.backend, lambda: sample, size)
    _warn_of_changed_texts(encoder, sample)
    num_workers = context.data.workers or _choose_num_workers(context.data, engine, len(missing), size)
    pool = WorkerPool(num_workers, max(1, count_cpu_cores() // num_workers), progress.advance)
    context = replace(context, engine=engine, threads=pool.num_threads)
    try:
        with progress:
            for (index, _), _ in pool.map_unordered(
                write_parts, context, ((index, parts[index]) for index in missing)
            ):
                progress.finish_part(index)
    except EngineMismatch as error:
        _delete_parts(context, assigned)
        progress.restart(assigned)
        if context.data.engine == "fast":
            raise UsageError(
                f"data.engine=fast: {error}; use Hugging Face tokenizers: data.engine=hf"
            ) from error
        log.warning("engine      %s; encoding everything again with Hugging Face tokenizers", error)
        reference = replace(context, data=context.data.model_copy(update={"engine": "hf"}))
        return _write_missing_parts(reference, parts, assigned, progress)
    if context.source.compute_fingerprint() != context.source.fingerprint:
        _delete_parts(context, missing)
        raise build_text_changed_error(context.data)
    return pool


def _choose_num_workers(data: DataConfig, engine: str, num_parts: int, size: int) -> int:
    """Returns the number of processes that write `num_parts` parts of `size` bytes of input together."""
    is_heavy = engine == "hf" or data.filters or data.ftfy or data.minhash.threshold is not None
    bytes_per_worker = HEAVY_BYTES_PER_WORKER if is_heavy else LIGHT_BYTES_PER_WORKER
    return max(1, min(count_cpu_cores(), num_parts, size // bytes_per_worker))


def build_text_changed_error(data: DataConfig) -> UsageError:
    """Returns the error for text that changed while it was read, so that results do not match their signature."""
    return UsageError(
        f"data {data.name}: its text, or the custom code that reads it, changed during the preparation; nothing was "
        "saved. Run the same command again when nothing writes to it"
    )


def _delete_parts(context: PreparationContext, indices: Sequence[int]) -> None:
    """Deletes parts, so that they are written again."""
    for index in indices:
        context.delete_part(index)


def _merge(context: PreparationContext, parts: Sequence[Part], pool: WorkerPool, shard_tokens: int) -> None:
    layout = compute_store_layout(context, parts, shard_tokens)
    layout.skipped.warn()
    _require_documents(layout, context.data)
    shards = [shard for split in layout.shards.values() for shard in split]
    is_large = len(shards) > len(store.SPLITS)
    pool.num_workers = min(context.data.workers or count_cpu_cores(), len(shards)) if is_large else 1
    records = {shard.name: record for shard, record in pool.map_unordered(write_shards, context, shards)}
    splits = {
        name: {**counts, "shards": [records[shard.name] for shard in layout.shards[name]]}
        for name, counts in layout.splits.items()
    }
    manifest = _build_manifest(context, layout, splits)
    folder = context.folder.parent
    written = store.Store(folder, manifest)
    store.write_manifest(
        folder, {**manifest, "leaks": contamination.measure_contamination(written.train, written.validation)}
    )


def _build_manifest(
    context: PreparationContext, layout: StoreLayout, splits: dict[str, Any]
) -> dict[str, Any]:
    stored = sum(split["tokens"] for split in splits.values()) - layout.repeated_counts["tokens"]
    assert layout.read_counts["tokens"] == stored + layout.dropped.tokens, (
        f"tokens lost: read {layout.read_counts}, stored {stored}, dropped {layout.dropped.by_rule}"
    )
    tokenizer = context.tokenizer
    return store.build_manifest(
        context.dtype,
        context.source.names,
        splits,
        signature=context.store_signature,
        data=collect_data_rules(context.data),
        tokenizer={
            **{
                key: getattr(tokenizer, key)
                for key in ("signature", "vocab_size", "bos_id", "eos_id", "pad_id")
            },
            # Without the version of tokenizers, as the same ids are the same store.
            "canary": {key: tokenizer.canary[key] for key in ("text", "ids")},
        },
        validation_set=layout.validation_set,
        read=layout.read_counts,
        unknown_tokens=layout.unknown_tokens,
        repeated=layout.repeated_counts,
        dropped=dict(sorted(layout.dropped.by_rule.items())),
        skipped=dict(sorted(layout.skipped.reasons.items())),
    )


def _require_documents(layout: StoreLayout, data: DataConfig) -> None:
    """Raises UsageError with the reasons of all dropped documents if none is left to train on."""
    if layout.splits["train"]["documents"]:
        return
    reasons = [f"{rule} {counts['documents']:,}" for rule, counts in sorted(layout.dropped.by_rule.items())]
    reasons += [
        f"{reason} {counts['records']:,}" for reason, counts in sorted(layout.skipped.reasons.items())
    ]
    if num_validation := layout.splits["validation"]["documents"]:
        reasons.append(f"validation split {num_validation:,}")
    advice = _suggest_changes(layout, data)
    raise UsageError(
        f"data {data.name}: no document is left to train on ({'; '.join(reasons) or 'the source has none'}): "
        f"{', '.join([*advice, 'or use other data']) if advice else 'use other data'}"
    )


def _suggest_changes(layout: StoreLayout, data: DataConfig) -> list[str]:
    """Returns what to change so that documents are left, by the rules that drop the most of them."""
    rules = collect_data_rules(data)
    verdicts = sorted(
        layout.dropped.by_rule.keys() - set(INTENDED_RULES),
        key=lambda verdict: (-layout.dropped.by_rule[verdict]["documents"], verdict),
    )
    changes = [suggest_change(verdict, rules) for verdict in verdicts[:MAX_SUGGESTED_CHANGES]]
    if "weight" in layout.dropped.by_rule:
        changes.append("set higher weights")
    if layout.splits["validation"]["documents"]:
        changes.append(f"lower data.validation_fraction (it is {data.validation_fraction})")
    if layout.skipped.reasons:
        changes.append("mend the records named above")
    return list(dict.fromkeys(changes))


def _write_record(
    folder: Path, pool: WorkerPool, progress: PreparationProgress, seconds: float, processes: dict[str, int]
) -> None:
    """Writes record.json: how the store was prepared, which is not part of its content."""
    write_json(
        folder / "record.json",
        {
            "seconds": round(seconds, 3),
            "documents": progress.documents,
            "text_bytes": progress.text_bytes,
            "peak_memory_bytes": pool.estimate_peak_memory(),
            **processes,
            "host": platform.node(),
            "cores": count_cpu_cores(),
        },
    )
