"""The command line is split into flags and overrides wherever they are; an argument that is neither is an error."""

from __future__ import annotations

import pytest

from krill.cli.argv import parse_arguments
from krill.errors import UsageError


@pytest.mark.parametrize("words", ["-m model=x lr=1,2", "model=x -m lr=1,2", "model=x lr=1,2 -m"])
def test_the_flag_may_stand_anywhere(words: str):
    typed = parse_arguments(words.split())
    assert typed.is_multirun
    assert typed.flags == ["-m"]
    assert typed.overrides == ["model=x", "lr=1,2"]


def test_flags_with_a_value_keep_it():
    typed = parse_arguments(
        ["lr=1", "--cfg", "job", "--config-dir", "mine", "--config-dir=yours", "--info", "defaults"]
    )
    assert typed.flags == ["--cfg", "job", "--info", "defaults"]
    assert typed.config_dirs == ["mine", "yours"]
    assert typed.overrides == ["lr=1"]


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["--lr", "1e-3"], "use lr=1e-3"),
        (["--lr=1e-3"], "use lr=1e-3"),
        (["--lr-min", "3"], "write lr_min=3"),
        (["--verbose"], "write verbose=…"),
        (["--verbose", "lr=3"], "write verbose=…"),
        (["--config-dir"], "--config-dir needs a value"),
        (["tiny_ko"], "model=tiny_ko"),
    ],
)
def test_a_word_that_is_no_assignment_names_the_fix(words: list[str], fix: str):
    with pytest.raises(UsageError, match=fix):
        parse_arguments(words)


def test_every_wrong_word_is_told():
    with pytest.raises(UsageError) as refused:
        parse_arguments(["--lr", "1e-3", "word", "steps=1", "-x"])
    assert len(str(refused.value).splitlines()) == 3


def test_the_first_bare_word_is_the_model_only_if_the_command_says_so():
    assert parse_arguments(["outputs/모델", "prompt=가"], bare="model").overrides == [
        "model=outputs/모델",
        "prompt=가",
    ]
    with pytest.raises(UsageError, match="'second' is not key=value; set the prompt with prompt="):
        parse_arguments(["first", "second"], bare="model")
