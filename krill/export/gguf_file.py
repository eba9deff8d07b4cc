"""Writes a model as one GGUF file, which llama.cpp and what is built on it (Ollama, LM Studio) load."""

from __future__ import annotations

import errno
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from krill.errors import UsageError
from krill.export.dtypes import cast_weight
from krill.export.gguf_tensors import get_architecture, iterate_tensors
from krill.export.gguf_tokenizer import GgufTokenizer, read_gguf_tokenizer
from krill.export.source import ExportSource
from krill.export.tokenizer_files import write_tokenizer_files
from krill.extras import format_install_command

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}


@lru_cache(maxsize=1)
def convert_tokenizer(source: ExportSource) -> GgufTokenizer:
    """Returns the tokenizer of the file. Raises UsageError if the model cannot be a GGUF file.

    Needed for the check before anything is written, and again for the file itself.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UsageError(f"format=gguf needs the package gguf: {format_install_command('gguf')}") from error
    get_architecture(source.config, source.label)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(source, Path(folder))
        return read_gguf_tokenizer(
            Path(folder), source.config.vocab_size, f"tokenizer {source.tokenizer.folder}"
        )


def write_gguf_file(source: ExportSource, dtype: str, path: Path) -> None:
    """Writes the weights, the settings and the tokenizer to `path`; vectors such as norms remain fp32.

    The tensors are converted one by one: memory holds the model once, and its largest tensor.
    """
    from gguf import GGUFWriter

    tokenizer = convert_tokenizer(source)
    architecture = get_architecture(source.config, source.label)
    model: Any = source.load_weights()
    writer = GGUFWriter(path, architecture)
    _add_settings(writer, model.config, source.name, dtype)
    _add_tokenizer(writer, tokenizer)
    for name, _, data in iterate_tensors(model, architecture):
        _add_tensor_info(writer, name, data, dtype)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, name, data in iterate_tensors(model, architecture):
            writer.write_tensor_data(_convert_tensor(name, data, dtype))
        for file in writer.fout or ():
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno is None:  # numpy's, of a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent)) from error
        raise
    finally:
        writer.close()


def _add_settings(writer: Any, config: Any, name: str, dtype: str) -> None:
    from gguf import LlamaFileType

    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre_tokenizer)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.kinds)
    writer.add_token_merges(tokenizer.merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(tokenizer.adds_eos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _get_tensor_dtype(data: torch.Tensor, dtype: str) -> str:
    return dtype if data.dim() > 1 else "f32"


def _add_tensor_info(writer: Any, name: str, data: torch.Tensor, dtype: str) -> None:
    from gguf import GGMLQuantizationType

    kind = _get_tensor_dtype(data, dtype)
    size = data.numel() * (4 if kind == "f32" else 2)
    writer.add_tensor_info(name, data.shape, np.dtype(np.int16), size, GGMLQuantizationType[kind.upper()])


def _convert_tensor(name: str, data: torch.Tensor, dtype: str) -> np.ndarray:
    cast = cast_weight(name, data, _get_tensor_dtype(data, dtype)).contiguous()
    return cast.view(torch.int16).numpy() if cast.dtype == torch.bfloat16 else cast.numpy()
