"""lm-eval's tasks on a krill model: the numbers of lm-eval's own HFLM, and one line where they cannot be had."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rank_threads import run_ranks
from small_models import make_small_model
from stores import write_store

from krill.config.paths import CONF_DIR
from krill.evaluation import lm_eval_tasks
from krill.evaluation.bundled import build_pair_task
from krill.evaluation.evaluate import TASKS, evaluate_task, expand_tasks, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.lm_eval_evaluator import LmEvalEvaluator
from krill.evaluation.lm_eval_export import export_task, export_texts
from krill.evaluation.lm_eval_texts import build_document_text
from krill.evaluation.notes import format_notes
from krill.evaluation.rank_share import RankShare
from krill.evaluation.results import TaskResult
from krill.evaluation.subject import Subject
from krill.evaluation.task import Item, Task
from krill.evaluation.token_scorer import TokenScorer, ignore_progress
from krill.tokenizer.artifact import TokenizerFolder

lm_eval = pytest.importorskip("lm_eval", reason="the extra eval is not installed")

CONTEXT = 256
LIMIT = 2
"""Pairs of each phenomenon."""
SETTINGS = EvaluationSettings(None, 10**6, 0.5)
TEXTS = ["The garden was quiet.", "조용한 정원이었다. " * 30, "a"]
CLOZE = Task(
    "ends",
    "en",
    "",
    tuple(
        Item(
            f"{'the river was long and ' * 4 * count}the garden was ",
            ("quiet", "green and quiet", "a"),
            count % 3,
        )
        for count in range(5)
    ),
)
"""Contexts that end with a space, the longest beyond the context of the model."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with tasks, which is all that lm-eval finds."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    for name in ("english_pairs", "korean_pairs"):
        export_task(build_pair_task(name, LIMIT), folder)
    export_task(CLOZE, folder)
    export_texts("text", TEXTS, folder)
    group = "group: krill_both\ntask: [krill_ends, krill_english_pairs]\n"
    score = "aggregate_metric_list:\n- metric: acc\n  weight_by_size: true\n"
    (folder / "both.yaml").write_text(group + score)
    (folder / "all.yaml").write_text(group.replace("both", "all"))
    (folder / "open.yaml").write_text(
        (folder / "text.yaml").read_text().replace("krill_text", "krill_open").split("output_type")[0]
        + "output_type: generate_until\ndoc_to_text: 'after {{text}}'\ndoc_to_target: text\n"
        "generation_kwargs: {until: [' '], max_gen_toks: 5}\n"
        "metric_list:\n- {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    )
    (folder / "gaps.yaml").write_text(
        (folder / "ends.yaml").read_text().replace("krill_ends", "krill_gaps").split("output_type")[0]
        + "output_type: multiple_choice\ndoc_to_text: answer\ndoc_to_choice: choices\ndoc_to_target: is long\n"
        "metric_list:\n- {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    mutual = (folder / "ends.yaml").read_text().replace("krill_ends", "krill_mutual")
    (folder / "mutual.yaml").write_text(mutual.replace("acc_bytes", "acc_mutual_info"))
    (folder / "absent.yaml").write_text("task: krill_absent\ndataset_path: krill/absent\ndataset_name: ko\n")
    lm_eval_tasks.load_tasks.cache_clear()
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(lm_eval_tasks, "open_task_manager", lambda: manager)
        yield folder


@pytest.fixture(scope="module")
def model(tokenizer: TokenizerFolder) -> Any:
    """Has a context in which each sentence of the minimal pairs fits: HFLM refuses a longer choice."""
    model = make_small_model(tokenizer).eval()
    model.config.max_position_embeddings = CONTEXT
    return model


@pytest.fixture(scope="module")
def subject(model: Any, tokenizer: TokenizerFolder) -> Subject:
    return Subject("tiny", model, tokenizer, None)


def evaluate(name: str, subject: Subject, settings: EvaluationSettings = SETTINGS) -> TaskResult:
    return evaluate_task(LmEvalEvaluator(name), subject, settings)


def evaluate_with_hflm(name: str, subject: Subject, folder: Path, **options: Any) -> dict[str, Any]:
    """Returns the results of lm-eval's own class for Hugging Face models."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    path = folder / "model"
    if not path.is_dir():
        subject.model.save_pretrained(path)
        subject.tokenizer.copy_to(path, CONTEXT)
    loaded = lm_eval_tasks.load_tasks(name, None)
    found: dict[str, Any] = evaluate(
        HFLM(str(path), device="cpu", dtype="float32", batch_size=8, **options), loaded, bootstrap_iters=0
    )
    return found


@pytest.mark.parametrize("name", ["krill_english_pairs", "krill_korean_pairs", "krill_ends"])
def test_logprobs_are_those_of_hflm(name: str, subject: Subject, tasks: Path) -> None:
    found = evaluate_with_hflm(name, subject, tasks)
    expected = [answer[0][0] for sample in found["samples"][name] for answer in sample["resps"]]
    from krill.evaluation.lm_eval_model import SubjectLM

    loaded = lm_eval_tasks.load_tasks(name, None)["tasks"][name]
    answers = SubjectLM(subject, ignore_progress).loglikelihood(loaded.instances)
    np.testing.assert_allclose([answer[0] for answer in answers], expected, atol=1e-4, rtol=0)
    result = evaluate(name, subject)
    for score in result.scores:
        assert score.value == pytest.approx(found["results"][name][f"{score.metric},none"])
        assert score.chance == pytest.approx(1 / 3 if name == "krill_ends" else 1 / 2)


def test_exported_tasks_have_the_scores_of_their_items(subject: Subject, tasks: Path) -> None:
    by_lm_eval = evaluate("krill_english_pairs", subject).main_score
    own = evaluate_task(find_evaluator("english_pairs"), subject, EvaluationSettings(LIMIT, 1, 0)).main_score
    assert (by_lm_eval.value, by_lm_eval.low, by_lm_eval.items) == (own.value, own.low, own.items)


def test_bits_per_byte_are_those_of_hflm_and_the_loss_of_a_byte_model(
    subject: Subject, tasks: Path, tmp_path: Path
) -> None:
    score = evaluate("krill_text", subject).main_score
    # lm-eval scores a bos that the tokenizer adds as if it were text
    found = evaluate_with_hflm("krill_text", subject, tasks, add_bos_token=False)
    assert score.value == pytest.approx(found["results"]["krill_text"]["bits_per_byte,none"], rel=1e-5)
    store = write_store(tmp_path / "s", subject.tokenizer, [], [("text", text) for text in TEXTS])
    own = Subject("tiny", subject.model, subject.tokenizer, store)
    settings = EvaluationSettings(None, 10**6, 1e-9)  # windows that overlap by one token
    text = evaluate_task(find_evaluator("text"), own, settings).main_score
    assert score.value == pytest.approx(text.value, rel=1e-6)
    assert score.value == pytest.approx(text.nats_per_token / math.log(2), rel=1e-6)  # type: ignore[operator]


def test_a_group_has_its_own_score_and_a_row_for_each_task(subject: Subject, tasks: Path) -> None:
    result = evaluate("krill_both", subject)
    assert [(score.name, score.metric) for score in result.scores] == [
        ("", "acc"),
        ("krill_ends", "acc"), ("krill_ends", "acc_bytes"),
        ("krill_english_pairs", "acc"), ("krill_english_pairs", "acc_bytes"),
    ]  # fmt: skip
    outcomes = result.get_outcomes("acc")
    assert result.main_score.items == len(outcomes) == 5 + LIMIT * 26
    assert result.main_score.value == pytest.approx(outcomes.mean())
    assert result.main_score.low is not None
    assert 0 < result.notes["truncated"] < 5  # type: ignore[operator]
    assert expand_tasks(["text", "krill_all", "krill_both", "krill_ends"]) == [
        "text", "krill_ends", "krill_english_pairs", "krill_both",
    ]  # fmt: skip


def test_chance_is_that_of_the_choices_where_each_is_scored_twice(subject: Subject, tasks: Path) -> None:
    """For mutual information lm-eval asks for the probability of each choice also without its context."""
    scores = evaluate("krill_mutual", subject).scores
    assert [score.metric for score in scores] == ["acc", "acc_mutual_info"]
    assert scores[0].chance == pytest.approx(1 / 3)


def test_limit_and_examples_change_the_identity_and_the_items(subject: Subject, tasks: Path) -> None:
    evaluator = LmEvalEvaluator("krill_english_pairs")
    all_settings = [SETTINGS, EvaluationSettings(3, 1, 0), EvaluationSettings(3, 1, 0, few_shot=1)]
    assert len({str(evaluator.identify(settings)) for settings in all_settings}) == 3
    results = [evaluate_task(evaluator, subject, settings) for settings in all_settings]
    assert [result.main_score.items for result in results] == [LIMIT * 26, 3, 3]
    assert len({result.items_hash for result in results}) == 3
    assert results[2].notes["few_shot"] == 1
    assert results[2].items_hash == evaluate_task(evaluator, subject, all_settings[2]).items_hash
    assert results[2].scores != results[1].scores or results[2].notes["truncated"]


def test_answers_are_generated_greedily(subject: Subject, tasks: Path) -> None:
    found = evaluate_with_hflm("krill_open", subject, tasks)
    expected = [sample["resps"][0][0] for sample in found["samples"]["krill_open"]]
    from krill.evaluation.lm_eval_model import SubjectLM

    requests = lm_eval_tasks.load_tasks("krill_open", None)["tasks"]["krill_open"].instances
    answers = SubjectLM(subject, ignore_progress).generate_until(requests)
    assert answers == expected
    assert evaluate("krill_open", subject).main_score.metric == "exact_match"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("krill_english_pairs", build_pair_task("english_pairs", LIMIT).items[1].choices[1]),
        ("krill_ends", f"{CLOZE.items[1].context}green and quiet"),
        ("krill_gaps", "green and quiet is long"),
        ("krill_open", f"after {TEXTS[1]}{TEXTS[1]}".strip()),
        ("krill_text", TEXTS[1].strip()),
    ],
)
def test_a_training_text_would_have_the_question_with_its_answer(
    name: str, expected: str, tasks: Path
) -> None:
    task = lm_eval_tasks.load_tasks(name, None)["tasks"][name]
    text = build_document_text(task, list(task.eval_docs)[1])
    assert text is not None
    assert text.split() == expected.split()
    assert build_document_text(task, {}) is None


def test_items_in_the_training_text_are_counted_and_scored_apart(
    model: Any, tokenizer: TokenizerFolder, tasks: Path, tmp_path: Path
) -> None:
    items = build_pair_task("english_pairs", LIMIT).items
    text = [("a", f"Before. {item.choices[item.answer]} After.") for item in items[::4]]
    text += [("a", item.choices[1 - item.answer]) for item in items[1::4]]
    store = write_store(tmp_path / "store", tokenizer, text, text)
    subject = Subject("tiny", model, tokenizer, store)
    settings = EvaluationSettings(None, 1, 0, contamination=True)
    evaluator = LmEvalEvaluator("krill_english_pairs")
    assert evaluator.identify(settings) != evaluator.identify(SETTINGS)
    result = evaluate("krill_english_pairs", subject, settings)
    assert (result.notes["contaminated"], result.notes["looked_for"]) == (len(items[::4]), len(items))
    correct = result.get_outcomes("acc")
    assert result.notes["score_on_contaminated"] == pytest.approx(correct[::4].mean())
    assert format_notes([result])[-1].startswith(
        f"krill_english_pairs: {len(items[::4])} of {len(items)} items (25.0 %) are in the training text; acc "
    )
    group = evaluate("krill_both", subject, settings)
    assert (group.notes["contaminated"], group.notes["looked_for"]) == (
        len(items[::4]), len(items) + len(CLOZE.items),
    )  # fmt: skip


def test_items_without_an_answer_as_text_are_not_looked_for_and_counted(
    model: Any, tokenizer: TokenizerFolder, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krill.evaluation.lm_eval_evaluator.build_document_text", lambda task, document: None)
    store = write_store(tmp_path / "store", tokenizer, [("a", "text")], [("a", "text")])
    settings = EvaluationSettings(None, 1, 0, contamination=True)
    result = evaluate("krill_ends", Subject("tiny", model, tokenizer, store), settings)
    assert "contaminated" not in result.notes
    assert format_notes([result])[-1] == (
        "krill_ends: 5 items are not looked for in the training text: their task has no text of the answer"
    )


def test_every_rank_has_the_scores_of_all(model: Any, tokenizer: TokenizerFolder, tasks: Path) -> None:
    from krill.evaluation.lm_eval_model import SubjectLM

    loaded = lm_eval_tasks.load_tasks("krill_ends", None)["tasks"]["krill_ends"]
    loaded.build_all_requests()
    loaded.instances.sort(key=lambda request: request.idx)

    def answer(share: RankShare) -> list[tuple[float, bool]]:
        subject = Subject("tiny", model, tokenizer, None, 100, share)
        assert isinstance(subject.scorer, TokenScorer)
        return SubjectLM(subject, ignore_progress).loglikelihood(loaded.instances)

    alone, (first, second) = answer(RankShare()), run_ranks(2, answer)
    assert first == second
    np.testing.assert_allclose(first, alone, atol=2e-5)


def test_a_training_does_not_notice(subject: Subject, tasks: Path) -> None:
    import random

    random.seed(5)
    np.random.seed(5)
    expected = random.Random(5).random(), np.random.RandomState(5).random()
    evaluate("krill_ends", subject)
    assert (random.random(), np.random.random()) == expected


def test_lm_eval_has_the_tasks_of_the_presets() -> None:
    from lm_eval.tasks import TaskManager

    names = {
        name
        for file in sorted((CONF_DIR / "evaluation").glob("*.yaml"))
        for name in (yaml.safe_load(file.read_text())["tasks"] if file.stem != "auto" else ())
        if name not in TASKS
    }
    root = Path(lm_eval.__file__).parent / "tasks"
    folders = [
        "arc",
        "blimp",
        "click",
        "haerae",
        "hellaswag",
        "kmmlu/default",
        "kobest",
        "lambada",
        "piqa",
        "sciq",
    ]
    paths = [root / folder for folder in (*folders, "winogrande")]
    assert names <= set(TaskManager(include_defaults=False, include_path=paths).all_tasks)


def test_mistakes_are_one_line(tasks: Path) -> None:
    from krill.errors import UsageError

    with pytest.raises(UsageError, match=r"tasks=krill_end: no such task; .*closest of lm-eval: krill_ends"):
        find_evaluator("krill_end")
    with pytest.raises(
        UsageError, match=r"load_dataset\('krill/absent', 'ko'\)\".*HF_HUB_OFFLINE=1"
    ) as error:
        LmEvalEvaluator("krill_absent").identify(SETTINGS)
    assert "\n" not in str(error.value)
