"""The recipe of byte-level BPE: how text is split, the order of the ids, and the saved files.

Every text can be encoded and is decoded unchanged (with normalizer=nfc: as its NFC). Special tokens have the first
ids, then the 256 bytes, then merges. The saved folder loads with `AutoTokenizer.from_pretrained`, which adds bos at
the start but no eos at the end, as in training for a document that is not complete.
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

VERSION = 5
"""Part of every signature; incremented when a change of the recipe or of the sample changes the tokenizer."""

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
"""How text is split before merging: the published patterns of GPT-2, of GPT-4 (as in Llama 3), of GPT-4o, and of
Qwen 2 and 3."""

MODEL_MAX_LENGTH = 2**20
"""Written to tokenizer_config.json: transformers warns about longer texts. The model's limit is in its own config."""


def list_special_tokens(config: TokenizerConfig) -> list[str]:
    """Returns all special tokens in the order of their ids."""
    roles = [config.bos_token, config.eos_token, config.pad_token]
    return list(dict.fromkeys([*roles, *config.special_tokens]))


def make_added_tokens(tokens: list[str]) -> list[AddedToken]:
    """Converts special tokens to the type that tokenizers expects."""
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def compute_vocab_size(config: TokenizerConfig) -> int:
    """Returns the number of entries: vocab_size, rounded up to a multiple of multiple_of."""
    return -(-config.vocab_size // config.multiple_of) * config.multiple_of


def get_byte_alphabet() -> list[str]:
    """Returns the letters that byte-level BPE writes for the 256 bytes, in the order of their ids."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def bytes_to_unicode() -> list[str]:
    """Returns the letter that byte-level BPE (Radford et al. 2019, GPT-2) writes for each byte, by byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def build_bpe_tokenizer(config: TokenizerConfig, model: models.BPE | None = None) -> tokenizers.Tokenizer:
    """Builds the tokenizer around `model`, or around a new model to train."""
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
    """Raises UsageError for special tokens that text could be encoded as, that leave no room, or are missing."""
    special_tokens = list_special_tokens(config)
    pre_tokenizer = build_bpe_tokenizer(config).pre_tokenizer
    for token in special_tokens:
        check_special_token(token, pre_tokenizer)
    min_size = len(special_tokens) + 256
    if compute_vocab_size(config) < min_size:
        raise UsageError(
            f"tokenizer.vocab_size={config.vocab_size}: no room for 256 bytes and {len(special_tokens)} special "
            f"tokens; set tokenizer.vocab_size={min_size} or more"
        )
    if config.chat_template is not None:
        load_chat_template(config.chat_template, special_tokens)


def check_special_token(token: str, pre_tokenizer: pre_tokenizers.PreTokenizer) -> None:
    """Raises UsageError for a special token that merges could create from text, split by `pre_tokenizer`."""
    if not token or token != "".join(token.split()):
        raise UsageError(f"tokenizer: special token {token!r} is empty or contains white space; use <|name|>")
    if len(pre_tokenizer.pre_tokenize_str(token)) == 1:
        raise UsageError(f"tokenizer: special token {token!r} is an ordinary word or symbol; use <|{token}|>")


def load_chat_template(name: str, special_tokens: list[str]) -> str:
    """Returns the Jinja chat template `name`. Raises UsageError if a token that it writes is not special."""
    template = (resources.files("krill.tokenizer") / "chat" / f"{name}.jinja").read_text(encoding="utf-8")
    missing = sorted(set(re.findall(r"<\|\w+\|>", template)) - set(special_tokens))
    if missing:
        raise UsageError(
            f"tokenizer.chat_template={name} needs {', '.join(missing)} in tokenizer.special_tokens; add "
            "them, or use no template: tokenizer.chat_template=null"
        )
    return template


def save_tokenizer(tokenizer: tokenizers.Tokenizer, config: TokenizerConfig, folder: Path) -> None:
    """Writes tokenizer.json and the files that transformers needs beside it."""
    special_tokens = list_special_tokens(config)
    tokenizer.post_processor = build_bos_processor(config.bos_token, special_tokens.index(config.bos_token))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    roles = {"bos_token": config.bos_token, "eos_token": config.eos_token, "pad_token": config.pad_token}
    settings = {
        **roles,
        "extra_special_tokens": [token for token in special_tokens if token not in roles.values()],
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    save_tokenizer_config(settings, config.chat_template, special_tokens, folder)


def save_tokenizer_config(
    settings: dict[str, object], chat_template: str | None, special_tokens: list[str], folder: Path
) -> None:
    """Writes tokenizer_config.json and, if `chat_template` is set, chat_template.jinja."""
    # Only this class uses tokenizer.json unchanged; the other classes of transformers rebuild the tokenizer.
    settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template is not None:
        settings.pop("chat_template", None)
        template = load_chat_template(chat_template, special_tokens)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
