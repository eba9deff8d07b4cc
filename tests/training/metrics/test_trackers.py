"""Tests that configured trackers get the metrics, and that nothing else is uploaded."""

from __future__ import annotations

import json
import logging
import os
import signal
import struct
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from faults import train_and_signal
from trainings import build_setup

from krill.extras import format_install_command
from krill.runs.compare import flatten_config
from krill.runs.json_lines import read_metrics
from krill.runs.record import Record, read_config, read_status, write_status
from krill.training import run as run_module
from krill.training.metrics import trackers


def test_tensorboard_gets_every_metric(krill_train: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert krill_train("trackers=[tensorboard]", "steps=2", "eval_every=2") == 0
    (run,) = krill_train.runs()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = read_metrics(run)
    for key in ("loss", "grad_norm", "tokens_per_second", "update_rms/matrices", "lr/vectors"):
        expected = {line["step"]: line[key] for line in lines if key in line}
        assert {event.step: event.value for event in events.Scalars(f"train/{key}")} == pytest.approx(
            expected, rel=1e-6
        )
    assert events.Scalars("eval/bits_per_byte")[0].value == pytest.approx(
        lines[-1]["eval_bits_per_byte"], rel=1e-6
    )


def test_a_missing_tracker_is_an_error_before_anything_is_written(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "trackio" else find_spec(name))
    assert krill_train("trackers=[trackio]") == 2
    assert f"trackio is not installed: {format_install_command('trackio')}" in capsys.readouterr().err
    assert krill_train.runs() == []


def test_nothing_is_uploaded_by_default(make_config: Any, tmp_path: Path, prepared_data: Any) -> None:
    setup = build_setup(make_config(), tmp_path, prepared_data.store, prepared_data.tokenizer.folder)
    assert run_module._build_training_arguments(setup).report_to == []


def test_trackers_are_closed_if_another_cannot_be_opened_or_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[tuple[str, bool]] = []

    def make_tracker(name: str) -> Any:
        def close(failed: bool) -> None:
            closed.append((name, failed))
            if name == "b":
                raise OSError("disk full")

        return lambda run: SimpleNamespace(close=close)

    def refuse(run: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(trackers, "TRACKERS", {"a": make_tracker("a"), "b": make_tracker("b"), "c": refuse})
    run: Any = None
    with pytest.raises(OSError, match="no network"), trackers.Trackers(["a", "c"], run):
        pass
    assert closed == [("a", True)]
    with pytest.raises(OSError, match="disk full"), trackers.Trackers(["a", "b"], run):
        closed.clear()
    assert sorted(closed) == [("a", True), ("b", False)]
    with trackers.Trackers(["a"], run):
        closed.clear()
    assert closed == [("a", False)]


def test_tensorboard_gets_the_configuration_of_krill(krill_train: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    overrides = ("trackers=[tensorboard]", "steps=6", "lr=0.007", "optimizer=muon_keller", "save_every=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers.TensorBoardTracker, "log", interrupt_at_step(4))
        assert krill_train(*overrides) == 130
    assert krill_train(*overrides) == 0
    (run,) = krill_train.runs()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    text = events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert_config_of_krill(yaml.safe_load(text.strip("`").removeprefix("yaml\n")), run)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["lr"].number_value == 0.007
    assert values["optimizer.name"].string_value == "muon_keller"
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]  # each once


def interrupt_at_step(last: int) -> Any:
    """Returns a `log` of TensorBoardTracker that is interrupted after it has written the step `last`."""
    original = trackers.TensorBoardTracker.log

    def log(self: Any, step: int, metrics: Any) -> None:
        original(self, step, metrics)
        if step == last:
            raise KeyboardInterrupt

    return log


def assert_config_of_krill(config: dict[str, Any], run: Path) -> None:
    """Asserts that a tracker got config.yaml of the run, and what was derived from it."""
    derived, status = config.pop("derived"), read_status(run)
    assert status is not None
    assert flatten_config(config) == flatten_config(read_config(run))
    assert derived["signature"] == status["signature"]
    assert derived["data_signature"] == status["data"]["signature"]
    assert derived["tokenizer_signature"] == status["tokenizer"]["signature"]
    assert (derived["parameters"], derived["steps"]) == (status["parameters"], status["steps"])
    assert (derived["ranks"], derived["warmup_steps"], derived["tokens_per_step"]) == (1, 1, 128)
    assert derived["param_groups"]["vectors"]["lr"] == config["lr"]


class FakeWandb(ModuleType):
    """Records what krill tells wandb."""

    Error = RuntimeError

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        self.settings = SimpleNamespace(mode="online", api_key=None, base_url="https://wandb.example")
        self.is_reachable = True

    def setup(self) -> Any:
        return self

    def init(self, **arguments: Any) -> Any:
        if arguments["mode"] is None and not self.is_reachable:
            raise self.Error("no route\nto host")
        self.calls.append(arguments | {"command_line": sys.argv})
        return SimpleNamespace(
            id=arguments["id"], dir=f"{arguments['dir']}/wandb/x/files", define_metric=lambda *_, **__: None,
            log=self.lines.append, finish=lambda exit_code: self.exit_codes.append(exit_code),
        )  # fmt: skip


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWandb:
    """A wandb without an API key."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return fake


def test_a_resumed_run_is_one_run_of_wandb(
    krill_train: Any, wandb: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("trackers=[wandb]", "steps=4", "optimizer=muon_keller")
    assert train_and_signal(krill_train, signal.SIGTERM, 2, *overrides) == 75
    assert krill_train(*overrides) == 0
    (run,) = krill_train.runs()
    first, second = wandb.calls
    assert first["id"] == second["id"] == (read_status(run) or {})["tracker_ids"]["wandb"]
    assert (second["resume"], second["mode"], second["dir"]) == ("allow", "offline", str(run))
    assert (second["name"], second["group"], second["tags"]) == (f"llama_pico/{run.name}", None, None)
    assert_config_of_krill(dict(second["config"]), run)
    assert wandb.exit_codes == [1, 0]
    assert [line["train/global_step"] for line in wandb.lines] == [1, 2, 3, 4, 4]
    assert wandb.lines[-1].keys() >= {"eval/loss", "eval/bits_per_byte"}
    assert [line["train/epoch"] for line in wandb.lines] == pytest.approx(
        [line["epoch"] for line in read_metrics(run)], abs=1e-6
    )
    assert "offline; to upload this run: wandb sync" in capsys.readouterr().err


def test_wandb_records_the_command_line_without_secrets(
    make_run_of_sweep: Any, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_line = ["krill-train", "lr=1e-3", "+hydra.job.env_set.WANDB_API_KEY=secret"]
    monkeypatch.setattr(sys, "argv", command_line)
    trackers.WandbTracker(make_run_of_sweep("a"))
    assert wandb.calls[0]["command_line"] == [*command_line[:2], "+hydra.job.env_set.WANDB_API_KEY=***"]
    assert sys.argv == command_line


def test_points_of_a_sweep_are_a_group_with_tags(make_run_of_sweep: Any, wandb: FakeWandb) -> None:
    for point in ("a", "b"):
        trackers.WandbTracker(make_run_of_sweep(point)).close(has_failed=False)
    assert [call["group"] for call in wandb.calls] == ["rates", "rates"]
    assert [call["tags"] for call in wandb.calls] == [["lr=0.1"], ["lr=0.2"]]
    assert len({call["id"] for call in wandb.calls}) == 2


@pytest.fixture
def make_run_of_sweep(make_config: Any, tmp_path: Path, prepared_data: Any) -> Any:
    """make_run_of_sweep("a"): a point of a sweep of two learning rates, with 4 steps."""
    points = [{"folder": name, "overrides": ["steps=4", f"lr={lr}"]} for name, lr in (("a", 0.1), ("b", 0.2))]

    def make(name: str) -> trackers.TrackedRun:
        folder = tmp_path / "rates" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "sweep.json").write_text(json.dumps({"command": "train", "points": points}))
        if read_status(folder) is None:
            write_status(folder, {"state": "running", "signature": name})
        setup = build_setup(make_config(), folder, prepared_data.store, prepared_data.tokenizer.folder)
        model = run_module._build_model(setup)
        return trackers.TrackedRun(
            Record(folder), setup, trackers.collect_tracked_config(setup, model, name), first_step=0
        )

    return make


def test_wandb_without_a_network_writes_to_this_machine(
    make_run_of_sweep: Any,
    wandb: FakeWandb,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("krill"), "propagate", True)
    (Path(os.environ["NETRC"])).write_text("machine wandb.example login user password secret")
    Path(os.environ["NETRC"]).chmod(0o600)
    trackers.WandbTracker(make_run_of_sweep("a"))
    wandb.is_reachable = False
    trackers.WandbTracker(make_run_of_sweep("a"))
    wandb.settings.mode = "disabled"
    wandb.is_reachable = True
    trackers.WandbTracker(make_run_of_sweep("a"))
    assert [call["mode"] for call in wandb.calls] == [None, "offline", None]
    assert "wandb       cannot be reached (no route to host)" in caplog.text


def test_wandb_reads_back_what_krill_wrote(
    make_run_of_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        tracker = trackers.WandbTracker(make_run_of_sweep("a"))
        tracker.log(step, {"train/loss": 1.0 / step})
        tracker.close(has_failed=False)
    wandb.teardown()  # waits for its service, which writes the files
    files = sorted((tmp_path / "rates/a/wandb").glob("offline-run-*/*.wandb"))
    starts = [[WandbRecord.FromString(content) for content in read_leveldb_log(file)] for file in files]
    assert len(starts) == 2
    runs = [record.run for records in starts for record in records if record.HasField("run")]
    assert {(run.run_id, run.run_group, *run.tags) for run in runs} == {(runs[0].run_id, "rates", "lr=0.1")}
    config = {update.key: json.loads(update.value_json) for update in runs[0].config.update}
    assert config["optimizer"]["name"] == "muon_krill"
    assert config["derived"]["steps"] == 4
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for records in starts for record in records if record.HasField("history")
    ]  # fmt: skip
    assert [(line["train/global_step"], line["train/loss"]) for line in history] == [(1, 1.0), (2, 0.5)]


def read_leveldb_log(file: Path) -> list[bytes]:
    """Returns the records of a .wandb file: 7 bytes, then LevelDB's log format."""
    content, position, records, parts = file.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        _, size, kind = struct.unpack_from("<IHB", content, position) if left >= 7 else (0, 0, 0)
        if not kind:
            position += left
            continue
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            records.append(parts)
            parts = b""
    return records


def test_trackio_reads_back_what_krill_wrote(
    make_run_of_sweep: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    for step in (1, 2):
        tracker = trackers.TrackioTracker(make_run_of_sweep("a"))
        tracker.log(step, {"train/loss": 1.0 / step})
        tracker.close(has_failed=False)
    storage = sqlite_storage.SQLiteStorage
    assert storage.get_runs("krill") == ["llama_pico/a"]
    lines = storage.get_logs("krill", "llama_pico/a")
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 0.5)]
    config = storage.get_run_config("krill", "llama_pico/a")
    assert (config["optimizer.name"], config["_Group"], config["derived.steps"]) == (
        "muon_krill",
        "rates",
        4,
    )
    assert capsys.readouterr().out == ""


def test_an_unknown_tracker_is_refused(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("trackers=[mlflow]") == 2
    assert "trackers" in capsys.readouterr().err
