"""The scores of a text fit the terminal, are readable without colors, and cannot inject anything into a page."""

from __future__ import annotations

import html.parser
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from stores import make_byte_tokenizer

from krill.inference.attention_maps import AttentionMap
from krill.inference.logit_lens import LayerScores
from krill.inference.token_scores import TokenScore, score_logits
from krill.inspection.attention_figure import plot_attention
from krill.inspection.scored_text import ScoredText, format_probability
from krill.inspection.token_display import TokenRenderer
from krill.inspection.token_page import build_token_page
from krill.inspection.token_view import print_scores
from krill.tokenizer.artifact import TokenizerFolder

TEXT = "가<b>&\"'\x1b[31m\u202e\n$x$ " + "나다" * 8
NAME = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return make_byte_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bytes")


@pytest.fixture
def scored(tokenizer: TokenizerFolder) -> ScoredText:
    """TEXT and eos, each byte a token; a model with a vocabulary of 300, 41 more than the tokenizer."""
    ids = [*tokenizer.backend.encode(TEXT, add_special_tokens=False).ids, tokenizer.eos_id]
    torch.manual_seed(0)
    logits_NV = torch.randn(len(ids), 300) * 2
    logits_NV[:3, ids[:3]] += 20 * torch.eye(3)  # the first character is certain
    logits_NV[3, 299] += 30
    scores = score_logits(logits_NV, ids, 5)
    lens = [LayerScores(name, scores) for name in ("embedding", *map(str, range(30)))]
    return ScoredText(NAME, TEXT, scores, TokenRenderer(tokenizer), bits_per_byte=1.0, lens=lens)


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_nothing_is_wider_than_the_terminal(
    scored: ScoredText, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_scores(scored, is_full=True)
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if cell_len(line) > columns] == []
    assert "\x1b" not in out
    assert "가<[" in out  # three tokens, as the character they are
    assert r"⟨\xea⟩" in out  # each of them
    assert ("most likely" in out.partition("logit lens")[0]) == (columns >= 60)
    print_scores(scored, is_full=False)
    assert "more tokens; use full=true for all" in capsys.readouterr().out


def test_probabilities_are_colors_or_in_brackets(
    scored: ScoredText, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_scores(scored, is_full=True)
    plain = capsys.readouterr().out
    assert "\n가<[" in plain
    assert "⟨299⟩ 100 %" in plain  # an id that the tokenizer does not have
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    print_scores(scored, is_full=True)
    colored = capsys.readouterr().out
    assert "\x1b[38;5;28m가" in colored
    assert "\x1b[1;38;5;160m<" in colored
    assert "[0%]" not in colored
    assert "\x1b[31m" not in colored


class PageParser(html.parser.HTMLParser):
    """Collects the tags, and the text of the tokens without what is shown when they are pointed at."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.spans: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "span":
            self.spans.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self.spans.pop()

    def handle_data(self, data: str) -> None:
        if self.spans and self.spans[-1] == "token":
            self.text += data


def test_a_page_is_self_contained_and_escaped(scored: ScoredText, tmp_path: Path) -> None:
    attention = AttentionMap(0, 1, [score.token for score in scored.scores[:9]], torch.eye(9))
    picture = tmp_path / "그림" / "attention.png"
    plot_attention(attention, scored.renderer, picture)
    page = build_token_page(
        [ScoredText(NAME, TEXT, scored.scores, scored.renderer, NAME, lens=scored.lens, attention=attention)],
        picture,
    )
    parser = PageParser()
    parser.feed(page)
    assert not {"script", "b", "link", "iframe"} & set(parser.tags)
    assert parser.text == "가<b>&\"'\\x1b[31m\\u202e↵$x$ " + "나다" * 8 + "⟨eos⟩"
    assert "http" not in page
    assert not {"\x1b", "\u202e"} & set(page)
    assert 'src="data:image/png;base64,iVBOR' in page


def test_json_has_every_score(scored: ScoredText) -> None:
    content = json.loads(json.dumps(scored.to_json(), allow_nan=False))
    assert content["loss"] == pytest.approx(
        -sum(score.logprob for score in scored.scores) / content["tokens"]
    )
    first, last = content["scores"][0], content["scores"][-1]
    assert (first["text"], last["text"]) == (r"\xea", "eos")
    assert (first["rank"], first["top"][0]["id"]) == (1, first["id"])
    assert first["surprisal"] == pytest.approx(-math.log2(first["probability"]), abs=1e-6)
    assert len(content["lens"]) == 31


def test_a_token_that_is_impossible_is_shown(scored: ScoredText, capsys: pytest.CaptureFixture[str]) -> None:
    impossible = TokenScore(50, -math.inf, 1.0, 299, ((51, 0.0), (52, -math.inf)))
    shown = ScoredText(NAME, "a", [impossible], scored.renderer)
    print_scores(shown, is_full=True)
    assert "inf" in capsys.readouterr().out
    assert shown.to_json()["loss"] is None
    assert build_token_page([shown])


def test_an_answer_without_tokens_is_shown(scored: ScoredText, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ScoredText(NAME, "", [], scored.renderer, prompt="a")
    print_scores(empty, is_full=True)
    assert "answer      0 bytes in 0 tokens" in capsys.readouterr().out
    assert build_token_page([empty])
    assert empty.to_json()["loss"] is None


@pytest.mark.parametrize(
    ("probability", "text"), [(1.0, "100.00 %"), (0.0123, "1.23 %"), (1e-7, "1e-07"), (0.0, "0.00 %")]
)
def test_a_small_probability_is_not_zero(probability: float, text: str) -> None:
    assert format_probability(probability) == text
