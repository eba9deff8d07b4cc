"""krill-serve as a command: what it refuses in one line, what it prints, and how signals end it."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest
from console import get_clean_environment, get_server, is_empty
from serving_fixtures import load_tiny_model

from krill.cli import app, serve


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    loaded = load_tiny_model(folder)
    loaded.model.save_pretrained(folder)
    return folder


def run_serve(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs the command in this process; returns its exit code, standard output and standard error."""
    code = app.main("serve", serve.run_task, arguments, "model", serve._prepare_arguments)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve.host=0.0.0.0"], "needs a key: set KRILL_API_KEY"),
        (["serve.host=::"], "needs a key"),
        (["serve.host=krill.example"], "needs a key"),
        (["serve.host=203.0.113.7", "serve.api_key=sesame"], "not an address of this machine"),
        (["serve.host=nowhere.invalid", "serve.api_key=sesame"], "serve.host=nowhere.invalid serve.port=8000: "),
        (["serve.api_key='two words'"], "serve.api_key: is not a key"),
        (["serve.port=70000"], "serve.port"),
        (["-m", "serve.port=1,2"], "-m is for commands that end"),
        (["hardware=slurm_gpu"], "srun --pty krill-serve MODEL"),
        (["from=x"], "use model=x"),
        (["serve.prot=1"], "Did you mean serve.port?"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_one_line(
    capsys: pytest.CaptureFixture[str], model_folder: Path, arguments: list[str], message: str
) -> None:
    code, stdout, stderr = run_serve(capsys, str(model_folder), *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("krill-serve: error: ")
    assert message in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert "sesame" not in stderr


def test_a_port_in_use_is_said_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], model_folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, stderr = run_serve(capsys, str(model_folder), f"serve.port={port}")
    assert code == 2
    assert f"serve.port={port}: the port is in use; use serve.port=0" in " ".join(stderr.split())


def test_a_key_of_the_environment_that_no_header_carries(
    capsys: pytest.CaptureFixture[str], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRILL_API_KEY", "비밀")
    code, _, stderr = run_serve(capsys, str(model_folder))
    assert code == 2
    assert "KRILL_API_KEY is not a key" in stderr
    assert "비밀" not in stderr


def test_a_dry_run_prints_what_it_would_serve(
    capsys: pytest.CaptureFixture[str], model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KRILL_API_KEY", "sesame")
    code, stdout, _ = run_serve(capsys, str(model_folder), "dry_run=true", "serve.host=0.0.0.0")
    assert code == 0
    assert stdout.splitlines() == [f"model       {model_folder}", "address     0.0.0.0:8000, with an API key"]
    assert is_empty(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_answers_and_the_server(
    tmp_path: Path, model_folder: Path, number: signal.Signals, code: int
) -> None:
    command = [str(Path(sys.executable).with_name("krill-serve")), str(model_folder), "serve.port=0"]
    out, err = tmp_path / "out", tmp_path / "err"
    with open(out, "w") as stdout, open(err, "w") as stderr:
        process = get_server().spawn(
            command, env=get_clean_environment(), cwd=tmp_path, stdout=stdout, stderr=stderr
        )
    try:
        until = time.monotonic() + 120
        while not out.read_text().endswith("\n"):
            assert process.poll() is None, err.read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        connection = HTTPConnection("127.0.0.1", int(out.read_text().rpartition(":")[2]), timeout=60)
        body = {"prompt": "a", "max_tokens": 250, "min_tokens": 250, "stream": True, "n": 16}
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        response.readline()
        process.send_signal(number)
        assert "the server is shutting down" in response.read().decode()
        assert process.wait(60) == code
    finally:
        process.kill()
    lines = err.read_text().splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"serving     {model_folder} as tiny on ")
    assert lines[1] == f"krill-serve: stopped by {number.name}"
