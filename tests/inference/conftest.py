"""A byte tokenizer and an untrained model with a context of 64 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import make_small_model
from stores import make_byte_tokenizer

from krill.tokenizer.artifact import TokenizerFolder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """Has one token per byte, so that a Hangul syllable is three tokens; bos 0, eos 1, pad 2."""
    return make_byte_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bytes")


@pytest.fixture(scope="session")
def model(tokenizer: TokenizerFolder) -> Any:
    return make_small_model(tokenizer)


@pytest.fixture(scope="session")
def model_folder(model: Any, tokenizer: TokenizerFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model and its tokenizer, as a finished run writes it."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.copy_to(folder, 64)
    return folder
