"""The model card, README.md beside the weights: what was trained, on what, how, and what came out, from the record.

It may be published, so it names files and no folders of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import yaml

from krill.config.schema import CustomModelConfig, CustomOptimizerConfig
from krill.runs.record import collect_versions, read_git_state, read_metrics, read_validations
from krill.training.metrics.evaluate import Baselines
from krill.training.setup import RunSetup

MAX_CURVE_ROWS = 12

FRONT_MATTER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- krill
---
"""


def build_model_card(
    setting: RunSetup, metrics: dict[str, Any], points: Baselines | None, parameters: int
) -> str:
    """Markdown with the Hub's YAML head. `metrics` as the run ends with, `parameters` those of the model."""
    parts = [
        f"# {setting.config.name}",
        "A language model, pretrained from scratch with krill.",
        _format_table("Model", _describe_model(setting, parameters)),
        _format_data(setting),
        _format_table("Training", _describe_training(setting, metrics)),
        _format_results(setting, metrics, points),
        _format_curve(setting),
        _format_config(setting),
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        'generate = pipeline("text-generation", "<this folder or repository>")\n```',
    ]
    return FRONT_MATTER + "\n\n".join(part for part in parts if part) + "\n"


def _describe_model(setting: RunSetup, parameters: int) -> dict[str, Any]:
    model = setting.config.model
    told: dict[str, Any] = {"family": model.family, "parameters": f"{parameters:,}"}
    if not isinstance(model, CustomModelConfig):
        told |= _strip_folders(
            model.model_dump(by_alias=True, exclude=set(setting.config.unsigned_keys()) - {"batch"})
        )
    return told | {"vocabulary": setting.tokenizer.vocab_size}


def _format_data(setting: RunSetup) -> str:
    splits = setting.store.manifest["splits"]
    rows = [
        (PurePath(source).name, counts["documents"], counts["tokens"], counts["text_bytes"])
        for source, counts in splits["train"]["by_source"].items()
    ]
    lines = [f"| {name} | {documents:,} | {tokens:,} | {size:,} |" for name, documents, tokens, size in rows]
    head = "## Data\n\n| source | documents | tokens | bytes |\n|---|---|---|---|"
    held = f"{splits['validation']['tokens']:,} tokens are held out for validation."
    return "\n".join([head, *lines, "", f"{held} Signature of the tokens: `{setting.store.signature[:16]}`."])


def _describe_training(setting: RunSetup, metrics: dict[str, Any]) -> dict[str, Any]:
    config, optimizer, step = setting.config, setting.config.optimizer, metrics["step"]
    told = {
        "steps": f"{step:,} of {setting.tokens_per_step:,} tokens: {setting.epochs_at(step):.2f} epochs",
        "sequence length": config.sequence_len,
        "packing": f"{config.packing}, attention within documents",
        "optimizer": "custom" if isinstance(optimizer, CustomOptimizerConfig) else optimizer.name,
        "learning rate": f"{config.lr:g}, {config.scheduler.name}",
        "weight decay": optimizer.weight_decay,
        "precision": f"{setting.precision}, fp32 weights; those here are {config.export_dtype}",
        "device": setting.device.type,
        "seed": config.seed,
    }
    if why := metrics.get("stopped_by"):
        told["ended"] = why
    told["versions"] = ", ".join(f"{name} {version}" for name, version in collect_versions().items())
    git = read_git_state()
    return told | ({"commit": git["commit"] + (" (changed)" if git["dirty"] else "")} if git else {})


def _format_results(setting: RunSetup, metrics: dict[str, Any], points: Baselines | None) -> str:
    if points is None:
        return ""
    lines = ["", "| source | validation loss | bits per byte |", "|---|---|---|"]
    last = read_validations(setting.folder)[-1]
    for source in setting.store.sources:
        if f"eval_loss/{source}" in last:
            loss, bits = last[f"eval_loss/{source}"], last[f"eval_bits_per_byte/{source}"]
            lines.append(f"| {source} | {loss:.4f} | {bits:.4f} |")
    return "\n".join([
        "## Results", "",
        f"Validation loss {metrics['eval_loss']:.4f} nats per token, {metrics['eval_bits_per_byte']:.4f} bits per "
        f"byte. A uniform guess has {points.uniform:.4f} nats, token frequencies alone {points.unigram:.4f}.",
        *(lines if len(lines) > 3 else []),
    ])  # fmt: skip


def _format_curve(setting: RunSetup) -> str:
    """The losses on the way: of the steps that were validated, or of logged ones where none was."""
    held = {line["step"]: line for line in read_validations(setting.folder)}
    trained = {line["step"]: line for line in read_metrics(setting.folder) if "loss" in line}
    lines = [
        f"| {step:,} | {line['tokens']:,} | {_format_value(trained, step, 'loss')} | {_format_value(held, step, 'eval_loss')} "
        f"| {_format_value(held, step, 'eval_bits_per_byte')} |"
        for step, line in _thin_curve(sorted((held or trained).items()))
    ]
    head = "| step | tokens | training loss | validation loss | bits per byte |\n|---|---|---|---|---|"
    return "\n".join(["## Curve", "", head, *lines])


def _format_value(lines: dict[int, dict[str, Any]], step: int, key: str) -> str:
    return f"{lines[step][key]:.4f}" if step in lines else ""


def _thin_curve(curve: list[Any]) -> Iterable[Any]:
    """At most CURVE_LINES, evenly, the last one included."""
    every = -(-len(curve) // MAX_CURVE_ROWS)
    return curve[::-1][:: every or 1][::-1]


def _format_config(setting: RunSetup) -> str:
    """What determines the result, as YAML; the text is told above."""
    values = setting.config.model_dump(
        mode="json", by_alias=True, exclude=set(setting.config.unsigned_keys()) - {"batch"}
    )
    text = yaml.safe_dump(_strip_folders(values), allow_unicode=True, sort_keys=False)
    return f"<details><summary>Configuration</summary>\n\n```yaml\n{text}```\n\n</details>"


def _strip_folders(value: Any) -> Any:
    """The same, with the last part only of paths on this machine."""
    if isinstance(value, dict):
        return {key: _strip_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strip_folders(item) for item in value]
    is_path = isinstance(value, str) and value.startswith(("/", "./", "../", "~"))
    return PurePath(value).name if is_path else value


def _format_table(title: str, values: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])
