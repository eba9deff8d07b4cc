"""The chat templates write the format of their model family and are copied and saved with the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes import load_english, load_option, make_korean, train_recipe

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
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    folder = tmp_path_factory.mktemp("chat") / request.param
    return train_recipe(
        folder, load_option(request.param, vocab_size=600), [*make_korean()[:40], *load_english()[:20]]
    )


@pytest.fixture(scope="module")
def tokenizer(trained: TokenizerFolder) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(trained.folder)


def is_llama(tokenizer: Any) -> bool:
    return "<|eot_id|>" in tokenizer.all_special_tokens


def render(tokenizer: Any, messages: list[dict[str, Any]], **keys: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **keys)


def render_ids(tokenizer: Any, messages: list[dict[str, Any]], **keys: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=True, **keys)["input_ids"]


def test_messages_have_the_format_of_the_family(tokenizer: Any) -> None:
    expected = LLAMA3 if is_llama(tokenizer) else CHATML
    assert render(tokenizer, PLAIN, add_generation_prompt=True) == tokenizer.bos_token + expected


def test_tool_calls_and_results_have_the_format_of_the_family(tokenizer: Any) -> None:
    text = render(tokenizer, WITH_TOOLS, tools=[WEATHER])
    assert text.endswith(LLAMA3_CALLS if is_llama(tokenizer) else CHATML_CALLS)
    assert "None" not in text


@pytest.mark.parametrize("messages", [PLAIN, PLAIN[1:], WITH_TOOLS[1:2]])
def test_tools_are_listed_in_one_system_message(tokenizer: Any, messages: list[dict[str, Any]]) -> None:
    text = render(tokenizer, messages, tools=[WEATHER, WEATHER])
    system, rest = text.split("<|eot_id|>" if is_llama(tokenizer) else "<|im_end|>", 1)
    assert system.count(json.dumps(WEATHER, ensure_ascii=False)) == 2
    assert ("Be brief." in system) == (messages is PLAIN)
    assert "Be brief." not in rest
    assert "날씨" not in rest or messages is not PLAIN


def test_arguments_may_be_a_json_string(tokenizer: Any) -> None:
    function = {"name": "weather", "arguments": '{"place": "서울"}'}
    messages = [dict(message) for message in WITH_TOOLS]
    messages[2]["tool_calls"] = [{"type": "function", "function": function}, function]
    assert render(tokenizer, messages) == render(tokenizer, WITH_TOOLS)


def test_text_before_a_tool_call_is_a_separate_line(tokenizer: Any) -> None:
    message = {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}
    text = render(tokenizer, [PLAIN[1], message])
    assert 'One moment.\n{"name"' in text or 'One moment.\n<tool_call>\n{"name"' in text


@pytest.mark.parametrize("messages", [PLAIN, WITH_TOOLS, PLAIN[1:2]])
@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_the_result_begins_with_a_single_bos(
    tokenizer: Any, messages: list[dict[str, Any]], tools: Any
) -> None:
    ids = render_ids(tokenizer, messages, tools=tools, add_generation_prompt=True)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_markers_of_the_template_are_special_tokens(tokenizer: Any) -> None:
    ids = render_ids(tokenizer, PLAIN)
    end_of_turn = "<|eot_id|>" if is_llama(tokenizer) else "<|im_end|>"
    assert ids.count(tokenizer.convert_tokens_to_ids(end_of_turn)) == 4
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert "<|" not in text
    assert "안녕?" in text


def test_a_prompt_is_a_prefix_of_the_conversation(tokenizer: Any) -> None:
    """The model gets the same tokens in inference as in training."""
    prompt = render(tokenizer, PLAIN[:2], add_generation_prompt=True)
    assert render(tokenizer, PLAIN[:3]).startswith(prompt + "Hello.")
    prompt = render(tokenizer, WITH_TOOLS[:5], tools=[WEATHER], add_generation_prompt=True)
    assert render(tokenizer, WITH_TOOLS, tools=[WEATHER]).startswith(prompt + "Sunny")


def test_the_assistant_mask_covers_the_messages_of_the_assistant(tokenizer: Any) -> None:
    encoded = tokenizer.apply_chat_template(
        WITH_TOOLS, tools=[WEATHER], return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    masked = tokenizer.decode([token for token, mask in pairs if mask])
    if is_llama(tokenizer):
        call = '{"name": "weather", "parameters": {"place": "서울"}}'
        assert masked == f"{call}\n{call}<|eot_id|>Sunny, then rainy.<|eot_id|>"
    else:
        call = '<tool_call>\n{"name": "weather", "arguments": {"place": "서울"}}\n</tool_call>'
        assert masked == f"{call}\n{call}<|im_end|>Sunny, then rainy.<|im_end|>"


def test_the_template_is_part_of_every_copy(trained: TokenizerFolder, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "copied").mkdir()
    trained.copy_to(tmp_path / "copied", 64)
    tokenizer.save_pretrained(tmp_path / "saved")
    for name in ("copied", "saved"):
        assert (tmp_path / name / "chat_template.jinja").is_file()
        copy = AutoTokenizer.from_pretrained(tmp_path / name)
        assert render_ids(copy, WITH_TOOLS, tools=[WEATHER]) == render_ids(
            tokenizer, WITH_TOOLS, tools=[WEATHER]
        )


@pytest.mark.parametrize(
    ("template", "specials", "missing"),
    [
        ("chatml", ["<|im_start|>"], r"needs <\|im_end\|> in"),
        ("chatml", [], r"needs <\|im_end\|>, <\|im_start\|> in"),
        (
            "llama3",
            ["<|im_start|>", "<|im_end|>"],
            r"needs <\|end_header_id\|>, <\|eot_id\|>, <\|start_header_id\|>",
        ),
    ],
)
def test_the_error_names_missing_special_tokens(
    tmp_path: Path, template: str, specials: list[str], missing: str
) -> None:
    config = load_option("bpe_4k", vocab_size=600, chat_template=template, special_tokens=specials)
    with pytest.raises(
        UsageError, match=missing + r".*tokenizer\.special_tokens.*tokenizer\.chat_template=null"
    ):
        train_recipe(tmp_path / "t", config)


def test_no_template_is_saved_with_chat_template_null(tmp_path: Path) -> None:
    tokenizer = train_recipe(tmp_path / "t", load_option("bpe_4k", vocab_size=330, chat_template=None))
    assert not (tokenizer.folder / "chat_template.jinja").exists()
