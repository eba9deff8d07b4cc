"""llama.cpp itself reads the file: the same ids and the same logits (a miniature of benchmarks/export_gguf.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import ENGLISH, KOREAN, make_tokenizer
from transformers import AutoModelForCausalLM

from krill.data.encoding import Encoder
from krill.export.gguf_file import write_gguf_file
from krill.export.source import ExportSource

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python has no wheel on the index, and its build takes half an hour"
)

MakeRun = Callable[..., Path]
TEXTS = [
    ENGLISH * 3,
    KOREAN * 3,
    "I'll 'LL go  to\t\n \r\n x=1234567, é½ 🙂❤️\n\n!?/\r\n  <think> end  ",
    "안녕",
]


@pytest.mark.parametrize(("family", "pattern"), [("llama", "gpt4"), ("qwen3", "qwen2"), ("llama", "gpt2")])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_llama_cpp_gives_the_same_ids_and_logits(
    make_run: MakeRun, tmp_path: Path, family: str, pattern: str, dtype: str
) -> None:
    tokenizer = make_tokenizer(tmp_path / "bpe", pattern=pattern)
    run = make_run(family, tokenizer, head_dim=32, hidden_size=64)
    write_gguf_file(ExportSource.open(str(run), None), dtype, tmp_path / "a.gguf")
    model = llama_cpp.Llama(
        str(tmp_path / "a.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    encoder, backend = Encoder(tokenizer), tokenizer.backend
    for text in TEXTS:
        assert model.tokenize(text.encode(), True, False) == encoder.encode([text]).tokens.tolist()[:-1]
        assert model.tokenize(text.encode(), True, True) == backend.encode(text).ids
    ids = backend.encode(TEXTS[2]).ids[:60]
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    batch, reference = torch.tensor([ids]), AutoModelForCausalLM.from_pretrained(run / "model")
    expected = reference(batch).logits[0].detach().numpy()
    error = np.abs(logits - expected).mean()
    rounded = reference.bfloat16()(batch).logits[0].detach().float().numpy()
    assert error < (1e-5 * np.abs(expected).max() if dtype == "f32" else np.abs(rounded - expected).mean())
