"""Shows in a terminal how a model judged the tokens of a text: colored by probability, and as a table.

The colors have about the same contrast on black and on white. Without colors, tokens below 50 % have their
probability in brackets.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from rich.text import Text

from krill.inference.logit_lens import LayerScores
from krill.inference.token_scores import TokenScore
from krill.inspection.formatting import truncate_to_width
from krill.inspection.render_rows import make_stdout_console
from krill.inspection.scored_text import ScoredText, format_probability, format_short_probability
from krill.inspection.token_display import TokenRenderer, escape_unprintable
from krill.tables import format_table, get_terminal_width, measure_width, wrap_text

BANDS = ((0.5, "color(28)"), (0.1, "color(100)"), (0.01, "color(130)"), (0.0, "bold color(160)"))
"""Smallest probability and style, the most likely first: green, olive, brown, red."""
MAX_TOKEN_WIDTH = 20
LENS_TOKEN_WIDTH = 10


def print_scores(scored: ScoredText, is_full: bool) -> None:
    """Prints the text colored by probability, a table of its tokens, and the logit lens if there is one.

    `is_full`: show all tokens in the tables; otherwise as many as fit a screen.
    """
    console = make_stdout_console()
    width = get_terminal_width(sys.stdout)
    max_rows = None if is_full else max(8, console.height - 10)
    for name, value in scored.describe():
        console.print(wrap_text(f"{name:<11} {escape_unprintable(value)}", width), soft_wrap=True)
    if not scored.scores:
        return
    console.print()
    console.print(render_inline(scored, has_colors=console.color_system is not None))
    console.print(render_legend(has_colors=console.color_system is not None))
    console.print()
    console.print(render_table(scored, width, max_rows), soft_wrap=True, end="")
    if scored.lens is not None:
        console.print()
        console.print(render_lens(scored.lens, scored.renderer, width, max_rows), soft_wrap=True, end="")


def get_style(probability: float) -> str:
    """Returns the style of a token with this probability."""
    return next(style for limit, style in BANDS if probability >= limit)


def render_inline(scored: ScoredText, has_colors: bool) -> Text:
    """Renders the text; tokens that are one character only together have the color of their joint probability."""
    text = Text()
    for span, scores in scored.group_scores():
        probability = math.exp(sum(score.logprob for score in scores))
        label = escape_unprintable(span.text)
        if span.kind in ("special", "undecodable") or not label:
            label = f"⟨{label or span.ids[0]}⟩"
        if not has_colors and probability < BANDS[0][0]:
            label += f"[{format_short_probability(probability).replace(' ', '')}]"
        text.append(label, get_style(probability))
        if "\n" in span.text:
            text.append("\n")
    return text


def render_legend(has_colors: bool) -> Text:
    """Renders the meaning of the colors, or of the brackets."""
    if not has_colors:
        return Text("[…%] probability of what precedes it, where it is below 50 %")
    names = (">= 50 %", ">= 10 %", ">= 1 %", "< 1 %")
    legend = Text("probability", "dim")
    for (_, style), name in zip(BANDS, names, strict=True):
        legend.append("  ").append(name, style)
    return legend


def render_table(scored: ScoredText, width: int | None, max_rows: int | None) -> Text:
    """Renders a line per token; columns from the right are left out until it is at most `width` columns wide."""
    header = ["token", "probability", "bits", "rank", "entropy"]
    scores = scored.scores[:max_rows]
    rows = [
        [
            truncate_to_width(scored.renderer.label_token(score.token), MAX_TOKEN_WIDTH),
            format_probability(score.probability),
            f"{score.surprisal:.2f}",
            f"{score.rank + 1:,}",
            f"{score.entropy:.2f}",
        ]
        for score in scores
    ]
    while width is not None and len(header) > 2 and _measure(header, rows) > width:
        header, rows = header[:-1], [row[:-1] for row in rows]
    left = [0]
    room = None if width is None else width - _measure(header, rows) - 2
    if len(header) == 5 and (room is None or room >= len("most likely")):
        left = [0, 5]
        header.append("most likely")
        rows = [
            [*row, _list_alternatives(score, scored.renderer, room)]
            for row, score in zip(rows, scores, strict=True)
        ]
    styles = [get_style(score.probability) for score in scores]
    text = _style_first_column(format_table(rows, header, left), rows, styles)
    return _append_rest(text, len(scored.scores) - len(scores))


def render_lens(
    lens: Sequence[LayerScores], renderer: TokenRenderer, width: int | None, max_rows: int | None
) -> Text:
    """Renders for each token the most likely one after each layer, and the probability of the actual token.

    Layers are left out evenly until the table is at most `width` columns wide.
    """
    cell_width = LENS_TOKEN_WIDTH + len(" 2e-05 %")
    fitting = len(lens) if width is None else max(1, (width - MAX_TOKEN_WIDTH) // (cell_width + 2))
    layers = _choose_evenly(lens, fitting)
    labels = [renderer.label_token(score.token) for score in lens[0].scores[:max_rows]]
    first_width = MAX_TOKEN_WIDTH if width is None else min(MAX_TOKEN_WIDTH, max(8, width - cell_width - 2))
    rows = [
        [
            truncate_to_width(label, first_width),
            *(_format_lens_cell(layer.scores[index], renderer) for layer in layers),
        ]
        for index, label in enumerate(labels)
    ]
    names = [layer.layer if layer.layer == lens[0].layer else f"layer {layer.layer}" for layer in layers]
    title = "logit lens: most likely token after each layer, and the probability of the actual token"
    if len(layers) < len(lens):
        title += f"; {len(layers)} of {len(lens)}, all are in format=json and output="
    text = Text(wrap_text(title, width) + "\n")
    styles = [get_style(score.probability) for score in layers[-1].scores[:max_rows]]
    text.append_text(
        _style_first_column(format_table(rows, ["token", *names], [*range(len(names) + 1)]), rows, styles)
    )
    return _append_rest(text, len(lens[0].scores) - len(rows))


def _format_lens_cell(score: TokenScore, renderer: TokenRenderer) -> str:
    label = truncate_to_width(renderer.label_token(score.top[0][0]), LENS_TOKEN_WIDTH)
    padding = " " * (LENS_TOKEN_WIDTH - measure_width(label))
    return f"{label}{padding} {format_short_probability(score.probability):>7}"


def _choose_evenly(lens: Sequence[LayerScores], count: int) -> list[LayerScores]:
    """Returns at most `count` layers, the last one among them, and the first one if there is room for two."""
    if count >= len(lens):
        return list(lens)
    if count == 1:
        return [lens[-1]]
    return [lens[round(index * (len(lens) - 1) / (count - 1))] for index in range(count)]


def _list_alternatives(score: TokenScore, renderer: TokenRenderer, room: int | None) -> str:
    """Returns the most likely tokens that fit into `room` columns, at least the first of them."""
    line = ""
    for token, logprob in score.top:
        label = truncate_to_width(renderer.label_token(token), MAX_TOKEN_WIDTH)
        item = f"{label} {format_short_probability(math.exp(logprob))}"
        longer = f"{line}  {item}" if line else item
        if room is not None and measure_width(longer) > room:
            return line or truncate_to_width(item, room)
        line = longer
    return line


def _measure(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return max(map(measure_width, format_table(rows, header)))


def _style_first_column(lines: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> Text:
    """Returns the lines of a table; the cells of the first column, which is left-aligned, have these styles."""
    text = Text(f"{lines[0]}\n", "bold")
    for line, row, style in zip(lines[1:], rows, styles, strict=True):
        text.append(row[0], style).append(f"{line[len(row[0]) :]}\n")
    return text


def _append_rest(text: Text, hidden: int) -> Text:
    return text.append(f"… {hidden:,} more tokens; use full=true for all\n", "dim") if hidden else text
