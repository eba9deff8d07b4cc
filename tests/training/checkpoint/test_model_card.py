"""The model card agrees with the run's record and shows no paths of this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from compositions import load_config
from huggingface_hub import ModelCard

from krill.config.schema import HubDataConfig
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.checkpoint.model_card import build_front_matter, describe_origin


@pytest.fixture(scope="session")
def card(reference_run: Callable[..., Path]) -> tuple[str, Path]:
    run = reference_run("steps=30", "eval_every=1", "save_every=100", "name=한국어")
    return (run / "model" / "README.md").read_text(encoding="utf-8"), run


def test_card_agrees_with_the_record(card: tuple[str, Path]) -> None:
    text, run = card
    status = read_status(run) or {}
    assert text.startswith("---\n")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head.pop("model-index")[0]["name"] == "한국어"
    assert head == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["krill"]}
    results = {result.metric_type: result for result in ModelCard(text).data.eval_results or []}
    assert results.keys() == {"bits_per_byte", "loss"}
    assert results["loss"].metric_value == pytest.approx(status["metrics"]["eval_loss"], abs=1e-5)
    assert results["loss"].dataset_split == "validation"
    assert "# 한국어\n" in text
    assert f"| parameters | {status['parameters']:,} |" in text
    assert "| steps | 30 of 128 tokens:" in text
    assert "| optimizer | muon_krill |" in text
    assert f"Validation loss {status['metrics']['eval_loss']:.4f}" in text
    assert status["data"]["signature"][:16] in text


def test_metadata_has_what_the_configuration_says_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_front_matter(load_config("data=python_docs").data)["language"] == ["en"]
    monkeypatch.chdir(tmp_path)
    Path("local").mkdir()
    data = load_config("data=tiny_korean_100k").data
    assert isinstance(data, HubDataConfig)
    (dataset,) = data.datasets
    entries = [dataset, *(dataset.model_copy(update={"path": path}) for path in ("local", "/a/b", "c4"))]
    head = build_front_matter(data.model_copy(update={"datasets": [*entries, *entries]}))
    assert head["datasets"] == [dataset.path, "c4"]
    assert "language" not in head


def test_a_card_says_from_which_weights_a_model_was_trained() -> None:
    model = load_config("model=pretrained").model
    assert "from scratch" not in describe_origin(model)
    assert "the weights of folder." in describe_origin(model)


def test_curve_is_thinned_and_ends_with_the_last_step(card: tuple[str, Path]) -> None:
    text, run = card
    steps = [int(step) for step in re.findall(r"^\| (\d+) \| [\d,]+ \| \d\.\d+ \|", text, re.MULTILINE)]
    assert len(steps) <= 12
    assert steps[-1] == 30 == read_metrics(run)[-1]["step"]
    assert steps == sorted(steps)


def test_card_has_no_folder_of_this_machine(card: tuple[str, Path], texts: Path) -> None:
    text, run = card
    assert texts.name in text
    assert str(texts.parent) not in text
    assert str(run.parent) not in text


def test_configuration_has_only_the_keys_that_determine_the_result(card: tuple[str, Path]) -> None:
    text, run = card
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    recorded = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert {"lr", "steps", "model", "optimizer", "scheduler", "batch", "seed"} <= shown.keys()
    assert shown == {key: recorded[key] for key in shown}
    assert not {"data", "output", "hub", "log_every"} & shown.keys()


def test_curve_without_validation_has_the_training_loss(krill_train: Any) -> None:
    assert krill_train("data.validation_fraction=0") == 0
    (run,) = krill_train.runs()
    text = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "## Results" not in text
    assert [
        f"| {line['step']} | {line['tokens']} | {line['loss']:.4f} |  |  |" for line in read_metrics(run)
    ] == [
        line for line in text.split("## Curve")[1].splitlines() if line.startswith("| ") and line[2].isdigit()
    ]


def test_names_in_the_card_are_text(krill_train: Any, texts: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>|[a](b)`*\x1b[31m\u2028.jsonl"
    hostile.write_text(texts.read_text().replace("fox", "cat").replace("the", "no"))
    shutil.copy(texts, tmp_path / "a.jsonl")
    entries = f"{{path: a.jsonl, weight: 0.5}}, {{path: '{hostile.name}', weight: 2}}"
    overrides = [f"data.paths=[{entries}]", "steps=1", "name='<b>|'", "tokenizer.vocab_size=330"]
    assert krill_train(*overrides, "filters=web", "data.minhash.threshold=0.9") == 0
    (run,) = krill_train.runs("<b>|")
    text = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "# &lt;b&gt;|\n" in text
    name = r"&lt;img src=x onerror=alert(1)&gt;\|\[a\](b)\`\*\\x1b\[31m\\u2028.jsonl"
    assert text.count(f"| {name} |") == 2
    assert "<img" not in text
    assert "\x1b" not in text
    assert f"| weights | a.jsonl × 0.5, {name} × 2 |" in text
    assert "| near duplicates | dropped from a similarity of 0.9, " in text
    assert re.search(r"\| filters \| \w+ \(\w+=.*\), \w+", text)
    signature = (read_status(run) or {})["tokenizer"]["signature"]
    assert f"| tokenizer | bpe_330, signature {signature[:16]} |" in text


def test_results_list_each_source(krill_train: Any, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(texts.read_text().replace("fox", "cat").replace("the", "no"))
    assert krill_train(f"data.paths=[{texts},{tmp_path / 'other.jsonl'}]", "tokenizer.vocab_size=330") == 0
    (run,) = krill_train.runs()
    last = read_metrics(run)[-1]
    text = (run / "model" / "README.md").read_text(encoding="utf-8")
    for source in (texts, tmp_path / "other.jsonl"):
        assert f"| {source.name} | {last[f'eval_loss/{source.name}']:.4f} |" in text
