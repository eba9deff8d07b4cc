"""The schema of the configuration: what can be set, validated once after composition.

YAML in `conf/` composes; these models validate. The sentence below a field is its documentation everywhere: `--help`,
error messages and the reference page use it. A field of type `Unsigned[...]` is not part of the signature of a result
(`krill.config.signature`).
"""

from krill.config.schema.base import FolderName, Fraction, Section, Share
from krill.config.schema.data import (
    CustomDataConfig,
    DataConfig,
    FileEntryConfig,
    FilesDataConfig,
    HubDataConfig,
    HubDatasetConfig,
    MinHashConfig,
    PythonDocsDataConfig,
)
from krill.config.schema.evaluate import EvaluateConfig, EvaluationConfig
from krill.config.schema.export import ExportConfig
from krill.config.schema.filters import (
    CustomFilter,
    Filter,
    LanguageFilter,
    LengthFilter,
    LineFilter,
    LinkFilter,
    RepetitionFilter,
    SymbolFilter,
    WordFilter,
)
from krill.config.schema.hardware import HardwareConfig, SlurmConfig
from krill.config.schema.infer import (
    InferConfig,
    ModelCommandConfig,
    ModelPathConfig,
    TokenizerPathConfig,
)
from krill.config.schema.inspect import InspectConfig
from krill.config.schema.model import (
    AutoModelConfig,
    CustomModelConfig,
    ModelConfig,
    PretrainedModelConfig,
    TransformerConfig,
)
from krill.config.schema.optim import (
    AdamWConfig,
    ConstantSchedulerConfig,
    CosineSchedulerConfig,
    CustomOptimizerConfig,
    MuonConfig,
    OptimizerConfig,
    SchedulerConfig,
    WSDSchedulerConfig,
)
from krill.config.schema.plan import PlanConfig, PlanOptionsConfig
from krill.config.schema.run import (
    BatchConfig,
    EarlyStoppingConfig,
    HubConfig,
    SkipStepConfig,
    TrainConfig,
    TrainEvaluationConfig,
)
from krill.config.schema.serve import LimitsConfig, ServeConfig, ServerConfig
from krill.config.schema.sweep import SweepConfig
from krill.config.schema.tokenizer import TokenizerConfig

__all__ = [
    "AdamWConfig",
    "AutoModelConfig",
    "BatchConfig",
    "ConstantSchedulerConfig",
    "CosineSchedulerConfig",
    "CustomDataConfig",
    "CustomFilter",
    "CustomModelConfig",
    "CustomOptimizerConfig",
    "DataConfig",
    "EarlyStoppingConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FileEntryConfig",
    "FilesDataConfig",
    "Filter",
    "FolderName",
    "Fraction",
    "HardwareConfig",
    "HubConfig",
    "HubDataConfig",
    "HubDatasetConfig",
    "InferConfig",
    "InspectConfig",
    "LanguageFilter",
    "LengthFilter",
    "LimitsConfig",
    "LineFilter",
    "LinkFilter",
    "MinHashConfig",
    "ModelCommandConfig",
    "ModelConfig",
    "ModelPathConfig",
    "MuonConfig",
    "OptimizerConfig",
    "PlanConfig",
    "PlanOptionsConfig",
    "PretrainedModelConfig",
    "PythonDocsDataConfig",
    "RepetitionFilter",
    "SchedulerConfig",
    "Section",
    "ServeConfig",
    "ServerConfig",
    "Share",
    "SkipStepConfig",
    "SlurmConfig",
    "SweepConfig",
    "SymbolFilter",
    "TokenizerConfig",
    "TokenizerPathConfig",
    "TrainConfig",
    "TrainEvaluationConfig",
    "TransformerConfig",
    "WSDSchedulerConfig",
    "WordFilter",
]
