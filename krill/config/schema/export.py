"""The configuration of krill-export."""

from __future__ import annotations

from typing import Literal

from krill.config.schema.base import OutputPath, Unsigned
from krill.config.schema.infer import ModelCommandConfig


class ExportConfig(ModelCommandConfig):
    """Export of a trained model for other tools."""

    device: Unsigned[Literal["auto", "cpu", "cuda"]]
    """Part of hardware=…; without effect, as weights are converted on the CPU."""
    format: Literal["hf", "gguf"]
    """hf: a folder that transformers, vLLM and lm-eval load. gguf: a file for llama.cpp and Ollama; for models of the
    families llama and qwen3 with byte-level BPE; needs the extra gguf."""
    dtype: Literal["bf16", "f16", "f32"]
    """Data type of the weights; in a GGUF file vectors, such as those of norms, are f32."""
    output: Unsigned[OutputPath | None]
    """Folder (hf) or file (gguf) to create; null: outputs/exports/<name>-<dtype>-<signature>."""
