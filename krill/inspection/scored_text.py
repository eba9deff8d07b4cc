"""Holds a text with the scores of its tokens, for the terminal, the page and the JSON of an inspection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from krill.inference.attention_maps import AttentionMap
from krill.inference.logit_lens import LayerScores
from krill.inference.token_scores import TokenScore
from krill.inspection.token_display import TokenRenderer, TokenSpan


@dataclass(frozen=True)
class ScoredText:
    """The tokens of a text, or of an answer, as a model judged them."""

    model: str
    text: str
    """The text or the answer, without the prompt."""
    scores: list[TokenScore]
    """One per token of the text, eos last if the text is a whole document."""
    renderer: TokenRenderer
    prompt: str | None = None
    """The prompt that the text answers; None: the text is a document."""
    bits_per_byte: float | None = None
    lens: list[LayerScores] | None = None
    attention: AttentionMap | None = None

    @property
    def loss(self) -> float | None:
        """The mean of the negative logprobs, eos included, as in evaluation; None without tokens."""
        return -sum(score.logprob for score in self.scores) / len(self.scores) if self.scores else None

    @property
    def bits(self) -> float:
        """The sum of the surprisals."""
        return sum(score.surprisal for score in self.scores)

    def describe(self) -> list[tuple[str, str]]:
        """Returns names and values that describe the whole."""
        size = f"{len(self.text.encode()):,} bytes in {len(self.scores):,} tokens"
        lines = [("model", self.model)]
        lines += [("prompt", self.prompt)] if self.prompt is not None else []
        lines.append(("text" if self.prompt is None else "answer", f"{size}, {self.bits:,.1f} bits"))
        if self.loss is not None:
            ratio = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits per byte"
            lines.append(
                ("loss", f"{self.loss:.3f} nats per token, perplexity {_format_exp(self.loss)}{ratio}")
            )
        return lines

    def group_scores(self) -> list[tuple[TokenSpan, list[TokenScore]]]:
        """Returns the scores of each span of the text: a token, or the tokens of a character."""
        groups, start = [], 0
        for span in self.renderer.iterate_spans([score.token for score in self.scores]):
            groups.append((span, self.scores[start : start + len(span.ids)]))
            start += len(span.ids)
        return groups

    def to_json(self) -> dict[str, Any]:
        """Returns everything as values for JSON; an infinite number is null."""
        content: dict[str, Any] = {"model": self.model}
        if self.prompt is not None:
            content["prompt"] = self.prompt
        content |= {
            "text": self.text,
            "bytes": len(self.text.encode()),
            "tokens": len(self.scores),
            "bits": _to_finite(self.bits),
            "loss": _to_finite(self.loss),
            "bits_per_byte": _to_finite(self.bits_per_byte),
            "scores": [score_to_json(score, self.renderer) for score in self.scores],
        }
        if self.lens is not None:
            content["lens"] = [
                {
                    "layer": layer.layer,
                    "scores": [score_to_json(score, self.renderer) for score in layer.scores],
                }
                for layer in self.lens
            ]
        if self.attention is not None:
            content["attention"] = {
                "layer": self.attention.layer,
                "head": self.attention.head,
                "tokens": [_token_to_json(token, self.renderer) for token in self.attention.ids],
                "weights": self.attention.weights_NN.tolist(),
            }
        return content


def score_to_json(score: TokenScore, renderer: TokenRenderer) -> dict[str, Any]:
    """Returns a score as values for JSON; an infinite number is null, and rank counts from 1."""
    return {
        **_token_to_json(score.token, renderer),
        "logprob": _to_finite(score.logprob),
        "probability": score.probability,
        "surprisal": _to_finite(score.surprisal),
        "entropy": score.entropy,
        "rank": score.rank + 1,
        "top": [
            {**_token_to_json(token, renderer), "logprob": _to_finite(logprob)}
            for token, logprob in score.top
        ],
    }


def _token_to_json(token: int, renderer: TokenRenderer) -> dict[str, Any]:
    return {"id": token, "text": renderer.render_token(token)}


def format_probability(probability: float) -> str:
    """Formats 0.5 as 50.00 %, and what would be 0.00 % as 1e-07."""
    return f"{100 * probability:.2f} %" if probability >= 5e-5 or probability == 0 else f"{probability:.0e}"


def format_short_probability(probability: float) -> str:
    """Formats 0.5 as 50 %, and a probability below 1 % with one significant digit."""
    return f"{100 * probability:{'.0f' if probability >= 0.01 else '.1g'}} %"


def _format_exp(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 100 else f"e^{loss:.0f}"


def _to_finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
