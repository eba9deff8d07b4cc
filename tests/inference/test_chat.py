"""Each line is a prompt and is answered, until quit, exit or the end of the input."""

from __future__ import annotations

import io
import sys

import pytest

from krill.errors import UsageError
from krill.inference.chat import read_prompts, run_chat


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def read_all_prompts(monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO) -> list[str]:
    monkeypatch.setattr(sys, "stdin", stdin)
    return list(read_prompts())


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
    assert read_all_prompts(monkeypatch, io.StringIO(text)) == expected


def test_a_pipe_gets_no_prompt_marker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_all_prompts(monkeypatch, io.StringIO("one\n"))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_instructions_and_a_prompt_marker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_all_prompts(monkeypatch, FakeTerminal("one\nquit\n")) == ["one"]
    output, error = capsys.readouterr()
    assert output == ""
    assert "quit or exit to end" in error
    assert error.count("> ") == 2


def test_each_prompt_is_answered_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\nexit\nthree\n"))
    prompts: list[str] = []
    run_chat(prompts.append)
    assert prompts == ["one", "two"]


def test_an_interrupt_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    prompts: list[str] = []

    def respond(prompt: str) -> None:
        prompts.append(prompt)
        raise KeyboardInterrupt

    run_chat(respond)
    assert prompts == ["one"]


def test_an_error_is_raised_for_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))

    def respond(prompt: str) -> None:
        raise UsageError("too long")

    with pytest.raises(UsageError, match="too long"):
        run_chat(respond)


def test_an_invalid_prompt_does_not_end_the_chat_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", FakeTerminal("too long\nshort\n"))
    prompts = []

    def respond(prompt: str) -> None:
        if prompt == "too long":
            raise UsageError("shorten it")
        prompts.append(prompt)

    run_chat(respond)

    assert prompts == ["short"]
    assert "shorten it" in capsys.readouterr().err


def test_a_line_in_another_encoding_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.TextIOWrapper(io.BytesIO("서울".encode()), encoding="cp949", errors="strict")
    monkeypatch.setattr(sys, "stdin", content)
    with pytest.raises(UsageError, match="not cp949; if it is UTF-8, set PYTHONIOENCODING=utf-8"):
        next(read_prompts())
