"""The schema of each command's configuration."""

from __future__ import annotations

from krill.config.schema import (
    EvaluateConfig,
    ExportConfig,
    InferConfig,
    InspectConfig,
    ModelCommandConfig,
    PlanConfig,
    ServeConfig,
    TrainConfig,
)

COMMAND_SCHEMAS: dict[str, type[TrainConfig] | type[ModelCommandConfig]] = {
    "train": TrainConfig,
    "preprocess": TrainConfig,
    "tokenizer": TrainConfig,
    "plan": PlanConfig,
    "inspect": InspectConfig,
    "infer": InferConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
}
"""Command → schema."""
