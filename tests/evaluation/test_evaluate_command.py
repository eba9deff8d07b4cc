"""krill-evaluate as a user runs it: a table, results that are found again, one line for each mistake."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from small_models import make_small_model
from stores import write_store

from krill.cli import app, evaluate
from krill.data.store import Store
from krill.evaluation import lm_eval_tasks, model_evaluation
from krill.evaluation.evaluate import evaluate_task, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.results import read_results
from krill.evaluation.subject import Subject
from krill.inference import count_progress
from krill.inference.token_scores import score_tokens
from krill.manifest import MODEL_MANIFEST, write_file_manifest
from krill.runs.record import write_status
from krill.tokenizer.artifact import TokenizerFolder

RunEvaluate = Callable[..., tuple[int, list[str], list[str]]]
SENTENCES = [f"{start} garden was quiet. All of them saw the {end}." for start in ("The", "A") for end in
             ("garden", "house", "river", "mountain", "window", "letter")]  # fmt: skip


@pytest.fixture(scope="module")
def store(tokenizer: TokenizerFolder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """English and Korean documents, the longest of which are more than twice as long as the context of the model."""
    text = [("books", " ".join(SENTENCES)), ("notes", "a b"), ("notes", "조용한 정원이었다. " * 4)]
    return write_store(tmp_path_factory.mktemp("stores") / "store", tokenizer, text, text)


@pytest.fixture(scope="module")
def run(
    model: Any, tokenizer: TokenizerFolder, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model.save_pretrained(folder / "model")
    tokenizer.copy_to(folder / "model", 64)
    write_status(
        folder,
        {
            "state": "finished",
            "signature": "r" * 64,
            "data": {"folder": str(store.folder), "signature": store.signature},
        },
    )
    return folder


@pytest.fixture(autouse=True)
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides lm-eval, whose index of tasks takes seconds to read."""
    monkeypatch.setattr(lm_eval_tasks, "is_installed", lambda: False)


@pytest.fixture
def run_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunEvaluate:
    """run_evaluate("model=…", …) returns the exit code and the lines of standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        code = app.main("evaluate", evaluate.run_task, arguments, "model", evaluate.prepare_arguments, True)
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return call


def list_tasks(out: list[str]) -> set[str]:
    """The tasks in the table on standard output, which ends at an empty line or at the folder."""
    rows = out[1 : out.index("") if "" in out else -1]
    return {row.split()[0] for row in rows}


def test_a_run_is_evaluated_once(run: Path, run_evaluate: RunEvaluate) -> None:
    code, out, err = run_evaluate(str(run), "limit=2")
    assert code == 0
    assert out[0].startswith("task           metric or part")
    wholes = [line.split("  ") for line in out if line.startswith("english_pairs  accuracy")]
    assert [cells[1] for cells in wholes] == ["accuracy", "accuracy per byte"]
    assert list_tasks(out) == {"text", "korean_pairs", "english_pairs", "cloze"}
    assert out[-1].endswith("run/evaluations")
    assert any(line.startswith("english_pairs: ") and "longer than the context" in line for line in out)
    assert not any("found" in line for line in err)
    results = read_results(run)
    assert [result.task for result in results] == ["cloze", "english_pairs", "korean_pairs", "text"]
    pairs = results[1].main_score
    assert (pairs.items, pairs.chance) == (52, 0.5)
    assert pairs.unigram is not None
    code, again, err = run_evaluate(str(run), "limit=2")
    assert again == out
    assert sum("found" in line for line in err) == 4
    code, out, err = run_evaluate(str(run), "limit=2", "tasks=text", "again=true", "format=json")
    assert not any("found" in line for line in err)
    assert json.loads("\n".join(out))[0]["scores"][0]["metric"] == "bits_per_byte"


def test_what_is_in_the_training_text_is_named_below_the_table(run: Path, run_evaluate: RunEvaluate) -> None:
    code, out, _ = run_evaluate(str(run), "tasks=text", "contamination=true")
    assert code == 0
    assert "text: 3 of 3 documents (100.0 %) are in the training text" in out


def test_a_long_evaluation_logs_its_progress(
    run: Path, run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(run), "tasks=english_pairs", "limit=1", "again=true", "evaluation.max_batch_tokens=256")
    _, _, err = run_evaluate(*arguments)
    assert not any("sequences" in line for line in err)
    monkeypatch.setattr(count_progress, "LOG_SECONDS", 0.0)
    _, _, err = run_evaluate(*arguments)
    lines = [line for line in err if "sequences" in line]
    assert re.fullmatch(r"english_pairs  \d+ of 52 sequences, [\d,]+/s, 0:0\d:\d\d left", lines[0])
    assert lines[-1].startswith("english_pairs  52 of 52 sequences")
    assert len(lines) > 5


def test_texts_are_sampled_beside_the_scores(run: Path, run_evaluate: RunEvaluate) -> None:
    arguments = (str(run), "tasks=text", "evaluation.prompts=[The garden,조용한]")
    code, out, err = run_evaluate(*arguments)
    assert code == 0, err
    below = out[out.index("") :]
    assert (below[1], below[3]) == ("prompt      The garden", "prompt      조용한")
    assert all(line.startswith(" " * 12) for line in (below[2], below[4]))
    (file,) = (run / "evaluations").glob("samples-*.json")
    written = json.loads(file.read_text())
    assert [sample["prompt"] for sample in written["samples"]] == ["The garden", "조용한"]
    changed = file.stat().st_mtime_ns
    assert run_evaluate(*arguments)[1] == out
    assert file.stat().st_mtime_ns == changed
    _, out, _ = run_evaluate(*arguments, "format=json", "again=true")
    samples = json.loads("\n".join(out))[-1]
    assert (samples["kind"], samples["samples"]) == ("samples", written["samples"])
    assert [result.task for result in read_results(run) if result.task == "samples"] == []


def test_prompts_may_be_in_a_file(run: Path, run_evaluate: RunEvaluate) -> None:
    Path("prompts.txt").write_text("One\nTwo\n")
    _, out, _ = run_evaluate(str(run), "tasks=text", "evaluation.prompts=prompts.txt")
    assert [line for line in out if line.startswith("prompt ")] == ["prompt      One", "prompt      Two"]
    for prompts, message in (
        ("nothing.txt", "prompts=nothing.txt: no such file"),
        ("chat.jsonl", "chat.jsonl, line 1: evaluation.prompts are texts"),
        (f"[{'x' * 70}]", "evaluation.prompts, entry 1: the prompt has 71 tokens"),
    ):
        Path("chat.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
        code, out, err = run_evaluate(str(run), "tasks=text", f"evaluation.prompts={prompts}")
        assert (code, out) == (2, [])
        assert message in err[-1]


def test_an_edited_result_is_not_believed(run: Path, run_evaluate: RunEvaluate) -> None:
    _, out, _ = run_evaluate(str(run), "tasks=text", "evaluation.overlap=0.25")
    for file in (run / "evaluations").glob("text-*.json"):
        file.write_text(file.read_text().replace('"value": ', '"value": 1'))
    assert run_evaluate(str(run), "tasks=text", "evaluation.overlap=0.25")[1] == out


def test_a_folder_in_the_place_of_a_result_is_one_line(run: Path, run_evaluate: RunEvaluate) -> None:
    arguments = (str(run), "tasks=text", "evaluation.overlap=0.25", "output=blocked")
    run_evaluate(*arguments)
    (file,) = Path("blocked/evaluations").glob("text-*.json")
    file.unlink()
    file.mkdir()
    code, out, err = run_evaluate(*arguments)
    assert (code, out) == (1, [])
    assert f"{file.absolute()}: Is a directory; move the folder that is there" in err[-1]
    assert "Traceback" not in "".join(err)


@pytest.fixture(scope="module")
def other_run(run: Path, tokenizer: TokenizerFolder) -> Path:
    """The folder of a run with other weights, beside the first one."""
    folder = run.parent / "other"
    (folder / "model").mkdir(parents=True)
    shutil.copy(run / "status.json", folder)
    make_small_model(tokenizer, seed=7).save_pretrained(folder / "model")
    tokenizer.copy_to(folder / "model", 64)
    return folder


SMALL = ("limit=2", "tasks=[text,english_pairs]", "hydra/launcher=basic")


def test_several_models_are_one_table_and_their_results_stay_with_their_runs(
    run: Path, other_run: Path, run_evaluate: RunEvaluate
) -> None:
    code, out, err = run_evaluate(str(run), str(other_run), *SMALL)
    assert code == 0
    assert out[0].split() == ["#", "model", "text", "english_pairs"]
    assert {out[1].split()[1], out[2].split()[1]} == {"run", "other"}
    assert Path(out[-1]) == Path("outputs/sweeps/evaluate").absolute()
    assert len(list((run / "evaluations").glob("*.json"))) >= 2
    assert {result.weights_folder for result in read_results(other_run)} == {"model"}
    assert not any("val. loss" in line for line in (*out, *err))

    code, again, err = run_evaluate("-m", f"model={run.parent}/*", "limit=2", *SMALL[1:])
    assert again == out
    assert sum("already finished" in line for line in err) == 2
    code, out, err = run_evaluate("-m", f"model={run},{other_run}", "again=true", "format=json", *SMALL)
    assert not any("already finished" in line or "found" in line for line in err)
    value = json.loads("\n".join(out))
    assert [len(ranked["rows"]) for ranked in value["sets"]] == [2]
    assert value["ranked_by"] == "text"
    assert json.loads(Path("outputs/sweeps/evaluate/comparison.json").read_text()) == value


def test_new_weights_in_the_same_folder_are_evaluated(
    other_run: Path, run_evaluate: RunEvaluate, tokenizer: TokenizerFolder
) -> None:
    settings = (
        "-m",
        f"model={other_run}",
        "tasks=english_pairs",
        "limit=1",
        "hydra/launcher=basic",
        "format=json",
    )
    before = json.loads("\n".join(run_evaluate(*settings)[1]))
    make_small_model(tokenizer, seed=8).save_pretrained(other_run / "model")
    after = json.loads("\n".join(run_evaluate(*settings)[1]))
    models = [value["sets"][0]["rows"][0]["models"][0]["weights"] for value in (before, after)]
    assert models[0] != models[1]


def test_the_model_card_has_the_results_of_its_weights(
    other_run: Path, run_evaluate: RunEvaluate, tokenizer: TokenizerFolder
) -> None:
    card = other_run / "model" / "README.md"
    card.write_text("---\nlicense: mit\n---\n# a model\n")
    write_file_manifest(other_run / MODEL_MANIFEST, other_run / "model", list(other_run.glob("model/*.*s*")))
    run_evaluate(str(other_run), "tasks=english_pairs", "limit=2")
    run_evaluate(str(other_run), "tasks=english_pairs", "limit=1")  # fewer items say less
    results = ModelCard.load(card).data.eval_results or []
    assert [(one.dataset_name, one.metric_type) for one in results] == [
        ("english_pairs", "accuracy"), ("english_pairs", "accuracy_per_byte"),
    ]  # fmt: skip
    assert results[0].metric_args["items"] == 52
    assert run_evaluate(str(other_run), "tasks=english_pairs", "limit=2")[0] == 0  # the model is still intact
    (other_run / MODEL_MANIFEST).unlink()


def test_a_signal_ends_an_evaluation_whose_results_are_found_again(
    run: Path, run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping: list[str] = []

    def evaluate_or_stop(evaluator: Any, *arguments: Any) -> Any:
        if evaluator.name in stopping:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_task(evaluator, *arguments)

    monkeypatch.setattr(model_evaluation, "evaluate_task", evaluate_or_stop)
    arguments = (str(run), "tasks=[english_pairs,text]", "limit=3", "output=stopped")
    for name, expected, message in (
        ("english_pairs", 143, "interrupted by SIGTERM before a task was complete; nothing is saved"),
        ("text", 75, "interrupted by SIGTERM; progress saved. Run the same command to resume."),
    ):
        stopping[:] = [name]
        code, out, err = run_evaluate(*arguments)
        assert (code, out, err[-1]) == (expected, [], f"krill-evaluate: {message}")
    stopping.clear()
    code, _, err = run_evaluate(*arguments)
    assert code == 0
    assert sum("found" in line for line in err) == 1


def test_models_that_cannot_be_evaluated_are_named(
    run: Path, run_evaluate: RunEvaluate, tmp_path: Path
) -> None:
    shutil.copytree(run / "model", tmp_path / "alone")
    code, out, err = run_evaluate(str(run), "alone", "tasks=text", "hydra/launcher=basic")
    assert code == 3
    assert out[1].split()[:2] == ["1", "run"]
    assert "failed: evaluation.tasks=text model.path=alone" in err[-1]
    assert "leave this task out of tasks=" in err[-1]
    shutil.copytree(run / "model", tmp_path / "other")
    code, out, err = run_evaluate("alone", "other", "tasks=text", "hydra/launcher=basic", "format=json")
    assert (code, json.loads("\n".join(out))["sets"]) == (3, [])
    assert "Traceback" not in "".join(err)


def test_several_models_sample_texts_below_the_table(
    run: Path, other_run: Path, run_evaluate: RunEvaluate
) -> None:
    models, names = (str(run), str(other_run)), [run.name, other_run.name]
    arguments = (*models, "tasks=english_pairs", "limit=1", "evaluation.prompts=[The gar]")
    code, out, _ = run_evaluate(*arguments, "hydra/launcher=basic", "output=points")
    assert code == 0
    assert [Path(line.split()[1]).name for line in out if line.startswith("model  ")] == names
    assert sum(line.startswith("prompt      The gar") for line in out) == 2
    _, out, _ = run_evaluate(*arguments, "hydra/launcher=basic", "output=points", "format=json")
    assert [Path(one["model"]).name for one in json.loads("\n".join(out))["samples"]] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=nothing*"], "model=nothing*: no run matches"),
        (["a", "b", "--cfg", "job"], "-m runs every point, --cfg and --info print one configuration"),
    ],
)
def test_mistakes_with_several_models(run_evaluate: RunEvaluate, arguments: list[str], message: str) -> None:
    code, out, err = run_evaluate(*arguments)
    assert (code, out) == (2, [])
    assert message in err[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks=english_pair"], "tasks=english_pair: no such task; Did you mean english_pairs?"),
        (
            ["tasks=[text,glue]"],
            "tasks=glue: no such task; Available: text, korean_pairs, english_pairs, cloze",
        ),
        (["limit=0"], "evaluation.limit"),
        (["tasks=[]"], "evaluation.tasks: write the names of tasks, such as [text,english_pairs], or auto"),
        (["tasks=5"], "evaluation.tasks: write the names of tasks"),
        (["tasks=[auto,text]"], "evaluation.tasks: auto chooses tasks"),
        (["evaluation.prompts=null"], "evaluation.prompts: write texts in brackets"),
        (["tasks=text", "evaluation.prompts=The garden"], "'evaluation.prompts=[The garden]'"),
        (["tasks=text", "few_shot=2"], "few_shot=2 is for the tasks of lm-eval, and tasks= has none of them"),
        (["model=nothing_here"], "model=nothing_here: not the name of a run or sweep, nor a folder"),
        (["model=~nosuchuser"], "~nosuchuser"),
        (["tasks=[~nosuchuser/mine.yaml]"], "~nosuchuser"),
    ],
)
def test_mistakes(run: Path, run_evaluate: RunEvaluate, arguments: list[str], message: str) -> None:
    model = [] if any(argument.startswith("model=") for argument in arguments) else [f"model={run}"]
    code, out, err = run_evaluate(*model, *arguments)
    assert (code, out) == (2, [])
    assert message in "\n".join(err)
    assert len([line for line in err if "error:" in line]) == 1
    assert "prompt=…" not in "\n".join(err)
    assert "Traceback" not in "\n".join(err)


@pytest.mark.parametrize("argument", ["tasks=korean", "evaluation=korean"])
def test_a_preset_is_an_option_of_the_group_and_needs_the_extra(
    run: Path, run_evaluate: RunEvaluate, argument: str
) -> None:
    code, out, err = run_evaluate(f"model={run}", argument)
    assert (code, out) == (2, [])
    assert "tasks=kobest: no such task" in err[-1]
    assert "pip install" in err[-1]
    assert "[eval]" in err[-1]


def test_presets_can_be_swept_and_lists_are_tasks() -> None:
    presets = {"korean", "english"}
    assert evaluate._choose_preset("evaluation.tasks=korean,english", presets) == "evaluation=korean,english"
    for override in ("evaluation.tasks=[korean]", "evaluation.tasks=text", "evaluation.limit=korean"):
        assert evaluate._choose_preset(override, presets) == override


def test_without_its_tokens_a_model_is_evaluated_on_what_krill_brings(
    run: Path, run_evaluate: RunEvaluate, tmp_path: Path
) -> None:
    model = tmp_path / "alone"
    (run / "model").rename(model)
    try:
        code, out, err = run_evaluate(f"model={model}", "limit=1")
        assert (code, out[-1]) == (0, "outputs/evaluations")
        assert list_tasks(out) == {"korean_pairs", "english_pairs"}
        assert "tokens      not here" in "\n".join(err)
        code, _, err = run_evaluate(f"model={model}", "tasks=text")
        assert code == 2
        assert "leave this task out of tasks=, or set data= for another text" in err[-1]
        code, _, err = run_evaluate(f"model={model}", "contamination=true")
        assert code == 2
        assert "contamination=true: the tokens that" in err[-1]
    finally:
        model.rename(run / "model")


def test_a_task_that_lacks_text_is_skipped_unless_it_is_named(
    tokenizer: TokenizerFolder, model: Any, tmp_path: Path, run_evaluate: RunEvaluate
) -> None:
    text = [("books", "A short text.")]
    short = write_store(tmp_path / "store", tokenizer, text, text)
    model.save_pretrained("short/model")
    tokenizer.copy_to(Path("short/model"), 64)
    data = {"folder": str(short.folder), "signature": short.signature}
    write_status(Path("short"), {"state": "finished", "signature": "r" * 64, "data": data})
    code, out, err = run_evaluate("short", "limit=1")
    assert (code, list_tasks(out)) == (0, {"text", "english_pairs"})
    assert "skipped     cloze: the run of short has too little held-out text" in err
    code, _, err = run_evaluate("short", "tasks=cloze")
    assert code == 2
    assert err[-1].endswith("has too little held-out text; leave this task out of tasks=")


def test_bits_per_byte_are_those_of_each_document(
    model: Any, tokenizer: TokenizerFolder, store: Store
) -> None:
    subject = Subject("tiny", model, tokenizer, store)
    result = evaluate_task(find_evaluator("text"), subject, EvaluationSettings(None, 10**6, 0.5))
    assert [(score.name, score.items) for score in result.scores] == [
        ("", 3), ("books", 1), ("notes", 2), ("en", 2), ("ko", 1),
    ]  # fmt: skip
    assert result.get_outcomes("bytes").sum() == store.validation.text_bytes
    ids = subject.read_held_out_texts(10**6)[1].ids
    nats = -sum(score.logprob for score in score_tokens(model, list(ids)))
    assert result.get_outcomes("nats")[1] == pytest.approx(nats, abs=1e-5)
    assert result.main_score.value == pytest.approx(
        result.get_outcomes("nats").sum() / math.log(2) / store.validation.text_bytes
    )


def test_a_source_that_is_named_as_a_language_has_the_documents_of_the_source(
    model: Any, tokenizer: TokenizerFolder, tmp_path: Path
) -> None:
    text = [("ko", "조용한 정원이었다."), ("ko", "a b"), ("web", "The garden was quiet.")]
    subject = Subject("tiny", model, tokenizer, write_store(tmp_path / "store", tokenizer, text, text))
    result = evaluate_task(find_evaluator("text"), subject, EvaluationSettings(None, 10**6, 0.5))
    assert [(score.name, score.items) for score in result.scores] == [
        ("", 3), ("ko", 2), ("web", 1), ("en", 2),
    ]  # fmt: skip


def test_a_model_without_knowledge_solves_half_of_the_pairs(tokenizer: TokenizerFolder) -> None:
    untrained = make_small_model(tokenizer).eval()
    settings = EvaluationSettings(20, 1, 0)
    subject = Subject("tiny", untrained, tokenizer, None)
    result = evaluate_task(find_evaluator("english_pairs"), subject, settings)
    score = result.main_score
    assert score.items == 520
    assert score.low is not None
    assert score.high is not None
    assert score.low - 0.02 < 0.5 < score.high + 0.02
