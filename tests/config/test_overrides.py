"""Overrides reach the configuration as typed: prompts character for character, Hangul and spaces in every value."""

from __future__ import annotations

import pytest
from compositions import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from krill.config.overrides import (
    clear_exclusive_keys,
    exclude_cleared_keys,
    expand_float_range,
    format_text_override,
    is_section_overridden,
    quote_override,
)
from krill.errors import UsageError

TEXT = st.text(
    st.one_of(
        st.sampled_from("\\'\"${},[]=:~+()?!*# \n\t가ㅋ한"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=20,
)


def compose_infer(*overrides: str) -> DictConfig:
    """Returns the composed configuration of krill-infer."""
    return compose("infer", *(quote_override(override) for override in ("model.path=x", *overrides)))


def compose_paths(value: str) -> list[str] | str:
    """Returns data.paths as composed."""
    return OmegaConf.to_container(compose("train", "data=files", quote_override(f"data.paths={value}")).data)[
        "paths"
    ]


def sweep_names(values: str) -> list[str]:
    """Returns the names of the points of a sweep over name=`values`."""
    (override,) = OverridesParser.create().parse_overrides([quote_override(f"name={values}")])
    points = BasicSweeper.split_arguments([override], None)[0]
    return [compose("train", *point).name for point in points]


@pytest.mark.parametrize(
    "text",
    ["/x/run-1", "한국 어/실행", "a,b", "12", "1e3", "null", "true", "it's {x}", "a=${b}", "???", "[a]"],
)
def test_a_path_of_krill_is_one_value_character_for_character(text: str) -> None:
    override = quote_override(format_text_override("model.path", text))
    assert not OverridesParser.create().parse_override(override).is_sweep_override()
    assert compose("infer", override).model.path == text


def test_a_path_that_needs_no_quotes_has_none() -> None:
    assert format_text_override("branch", "runs/ko/1-aa/checkpoint-2") == "branch=runs/ko/1-aa/checkpoint-2"


def test_a_section_is_overridden_by_its_option_or_a_key() -> None:
    for override in ("tokenizer=bpe_4k", "tokenizer.path=x", "++tokenizer.path=x", "~tokenizer"):
        assert is_section_overridden("tokenizer", ["lr=1", override])
    assert not is_section_overridden("tokenizer", ["tokenizers=[a]", "data=files"])


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
def test_a_prompt_is_taken_character_for_character(text: str):
    assert compose_infer(f"prompt={text}").prompt == text


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_a_prompt_survives_a_sweep(text: str):
    overrides = OverridesParser.create().parse_overrides([quote_override(f"prompt={text}"), "seed=1,2"])
    points = BasicSweeper.split_arguments(overrides, None)[0]
    assert len(points) == 2
    value = OverridesParser.create().parse_override(points[1][0]).value()
    assert OmegaConf.create({"prompt": value}).prompt == text


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
def test_paths_need_no_quotes(typed: str, paths: list[str] | str):
    assert compose_paths(typed) == paths


def test_a_mapping_in_a_list_needs_no_quotes():
    assert compose_paths("[{path: 말뭉치/가 나.jsonl, weight: 2}]") == [
        {"path": "말뭉치/가 나.jsonl", "weight": 2}
    ]


@pytest.mark.parametrize(
    "name", ["한국어", "세 번째 시도", "a=b", "이름(2)", "1e3", "2024_01", "007", "true", "3"]
)
def test_a_name_is_text(name: str):
    assert str(compose("train", quote_override(f"name={name}")).name) == name


@pytest.mark.parametrize("path", ["outputs/한글 폴더", "1e3", "runs/*/모델"])
def test_a_model_path_is_text(path: str):
    assert compose_infer(f"model.path={path}").model.path == path


def test_null_clears_a_text_value():
    assert compose("train", quote_override("output=null")).output is None


def test_names_can_be_swept():
    assert sweep_names("1e3,한국어,b c") == ["1e3", "한국어", "b c"]
    assert sweep_names("choice(한국어,b c)") == ["한국어", "b c"]


@pytest.mark.parametrize(
    ("override", "expanded"),
    [
        ("lr=range(0.1,0.4,0.1)", "lr=0.1,0.2,0.3"),
        ("lr=range(1e-3,3e-3,1e-3)", "lr=0.001,0.002"),
        ("lr=range(0.3,0.0,-0.1)", "lr=0.3,0.2,0.1"),
        ("lr=range(1,2,0.5)", "lr=1.0,1.5"),
        ("lr=shuffle(range(0.1,0.3,0.1))", "lr=shuffle(0.1,0.2)"),
        ("seed=range(0,3)", "seed=range(0,3)"),
        ("lr=1,2", "lr=1,2"),
    ],
)
def test_a_range_of_decimal_numbers_is_exact(override: str, expanded: str):
    assert expand_float_range(OverridesParser.create().parse_override(override)) == expanded


@pytest.mark.parametrize("override", ["lr=range(1,0,0.1)", "lr=range(0.0,1.0,0)", "seed=range(0,1000000)"])
def test_a_range_without_an_end_is_an_error(override: str):
    with pytest.raises(UsageError, match="the range has"):
        expand_float_range(OverridesParser.create().parse_override(override))


def test_values_that_hydra_parses_are_unchanged():
    for override in (
        "lr=1e-3",
        "lr=1,2",
        "model=tiny_ko",
        "seed=range(0,3)",
        "~experiment",
        "name=${model.name}",
    ):
        assert quote_override(override) == override


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
    assert exclude_cleared_keys([one, f"{other}=null"]) == [one]
    assert exclude_cleared_keys([f"{other}=null"]) == [f"{other}=null"]
    assert clear_exclusive_keys([one, f"{other}=7"]) == [one, f"{other}=7"]  # both set: validation reports it
    assert clear_exclusive_keys([f"{other}=null"]) == [f"{other}=null"]


RUN_NAMES = (
    "1",
    "0",
    "12345678",
    "1e10",
    "5e8",
    "1e100000",
    "1_0",
    "+1",
    "-1",
    "nan",
    "inf",
    "01234567",
    "5018b806",
)


@pytest.mark.parametrize("key", ["resume", "branch", "model.from", "name"])
def test_a_signature_of_digits_is_text(key: str):
    """A signature may be all digits, or digits with an e, which YAML reads as a number."""
    parser = OverridesParser.create()
    for name in RUN_NAMES:
        assert parser.parse_override(quote_override(f"{key}={name}")).value() == name
    for names in (",".join(RUN_NAMES), f"choice({','.join(RUN_NAMES)})"):
        override = parser.parse_override(quote_override(f"{key}={names}"))
        assert [value if isinstance(value, str) else value.text for value in override.value().list] == list(
            RUN_NAMES
        )


def test_resume_is_a_boolean_or_a_name():
    parser = OverridesParser.create()
    for text, value in (
        ("true", True),
        ("false", False),
        ("auto", "auto"),
        ("null", None),
        ("'true'", "true"),
    ):
        assert parser.parse_override(quote_override(f"resume={text}")).value() == value
    swept = parser.parse_override(quote_override("resume=true,1e3")).value().list
    assert (swept[0], swept[1].text) == (True, "1e3")
