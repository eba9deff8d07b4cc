"""The recipe of byte-level BPE: how text is cut, what the first ids are, which files are saved.

Every text is represented, and comes back as it was (with normalizer=nfc: as its NFC). Special tokens have the
first ids, then the 256 bytes, then merges. The saved folder loads with `AutoTokenizer.from_pretrained`, which puts
bos in front by itself and no eos at the end: what training saw of a document that is not finished.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from krill.atomic import write_json
from krill.config.schema import TokenizerConfig
from krill.errors import UsageError
from krill.tokenizer.artifact import build_bos_processor

VERSION = 4
"""Part of every signature: raised when the recipe, or the choice of text for it, changes what is made."""

_WORD_STARTS, _WORD_ENDS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

SPLIT_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt4o": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_WORD_STARTS}*{_WORD_ENDS}+{_CONTRACTION}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_WORD_STARTS}+{_WORD_ENDS}*{_CONTRACTION}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""How text is cut before merging: the published patterns of GPT-2, of GPT-4 (as Llama 3 spells it), of GPT-4o and
of Qwen 2 and 3."""

MODEL_MAX_LENGTH = 2**20
"""Longer texts make transformers warn; the model's own limit is in its configuration."""


def list_special_tokens(config: TokenizerConfig) -> list[str]:
    """All special tokens in the order of their ids."""
    roles = [config.bos_token, config.eos_token, config.pad_token]
    return list(dict.fromkeys([*roles, *config.special_tokens]))


def make_added_tokens(tokens: list[str]) -> list[AddedToken]:
    """Special tokens as the library has them."""
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def compute_vocab_size(config: TokenizerConfig) -> int:
    """Entries in all: vocab_size, rounded up to the multiple that was asked for."""
    return -(-config.vocab_size // config.multiple_of) * config.multiple_of


def get_byte_alphabet() -> list[str]:
    """The 256 bytes as byte-level BPE writes them, in the order of their ids."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def bytes_to_unicode() -> list[str]:
    """The letter by which byte-level BPE (Radford et al. 2019, GPT-2) writes each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def build_bpe_tokenizer(config: TokenizerConfig, model: models.BPE | None = None) -> tokenizers.Tokenizer:
    """The tokenizer around `model`, or around one that has yet to be trained."""
    tokenizer = tokenizers.Tokenizer(model or models.BPE())
    if config.normalizer == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERNS[config.pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def check_recipe(config: TokenizerConfig) -> None:
    """Raise UsageError for special tokens that merging could make of text, that leave no room, or are missing."""
    specials = list_special_tokens(config)
    splitter = build_bpe_tokenizer(config).pre_tokenizer
    for token in specials:
        check_special_token(token, splitter)
    least = len(specials) + 256
    if compute_vocab_size(config) < least:
        raise UsageError(
            f"tokenizer.vocab_size={config.vocab_size}: no room for 256 bytes and {len(specials)} special tokens; "
            f"set tokenizer.vocab_size={least} or more"
        )
    if config.chat_template is not None:
        load_chat_template(config.chat_template, specials)


def check_special_token(token: str, splitter: pre_tokenizers.PreTokenizer) -> None:
    """Raise UsageError for a special token that merging could make of text, which `splitter` cuts before."""
    if not token or token != "".join(token.split()):
        raise UsageError(f"tokenizer: special token {token!r} is empty or holds white space; write <|name|>")
    if len(splitter.pre_tokenize_str(token)) == 1:
        raise UsageError(f"tokenizer: special token {token!r} is an ordinary word or sign; write <|{token}|>")


def load_chat_template(name: str, specials: list[str]) -> str:
    """The chat template of that name, in Jinja; UsageError if a token that it writes is not special."""
    template = (resources.files("krill.tokenizer") / "chat" / f"{name}.jinja").read_text(encoding="utf-8")
    missing = sorted(set(re.findall(r"<\|\w+\|>", template)) - set(specials))
    if missing:
        raise UsageError(
            f"tokenizer.chat_template={name} needs {', '.join(missing)} among tokenizer.special_tokens; add them, "
            "or save no template: tokenizer.chat_template=null"
        )
    return template


def save_tokenizer(tokenizer: tokenizers.Tokenizer, config: TokenizerConfig, folder: Path) -> None:
    """tokenizer.json, and what transformers needs beside it."""
    specials = list_special_tokens(config)
    tokenizer.post_processor = build_bos_processor(config.bos_token, specials.index(config.bos_token))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    roles = {"bos_token": config.bos_token, "eos_token": config.eos_token, "pad_token": config.pad_token}
    settings = {
        **roles,
        "extra_special_tokens": [token for token in specials if token not in roles.values()],
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    save_tokenizer_config(settings, config.chat_template, specials, folder)


def save_tokenizer_config(
    settings: dict[str, object], chat: str | None, specials: list[str], folder: Path
) -> None:
    """tokenizer_config.json and, if `chat` names one, chat_template.jinja."""
    # transformers reads tokenizer.json as it is only under this name; its own classes build theirs anew.
    settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat is not None:
        settings.pop("chat_template", None)
        (folder / "chat_template.jinja").write_text(load_chat_template(chat, specials), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
