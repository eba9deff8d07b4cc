"""Finds the name by which llama.cpp knows how a tokenizer splits text before merging.

llama.cpp has the patterns in its code (llama_vocab in src/llama-vocab.cpp); a GGUF file has only the name of one. Its
own converter finds the name by a hash of the ids of one text, which no newly trained tokenizer matches. Here it
follows from the pattern that is in tokenizer.json, and benchmarks/export_gguf.py compares the ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tokenizers
from tokenizers import models

from krill.errors import UsageError
from krill.tokenizer.recipe import SPLIT_PATTERNS

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_FAMILIES = {_GPT2_PATTERN: "gpt2"} | {pattern: name for name, pattern in SPLIT_PATTERNS.items()}
"""Pattern → its name in tokenizer.pattern. The first is the one that GPT-2 was published with."""
_CHOICES = "train the tokenizer with tokenizer.pattern=gpt4, qwen2 or gpt2, or use format=hf"


class PreTokenizer(NamedTuple):
    """A pre-tokenizer of llama.cpp."""

    name: str
    """The value of tokenizer.ggml.pre."""
    ignores_merges: bool
    """Whether a piece of text that is an entry becomes that entry, whatever the merges are."""


PRE_TOKENIZERS = {
    "gpt2": (PreTokenizer("gpt-2", False),),
    "gpt4": (PreTokenizer("llama-bpe", True), PreTokenizer("smaug-bpe", False)),
    "gpt4o": (PreTokenizer("gpt-4o", False),),
    "qwen2": (PreTokenizer("qwen2", False),),
}
"""tokenizer.pattern → the pre-tokenizers of llama.cpp with that pattern, the best known first."""


def find_pre_tokenizer(content: dict[str, Any], label: str) -> tuple[str, PreTokenizer]:
    """Returns the pattern of a tokenizer.json, by its name, and the pre-tokenizer that gives the same ids.

    Raises UsageError if llama.cpp has none. `label` names the tokenizer in the message.
    """
    family = _find_family(content.get("pre_tokenizer"))
    if family is None:
        raise UsageError(f"{label}: llama.cpp does not split text in the way of this tokenizer; {_CHOICES}")
    ignores_merges = bool(content["model"].get("ignore_merges"))
    best_known, *_ = PRE_TOKENIZERS[family]
    if best_known.ignores_merges == ignores_merges:
        return family, best_known
    unreachable = find_unreachable_entries(content)
    if not unreachable:  # both ways give the same ids
        return family, best_known
    for candidate in PRE_TOKENIZERS[family]:
        if candidate.ignores_merges == ignores_merges:
            return family, candidate
    raise UsageError(
        f"{label}: no merges lead to {len(unreachable)} entries, the first of them {unreachable[0]!r}, and with this "
        f"pattern llama.cpp uses an entry only if merges lead to it; {_CHOICES}"
    )


def _find_family(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """Returns the name of the pattern by which text is split before bytes become letters; None: another way."""
    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    *splits, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    patterns = [split.get("pattern", {}).get("Regex") for split in splits if _isolates(split)]
    if len(patterns) != len(splits):
        return None
    if last.get("use_regex", True):
        patterns.append(_GPT2_PATTERN)
    return _FAMILIES.get(patterns[0]) if len(patterns) == 1 else None


def _isolates(split: dict[str, Any]) -> bool:
    return split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")


def find_unreachable_entries(content: dict[str, Any]) -> list[str]:
    """Returns the entries that no merges lead to: text that is exactly such an entry is encoded as others."""
    model = content["model"]
    added = {token["content"] for token in content.get("added_tokens") or []}
    entries = [entry for entry in model["vocab"] if entry not in added]
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    bpe = tokenizers.Tokenizer(models.BPE(model["vocab"], pairs))
    encodings = bpe.encode_batch(entries, add_special_tokens=False)
    return [
        entry
        for entry, encoding in zip(entries, encodings, strict=True)
        if encoding.ids != [model["vocab"][entry]]
    ]
