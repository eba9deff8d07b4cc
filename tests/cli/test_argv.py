"""The command line is split into flags and overrides wherever they are; an argument that is neither is an error."""

from __future__ import annotations

import pytest

from krill.cli.argv import parse_arguments
from krill.errors import UsageError


@pytest.mark.parametrize("command_line", ["-m model=x lr=1,2", "model=x -m lr=1,2", "model=x lr=1,2 -m"])
def test_a_flag_is_accepted_anywhere(command_line: str):
    parsed = parse_arguments(command_line.split())
    assert parsed.is_multirun
    assert parsed.flags == ["-m"]
    assert parsed.overrides == ["model=x", "lr=1,2"]


def test_flags_with_a_value():
    parsed = parse_arguments(
        ["lr=1", "--cfg", "job", "--config-dir", "mine", "--config-dir=yours", "--info", "defaults"]
    )
    assert parsed.flags == ["--cfg", "job", "--info=defaults"]
    assert parsed.config_dirs == ["mine", "yours"]
    assert parsed.overrides == ["lr=1"]


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["--lr", "1e-3"], "use lr=1e-3"),
        (["--lr=1e-3"], "use lr=1e-3"),
        (["--lr-min", "3"], "use lr_min=3"),
        (["--verbose"], "use verbose=…"),
        (["--verbose", "lr=3"], "use verbose=…"),
        (["--config-dir"], "--config-dir needs a value"),
        (["tiny_ko"], "model=tiny_ko"),
        (["lr=1e-3,", "3e-3"], "use lr=1e-3,3e-3$"),
        (["data.paths=[a.jsonl,", "b.parquet", ",c.csv]"], r"use data.paths=\[a.jsonl,b.parquet,c.csv\]"),
        (["lr", "=", "1e-3"], "use lr=1e-3$"),
        (["lr=", "1e-3"], "use lr=1e-3$"),
        (["lr", "=1e-3"], "use lr=1e-3$"),
        (["model", "llama_nano"], "use model=llama_nano$"),
        (["learning_rate", "1e-3"], "use lr=1e-3$"),
        (["말뭉치/가.JSONL.gz"], r"use data=files data.paths=\[말뭉치/가.JSONL.gz\]"),
        (["conf/experiment/mine.yaml"], "use experiment=mine$"),
        (["--config-name", "mine.yaml"], "use experiment=mine$"),
        (["-cn=mine"], "use experiment=mine$"),
        (["--learning_rate", "1e-3"], "use lr=1e-3"),
        (["--bf16"], "use hardware.precision=bf16"),
        (["--resolve"], "use --cfg job --resolve"),
        (["-p", "optimizer"], "use --cfg job -p optimizer"),
        (["--cfg", "jobs"], "use --cfg job, hydra, all"),
        (["--cfg"], "--cfg needs a value"),
        (["--info", "tree"], "use --info all, config"),
        (["--config-path=mine"], "--config-dir mine"),
        (["hydra.run.dir=mine"], "output=…"),
        (["hydra.sweep.dir=mine"], "output=…"),
        (["hydra.sweep.subdir=x"], "leave the key out"),
        (["hydra.output_subdir=x"], "leave the key out"),
        (["hydra.job.chdir=true"], "leave the key out"),
        (["hydra.runtime.output_dir=mine"], "output=…"),
        (["hydra.runtime={output_dir: mine}"], "output=…"),
        (["hydra.runtime.cwd=mine"], "leave them out"),
        (["hydra.overrides.task=[lr=5]"], "leave them out"),
        (["hydra.job.num=3"], "leave the key out"),
        (["hydra.run={dir: mine}"], "output=…"),
        (["hydra={run:{dir:a b}}"], "output=…"),
        (["++hydra.sweep={dir:mine}"], "output=…, with -m"),
    ],
)
def test_the_error_for_an_invalid_argument_names_the_fix(arguments: list[str], fix: str):
    with pytest.raises(UsageError, match=fix):
        parse_arguments(arguments)


def test_every_invalid_argument_is_reported():
    with pytest.raises(UsageError) as raised:
        parse_arguments(["--lr", "1e-3", "word", "steps=1", "-x"])
    assert len(str(raised.value).splitlines()) == 3


def test_the_first_argument_without_a_key_is_the_value_of_the_positional_key():
    assert parse_arguments(["outputs/모델", "prompt=가"], positional_key="model").overrides == [
        "model=outputs/모델",
        "prompt=가",
    ]
    with pytest.raises(UsageError, match="'second' is not key=value; set the prompt with prompt="):
        parse_arguments(["first", "second"], positional_key="model")
