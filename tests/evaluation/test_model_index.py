"""Scores in the model card, as the Hub reads them: they are added and replaced, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from task_results import make_choices_result, make_text_result

from krill.evaluation.model_index import format_front_matter, update_model_index

BODY = "# 이름\n\nWritten by a user: --- {x}\n"


def write_card(folder: Path, *results: EvalResult, head: str | None = None) -> Path:
    file = folder / "README.md"
    front_matter = format_front_matter({"license": "mit", "tags": ["krill"]}, "이름", results)
    file.write_text((front_matter if head is None else head) + BODY, encoding="utf-8")
    return file


def read_values(file: Path) -> dict[tuple[str, str | None, str], float]:
    results = ModelCard.load(file).data.eval_results or []
    return {(one.dataset_type, one.dataset_config, one.metric_type): one.metric_value for one in results}


def test_scores_are_added_and_replaced(tmp_path: Path) -> None:
    own = EvalResult("text-generation", "theirs", "Theirs", "accuracy", 0.25)
    file = write_card(tmp_path, own)
    update_model_index(
        tmp_path, "run", "books", [make_choices_result([1, 0, 1, 1]), make_text_result([1.5, 2.5])]
    )
    assert read_values(file) == {
        ("theirs", None, "accuracy"): 0.25,
        ("english_pairs", "english_pairs", "accuracy"): 0.75,
        ("books", "text", "bits_per_byte"): 2.0,
    }
    update_model_index(tmp_path, "run", "books", [make_choices_result([1, 1, 1, 1])])
    assert read_values(file)["english_pairs", "english_pairs", "accuracy"] == 1.0
    assert len(read_values(file)) == 3
    card = ModelCard.load(file)
    assert card.data.model_name == "이름"
    assert (card.data.license, card.data.tags) == ("mit", ["krill"])
    assert file.read_text(encoding="utf-8").endswith(f"---\n{BODY}")


def test_a_card_of_an_earlier_version_gets_an_index(tmp_path: Path) -> None:
    file = write_card(tmp_path)
    update_model_index(tmp_path, "run", "books", [make_choices_result([1, 0])])
    assert ModelCard.load(file).data.model_name == "run"
    assert len(read_values(file)) == 1


def test_the_front_matter_of_a_card_with_a_bom_is_found(tmp_path: Path) -> None:
    file = write_card(tmp_path)
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    update_model_index(tmp_path, "run", "books", [make_choices_result([1, 0])])
    assert ModelCard.load(file).data.license == "mit"
    assert file.read_text(encoding="utf-8").count("license: mit") == 1


@pytest.mark.parametrize("head", ["---\nmodel-index: 3\n---\n", "---\n[a\n---\n", "---\n- a list\n---\n"])
def test_a_card_that_cannot_be_read_stays_as_it_is(
    tmp_path: Path, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_card(tmp_path, head=head)
    update_model_index(tmp_path, "run", "books", [make_choices_result([1, 0])])
    assert file.read_text(encoding="utf-8") == head + BODY
    assert "README.md is not changed" in caplog.text


def test_a_removed_card_is_not_made_again(tmp_path: Path) -> None:
    update_model_index(tmp_path, "run", "books", [make_choices_result([1, 0])])
    assert not list(tmp_path.iterdir())
