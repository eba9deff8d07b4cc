"""A mistake in use: one message each that names the fix, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import error_messages, is_empty, run_command

from krill.cli import app, infer, train

CASES = {
    "optimizer=muon_kellr": "Did you mean optimizer=muon_keller? Available: adamw, muon_keller",
    "experiment=tiny_kko": "Did you mean experiment=tiny_ko?",
    "model=null": "unknown option 'null' for model. Available: auto, llama_125m",
    "lrr=1e-3": "no such key 'lrr'. Did you mean lr?",
    "+lrr=1e-3": "no such key 'lrr'. Did you mean lr?",
    "+experiment=tiny_ko": "use it without +",
    "lr=fast": "lr=fast: input should be a valid number",
    "lr=-1": "lr=-1: input should be greater than 0",
    "lr=1,2": "add -m to sweep",
    "lr=[1e-3,3e-3]": "the values of a sweep have no brackets: -m lr=0.001,0.003",
    "+lr=1": "+lr=1: the key exists; use lr=…",
    "data=a.parquet": "for text of your own use data=files data.paths=[a.parquet]",
    "experiment=conf/experiment/tiny_ko.yaml": "use its name, experiment=tiny_ko",
    "lr=interval(1,2)": "add -m to sweep",
    "--lr 1e-3": "use lr=1e-3",
    "model": "model=tiny_ko",
    "model.hiden_size=3": "no such key 'model.hiden_size'. Did you mean model.hidden_size?",
    "model.hidden_size=7": "num_attention_heads=6 does not divide hidden_size=7; set head_dim",
    "hidden_size=3": "Did you mean model.hidden_size?",
    "data.path=x": "Did you mean data.paths?",
    "data.paths=x": "no such key 'data.paths' here; it belongs to data=files",
    "scheduler.decay=0.1": "it belongs to scheduler=wsd",
    "optimizer.lr=1e-2": "optimizer.lr follows lr; set lr=0.01",
    "~model": "follows model.name, which is not set",
    "lr_scale=${lr}": "optimizer.lr: it refers to itself",
    "~lr": "follows lr, which is not set",
    "steps=1 epochs=1": "exactly one of steps and epochs must be set",
    "batch.tokens=100": "not a multiple of sequence_len=256; use 256",
    "batch.tokens=512 batch.gradient_accumulation_steps=2": "set one to null",
    "device=cudaa": "'auto', 'cpu' or 'cuda'",
    "name=a/b": "set output= for another folder",
    "name=..": "set output= for another folder",
    "hub.push=true": "hub.id=user/name",
    "hub.checkpoints=true": "hub.id=user/name",
    "resume=remote": "resume=remote needs a repository; set hub.id=user/name",
    "data=files": "data.paths is not set; use data.paths=…",
    "tokenizer=pretrained": "tokenizer.path is not set; use tokenizer.path=…",
    "data=files data.paths=[말뭉치/없다.txt]": "말뭉치/없다.txt: no such file or folder",
    "data=files data.paths=[../empty.jsonl]": "empty.jsonl: is empty",
    "from=nothere": "from=nothere: not the name of a run or sweep, nor a folder",
    "resume=nothere": "resume=nothere: not the name of a run or sweep, nor a folder",
    "--config-dir nothere": "no such configuration folder: nothere",
    "-m hydra/launcher=nope": "Available: basic, pool, submitit_local, submitit_slurm",
    "hydra/launcher=submitit_local": "add -m",
    "-m --cfg job": "leave one of them out",
    "optimizer=[1,2]": "optimizer: 1 is not an option; choose one by its name, as in optimizer=",
    "model=[{name:x}]": "is not an option; choose one by its name, as in model=",
    "batch=[1]": "batch is a section; set its keys, as in batch.KEY=…",
    "skip_step={nann:1}": "no such key 'skip_step.nann'. Did you mean skip_step.nan?",
    "hydra/sweeper=optuna": "use sweep.search=tpe",
    "batch.size=8": "no such key 'batch.size'. Use batch.micro_batch_size=…, or batch.tokens=…",
    "learning_rate=1e-3": "no such key 'learning_rate'. Use lr=…",
    "trainer.per_device_train_batch_size=8": "Use batch.micro_batch_size=…",
    "hydra.run.dir=mine": "the folder of a run is output=…",
    "hydra.job.env_copy=[KRILL_NOT_SET]": "the environment variable KRILL_NOT_SET is not set",
    "seed=range(0,4,0)": "the range has 0 values",
    "-m output=a,b": "output has one value for the whole sweep",
    "-m seed=range(0,4,0)": "the range has 0 values",
    "lr=1e400": "lr=inf: input should be a finite number",
}


SHELL = ("optimizer=muon_kellr", "lrr=1e-3", "+lrr=1e-3", "lr=fast", "--lr 1e-3", "model.hiden_size=3")
"""Cases that are also run as a person runs them; the others in this process, which is faster."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working directory; files that the cases name lie beside it."""
    (tmp_path / "empty.jsonl").touch()
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("words", [*SHELL, "data=files data.paths=[../empty.jsonl]"])
def test_the_command_names_the_fix(here: Path, words: str):
    *_, told = error_messages(run_command(here, "krill-train", *words.split()))
    assert CASES[words] in told
    assert is_empty(here)


@pytest.mark.parametrize("words", CASES)
def test_train_names_the_fix(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: str
):
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", sys.argv)
    code = app.main("train", train.run_task, words.split())
    output, told = capfd.readouterr()
    assert (code, output) == (2, "")
    assert all(line.startswith("krill-train: error: ") for line in told.splitlines()), told
    assert CASES[words] in told
    assert is_empty(here)


def test_several_mistakes_are_told_at_once(here: Path):
    wrong = ["lrr=1", "optimizer=muon_kellr", "model.hiden_size=3", "seed=fast", "data=files"]
    told = error_messages(run_command(here, "krill-train", *wrong))
    assert len(told) == len(wrong)
    for key in ("lrr", "muon_kellr", "model.hiden_size", "seed=fast", "data.paths"):
        assert sum(key in line for line in told) == 1, key


def test_a_value_that_others_follow_is_told_once(here: Path):
    assert (
        len(error_messages(run_command(here, "krill-train", "lr=fast"))) == 1
    )  # optimizer.lr and muon_lr follow it


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("lr=1e-3,fast", "lr=fast: input should be a valid number"),
        ("optimizer=adamw,muon_kellr", "Did you mean optimizer=muon_keller?"),
        ("model=null,tiny_ko", "unknown option 'null' for model"),
        ("lrr=1,2", "Did you mean lr?"),
        ("batch.tokens=256,300", "use 256 or 512"),
        ("data=files lr=1,2", "data.paths is not set"),
        ("data=files data.paths=[nothere.txt] lr=1,2", "nothere.txt: no such file"),
        ("sweep=null lr=1,2", "sweep"),
        ("sweep.search=random sweep.trials=2 seed=x lr=1,2", "seed=x: input should be a valid integer"),
        ("lr=interval(1,2)", "a grid cannot sweep an interval"),
        ("model=auto model.model_type=gpt2,qwen2", "the name of the sweep follows model.model_type"),
        ("lr=glob(*)", "lr=glob(*): no option of a config group matches"),
    ],
)
def test_a_sweep_is_checked_before_its_first_point(here: Path, words: str, fix: str):
    told = error_messages(run_command(here, "krill-train", "-m", *words.split()))
    assert fix in "\n".join(told)
    assert is_empty(here)


def test_a_sweep_runs_in_a_folder_with_a_comma_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path / "a,b")
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert app.main("train", train.run_task, ["-m", "seed=0,soon"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed=soon: input should be a valid integer" in line


def test_a_sweep_names_the_points_that_are_wrong(here: Path):
    told = error_messages(run_command(here, "krill-train", "-m", "lr=1e-3,fast", "seed=0,soon"))
    assert [line.partition(":")[0] for line in told] == ["seed=soon", "lr=fast"]
    assert told[0].endswith("(in: lr=0.001 seed=soon; lr=fast seed=soon)")


@pytest.mark.parametrize(
    ("command", "words", "fix"),
    [
        ("krill-preprocess", "data.min_chars=few", "data.min_chars=few: input should be a valid integer"),
        ("krill-tokenizer", "tokenizer.vocab_size=12", "greater than or equal to 300"),
        ("krill-infer", "", "use model=<folder or Hub id>"),
        (
            "krill-infer",
            "model=nothere prompt=가",
            "model=nothere: not the name of a run or sweep, nor a folder",
        ),
        (
            "krill-infer",
            "안녕",
            "A text to continue is set with prompt=…",
        ),
        ("krill-infer", "experiment=nope", "unknown option 'nope' for experiment"),
        ("krill-infer", "experiment=tiny_ko", "krill-train experiment=tiny_ko"),
        ("krill-infer", "from=x", "use model=x"),
        ("krill-infer", "model=x promt=y", "Did you mean prompt?"),
    ],
)
def test_the_other_commands_do_so_too(here: Path, command: str, words: str, fix: str):
    assert fix in "\n".join(error_messages(run_command(here, command, *words.split())))
    assert is_empty(here)


def test_a_working_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert app.main("train", train.run_task, ["steps=2"]) == 2
    assert "the working directory is gone" in capsys.readouterr().err


def test_closed_streams_go_nowhere(monkeypatch: pytest.MonkeyPatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    app.open_closed_streams()
    streams = sys.stdin, sys.stdout, sys.stderr
    monkeypatch.undo()
    assert streams[0] is None
    assert [stream.name for stream in streams[1:]]
    assert streams[1].write("lost") == 4


def test_a_command_that_is_done_ends_with_0_though_nobody_reads_its_result(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        stdout.write("outputs/runs/x")
        assert app.run_and_report("train", lambda: 0) == 0
        monkeypatch.undo()


def test_standard_output_on_a_full_disk_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    full = open("/dev/full", "w")  # noqa: SIM115  (closing it would fail as well)
    monkeypatch.setattr(sys, "stdout", full)
    full.write("outputs/runs/x")
    assert app.run_and_report("train", lambda: 0) == 1
    assert "standard output or the folder of the result: No space left" in capsys.readouterr().err
    monkeypatch.undo()
    full.close()


@pytest.mark.parametrize(
    ("file", "number", "message"),
    [
        (
            "outputs/data/x",
            errno.ENOSPC,
            "free some space and run the same command again, or set KRILL_OUTPUTS to",
        ),
        (
            "mine",
            errno.ENOSPC,
            "free some space and run the same command again, or set output= to another folder",
        ),
        ("mine", errno.EROFS, "make it writable, or set output= to another folder"),
        ("text.jsonl", errno.EACCES, "Permission denied; change its permissions\n"),
    ],
)
def test_an_error_of_the_file_system_names_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    number: int,
    message: str,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)
    (tmp_path / "text.jsonl").touch()

    def fail() -> int:
        raise OSError(number, os.strerror(number), file)

    assert app.run_and_report("train", fail) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outputs", "problem"), [("file/x", "Not a directory"), ("f" * 300, "File name too long")]
)
def test_a_sweep_whose_folder_cannot_be_created_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outputs: str,
    problem: str,
):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("KRILL_OUTPUTS", outputs)
    assert app.main("train", train.run_task, ["-m", "seed=0,1"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("krill-train: error: ")
    assert f"{outputs}/sweeps/llama_nano" in message
    assert problem in message


def test_infer_without_standard_input_asks_for_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "stdin", None)
    (tmp_path / "config.json").write_text("{}")
    assert app.main("infer", infer.run_task, ["model.path=."]) == 2
    assert "set prompt=…" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(here: Path):
    script = Path(sys.executable).with_name("krill-train")
    closed = subprocess.run(
        ["bash", "-c", f"'{script}' --cfg job | true"], cwd=here, capture_output=True, text=True
    )
    assert closed.stderr == ""
