"""Recipes and text for the tests of tokenizers."""

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


def recipe(**keys: Any) -> TokenizerConfig:
    """A small recipe: 330 entries, two special tokens beside bos, eos and pad."""
    small = {"vocab_size": 330, "special_tokens": ["<|im_start|>", "<think>"], "chat_template": None}
    return option("_bpe", **{"name": "test", **small, **keys})


def option(name: str, /, **keys: Any) -> TokenizerConfig:
    """conf/tokenizer/<name>.yaml as composed, changed by `keys`."""
    content: dict[str, Any] = {"path": None, "base": None}
    for file in dict.fromkeys(("_bpe", name)):
        content |= yaml.safe_load((CONF_DIR / f"tokenizer/{file}.yaml").read_text(encoding="utf-8"))
    content.pop("defaults", None)
    return TokenizerConfig.model_validate({**content, **keys})


def train(folder: Path, texts: Sequence[str] = TEXTS, **keys: Any) -> TokenizerFolder:
    """A tokenizer of the small recipe, changed by `keys`."""
    return trained(folder, recipe(**keys), texts)


def trained(folder: Path, config: TokenizerConfig, texts: Sequence[str] = TEXTS) -> TokenizerFolder:
    """The tokenizer of a recipe, in a new folder."""
    folder.mkdir()
    train_tokenizer(config, lambda: iter(texts), folder)
    return load_tokenizer(folder)


@cache
def english() -> list[str]:
    """Python's own help, a topic each: 0.7 MB."""
    return [topics[name] for name in sorted(topics)]


@cache
def korean() -> list[str]:
    """Made up: stems by a law like Zipf's, each with a particle or an ending; 300 KB."""
    draw = random.Random(1)
    stems = [
        "".join(chr(draw.randint(0xAC00, 0xD7A3)) for _ in range(draw.randint(1, 3))) for _ in range(2000)
    ]
    often = [1 / (rank + 5) for rank in range(len(stems))]
    endings = ["은", "는", "이", "가", "을", "를", "에서", "으로", "하다", "했다", "합니다", ""]
    documents = []
    for _ in range(200):
        words = [stem + draw.choice(endings) for stem in draw.choices(stems, often, k=150)]
        documents.append(" ".join(words) + ".")
    return documents


def code_points(size: int = 0x4000) -> list[str]:
    """Every code point of Unicode but the surrogates, so many in a text, in their order."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    return ["".join(map(chr, points[start : start + size])) for start in range(0, len(points), size)]


def given_back(tokenizer: TokenizerFolder, text: str) -> str:
    """The text that the ids of `text` stand for; special tokens in it are text."""
    backend = tokenizer.backend
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return backend.decode(ids, skip_special_tokens=False)
