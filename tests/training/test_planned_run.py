"""The plan of a run agrees with its files and tokens; krill-train prints it in a dry run, and records it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_files import write_texts
from trainings import plan_lines

from krill import resources
from krill.config.schema import TrainConfig
from krill.data.store import Store
from krill.models.build import build_meta_model
from krill.models.cost import compute_mean_attention_span, compute_training_flops
from krill.plan.machine import identify_machine
from krill.plan.run_plan import build_run_plan
from krill.plan.torch_device import describe_torch_device, get_device_memory
from krill.runs import checkpoints
from krill.runs.plan_record import read_plan_record
from krill.runs.record import read_status

Configure = Callable[..., TrainConfig]
VOCAB_SIZE = 320


def parse_lines(lines: list[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in lines)


def test_disk_is_that_of_the_files_of_a_run(train_in: Any, make_config: Configure) -> None:
    """The kept checkpoints and one that is being saved, each as large as the checkpoints of a real run."""
    config = make_config("keep_checkpoints=2", "keep_best=false", "optimizer=adamw")
    run = train_in(config)
    (saved, *_) = checkpoints.list_checkpoints(run / "checkpoints")
    size = sum((saved / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    planned = build_run_plan(config, VOCAB_SIZE, describe_torch_device(config))
    assert planned.checkpoint_bytes == pytest.approx(
        size, rel=0.15
    )  # the names of small tensors take space too
    weights = (run / "model" / "model.safetensors").stat().st_size
    assert planned.disk["model"] == pytest.approx(weights, rel=0.05)
    tokenizer = sum(file.stat().st_size for file in (run / "model").glob("tokenizer*"))
    assert tokenizer < planned.disk["tokenizer"] < 2 * tokenizer


def test_dry_run_uses_the_lengths_of_prepared_documents(
    make_config: Configure, prepared_data: Any, outputs: Path
) -> None:
    ends = Store.open(prepared_data.store).get_split("train").ends
    config = make_config("epochs=2")
    lines = parse_lines(plan_lines(config, outputs))
    lengths = np.diff(ends, prepend=np.uint64(0)).tolist()
    pieces = [min(64, length - start) for length in lengths for start in range(0, length, 64)]
    each = compute_training_flops(
        build_meta_model(config.model, VOCAB_SIZE), 64, compute_mean_attention_span(pieces)
    )
    assert f" tokens × {each:.3g} FLOP (" in lines["flops"]
    assert "at most" not in lines["flops"]
    assert lines["memory"].startswith("about ")


def test_dry_run_before_preparation_shows_only_memory_and_disk_for_epochs(
    make_config: Configure, tmp_path: Path
) -> None:
    lines = parse_lines(plan_lines(make_config("epochs=2"), tmp_path))
    assert {"memory", "moments", "disk"} <= set(lines)
    assert not {"flops", "time"} & set(lines)


def test_dry_run_shows_the_share_of_each_source(make_config: Configure, tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 30)):
        write_texts(tmp_path / f"{name}.jsonl", [f"the same length {index:03}" for index in range(count)])
    paths = f"data.paths=[{{path: {tmp_path}/a.jsonl, weight: 2}}, {tmp_path}/b.jsonl]"
    lines = parse_lines(plan_lines(make_config("data=files", paths), tmp_path))
    assert lines["mix"] == "b.jsonl 60.0 %, a.jsonl 40.0 % (size x weight)"
    assert "mix" not in parse_lines(plan_lines(make_config(), tmp_path))


def test_a_run_records_its_plan_and_logs_the_memory(
    krill_train: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("steps=1", "output=planned") == 0
    recorded = (read_status(Path("planned")) or {})["plan"]
    assert recorded["steps"] == 1
    assert recorded["memory"]["total"] == sum(
        recorded["memory"]["moments"][recorded["memory"]["peak"]].values()
    )
    total, available = (recorded["memory"][key] / 1e9 for key in ("total", "available"))
    err = capfd.readouterr().err
    assert f"memory      about {total:.3g} GB of {available:.3g} GB" in err
    record = read_plan_record(Path("planned"))
    assert record is not None
    assert f"planned     {record}" in err.splitlines()
    assert (record.planned_seconds, record.planned_memory) == (
        recorded["seconds"]["total"], recorded["memory"]["total"],
    )  # fmt: skip
    assert record.memory > 10**8
    assert str(replace(record, planned_seconds=6742, seconds=107)).startswith(
        f"1:52 h and {record.planned_memory / 1e9:.3g} GB of memory; took 1:47 min and "
    )


def test_a_finished_run_leaves_its_figures_for_later_plans(
    krill_train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRILL_CALIBRATION", str(tmp_path / "kept"))
    arguments = ("steps=6", "log_every=1", "device=cpu")
    assert krill_train(*arguments, "output=first") == 0
    (kept,) = identify_machine().measurements
    assert (kept.kind, kept.seconds) == ("run", None)
    assert kept.step > 0
    assert kept.startup is not None
    assert kept.peaks[0].measured > 10**8
    capfd.readouterr()
    assert krill_train(*arguments, "dry_run=true") == 0
    assert "(measured from 1 run on this machine)" in capfd.readouterr().out
    assert krill_train("steps=1", "output=short") == 0
    monkeypatch.setenv("KRILL_CALIBRATION", "off")
    assert krill_train(*arguments, "output=off") == 0
    assert len(list((tmp_path / "kept").glob("*.json"))) == 1
    monkeypatch.setenv("KRILL_CALIBRATION", str(tmp_path / "kept"))
    assert identify_machine().measurements == (kept,)


def test_a_run_without_a_plan_has_no_record_of_it(train_in: Any, make_config: Configure) -> None:
    assert read_plan_record(train_in(make_config("steps=1"))) is None


def test_device_memory_is_at_most_the_memory_of_the_machine() -> None:
    with open("/proc/meminfo") as file:
        assert 10**8 < get_device_memory("cpu") <= 1024 * int(file.readline().split()[1]) + 2**20


def test_device_memory_is_at_most_the_limit_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM limits the group of a job, above that of the process."""
    group = tmp_path / "slurm" / "job_1" / "task_0"
    group.mkdir(parents=True)
    for folder, limit in ((group, "max"), (group.parent, "300000000"), (group.parents[1], "400000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "cgroup").write_text("1:name=systemd:/other\n0::/slurm/job_1/task_0\n")
    monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(resources, "CGROUP_FILE", tmp_path / "cgroup")
    assert get_device_memory("cpu") == 300_000_000
    (tmp_path / "cgroup").unlink()  # not Linux
    assert get_device_memory("cpu") > 400_000_000
