"""Searches (sweep.search): their points are sampled, and run like those of any sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from console import SMALL_RUN, Krill, read_table

from krill.checksum import write_checksummed_json
from krill.runs.find import read_sweep

pytestmark = pytest.mark.slow

SPACE = "lr=tag(log,interval(1e-3,1e-1))"


def read_tried_points(sweep: Path) -> list[list[str]]:
    return read_sweep(sweep)["tried"]


def test_an_interrupted_search_resumes(krill: Krill, corpus: str, tmp_path: Path):
    overrides = ("-m", SPACE, "data=files", corpus, *SMALL_RUN, "sweep.search=tpe", "hydra/launcher=basic")
    whole, resumed = (tmp_path / "outputs" / "sweeps" / name for name in ("whole", "resumed"))

    done = krill("train", *overrides, "sweep.trials=12", "name=whole")

    assert "12 points, sampled by tpe, the first 10 now" in done.stderr
    assert "11 points: 11 finished; best" in done.stderr
    assert done.stderr.endswith("next        krill-infer outputs/sweeps/whole/best\n")
    table = read_table(whole)
    assert len(table) == 12
    assert [row["eval_loss"] for row in table] == sorted(row["eval_loss"] for row in table)

    shutil.copytree(whole, resumed)  # the state after a kill during the last but one point
    sweep = read_sweep(resumed)
    for point in sweep["points"][10:]:
        shutil.rmtree(resumed / point["folder"])
    sweep["tried"], sweep["points"] = sweep["tried"][:11], sweep["points"][:11]
    write_checksummed_json(resumed / "sweep.json", sweep)

    done = krill("train", *overrides, "sweep.trials=12", "name=resumed")

    assert done.stderr.count("already finished") == 10
    assert read_tried_points(resumed) == read_tried_points(whole)


def test_more_random_trials_keep_the_earlier_points(krill: Krill, corpus: str, tmp_path: Path):
    overrides = ("-m", "tokenizer.vocab_size=int(interval(300,600))", "data=files", corpus, "name=random")

    krill("tokenizer", *overrides, "sweep.search=random", "sweep.trials=3", "hydra/launcher=basic")
    sweep = tmp_path / "outputs" / "sweeps" / "random"
    first_points = read_tried_points(sweep)
    krill("tokenizer", *overrides, "sweep.search=random", "sweep.trials=4", "hydra/launcher=basic")

    assert len(first_points) == 3
    assert read_tried_points(sweep)[:3] == first_points
    assert len(list((tmp_path / "outputs" / "tokenizers").glob("bpe_*"))) == 4


def test_an_invalid_point_of_an_earlier_search_is_skipped(krill: Krill, corpus: str, tmp_path: Path):
    sizes = ("model.num_attention_heads=2,3", "model.hidden_size=24,32", "model.num_key_value_heads=1")
    overrides = (
        "-m", *sizes, "data=files", corpus, *SMALL_RUN, "sweep.search=random", "hydra/launcher=basic", "name=odd",
    )  # fmt: skip
    sweep = tmp_path / "outputs" / "sweeps" / "odd"
    krill("train", *overrides, "sweep.trials=1", "seed=3")
    sweep_json = read_sweep(sweep)
    # as tpe may have sampled it late
    sweep_json["tried"].append(["model.num_attention_heads=3", "model.hidden_size=32"])
    write_checksummed_json(sweep / "sweep.json", sweep_json)

    done = krill("train", *overrides, "sweep.trials=2", "seed=3", code=3)

    assert "already finished" in done.stderr
    assert "does not divide hidden_size=32" in done.stderr
    assert "model.num_attention_heads=3 model.hidden_size=32" in done.stderr


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
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
def test_an_invalid_search_is_an_error_before_anything_starts(
    krill: Krill, tmp_path: Path, command: str, overrides: list[str], message: str
):
    done = krill(command, "-m", *overrides, code=2)
    assert message in done.stderr
    assert not (tmp_path / "outputs").exists()
