"""Writes the table in docs/training.md of the values that each preset of model= gets from the rule.

python docs/make_rates.py
tests/config/test_size_rule.py checks that the committed page is up to date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from krill.cli.compose import compose_config
from krill.config.paths import CONF_DIR, list_config_options
from krill.config.rule_keys import format_amount, format_rate
from krill.config.run_size import count_hidden_parameters
from krill.config.schema import TrainConfig
from krill.config.size_rule import compute_batch_of_tokens, compute_tokens
from krill.config.validation import validate_config
from krill.tables import format_markdown_table
from krill.training.batch_shape import compute_batch_shape

PAGE = Path(__file__).with_name("training.md")
BLOCK = re.compile(r"(<!-- rates: python docs/make_rates.py -->\n\n).*?(\n\n<!-- end -->\n)", re.DOTALL)
MODELS_WITHOUT_SIZE = ("auto", "pretrained")
HEADER = (
    "`model=`",
    "hidden parameters",
    "`steps=`",
    "tokens per step",
    "tokens",
    "lr",
    "weight decay",
    "warm-up",
)


def format_table() -> str:
    """Returns the table: each preset at the steps of the default, and at about as many tokens as are optimal."""
    rows = []
    for name in sorted(list_config_options("model", [CONF_DIR])):
        if name not in MODELS_WITHOUT_SIZE:
            rows += _build_rows(name)
    rows.sort(key=lambda row: row[0])
    return "\n".join(format_markdown_table(HEADER, [row[1] for row in rows]))


def _build_rows(name: str) -> Iterator[tuple[tuple[int, str, int], tuple[str, ...]]]:
    """Yields the key by which rows are sorted, and the cells."""
    composed = compose_config("train", [f"model={name}"])
    parameters = count_hidden_parameters(composed.model)
    assert parameters is not None
    tokens = compute_tokens(parameters, steps=None)
    for steps in (500, round(float(f"{tokens / compute_batch_of_tokens(tokens):.2g}"))):
        composed.steps = steps
        config = validate_config(TrainConfig, composed)
        step_tokens = compute_batch_shape(config).rows_per_step * config.sequence_len
        cells = (
            f"`{name}`", format_amount(parameters), f"{steps:,}", f"{step_tokens:,}",
            format_amount(steps * step_tokens), format_rate(config.lr), f"{config.optimizer.weight_decay:g}",
            f"{config.scheduler.warmup:.2g}",
        )  # fmt: skip
        yield (parameters, name, steps), cells


def insert_table(page: str) -> str:
    """Returns the page with the table as it is now."""
    assert BLOCK.search(page), "docs/training.md has no block for the rates"
    return BLOCK.sub(lambda match: match[1] + format_table() + match[2], page, count=1)


if __name__ == "__main__":
    PAGE.write_text(insert_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
