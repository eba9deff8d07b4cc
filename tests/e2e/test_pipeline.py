"""From raw text to a model that speaks, by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import SMALL_RUN, Krill, read_status_file

pytestmark = pytest.mark.slow


def test_the_default_learns(krill: Krill, tmp_path: Path):
    """The default in miniature (a twelfth of its steps): below what token frequencies alone give."""
    done = krill("train", "steps=40", "hardware.threads=1")
    run = tmp_path / done.stdout.splitlines()[-1]
    metrics = read_status_file(run)["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["unigram"] - metrics["eval_loss"] > 0.05
    for file in (
        "loss.png",
        "sample.txt",
        "metrics.jsonl",
        "log.txt",
        "config.yaml",
        ".hydra/overrides.yaml",
    ):
        assert (run / file).stat().st_size > 0

    again = krill("train", "dry_run=true", "steps=40", "hardware.threads=1")
    assert "reuse" in again.stdout
    assert "prepare " not in again.stdout

    answer = krill("infer", str(run), "prompt=Return the", "max_new_tokens=8", "temperature=0")
    assert answer.stdout.strip()


def test_preparing_twice_makes_nothing_twice(krill: Krill, corpus: str):
    words = ("data=files", corpus, "tokenizer.vocab_size=600")
    first, second = krill("preprocess", *words), krill("preprocess", *words)
    assert "tokenizer   trained" in first.stderr
    assert "tokens      prepared" in first.stderr
    assert "tokenizer   reused" in second.stderr
    assert "tokens      reused" in second.stderr
    assert first.stdout == second.stdout


def test_results_go_where_they_are_asked_for(krill: Krill, corpus: str, tmp_path: Path):
    words = ("data=files", corpus, "tokenizer.vocab_size=600")
    assert krill("tokenizer", *words, "output=내 토크나이저").stdout == "내 토크나이저\n"
    assert (tmp_path / "내 토크나이저" / "tokenizer.json").is_file()
    assert krill("preprocess", *words, "output=tokens").stdout == "tokens\n"
    assert (tmp_path / "tokens" / "manifest.json").is_file()

    ready = "tokenizer.path=내 토크나이저"
    done = krill("train", "data=files", corpus, ready, *SMALL_RUN, "output=run")
    assert done.stdout == "run\n"
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["vocab_size"] == 600


def test_korean_names_and_prompts(krill: Krill, tmp_path: Path):
    folder = tmp_path / "말뭉치"
    folder.mkdir()
    texts = (
        f"옛날 옛적에 왕이 살았다. 그 왕에게는 아들이 {i}명 있었다. ㅋㅋㅋ 하고 웃었다." * 3
        for i in range(200)
    )
    (folder / "가.jsonl").write_text(
        "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    )
    done = krill(
        "train", "data=files", "data.paths=[말뭉치/가.jsonl]", "name=한국어", "tokenizer.vocab_size=300",
        *(word for word in SMALL_RUN if "vocab" not in word),
    )  # fmt: skip
    run = done.stdout.strip()
    assert run.startswith("outputs/runs/한국어/")

    prompt = "옛날 옛적에, '왕'이 (살았다) = ?"
    answer = krill("infer", f"model={run}", f"prompt={prompt}", "max_new_tokens=4", "output=답")
    assert answer.stdout
    said = json.loads((tmp_path / "답" / "answers.jsonl").read_text(encoding="utf-8"))
    assert said["prompt"] == prompt


def test_a_run_is_repeated_with_changes(krill: Krill, corpus: str, tmp_path: Path):
    run = krill("train", "data=files", corpus, *SMALL_RUN, "output=first").stdout.strip()
    done = krill("train", f"from={run}", "lr=1e-4", "name=again")
    again = tmp_path / done.stdout.strip()
    assert again.parent.name == "again"
    assert read_status_file(again)["tokenizer"] == read_status_file(tmp_path / run)["tokenizer"]
    assert "lr: 0.0001" in (again / "config.yaml").read_text()


def test_infer_answers_each_line_of_a_pipe(krill: Krill, corpus: str, tmp_path: Path):
    run = krill("train", "data=files", corpus, *SMALL_RUN, "name=one").stdout.strip()
    done = krill("infer", "-m", f"model={run}", "temperature=0.2,0.8", "prompt=a, b", "max_new_tokens=4")
    points = [path for path in Path(done.stdout.splitlines()[-1]).glob("[!.]*") if path.is_dir()]
    assert len(points) == 2
    for point in points:
        assert json.loads((point / "answers.jsonl").read_text())["prompt"] == "a, b"


def test_a_folder_that_cannot_be_written_is_one_line(krill: Krill, corpus: str, tmp_path: Path):
    (tmp_path / "outputs").write_text("in the way")
    done = krill("train", "data=files", corpus, *SMALL_RUN, code=1)
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "outputs") in done.stderr


def test_the_tiny_ko_model_trains_on_the_default_data(krill: Krill, tmp_path: Path):
    """One step of one short row in all 27 layers, which are narrow here; the plan has them at their width."""
    words = (
        "model=tiny_ko", "optimizer=adamw", "steps=1", "sequence_len=64", "batch.micro_batch_size=1",
        "data.validation_fraction=0.002",
    )  # fmt: skip
    plan = krill("train", *words, "dry_run=true")
    assert "165,094,656 parameters" in plan.stdout
    done = krill("train", *words, "model.hidden_size=96", "model.intermediate_size=128")
    assert "experiment=tiny_ko" in done.stderr
    assert "data.name=python_docs (tiny_ko)" in done.stderr
    config = json.loads((tmp_path / done.stdout.strip() / "model" / "config.json").read_text())
    assert config["vocab_size"] == 4096
    assert config["num_hidden_layers"] == 27


def test_infer_takes_a_tokenizer_by_folder_or_option(krill: Krill, corpus: str, tmp_path: Path):
    words = ("data=files", corpus, "tokenizer.vocab_size=600")
    run = krill("train", "data=files", corpus, *SMALL_RUN, "output=run").stdout.strip()
    tokenizer = krill("tokenizer", *words, "output=토크나이저").stdout.strip()
    krill("infer", run, f"tokenizer={tokenizer}", "prompt=a", "max_new_tokens=2")
    missing = krill("infer", run, "tokenizer=bpe_32k", "prompt=a", code=2)
    assert "krill-tokenizer tokenizer=bpe_32k" in missing.stderr
    krill("tokenizer")
    larger = krill("infer", run, "tokenizer=bpe_4k", "prompt=a", code=2)
    assert "the tokenizer has 4096 entries, but the model only 600" in larger.stderr
