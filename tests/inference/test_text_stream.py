"""What a text stream returns, joined, is the decoded answer up to the first stop text, and nothing is shown early."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from krill.inference.text_stream import TextStream


def decode_bytes(ids: list[int]) -> str:
    """As a byte-level tokenizer does: one replacement character for an incomplete character."""
    return bytes(ids).decode("utf-8", errors="replace")


def decode_byte_fallback(ids: list[int]) -> str:
    """As a SentencePiece tokenizer with byte fallback does: a replacement character per byte of an incomplete one."""
    backend = Tokenizer(
        models.WordLevel({f"<0x{byte:02X}>": byte for byte in range(256)}, unk_token="<0x00>")
    )
    backend.decoder = decoders.ByteFallback()
    return backend.decode(ids)


def stream(
    ids: list[int], stop: tuple[str, ...] = (), decode: Callable[[list[int]], str] = decode_bytes
) -> tuple[list[str], bool]:
    """The pieces that a stream returns until it is stopped or the ids end, and whether it was stopped."""
    text_stream, pieces = TextStream(decode, list(b"prompt"), stop), []
    for token in ids:
        pieces.append(text_stream.push(token))
        if text_stream.is_stopped:
            return pieces, True
    pieces.append(text_stream.finish())
    assert text_stream.text == "".join(pieces)
    return pieces, text_stream.is_stopped


@pytest.mark.parametrize("text", ["옛날 옛적에 호랑이가", "a가b나", "no Hangul", "😀", ""])
@pytest.mark.parametrize("decode", [decode_bytes, decode_byte_fallback])
def test_each_character_is_returned_when_it_is_complete(
    text: str, decode: Callable[[list[int]], str]
) -> None:
    pieces, _ = stream(list(text.encode()), decode=decode)
    assert [piece for piece in pieces if piece] == list(text)


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text_are_decoded_as_all_at_once(data: bytes) -> None:
    assert "".join(stream(list(data))[0]) == decode_bytes(list(data))


@pytest.mark.parametrize("decode", [decode_bytes, decode_byte_fallback])
@pytest.mark.parametrize("text", ["옛날", "a😀", "a"])
def test_an_answer_that_is_cut_ends_with_a_whole_character(
    text: str, decode: Callable[[list[int]], str]
) -> None:
    for length in range(len(text.encode()) + 1):
        text_stream = TextStream(decode, list(b"prompt"))
        for token in text.encode()[:length]:
            text_stream.push(token)
        text_stream.finish(is_cut=True)
        assert text_stream.text == text.encode()[:length].decode(errors="ignore")


def test_endless_damage_is_not_held_back() -> None:
    pieces, _ = stream([0x80] * 50)
    assert len("".join(pieces[:-1])) >= 47


@given(st.text("ab가", max_size=12), st.lists(st.text("ab가", min_size=1, max_size=3), max_size=3))
def test_the_answer_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    pieces, is_stopped = stream(list(text.encode()), tuple(stop))
    shown = "".join(pieces)
    assert text.startswith(shown)
    assert not any(one in shown for one in stop)
    assert is_stopped == any(one in text for one in stop)
    if not is_stopped:
        assert shown == text


def test_text_is_held_back_only_while_a_stop_text_may_begin() -> None:
    assert stream(list(b"a\nUb\nUser:c"), ("\nUser:",)) == (
        ["a", "", "", "\nUb", "", "", "", "", "", ""],
        True,
    )
    assert stream(list(b"x\n"), ("\n\n",)) == (["x", "", "\n"], False)


def test_a_space_at_the_start_of_the_answer_is_kept() -> None:
    """SentencePiece decoders drop a space at the start of a text, which an answer is not."""
    words = ["▁the", "▁fox", "▁runs", "▁"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="▁"))
    backend.decoder = decoders.Metaspace()
    text_stream = TextStream(backend.decode, [0])
    assert [text_stream.push(token) for token in (1, 3, 2)] == [" fox", " ", " runs"]
