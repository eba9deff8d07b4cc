"""Builds the model card (README.md beside the weights) from the run's record: model, data, training, results.

It may be published, so it names files, but not folders of this machine.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import yaml

from krill.config.schema import (
    CustomModelConfig,
    CustomOptimizerConfig,
    DataConfig,
    Filter,
    HubDataConfig,
    ModelConfig,
    PretrainedModelConfig,
    PythonDocsDataConfig,
)
from krill.config.secrets import mask_secrets
from krill.evaluation.model_index import build_validation_results, format_front_matter
from krill.runs.json_lines import read_metrics, read_validations
from krill.runs.record import collect_versions, read_git_state
from krill.tables import format_markdown_table
from krill.terminal import escape_control_characters
from krill.training.metrics.evaluate import Baselines
from krill.training.setup import RunSetup

MAX_CURVE_ROWS = 12

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def build_model_card(
    setup: RunSetup, metrics: dict[str, Any], baselines: Baselines | None, parameters: int
) -> str:
    """Returns the card as Markdown with the Hub's YAML front matter.

    Args:
        setup: the setup of the run.
        metrics: its final metrics.
        baselines: the baselines of the validation rows; None without validation.
        parameters: the number of parameters of the model.
    """
    parts = [
        f"# {_escape(setup.config.name)}",
        describe_origin(setup.config.model),
        _format_table("Model", _describe_model(setup, parameters)),
        _format_data(setup),
        _format_table("Training", _describe_training(setup, metrics)),
        _format_results(setup, metrics, baselines),
        _format_curve(setup),
        _format_config(setup),
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        'generate = pipeline("text-generation", "<this folder or repository>")\n```',
    ]
    head = format_front_matter(
        build_front_matter(setup.config.data),
        setup.config.name,
        build_validation_results(setup.config.data, metrics) if baselines is not None else [],
    )
    return head + "\n\n".join(part for part in parts if part) + "\n"


def build_front_matter(data: DataConfig) -> dict[str, Any]:
    """Returns the Hub's metadata, as far as krill knows it: not the licence, nor the language of files."""
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["krill"],
    }
    if isinstance(data, PythonDocsDataConfig):
        head["language"] = ["en"]
    if isinstance(data, HubDataConfig):
        paths = dict.fromkeys(dataset.path for dataset in data.datasets)
        if ids := [path for path in paths if _HUB_ID.fullmatch(path) and not Path(path).exists()]:
            head["datasets"] = ids
    return head


def describe_origin(model: ModelConfig) -> str:
    """Returns the sentence that names the origin of the weights."""
    if isinstance(model, PretrainedModelConfig):
        return f"A language model, trained with krill from the weights of {_escape(_strip_folders(model.from_))}."
    return "A language model, pretrained from scratch with krill."


def _describe_model(setup: RunSetup, parameters: int) -> dict[str, Any]:
    model = setup.config.model
    rows: dict[str, Any] = {"family": model.family, "parameters": f"{parameters:,}"}
    if not isinstance(model, CustomModelConfig):
        rows |= _strip_folders(model.model_dump(by_alias=True, exclude={"name"}))
    tokenizer = _strip_folders(setup.config.tokenizer.path) or setup.config.tokenizer.name
    return rows | {
        "tokenizer": f"{tokenizer}, signature {setup.tokenizer.signature[:16]}",
        "vocabulary": setup.tokenizer.vocab_size,
    }


def _format_data(setup: RunSetup) -> str:
    splits = setup.store.manifest["splits"]
    rows = [
        (
            _escape(PurePath(source).name),
            *(f"{counts[key]:,}" for key in ("documents", "tokens", "text_bytes")),
        )
        for source, counts in splits["train"]["by_source"].items()
    ]
    table = format_markdown_table(("source", "documents", "tokens", "bytes"), rows)
    validation = f"{splits['validation']['tokens']:,} tokens are held out for validation."
    return "\n".join([
        _format_table("Data", _describe_data(setup.config.data)), "", *table, "",
        f"{validation} Signature of the tokens: `{setup.store.signature[:16]}`.",
    ])  # fmt: skip


def _describe_data(data: DataConfig) -> dict[str, Any]:
    """Returns the rules that chose the documents, and the weights of sources that do not count once."""
    minhash = data.minhash
    similar = f"dropped from a similarity of {minhash.threshold}, {minhash.unit} {minhash.size}-grams"
    rows: dict[str, Any] = {
        "data": data.name,
        "filters": ", ".join(map(_describe_filter, data.filters)) or "none",
        "near duplicates": similar if minhash.threshold is not None else "kept",
        "normalization": data.normalize,
        "personal data": data.pii,
        "document length": f"at least {data.min_chars} characters, {data.min_tokens} tokens"
        + (f"; at most {data.max_tokens} tokens" if data.max_tokens else ""),
    }
    entries: list[Any] = [*getattr(data, "paths", []), *getattr(data, "datasets", [])]
    if weights := [f"{_strip_folders(entry.path)} × {entry.weight:g}"
                   for entry in entries if getattr(entry, "weight", 1.0) != 1.0]:  # fmt: skip
        rows["weights"] = ", ".join(weights)
    return rows


def _describe_filter(rule: Filter) -> str:
    thresholds = _strip_folders(rule.model_dump(mode="json", exclude={"name"}))
    values = ", ".join(f"{key}={value}" for key, value in thresholds.items())
    return f"{rule.name} ({values})" if values else rule.name


def _describe_training(setup: RunSetup, metrics: dict[str, Any]) -> dict[str, Any]:
    config, optimizer, step = setup.config, setup.config.optimizer, metrics["step"]
    rows = {
        "steps": f"{step:,} of {setup.tokens_per_step:,} tokens: {setup.epochs_at(step):.2f} epochs",
        "sequence length": config.sequence_len,
        "packing": f"{config.packing}, attention within documents",
        "optimizer": "custom" if isinstance(optimizer, CustomOptimizerConfig) else optimizer.name,
        "learning rate": f"{config.lr:g}, {config.scheduler.name}",
        "weight decay": optimizer.weight_decay,
        "precision": f"{setup.precision}, fp32 weights; exported as {config.export_dtype}",
        "device": setup.device.type,
        "seed": config.seed,
    }
    if reason := metrics.get("stopped_by"):
        rows["ended"] = reason
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in collect_versions().items())
    git = read_git_state()
    return rows | ({"commit": git["commit"] + (" (changed)" if git["dirty"] else "")} if git else {})


def _format_results(setup: RunSetup, metrics: dict[str, Any], baselines: Baselines | None) -> str:
    if baselines is None:
        return ""
    rows = []
    last = read_validations(setup.folder)[-1]
    for source in setup.store.sources:
        if f"eval_loss/{source}" in last:
            loss, bits = last[f"eval_loss/{source}"], last[f"eval_bits_per_byte/{source}"]
            rows.append((_escape(source), f"{loss:.4f}", f"{bits:.4f}"))
    table = format_markdown_table(("source", "validation loss", "bits per byte"), rows)
    return "\n".join([
        "## Results", "",
        f"Validation loss {metrics['eval_loss']:.4f} nats per token, {metrics['eval_bits_per_byte']:.4f} bits per "
        f"byte. Baselines: uniform {baselines.uniform:.4f} nats, unigram {baselines.unigram:.4f} nats.",
        *(["", *table] if rows else []),
    ])  # fmt: skip


def _format_curve(setup: RunSetup) -> str:
    """Returns a table of the losses at the validated steps, or at the logged steps of a run without validation."""
    validations = {line["step"]: line for line in read_validations(setup.folder)}
    logged = {line["step"]: line for line in read_metrics(setup.folder) if "loss" in line}
    rows = [
        (
            f"{step:,}",
            f"{line['tokens']:,}",
            _format_value(logged, step, "loss"),
            _format_value(validations, step, "eval_loss"),
            _format_value(validations, step, "eval_bits_per_byte"),
        )
        for step, line in _thin_curve(sorted((validations or logged).items()))
    ]
    header = ("step", "tokens", "training loss", "validation loss", "bits per byte")
    return "\n".join(["## Curve", "", *format_markdown_table(header, rows)])


def _format_value(lines: dict[int, dict[str, Any]], step: int, key: str) -> str:
    return f"{lines[step][key]:.4f}" if step in lines else ""


def _thin_curve(curve: list[Any]) -> Iterable[Any]:
    """Returns at most MAX_CURVE_ROWS rows at even distances, including the last one."""
    every = -(-len(curve) // MAX_CURVE_ROWS)
    return curve[::-1][:: every or 1][::-1]


def _format_config(setup: RunSetup) -> str:
    """Returns the configuration that determines the result, as YAML."""
    values = setup.config.model_dump(
        mode="json", by_alias=True, exclude=set(setup.config.get_unsigned_keys()) - {"batch"}
    )
    text = yaml.safe_dump(_strip_folders(mask_secrets(values)), allow_unicode=True, sort_keys=False)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"<details><summary>Configuration</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"


def _strip_folders(value: Any) -> Any:
    """Replaces paths of this machine by their last component."""
    if isinstance(value, dict):
        return {key: _strip_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strip_folders(item) for item in value]
    is_path = isinstance(value, str) and value.startswith(("/", "./", "../", "~"))
    return PurePath(value).name if is_path else value


def _format_table(title: str, values: dict[str, Any]) -> str:
    rows = [(key, _escape(str(value))) for key, value in values.items()]
    return "\n".join([f"## {title}", "", *format_markdown_table(("", ""), rows)])


def _escape(text: str) -> str:
    """Returns Markdown that displays `text`: without HTML, links, emphasis, line ends and control characters."""
    text = re.sub(r"([\\`*\[\]~])", r"\\\1", escape_control_characters(text))
    return html.escape(text, quote=False)
