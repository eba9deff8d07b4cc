"""A session answers what is typed, runs commands, keeps its history, and survives Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from krill.errors import UsageError
from krill.inference.answerer import Answerer
from krill.inference.conversation import Conversation
from krill.inference.defaults import MODEL_KEYS
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.generate import generate
from krill.inference.load import LoadedModel
from krill.inference.prompts import read_line_prompts
from krill.inference.sampling import SamplingParams
from krill.inference.session import get_history_file, run_session
from krill.inference.session_commands import SESSION_COMMANDS, execute_command
from krill.tokenizer.artifact import TokenizerFolder

PARAMS = SamplingParams(max_new_tokens=6, temperature=0, repetition_penalty=1.0)
SETTINGS = {
    **dict.fromkeys(MODEL_KEYS), "max_new_tokens": 6, "temperature": 0.0, "repetition_penalty": 1.0, "stop": [],
    "seed": 0, "n": 1,
}  # fmt: skip
CTRL_C, CTRL_D, ALT_ENTER, ENTER, UP = "\x03", "\x04", "\x1b\r", "\r", "\x1b[A"


class EchoTemplate:
    """Stands for a chat template: one token per letter, a line per message."""

    end_ids: frozenset[int] = frozenset()

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        return [0, *(3 + ord(letter) % 90 for message in messages for letter in message["content"] + "\n")]


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def answerer(model: Any, tokenizer: TokenizerFolder, messages: list[str]) -> Answerer:
    loaded = LoadedModel(tokenizer.folder, model.eval(), tokenizer, {"top_k": 50})
    return Answerer(loaded, dict(SETTINGS), None, messages.append)


@pytest.fixture
def type_keys(answerer: Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a session in which the user types the given keys, then Ctrl-D."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(keys: str, keeps_history: bool = True) -> None:
        with create_pipe_input() as pipe:
            pipe.send_text(keys + CTRL_D)
            run_session(answerer, keeps_history, pipe, DummyOutput())

    return run


def test_answers_are_streamed_to_standard_output(
    type_keys: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    messages: list[str],
    model: Any,
    tokenizer: TokenizerFolder,
) -> None:
    type_keys(f"가나{ENTER}  {ENTER}ab{ALT_ENTER}c{ENTER}")
    expected = [generate(model, tokenizer, prompt, PARAMS) for prompt in ("가나", "ab\nc")]
    assert capsys.readouterr().out == "".join(text + "\n" for text in expected)
    assert len(messages) == 2
    assert "tokens/s, first token after" in messages[0]


def test_history_is_kept_for_the_next_session(
    type_keys: Callable[..., None], answerer: Answerer, tmp_path: Path
) -> None:
    type_keys(f"ab{ENTER}")
    assert get_history_file() == tmp_path / "state" / "krill" / "history"
    assert get_history_file().stat().st_mode & 0o777 == 0o600
    type_keys(f"{UP}{ENTER}")
    assert [answer["prompt"] for answer in answerer.answers] == ["ab", "ab"]
    type_keys(f"secret{ENTER}", False)
    assert "secret" not in get_history_file().read_text()


def test_ctrl_c_ends_the_answer_and_not_the_session(
    type_keys: Callable[[str], None],
    answerer: Answerer,
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = iter(range(100))
    step = GenerationEngine.step

    def interrupt_third(self: GenerationEngine) -> Any:
        if next(steps) == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(GenerationEngine, "step", interrupt_third)
    type_keys(f"typed by mistake{CTRL_C}ab{ENTER}ab{ENTER}")
    assert [answer["finish_reason"] for answer in answerer.answers] == ["cancelled", "length"]
    assert answerer.answers[0]["answer_tokens"] == 2
    assert "Ctrl-D" in messages[0]


def test_commands_change_the_next_answers(
    type_keys: Callable[[str], None], answerer: Answerer, messages: list[str], tmp_path: Path
) -> None:
    type_keys(
        f"/set temperature 1{ENTER}/set top_p=0.5{ENTER}/seed 7{ENTER}/set stop User:{ENTER}/set n 2{ENTER}"
        f"//slash{ENTER}/save {tmp_path / 'said.jsonl'}{ENTER}/quit{ENTER}not read{ENTER}"
    )
    expected = {"temperature": 1.0, "top_p": 0.5, "seed": 7, "stop": ("User:",), "top_k": 50}
    assert {key: getattr(answerer.params, key) for key in expected} == expected
    assert [(answer["prompt"], answer["seed"]) for answer in answerer.answers] == [
        ("/slash", 7),
        ("/slash", 8),
    ]
    saved = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert saved == answerer.answers
    assert any("generation_config.json: top_k 50" in message for message in messages)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sede 3", "/sede: no such command. Did you mean /seed? Available: help, set, seed"),
        ("/set temprature 1", "temprature: cannot be set here. Did you mean temperature?"),
        ("/set temperature -1", "/set temperature -1: input should be greater than or equal to 0"),
        ("/set top_k many", "/set top_k many: input should be a valid integer"),
        ("/set top_k", "/set top_k: add a value, or null for the model's own"),
        ('/set stop ["a', "not a list"),
        ("/seed", "/set seed: add a value"),
        ("/system Be brief.", "/system is for chats"),
        ("/save", "/save: add the name of a file"),
        ("/save x", "/save: there is no answer yet"),
    ],
)
def test_a_mistake_in_a_command_is_one_line(line: str, message: str, answerer: Answerer) -> None:
    with pytest.raises(UsageError) as error:
        execute_command(answerer, line)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert answerer.settings == SETTINGS


def test_a_device_is_not_replaced_by_the_saved_answers(answerer: Answerer, tmp_path: Path) -> None:
    answerer.answers = [{"id": 1}]
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(UsageError, match="not a file; use another path"):
            execute_command(answerer, f"/save {tmp_path / name}")
    assert (tmp_path / "pipe").is_fifo()


def test_a_mistake_does_not_end_the_session(
    type_keys: Callable[[str], None], answerer: Answerer, messages: list[str]
) -> None:
    type_keys(f"/nothing{ENTER}{'x' * 70}{ENTER}/help{ENTER}ab{ENTER}")
    assert "no such command" in messages[0]
    assert messages[1] == "the prompt has 71 tokens, but the context of the model has 64; shorten it"
    assert all(any(message.startswith(f"/{name}") for message in messages) for name in SESSION_COMMANDS)
    assert len(answerer.answers) == 1


def test_a_chat_keeps_its_turns_and_drops_the_oldest(answerer: Answerer, messages: list[str]) -> None:
    template: Any = EchoTemplate()
    conversation = answerer.conversation = Conversation(template, 64, "S")
    answerer.answer("a" * 20)
    assert conversation.turns == [
        {"role": "user", "content": "a" * 20},
        {"role": "assistant", "content": answerer.answers[0]["answer"]},
    ]
    assert not messages
    answerer.answer("b" * 35)
    assert conversation.turns[0]["content"] == "b" * 35
    assert messages == ["the context is full: oldest turns dropped: 1"]
    execute_command(answerer, "/system")
    assert (conversation.system, conversation.turns) == (None, [])


def test_a_message_that_is_too_long_keeps_the_conversation(answerer: Answerer, messages: list[str]) -> None:
    template: Any = EchoTemplate()
    conversation = answerer.conversation = Conversation(template, 64)
    answerer.answer("a")
    turns = list(conversation.turns)
    with pytest.raises(
        UsageError, match=r"the message has 72 tokens in the chat template, .* 64; shorten it"
    ):
        answerer.answer("b" * 70)
    assert (conversation.turns, messages) == (turns, [])


def test_ctrl_c_ends_a_command_and_not_the_session(
    type_keys: Callable[[str], None], answerer: Answerer, messages: list[str]
) -> None:
    def interrupt(prompt: str, generation: Generation) -> None:
        raise KeyboardInterrupt

    answerer.inspect = interrupt
    type_keys(f"ab{ENTER}/inspect{ENTER}ab{ENTER}")
    assert "interrupted" in messages
    assert len(answerer.answers) == 2


# --- a pipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\nlast without end", ["one", "last without end"]),
        ("one\nquit\ntwo\n", ["one"]),
        ("one\n exit \ntwo\n", ["one"]),
        ("\n   \none\n\n", ["one"]),
        ("  spaces count \n", ["  spaces count "]),
        ("quit smoking\n", ["quit smoking"]),
        ("옛날 '옛적', {에} = $x\n", ["옛날 '옛적', {에} = $x"]),
        ("", []),
    ],
)
def test_prompts_are_lines(monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert list(read_line_prompts()) == expected


def test_a_line_in_another_encoding_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.TextIOWrapper(io.BytesIO("서울".encode()), encoding="cp949", errors="strict")
    monkeypatch.setattr(sys, "stdin", content)
    with pytest.raises(UsageError, match="not cp949; if it is UTF-8, set PYTHONIOENCODING=utf-8"):
        next(read_line_prompts())
