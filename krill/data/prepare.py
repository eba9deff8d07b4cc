"""From a source to a token store.

    source → parts, each made by itself (krill.data.parts) → merged (krill.data.merge) → leak check → manifest

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
from krill.config.schema import Data
from krill.config.signature import signature
from krill.data import engines, leaks, store
from krill.data.encoding import Encoder
from krill.data.engines import Differs
from krill.data.merge import Plan, plan, write_shards
from krill.data.parts import Job, make_parts
from krill.data.progress import Meter, report
from krill.data.workers import Crew, cores
from krill.errors import KrillError, UsageError
from krill.sources.registry import check, open_source
from krill.sources.source import Part, Skipped, Source, evenly
from krill.text import near
from krill.text.documents import VERSION, data_rules, data_signature
from krill.tokenizer.folder import TokenizerFolder

log = logging.getLogger("krill")

LIGHT_BYTES, HEAVY_BYTES = 2**29, 2**23
"""Another process is started for so much input: it takes a second to start. Heavy is what a process does on one core
(filters, near duplicates, ftfy) or slowly (Hugging Face tokenizers)."""

SAMPLE_PARTS, SAMPLE_CHARACTERS = 8, 20_000
"""The engines are compared on so many parts, so many characters of each."""


def store_signature(data: Data, tokenizer_signature: str, fingerprint: Any) -> str:
    """Signature of a token store: the rules, the content of the source, the tokenizer."""
    return signature("store", VERSION, store.VERSION, data_signature(data, fingerprint), tokenizer_signature)


def prepare(
    data: Data,
    tokenizer: TokenizerFolder,
    folder: Path,
    source: Source | None = None,
    shard_tokens: int = store.SHARD_TOKENS,
) -> dict[str, Any]:
    """Write the token store of `data` into `folder` and return its manifest; goes on where it was killed.

    With data.shards the parts must be there, made by `prepare_shard`. Raises UsageError for input that cannot
    be used or changes meanwhile, or rules that leave no document to train on, KrillError for a missing shard.
    """
    began = time.monotonic()
    job, parts = _job(data, tokenizer, folder, source)
    if not _complete(folder, job.identity):
        every = range(len(parts))
        missing = _missing(job, every)
        if data.shards > 1:
            _demand_shards(data, parts, missing)
        meter = Meter(parts, missing)
        crew = _make(job, parts, every, meter)
        made_by = {"workers": crew.workers, "threads": crew.threads}
        _merge(job, parts, crew, shard_tokens)
        _record(folder, crew, meter, time.monotonic() - began, made_by)
    made = store.Store.open(folder)
    made.tidy()
    report(made.manifest, time.monotonic() - began)
    return made.manifest


def prepare_shard(data: Data, tokenizer: TokenizerFolder, folder: Path, source: Source | None = None) -> Path:
    """Make the parts of data.shard into `folder`, where `prepare` finds them; returns where they are."""
    assert data.shard is not None
    job, parts = _job(data, tokenizer, folder, source)
    mine = shard_parts(parts, data.shards)[data.shard]
    missing = _missing(job, mine)
    log.info(
        "shard %d of %d: %d of %d parts, %d of them made before",
        data.shard, data.shards, len(mine), len(parts), len(mine) - len(missing),
    )  # fmt: skip
    _make(job, parts, mine, Meter(parts, missing))
    return job.folder


def shard_parts(parts: Sequence[Part], shards: int) -> list[list[int]]:
    """Which parts each shard makes: consecutive ones of about the same size together."""
    total = max(1, sum(part.size for part in parts))
    chosen: list[list[int]] = [[] for _ in range(shards)]
    passed = 0
    for index, part in enumerate(parts):
        chosen[min(shards - 1, (2 * passed + part.size) * shards // (2 * total))].append(index)
        passed += part.size
    return chosen


def sample(job: Job, parts: Sequence[Part]) -> list[str]:
    """Cleaned texts from the beginnings of some parts, evenly chosen."""
    texts: list[str] = []
    for part in evenly(parts, SAMPLE_PARTS):
        characters = 0
        for document in job.source.read(part, Skipped()):
            texts.append(job.rules.judge(document.text)[0][: SAMPLE_CHARACTERS - characters])
            characters += len(texts[-1])
            if characters >= SAMPLE_CHARACTERS:
                break
    return texts


def _job(
    data: Data, tokenizer: TokenizerFolder, folder: Path, source: Source | None
) -> tuple[Job, list[Part]]:
    check(data)
    near.check(data.near)
    source = source or open_source(data)
    if len(source.names) > store.MAX_SOURCES:
        raise UsageError(
            f"{len(source.names)} sources, the store tells {store.MAX_SOURCES} apart; name folders, not files"
        )
    job = Job(source, data, tokenizer, folder / "parts", _identity(data, tokenizer, source))
    job.folder.mkdir(parents=True, exist_ok=True)
    return job, source.parts()


def _identity(data: Data, tokenizer: TokenizerFolder, source: Source) -> str:
    return store_signature(data, tokenizer.signature, source.fingerprint())


def _complete(folder: Path, identity: str) -> bool:
    """Whether all is done but the last: a store with its manifest was killed before it got its name."""
    manifest = folder / "manifest.json"
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8"))["signature"] != identity:
        manifest.unlink()  # output= was begun with another configuration
    return manifest.is_file()


def _missing(job: Job, indices: Sequence[int]) -> list[int]:
    return [index for index in indices if not job.has(index)]


def _demand_shards(data: Data, parts: Sequence[Part], missing: Sequence[int]) -> None:
    """Raise KrillError naming the shards of which parts are missing. No UsageError: what is made must stay."""
    absent = set(missing)
    shards = [
        number for number, mine in enumerate(shard_parts(parts, data.shards)) if not absent.isdisjoint(mine)
    ]
    if shards:
        every = len(shards) == data.shards
        named = "any shard" if every else f"shard {', '.join(map(str, shards))}"
        wanted = (
            f"'data.shard=range(0,{data.shards})'" if every else f"data.shard={','.join(map(str, shards))}"
        )
        raise KrillError(
            f"data.shards={data.shards}: not prepared yet: {named}. Make them: "
            f"krill-preprocess -m data.shards={data.shards} {wanted} and the rest as here"
        )


def _make(job: Job, parts: Sequence[Part], mine: Sequence[int], meter: Meter) -> Crew:
    """Make those of `mine` that are missing; returns the crew, which can do more."""
    missing = _missing(job, mine)
    if not missing:
        return Crew(1, cores(), meter.advance)
    todo = [parts[index] for index in missing]
    size = sum(part.size for part in todo)
    engine = engines.chosen(job.data.engine, Encoder(job.tokenizer).backend, lambda: sample(job, todo), size)
    heavy = engine == "hf" or job.data.filters or job.data.ftfy or job.data.near.threshold is not None
    fitting = max(1, min(cores(), len(missing), size // (HEAVY_BYTES if heavy else LIGHT_BYTES)))
    workers = job.data.workers or fitting
    crew = Crew(workers, max(1, cores() // workers), meter.advance)
    job = replace(job, engine=engine, threads=crew.threads)
    try:
        with meter:
            for (index, _), _ in crew.do(make_parts, job, ((index, parts[index]) for index in missing)):
                meter.finished(index)
    except Differs as error:
        _forget(job, mine)
        if job.data.engine == "fast":
            raise UsageError(f"data.engine=fast: {error}; let Hugging Face encode: data.engine=hf") from error
        log.warning("engine: %s; all is encoded again by Hugging Face tokenizers", error)
        plain = replace(job, data=job.data.model_copy(update={"engine": "hf"}))
        return _make(plain, parts, mine, meter)
    if _identity(job.data, job.tokenizer, job.source) != job.identity:
        _forget(job, missing)
        raise text_changed(job.data)
    return crew


def text_changed(data: Data) -> UsageError:
    """What was made is not of the text that its signature names."""
    return UsageError(
        f"data {data.name}: its text, or code of yours that reads it, changed meanwhile; nothing made of it is kept. "
        "Give the same command again when nobody writes to it"
    )


def _forget(job: Job, indices: Sequence[int]) -> None:
    """Have parts made again."""
    for index in indices:
        job.forget(index)


def _merge(job: Job, parts: Sequence[Part], crew: Crew, shard_tokens: int) -> None:
    found = plan(job, parts, shard_tokens)
    found.skipped.warn()
    _demand_documents(found, job.data)
    shards = [shard for split in found.shards.values() for shard in split]
    large = len(shards) > len(store.SPLITS)
    crew.workers = min(job.data.workers or cores(), len(shards)) if large else 1
    records = {shard.name: record for shard, record in crew.do(write_shards, job, shards)}
    splits = {
        name: {**counts, "shards": [records[shard.name] for shard in found.shards[name]]}
        for name, counts in found.splits.items()
    }
    manifest = _manifest(job, found, splits)
    folder = job.folder.parent
    written = store.Store(folder, manifest)
    store.write_manifest(folder, {**manifest, "leaks": leaks.leaks(written.train, written.validation)})


def _manifest(job: Job, found: Plan, splits: dict[str, Any]) -> dict[str, Any]:
    stored = sum(split["tokens"] for split in splits.values()) - found.repeated["tokens"]
    assert found.read["tokens"] == stored + found.dropped.tokens, (
        f"tokens lost: read {found.read}, stored {stored}, dropped {found.dropped.rules}"
    )
    tokenizer = job.tokenizer
    return store.manifest_of(
        job.dtype,
        job.source.names,
        splits,
        signature=job.identity,
        data=data_rules(job.data),
        tokenizer={
            key: getattr(tokenizer, key) for key in ("signature", "vocab_size", "bos_id", "eos_id", "pad_id")
        },
        read=found.read,
        repeated=found.repeated,
        dropped=dict(sorted(found.dropped.rules.items())),
        skipped=dict(sorted(found.skipped.reasons.items())),
    )


def _demand_documents(found: Plan, data: Data) -> None:
    """Raise UsageError, with what became of every document, if there is none to train on."""
    if found.splits["train"]["documents"]:
        return
    fates = [f"{rule} {counts['documents']:,}" for rule, counts in sorted(found.dropped.rules.items())]
    fates += [f"{reason} {counts['records']:,}" for reason, counts in sorted(found.skipped.reasons.items())]
    if held := found.splits["validation"]["documents"]:
        fates.append(f"held out for validation {held:,}")
    raise UsageError(
        f"data {data.name}: no document is left to train on ({'; '.join(fates) or 'the source has none'}). "
        f"Lower data.min_chars={data.min_chars}, data.min_tokens={data.min_tokens} or "
        f"data.validation_fraction={data.validation_fraction:g}, loosen data.filters, or give other data"
    )


def _record(folder: Path, crew: Crew, meter: Meter, seconds: float, made_by: dict[str, int]) -> None:
    """How the store was made: no part of what it is."""
    write_json(
        folder / "record.json",
        {
            "seconds": round(seconds, 3),
            "documents": meter.documents,
            "text_bytes": meter.text_bytes,
            "peak_memory_bytes": crew.peak_memory(),
            **made_by,
            "host": platform.node(),
            "cores": cores(),
        },
    )
