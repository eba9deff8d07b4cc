"""Write docs/reference.md from the schema and the composed defaults: python docs/make_reference.py

The sentences are those beneath the fields of krill/config/schema.py. tests/e2e/test_docs.py holds the committed file
to what this makes.
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
            (schema.MuonConfig, "optimizer=muon_moonlight"),
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
    ("hub", [(schema.HubConfig, "hardware=auto")]),
]
"""Section → its classes, each with the option whose values are shown as defaults."""

PREFIXES = {schema.FileEntryConfig: "data.paths[].", schema.HubDatasetConfig: "data.datasets[]."}
"""Classes that are no section of their own, but entries of a list in one."""

RULES = OmegaConf.load(CONF_DIR / "data" / "_rules.yaml")
"""What every source shares."""

HEAD = """# Reference

Every key, made by `docs/make_reference.py` from the schema and `conf/`; do not edit it by hand. How configurations
are composed: [configuration.md](configuration.md).

A default such as `= lr` follows that key. "to be set" has no default. Where a section has several tables, the option
that is chosen decides which one holds.

## Options
"""


def text() -> str:
    """The whole page."""
    lines = [HEAD]
    for group in list_config_groups():
        rows = [
            (f"`{name}`", read_config_description(file))
            for name, file in sorted(list_config_options(group, [CONF_DIR]).items())
        ]
        lines += [f"### {group}=\n", *format_markdown_table(("option", "what it is"), rows), ""]
    lines += ["## krill-train, krill-preprocess, krill-tokenizer\n", _doc(schema.TrainConfig)]
    lines += [*_keys(schema.TrainConfig, "", compose_config("train", []), {name for name, _ in SECTIONS}), ""]
    for section, kinds in SECTIONS:
        lines.append(f"### {section}\n")
        if section == "data":
            lines += _shared_by_sources()
        for kind, option in kinds:
            values = OmegaConf.select(compose_config("train", [option]), section) if option else None
            shown = (
                f"{_doc(kind)[:-1]} Defaults of `{option}`:\n" if option in _options(section) else _doc(kind)
            )
            if section == "data.filters[]":
                shown = f"`name: {_name(kind)}` {shown[0].lower()}{shown[1:]}"
            prefix = PREFIXES.get(kind, f"{section}.")
            lines += [shown, *_keys(kind, prefix, values, _said_before(kind, values)), ""]
    lines += ["## krill-inspect\n", f"{_doc(schema.InspectConfig)[:-1]} Its keys beside those above:\n"]
    inspect, above = compose_config("inspect", []), set(schema.TrainConfig.model_fields)
    lines += [*_keys(schema.InspectConfig, "", inspect, above), ""]
    lines += ["## krill-infer\n", _doc(schema.InferConfig)]
    infer = compose_config("infer", [])
    lines += [*_keys(schema.InferConfig, "", infer, {"model", "tokenizer"})]
    lines += _keys(schema.ModelPathConfig, "model.", infer.model)[2:]
    lines += _keys(schema.TokenizerPathConfig, "tokenizer.", infer.tokenizer)[2:]
    return "\n".join(lines).rstrip() + "\n"


def _shared_by_sources() -> list[str]:
    """The keys that every source has, those of data.minhash among them."""
    return [
        "Every source has these keys; what an option of `data=` sets otherwise stands in its own table.\n",
        *_keys(schema._BaseDataConfig, "data.", RULES, {"name", "minhash"}),
        *_keys(schema.MinHashConfig, "data.minhash.", RULES.near)[2:],
        "",
    ]


def _said_before(kind: type[BaseModel], values: DictConfig | None) -> set[str]:
    """Keys whose row would say again what that of all sources, or the line above the table, says."""
    if issubclass(kind, schema._BaseDataConfig):
        return {str(key) for key, value in RULES.items() if values is None or values[key] == value}
    return {"name"} if kind in FILTERS else set()


def _name(kind: type[BaseModel]) -> str:
    return get_args(kind.model_fields["name"].annotation)[0]


def _options(section: str) -> set[str | None]:
    return {f"{section}={name}" for name in list_config_options(section, [CONF_DIR])}


def _doc(kind: type[BaseModel]) -> str:
    return " ".join((kind.__doc__ or "").split()) + "\n"


def _keys(
    kind: type[BaseModel], prefix: str, values: DictConfig | None, without: set[str] | None = None
) -> list[str]:
    properties = kind.model_json_schema()["properties"]
    rows = []
    for name, field in kind.model_fields.items():
        key = field.alias or name
        if key in (without or ()):
            continue
        sentence = " ".join((field.description or "").split()).replace("<", "&lt;")
        default = _default(field, key, values)
        rows.append((f"`{prefix}{key}`", _type(properties[key]), default, sentence))
    return format_markdown_table(("key", "type", "default", "meaning"), rows)


def _default(field: FieldInfo, key: str, values: DictConfig | None) -> str:
    if values is None or key not in values:
        return (
            "to be set" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
        )
    if OmegaConf.is_missing(values, key):
        return "to be set"
    raw = OmegaConf.to_container(values, resolve=False)[key]
    followed = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    return f"= `{followed[1]}`" if followed else f"`{_yaml(values[key])}`"


def _yaml(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(node: dict[str, Any]) -> str:
    """The type of a key in words, from its JSON schema."""
    if "anyOf" in node:
        return " or ".join(map(_type, node["anyOf"]))
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "$ref" in node or "oneOf" in node:
        return "section"
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}: {_type(node['prefixItems'][0])}"
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}".replace("section", "sections")
    return " ".join([_WORDS[node["type"]], *_bounds(node)])


_WORDS = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}


def _bounds(node: dict[str, Any]) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    parts = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    if parts:
        yield ", ".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
