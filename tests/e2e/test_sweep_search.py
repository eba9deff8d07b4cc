"""sweep.search=: points that are drawn, run as those of any sweep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from console import SMALL_RUN, Krill, read_table

pytestmark = pytest.mark.slow

SPACE = "lr=tag(log,interval(1e-3,1e-1))"


def told_of(sweep: Path) -> dict[str, Any]:
    return json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))


def tried(sweep: Path) -> list[list[str]]:
    return told_of(sweep)["tried"]


def test_a_search_goes_on_where_it_was_stopped(krill: Krill, corpus: str, tmp_path: Path):
    words = ("-m", SPACE, "data=files", corpus, *SMALL_RUN, "sweep.search=tpe", "hydra/launcher=basic")
    whole, parts = tmp_path / "outputs" / "sweeps" / "whole", tmp_path / "outputs" / "sweeps" / "parts"

    done = krill("train", *words, "sweep.trials=12", "name=whole")

    assert "12 points, drawn by tpe, the first 10 now" in done.stderr
    assert "11 points: 11 finished; best" in done.stderr
    table = read_table(whole)
    assert len(table) == 12
    assert [row["eval_loss"] for row in table] == sorted(row["eval_loss"] for row in table)

    shutil.copytree(whole, parts)  # as it is after a kill in the middle of the last but one point
    told = told_of(parts)
    for point in told["points"][10:]:
        shutil.rmtree(parts / point["folder"])
    told["tried"], told["points"] = told["tried"][:11], told["points"][:11]
    (parts / "sweep.json").write_text(json.dumps(told), encoding="utf-8")

    done = krill("train", *words, "sweep.trials=12", "name=parts")

    assert done.stderr.count("already finished") == 10
    assert tried(parts) == tried(whole)


def test_random_points_are_all_known_beforehand(krill: Krill, corpus: str, tmp_path: Path):
    words = ("-m", "tokenizer.vocab_size=int(interval(300,600))", "data=files", corpus, "name=drawn")

    krill("tokenizer", *words, "sweep.search=random", "sweep.trials=3", "hydra/launcher=basic")
    sweep = tmp_path / "outputs" / "sweeps" / "drawn"
    three = tried(sweep)
    krill("tokenizer", *words, "sweep.search=random", "sweep.trials=4", "hydra/launcher=basic")

    assert len(three) == 3
    assert tried(sweep)[:3] == three
    assert len(list((tmp_path / "outputs" / "tokenizers").glob("bpe_4k-*"))) == 4


def test_a_point_that_is_no_valid_one_is_left_out_of_what_goes_on(
    krill: Krill, corpus: str, tmp_path: Path
):
    sizes = ("model.num_attention_heads=2,3", "model.hidden_size=24,32", "model.num_key_value_heads=1")
    words = (
        "-m", *sizes, "data=files", corpus, *SMALL_RUN, "sweep.search=random", "hydra/launcher=basic", "name=odd",
    )  # fmt: skip
    sweep = tmp_path / "outputs" / "sweeps" / "odd"
    krill("train", *words, "sweep.trials=1", "seed=3")
    told = told_of(sweep)
    # as tpe may have drawn it late
    told["tried"].append(["model.num_attention_heads=3", "model.hidden_size=32"])
    (sweep / "sweep.json").write_text(json.dumps(told), encoding="utf-8")

    done = krill("train", *words, "sweep.trials=2", "seed=3", code=3)

    assert "already finished" in done.stderr
    assert "does not divide hidden_size=32" in done.stderr
    assert "model.num_attention_heads=3 model.hidden_size=32" in done.stderr


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("train", ["lr=interval(-1,1)", "sweep.search=tpe", "sweep.trials=5"], "lr"),
        ("train", [SPACE, "sweep.search=tpee", "sweep.trials=5"], "sweep.search"),
        ("train", [SPACE], "sweep.search=random sweep.trials=20"),
        ("train", ["lrr=interval(1,2)", "sweep.search=random", "sweep.trials=2"], "Did you mean lr?"),
        (
            "train",
            ["lr=interval(1,2),3", "sweep.search=random", "sweep.trials=2"],
            "an interval cannot be one of several values",
        ),
        (
            "tokenizer",
            ["tokenizer.vocab_size=300,400", "sweep.search=tpe", "sweep.trials=5"],
            "search=random",
        ),
        ("train", ["optimizer.eps=0,1e-8", "sweep.search=tpe", "sweep.trials=20"], "optimizer.eps"),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_starts(
    krill: Krill, tmp_path: Path, command: str, words: list[str], said: str
):
    done = krill(command, "-m", *words, code=2)
    assert said in done.stderr
    assert not (tmp_path / "outputs").exists()
