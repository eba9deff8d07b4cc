"""Converts a tokenizer to that of a GGUF file: entries and kinds, merges, pre-tokenizer, special tokens, template.

llama.cpp has the byte-level BPE of GPT-2, without a normalizer. A tokenizer that would give other ids there is
refused, or reported if only rare text is concerned.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from krill.errors import UsageError
from krill.export.split_families import find_pre_tokenizer
from krill.tokenizer.artifact import load_tokenizer

log = logging.getLogger("krill")

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens (llama_token_type in llama.h): text, special tokens, other added tokens, rows without a token."""

_USE_HF = "use format=hf"


class GgufTokenizer(NamedTuple):
    """A tokenizer as GGUF stores it."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre_tokenizer: str
    bos_id: int
    eos_id: int
    pad_id: int
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None


def read_gguf_tokenizer(folder: Path, num_embeddings: int, label: str) -> GgufTokenizer:
    """Converts the tokenizer in `folder` for a model with `num_embeddings` rows; rows without a token are unused.

    Raises UsageError if llama.cpp has no equal tokenizer. `label` names the tokenizer in messages.
    """
    loaded = load_tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if reason := _find_obstacle(content):
        raise UsageError(f"{label}: llama.cpp has no such tokenizer ({reason}); {_USE_HF}")
    family, pre_tokenizer = find_pre_tokenizer(content, label)
    _warn_about_differences(content, family)
    tokens, kinds = _list_tokens(content, num_embeddings)
    adds_bos, adds_eos = _find_added_boundaries(loaded.backend, loaded.bos_id, loaded.eos_id, label)
    return GgufTokenizer(
        tokens, kinds, _list_merges(content), pre_tokenizer.name, loaded.bos_id, loaded.eos_id, loaded.pad_id,
        adds_bos, adds_eos, _read_chat_template(folder),
    )  # fmt: skip


def _find_obstacle(content: dict[str, Any]) -> str | None:
    """Returns the setting of a tokenizer.json, apart from the pattern, that llama.cpp does not have, or None."""
    model, normalizer = content["model"], content.get("normalizer")
    if model.get("type", "BPE") != "BPE":
        return f"{model['type']} instead of BPE"
    if normalizer is not None and not _is_nfc(normalizer):
        return f"it normalizes text by {normalizer.get('type')}"
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            return f"{key}={model[key]!r}"
    merges = _list_merges(content)
    if not merges:
        return "it has no merges"
    if len(set(merges)) < len(merges):
        return "a merge is listed twice"
    for token in content.get("added_tokens") or []:
        if flags := [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]:
            return f"the added token {token['content']!r} has {flags[0]}"
    return None


def _is_nfc(normalizer: dict[str, Any]) -> bool:
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    return all(step.get("type") == "NFC" for step in steps)


def _warn_about_differences(content: dict[str, Any], family: str) -> None:
    """Logs which text llama.cpp encodes to other ids."""
    if content.get("normalizer") is not None:
        log.warning(
            "tokenizer   it normalizes text to NFC, and llama.cpp does not: text in another form, as file names of "
            "macOS, gets other ids; normalize it before"
        )
    if family == "gpt4o":
        log.warning(
            "tokenizer   llama.cpp has tokenizer.pattern=gpt4o only roughly: words with combining marks or with "
            "capital letters other than A-Z may get other ids; tokenizer.pattern=gpt4 has equal ids"
        )


def _list_tokens(content: dict[str, Any], num_embeddings: int) -> tuple[list[str], list[int]]:
    """Returns the tokens and their kinds by id."""
    names = {token_id: token for token, token_id in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    for added in content.get("added_tokens") or []:
        names[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    fillers = _iterate_fillers({*names.values()})
    ids = range(num_embeddings)
    return [names.get(i) or next(fillers) for i in ids], [kinds.get(i, UNUSED) for i in ids]


def _iterate_fillers(names: set[str]) -> Iterator[str]:
    """Yields names for rows without a token; llama.cpp requires that all names differ."""
    number = 0
    while True:
        if (name := f"[PAD{number}]") not in names:
            yield name
        number += 1


def _list_merges(content: dict[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]


def _find_added_boundaries(
    backend: tokenizers.Tokenizer, bos_id: int, eos_id: int, label: str
) -> tuple[bool, bool]:
    """Returns whether the tokenizer adds bos before a text, and eos after it. Raises UsageError for anything else."""
    plain, ids = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    for adds_bos in (False, True):
        for adds_eos in (False, True):
            if ids == [bos_id] * adds_bos + plain + [eos_id] * adds_eos:
                return adds_bos, adds_eos
    added = [backend.id_to_token(token_id) for token_id in ids if token_id not in plain]
    raise UsageError(f"{label}: it adds {added} to a text, and llama.cpp only bos and eos; {_USE_HF}")


def _read_chat_template(folder: Path) -> str | None:
    """Returns the chat template beside a tokenizer; of several, the default one."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    template = (
        json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    )
    if isinstance(template, list):
        return next((item["template"] for item in template if item.get("name") == "default"), None)
    return template
