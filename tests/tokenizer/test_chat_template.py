"""The chat templates write what their families read, and come with the tokenizer wherever it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes import english, korean, option, trained

from krill.errors import UsageError
from krill.tokenizer.artifact import TokenizerFolder

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "날씨",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "서울"}}}

PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "안녕?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye."},
]
WITH_TOOLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "날씨?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "rainy"},
    {"role": "assistant", "content": "Sunny, then rainy."},
]

CHATML = """\
<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
안녕?<|im_end|>
<|im_start|>assistant
Hello.<|im_end|>
<|im_start|>user
Bye.<|im_end|>
<|im_start|>assistant
"""
CHATML_CALLS = """\
<|im_start|>assistant
<tool_call>
{"name": "weather", "arguments": {"place": "서울"}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"place": "서울"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
sunny
</tool_response>
<tool_response>
rainy
</tool_response><|im_end|>
<|im_start|>assistant
Sunny, then rainy.<|im_end|>
"""
LLAMA3 = """\
<|start_header_id|>system<|end_header_id|>

Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>

안녕?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

Hello.<|eot_id|><|start_header_id|>user<|end_header_id|>

Bye.<|eot_id|><|start_header_id|>assistant<|end_header_id|>

"""
LLAMA3_CALLS = """\
<|start_header_id|>assistant<|end_header_id|>

{"name": "weather", "parameters": {"place": "서울"}}
{"name": "weather", "parameters": {"place": "서울"}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>

sunny<|eot_id|><|start_header_id|>ipython<|end_header_id|>

rainy<|eot_id|><|start_header_id|>assistant<|end_header_id|>

Sunny, then rainy.<|eot_id|>"""


@pytest.fixture(scope="module", params=["bpe_4k", "qwen_like", "gpt4o_like", "llama3_like"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    place = tmp_path_factory.mktemp("chat") / request.param
    return trained(place, option(request.param, vocab_size=600), [*korean()[:40], *english()[:20]])


@pytest.fixture(scope="module")
def loaded(folder: TokenizerFolder) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder.folder)


def is_llama(loaded: Any) -> bool:
    return "<|eot_id|>" in loaded.all_special_tokens


def render(loaded: Any, messages: list[dict[str, Any]], **keys: Any) -> str:
    return loaded.apply_chat_template(messages, tokenize=False, **keys)


def render_ids(loaded: Any, messages: list[dict[str, Any]], **keys: Any) -> list[int]:
    return loaded.apply_chat_template(messages, return_dict=True, **keys)["input_ids"]


def test_messages_as_the_family_writes_them(loaded: Any) -> None:
    expected = LLAMA3 if is_llama(loaded) else CHATML
    assert render(loaded, PLAIN, add_generation_prompt=True) == loaded.bos_token + expected


def test_tool_calls_and_answers_as_the_family_writes_them(loaded: Any) -> None:
    text = render(loaded, WITH_TOOLS, tools=[WEATHER])
    assert text.endswith(LLAMA3_CALLS if is_llama(loaded) else CHATML_CALLS)
    assert "None" not in text


@pytest.mark.parametrize("messages", [PLAIN, PLAIN[1:], WITH_TOOLS[1:2]])
def test_tools_are_listed_in_one_system_message(loaded: Any, messages: list[dict[str, Any]]) -> None:
    text = render(loaded, messages, tools=[WEATHER, WEATHER])
    system, rest = text.split("<|eot_id|>" if is_llama(loaded) else "<|im_end|>", 1)
    assert system.count(json.dumps(WEATHER, ensure_ascii=False)) == 2
    assert ("Be brief." in system) == (messages is PLAIN)
    assert "Be brief." not in rest
    assert "날씨" not in rest or messages is not PLAIN


def test_arguments_may_be_json_already(loaded: Any) -> None:
    function = {"name": "weather", "arguments": '{"place": "서울"}'}
    turned = [dict(message) for message in WITH_TOOLS]
    turned[2]["tool_calls"] = [{"type": "function", "function": function}, function]
    assert render(loaded, turned) == render(loaded, WITH_TOOLS)


def test_words_before_a_call_stand_in_a_line_of_their_own(loaded: Any) -> None:
    message = {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}
    text = render(loaded, [PLAIN[1], message])
    assert 'One moment.\n{"name"' in text or 'One moment.\n<tool_call>\n{"name"' in text


@pytest.mark.parametrize("messages", [PLAIN, WITH_TOOLS, PLAIN[1:2]])
@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_begins_with_one_bos(loaded: Any, messages: list[dict[str, Any]], tools: Any) -> None:
    found = render_ids(loaded, messages, tools=tools, add_generation_prompt=True)
    assert found[0] == loaded.bos_token_id
    assert found.count(loaded.bos_token_id) == 1


def test_signs_of_the_template_are_special_tokens(loaded: Any) -> None:
    found = render_ids(loaded, PLAIN)
    ends = "<|eot_id|>" if is_llama(loaded) else "<|im_end|>"
    assert found.count(loaded.convert_tokens_to_ids(ends)) == 4
    spelled = loaded.decode(found, skip_special_tokens=True)
    assert "<|" not in spelled
    assert "안녕?" in spelled


def test_a_prompt_is_the_beginning_of_the_whole(loaded: Any) -> None:
    """What inference gives the model is what training showed it."""
    prompt = render(loaded, PLAIN[:2], add_generation_prompt=True)
    assert render(loaded, PLAIN[:3]).startswith(prompt + "Hello.")
    prompt = render(loaded, WITH_TOOLS[:5], tools=[WEATHER], add_generation_prompt=True)
    assert render(loaded, WITH_TOOLS, tools=[WEATHER]).startswith(prompt + "Sunny")


def test_the_mask_marks_what_the_assistant_says(loaded: Any) -> None:
    made = loaded.apply_chat_template(
        WITH_TOOLS, tools=[WEATHER], return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(made["input_ids"], made["assistant_masks"], strict=True)
    said = loaded.decode([token for token, mask in pairs if mask])
    if is_llama(loaded):
        call = '{"name": "weather", "parameters": {"place": "서울"}}'
        assert said == f"{call}\n{call}<|eot_id|>Sunny, then rainy.<|eot_id|>"
    else:
        call = '<tool_call>\n{"name": "weather", "arguments": {"place": "서울"}}\n</tool_call>'
        assert said == f"{call}\n{call}<|im_end|>Sunny, then rainy.<|im_end|>"


def test_comes_along_with_every_copy(folder: TokenizerFolder, loaded: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "copied").mkdir()
    folder.copy_to(tmp_path / "copied")
    loaded.save_pretrained(tmp_path / "saved")
    for name in ("copied", "saved"):
        assert (tmp_path / name / "chat_template.jinja").is_file()
        again = AutoTokenizer.from_pretrained(tmp_path / name)
        assert render_ids(again, WITH_TOOLS, tools=[WEATHER]) == render_ids(
            loaded, WITH_TOOLS, tools=[WEATHER]
        )


@pytest.mark.parametrize(
    ("template", "specials", "missing"),
    [
        ("chatml", ["<|im_start|>"], r"needs <\|im_end\|> among"),
        ("chatml", [], r"needs <\|im_end\|>, <\|im_start\|> among"),
        (
            "llama3",
            ["<|im_start|>", "<|im_end|>"],
            r"needs <\|end_header_id\|>, <\|eot_id\|>, <\|start_header_id\|>",
        ),
    ],
)
def test_tokens_that_are_missing_are_named(
    tmp_path: Path, template: str, specials: list[str], missing: str
) -> None:
    config = option("bpe_4k", vocab_size=600, chat_template=template, special_tokens=specials)
    with pytest.raises(
        UsageError, match=missing + r".*tokenizer\.special_tokens.*tokenizer\.chat_template=null"
    ):
        trained(tmp_path / "t", config)


def test_none_is_saved_where_none_is_wanted(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path / "t", option("bpe_4k", vocab_size=330, chat_template=None))
    assert not (tokenizer.folder / "chat_template.jinja").exists()
