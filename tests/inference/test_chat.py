"""Prompts are lines, each answered, until quit, exit or the end of the input."""

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
    ("typed", "expected"),
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
def test_prompts(monkeypatch: pytest.MonkeyPatch, typed: str, expected: list[str]) -> None:
    assert read_all_prompts(monkeypatch, io.StringIO(typed)) == expected


def test_a_pipe_sees_no_prompt_sign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_all_prompts(monkeypatch, io.StringIO("one\n"))
    assert capsys.readouterr() == ("", "")


def test_a_person_is_told_how_to_end_and_sees_a_sign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_all_prompts(monkeypatch, FakeTerminal("one\nquit\n")) == ["one"]
    told = capsys.readouterr()
    assert told.out == ""
    assert "quit or exit ends" in told.err
    assert told.err.count("> ") == 2


def test_each_prompt_is_answered_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\nexit\nthree\n"))
    answered: list[str] = []
    run_chat(answered.append)
    assert answered == ["one", "two"]


def test_an_interrupt_ends_as_the_end_of_the_input_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    answered: list[str] = []

    def answer(prompt: str) -> None:
        answered.append(prompt)
        raise KeyboardInterrupt

    run_chat(answer)
    assert answered == ["one"]


def test_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))

    def answer(prompt: str) -> None:
        raise UsageError("too long")

    with pytest.raises(UsageError, match="too long"):
        run_chat(answer)


def test_a_prompt_that_is_refused_does_not_end_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", FakeTerminal("too long\nshort\n"))
    answered = []

    def answer(prompt: str) -> None:
        if prompt == "too long":
            raise UsageError("shorten it")
        answered.append(prompt)

    run_chat(answer)

    assert answered == ["short"]
    assert "shorten it" in capsys.readouterr().err
