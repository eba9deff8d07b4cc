"""A terminal that is not UTF-8 loses signs, never a command."""

from __future__ import annotations

import io
import sys

import pytest

from krill.cli import main as umbrella
from krill.cli import train
from krill.terminal import tolerate_encoding


def make_stream(encoding: str, errors: str = "strict", content: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding, errors=errors)


@pytest.mark.parametrize("encoding", ["ascii", "cp949", "latin-1"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_character_that_cannot_be_printed_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str
) -> None:
    monkeypatch.setattr(sys, "stdout", make_stream(encoding, errors))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # not a stream of bytes
    tolerate_encoding()
    print("한글 😀 \udc80", flush=True)
    printed = sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
    assert printed.decode(encoding).endswith("\\U0001f600 \\udc80\n")
    assert (b"\\ud55c" in printed) == (encoding != "cp949")


def test_utf8_and_the_choice_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", make_stream("utf-8", "surrogateescape"))
    monkeypatch.setattr(sys, "stderr", make_stream("ascii", "replace"))
    tolerate_encoding()
    print("한글 \udcff", flush=True)
    print("한글", file=sys.stderr, flush=True)
    assert sys.stdout.buffer.getvalue() == "한글 ".encode() + b"\xff\n"  # type: ignore[attr-defined]
    assert sys.stderr.buffer.getvalue() == b"??\n"  # type: ignore[attr-defined]


def test_input_in_ascii_is_read_as_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", make_stream("ascii", content="서울\n".encode()))
    tolerate_encoding()
    assert sys.stdin.readline() == "서울\n"


@pytest.mark.parametrize("command", [umbrella.main, train.main])
@pytest.mark.parametrize("arguments", [["--help"], ["없는_명령=1"]])
def test_every_entry_point_prints(
    monkeypatch: pytest.MonkeyPatch, command: object, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["krill", *arguments])
    monkeypatch.setattr(sys, "stdout", make_stream("ascii"))
    monkeypatch.setattr(sys, "stderr", make_stream("ascii"))
    assert command() == (0 if arguments == ["--help"] else 2)  # type: ignore[operator]
    sys.stdout.flush()
    sys.stderr.flush()
    printed = sys.stdout.buffer.getvalue() + sys.stderr.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"\\u" in printed
