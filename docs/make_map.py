"""Writes the map of the packages in CONTRIBUTING.md from the first docstring line of each package and its file names.

python docs/make_map.py
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
PAGE = HOUSE / "CONTRIBUTING.md"
BLOCK = re.compile(r"(<!-- map: python docs/make_map.py -->\n\n```text\n).*?(```\n)", re.DOTALL)
WIDTH = 110


def format_map() -> str:
    """Returns the map: for each package what it is, and its files."""
    lines = []
    for file in [HOUSE / "krill" / "__init__.py", *sorted((HOUSE / "krill").rglob("*/__init__.py"))]:
        folder = file.parent
        depth = len(folder.relative_to(HOUSE).parts) - 1
        name = f"{'  ' * depth}{folder.name}/"
        heading = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0]
        files = " ".join(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")))
        lines += textwrap.wrap(
            f"{name:<16}{heading}", WIDTH, subsequent_indent=" " * 16, break_on_hyphens=False
        )
        lines += textwrap.wrap(
            files, WIDTH, initial_indent=" " * 16, subsequent_indent=" " * 16, break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def insert_map(page: str) -> str:
    """Returns the page with the map as it is now."""
    assert BLOCK.search(page), "CONTRIBUTING.md has no block for the map"
    return BLOCK.sub(lambda match: match[1] + format_map() + match[2], page, count=1)


if __name__ == "__main__":
    PAGE.write_text(insert_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
