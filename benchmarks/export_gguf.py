"""Question: does llama.cpp compute what krill trained, from the GGUF file that krill-export writes?

For every pattern of tokenizers a tokenizer is trained on every second document. Of the other documents, and of every
code point of Unicode in five contexts, the ids of llama.cpp are compared with those of krill, as in training (special
tokens in a text are ordinary text) and as in a chat (they are special tokens). For both families a model is trained
and exported in each dtype, and the logits of llama.cpp on held-out documents are compared with those of transformers,
which loads the folder of format=hf in the same dtype and computes in fp32. Beside them is the difference that
transformers itself makes when it computes in that dtype. Prints a table and writes results/export_gguf.json.

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" pip install llama-cpp-python     (30 minutes on one core)
    python benchmarks/export_gguf.py ko.parquet en.parquet                            (15 minutes for 59 MB)

Must hold: all ids of documents are equal for gpt4, qwen2 and gpt2, and the logits of llama.cpp are as near to fp32 as
those of transformers in the same dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from krill.runs.record import read_versions

PATTERNS = ("gpt4", "qwen2", "gpt2", "gpt4o")
FAMILIES = {"llama": "gpt4", "qwen3": "qwen2"}
PARTS = (*PATTERNS, *FAMILIES)
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
CONTEXTS = ("{}", "a{}b", " {}1{}", "\n{} {}\n", "'{}")
ASSIGNED = [*range(0x34000), *range(0xE0000, 0xE0200)]
"""Code points that may be characters: the planes of private use and those without any are left out."""
CONTEXT_LENGTH = 128
MODEL = (
    "model.hidden_size=256", "model.intermediate_size=704", "model.num_hidden_layers=4",
    "model.num_attention_heads=8", "model.num_key_value_heads=2", "model.head_dim=32",
    f"sequence_len={CONTEXT_LENGTH}", "batch.micro_batch_size=4", "eval_tokens=5_000",
)  # fmt: skip
RESULT = Path(__file__).parent / "results" / "export_gguf.json"


def run_krill(folder: Path, *arguments: str) -> str:
    """Runs a command of krill in `folder`; returns the last line of its output."""
    command = [sys.executable, "-m", "krill", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"krill {' '.join(arguments)}\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def split_documents(files: list[str], folder: Path, megabytes: int) -> list[str]:
    """Writes every second document to `folder`/train.jsonl; returns the others; at most `megabytes` of each."""
    import pyarrow.parquet

    held_out: list[str] = []
    with open(folder / "train.jsonl", "w", encoding="utf-8") as train:
        for file in files:
            room = [megabytes * 10**6] * 2
            for index, text in enumerate(pyarrow.parquet.read_table(file).column("text").to_pylist()):
                room[index % 2] -= len(text.encode())
                if room[index % 2] < 0:
                    continue
                if index % 2:
                    held_out.append(text)
                else:
                    train.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return held_out


class Comparison:
    """The ids of llama.cpp beside those of krill, as in training and as in a chat."""

    def __init__(self, vocabulary: Any, folder: Path):
        """`vocabulary`: a model of llama_cpp. `folder`: of the tokenizer."""
        from krill.data.encoding import Encoder
        from krill.tokenizer.artifact import load_tokenizer

        tokenizer = load_tokenizer(folder)
        special_tokens = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
        self.vocabulary, self.encoder, self.chat = vocabulary, Encoder(tokenizer), tokenizer.backend
        self.has_special = re.compile("|".join(map(re.escape, special_tokens))).search

    def encode(self, text: str) -> list[int]:
        """Returns the ids of training, without the eos that ends a document."""
        return list(self.encoder.encode([text]).tokens.tolist()[:-1])

    def has_training_ids(self, text: str) -> bool:
        return bool(self.vocabulary.tokenize(text.encode(), True, False) == self.encode(text))

    def compare_documents(self, texts: list[str]) -> dict[str, int]:
        """Returns the numbers of documents, bytes and tokens, and of documents with other ids."""
        counts = dict.fromkeys(
            ("documents", "bytes", "tokens", "other ids", "other ids with special tokens"), 0
        )
        for text in texts:
            content, ids = text.encode(), self.encode(text)
            as_text, as_chat = (self.vocabulary.tokenize(content, True, special) for special in (False, True))
            # Without a special token in it, a text has one encoding.
            chat_ids = ids if not self.has_special(text) else self.chat.encode(text).ids
            found = (1, len(content), len(ids), as_text != ids, as_chat != chat_ids)
            counts = {key: counts[key] + count for key, count in zip(counts, found, strict=True)}
        return counts

    def find_other_ids(self, texts: list[str]) -> list[str]:
        """Returns the texts with other ids; many are compared at once, and halved where they differ."""
        if self.has_training_ids(" x ".join(texts)):
            return []
        if len(texts) == 1:
            return texts
        half = len(texts) // 2
        return self.find_other_ids(texts[:half]) + self.find_other_ids(texts[half:])

    def compare_code_points(self) -> dict[str, Any]:
        """Returns the number of code points with other ids in each context, and the first of them."""
        points = [chr(code) for code in ASSIGNED if not 0xD800 <= code < 0xE000]
        results: dict[str, Any] = {"code points": len(points)}
        for context in CONTEXTS:
            texts = [context.replace("{}", point) for point in points]
            batches = (texts[start : start + 512] for start in range(0, len(texts), 512))
            found = [text for batch in batches for text in self.find_other_ids(batch)]
            results[context] = {"other ids": len(found), "first": found[:5]}
        return results


def compare_tokenizers(work: Path, pattern: str, held_out: list[str]) -> dict[str, Any]:
    """Trains a tokenizer, writes the GGUF file of a model with random weights, and compares the ids."""
    from llama_cpp import Llama
    from transformers import LlamaConfig, LlamaForCausalLM

    from krill.export.gguf_file import write_gguf_file
    from krill.export.source import ExportSource
    from krill.tokenizer.artifact import load_tokenizer

    tokenizer = load_tokenizer(work / run_krill(work, "tokenizer", *tokenizer_keys(pattern)))
    folder = work / f"ids-{pattern}"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.vocab_size, **shape)).save_pretrained(folder)
    tokenizer.copy_to(folder, 2048)
    write_gguf_file(ExportSource.open(str(folder), None), "bf16", work / f"ids-{pattern}.gguf")
    vocabulary = Llama(str(work / f"ids-{pattern}.gguf"), vocab_only=True, verbose=False)
    comparison = Comparison(vocabulary, folder)
    return {
        "pre_tokenizer": vocabulary.metadata["tokenizer.ggml.pre"],
        "held out": comparison.compare_documents(held_out),
        "code points": comparison.compare_code_points(),
    }


def tokenizer_keys(pattern: str) -> tuple[str, ...]:
    """Returns the overrides of a tokenizer; those of the data have to be the same for a model that uses it."""
    return (
        "data=files", "data.paths=[train.jsonl]", "data.validation_fraction=0.01", "tokenizer=bpe_32k",
        f"tokenizer.pattern={pattern}", "tokenizer.vocab_size=8192", "tokenizer.sample_bytes=10_000_000",
    )  # fmt: skip


def compute_llama_cpp_logits(file: Path, documents: list[list[int]]) -> list[np.ndarray]:
    from llama_cpp import GGML_TYPE_F32, Llama

    model = Llama(
        str(file), n_ctx=CONTEXT_LENGTH, n_batch=CONTEXT_LENGTH, n_threads=1, logits_all=True, verbose=False,
        type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
    )  # fmt: skip
    logits = []
    for ids in documents:
        model.reset()
        model.eval(ids)
        logits.append(np.array(model.scores[: len(ids)]))
    return logits


def compute_transformers_logits(folder: Path, documents: list[list[int]], dtype: str) -> list[np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].float().numpy() for ids in documents]


def measure_difference(logits: list[np.ndarray], reference: list[np.ndarray]) -> dict[str, float]:
    """Returns how far logits are from the reference, and how often the most likely token is the same."""
    found, expected = np.concatenate(logits), np.concatenate(reference)
    difference = np.abs(found - expected)
    return {
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "same most likely token": float((found.argmax(-1) == expected.argmax(-1)).mean()),
    }


def compare_models(work: Path, family: str, held_out: list[str], steps: int) -> dict[str, Any]:
    """Trains a model, exports it in each dtype and compares the logits."""
    from transformers import AutoTokenizer

    preset = "llama_nano" if family == "llama" else "qwen3_micro"
    run = run_krill(
        work, "train", *tokenizer_keys(FAMILIES[family]), f"model={preset}", *MODEL, f"steps={steps}",
        f"output={family}",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(work / run / "model")
    documents = [tokenizer(text).input_ids[:CONTEXT_LENGTH] for text in held_out]
    results: dict[str, Any] = {"tokens": sum(map(len, documents))}
    for dtype, name in DTYPES.items():
        folder = work / run_krill(work, "export", run, f"dtype={dtype}", f"output={family}-{dtype}")
        file = work / run_krill(
            work, "export", run, "format=gguf", f"dtype={dtype}", f"output={family}-{dtype}.gguf"
        )
        reference = compute_transformers_logits(folder, documents, "float32")
        results[dtype] = {
            "llama.cpp": measure_difference(compute_llama_cpp_logits(file, documents), reference),
            "transformers": measure_difference(
                compute_transformers_logits(folder, documents, name), reference
            ),
        }
        results["largest logit"] = float(max(np.abs(one).max() for one in reference))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "files", nargs="+", help="parquet files with a column text, such as ko.parquet en.parquet"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="patterns and families to measure"
    )
    parser.add_argument(
        "--megabytes", type=int, default=8, help="of each file, to train on and as much to compare"
    )
    parser.add_argument("--steps", type=int, default=40, help="of the models")
    parser.add_argument("--logit-documents", type=int, default=30)
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="parts that are not measured remain in it"
    )
    arguments = parser.parse_args()
    from llama_cpp import __version__ as llama_cpp_version

    path: Path = arguments.result
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    result |= {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            **read_versions("gguf", "tokenizers", "torch", "transformers"),
            "llama_cpp": llama_cpp_version,
        },
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        held_out = split_documents(arguments.files, work, arguments.megabytes)
        every = max(1, len(held_out) // arguments.logit_documents)
        for part in arguments.parts:
            if part in FAMILIES:
                result[part] = compare_models(work, part, held_out[::every], arguments.steps)
            else:
                result[part] = compare_tokenizers(work, part, held_out)
            print(part, json.dumps(result[part], indent=2), flush=True)
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    check_results(result)


def check_results(result: dict[str, Any]) -> None:
    """Fails if a promise of the first lines of this file is broken."""
    for pattern in ("gpt4", "qwen2", "gpt2"):
        if pattern in result:
            assert result[pattern]["held out"]["other ids"] == 0, pattern
    for family in FAMILIES:
        if family not in result:
            continue
        assert result[family]["f32"]["llama.cpp"]["largest"] < 1e-3, family
        for dtype in ("bf16", "f16"):
            measured = result[family][dtype]
            assert measured["llama.cpp"]["mean"] <= measured["transformers"]["mean"], (family, dtype)


if __name__ == "__main__":
    main()
