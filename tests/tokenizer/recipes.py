"""Recipes, text and round trips for the tests of tokenizers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

from krill.config.paths import CONF_DIR
from krill.config.schema import TokenizerConfig
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import train_tokenizer

TEXTS = [
    "Natural language is learned from text, and text is made of words that come again and again. ",
    "한국어 문장은 조사와 어미가 자주 되풀이된다. 그래서 한국어 토큰도 자주 되풀이된다 ㅋㅋㅋ. ",
    "<|eos|> is written <|eos|> in this text, so are <think> and </think>, 1234567 times. ",
] * 20


def make_recipe(**keys: Any) -> TokenizerConfig:
    """Returns a small recipe: 330 entries, two special tokens beside bos, eos and pad; changed by `keys`."""
    small = {"vocab_size": 330, "special_tokens": ["<|im_start|>", "<think>"], "chat_template": None}
    return load_option("_bpe", **{"name": "test", **small, **keys})


def load_option(name: str, /, **keys: Any) -> TokenizerConfig:
    """Returns conf/tokenizer/<name>.yaml as composed, changed by `keys`."""
    content: dict[str, Any] = {"path": None, "base": None}
    for file in dict.fromkeys(("_bpe", name)):
        content |= yaml.safe_load((CONF_DIR / f"tokenizer/{file}.yaml").read_text(encoding="utf-8"))
    content.pop("defaults", None)
    return TokenizerConfig.model_validate({**content, **keys})


def train_small(folder: Path, texts: Sequence[str] = TEXTS, **keys: Any) -> TokenizerFolder:
    """Trains a tokenizer by the small recipe, changed by `keys`."""
    return train_recipe(folder, make_recipe(**keys), texts)


def train_recipe(folder: Path, config: TokenizerConfig, texts: Sequence[str] = TEXTS) -> TokenizerFolder:
    """Trains a tokenizer by a recipe in a new folder."""
    folder.mkdir()
    train_tokenizer(config, lambda: iter(texts), folder)
    return load_tokenizer(folder)


@cache
def load_english() -> list[str]:
    """Returns the topics of Python's help, a document each: 0.5 MB."""
    return [topics[name] for name in sorted(topics)]


@cache
def make_korean() -> list[str]:
    """Returns synthetic documents: stems by Zipf's law, each with a particle or an ending; 300 KB."""
    rng = random.Random(1)
    stems = ["".join(chr(rng.randint(0xAC00, 0xD7A3)) for _ in range(rng.randint(1, 3))) for _ in range(2000)]
    weights = [1 / (rank + 5) for rank in range(len(stems))]
    endings = ["은", "는", "이", "가", "을", "를", "에서", "으로", "하다", "했다", "합니다", ""]
    documents = []
    for _ in range(200):
        words = [stem + rng.choice(endings) for stem in rng.choices(stems, weights, k=150)]
        documents.append(" ".join(words) + ".")
    return documents


def list_code_points(size: int = 0x4000) -> list[str]:
    """Returns texts of `size` code points that have every code point but the surrogates, in order."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    return ["".join(map(chr, points[start : start + size])) for start in range(0, len(points), size)]


def round_trip(tokenizer: TokenizerFolder, text: str) -> str:
    """Encodes and decodes a text; special tokens written in it are text."""
    return round_trip_batch(tokenizer, [text])[0]


def round_trip_batch(tokenizer: TokenizerFolder, texts: list[str]) -> list[str]:
    """Encodes and decodes texts; special tokens written in them are text."""
    backend = tokenizer.backend
    backend.encode_special_tokens = True
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    backend.encode_special_tokens = False
    return backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
