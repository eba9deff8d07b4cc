"""Writes docs/minimal-pairs.md from the phenomena of krill/evaluation/minimal_pairs.

python docs/make_minimal_pairs.py
"""

from __future__ import annotations

from pathlib import Path

from krill.evaluation.bundled import PAIR_TASKS
from krill.evaluation.minimal_pairs.phenomenon import PAIRS
from krill.tables import format_markdown_table

PAGE = Path(__file__).parent / "minimal-pairs.md"
LANGUAGES = {"ko": "Korean", "en": "English"}

HEAD = f"""# Minimal pairs

The phenomena of `korean_pairs` and `english_pairs`, each with {PAIRS} pairs and one of them as an example: of its two
sentences the first is grammatical. [evaluation.md](evaluation.md) describes how they are scored.
`docs/make_minimal_pairs.py` generates this page; do not edit it.
"""


def build_page() -> str:
    """Returns the page as Markdown."""
    lines = [HEAD]
    for task, phenomena in PAIR_TASKS.items():
        lines.append(f"## {LANGUAGES[phenomena[0].language]}: {task}\n")
        rows = [
            (f"`{one.name}`", one.description, f"{one.example.good}<br>✗ {one.example.bad}")
            for one in phenomena
        ]
        lines += [*format_markdown_table(("phenomenon", "rule", "example"), rows), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
