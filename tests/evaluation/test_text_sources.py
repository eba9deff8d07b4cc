"""Bits per byte of any source: the same documents and bytes for every tokenizer, and what is left out is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_models import make_small_model
from stores import make_data_config, make_tokenizer
from tokenizers import Tokenizer, decoders, models

from krill.cli import app, evaluate
from krill.errors import UsageError
from krill.evaluation.evaluate import evaluate_task, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.notes import format_notes
from krill.evaluation.results import TaskResult
from krill.evaluation.subject import Subject
from krill.evaluation.text_sources import SourceDocument, thin_documents
from krill.inference.token_scores import score_tokens
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

ENGLISH = [f"Page {number}: a text of {number * 3} words.\r\n" for number in range(12)]
KOREAN = ["조용한 정원이었다. " * 4, "짧다", "짧다"]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two sources, one of which has a record without a text."""
    paths = [tmp_path / "pages.jsonl", tmp_path / "한국어.jsonl"]
    for path, texts in zip(paths, (ENGLISH, KOREAN), strict=True):
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    paths[0].write_text(paths[0].read_text() + '\n{"text": 7}\n')
    return paths


def evaluate_text(tokenizer: TokenizerFolder, files: list[Path], tokens: int = 10**6) -> TaskResult:
    subject = Subject("tiny", make_small_model(tokenizer).eval(), tokenizer, None)
    evaluator = find_evaluator("text", make_data_config(*files))
    return evaluate_task(evaluator, subject, EvaluationSettings(None, tokens, 0.5))


def test_two_tokenizers_score_the_same_documents_and_bytes(
    files: list[Path], tokenizer: TokenizerFolder, tmp_path: Path
) -> None:
    bpe = make_tokenizer(tmp_path / "bpe")
    one, two = evaluate_text(tokenizer, files), evaluate_text(bpe, files)
    assert one.items_hash == two.items_hash
    assert one.outcomes["bytes"] == two.outcomes["bytes"]
    assert one.main_score.value != two.main_score.value
    assert [(score.name, score.items) for score in one.scores] == [
        ("", 15), ("pages.jsonl", 12), ("한국어.jsonl", 3), ("en", 12), ("ko", 3),
    ]  # fmt: skip
    text = ENGLISH[3].strip()
    model = make_small_model(bpe).eval()
    ids = [bpe.bos_id, *bpe.backend.encode(text, add_special_tokens=False).ids]
    nats = -sum(score.logprob for score in score_tokens(model, ids))
    assert two.get_outcomes("nats")[3] == pytest.approx(nats, abs=1e-4)
    assert two.get_outcomes("bytes")[3] == len(text.encode())
    total = two.get_outcomes("nats").sum() / math.log(2) / two.get_outcomes("bytes").sum()
    assert two.main_score.value == pytest.approx(total)
    few = [evaluate_text(one, files, 60) for one in (tokenizer, bpe)]
    assert few[0].items_hash == few[1].items_hash != one.items_hash
    assert 0 < few[0].get_outcomes("bytes").sum() <= 4 * 60
    assert few[0].scores[1].items > 1


def test_documents_are_thinned_evenly() -> None:
    documents = [SourceDocument("one", f"{index:03}") for index in range(100)]
    assert thin_documents(documents, 300) == documents
    assert [one.text for one in thin_documents(documents, 60)] == [f"{i:03}" for i in range(0, 100, 8)]
    assert [one.text for one in thin_documents(documents, 1)] == ["000"]
    assert thin_documents([], 1) == []


def make_letter_tokenizer(folder: Path, unknown: str | None) -> TokenizerFolder:
    """Writes a tokenizer of ASCII characters, with or without a token for all others."""
    folder.mkdir()
    names = ["<|bos|>", "<|eos|>", "<|pad|>", "<unk>", *map(chr, range(32, 127))]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(names[:4])
    backend.save(str(folder / "tokenizer.json"))
    roles = {f"{role}_token": f"<|{role}|>" for role in ("bos", "eos", "pad")}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return load_tokenizer(folder)


def test_what_a_tokenizer_cannot_encode_is_counted(files: list[Path], tmp_path: Path) -> None:
    nothing = evaluate_text(make_letter_tokenizer(tmp_path / "without", None), files)
    assert nothing.main_score.items == 13  # of one Korean document, the spaces and the full stop are known
    assert (nothing.notes["not_encoded"], nothing.notes["unreadable"]) == (2, 1)
    assert nothing.notes["unknown"] == 1
    unknown = evaluate_text(make_letter_tokenizer(tmp_path / "with", "<unk>"), files)
    assert (unknown.main_score.items, unknown.notes["unknown"]) == (15, 3)
    lines = format_notes([nothing, unknown])
    assert "text:글: 2 documents are left out: the tokenizer encodes nothing of them" in lines
    assert lines[-1].startswith("text:글: the tokenizer loses a part of 3 documents")
    files[0].write_text('{"text": "가"}\n{"text": "나"}\n{"text": "다"}')
    letters = make_letter_tokenizer(tmp_path / "third", None)
    with pytest.raises(UsageError, match=r"no document of data= can be scored \(3 not encoded\)"):
        evaluate_text(letters, files[:1])


def test_items_with_unknown_characters_are_counted(tmp_path: Path) -> None:
    tokenizer = make_letter_tokenizer(tmp_path / "letters", "<unk>")
    subject = Subject("tiny", make_small_model(tokenizer).eval(), tokenizer, None)
    for name, count in (("korean_pairs", 21), ("english_pairs", None)):
        result = evaluate_task(find_evaluator(name), subject, EvaluationSettings(1, 1, 0))
        assert result.notes.get("unknown_items") == count
    lines = format_notes([result.model_copy(update={"notes": {"unknown_items": 3}})])
    assert lines[1].startswith("english_pairs: the tokenizer loses a part of 3 items")


def test_the_command_evaluates_text_of_a_source(
    files: list[Path], model: Any, tokenizer: TokenizerFolder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    tokenizer.copy_to(tmp_path / "model", 64)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        words = ["model=model", *arguments]
        code = app.main("evaluate", evaluate.run_task, words, "model", evaluate.prepare_arguments, True)
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    text = ("data=files", "data.paths=[pages.jsonl,한국어.jsonl]", "tasks=text")
    code, out, err = run(*text)
    assert code == 0, err
    assert out[1].split()[:4] == ["text:files", "bits", "per", "byte"]
    assert "text:files: 1 records could not be read" in out
    assert any("found" in line for line in run(*text)[2])
    Path("pages.jsonl").write_text('{"text": "another text"}')
    assert not any("found" in line for line in run(*text)[2])
    _, out, _ = run(*text, "data.min_chars=20")
    assert "text:files: 3 documents were dropped by data.filters or data.min_chars" in out
    code, _, err = run(*text[:2], "tasks=english_pairs")
    assert code == 2
    assert "data= is the text of the task text, which is not in tasks=; use tasks=text" in err[-1]
    code, _, err = run("data=files", "data.paths=[none.jsonl]", "tasks=text")
    assert code == 2
    assert "none.jsonl" in err[-1]
