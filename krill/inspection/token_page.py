"""Builds an HTML page that shows how a model judged the tokens of texts, without scripts or requests.

The more bits a token takes, the darker its background; pointing at it, or the tab key, shows its alternatives. All
text is escaped.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from krill.inference.token_scores import TokenScore
from krill.inspection.scored_text import ScoredText, format_probability
from krill.inspection.token_display import TokenRenderer, TokenSpan, escape_unprintable

FULL_SURPRISAL = 10.0
"""Bits above which the background does not become darker: a probability of one in a thousand."""

PAGE_STYLE = """
:root { color-scheme: light dark; --line: #8884; --panel: Canvas; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dd { margin: 0; overflow-wrap: anywhere; }
.text { font-size: 1.15rem; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.token { position: relative; border-radius: 3px; cursor: help; outline-offset: 1px;
  background: rgb(225 85 20 / calc(var(--share) * 70%)); box-shadow: inset 0 -1px var(--line); }
.token > .scores { display: none; }
.token:hover > .scores, .token:focus > .scores { display: block; }
.scores { --share: 0; position: absolute; left: 0; top: 100%; z-index: 1; padding: .5rem; background: var(--panel);
  border: 1px solid var(--line); border-radius: 4px; box-shadow: 0 2px 8px #0006;
  font-size: .85rem; line-height: 1.4; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: pre; }
th, td { padding: .1rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; }
td { background: rgb(225 85 20 / calc(var(--share, 0) * 70%)); }
.wide { overflow-x: auto; } img { max-width: 100%; background: white; }
.legend span { padding: 0 .5rem; background: rgb(225 85 20 / calc(var(--share) * 70%)); }
"""


def build_token_page(texts: Sequence[ScoredText], picture: Path | None = None) -> str:
    """Returns the page. `picture`: a PNG of the attention of the only text, which becomes part of the page."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Token probabilities: {_escape(texts[0].model)}</title>\n<style>{PAGE_STYLE}</style>",
        "<h1>Token probabilities</h1>",
        _format_legend(),
    ]
    for scored in texts:
        parts += _format_text(scored)
    if picture is not None and (attention := texts[0].attention) is not None:
        content = base64.b64encode(picture.read_bytes()).decode()
        title = f"attention of layer {attention.layer}, head {attention.head}"
        parts.append(
            f'<h2>{title.capitalize()}</h2>\n<img alt="{title}" src="data:image/png;base64,{content}">'
        )
    return "\n".join(parts) + "\n</html>\n"


def _format_text(scored: ScoredText) -> Iterator[str]:
    description = "".join(f"<dt>{name}</dt><dd>{_escape(value)}</dd>" for name, value in scored.describe())
    yield f"<section>\n<h2>{'Text' if scored.prompt is None else 'Answer'}</h2>\n<dl>{description}</dl>"
    tokens = (_format_span(span, scores, scored.renderer) for span, scores in scored.group_scores())
    yield f'<div class="text">{"".join(tokens)}</div>'
    rows = "".join(_format_row(score, scored.renderer) for score in scored.scores)
    names = ("probability", "bits", "rank", "entropy")
    header = "".join(f'<th class="number">{name}</th>' for name in names)
    yield (
        f'<details><summary>All tokens</summary><div class="wide"><table><tr><th>token</th>{header}'
        f"<th>most likely</th></tr>{rows}</table></div></details>"
    )
    if scored.lens is not None:
        yield _format_lens(scored)
    yield "</section>"


def _format_legend() -> str:
    steps = (0.5, 0.1, 0.01, 0.001)
    items = (
        f'<span style="--share:{_get_share(-math.log2(one)):.2f}">{100 * one:g} %</span>' for one in steps
    )
    return f'<p class="legend">probability {" ".join(items)} Point at a token for its alternatives.</p>'


def _format_span(span: TokenSpan, scores: Sequence[TokenScore], renderer: TokenRenderer) -> str:
    """Returns a token, or the tokens of a character, with what is shown when it is pointed at."""
    bits = sum(score.surprisal for score in scores)
    text = escape_unprintable(span.text)
    if span.kind in ("special", "undecodable") or not text:
        text = f"⟨{text or span.ids[0]}⟩"
    tables = "".join(_format_details(score, renderer) for score in scores)
    token = (
        f'<span class="token" tabindex="0" style="--share:{_get_share(bits):.2f}">{html.escape(text)}'
        f'<span class="scores">{tables}</span></span>'
    )
    return token + "<br>" * span.text.count("\n")


def _format_details(score: TokenScore, renderer: TokenRenderer) -> str:
    values = (
        ("token", f"{_escape(renderer.label_token(score.token))}, id {score.token}"),
        ("probability", format_probability(score.probability)),
        ("bits", f"{score.surprisal:.2f}"),
        ("rank", f"{score.rank + 1:,}"),
        ("entropy", f"{score.entropy:.2f} bits"),
        *(
            (_escape(renderer.label_token(token)), format_probability(math.exp(logprob)))
            for token, logprob in score.top
        ),
    )
    return f"<table>{''.join(f'<tr><td>{name}</td><td>{value}</td></tr>' for name, value in values)}</table>"


def _format_row(score: TokenScore, renderer: TokenRenderer) -> str:
    numbers = (
        format_probability(score.probability),
        f"{score.surprisal:.2f}",
        f"{score.rank + 1:,}",
        f"{score.entropy:.2f}",
    )
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    alternatives = ", ".join(
        f"{_escape(renderer.label_token(token))} {format_probability(math.exp(logprob))}"
        for token, logprob in score.top
    )
    return (
        f'<tr><td style="--share:{_get_share(score.surprisal):.2f}">{_escape(renderer.label_token(score.token))}</td>'
        f"{cells}<td>{alternatives}</td></tr>"
    )


def _format_lens(scored: ScoredText) -> str:
    """Returns the logit lens: a line per token, a column per layer."""
    assert scored.lens is not None
    header = "".join(f"<th>{layer.layer}</th>" for layer in scored.lens)
    rows = "".join(
        f"<tr><th>{_escape(scored.renderer.label_token(score.token))}</th>"
        f"{_format_lens_cells((layer.scores[index] for layer in scored.lens), scored.renderer)}</tr>"
        for index, score in enumerate(scored.scores)
    )
    return (
        "<h2>Logit lens</h2>\n<p>The most likely token after each layer, and the probability and the rank of the "
        f'actual token.</p><div class="wide"><table><tr><th>token</th>{header}</tr>{rows}</table></div>'
    )


def _format_lens_cells(scores: Iterable[TokenScore], renderer: TokenRenderer) -> str:
    return "".join(
        f'<td style="--share:{_get_share(score.surprisal):.2f}">{_escape(renderer.label_token(score.top[0][0]))} '
        f"{format_probability(score.probability)}, {score.rank + 1:,}</td>"
        for score in scores
    )


def _get_share(bits: float) -> float:
    return min(bits / FULL_SURPRISAL, 1.0)


def _escape(text: str) -> str:
    return html.escape(escape_unprintable(text))
