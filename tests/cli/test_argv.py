"""What is typed arrives: prompts character for character, Hangul and spaces anywhere, flags wherever they stand."""

from __future__ import annotations

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from krill.cli.argv import clear_exclusive_keys, parse_arguments, quote_override
from krill.cli.compose import compose_config
from krill.errors import UsageError

TEXT = st.text(
    st.one_of(
        st.sampled_from("\\'\"${},[]=:~+()?!*# \n\t가ㅋ한"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=20,
)


def infer(*words: str) -> DictConfig:
    """The values of krill-infer's command line."""
    return compose_config("infer", [quote_override(word) for word in ("model.path=x", *words)])


def data(value: str) -> list[str] | str:
    """data.paths as composed."""
    return OmegaConf.to_container(
        compose_config("train", ["data=files", quote_override(f"data.paths={value}")]).data
    )["paths"]


@settings(max_examples=60, deadline=None)
@example("")
@example(" a ")
@example("옛날 옛적에, '왕'이 (살았다) = ?")
@example("${lr}, \\${lr}, \\\\${lr}, ${")
@example('it\'s "quoted"\nhere\\')
@example("ends in a backslash\\")
@example("choice(1,2)")
@example("null")
@example("1e3")
@example("???")
@given(TEXT)
def test_a_prompt_arrives_character_for_character(text: str):
    assert infer(f"prompt={text}").prompt == text


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_a_prompt_survives_a_sweep(text: str):
    overrides = OverridesParser.create().parse_overrides([quote_override(f"prompt={text}"), "seed=1,2"])
    points = BasicSweeper.split_arguments(overrides, None)[0]
    assert len(points) == 2
    again = OverridesParser.create().parse_override(points[1][0]).value()
    assert OmegaConf.create({"prompt": again}).prompt == text


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("[말뭉치/가.jsonl, b c.jsonl]", ["말뭉치/가.jsonl", "b c.jsonl"]),
        ("[/a/b=c.txt]", ["/a/b=c.txt"]),
        ("['a, b.txt',가.txt]", ["a, b.txt", "가.txt"]),
        ('["따옴표 하나.txt"]', ["따옴표 하나.txt"]),
        ("[it's,한글]", ["it's", "한글"]),
        ("[x(1).txt,글(2).txt]", ["x(1).txt", "글(2).txt"]),
        ("한글 파일.txt", "한글 파일.txt"),
        ("a=b.txt", "a=b.txt"),
        ("[a", "[a"),
    ],
)
def test_paths_as_in_a_shell(typed: str, paths: list[str] | str):
    assert data(typed) == paths


@pytest.mark.parametrize(
    "name", ["한국어", "세 번째 시도", "a=b", "이름(2)", "1e3", "2024_01", "007", "true", "3"]
)
def test_a_name_is_text(name: str):
    assert str(compose_config("train", [quote_override(f"name={name}")]).name) == name


@pytest.mark.parametrize("place", ["outputs/한글 폴더", "1e3", "runs/*/모델"])
def test_a_model_is_text(place: str):
    assert infer(f"model.path={place}").model.path == place


def test_null_takes_a_value_away():
    assert compose_config("train", [quote_override("output=null")]).output is None


def test_names_can_be_swept():
    (override,) = OverridesParser.create().parse_overrides([quote_override("name=1e3,한국어,b c")])
    points = BasicSweeper.split_arguments([override], None)[0]
    assert [compose_config("train", point).name for point in points] == ["1e3", "한국어", "b c"]


def test_what_hydra_reads_stays_as_it_is():
    for override in (
        "lr=1e-3",
        "lr=1,2",
        "model=tiny_ko",
        "seed=range(0,3)",
        "~experiment",
        "name=${model.name}",
    ):
        assert quote_override(override) == override


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
        (["--lr", "1e-3"], "write lr=1e-3"),
        (["--lr=1e-3"], "write lr=1e-3"),
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
    with pytest.raises(UsageError, match="'second' is not key=value; words to go on from are prompt="):
        parse_arguments(["first", "second"], bare="model")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("steps=5", "epochs"),
        ("epochs=2", "steps"),
        ("steps=1,2", "epochs"),
        ("batch.tokens=4096", "batch.gradient_accumulation_steps"),
        ("batch.gradient_accumulation_steps=4", "batch.tokens"),
    ],
)
def test_setting_one_clears_the_other(one: str, other: str):
    assert clear_exclusive_keys([one]) == [one, f"{other}=null"]
    assert clear_exclusive_keys([one, f"{other}=7"]) == [one, f"{other}=7"]  # both typed: told, not decided
    assert clear_exclusive_keys([f"{other}=null"]) == [f"{other}=null"]
