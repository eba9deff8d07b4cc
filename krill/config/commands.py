"""The schema of each command's configuration."""

from __future__ import annotations

from krill.config.schema import (
    EvaluateConfig,
    ExportConfig,
    InferConfig,
    InspectConfig,
    ModelCommandConfig,
    ServeConfig,
    TrainConfig,
)

COMMAND_SCHEMAS: dict[str, type[TrainConfig] | type[ModelCommandConfig]] = {
    "train": TrainConfig,
    "preprocess": TrainConfig,
    "tokenizer": TrainConfig,
    "inspect": InspectConfig,
    "infer": InferConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
}
"""Command → schema."""
