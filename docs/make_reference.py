"""Writes docs/reference.md from the schema and the composed defaults: python docs/make_reference.py

Its sentences are those below the fields of krill/config/schema/. tests/e2e/test_docs.py checks that the committed
page is up to date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from krill.cli.compose import compose_config
from krill.config import schema
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.number_limits import MAX_COUNT, MAX_FLOAT, MAX_INT, MAX_PROCESSES
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options, read_config_description
from krill.tables import format_markdown_table

PAGE = Path(__file__).with_name("reference.md")

FILTERS: tuple[type[BaseModel], ...] = get_args(get_args(schema.Filter)[0])

SECTIONS: list[tuple[str, list[tuple[type[BaseModel], str | None]]]] = [
    (
        "model",
        [
            (schema.TransformerConfig, "model=llama_nano"),
            (schema.AutoModelConfig, "model=auto"),
            (schema.PretrainedModelConfig, "model=pretrained"),
            (schema.CustomModelConfig, None),
        ],
    ),
    (
        "data",
        [
            (schema.PythonDocsDataConfig, "data=python_docs"),
            (schema.FilesDataConfig, "data=files"),
            (schema.FileEntryConfig, None),
            (schema.HubDataConfig, "data=tiny_korean_100k"),
            (schema.HubDatasetConfig, None),
            (schema.CustomDataConfig, None),
        ],
    ),
    ("data.filters[]", [(rule, None) for rule in FILTERS]),
    ("tokenizer", [(schema.TokenizerConfig, "tokenizer=bpe_4k")]),
    (
        "optimizer",
        [
            (schema.MuonConfig, "optimizer=muon_krill"),
            (schema.AdamWConfig, "optimizer=adamw"),
            (schema.CustomOptimizerConfig, None),
        ],
    ),
    (
        "scheduler",
        [
            (schema.CosineSchedulerConfig, "scheduler=cosine"),
            (schema.WSDSchedulerConfig, "scheduler=wsd"),
            (schema.ConstantSchedulerConfig, "scheduler=constant"),
        ],
    ),
    ("hardware", [(schema.HardwareConfig, "hardware=auto")]),
    ("hardware.slurm", [(schema.SlurmConfig, "hardware=slurm_gpu")]),
    ("sweep", [(schema.SweepConfig, "hardware=auto")]),
    ("batch", [(schema.BatchConfig, "hardware=auto")]),
    ("evaluation", [(schema.TrainEvaluationConfig, "evaluation=auto")]),
    ("stop", [(schema.EarlyStoppingConfig, "hardware=auto")]),
    ("skip_step", [(schema.SkipStepConfig, "hardware=auto")]),
    ("hub", [(schema.HubConfig, "hardware=auto")]),
]
"""Section → its classes, each with the option whose values are the defaults in its table."""

PREFIXES = {schema.FileEntryConfig: "data.paths[].", schema.HubDatasetConfig: "data.datasets[]."}
"""Classes of list entries → the prefix of their keys."""

SHARED_DATA = OmegaConf.load(CONF_DIR / "data" / "_rules.yaml")
"""Keys of `data` that every source has, with their defaults."""

HEAD = """# Reference

All configuration keys. `docs/make_reference.py` generates this page from the schema and `conf/`; do not edit it.
[configuration.md](configuration.md) describes how configurations are composed.

A default such as `= lr` follows that key. A key with the default "required" must be set. If a section has several
tables, the chosen option determines which one applies. Limits are shown unless they are those of the libraries: 32
bits for lengths, steps and seeds, fp32 for rates.

## Options
"""


def build_page() -> str:
    """Returns the page as Markdown."""
    lines = [HEAD]
    for group in list_config_groups():
        rows = [
            (f"`{name}`", read_config_description(file))
            for name, file in sorted(list_config_options(group, [CONF_DIR]).items())
        ]
        lines += [f"### {group}=\n", *format_markdown_table(("option", "description"), rows), ""]
    lines += ["## krill-train, krill-preprocess, krill-tokenizer\n", _get_description(schema.TrainConfig)]
    lines += [
        *_format_keys(schema.TrainConfig, "", compose_config("train", []), {name for name, _ in SECTIONS}),
        "",
    ]
    for section, kinds in SECTIONS:
        lines.append(f"### {section}\n")
        if section == "data":
            lines += _format_shared_data_keys()
        for kind, option in kinds:
            values = OmegaConf.select(compose_config("train", [option]), section) if option else None
            description = (
                f"{_get_description(kind)[:-1]} Defaults of `{option}`:\n"
                if option in _list_options(section)
                else _get_description(kind)
            )
            if section == "data.filters[]":
                description = f"`name: {_get_rule_name(kind)}` {description[0].lower()}{description[1:]}"
            prefix = PREFIXES.get(kind, f"{section}.")
            lines += [description, *_format_keys(kind, prefix, values, _get_shared_keys(kind, values)), ""]
    lines += [
        "## krill-inspect\n",
        f"{_get_description(schema.InspectConfig)[:-1]} Its keys in addition to those above:\n",
    ]
    inspect, train_keys = compose_config("inspect", []), set(schema.TrainConfig.model_fields)
    lines += [*_format_keys(schema.InspectConfig, "", inspect, train_keys), ""]
    planned = compose_config("plan", [])
    lines += [
        "## krill-plan\n",
        f"{_get_description(schema.PlanConfig)[:-1]} Its keys in addition to those of krill-train:\n",
        *_format_keys(schema.PlanConfig, "", planned, (train_keys - {"dry_run"}) | {"plan"}),
        *_format_keys(schema.PlanOptionsConfig, "plan.", planned.plan)[2:],
        "",
    ]
    for command in ("infer", "evaluate", "export"):
        kind, values = COMMAND_SCHEMAS[command], compose_config(command, [])
        lines += [f"## krill-{command}\n", _get_description(kind)]
        lines += _format_keys(kind, "", values, {"model", "tokenizer", "evaluation"})
        if command == "evaluate":
            lines += _format_keys(schema.EvaluationConfig, "evaluation.", values.evaluation)[2:]
        lines += _format_keys(schema.ModelPathConfig, "model.", values.model)[2:]
        lines += [*_format_keys(schema.TokenizerPathConfig, "tokenizer.", values.tokenizer)[2:], ""]
    served = compose_config("serve", [])
    unused = {"model", "tokenizer", "name", "sweep", "detach", "serve"}
    lines += [
        "## krill-serve\n",
        f"{_get_description(schema.ServeConfig)[:-1]} `model` and `tokenizer` as above.\n",
        *_format_keys(schema.ServeConfig, "", served, unused),
    ]
    lines += _format_keys(schema.ServerConfig, "serve.", served.serve, {"limits"})[2:]
    lines += _format_keys(schema.LimitsConfig, "serve.limits.", served.serve.limits)[2:]
    return "\n".join(lines).rstrip() + "\n"


def _format_shared_data_keys() -> list[str]:
    """Returns the table of the keys that every source has, including data.minhash."""
    return [
        "Every source has these keys; the tables below contain the values that an option of `data=` changes.\n",
        *_format_keys(schema.data._BaseDataConfig, "data.", SHARED_DATA, {"name", "minhash"}),
        *_format_keys(schema.MinHashConfig, "data.minhash.", SHARED_DATA.minhash)[2:],
        "",
    ]


def _get_shared_keys(kind: type[BaseModel], values: DictConfig | None) -> set[str]:
    """Returns the keys of `kind` without a row: those equal to a shared key, or in the line above the table."""
    if issubclass(kind, schema.data._BaseDataConfig):
        return {str(key) for key, value in SHARED_DATA.items() if values is None or values[key] == value}
    return {"name"} if kind in FILTERS else set()


def _get_rule_name(kind: type[BaseModel]) -> str:
    return get_args(kind.model_fields["name"].annotation)[0]


def _list_options(section: str) -> set[str | None]:
    return {f"{section}={name}" for name in list_config_options(section, [CONF_DIR])}


def _get_description(kind: type[BaseModel]) -> str:
    return " ".join((kind.__doc__ or "").split()) + "\n"


def _format_keys(
    kind: type[BaseModel], prefix: str, values: DictConfig | None, excluded: set[str] | None = None
) -> list[str]:
    properties = kind.model_json_schema()["properties"]
    rows = []
    for name, field in kind.model_fields.items():
        key = field.alias or name
        if key in (excluded or ()):
            continue
        meaning = " ".join((field.description or "").split()).replace("<", "&lt;")
        default = _format_default(field, key, values)
        rows.append((f"`{prefix}{key}`", _format_type(properties[key]), default, meaning))
    return format_markdown_table(("key", "type", "default", "description"), rows)


def _format_default(field: FieldInfo, key: str, values: DictConfig | None) -> str:
    if values is None or key not in values:
        return (
            "required"
            if field.is_required()
            else f"`{_format_value(field.get_default(call_default_factory=True))}`"
        )
    if OmegaConf.is_missing(values, key):
        return "required"
    unresolved: Any = OmegaConf.to_container(values, resolve=False)
    raw = unresolved[key]
    if isinstance(raw, str) and (computed := re.match(r"\$\{krill\.(?:\w+_by_size|muon_\w+):", raw)):
        return "derived" if "muon_" in computed[0] else "by `rule`"
    source = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    return f"= `{source[1]}`" if source else f"`{_format_value(values[key])}`"


def _format_value(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_format_value(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_type(node: dict[str, Any]) -> str:
    """Returns the type of a key in words, from its JSON schema."""
    options = node.get("anyOf") or ("discriminator" not in node and node.get("oneOf"))
    if options:
        return " or ".join(map(_format_type, options))
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "$ref" in node or "oneOf" in node:
        return "section"
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}: {_format_type(node['prefixItems'][0])}"
    if node.get("type") == "array":
        return f"list of {_format_type(node['items'])}".replace("section", "sections")
    return " ".join([_TYPE_NAMES[node["type"]], *_format_bounds(node)])


_TYPE_NAMES = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}


def _format_bounds(node: dict[str, Any]) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    largest = {
        MAX_INT,
        MAX_COUNT,
        MAX_FLOAT,
        MAX_PROCESSES,
        2**32,
    }  # what libraries take, said once on the page
    parts = [
        f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node and node[key] not in largest
    ]
    if parts:
        yield ", ".join(parts)


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
