"""krill-export as a user runs it: the path on the last line, one line for each mistake, nothing half written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from stores import make_tokenizer

from krill.cli import app, export
from krill.cli.model_arguments import resolve_model_arguments
from krill.errors import UsageError
from krill.export.convert import resolve_output, write_export
from krill.export.source import ExportSource

MakeRun = Callable[..., Path]
RunExport = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def run_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunExport:
    """run_export("model=…", …) returns the exit code and the lines of standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        code = app.main("export", export.run_task, arguments, "model", resolve_model_arguments)
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return run


def list_files(folder: Path) -> list[str]:
    """Returns what is in a folder, without the locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def get_error(result: tuple[int, list[str], list[str]], code: int = 2) -> str:
    """Returns the only line of an error."""
    assert result[0] == code, result
    errors = [line for line in result[2] if ": error: " in line]
    assert len(errors) == 1
    assert "Traceback" not in "\n".join(result[2])
    return errors[0].partition(": error: ")[2]


def test_the_default_output_is_named_by_its_content(
    make_run: MakeRun, run_export: RunExport, tmp_path: Path
) -> None:
    run = make_run()
    code, (first,), _ = run_export(str(run))
    assert code == 0
    assert first.startswith("outputs/exports/llama-bf16-")
    assert "config.json" in list_files(tmp_path / first)
    _, (again,), log = run_export(f"model={run}")
    assert again == first
    assert log[-1] == f"already exported, skipping: {first}"
    _, (gguf,), _ = run_export(str(run), "format=gguf", "dtype=f16")
    assert gguf.startswith("outputs/exports/llama-f16-")
    assert gguf.endswith(".gguf")
    assert (tmp_path / gguf).read_bytes()[:4] == b"GGUF"
    assert list_files(tmp_path / "outputs" / "exports") == sorted(Path(path).name for path in (first, gguf))


def test_another_generation_config_is_another_export(make_run: MakeRun, run_export: RunExport) -> None:
    run = make_run()
    paths = set()
    for temperature in (0.5, 0.7):
        settings = {"do_sample": True, "temperature": temperature}
        (run / "model" / "generation_config.json").write_text(json.dumps(settings))
        paths.add(run_export(str(run), "dry_run=true")[1][-1])
    assert len(paths) == 2


def test_without_a_model_it_is_the_newest_finished_run(
    make_run: MakeRun, run_export: RunExport, tmp_path: Path
) -> None:
    assert "krill-train" in get_error(run_export())
    shutil.copytree(make_run(), tmp_path / "outputs" / "runs" / "llama" / "2026-01-01_00-00-00-aaaaaaaa")
    code, _, log = run_export("dry_run=true")
    assert code == 0
    assert log == ["model       outputs/runs/llama/2026-01-01_00-00-00-aaaaaaaa"]
    assert run_export("llama", "dry_run=true") == (0, run_export("dry_run=true")[1], log)


def test_a_dry_run_writes_nothing(make_run: MakeRun, run_export: RunExport, tmp_path: Path) -> None:
    run = make_run()
    before = list_files(tmp_path)
    code, out, _ = run_export(str(run), "format=gguf", "output=a.gguf", "dry_run=true")
    assert (code, out[-1]) == (0, "output      a.gguf, bf16")
    assert list_files(tmp_path) == before


def test_a_sweep_exports_each_point_into_its_folder(
    make_run: MakeRun, run_export: RunExport, tmp_path: Path
) -> None:
    code, out, _ = run_export(
        "-m", f"model={make_run()}", "format=hf,gguf", "dtype=f32", "hydra/launcher=basic"
    )
    assert code == 0
    names = {
        name for folder in (tmp_path / out[-1]).iterdir() if folder.is_dir() for name in list_files(folder)
    }
    assert {"model", "model.gguf"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=model.gguf"], "output=model.gguf: format=hf writes a folder; set format=gguf"),
        (["format=onnx"], "format=onnx"),
        (["from=x"], "use model=x"),
        (["tokenizer=other"], "tokenizer=other: not the tokenizer in"),
    ],
)
def test_a_mistake_is_one_line(
    make_run: MakeRun, run_export: RunExport, tmp_path: Path, arguments: list[str], message: str
) -> None:
    run = make_run()
    make_tokenizer(tmp_path / "other", "u" * 64, vocab_size=320)
    before = list_files(tmp_path)
    assert message in get_error(run_export(str(run), *arguments))
    assert list_files(tmp_path) == before


def test_an_output_that_exists_is_refused(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = ExportSource.open(str(make_run()), None)
    (tmp_path / "full" / "a").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.gguf").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for form, output in (("hf", "full"), ("hf", "link"), ("gguf", "old.gguf")):
        with pytest.raises(UsageError, match=f"output={output}: it exists; use another path, or remove it"):
            resolve_output(source, form, "bf16", output)
    with pytest.raises(
        UsageError, match=r"writes a file, whose name ends with \.gguf; set output=here\.gguf"
    ):
        resolve_output(source, "gguf", "bf16", "here")
    assert resolve_output(source, "hf", "bf16", "empty") == tmp_path / "empty"


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def pickle_weights(model: Path) -> None:
    remove_weights(model)
    torch.save({}, model / "pytorch_model.bin")


def cut_weights(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-100])


def remove_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def replace_tokenizer(model: Path) -> None:
    larger = make_tokenizer(model / "larger", vocab_size=340)
    shutil.copyfile(larger.folder / "tokenizer.json", model / "tokenizer.json")
    (model / "record.json").unlink()


def break_template(model: Path) -> None:
    (model / "chat_template.jinja").write_bytes(b"{% for")
    (model / "record.json").unlink()


def require_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text("raise SystemExit('code of a model was run')")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weights, "has no weights (model*.safetensors)"),
        (pickle_weights, "pytorch_model.bin is not safetensors"),
        (cut_weights, "transformers cannot load"),
        (remove_tokenizer, "no tokenizer.json in this folder"),
        (replace_tokenizer, "the tokenizer has 340 entries, but the model only 330"),
        (break_template, "the chat template cannot render this conversation"),
        (require_code, "it needs Python code from that folder, which krill does not run"),
    ],
)
def test_an_unusable_model(make_run: MakeRun, damage: Callable[[Path], None], message: str) -> None:
    run = make_run()
    damage(run / "model")
    with pytest.raises(UsageError) as raised:
        ExportSource.open(str(run), None).load_weights()
    assert message in str(raised.value)


def test_gguf_of_another_family_is_refused_and_hf_written(make_run: MakeRun, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    run = make_run()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=330, n_embd=8, n_layer=1, n_head=2, n_positions=64))
    model.save_pretrained(run / "model")
    source = ExportSource.open(str(run), None)
    with pytest.raises(UsageError, match="of the families llama and qwen3, and this is gpt2; use format=hf"):
        resolve_output(source, "gguf", "bf16", None)
    write_export(source, "hf", "bf16", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_gguf_without_its_package_names_the_extra(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="format=gguf needs the package gguf: pip install"):
        resolve_output(ExportSource.open(str(make_run()), None), "gguf", "bf16", None)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may have more than 20 KB: writing more fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("arguments", [["output=out"], ["format=gguf", "output=out.gguf"]])
def test_a_full_disk_leaves_nothing(
    make_run: MakeRun,
    run_export: RunExport,
    tmp_path: Path,
    arguments: list[str],
    request: pytest.FixtureRequest,
) -> None:
    run = make_run()
    before = list_files(tmp_path)
    request.getfixturevalue("small_disk")
    error = get_error(run_export(str(run), "dtype=f32", *arguments), code=1)
    assert "free some space and run the same command again, or set output= to another folder" in error
    assert list_files(tmp_path) == before


KILL = """
import os, sys
from pathlib import Path
from krill.atomic import make_file_once
def write(path):
    path.write_text("half")
    os.kill(os.getpid(), 9)
make_file_once(Path(sys.argv[1]), write)
"""


def test_a_killed_export_leaves_no_file_and_is_made_again(tmp_path: Path) -> None:
    from krill.atomic import make_file_once

    path = tmp_path / "a.gguf"
    subprocess.run([sys.executable, "-c", KILL, str(path)], check=False, env=os.environ)
    assert list_files(tmp_path) == [".a.gguf.partial"]

    def write(partial: Path) -> None:
        partial.write_text("whole")

    assert make_file_once(path, write)
    assert list_files(tmp_path) == ["a.gguf"]
    assert path.read_text() == "whole"
    assert not make_file_once(path, lambda _: pytest.fail("it is there already"))
